//! The peer relay's node joins its tailnet.

use std::{fs, net::SocketAddr, path::PathBuf};

use derp_user::{
    client::Trust,
    config::{self, Config, ControlSettings, PeerRelaySettings, RelayKeys},
    dataplane,
    tailnet::{Identity, SaveIdentity, ServerNames, Tailnet, TailnetOptions, read_auth_key},
};

/// The name of a machine that has none.
const NO_NAME: &str = "derpd";
const LONGEST_LABEL: usize = 63;

/// Starts to join, if the settings name a control server. `port` is the one of the main listener.
pub(crate) fn start(
    config: &Config,
    port: u16,
    settings: &PeerRelaySettings,
    keys: &RelayKeys,
) -> anyhow::Result<Option<Tailnet>> {
    let (Some(control), Some(machine)) = (&settings.control, &keys.machine) else {
        return Ok(None);
    };
    let ControlSettings { url, auth_key_file, hostname, ca_file, home_region } = control.clone();
    // Whoever has not joined yet cannot do without.
    if keys.registered_with.as_deref() != Some(url.to_string().as_str()) {
        read_auth_key(&auth_key_file)?;
    }
    if !url.tls {
        tracing::warn!(
            "[peer_relay] control_url {url}: without TLS, whoever is on the way can pose as the control server"
        );
    }
    let identity = Identity {
        machine: machine.clone(),
        node: keys.node.clone(),
        next_node: keys.next_node.clone(),
        registered_with: keys.registered_with.clone(),
    };
    let tailnet = Tailnet::start(TailnetOptions {
        control: url,
        trust: ca_file.map_or(Trust::System, Trust::Roots),
        auth_key_file,
        hostname: hostname.unwrap_or_else(machine_name),
        home_region,
        identity,
        disco: keys.disco.public(),
        server: names(config.hostname.clone(), port, settings.addresses.clone()),
        save: saving(settings.key_file.clone(), keys.clone()),
    })?;
    Ok(Some(tailnet))
}

/// Says what clients know this server by.
fn names(
    host: String,
    port: u16,
    configured: Vec<SocketAddr>,
) -> Box<dyn Fn() -> ServerNames + Send> {
    Box::new(move || {
        let mut addresses = dataplane::local_addresses().unwrap_or_else(|error| {
            tracing::warn!("{error}");
            Vec::new()
        });
        addresses.extend(configured.iter().map(SocketAddr::ip));
        ServerNames { host: host.clone(), port, addresses }
    })
}

/// Keeps the keys in their file.
fn saving(path: PathBuf, keys: RelayKeys) -> SaveIdentity {
    Box::new(move |identity| {
        let Identity { machine, node, next_node, registered_with } = identity.clone();
        let disco = keys.disco.clone();
        let keys = RelayKeys { node, disco, machine: Some(machine), next_node, registered_with };
        config::save_relay_keys(&path, &keys).map_err(|error| error.to_string())
    })
}

/// This machine's name as far as it can be that of a node.
fn machine_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    label(&name)
}

fn label(name: &str) -> String {
    let first = name.trim().split('.').next().unwrap_or_default();
    let fitting = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    let label: String = first.chars().map(fitting).take(LONGEST_LABEL).collect();
    let label = label.trim_matches('-');
    if label.is_empty() { NO_NAME.to_owned() } else { label.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_machines_become_names_of_nodes() {
        for (name, expected) in [
            ("relay-1\n", "relay-1"),
            ("relay.example.com", "relay"),
            ("my_relay\u{e9}x", "my-relay-x"),
            ("_", "derpd"),
            ("", "derpd"),
        ] {
            assert_eq!(label(name), expected, "{name:?}");
        }
        assert_eq!(label(&"a".repeat(80)).len(), 63);
    }
}
