//! What would be served, as a short table.

use super::report::Service;
use crate::{
    config::{Config, FileSettings},
    dataplane::Mode,
};

/// Lists what a start would serve.
pub(super) fn services(config: &Config, file: &FileSettings) -> Vec<Service> {
    let listen = config.listen;
    let tls = if config.tls.is_some() { "TLS" } else { "plain HTTP" };
    let mut services = Vec::new();
    let mut add = |what, place: String, how: String| services.push(Service { what, place, how });
    let derp = if config.derp_enabled { "DERP" } else { "pages" };
    add(derp, format!("TCP {listen}"), format!("{tls}, as {}", config.hostname));
    if let Some(port) = config.tls.as_ref().and_then(|tls| tls.http_port) {
        let place = listen.with_port(port);
        add("pages", format!("TCP {place}"), "plain HTTP, probes and redirects".to_owned());
    }
    let interfaces = &config.xdp_interfaces;
    let kernel = if interfaces.is_empty() || config.xdp_mode == Mode::Off {
        "userspace".to_owned()
    } else {
        format!("kernel on {} ({}), else userspace", interfaces.join(", "), config.xdp_mode)
    };
    if let Some(port) = config.stun_port {
        let shed = if file.stun.shed { ", nobody is answered (shed)" } else { "" };
        add("STUN", format!("UDP {}", listen.with_port(port)), format!("{kernel}{shed}"));
    }
    let place = |port| format!("UDP {}", listen.with_port(port));
    if let Some(peer_relay) = &file.peer_relay {
        add("peer relay", place(peer_relay.port), kernel.clone());
    }
    if let Some(wireguard) = &file.wireguard {
        let peers: usize = wireguard.networks.iter().map(|network| network.peers.len()).sum();
        add("WireGuard", place(wireguard.port), format!("{peers} peers, {kernel}"));
    }
    if let Some(companion) = &file.companion {
        let socket = companion.socket.display();
        add("companion", format!("of the tailscaled at {socket}"), kernel.clone());
    }
    let mut ports: Vec<u16> = file.flows.iter().map(|flow| flow.ends[0].local.port).collect();
    ports.sort_unstable();
    ports.dedup();
    for port in ports {
        let flows = file.flows.iter().filter(|flow| flow.ends[0].local.port == port).count();
        add("flows", place(port), format!("{flows}, {kernel}"));
    }
    services
}
