//! What the process finds around it.

use std::{env, num::NonZeroUsize, thread};

use derp_user::config::{self, Config, ConfigError, Environment, Options, Surroundings};

/// A variable of the environment, if it is there and is text.
pub(crate) fn variable(name: &str) -> Option<String> {
    env::var(name).ok()
}

/// What the command line means on this machine.
pub(crate) fn resolve(options: Options) -> Result<Config, ConfigError> {
    Config::resolve(
        options,
        &Environment {
            variable: &variable,
            is_root: nix::unistd::geteuid().is_root(),
            file_exists: &|path| path.exists(),
            processors: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        },
    )
}

/// What a command line of the relay is read with.
pub(crate) fn surroundings() -> Surroundings<'static> {
    Surroundings { variable: &variable, read: &config::read_file }
}
