//! What the command line means, with defaults and environment filled in.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

use super::{
    CertificateMode, ConfigError, FileSettings, GoDuration, Layers, LogFormat, Options,
    TlsSettings, admission, certificates, options::parse_boolean,
};
use crate::{
    admit,
    client::{ClientError, Trust},
    dataplane::{Mode, Pin},
    http::{self, Home},
    proto::keys::{MeshKey, NodePublic, decode_hex},
    proxy_protocol::parse_networks,
    server::{
        AcceptLimit, ConnectionLimits, DEFAULT_QUEUE_DEPTH, MeshPeer, MeshPeerError, VerboseClients,
    },
};

/// What the process finds around it; given, so that tests need no real environment.
pub struct Environment<'a> {
    /// Looks up an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// Whether the process runs as root.
    pub is_root: bool,
    /// Whether a file exists, for the default mesh key files.
    pub file_exists: &'a dyn Fn(&std::path::Path) -> bool,
    /// Processors that may be used.
    pub processors: NonZeroUsize,
}

/// The checked settings of one relay. Making one reads no file; the files it names may still be faulty.
#[derive(Debug)]
pub struct Config {
    /// Whether `-dev` is set.
    pub dev: bool,
    /// Where the main listener binds.
    pub listen: ListenAddress,
    /// Certificates and the second listener; `None` for plain HTTP.
    pub tls: Option<TlsSettings>,
    /// Name the certificate is for.
    pub hostname: String,
    /// Whether `/derp` relays.
    pub derp_enabled: bool,
    /// UDP port of STUN, if it is answered.
    pub stun_port: Option<u16>,
    /// The server's key.
    pub key: KeySource,
    /// The mesh's key.
    pub mesh_key: MeshKeySource,
    /// The other servers of the region, if there are any.
    pub mesh: Option<MeshConfig>,
    /// What unmatched paths show.
    pub home: Home,
    /// Names that `/bootstrap-dns` tells.
    pub bootstrap: http::Names,
    /// Who may use the relay.
    pub admission: admit::Settings,
    /// Proxies whose PROXY protocol headers are believed.
    pub proxies: Vec<IpNet>,
    /// File with the byte rate limit of each client.
    pub rate_config: Option<PathBuf>,
    /// Limits and timeouts of connections.
    pub tcp: TcpSettings,
    /// How long clients may stay after SIGTERM; `None`: everything ends at once.
    pub drain_timeout: Option<Duration>,
    /// Packets of each kind that wait for one client.
    pub queue_depth: usize,
    /// Threads that relay even when fewer would do.
    pub min_workers: NonZeroUsize,
    /// Most threads that relay.
    pub workers: NonZeroUsize,
    /// Interfaces on which the kernel answers STUN.
    pub xdp_interfaces: Vec<String>,
    /// How it should.
    pub xdp_mode: Mode,
    /// Whether the round trip times of clients are sampled.
    pub sample_round_trips: bool,
    /// Whose frames are logged.
    pub verbose_clients: VerboseClients,
    /// Keys whose lost packets are logged.
    pub verbose_drops: Vec<NodePublic>,
    /// Whether it goes on without the process.
    pub xdp_pin: Pin,
    /// Who says all this, and the configuration file.
    pub layers: Layers,
    /// Who may see the debug pages.
    pub debug_access: DebugAccessSettings,
    /// Whether files and system calls are restricted to what is needed.
    pub sandbox: bool,
    /// Filter of the log.
    pub log: String,
    /// How the log is written.
    pub log_format: LogFormat,
}

/// Where a listener binds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ListenAddress {
    /// `None` for every address of both families.
    pub ip: Option<IpAddr>,
    /// The port; 0 lets the system choose.
    pub port: u16,
}

impl ListenAddress {
    /// The same address with another port.
    pub fn with_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// The address to bind; "every address" is the IPv6 wildcard, which takes IPv4 too.
    pub fn socket_address(self) -> SocketAddr {
        SocketAddr::new(self.ip.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), self.port)
    }
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(formatter),
            None => write!(formatter, ":{}", self.port),
        }
    }
}

/// Where the server's private key comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeySource {
    /// A new one at each start.
    Ephemeral,
    /// This file.
    File {
        /// The path.
        path: PathBuf,
        /// Whether nobody named it.
        by_default: bool,
    },
}

/// Where the mesh key comes from.
#[derive(Clone, Eq, PartialEq)]
pub enum MeshKeySource {
    /// There is none.
    None,
    /// This text, from the environment.
    Text(Zeroizing<String>),
    /// This file.
    File(PathBuf),
}

