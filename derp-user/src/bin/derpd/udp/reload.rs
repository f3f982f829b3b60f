//! What SIGHUP changes of the UDP services.

use std::sync::Arc;

use derp_common::Settings;
use derp_user::{
    config::{FileSettings, PeerRelaySettings, WireGuardSettings},
    dataplane::DataplaneError,
    udp::SettingsCell,
    udp_relay::{DerpServers, PeerRelayRules, WireGuardHandle},
    wireguard::Directory,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    SharedXdp,
    flows::{self, FlowReloader, PreparedFlows},
    planes::{nanoseconds, switches},
};

/// Takes what the configuration file says of STUN, flows, the peer relay and the peers of WireGuard into use, while everything
/// runs.
pub(crate) struct UdpReloader {
    /// What is in force, but for what only a start brings into force.
    pub(crate) file: Mutex<FileSettings>,
    pub(crate) settings: Arc<SettingsCell>,
    pub(crate) xdp: Option<SharedXdp>,
    /// Who is told the rules of the peer relay, if it is at work.
    pub(crate) rules: Option<watch::Sender<Arc<PeerRelayRules>>>,
    pub(crate) wireguard: Option<WireGuardHandle>,
    /// What takes other flows into use, if there are tables for them.
    pub(super) flows: Option<FlowReloader>,
}

/// What a configuration file says, ready for use.
pub(crate) struct PreparedUdp {
    file: FileSettings,
    rules: Option<PeerRelayRules>,
    flows: Option<PreparedFlows>,
}

impl UdpReloader {
    /// Reads the files that it names, and binds the ports of its flows.
    pub(crate) fn prepare(&self, file: FileSettings) -> anyhow::Result<PreparedUdp> {
        let rules = file.peer_relay.as_ref().map(rules).transpose()?;
        let flows =
            self.flows.as_ref().map(|it| it.prepare(&self.file.lock(), &file)).transpose()?;
        Ok(PreparedUdp { file, rules, flows: flows.flatten() })
    }

    /// Puts what it says into force, in the kernel first, and returns what has changed, and what will only at the next
    /// start.
    ///
    /// # Errors
    ///
    /// When a flow cannot be admitted or the kernel cannot be told; nothing has changed then.
    pub(crate) fn apply(
        &self,
        new: PreparedUdp,
    ) -> anyhow::Result<(Vec<String>, Vec<&'static str>)> {
        let PreparedUdp { file: new, rules, flows } = new;
        let mut changes = Vec::new();
        let mut file = self.file.lock();
        let mut settings = self.settings.load();
        let is_other_stun = new.stun != file.stun;
        if is_other_stun {
            settings.switches = switches(&new);
            settings.stun_rate = new.stun.rate;
        }
        if let (Some(reloader), Some(flows)) = (&self.flows, flows) {
            settings.ports = flows.file.ports(reloader.stun_port);
            let idle_timeout = flows.file.relay.idle_timeout;
            let specs = &flows.file.flows;
            let revision = reloader
                .keeper
                .revise(specs, nanoseconds(idle_timeout), || self.configure(settings))?;
            let is_other_time = idle_timeout != file.relay.idle_timeout;
            changes.extend(flows::changes(&revision, is_other_time.then_some(idle_timeout)));
            file.relay = flows.file.relay;
            file.flows.clone_from(&flows.file.flows);
            reloader.serve(flows.ports);
        } else if is_other_stun {
            self.configure(settings)?;
        }
        if is_other_stun {
            changes.push(format!("STUN: {}", new.stun));
        }
        file.stun = new.stun;
        let late = late_changes(&file, &new, self.flows.is_some());
        if let (Some(sender), Some(rules)) = (&self.rules, rules) {
            let before = sender.send_replace(Arc::new(rules));
            changes.extend(changed_rules(&before, &sender.borrow()));
        }
        let networks = |file: &FileSettings| file.wireguard.as_ref().map(|it| it.networks.clone());
        if let (Some(wireguard), Some(wanted)) = (&self.wireguard, networks(&new))
            && networks(&file).as_ref() != Some(&wanted)
        {
            let directory = Directory::new(&wanted);
            changes.push(format!("WireGuard: {} peers", directory.len()));
            wireguard.reload(directory);
            if let Some(section) = &mut file.wireguard {
                section.networks = wanted;
            }
        }
        Ok((changes, late))
    }

    /// Tells both data planes other settings, or neither.
    fn configure(&self, settings: Settings) -> Result<(), DataplaneError> {
        if let Some(xdp) = &self.xdp {
            xdp.lock().kernel_mut().configure(settings)?;
        }
        self.settings.store(settings);
        Ok(())
    }
}

