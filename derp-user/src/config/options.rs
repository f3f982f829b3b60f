//! The command line as written.

use std::num::NonZeroUsize;

use clap::{Parser, ValueEnum, builder::ValueParser};

use super::{GoDuration, Layers};
use crate::{
    acme::BindingKey,
    dataplane::{Mode, Pin},
};

/// Where certificates come from; the words are derper's.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
#[value(rename_all = "lowercase")]
pub enum CertificateMode {
    /// Files in `-certdir`.
    Manual,
    /// ACME, with Let's Encrypt or the server of `--acme-directory`.
    LetsEncrypt,
    /// ACME, with Google's server.
    Gcp,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
#[value(rename_all = "lowercase")]
pub enum LogFormat {
    /// As is best where the standard error output leads.
    #[default]
    Auto,
    /// Lines for people.
    Human,
    /// One JSON object per line.
    Json,
    /// Messages with fields to systemd's journal.
    Journald,
}

/// A DERP relay server for Tailscale and Headscale networks, with STUN answered in the kernel where it can be.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "derpd",
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true,
    override_usage = USAGE,
    term_width = 100,
    after_help = ENVIRONMENT_HELP
)]
pub struct Options {
    /// Listen address: `:port`, `ip:port` or `[ip6]:port`. On port 443, with `-certmode manual` or
    /// with --acme-directory it speaks TLS; elsewhere plain HTTP
    #[arg(id = "a", long = "a", value_name = "ADDRESS", default_value = ":443", help_heading = LISTENING)]
    pub a: String,
    /// Port of the plain HTTP listener beside TLS, for captive portal checks and redirects; -1 for none
    #[arg(id = "http-port", long, value_name = "PORT", default_value = "80", value_parser = ValueParser::new(parse_http_port), allow_hyphen_values = true, help_heading = LISTENING)]
    pub http_port: i32,
    /// Answer STUN
    #[arg(id = "stun", long, value_name = "BOOL", default_value = "true", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_parser = boolean(), help_heading = LISTENING)]
    pub stun: bool,
    /// UDP port of STUN
    #[arg(id = "stun-port", long, value_name = "PORT", default_value = "3478", value_parser = ValueParser::new(parse_port), help_heading = LISTENING)]
    pub stun_port: u16,
    /// Relay packets; if not, `/derp` answers that the server is disabled
    #[arg(id = "derp", long, value_name = "BOOL", default_value = "true", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_parser = boolean(), help_heading = LISTENING)]
    pub derp: bool,
    /// Home page: empty for a built-in one, `blank`, or an address to redirect to
    #[arg(id = "home", long, value_name = "URL", default_value = "", hide_default_value = true, help_heading = LISTENING)]
    pub home: String,

    /// Names whose addresses everybody may ask for at `/bootstrap-dns`, separated by commas
    #[arg(id = "bootstrap-dns-names", long, value_name = "NAMES", default_value = "", hide_default_value = true, help_heading = LISTENING)]
    pub bootstrap_dns_names: String,
    /// Names whose addresses are told only to those who ask for them, separated by commas; `name/txtname` tells them to
    /// the percentage of client addresses that the TXT records of txtname say
    #[arg(id = "unpublished-bootstrap-dns-names", long, value_name = "NAMES", default_value = "", hide_default_value = true, help_heading = LISTENING)]
    pub unpublished_bootstrap_dns_names: String,

