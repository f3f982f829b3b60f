//! The command line and the small files it names.
//!
//! [`Options`] is the command line as written: parsing it touches nothing. [`Config`] is what it means, checked,
//! with every default and environment variable resolved. [`load_identity`] and its like read the files.

mod admission;
mod arguments;
mod certificates;
mod duration;
mod error;
mod file;
mod key_file;
mod options;
mod rate_file;
mod relay_keys;
mod resolve;
mod unsupported;
mod variables;

pub use arguments::{Invocation, parse};
pub use certificates::TlsSettings;
pub use duration::{DurationError, GoDuration};
pub use error::{ConfigError, UsageError};
pub use file::{
    CompanionSettings, ControlSettings, FileSettings, PeerRelaySettings, Pin, RelaySettings,
    StunSettings, WireGuardSettings, load_file,
};
pub use key_file::{load_debug_key, load_identity, load_mesh_key};
pub use options::{CertificateMode, LogFormat, Options};
pub use rate_file::load_rate_limit;
pub use relay_keys::{RelayKeys, load_relay_keys, save_relay_keys};
pub use resolve::{
    Config, DebugAccessSettings, Environment, KeySource, ListenAddress, MeshConfig, MeshKeySource,
    OpenToFile, TcpSettings,
};
pub use variables::{Variables, names as variable_names};

#[cfg(test)]
mod tests;
