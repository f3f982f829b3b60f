//! What the operator reads first: what is served where, how, and what to try.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use derp_user::{
    admit::Admission,
    config::{Config, ListenAddress},
    dataplane::Attachment,
    proto::keys::NodePublic,
};

/// What is known once everything is bound.
pub(crate) struct Facts<'a> {
    pub(crate) config: &'a Config,
    /// With the port that was really bound.
    pub(crate) listen: ListenAddress,
    pub(crate) port80: Option<SocketAddr>,
    pub(crate) stun: &'a [SocketAddr],
    pub(crate) relay: &'a [SocketAddr],
    pub(crate) attachments: &'a [Attachment],
    pub(crate) public_key: NodePublic,
    pub(crate) admission: &'a Admission,
}

/// Logs the facts. The line about serving is worded as derper's, because scripts wait for it.
pub(crate) fn log(facts: &Facts<'_>) {
    let Facts { config, listen, .. } = facts;
    let key = &facts.public_key;
    tracing::info!("derper: server key {} {key}", key.short());
    if let Some(address) = facts.port80 {
        tracing::info!("derper: plain HTTP on port {} for probes and redirects", address.port());
    }
    if let Some(address) = facts.stun.first() {
        let address = listen.with_port(address.port());
        tracing::info!("STUN server listening on {address}, {}", data_plane(facts));
    }
    let mut ports: Vec<_> = facts.relay.iter().map(SocketAddr::port).collect();
    ports.dedup();
    for port in ports {
        tracing::info!("UDP flows are relayed on {}", listen.with_port(port));
    }
    if !config.derp_enabled {
        tracing::info!("derper: relaying is disabled (-derp=false)");
    }
    if config.derp_enabled {
        admission(facts);
    }
    let tls = if config.tls.is_some() { " with TLS" } else { "" };
    tracing::info!("derper: serving on {listen}{tls}");
    tracing::info!("derper: {} workers; try: {}", config.workers, try_line(facts));
}

/// Says who may use the relay: loudly if that is anybody who can reach it.
fn admission(facts: &Facts<'_>) {
    // By way of a proxy everybody can come.
    let reachable = facts.listen.ip.is_none_or(|ip| !ip.to_canonical().is_loopback())
        || !facts.config.proxies.is_empty();
    if facts.admission.is_open() && reachable {
        tracing::warn!(
            "derper: anybody who can reach this relay may use it; to admit your own nodes only, give \
             -allow-keys, -allow-from-api, -verify-clients or -verify-client-url"
        );
    } else {
        tracing::info!("derper: admission: {}", facts.admission);
    }
    if !facts.config.proxies.is_empty() {
        let proxies: Vec<_> = facts.config.proxies.iter().map(ToString::to_string).collect();
        tracing::info!("derper: PROXY protocol from {}", proxies.join(", "));
    }
}

fn data_plane(facts: &Facts<'_>) -> String {
    if facts.attachments.is_empty() {
        return "answered in userspace".to_owned();
    }
    let places: Vec<_> = facts
        .attachments
        .iter()
        .map(|attachment| format!("{} ({})", attachment.interface, attachment.mode))
        .collect();
    format!("answered in the kernel on {}, elsewhere in userspace", places.join(", "))
}

/// A command that shows the server at work, from this machine.
fn try_line(facts: &Facts<'_>) -> String {
    let port = facts.listen.port;
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let ip = facts.listen.ip.filter(|ip| !ip.is_unspecified()).unwrap_or(loopback);
    let address = SocketAddr::new(ip, port);
    let hostname = &facts.config.hostname;
    if facts.config.tls.is_none() {
        format!("curl -i http://{address}/derp/probe")
    } else if hostname.parse::<IpAddr>().is_ok() {
        format!("curl -ik https://{address}/derp/probe")
    } else {
        let resolve = match ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        format!(
            "curl -i --resolve {hostname}:{port}:{resolve} https://{hostname}:{port}/derp/probe"
        )
    }
}
