//! Packets: relayed, answered and dropped.

use super::Report;
use crate::metrics::{
    DropReason, PacketKind, Totals,
    families::{Families, Sample},
};

impl Report {
    pub(super) fn traffic(&self, families: &mut Families) {
        let totals = &self.totals;
        for (name, help, value) in [
            ("derp_accepts", "DERP connections begun, before login.", totals.accepts),
            ("derp_bytes_received", "Packet bytes received from clients.", totals.bytes_received),
            ("derp_bytes_sent", "Packet bytes written to clients.", totals.bytes_sent),
            ("derp_got_ping", "Ping frames received.", totals.got_ping),
            ("derp_home_moves_in", "Clients that made this their home.", totals.home_moves_in),
            ("derp_home_moves_out", "Clients that moved home elsewhere.", totals.home_moves_out),
            (
                "derp_packets_forwarded_in",
                "Packets received from mesh peers.",
                totals.packets_forwarded_in,
            ),
            (
                "derp_packets_forwarded_out",
                "Packets handed to mesh peers.",
                totals.packets_forwarded_out,
            ),
            ("derp_packets_received", "Packets received from clients.", totals.packets_received),
            ("derp_packets_sent", "Packets written to clients.", totals.packets_sent),
            (
                "derp_peer_gone_disconnected_frames",
                "PeerGone frames written because a peer disconnected.",
                totals.peer_gone_disconnected_frames,
            ),
            (
                "derp_peer_gone_not_here_frames",
                "PeerGone frames written because a destination is not here.",
                totals.peer_gone_not_here_frames,
            ),
            (
                "derp_sclient_write_timeouts",
                "Connections closed because a write took too long.",
                totals.write_timeouts,
            ),
            ("derp_sent_pong", "Pong frames written.", totals.sent_pong),
            ("derp_unknown_frames", "Frames of unknown type, ignored.", totals.unknown_frames),
            (
                "derp_websocket_accepts",
                "DERP connections begun over WebSocket, before login.",
                totals.websocket_accepts,
            ),
        ] {
            families.counter(name, help, value);
        }
        families.counters(
            "derp_packets_received_kind",
            "Packets received from clients, by what they look like.",
            PacketKind::ALL.map(|kind| Sample {
                labels: [("kind", kind.label())],
                value: totals.packets_received_kind(kind) as f64,
            }),
        );
        families.histogram(
            "derp_buffered_write_frames",
            "Frames per write to a client.",
            &totals.buffered_write_frames,
        );
        families.gauge(
            "derp_average_queue_duration_ms",
            "Moving average of the milliseconds that packets wait for their client's socket.",
            totals.average_queue_milliseconds,
        );
    }

    pub(super) fn drops(&self, families: &mut Families) {
        let series = |value: fn(&Totals, DropReason, PacketKind) -> u64| {
            DropReason::ALL.into_iter().flat_map(move |reason| {
                PacketKind::ALL.map(|kind| Sample {
                    labels: [("reason", reason.label()), ("kind", kind.label())],
                    value: value(&self.totals, reason, kind) as f64,
                })
            })
        };
        families.counters(
            "derp_bytes_dropped",
            "Packet bytes dropped, by reason and kind of packet.",
            series(Totals::bytes_dropped),
        );
        families.counters(
            "derp_packets_dropped",
            "Packets dropped, by reason and kind of packet.",
            series(Totals::packets_dropped),
        );
    }
}