    /// File that keeps the server's private key, made if missing [as root: /var/lib/derper/derper.key]
    #[arg(id = "c", long = "c", value_name = "FILE", default_value = "", hide_default_value = true, help_heading = IDENTITY)]
    pub c: String,
    /// Name the certificate is for; may be an IP address
    #[arg(id = "hostname", long, value_name = "NAME", default_value = "derp.tailscale.com", help_heading = IDENTITY)]
    pub hostname: String,
    /// Where certificates come from: `manual` reads NAME.crt and NAME.key from -certdir, again when they change, and,
    /// for an IP address, makes them if missing; `letsencrypt` and `gcp` order them by ACME from Let's Encrypt or
    /// Google and keep them in -certdir
    #[arg(id = "certmode", long, value_name = "MODE", default_value = "letsencrypt", hide_possible_values = true, help_heading = IDENTITY)]
    pub certmode: CertificateMode,
    /// Directory of certificates [default: tailscale/derper-certs in the user's cache directory]
    #[arg(id = "certdir", long, value_name = "DIRECTORY", help_heading = IDENTITY)]
    pub certdir: Option<String>,
    /// E-mail address that the certificate authority may write to
    #[arg(id = "acme-email", long, value_name = "ADDRESS", default_value = "", hide_default_value = true, help_heading = ACME)]
    pub acme_email: String,
    /// Certificates for the IP addresses of this server too
    #[arg(id = "acme-ip-certs", long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_parser = boolean(), hide_default_value = true, help_heading = ACME)]
    pub acme_ip_certs: bool,
    /// Name of the external account, for `-certmode gcp` or --acme-directory
    #[arg(id = "acme-eab-kid", long, value_name = "NAME", default_value = "", hide_default_value = true, help_heading = ACME)]
    pub acme_eab_kid: String,
    /// Its key, in base64
    #[arg(id = "acme-eab-key", long, value_name = "KEY", help_heading = ACME)]
    pub acme_eab_key: Option<BindingKey>,
    /// Another server than Let's Encrypt's, by the address of its directory
    #[arg(id = "acme-directory", long, value_name = "URL", default_value = "", hide_default_value = true, help_heading = ACME)]
    pub acme_directory: String,
    /// PEM file with the authorities that sign the certificate of that server, instead of the system's
    #[arg(id = "acme-ca-file", long, value_name = "FILE", default_value = "", hide_default_value = true, help_heading = ACME)]
    pub acme_ca_file: String,
    /// Profile of the certificates, one of those that the server has [default: the server's choice; for IP
    /// addresses `shortlived`]
    #[arg(id = "acme-profile", long, value_name = "NAME", default_value = "", hide_default_value = true, help_heading = ACME)]
    pub acme_profile: String,
    /// File with the key that servers of one mesh share, 64 hex digits [default: /home/derp/keys/derp-mesh.key or
    /// $HOME/keys/derp-mesh.key if it exists]
    #[arg(id = "mesh-psk-file", long, value_name = "FILE", help_heading = IDENTITY)]
    pub mesh_psk_file: Option<String>,
    /// Other servers of the region, separated by commas: `host[:port]`, or `host[:port]/dial-host[:port]` to connect
    /// elsewhere than the certificate says. Every address of a name is a server; names are looked up again and again.
    /// Needs a mesh key
    #[arg(id = "mesh-with", long, value_name = "HOSTS", default_value = "", hide_default_value = true, help_heading = MESH)]
    pub mesh_with: String,
    /// PEM file with the authorities that sign the certificates of -mesh-with, instead of the system's
    #[arg(id = "mesh-ca-file", long, value_name = "FILE", default_value = "", hide_default_value = true, help_heading = MESH)]
    pub mesh_ca_file: String,
    /// Certificates that the servers of -mesh-with must show, separated by commas: `sha256-raw:` and 64 hex digits
    #[arg(id = "mesh-pin", long, value_name = "PINS", default_value = "", hide_default_value = true, help_heading = MESH)]
    pub mesh_pin: String,
    /// Development: a new key at each start, plain HTTP on :3340, mesh key from the environment
    #[arg(id = "dev", long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_parser = boolean(), hide_default_value = true, help_heading = IDENTITY)]
    pub dev: bool,

