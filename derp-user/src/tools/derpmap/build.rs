//! From a relay's configuration to its DERP map. Without I/O.

use std::{collections::BTreeMap, net::IpAddr};

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{DerpmapError, Own};
use crate::{
    client::{
        Target, Trust,
        map::{DERP_PORT, DerpMap, Node, Region, STUN_PORT},
    },
    config::Config,
    proto::keys::encode_hex,
    tls::FilePair,
};

/// Port of the captive portal check.
const PORT_80: u16 = 80;

/// The map of the relay with this configuration, and what is to be known of it. `certificate` is what it
/// shows.
pub(super) fn build(
    own: &Own,
    config: &Config,
    certificate: Option<&[u8]>,
) -> Result<(DerpMap, Vec<String>), DerpmapError> {
    let hostname = config.own_hostname().ok_or(DerpmapError::NoHostname)?;
    let mut notes = Vec::new();
    let mut node = Node {
        name: node_name(own.region_id, 0),
        region_id: own.region_id,
        host_name: hostname.to_owned(),
        stun_port: stun_port(config),
        stun_only: !config.derp_enabled,
        ..Node::default()
    };
    (node.ipv4, node.ipv6) = addresses(hostname);
    if let Some(ip) = own.ipv4 {
        node.ipv4 = ip.to_string();
    }
    if let Some(ip) = own.ipv6 {
        node.ipv6 = ip.to_string();
    }
    let port = match &config.tls {
        Some(tls) => {
            node.cert_name = cert_name(config, certificate)?.unwrap_or_default();
            node.can_port80 = tls.http_port == Some(PORT_80);
            own.derp_port.unwrap_or(config.listen.port)
        }
        None => {
            let port = own.derp_port.unwrap_or(DERP_PORT);
            notes.push(format!(
                "this relay speaks plain HTTP, but clients TLS: the map expects a proxy that speaks TLS \
                 on port {port} of {hostname} (--derp-port names another one)"
            ));
            port
        }
    };
    if port == 0 {
        notes.push("-a leaves the port to the system: --derp-port says which one it is".to_owned());
    }
    node.derp_port = shown_port(port);
    let mut nodes = vec![node];
    add_peers(
        own,
        config,
        Target { tls: true, host: hostname.to_owned(), port },
        &mut nodes,
        &mut notes,
    );
    let region = Region {
        id: own.region_id,
        code: own.region_code.clone(),
        name: own.region_name.clone().unwrap_or_else(|| hostname.to_owned()),
        nodes,
        ..Region::default()
    };
    let map = DerpMap {
        regions: BTreeMap::from([(own.region_id, region)]),
        omit_default_regions: own.omit_default_regions,
    };
    Ok((map, notes))
}

/// The mesh peers as further nodes, as far as is known of them here.
fn add_peers(
    own: &Own,
    config: &Config,
    itself: Target,
    nodes: &mut Vec<Node>,
    notes: &mut Vec<String>,
) {
    let Some(mesh) = &config.mesh else { return };
    let others = mesh.peers.iter().map(|peer| &peer.target).filter(|target| **target != itself);
    let pin = match &mesh.trust {
        Trust::PinnedAny(pins) => match &pins[..] {
            [pin] => Some(*pin),
            _ => {
                notes.push(
                    "which of the pins in -mesh-pin belongs to which peer is not known: set CertName of \
                     the peers by hand"
                        .to_owned(),
                );
                None
            }
        },
        Trust::Roots(path) => {
            notes.push(format!(
                "clients do not know the authorities in {} (-mesh-ca-file): they need them, too, or pins",
                path.display()
            ));
            None
        }
        Trust::System | Trust::Pinned(_) | Trust::Anything => None,
    };
    for target in others {
        let (ipv4, ipv6) = addresses(&target.host);
        nodes.push(Node {
            name: node_name(own.region_id, nodes.len()),
            region_id: own.region_id,
            host_name: target.host.clone(),
            cert_name: pin.map(|pin| pin.to_string()).unwrap_or_default(),
            ipv4,
            ipv6,
            derp_port: shown_port(target.port),
            // Relays of a region are set up alike.
            stun_port: stun_port(config),
            ..Node::default()
        });
    }
}

/// The map is silent about what is usual.
fn shown_port(port: u16) -> u16 {
    if port == DERP_PORT { 0 } else { port }
}

fn stun_port(config: &Config) -> i32 {
    match config.stun_port {
        None => -1,
        Some(STUN_PORT) => 0,
        Some(port) => port.into(),
    }
}

/// IPv4 and IPv6 of a host that is an address: it has no other.
fn addresses(host: &str) -> (String, String) {
    match host.parse() {
        Ok(IpAddr::V4(ip)) => (ip.to_string(), "none".to_owned()),
        Ok(IpAddr::V6(ip)) => ("none".to_owned(), ip.to_string()),
        Err(_) => (String::new(), String::new()),
    }
}

/// The pin of a certificate that no authority has signed.
fn cert_name(config: &Config, certificate: Option<&[u8]>) -> Result<Option<String>, DerpmapError> {
    let Some(certificate) = certificate else {
        // Nobody signs the certificate that derpd makes for an address.
        return match (&config.tls, config.hostname.parse::<IpAddr>()) {
            (Some(tls), Ok(_)) => Err(DerpmapError::NoCertificate {
                path: FilePair::new(&tls.certificate_directory, &config.hostname).certificate,
                hostname: config.hostname.to_owned(),
            }),
            (Some(_) | None, _) => Ok(None),
        };
    };
    let is_self_signed = X509Certificate::from_der(certificate)
        .is_ok_and(|(_, certificate)| certificate.issuer() == certificate.subject());
    let hash = || encode_hex(digest(&SHA256, certificate).as_ref());
    Ok(is_self_signed.then(|| format!("sha256-raw:{}", hash())))
}

/// `900a`, `900b` and so on, after `900z` comes `900aa`.
fn node_name(region: u32, index: usize) -> String {
    let (mut letters, mut rest) = (String::new(), index + 1);
    while rest > 0 {
        rest -= 1;
        letters.insert(0, char::from(b'a' + (rest % 26) as u8));
        rest /= 26;
    }
    format!("{region}{letters}")
}