/// Names what only a start brings into force.
fn late_changes(old: &FileSettings, new: &FileSettings, has_tables: bool) -> Vec<&'static str> {
    let (was, is) = (old.peer_relay.as_ref(), new.peer_relay.as_ref());
    let port = |it: Option<&PeerRelaySettings>| it.map(|it| it.port);
    let key_file = |it: Option<&PeerRelaySettings>| it.map(|it| it.key_file.clone());
    let control = |it: Option<&PeerRelaySettings>| it.and_then(|it| it.control.clone());
    let wireguard = |file: &FileSettings| {
        let only_started = |it: &WireGuardSettings| (it.port, it.state_file.clone());
        file.wireguard.as_ref().map(only_started)
    };
    let (wireguard_was, wireguard_is) = (wireguard(old), wireguard(new));
    let is_wireguard_kept = wireguard_was.is_some() == wireguard_is.is_some();
    let is_kept = was.is_some() == is.is_some();
    let without_tables = if old.companion.is_some() {
        "flows (the companion goes on until then)"
    } else {
        "flows (there were none, and no [relay], at the start)"
    };
    [
        (has_tables && old.relay.slots != new.relay.slots, "slots of [relay]"),
        (!has_tables && !new.relays() && old.relay != new.relay, "[relay]"),
        (!is_kept, "whether there is a [peer_relay]"),
        (is_kept && port(was) != port(is), "port of [peer_relay]"),
        (is_kept && key_file(was) != key_file(is), "key_file of [peer_relay]"),
        (
            is_kept && control(was) != control(is),
            "control_url of [peer_relay] and the keys that go with it",
        ),
        (old.companion != new.companion, "[companion]"),
        (!is_wireguard_kept, "whether there is a [wireguard]"),
        (is_wireguard_kept && wireguard_was != wireguard_is, "port and state_file of [wireguard]"),
        (old.flows != new.flows, without_tables),
    ]
    .into_iter()
    .filter_map(|(is_changed, name)| is_changed.then_some(name))
    .collect()
}

/// Says which rules of the peer relay are others.
fn changed_rules(old: &PeerRelayRules, new: &PeerRelayRules) -> Vec<String> {
    let mut changes = Vec::new();
    if old.allow != new.allow {
        changes.push(format!("peer relay: {} may ask for endpoints", new.allow));
    }
    for (is_changed, name) in [
        (old.addresses != new.addresses, "addresses"),
        (old.stun != new.stun, "stun"),
        (old.cloud != new.cloud, "cloud"),
        (old.derp != new.derp, "derp"),
        (old.limits != new.limits, "limits"),
    ] {
        if is_changed {
            changes.push(format!("peer relay: other {name} from now on"));
        }
    }
    changes
}

/// Returns what of the settings may change while the peer relay is at work.
pub(crate) fn rules(settings: &PeerRelaySettings) -> anyhow::Result<PeerRelayRules> {
    let derp = DerpServers::new(settings.derp.clone(), settings.derp_trust.clone());
    let derp = derp.map_err(|error| {
        let is_file = error.is_about_authorities();
        let key = if is_file { "derp_ca_file" } else { "derp" };
        anyhow::Error::new(error).context(format!("{key} of [peer_relay]"))
    })?;
    Ok(PeerRelayRules {
        allow: settings.allow.clone(),
        addresses: settings.addresses.clone(),
        stun: settings.stun.clone(),
        cloud: settings.cloud,
        derp,
        limits: settings.limits,
    })
}

#[cfg(test)]
mod tests {
    use derp_user::config;

    use super::*;

    fn settings(text: &str) -> FileSettings {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("writable");
        config::load_file(file.path(), Some(3478)).expect("a good file")
    }

    #[test]
    fn regression_a_change_of_the_control_server_is_named() {
        let peer_relay = |hostname: &str| {
            settings(&format!(
                "[peer_relay]\nport = 40000\nkey_file = \"/k\"\ncontrol_url = \"https://c.example\"\n\
                 auth_key_file = \"/a\"\nhostname = \"{hostname}\"\n"
            ))
        };
        let late = late_changes(&peer_relay("one"), &peer_relay("two"), true);
        assert_eq!(late, ["control_url of [peer_relay] and the keys that go with it"]);
        assert!(late_changes(&peer_relay("one"), &peer_relay("one"), true).is_empty());
    }

    #[test]
    fn flows_and_their_section_are_named_where_there_are_no_tables() {
        let flow = "[[flow]]\nname = \"x\"\nport = 1\na = \"192.0.2.1:1\"\nb = \"192.0.2.2:2\"\n";
        let (nothing, with_flow) = (settings(""), settings(flow));
        let late = late_changes(&nothing, &with_flow, false);
        assert_eq!(late, ["flows (there were none, and no [relay], at the start)"]);
        let section = settings("[relay]\nslots = 32\n");
        assert_eq!(late_changes(&nothing, &section, false), ["[relay]"]);
        assert_eq!(late_changes(&settings("[relay]"), &section, true), ["slots of [relay]"]);
        let companion = settings("[companion]");
        let late = late_changes(&companion, &with_flow, false);
        assert_eq!(late, ["[companion]", "flows (the companion goes on until then)"]);
    }
}