impl std::fmt::Debug for MeshKeySource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => formatter.write_str("None"),
            Self::Text(_) => formatter.write_str("Text([redacted])"),
            Self::File(path) => write!(formatter, "File({path:?})"),
        }
    }
}

/// The mesh as configured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MeshConfig {
    /// The other servers; at least one.
    pub peers: Vec<MeshPeer>,
    /// Which certificates they must show.
    pub trust: Trust,
}

/// Limits and timeouts of TCP connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TcpSettings {
    /// New connections on the TLS listener, if limited.
    pub accept_limit: Option<AcceptLimit>,
    /// Most connections at one time; `None` for as many as there may be.
    pub connections: Option<NonZeroUsize>,
    /// Most of them that have not logged in; `None` for what is left to [`ConnectionLimits::for_files`].
    pub arrivals: Option<NonZeroUsize>,
    /// Most connections of one source, if limited.
    pub per_source: Option<NonZeroUsize>,
    /// Idle time before keepalive probes; `None` for none.
    pub keepalive_idle: Option<Duration>,
    /// TCP_USER_TIMEOUT; `None` for the system's default.
    pub user_timeout: Option<Duration>,
    /// How long a client may refuse data; `None` for ever.
    pub write_timeout: Option<Duration>,
}

/// The texts of the debug access rule; the key is in a file of its own.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DebugAccessSettings {
    /// `TS_ALLOW_DEBUG_IP`.
    pub address: Option<String>,
    /// `TS_DEBUG_TRUSTED_CIDRS`.
    pub networks: Option<String>,
    /// `TS_DEBUG_KEY_PATH`.
    pub key_path: Option<PathBuf>,
}

impl TcpSettings {
    /// How many connections there may be in a process that may open this many files.
    pub fn connection_limits(&self, files: u64) -> ConnectionLimits {
        let most = ConnectionLimits::for_files(files);
        let connections =
            self.connections.map_or(most.connections, |limit| limit.get().min(most.connections));
        let half = most.arrivals.min(connections.div_ceil(2));
        let arrivals = self.arrivals.map_or(half, |limit| limit.get().min(connections));
        ConnectionLimits { connections, arrivals, per_source: self.per_source }
    }
}

const TLS_PORT: u16 = 443;
const DEV_LISTEN: ListenAddress = ListenAddress { ip: None, port: 3340 };
const ROOT_KEY_PATH: &str = "/var/lib/derper/derper.key";
const QUEUE_DEPTH_VARIABLE: &str = "TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH";
const MAX_QUEUE_DEPTH: usize = 65536;
const MAX_DRAIN: Duration = Duration::from_secs(24 * 60 * 60);
/// Why a mesh is refused that has no key.
const NO_MESH_KEY: &str =
    "the servers of a mesh need a common key: give its file with -mesh-psk-file";
/// Longest idle time that Linux accepts, in seconds (MAX_TCP_KEEPIDLE).
const MAX_KEEPALIVE_SECONDS: u64 = 32767;
/// What Go takes for an idle time of 0.
const ZERO_KEEPALIVE: Duration = Duration::from_secs(15);
/// TCP_USER_TIMEOUT is a number of milliseconds in 31 bits.
const MAX_USER_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

impl Config {
    /// Returns the server's name, unless nobody has given one.
    #[must_use]
    pub fn own_hostname(&self) -> Option<&str> {
        Some(self.hostname.as_str()).filter(|name| *name != certificates::DERPERS_HOSTNAME)
    }

    /// Checks that there is a mesh key where one is needed, now that its file has been read.
    ///
    /// # Errors
    ///
    /// If `-mesh-with` is given and the file holds none.
    pub fn check_mesh_key(&self, mesh_key: Option<&MeshKey>) -> Result<(), ConfigError> {
        let Some(MeshConfig { peers, .. }) = &self.mesh else { return Ok(()) };
        if mesh_key.is_some() {
            return Ok(());
        }
        let names: Vec<_> = peers.iter().map(|peer| peer.name.as_str()).collect();
        Err(ConfigError::Flag {
            flag: "mesh-with",
            value: names.join(","),
            reason: NO_MESH_KEY.to_owned(),
        })
    }

    /// Resolves `options` in `environment`.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be used, or that contradicts another.
    pub fn resolve(
        mut options: Options,
        environment: &Environment<'_>,
    ) -> Result<Self, ConfigError> {
        let layers = std::mem::take(&mut options.layers);
        Self::resolve_flags(options, layers.clone(), environment)
            .map_err(|error| layers.blame(error))
    }

