//! The command line and the small files it names.
//!
//! [`Options`] is the command line as written, with what the configuration file and the environment add to it.
//! [`Config`] is what that means, checked, with every default resolved. [`load_identity`] and its like read the files.

mod admission;
mod arguments;
mod certificates;
mod duration;
mod error;
mod file;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
pub(crate) mod fuzz;
mod key_file;
mod keys;
mod layers;
mod options;
mod rate_file;
mod relay_keys;
mod resolve;
mod show;
mod unsupported;
mod variables;

pub use arguments::{DEFAULT_FILE, Invocation, Surroundings, parse, read_file};
pub use certificates::TlsSettings;
pub use duration::{DurationError, GoDuration};
pub use error::{ConfigError, UsageError};
pub use file::{
    CompanionSettings, ConfigFile, ControlSettings, FileSettings, FlowPortError, PeerRelaySettings,
    RelaySettings, StunSettings, WireGuardSettings, load_file,
};
pub use key_file::{load_debug_key, load_identity, load_mesh_key};
pub use keys::Key;
pub use layers::{Layers, Origin};
pub use options::{CertificateMode, LogFormat, Options};
pub use rate_file::load_rate_limit;
pub use relay_keys::{RelayKeys, load_relay_keys, save_relay_keys};
pub use resolve::{
    Config, DebugAccessSettings, Environment, KeySource, ListenAddress, MeshConfig, MeshKeySource,
    TcpSettings,
};
pub use show::Settings;
pub use variables::names as variable_names;

#[cfg(test)]
mod layer_tests;
#[cfg(test)]
mod tests;
