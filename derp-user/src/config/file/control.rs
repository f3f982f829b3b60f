//! The keys of `[peer_relay]` with which its node joins a tailnet.

use std::{net::IpAddr, path::PathBuf};

use super::reader::{Fault, Section, Value};
use crate::client::Target;

/// What has no meaning without `control_url`.
const NEEDS_URL: [&str; 4] = ["auth_key_file", "hostname", "ca_file", "home_region"];
/// Longest name of a host (RFC 1035 section 2.3.4).
const LONGEST_LABEL: usize = 63;
/// Regions have numbers that fit in the port of an address.
const LAST_REGION: u32 = 65_535;

/// How the peer relay's node joins a tailnet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ControlSettings {
    /// The control server.
    pub url: Target,
    /// The file with the key by which the node may join.
    pub auth_key_file: PathBuf,
    /// The name that the node asks for; by default this machine's.
    pub hostname: Option<String>,
    /// The file with the authorities that the control server's certificate may be signed by; by default the system's.
    pub ca_file: Option<PathBuf>,
    /// The DERP region in which the node is reached; by default the one that names this server.
    pub home_region: Option<u32>,
}

/// The keys of the section that are read here.
pub(super) const KEYS: [&str; 5] =
    ["control_url", "auth_key_file", "hostname", "ca_file", "home_region"];

/// Reads them; `None` where there is no control server.
pub(super) fn read(section: &Section<'_>) -> Result<Option<ControlSettings>, Fault> {
    let Some(url) = section.value("control_url") else {
        return match NEEDS_URL.iter().find_map(|key| section.value(key)) {
            Some(value) => Err(value.fault("has no meaning without control_url")),
            None => Ok(None),
        };
    };
    let key = section.value("auth_key_file");
    let key = key.ok_or_else(|| section.fault("auth_key_file is missing, by which to join"))?;
    Ok(Some(ControlSettings {
        url: read_url(&url)?,
        auth_key_file: absolute(&key)?,
        hostname: section.value("hostname").map(|value| read_hostname(&value)).transpose()?,
        ca_file: section.value("ca_file").map(|value| absolute(&value)).transpose()?,
        home_region: section
            .value("home_region")
            .map(|value| value.number(1..=LAST_REGION))
            .transpose()?,
    }))
}

/// Reads an absolute path.
pub(super) fn absolute(value: &Value<'_>) -> Result<PathBuf, Fault> {
    let path = PathBuf::from(value.text()?);
    if path.is_absolute() { Ok(path) } else { Err(value.fault("must be an absolute path")) }
}

fn read_url(value: &Value<'_>) -> Result<Target, Fault> {
    let text = value.text()?;
    if !text.contains("://") {
        return Err(value.fault("must begin with https://"));
    }
    let url: Target = text.parse().map_err(|_| {
        value.fault(format!("{text:?} is not an address like https://control.example.com"))
    })?;
    if !url.tls && !is_private(&url.host) {
        return Err(value.fault(
            "plain HTTP is only for a private address: whoever is on the way could pose as the control server",
        ));
    }
    Ok(url)
}

/// Where the reference, too, keeps to plain HTTP.
fn is_private(host: &str) -> bool {
    match host.parse() {
        Ok(IpAddr::V4(ip)) => ip.is_private() || ip.is_loopback(),
        Ok(IpAddr::V6(ip)) => ip.is_unique_local() || ip.is_loopback(),
        Err(_) => host == "localhost",
    }
}

fn read_hostname(value: &Value<'_>) -> Result<String, Fault> {
    let text = value.text()?;
    if is_label(text) {
        Ok(text.to_owned())
    } else {
        Err(value.fault("must be a name of letters, digits and hyphens, at most 63"))
    }
}

fn is_label(text: &str) -> bool {
    let is_inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=LONGEST_LABEL).contains(&text.len())
        && text.bytes().all(is_inside)
        && !text.starts_with('-')
        && !text.ends_with('-')
}
