//! Which UDP ports a configuration serves, and whether it can.

use std::collections::BTreeMap;

use derp_common::{
    Settings,
    settings::{Port, Services},
};

use super::{FileSettings, RelaySettings};
use crate::flow::{FlowSpec, Kind};

/// A flow of another configuration file that needs a port which something else has until the next start.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the flow {name:?} cannot be admitted before the next start: {reason}")]
pub struct FlowPortError {
    /// Its name.
    pub name: String,
    /// What is in its way.
    pub reason: String,
}

/// Checks that ports are enough and that packets on each can be told apart. Returns who wants what cannot be, and why.
pub(super) fn check<W>(
    wanted: impl Iterator<Item = (W, (u16, u16))>,
    stun_port: Option<u16>,
) -> Result<(), (W, String)> {
    let mut services: BTreeMap<u16, u16> = BTreeMap::new();
    services.extend(stun_port.map(|port| (port, Services::STUN)));
    for (who, (port, service)) in wanted {
        let had = services.entry(port).or_default();
        *had |= service;
        if *had & Services::ANY != 0 && *had & !Services::ANY != 0 {
            let reason = format!(
                "flows without vni need a port of their own, and port {port} also has {}",
                match *had & !Services::ANY {
                    had if had & Services::STUN != 0 => "STUN",
                    had if had & Services::WIREGUARD != 0 => "[wireguard]",
                    _ => "flows with a vni",
                }
            );
            return Err((who, reason));
        }
        if services.len() > Settings::PORTS {
            let most = Settings::PORTS;
            return Err((who, format!("at most {most} UDP ports can be served, STUN's included")));
        }
    }
    Ok(())
}

/// Returns which service a flow needs on which ports.
pub(super) fn of_flow(spec: &FlowSpec) -> [(u16, u16); 2] {
    let service = match spec.kind {
        Kind::Geneve { .. } => Services::GENEVE,
        Kind::Any => Services::ANY,
        Kind::WireGuard { .. } => Services::WIREGUARD,
    };
    spec.ends.each_ref().map(|end| (end.local.port, service))
}

impl FileSettings {
    /// Tells whether anything is relayed by UDP, on sockets of this daemon.
    #[must_use]
    pub const fn relays(&self) -> bool {
        !self.flows.is_empty() || self.peer_relay.is_some() || self.wireguard.is_some()
    }

    /// Tells whether anything is relayed by UDP, or may be after a reload.
    #[must_use]
    pub const fn may_relay(&self) -> bool {
        self.relay.is_wanted && self.companion.is_none()
    }

    /// Tells whether there are flow tables.
    #[must_use]
    pub const fn has_tables(&self) -> bool {
        self.may_relay() || self.companion.is_some()
    }

    /// Returns the UDP ports that are served, for the kernel and the userspace forwarder; `stun_port` is the one
    /// STUN is answered on, if it is.
    #[must_use]
    pub fn ports(&self, stun_port: Option<u16>) -> [Port; Settings::PORTS] {
        let mut services: BTreeMap<u16, u16> = BTreeMap::new();
        services.extend(stun_port.map(|port| (port, Services::STUN)));
        for (port, service) in self.section_ports().chain(self.flows.iter().flat_map(of_flow)) {
            *services.entry(port).or_default() |= service;
        }
        let mut ports = [Port::default(); Settings::PORTS];
        for (place, (port, services)) in ports.iter_mut().zip(services) {
            *place = Port { number: port.to_be(), services };
        }
        ports
    }

    fn section_ports(&self) -> impl Iterator<Item = (u16, u16)> {
        let peer_relay = self.peer_relay.iter().map(|it| (it.port, Services::GENEVE));
        peer_relay.chain(self.wireguard.iter().map(|it| (it.port, Services::WIREGUARD)))
    }

    /// Returns what is in force when a relay with these settings takes the flows of another file into use while it runs:
    /// the port of `[relay]` is in them already, and its idle timeout comes along.
    ///
    /// # Errors
    ///
    /// The first flow on a port that STUN, the peer relay or the relay for WireGuard has until the next start, or for which
    /// there is no room beside theirs.
    pub fn with_flows_of(&self, new: &Self, stun_port: Option<u16>) -> Result<Self, FlowPortError> {
        let of_sections = self.section_ports().map(|service| (None, service));
        let of_flows = new
            .flows
            .iter()
            .flat_map(|spec| of_flow(spec).into_iter().map(move |service| (Some(spec), service)));
        check(of_sections.chain(of_flows), stun_port).map_err(|(spec, reason)| FlowPortError {
            name: spec.map(|spec| spec.name.clone()).unwrap_or_default(),
            reason,
        })?;
        let RelaySettings { port, idle_timeout, .. } = new.relay;
        Ok(Self {
            relay: RelaySettings { port, idle_timeout, ..self.relay },
            flows: new.flows.clone(),
            ..self.clone()
        })
    }
}
