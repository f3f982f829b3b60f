//! What SIGHUP changes of the UDP services.

use std::sync::Arc;

use derp_user::{
    client::ClientError,
    config::{FileSettings, PeerRelaySettings, WireGuardSettings},
    dataplane::DataplaneError,
    udp::SettingsCell,
    udp_relay::{DerpServers, PeerRelayRules, WireGuardHandle},
    wireguard::Directory,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{SharedXdp, planes::switches};

/// Takes what the configuration file says of STUN, the peer relay and the peers of WireGuard into use, while everything runs.
pub(crate) struct UdpReloader {
    /// What is in force, but for what only a start brings into force.
    pub(crate) file: Mutex<FileSettings>,
    pub(crate) settings: Arc<SettingsCell>,
    pub(crate) xdp: Option<SharedXdp>,
    /// Who is told the rules of the peer relay, if it is at work.
    pub(crate) rules: Option<watch::Sender<Arc<PeerRelayRules>>>,
    pub(crate) wireguard: Option<WireGuardHandle>,
}

/// What a configuration file says, ready for use.
pub(crate) struct PreparedUdp {
    file: FileSettings,
    rules: Option<PeerRelayRules>,
}

impl UdpReloader {
    /// Reads the files that it names.
    pub(crate) fn prepare(file: FileSettings) -> anyhow::Result<PreparedUdp> {
        let rules = file.peer_relay.as_ref().map(rules).transpose()?;
        Ok(PreparedUdp { file, rules })
    }

    /// Puts what it says into force, in the kernel first, and returns what has changed, and what will only at the next
    /// start.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be told; nothing has changed then.
    pub(crate) fn apply(
        &self,
        new: PreparedUdp,
    ) -> Result<(Vec<String>, Vec<&'static str>), DataplaneError> {
        let PreparedUdp { file: new, rules } = new;
        let mut changes = Vec::new();
        let mut file = self.file.lock();
        if new.stun != file.stun {
            let mut settings = self.settings.load();
            settings.switches = switches(&new);
            settings.stun_rate = new.stun.rate;
            if let Some(xdp) = &self.xdp {
                xdp.lock().kernel_mut().configure(settings)?;
            }
            self.settings.store(settings);
            changes.push(format!("STUN: {}", new.stun));
        }
        file.stun = new.stun;
        let late = late_changes(&file, &new);
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
}

/// Names what only a start brings into force.
fn late_changes(old: &FileSettings, new: &FileSettings) -> Vec<&'static str> {
    let (was, is) = (old.peer_relay.as_ref(), new.peer_relay.as_ref());
    let port = |it: Option<&PeerRelaySettings>| it.map(|it| it.port);
    let key_file = |it: Option<&PeerRelaySettings>| it.map(|it| it.key_file.clone());
    let wireguard = |file: &FileSettings| {
        let only_started = |it: &WireGuardSettings| (it.port, it.state_file.clone());
        file.wireguard.as_ref().map(only_started)
    };
    let (wireguard_was, wireguard_is) = (wireguard(old), wireguard(new));
    let is_wireguard_kept = wireguard_was.is_some() == wireguard_is.is_some();
    let is_kept = was.is_some() == is.is_some();
    [
        (old.relay != new.relay, "[relay]"),
        (!is_kept, "whether there is a [peer_relay]"),
        (is_kept && port(was) != port(is), "port of [peer_relay]"),
        (is_kept && key_file(was) != key_file(is), "key_file of [peer_relay]"),
        (old.companion != new.companion, "[companion]"),
        (!is_wireguard_kept, "whether there is a [wireguard]"),
        (is_wireguard_kept && wireguard_was != wireguard_is, "port and state_file of [wireguard]"),
        (old.flows != new.flows, "flows"),
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