    /// Ask the local tailscaled about every client: those in its tailnet are admitted
    #[arg(id = "verify-clients", long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_parser = boolean(), hide_default_value = true, help_heading = ADMISSION)]
    pub verify_clients: bool,
    /// Socket of tailscaled, for -verify-clients [default: /var/run/tailscale/tailscaled.sock]
    #[arg(id = "socket", long, value_name = "FILE", default_value = "", hide_default_value = true, help_heading = ADMISSION)]
    pub socket: String,
    /// Ask this HTTP server about every client. If -verify-clients is given too, both must agree
    #[arg(id = "verify-client-url", long, value_name = "URL", default_value = "", hide_default_value = true, help_heading = ADMISSION)]
    pub verify_client_url: String,
    /// Admit clients while that server cannot be reached
    #[arg(id = "verify-client-url-fail-open", long, value_name = "BOOL", default_value = "true", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_parser = boolean(), help_heading = ADMISSION)]
    pub verify_client_url_fail_open: bool,
    /// Time for which answers of the two are remembered, refusals for 5s at most; 0 to ask every time
    #[arg(id = "verify-cache", long, value_name = "DURATION", default_value = "0s", allow_hyphen_values = true, help_heading = ADMISSION)]
    pub verify_cache: GoDuration,
    /// Admit the keys in this file, or in the files of this directory: one `nodekey:...` per line, # begins a
    /// comment. Read again when it changes
    #[arg(id = "allow-keys", long, value_name = "PATH", default_value = "", hide_default_value = true, help_heading = ADMISSION)]
    pub allow_keys: String,
    /// Admit the nodes that a control server lists at this address: Tailscale's
    /// `https://api.tailscale.com/api/v2/tailnet/-/devices` or Headscale's `https://HOST/api/v1/node`
    #[arg(id = "allow-from-api", long, value_name = "URL", default_value = "", hide_default_value = true, help_heading = ADMISSION)]
    pub allow_from_api: String,
    /// File with the API key for -allow-from-api
    #[arg(id = "api-token-file", long, value_name = "FILE", default_value = "", hide_default_value = true, help_heading = ADMISSION)]
    pub api_token_file: String,
    /// How often the control server is asked; earlier if a client comes that is not listed
    #[arg(id = "api-interval", long, value_name = "DURATION", default_value = "1m", allow_hyphen_values = true, help_heading = ADMISSION)]
    pub api_interval: GoDuration,
    /// How long its last answer counts while it does not answer; 0 for ever
    #[arg(id = "api-lifetime", long, value_name = "DURATION", default_value = "24h", allow_hyphen_values = true, help_heading = ADMISSION)]
    pub api_lifetime: GoDuration,

    /// Addresses and networks of proxies, separated by commas, whose connections begin with a PROXY protocol header
    /// that says where they come from
    #[arg(id = "proxy-protocol-from", long, value_name = "LIST", default_value = "", hide_default_value = true, help_heading = LISTENING)]
    pub proxy_protocol_from: String,
    /// JSON file with the bytes per second that each client may send; read again on SIGHUP
    #[arg(id = "rate-config", long, value_name = "FILE", default_value = "", hide_default_value = true, help_heading = LIMITS)]
    pub rate_config: String,
    /// New TLS connections per second; more are closed at once
    #[arg(id = "accept-connection-limit", long, value_name = "NUMBER", default_value = "+Inf", value_parser = ValueParser::new(parse_rate), help_heading = LIMITS)]
    pub accept_connection_limit: f64,
    /// New TLS connections at once, over the limit per second
    #[arg(id = "accept-connection-burst", long, value_name = "NUMBER", default_value = "9223372036854775807", hide_default_value = true, value_parser = ValueParser::new(parse_burst), help_heading = LIMITS)]
    pub accept_connection_burst: u64,
    /// Connections at one time, clients and those that have yet to log in [default: as many as may be open files, less
    /// some 1000]
    #[arg(id = "connection-limit", long, value_name = "NUMBER", value_parser = ValueParser::new(parse_limit), help_heading = LIMITS)]
    pub connection_limit: Option<NonZeroUsize>,
    /// Of these, connections that have yet to log in; for more, the oldest of whoever has most is closed [default: half
    /// of -connection-limit, at most 16384]
    #[arg(id = "arrival-limit", long, value_name = "NUMBER", value_parser = ValueParser::new(parse_limit), help_heading = LIMITS)]
    pub arrival_limit: Option<NonZeroUsize>,
    /// Connections of one IPv4 address, or one /64 of IPv6 addresses; more are closed at once [default: no limit]
    #[arg(id = "source-limit", long, value_name = "NUMBER", value_parser = ValueParser::new(parse_limit), help_heading = LIMITS)]
    pub source_limit: Option<NonZeroUsize>,
    /// Idle time before TCP keepalive probes; negative for none
    #[arg(id = "tcp-keepalive-time", long, value_name = "DURATION", default_value = "10m", allow_hyphen_values = true, help_heading = LIMITS)]
    pub tcp_keepalive_time: GoDuration,
    /// Time after which unacknowledged data closes a TCP connection; 0 for the system's default
    #[arg(id = "tcp-user-timeout", long, value_name = "DURATION", default_value = "15s", allow_hyphen_values = true, help_heading = LIMITS)]
    pub tcp_user_timeout: GoDuration,
    /// Time a client's connection may refuse data before it is closed; 0 for no limit
    #[arg(id = "tcp-write-timeout", long, value_name = "DURATION", default_value = "2s", allow_hyphen_values = true, help_heading = LIMITS)]
    pub tcp_write_timeout: GoDuration,
    /// Time for which clients may stay after SIGTERM, while no new connection is accepted; 0 ends at once
    #[arg(id = "drain-timeout", long, value_name = "DURATION", default_value = "0s", allow_hyphen_values = true, help_heading = LIMITS)]
    pub drain_timeout: GoDuration,
    /// Threads that relay even when fewer would do
    #[arg(id = "min-workers", long, value_name = "NUMBER", default_value = "1", value_parser = ValueParser::new(parse_workers), help_heading = LIMITS)]
    pub min_workers: NonZeroUsize,
    /// Most threads that relay; as many of them are used as the load needs [default: one per processor]
    #[arg(id = "workers", long, value_name = "NUMBER", value_parser = ValueParser::new(parse_workers), help_heading = LIMITS)]
    pub workers: Option<NonZeroUsize>,