    /// What the sections of the configuration file say that are not for flags.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with them.
    pub fn file_settings(&self) -> Result<FileSettings, ConfigError> {
        match &self.layers.file {
            Some(file) => file.settings(self.stun_port),
            None => Ok(FileSettings::default()),
        }
    }

    fn resolve_flags(
        options: Options,
        layers: Layers,
        environment: &Environment<'_>,
    ) -> Result<Self, ConfigError> {
        let listen = if options.dev { DEV_LISTEN } else { parse_listen(&options.a)? };
        let tls = tls_settings(&options, listen, environment)?;
        let key = key_source(&options, environment)?;
        if let Some(interface) = options.xdp_interface.first()
            && !options.stun
            && layers.file.is_none()
            && options.xdp_mode != Mode::Off
        {
            return Err(ConfigError::Flag {
                flag: "xdp-interface",
                value: interface.clone(),
                reason:
                    "without -config the kernel answers only STUN, which -stun=false switches off"
                        .to_owned(),
            });
        }
        let mesh_key = mesh_key_source(&options, environment);
        let (min_workers, workers) = workers(&options, environment)?;
        Ok(Self {
            dev: options.dev,
            listen,
            tls,
            derp_enabled: options.derp,
            stun_port: options.stun.then_some(options.stun_port),
            key,
            mesh: mesh(&options, &mesh_key)?,
            mesh_key,
            home: options.home.parse()?,
            bootstrap: bootstrap(&options)?,
            admission: admission::settings(&options)?,
            proxies: proxies(&options)?,
            rate_config: (!options.rate_config.is_empty()).then(|| (&options.rate_config).into()),
            tcp: tcp_settings(&options)?,
            drain_timeout: timeout("drain-timeout", options.drain_timeout, MAX_DRAIN)?,
            queue_depth: queue_depth(environment)?,
            min_workers,
            workers,
            xdp_mode: options.xdp_mode,
            sample_round_trips: !environment.switch("TS_DERP_DISABLE_RTT_STATS")?,
            verbose_clients: verbose_clients(environment)?,
            verbose_drops: verbose_drops(environment)?,
            xdp_pin: options.xdp_pin.unwrap_or_else(Pin::if_possible),
            layers,
            debug_access: DebugAccessSettings {
                address: environment.text("TS_ALLOW_DEBUG_IP"),
                networks: environment.text("TS_DEBUG_TRUSTED_CIDRS"),
                key_path: environment.text("TS_DEBUG_KEY_PATH").map(PathBuf::from),
            },
            log: log_filter(options.log, environment)?,
            log_format: options.log_format,
            sandbox: options.sandbox,
            hostname: options.hostname,
            xdp_interfaces: options.xdp_interface,
        })
    }
}

fn bootstrap(options: &Options) -> Result<http::Names, ConfigError> {
    let list = |flag, value: &String| {
        value.parse().map_err(|error: http::NamesError| ConfigError::Flag {
            flag,
            value: value.clone(),
            reason: error.to_string(),
        })
    };
    Ok(http::Names {
        published: list("bootstrap-dns-names", &options.bootstrap_dns_names)?,
        unpublished: list(
            "unpublished-bootstrap-dns-names",
            &options.unpublished_bootstrap_dns_names,
        )?,
    })
}

fn proxies(options: &Options) -> Result<Vec<IpNet>, ConfigError> {
    parse_networks(&options.proxy_protocol_from).map_err(|error| ConfigError::Flag {
        flag: "proxy-protocol-from",
        value: options.proxy_protocol_from.clone(),
        reason: error.to_string(),
    })
}

/// The least and the most threads that relay.
fn workers(
    options: &Options,
    environment: &Environment<'_>,
) -> Result<(NonZeroUsize, NonZeroUsize), ConfigError> {
    let least = options.min_workers;
    let most = options.workers.unwrap_or(environment.processors.max(least));
    if least > most {
        return Err(ConfigError::Flag {
            flag: "min-workers",
            value: least.to_string(),
            reason: format!("more than the {most} that -workers allows"),
        });
    }
    Ok((least, most))
}

impl Environment<'_> {
    /// A variable that is set and not empty.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    /// Whether a switch is on.
    fn switch(&self, name: &'static str) -> Result<bool, ConfigError> {
        let Some(value) = self.text(name) else { return Ok(false) };
        parse_boolean(&value).map_err(|reason| ConfigError::Variable {
            name,
            value: value.clone(),
            reason: reason.to_owned(),
        })
    }
}

