//! `derpd healthcheck`: whether the relay with these flags serves, asked from its own machine. It is what a
//! container image without a shell can run.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::time::timeout;

use super::{Invocation, ToolError, monitor::runtime};
use crate::{
    client::{CONNECT_TIMEOUT, ClientError, Connector, Target, Trust},
    config::{self, Config, ConfigError, Options, Surroundings, UsageError},
};

/// What the page for probes answers.
const OK: u16 = 200;
/// Clients measure their way to the relay with this page.
const PROBE: &str = "/derp/probe";

const HELP: &str = "\
Asks the relay that runs with these flags whether it serves, from its own machine

Usage: derpd healthcheck [flags of the relay]

Give the relay's own flags, or none where variables of the environment stand for them. The page /derp/probe is asked
for, by TLS where the relay speaks it, whatever its certificate is.
";
/// What the exit status means, for help and manual.
pub(super) const EXIT_STATUS: &str = "\
Exit status 0: it has answered within 10 seconds; 1: it has not, or with something else; 2: the command line is wrong.";

/// Why the relay does not serve, or that it cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// The command line is wrong.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The flags contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The relay chooses its port when it starts, so nobody else knows it.
    #[error("-a {0}: without a port it is not known where to ask")]
    NoPort(config::ListenAddress),
    /// This machine gives no runtime.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The relay cannot be reached, or not be spoken with.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It does not answer.
    #[error("{address} did not answer within {CONNECT_TIMEOUT:?}")]
    TimedOut {
        /// Where it was asked.
        address: SocketAddr,
    },
    /// It answers something else.
    #[error("{address}{PROBE} answers {status}")]
    Status {
        /// Where it was asked.
        address: SocketAddr,
        /// Status of the answer.
        status: u16,
    },
}

impl HealthError {
    /// Exit status of the program: 2 where the command line is at fault, else 1, as a container's health check.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(error) => error.exit_status(),
            Self::NoPort(_) => 2,
            Self::Config(error) => error.exit_status(),
            Self::Tool(_) | Self::Client(_) | Self::TimedOut { .. } | Self::Status { .. } => 1,
        }
    }
}

/// Parses the arguments after `healthcheck`; `surroundings` are the relay's.
///
/// # Errors
///
/// The first thing that is wrong with them.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    surroundings: &Surroundings<'_>,
) -> Result<Invocation<Options>, HealthError> {
    Ok(match config::parse(arguments, surroundings)? {
        config::Invocation::Run(options) => Invocation::Run(*options),
        config::Invocation::Help(_) => Invocation::Help(format!("{HELP}\n{EXIT_STATUS}\n")),
    })
}

/// Asks the relay, and says where it has answered.
///
/// # Errors
///
/// If it does not serve.
pub fn run(config: &Config) -> Result<SocketAddr, HealthError> {
    let address = place(config)?;
    let target =
        Target { tls: config.tls.is_some(), host: config.hostname.clone(), port: address.port() };
    let connector = Connector::new(target, &Trust::Anything)?.with_address(address);
    let answer =
        runtime()?.block_on(async { timeout(CONNECT_TIMEOUT, connector.get(PROBE)).await });
    match answer.map_err(|_| HealthError::TimedOut { address })?? {
        (OK, _) => Ok(address),
        (status, _) => Err(HealthError::Status { address, status }),
    }
}

/// Where the relay can be reached from here.
fn place(config: &Config) -> Result<SocketAddr, HealthError> {
    let listen = config.listen;
    if listen.port == 0 {
        return Err(HealthError::NoPort(listen));
    }
    let ip = match listen.ip {
        Some(ip) if !ip.is_unspecified() => ip,
        Some(IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
        Some(IpAddr::V4(_)) | None => Ipv4Addr::LOCALHOST.into(),
    };
    Ok(SocketAddr::new(ip, listen.port))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    fn config(flags: &str) -> Config {
        let words = format!("-c=/key -certmode=manual -certdir=/certs {flags}");
        let words: Vec<_> = words.split_whitespace().map(OsString::from).collect();
        let Ok(Invocation::Run(options)) = parse(words, &Surroundings::nothing()) else {
            panic!("{flags}")
        };
        let environment = config::Environment {
            variable: &|_| None,
            is_root: false,
            file_exists: &|_| false,
            processors: NonZeroUsize::MIN,
        };
        Config::resolve(options, &environment).expect("good flags")
    }

    #[test]
    fn it_is_asked_where_it_listens() {
        for (listen, expected) in [
            (":443", "127.0.0.1:443"),
            ("0.0.0.0:8443", "127.0.0.1:8443"),
            ("[::]:8443", "[::1]:8443"),
            ("192.0.2.1:443", "192.0.2.1:443"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ] {
            let config = config(&format!("-hostname relay.test -a {listen}"));
            assert_eq!(place(&config).expect("a port").to_string(), expected);
        }
        let error = place(&config("-a 127.0.0.1:0")).expect_err("no port");
        assert!(error.to_string().starts_with("-a 127.0.0.1:0: without a port"), "{error}");
        assert_eq!(error.exit_status(), 2);
    }

    #[test]
    fn nobody_there_is_a_failure() {
        // The discard port, on an address that nobody else uses.
        let error = run(&config("-hostname relay.test -a 127.9.9.9:9")).expect_err("nobody");
        assert!(matches!(error, HealthError::Client(_)), "{error}");
        assert_eq!(error.exit_status(), 1);
        let help = parse([OsString::from("-help")], &Surroundings::nothing()).expect("help");
        assert!(matches!(help, Invocation::Help(text) if text.contains("derpd healthcheck")));
    }
}