    /// Interface on which the kernel answers STUN and forwards flows; may be given several times
    #[arg(id = "xdp-interface", long, value_name = "NAME", action = clap::ArgAction::Append, help_heading = KERNEL)]
    pub xdp_interface: Vec<String>,
    /// How: `native` (in the driver) or `generic`, which fail where they are impossible; `auto` takes the best that
    /// works; `off` leaves STUN to userspace
    #[arg(id = "xdp-mode", long, value_name = "MODE", default_value_t = Mode::Auto, help_heading = KERNEL)]
    pub xdp_mode: Mode,
    /// Directory in a BPF file system where the kernel data plane stays when derpd ends, until `derpd detach`; `off`
    /// takes it along [default: /sys/fs/bpf/derpd, if possible]
    #[arg(id = "xdp-pin", long, value_name = "DIRECTORY", help_heading = KERNEL)]
    pub xdp_pin: Option<Pin>,

    /// Configuration file, in TOML: a key for each flag, and what there are no flags for, like UDP flows, the peer relay
    /// and WireGuard. Empty for none [default: /etc/derpd/derpd.toml if it exists, unless -dev is given]
    #[arg(id = "config", long, value_name = "FILE", help_heading = OTHER)]
    pub config: Option<String>,
    /// What to log: error, warn, info, debug, trace, or a filter like `info,derp_user::server=debug` [default: info]
    #[arg(id = "log", long, value_name = "FILTER", help_heading = OTHER)]
    pub log: Option<String>,
    /// How: `human` lines or `json` on the standard error output, `journald` with fields, or `auto`: journald where
    /// systemd has connected that output to it, else human
    #[arg(id = "log-format", long, value_name = "FORMAT", default_value = "auto", hide_possible_values = true, help_heading = OTHER)]
    pub log_format: LogFormat,
    /// Give up, once it serves, every file and system call that is not needed, and core dumps; `-sandbox=false` is for
    /// looking for a fault
    #[arg(id = "sandbox", long, value_name = "BOOL", default_value = "true", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_parser = boolean(), help_heading = OTHER)]
    pub sandbox: bool,
    /// Print the version and exit
    #[arg(id = "version", long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_parser = boolean(), hide_default_value = true, help_heading = OTHER)]
    pub version: bool,

    /// Who gives which of these.
    #[arg(skip)]
    pub layers: Layers,
}

pub(super) const LISTENING: &str = "Listening";
pub(super) const IDENTITY: &str = "Keys and certificates";
pub(super) const ACME: &str = "Certificates by ACME";
pub(super) const MESH: &str = "Mesh";
pub(super) const ADMISSION: &str = "Admission";
pub(super) const LIMITS: &str = "Limits";
pub(super) const KERNEL: &str = "Kernel data plane";
pub(super) const OTHER: &str = "Other";

