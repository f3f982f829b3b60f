//! The WireGuard relay in the Prometheus text. There are at most [`MOST_PEERS`](crate::wireguard::MOST_PEERS) peers.

use super::Report;
use crate::{
    metrics::families::{Families, Sample},
    wireguard::{Amount, PeerView, WireGuardView},
};

impl Report {
    pub(super) fn wireguard(&self, families: &mut Families) {
        let Some(view) = &self.wireguard else { return };
        relay(view, families);
        peers(&view.peers, families);
    }
}

fn relay(view: &WireGuardView, families: &mut Families) {
    let messages = &view.messages;
    families.counters(
        "derpd_wireguard_handshakes_total",
        "Messages of WireGuard handshakes sent on, by kind; held are initiations for a peer that is nowhere, copies those \
         beyond the first to a peer that may be in several places.",
        [
            ("initiation", messages.initiations),
            ("held", messages.held),
            ("copy", messages.copies),
            ("response", messages.responses),
            ("cookie_reply", messages.cookie_replies),
        ]
        .map(|(kind, count)| Sample { labels: [("kind", kind)], value: count as f64 }),
    );
    families.counters(
        "derpd_wireguard_handshakes_dropped_total",
        "Messages of WireGuard handshakes dropped, by why.",
        messages.dropped.iter().map(|dropped| Sample {
            labels: [("reason", dropped.reason.as_str())],
            value: dropped.messages as f64,
        }),
    );
    families.counter(
        "derpd_wireguard_roamed_total",
        "WireGuard peers found to be at another address.",
        messages.roamed,
    );
    families.gauge(
        "derpd_wireguard_pending",
        "Initiations that wait for an answer.",
        view.pending as f64,
    );
    families.gauge(
        "derpd_wireguard_sessions",
        "WireGuard sessions whose data is relayed.",
        view.sessions as f64,
    );
}

fn labels(peer: &PeerView) -> [(&'static str, &str); 2] {
    [("network", peer.network.as_str()), ("peer", peer.label.as_str())]
}

fn peers(peers: &[PeerView], families: &mut Families) {
    families.gauges(
        "derpd_wireguard_peer_located",
        "Whether it is known where a WireGuard peer is.",
        peers.iter().map(|peer| Sample {
            labels: labels(peer),
            value: f64::from(u8::from(peer.address.is_some())),
        }),
    );
    families.gauges(
        "derpd_wireguard_peer_sessions",
        "Sessions of a WireGuard peer.",
        peers.iter().map(|peer| Sample { labels: labels(peer), value: peer.sessions as f64 }),
    );
    families.counters(
        "derpd_wireguard_peer_handshakes_total",
        "Handshakes that a WireGuard peer took part in.",
        peers.iter().map(|peer| Sample { labels: labels(peer), value: peer.handshakes as f64 }),
    );
    let both = |value: fn(&Amount) -> u64| {
        peers.iter().flat_map(move |peer| {
            [("from", &peer.sent), ("to", &peer.received)].map(|(direction, amount)| {
                let (network, label) = (peer.network.as_str(), peer.label.as_str());
                Sample {
                    labels: [("network", network), ("peer", label), ("direction", direction)],
                    value: value(amount) as f64,
                }
            })
        })
    };
    families.counters(
        "derpd_wireguard_peer_bytes_total",
        "Payload bytes of data relayed from and to a WireGuard peer.",
        both(|amount| amount.bytes),
    );
    families.counters(
        "derpd_wireguard_peer_packets_total",
        "Packets of data relayed from and to a WireGuard peer.",
        both(|amount| amount.packets),
    );
}
