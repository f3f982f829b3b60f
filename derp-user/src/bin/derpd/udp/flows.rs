//! Other flows of the configuration, while everything runs.

use std::{collections::BTreeSet, time::Duration};

use derp_user::{
    config::FileSettings,
    flow::Revision,
    forward::{ForwardError, Ports, PreparedPorts},
    stun::StunSockets,
    udp_relay::Keeper,
};
use parking_lot::Mutex;

use super::planes::relay_ports;

/// Most names of flows in a line of the log.
const MOST_NAMES: usize = 8;

/// Takes other flows into use.
pub(crate) struct FlowReloader {
    pub(super) keeper: Keeper,
    pub(super) ports: Ports,
    /// Where STUN is answered, if it is.
    pub(super) stun_port: Option<u16>,
    /// The STUN server's sockets, as long as the forwarder does not have its port.
    pub(super) stun: Mutex<Option<StunSockets>>,
}

/// Other flows, with the sockets that they need bound.
pub(super) struct PreparedFlows {
    /// What will be in force.
    pub(super) file: FileSettings,
    pub(super) ports: PreparedPorts,
}

impl FlowReloader {
    /// Binds what the flows of `new` need beside what is in force. `None` if they are those that there are.
    pub(super) fn prepare(
        &self,
        in_force: &FileSettings,
        new: &FileSettings,
    ) -> anyhow::Result<Option<PreparedFlows>> {
        let file = in_force.with_flows_of(new, self.stun_port)?;
        if file == *in_force {
            return Ok(None);
        }
        let mut wanted: BTreeSet<_> = relay_ports(&file).into_iter().collect();
        // The forwarder goes on with STUN where it once had flows on that port.
        wanted.extend(self.stun_port.filter(|port| self.ports.served().contains(port)));
        let stun = self.stun.lock();
        let lent = stun.as_ref().map(StunSockets::sockets).unwrap_or_default();
        let ports = self.ports.prepare(wanted, lent).map_err(explain)?;
        Ok(Some(PreparedFlows { file, ports }))
    }

    /// Has the forwarder serve the ports of the flows.
    pub(super) fn serve(&self, prepared: PreparedPorts) {
        let has_stun = prepared.bound().any(|address| Some(address.port()) == self.stun_port);
        self.ports.apply(prepared);
        if has_stun && let Some(stun) = self.stun.lock().take() {
            stun.retire();
        }
    }
}

/// Says what a port takes that cannot be bound any more.
fn explain(error: ForwardError) -> anyhow::Error {
    if matches!(error, ForwardError::Denied { .. }) {
        return anyhow::anyhow!(
            "{error}, which derpd has given up since it started: this port takes a restart"
        );
    }
    error.into()
}

/// Says what another list of flows has changed.
pub(super) fn changes(revision: &Revision, idle_timeout: Option<Duration>) -> Vec<String> {
    let mut changes = Vec::new();
    if !revision.is_empty() {
        let mut parts = Vec::new();
        for (names, what) in [
            (&revision.added, "added"),
            (&revision.removed, "removed"),
            (&revision.replaced, "replaced"),
            (&revision.adjusted, "with another name or rate"),
        ] {
            if !names.is_empty() {
                parts.push(format!("{} {what} ({})", names.len(), some_of(names)));
            }
        }
        changes.push(format!("flows: {}, {} as before", parts.join(", "), revision.kept));
    }
    if let Some(idle_timeout) = idle_timeout {
        changes.push(format!("flows: a learnt end is forgotten after {idle_timeout:?}"));
    }
    changes
}

fn some_of(names: &[String]) -> String {
    let shown: Vec<_> = names.iter().take(MOST_NAMES).map(|name| format!("{name:?}")).collect();
    let more = names.len().saturating_sub(MOST_NAMES);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_of_names_is_cut() {
        let names = |count: usize| (0..count).map(|it| it.to_string()).collect::<Vec<_>>();
        let revision =
            Revision { added: names(9), removed: names(1), kept: 3, ..Revision::default() };
        assert_eq!(
            changes(&revision, None),
            [
                "flows: 9 added (\"0\", \"1\", \"2\", \"3\", \"4\", \"5\", \"6\", \"7\" and 1 more), \
              1 removed (\"0\"), 3 as before"
            ]
        );
        let minute = Some(Duration::from_secs(60));
        let idle = "flows: a learnt end is forgotten after 60s";
        assert_eq!(changes(&Revision::default(), minute), [idle]);
    }
}
