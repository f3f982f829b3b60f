//! STUN in userspace, and everything that the XDP program does.

use super::{KernelCount, Report};
use crate::metrics::families::{Families, Sample};

impl Report {
    pub(super) fn stun(&self, families: &mut Families) {
        let Some(stun) = &self.stun else { return };
        let sample = |label, (word, count): (&'static str, u64)| Sample {
            labels: [(label, word)],
            value: count as f64,
        };
        families.counters(
            "stun_addrfamily",
            "Valid requests to the userspace STUN server, by address family.",
            stun.families.map(|pair| sample("family", pair)),
        );
        families.counters(
            "stun_requests",
            "Datagrams to the userspace STUN server, by what became of them.",
            stun.requests.map(|pair| sample("disposition", pair)),
        );
    }

    pub(super) fn kernel(&self, families: &mut Families) {
        let series = |value: fn(&KernelCount) -> u64| {
            self.kernel.iter().map(move |count| Sample {
                labels: [
                    ("address_family", count.address_family),
                    ("xdp_outcome", count.outcome),
                    ("prog_end", count.reason),
                ],
                value: value(count) as f64,
            })
        };
        families.counters(
            "xdp_stun_server_bytes_total",
            "Bytes seen by the XDP program, by what became of the packets and why.",
            series(|count| count.bytes),
        );
        families.counters(
            "xdp_stun_server_packets_total",
            "Packets seen by the XDP program, by what became of them and why.",
            series(|count| count.packets),
        );
        families.gauges(
            "derpd_xdp_interface",
            "1 for each interface on which the XDP program runs, with its mode; 0 once it is gone.",
            self.interfaces.iter().map(|interface| Sample {
                labels: [("interface", interface.name.as_str()), ("mode", interface.mode)],
                value: f64::from(u8::from(interface.is_there)),
            }),
        );
    }
}
