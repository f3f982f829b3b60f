//! What is drawn over time, and what of it is counted where.

use std::time::Duration;

use derp_common::{Reason, Verdict};

use crate::{
    metrics::{DropReason, PacketKind, Totals, Usage},
    relay::Headcount,
    udp,
};

/// One line of a chart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Series {
    /// Its name in the document.
    pub name: &'static str,
    /// What one of it is.
    pub unit: &'static str,
    /// Whether it is counted, and shown by the second.
    pub is_rate: bool,
}

/// Declares every series once: the counters, with the unit of their rate and what a count is of that unit, and the
/// values of the moment.
macro_rules! series {
    (
        rates { $($(#[$rate_doc:meta])* $rate:ident: $rate_unit:literal, $scale:expr;)* }
        levels { $($(#[$level_doc:meta])* $level:ident: $level_unit:literal;)* }
    ) => {
        /// Every counter and every value of the moment that is drawn, at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct Reading {
            /// The moment, since the process started.
            pub at: Duration,
            $($(#[$rate_doc])* pub $rate: u64,)*
            $($(#[$level_doc])* pub $level: u64,)*
        }

        /// Every series, in the order in which a sample holds them.
        pub const SERIES: [Series; Reading::WIDTH] = [
            $(Series { name: stringify!($rate), unit: $rate_unit, is_rate: true },)*
            $(Series { name: stringify!($level), unit: $level_unit, is_rate: false },)*
        ];

        impl Reading {
            /// How many series there are.
            pub const WIDTH: usize = [$(stringify!($rate),)* $(stringify!($level),)*].len();

            /// The rates between an earlier reading and this one, then the values of this one.
            pub(super) fn since(&self, before: &Self) -> [f32; Self::WIDTH] {
                let seconds = self.at.saturating_sub(before.at).as_secs_f64();
                let rate = |now: u64, before: u64, scale: f64| {
                    // A counter of the kernel's begins anew when its program is replaced.
                    let per_second = now.saturating_sub(before) as f64 * scale / seconds;
                    if per_second.is_finite() { ((per_second * 10.0).round() / 10.0) as f32 } else { 0.0 }
                };
                [
                    $(rate(self.$rate, before.$rate, $scale),)*
                    $(self.$level as f32,)*
                ]
            }

            /// What has been counted since the process started, and the values of the moment, by name.
            pub fn values(&self) -> [(&'static str, u64); Self::WIDTH] {
                [$((stringify!($rate), self.$rate),)* $((stringify!($level), self.$level),)*]
            }
        }
    };
}

series! {
    rates {
        /// Packet bytes from clients.
        bytes_received: "B/s", 1.0;
        /// Packet bytes to clients.
        bytes_sent: "B/s", 1.0;
        /// Packets from clients.
        packets_received: "/s", 1.0;
        /// Packets to clients.
        packets_sent: "/s", 1.0;
        /// Packets from mesh peers.
        packets_forwarded_in: "/s", 1.0;
        /// Packets to mesh peers.
        packets_forwarded_out: "/s", 1.0;
        /// Packets dropped because nobody has the destination key.
        dropped_unknown_dest: "/s", 1.0;
        /// Packets of mesh peers dropped for the same reason.
        dropped_unknown_dest_on_fwd: "/s", 1.0;
        /// Packets dropped because the destination had gone.
        dropped_gone_disconnected: "/s", 1.0;
        /// Packets that made room in a full queue.
        dropped_queue_head: "/s", 1.0;
        /// Packets that found no room.
        dropped_queue_tail: "/s", 1.0;
        /// Packets whose write failed.
        dropped_write_error: "/s", 1.0;
        /// Packets to a key none of whose connections is active.
        dropped_dup_client: "/s", 1.0;
        /// UDP packets that the XDP program dropped.
        dropped_by_xdp: "/s", 1.0;
        /// TCP connections accepted on the TLS listener.
        tls_accepted: "/s", 1.0;
        /// TCP connections closed because of the accept limit.
        tls_rejected: "/s", 1.0;
        /// TLS handshakes that failed.
        tls_handshake_failures: "/s", 1.0;
        /// DERP connections begun, before login.
        derp_accepts: "/s", 1.0;
        /// STUN requests answered in the kernel.
        stun_kernel: "/s", 1.0;
        /// STUN requests answered in userspace.
        stun_userspace: "/s", 1.0;
        /// Packets of UDP flows forwarded in the kernel.
        flow_packets_kernel: "/s", 1.0;
        /// Packets of UDP flows forwarded in userspace.
        flow_packets_userspace: "/s", 1.0;
        /// Bytes of the frames of the first of these.
        flow_bytes_kernel: "B/s", 1.0;
        /// Bytes of the payloads of the second.
        flow_bytes_userspace: "B/s", 1.0;
        /// Processor time of the process in nanoseconds; as a rate, percent of one processor.
        cpu: "%", 1e-7;
    }
    levels {
        /// Registered DERP connections.
        connections: "";
        /// Keys connected here.
        clients_local: "";
        /// Keys known through mesh peers.
        clients_remote: "";
        /// Connections that are told who comes and goes.
        watchers: "";
        /// Links to mesh peers that stand.
        mesh_links: "";
        /// Threads that relay.
        active_workers: "";
        /// Resident memory.
        memory: "B";
    }
}

/// What the XDP program has counted for one reason.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KernelPackets {
    /// The reason.
    pub reason: Reason,
    /// Packets.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
}

/// Where a reading comes from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The moment, since the process started.
    pub at: Duration,
    /// Sums over all workers.
    pub totals: &'a Totals,
    /// Who is connected.
    pub headcount: Headcount,
    /// Threads that relay.
    pub active_workers: u64,
    /// Counters of the XDP program, for every address family; empty where it is not attached.
    pub kernel: &'a [KernelPackets],
    /// Requests that the userspace STUN server has answered.
    pub stun_answered: u64,
    /// What has come of UDP in userspace.
    pub udp: &'a udp::Totals,
    /// What the process has used.
    pub usage: Usage,
}

impl From<Inputs<'_>> for Reading {
    fn from(inputs: Inputs<'_>) -> Self {
        let Inputs { at, totals, headcount, active_workers, kernel, stun_answered, udp, usage } =
            inputs;
        let dropped = |reason| -> u64 {
            PacketKind::ALL.into_iter().map(|kind| totals.packets_dropped(reason, kind)).sum()
        };
        let in_kernel = |is_wanted: fn(Reason) -> bool, count: fn(&KernelPackets) -> u64| -> u64 {
            kernel.iter().filter(|it| is_wanted(it.reason)).map(count).sum()
        };
        let forwarded = |reason| matches!(reason, Reason::Forwarded | Reason::Redirected);
        let ways = udp.forwarded();
        Self {
            at,
            bytes_received: totals.bytes_received,
            bytes_sent: totals.bytes_sent,
            packets_received: totals.packets_received,
            packets_sent: totals.packets_sent,
            packets_forwarded_in: totals.packets_forwarded_in,
            packets_forwarded_out: totals.packets_forwarded_out,
            dropped_unknown_dest: dropped(DropReason::UnknownDestination),
            dropped_unknown_dest_on_fwd: dropped(DropReason::UnknownDestinationOnForward),
            dropped_gone_disconnected: dropped(DropReason::GoneDisconnected),
            dropped_queue_head: dropped(DropReason::QueueHead),
            dropped_queue_tail: dropped(DropReason::QueueTail),
            dropped_write_error: dropped(DropReason::WriteError),
            dropped_dup_client: dropped(DropReason::DuplicateClient),
            dropped_by_xdp: in_kernel(|it| it.verdict() == Verdict::Drop, |it| it.packets),
            tls_accepted: totals.tls_accepted,
            tls_rejected: totals.tls_rejected,
            tls_handshake_failures: totals.tls_handshake_failures,
            derp_accepts: totals.accepts,
            stun_kernel: in_kernel(|it| it == Reason::StunAnswered, |it| it.packets),
            stun_userspace: stun_answered,
            flow_packets_kernel: in_kernel(forwarded, |it| it.packets),
            flow_packets_userspace: ways.iter().map(|(_, _, count)| count.packets).sum(),
            flow_bytes_kernel: in_kernel(forwarded, |it| it.bytes),
            flow_bytes_userspace: ways.iter().map(|(_, _, count)| count.bytes).sum(),
            cpu: u64::try_from(usage.processor_time.as_nanos()).unwrap_or(u64::MAX),
            connections: headcount.connections,
            clients_local: headcount.keys,
            clients_remote: headcount.remote_keys,
            watchers: headcount.watchers,
            mesh_links: headcount.links,
            active_workers,
            memory: usage.memory,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::WorkerCounters;

    #[test]
    fn every_source_has_its_place() {
        let worker = WorkerCounters::default();
        worker.packet_received(PacketKind::Disco, 62);
        worker.packets_sent.add(2);
        worker.packet_dropped(DropReason::QueueHead, PacketKind::Disco, 62);
        worker.packet_dropped(DropReason::QueueHead, PacketKind::Other, 1);
        worker.packet_dropped(DropReason::DuplicateClient, PacketKind::Other, 1);
        worker.accepts.add(3);
        let count = |reason, packets, bytes| KernelPackets { reason, packets, bytes };
        let kernel = [
            count(Reason::StunAnswered, 5, 500),
            count(Reason::Forwarded, 7, 700),
            count(Reason::Redirected, 11, 1100),
            count(Reason::StunOverRate, 13, 1300),
            count(Reason::NotUdp, 17, 1700),
            count(Reason::StunAnswered, 19, 1900),
        ];
        let tally = udp::Tally::default();
        tally.forwarded(true, false, 3, 300);
        tally.forwarded(false, false, 1, 50);
        let mut udp = udp::Totals::default();
        tally.add_to(&mut udp);
        let reading = Reading::from(Inputs {
            at: Duration::from_secs(4),
            totals: &Totals::sum([&worker]),
            headcount: Headcount {
                connections: 31,
                keys: 29,
                remote_keys: 23,
                watchers: 2,
                links: 1,
            },
            active_workers: 2,
            kernel: &kernel,
            stun_answered: 41,
            udp: &udp,
            usage: Usage { processor_time: Duration::from_millis(1500), memory: 9000 },
        });
        let expected = Reading {
            at: Duration::from_secs(4),
            bytes_received: 62,
            packets_received: 1,
            packets_sent: 2,
            dropped_queue_head: 2,
            dropped_dup_client: 1,
            dropped_by_xdp: 13,
            derp_accepts: 3,
            stun_kernel: 24,
            stun_userspace: 41,
            flow_packets_kernel: 18,
            flow_packets_userspace: 4,
            flow_bytes_kernel: 1800,
            flow_bytes_userspace: 350,
            cpu: 1_500_000_000,
            connections: 31,
            clients_local: 29,
            clients_remote: 23,
            watchers: 2,
            mesh_links: 1,
            active_workers: 2,
            memory: 9000,
            ..Reading::default()
        };
        assert_eq!(reading, expected);
    }

    #[test]
    fn every_drop_reason_has_a_series() {
        for reason in DropReason::ALL {
            let name = format!("dropped_{}", reason.label());
            assert!(SERIES.iter().any(|series| series.name == name), "{name}");
        }
    }

    #[test]
    fn rates_are_by_the_second_and_levels_as_they_are() {
        let at = Duration::from_secs;
        let before = Reading { at: at(10), bytes_sent: 100, connections: 9, ..Reading::default() };
        let after = Reading {
            at: at(12),
            bytes_sent: 1101,
            cpu: 500_000_000,
            connections: 4,
            ..Reading::default()
        };
        let value = |row: &[f32], name: &str| {
            row[SERIES.iter().position(|series| series.name == name).unwrap()]
        };
        let row = after.since(&before);
        assert_eq!(value(&row, "bytes_sent"), 500.5);
        assert_eq!(value(&row, "cpu"), 25.0);
        assert_eq!(value(&row, "connections"), 4.0);
        // Neither a counter that begins anew nor two readings at once make nonsense.
        assert_eq!(value(&before.since(&after), "bytes_sent"), 0.0);
        assert_eq!(value(&after.since(&after), "bytes_sent"), 0.0);
    }
}