fn parse_listen(text: &str) -> Result<ListenAddress, ConfigError> {
    let fault = |reason: &str| ConfigError::Flag {
        flag: "a",
        value: text.to_owned(),
        reason: reason.to_owned(),
    };
    let (host, port) =
        text.rsplit_once(':').ok_or_else(|| fault("write :port, ip:port or [ip6]:port"))?;
    let port = match port {
        "https" => TLS_PORT,
        "http" => 80,
        number => number.parse().map_err(|_| fault("the port must be a number up to 65535"))?,
    };
    let ip = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
        Some(Some(address)) => address.parse().ok().map(IpAddr::V6),
        Some(None) => None,
        None if host.is_empty() => return Ok(ListenAddress { ip: None, port }),
        None => host.parse().ok().map(IpAddr::V4),
    };
    match ip {
        Some(ip) => Ok(ListenAddress { ip: Some(ip), port }),
        None => {
            Err(fault("the part before the port must be an IP address (IPv6 in brackets) or empty"))
        }
    }
}

fn tls_settings(
    options: &Options,
    listen: ListenAddress,
    environment: &Environment<'_>,
) -> Result<Option<TlsSettings>, ConfigError> {
    // As derper, which knows no other ACME servers.
    let speaks_tls = listen.port == TLS_PORT
        || options.certmode == CertificateMode::Manual
        || !options.acme_directory.is_empty();
    speaks_tls.then(|| certificates::settings(options, environment)).transpose()
}

fn key_source(options: &Options, environment: &Environment<'_>) -> Result<KeySource, ConfigError> {
    if options.dev {
        return Ok(KeySource::Ephemeral);
    }
    match options.c.as_str() {
        "" if environment.is_root => {
            Ok(KeySource::File { path: PathBuf::from(ROOT_KEY_PATH), by_default: true })
        }
        "" => Err(ConfigError::NoKeyPath),
        path => Ok(KeySource::File { path: PathBuf::from(path), by_default: false }),
    }
}

fn mesh_key_source(options: &Options, environment: &Environment<'_>) -> MeshKeySource {
    if options.dev {
        return match environment.text("TAILSCALE_DERPER_MESH_KEY") {
            Some(key) => MeshKeySource::Text(Zeroizing::new(key)),
            None => MeshKeySource::None,
        };
    }
    match options.mesh_psk_file.as_deref() {
        Some("") => MeshKeySource::None,
        Some(path) => MeshKeySource::File(PathBuf::from(path)),
        None => {
            let in_home = |home| PathBuf::from(home).join("keys/derp-mesh.key");
            [Some("/home/derp".to_owned()), environment.text("HOME")]
                .into_iter()
                .flatten()
                .map(in_home)
                .find(|path| (environment.file_exists)(path))
                .map_or(MeshKeySource::None, MeshKeySource::File)
        }
    }
}

fn mesh(options: &Options, mesh_key: &MeshKeySource) -> Result<Option<MeshConfig>, ConfigError> {
    let trust = match (options.mesh_ca_file.as_str(), options.mesh_pin.as_str()) {
        ("", "") => Trust::System,
        (path, "") => Trust::Roots(PathBuf::from(path)),
        ("", pins) => {
            let fault =
                |reason| ConfigError::Flag { flag: "mesh-pin", value: pins.to_owned(), reason };
            let pins = pins.split(',').map(str::parse).collect::<Result<_, ClientError>>();
            Trust::PinnedAny(pins.map_err(|error| fault(error.to_string()))?)
        }
        (path, _) => {
            return Err(ConfigError::Flag {
                flag: "mesh-ca-file",
                value: path.to_owned(),
                reason: "with -mesh-pin, no authority is asked: give one of the two".to_owned(),
            });
        }
    };
    if options.mesh_with.is_empty() {
        return Ok(None);
    }
    let fault =
        |reason| ConfigError::Flag { flag: "mesh-with", value: options.mesh_with.clone(), reason };
    if *mesh_key == MeshKeySource::None {
        return Err(fault(NO_MESH_KEY.to_owned()));
    }
    let peers = options.mesh_with.split(',').map(str::parse).collect::<Result<_, MeshPeerError>>();
    Ok(Some(MeshConfig { peers: peers.map_err(|error| fault(error.to_string()))?, trust }))
}