const USAGE: &str = "derpd [flags]
       derpd check [flags]       checks everything before the relay with these flags starts
       derpd config show [flags] prints what these flags, file and environment come to, and who says it
       derpd detach              removes what stays attached when derpd has ended
       derpd derpmap [flags]     prints the DERP map of the relay with these flags, for Tailscale or Headscale
       derpd netcheck --help     shows how this machine reaches the relays of a DERP map
       derpd probe --help        checks the relays of a DERP map, for monitoring
       derpd bench --help        measures any DERP server by putting load on it
       derpd top [URL]           shows how a relay is doing, in a terminal
       derpd wireguard --help    checks the configuration of WireGuard peers, and shows them at work
       derpd healthcheck [flags] asks the relay with these flags, on this machine, whether it serves
       derpd completions SHELL   prints completions for bash, zsh, fish and others
       derpd man [DIRECTORY]     prints the manual page, or writes those of all tools

Flags are written with one dash or two, as `-flag value` or `-flag=value`; those with [=BOOL] only
with `=`. Names and meanings are derper's, where derper has the flag. What is not given as a flag is as the
configuration file says, then as the environment says, then the default.";

const ENVIRONMENT_HELP: &str = "\
Environment:
  DERP_<FLAG>                 as the flag, if neither that nor its key in the configuration file is
                              given: DERP_STUN_PORT is for -stun-port. So are DERP_DOMAIN
                              (-hostname), DERP_ADDR (-a), DERP_CERT_MODE (-certmode) and DERP_CERT_DIR
                              (-certdir)
  TS_ALLOW_DEBUG_IP           address that may see /debug/
  TS_DEBUG_TRUSTED_CIDRS      networks that may see /debug/, separated by commas
  TS_DEBUG_KEY_PATH           file with a secret; /debug/?debugkey=SECRET opens the pages
  TS_DEBUG_VERBOSE_DROPS      keys, 64 hex digits each, separated by commas: log packets lost on the
                              way to these
  TS_DERP_DISABLE_RTT_STATS   true: do not sample the round trip times of clients
  TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH
                              packets that wait for one client, per kind [default: 32]
  DERP_DEBUG_LOGS             true: log every frame that clients send
  DERP_PROBER_DEBUG_LOGS      true: log every frame that probers send
  TAILSCALE_DERPER_MESH_KEY   mesh key, only with -dev
  RUST_LOG                    as -log, if that is not given
  NO_COLOR                    not empty: no colours on the terminal

Exit status 0: stopped by a signal, or -version or -help was asked for; 1: a file, a port, an
interface, a capability or a variable is at fault; 2: the command line is wrong, or a variable that
stands for a flag.
";

/// Most threads that make sense anywhere.
const MAX_WORKERS: usize = 1024;

fn boolean() -> ValueParser {
    ValueParser::new(parse_boolean)
}

/// Reads a boolean as Go does.
pub(super) fn parse_boolean(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("must be true or false"),
    }
}

fn parse_rate(text: &str) -> Result<f64, &'static str> {
    match text.parse::<f64>() {
        Ok(rate) if rate >= 0.0 => Ok(rate),
        Ok(_) | Err(_) => Err("must be a number of connections per second, or +Inf"),
    }
}

fn parse_port(text: &str) -> Result<u16, &'static str> {
    text.parse().map_err(|_| "must be a port from 0 to 65535")
}

fn parse_http_port(text: &str) -> Result<i32, &'static str> {
    match text {
        "-1" => Ok(-1),
        _ => text
            .parse::<u16>()
            .map(i32::from)
            .map_err(|_| "must be a port from 0 to 65535, or -1 for none"),
    }
}

fn parse_burst(text: &str) -> Result<u64, &'static str> {
    text.parse().ok().filter(|&burst| burst > 0).ok_or("must be a number of connections from 1")
}

fn parse_limit(text: &str) -> Result<NonZeroUsize, &'static str> {
    text.parse().map_err(|_| "must be a number of connections from 1")
}

fn parse_workers(text: &str) -> Result<NonZeroUsize, String> {
    text.parse::<NonZeroUsize>()
        .ok()
        .filter(|workers| workers.get() <= MAX_WORKERS)
        .ok_or_else(|| format!("must be a number from 1 to {MAX_WORKERS}"))
}
