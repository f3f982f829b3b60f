//! The control connection of the peer relay's node.

use super::Report;
use crate::{
    metrics::families::{Families, Sample},
    tailnet::Phase,
};

impl Report {
    pub(super) fn tailnet(&self, families: &mut Families) {
        let Some(status) = &self.tailnet else { return };
        families.gauges(
            "derpd_tailnet_phase",
            "1 for what the control connection of the peer relay's node is doing, else 0.",
            Phase::ALL.map(|phase| Sample {
                labels: [("phase", phase.label())],
                value: if phase == status.phase { 1.0 } else { 0.0 },
            }),
        );
        families.gauge(
            "derpd_tailnet_peers",
            "Nodes of the tailnet that the peer relay's node sees.",
            status.peers as f64,
        );
        families.gauge(
            "derpd_tailnet_granted_peers",
            "Nodes of the tailnet whose policy grants them the peer relay.",
            status.granted_peers as f64,
        );
        if let Some(expiry) = status.key_expiry {
            families.gauge(
                "derpd_tailnet_key_expiry_timestamp_seconds",
                "When the node key expires, in seconds since 1970.",
                expiry as f64,
            );
        }
        for (name, help, value) in [
            ("derpd_tailnet_joins_total", "Times the node has joined its tailnet.", status.joins),
            (
                "derpd_tailnet_messages_total",
                "Messages of the control server, those without contents included.",
                status.messages,
            ),
            (
                "derpd_tailnet_pings_total",
                "Pings of the control server that were answered.",
                status.pings,
            ),
        ] {
            families.counter(name, help, value);
        }
    }
}