fn tcp_settings(options: &Options) -> Result<TcpSettings, ConfigError> {
    let accept_limit = options.accept_connection_limit.is_finite().then_some(AcceptLimit {
        per_second: options.accept_connection_limit,
        burst: options.accept_connection_burst,
    });
    Ok(TcpSettings {
        accept_limit,
        connections: options.connection_limit,
        arrivals: options.arrival_limit,
        per_source: options.source_limit,
        keepalive_idle: keepalive_idle(options.tcp_keepalive_time)?,
        user_timeout: timeout("tcp-user-timeout", options.tcp_user_timeout, MAX_USER_TIMEOUT)?,
        write_timeout: timeout("tcp-write-timeout", options.tcp_write_timeout, Duration::MAX)?,
    })
}

/// Negative is off, zero is Go's default, and fractions of a second count as whole ones.
fn keepalive_idle(setting: GoDuration) -> Result<Option<Duration>, ConfigError> {
    let Some(idle) = setting.to_duration() else { return Ok(None) };
    if setting.is_zero() {
        return Ok(Some(ZERO_KEEPALIVE));
    }
    let seconds = idle.as_secs() + u64::from(idle.subsec_nanos() > 0);
    if seconds > MAX_KEEPALIVE_SECONDS {
        return Err(ConfigError::Flag {
            flag: "tcp-keepalive-time",
            value: setting.to_string(),
            reason: format!("at most {MAX_KEEPALIVE_SECONDS} seconds (about 9 hours) are possible"),
        });
    }
    Ok(Some(Duration::from_secs(seconds)))
}

/// A timeout that zero switches off.
fn timeout(
    flag: &'static str,
    setting: GoDuration,
    longest: Duration,
) -> Result<Option<Duration>, ConfigError> {
    let fault = |reason: &str| ConfigError::Flag {
        flag,
        value: setting.to_string(),
        reason: reason.to_owned(),
    };
    let timeout = setting.to_duration().ok_or_else(|| fault("must not be negative"))?;
    if timeout > longest {
        return Err(fault("is too long"));
    }
    Ok((!timeout.is_zero()).then_some(timeout))
}

fn queue_depth(environment: &Environment<'_>) -> Result<usize, ConfigError> {
    let Some(value) = environment.text(QUEUE_DEPTH_VARIABLE) else {
        return Ok(DEFAULT_QUEUE_DEPTH);
    };
    match value.parse() {
        Ok(depth) if (1..=MAX_QUEUE_DEPTH).contains(&depth) => Ok(depth),
        Ok(_) | Err(_) => Err(ConfigError::Variable {
            name: QUEUE_DEPTH_VARIABLE,
            value,
            reason: format!("must be a number from 1 to {MAX_QUEUE_DEPTH}"),
        }),
    }
}

fn verbose_clients(environment: &Environment<'_>) -> Result<VerboseClients, ConfigError> {
    let all = environment.switch("DERP_DEBUG_LOGS")?;
    let probers = environment.switch("DERP_PROBER_DEBUG_LOGS")?;
    Ok(match (all, probers) {
        (true, _) => VerboseClients::All,
        (false, true) => VerboseClients::Probers,
        (false, false) => VerboseClients::None,
    })
}

fn verbose_drops(environment: &Environment<'_>) -> Result<Vec<NodePublic>, ConfigError> {
    const VARIABLE: &str = "TS_DEBUG_VERBOSE_DROPS";
    let Some(value) = environment.text(VARIABLE) else { return Ok(Vec::new()) };
    let parse = |text: &str| decode_hex(text.trim()).map(NodePublic::from_bytes);
    value.split(',').map(parse).collect::<Result<_, _>>().map_err(|error| ConfigError::Variable {
        name: VARIABLE,
        value: value.clone(),
        reason: error.to_string(),
    })
}

fn log_filter(
    option: Option<String>,
    environment: &Environment<'_>,
) -> Result<String, ConfigError> {
    let from_environment = || environment.text("RUST_LOG");
    let (filter, is_option) = match option {
        Some(filter) => (filter, true),
        None => (from_environment().unwrap_or_else(|| "info".to_owned()), false),
    };
    match EnvFilter::try_new(&filter) {
        Ok(_) => Ok(filter),
        Err(error) if is_option => {
            Err(ConfigError::Flag { flag: "log", value: filter, reason: error.to_string() })
        }
        Err(error) => Err(ConfigError::Variable {
            name: "RUST_LOG",
            value: filter,
            reason: error.to_string(),
        }),
    }
}
