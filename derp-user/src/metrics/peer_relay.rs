//! The peer relay in the Prometheus text: what the reference counts, under its names, and what it does not.

use super::families::{Families, Sample};
use crate::{
    flow::Plane,
    peer_relay::{Counts, EndedBy, EndpointState, Input, Refusal, Traffic},
};

/// What a peer relay has done and has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PeerRelayFigures {
    /// What has happened since the start.
    pub counts: Counts,
    /// What was forwarded since the start, in both data planes.
    pub traffic: Traffic,
    /// Endpoints by state, in the order of [`EndpointState::ALL`].
    pub endpoints: [usize; EndpointState::ALL.len()],
    /// Addresses that clients are told.
    pub addresses: usize,
    /// STUN servers whose answer holds.
    pub mappings: usize,
    /// The other DERP servers that the relay's node is a client of, and whether it is now.
    pub derp: Vec<(String, bool)>,
}

impl PeerRelayFigures {
    pub(super) fn add_to(&self, families: &mut Families) {
        self.as_the_reference(families);
        self.decisions(families);
        let planes = Plane::ALL.map(|plane| (plane.label(), self.traffic.by_plane(plane)));
        let plane =
            |label, value: u64| Sample { labels: [("data_plane", label)], value: value as f64 };
        families.counters(
            "derpd_peer_relay_forwarded_bytes_total",
            "Bytes forwarded for peer relay endpoints, Geneve headers included, by data plane.",
            planes.map(|(label, count)| plane(label, count.bytes)),
        );
        families.counters(
            "derpd_peer_relay_forwarded_packets_total",
            "Packets forwarded for peer relay endpoints, by data plane.",
            planes.map(|(label, count)| plane(label, count.packets)),
        );
        families.gauge(
            "derpd_peer_relay_addresses",
            "Addresses that clients of the peer relay are told; without any, none is served.",
            self.addresses as f64,
        );
        families.gauge(
            "derpd_peer_relay_stun_mappings",
            "STUN servers that have lately told the peer relay with which address they see it.",
            self.mappings as f64,
        );
        families.gauges(
            "derpd_peer_relay_derp_connected",
            "1 for each other DERP server that the peer relay's node is connected to, else 0.",
            self.derp.iter().map(|(server, is_connected)| Sample {
                labels: [("server", server.as_str())],
                value: f64::from(u8::from(*is_connected)),
            }),
        );
    }

    /// Names, labels and meaning are the reference's (`net/udprelay/metrics.go`).
    fn as_the_reference(&self, families: &mut Families) {
        let ways = self.traffic.by_transport();
        let way = |from, to, value: u64| Sample {
            labels: [("transport_in", from), ("transport_out", to)],
            value: value as f64,
        };
        families.counters(
            "tailscaled_peer_relay_forwarded_bytes_total",
            "Bytes forwarded for peer relay endpoints, in the kernel and in userspace, by transport.",
            ways.map(|(from, to, count)| way(from, to, count.bytes)),
        );
        families.counters(
            "tailscaled_peer_relay_forwarded_packets_total",
            "Packets forwarded for peer relay endpoints, in the kernel and in userspace, by transport.",
            ways.map(|(from, to, count)| way(from, to, count.packets)),
        );
        families.gauges(
            "tailscaled_peer_relay_endpoints",
            "Peer relay endpoints, by state.",
            EndpointState::ALL.into_iter().zip(self.endpoints).map(|(state, count)| Sample {
                labels: [("state", state.label())],
                value: count as f64,
            }),
        );
    }

    fn decisions(&self, families: &mut Families) {
        let counts = &self.counts;
        let sample = |label, (word, count): (&'static str, u64)| Sample {
            labels: [(label, word)],
            value: count as f64,
        };
        let results = |good: [(&'static str, u64); 2], input| {
            let refused = Refusal::ALL.map(|it| (it.label(), counts.refused_of(input, it)));
            let refused = refused.into_iter().filter(|(_, count)| *count != 0);
            good.into_iter().chain(refused).map(|pair| sample("result", pair))
        };
        families.counters(
            "derpd_peer_relay_requests_total",
            "Requests for peer relay endpoints, by what came of them.",
            results(
                [("allocated", counts.allocated), ("repeated", counts.repeated)],
                Input::Request,
            ),
        );
        families.counters(
            "derpd_peer_relay_handshake_messages_total",
            "Messages of the peer relay's bind handshake, by what came of them.",
            results([("challenged", counts.challenged), ("bound", counts.bound)], Input::Handshake),
        );
        families.counters(
            "derpd_peer_relay_endpoints_ended_total",
            "Peer relay endpoints that have ended, by why.",
            EndedBy::ALL.map(|by| sample("reason", (by.label(), counts.ended_by(by)))),
        );
    }
}
