//! The userspace half of the UDP services in the Prometheus text; the kernel's half is with its program.

use derp_common::{Family, Reason};

use super::families::{Families, Sample};
use crate::{flow::StateView, udp::Totals};

/// What is served over UDP in userspace.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct UdpFigures {
    /// What has come of the datagrams of all sockets.
    pub totals: Totals,
    /// The states of the flows; `None` where none are configured.
    pub flows: Option<Vec<StateView>>,
}

impl UdpFigures {
    pub(super) fn add_to(&self, families: &mut Families) {
        self.refused(families);
        families.counter(
            "derpd_udp_receive_overruns_total",
            "Datagrams, or runs of merged ones, that found a UDP socket's receive buffer full.",
            self.totals.overruns,
        );
        let Some(flows) = &self.flows else { return };
        families.gauges(
            "derpd_udp_flows",
            "UDP flows, by state.",
            StateView::ALL.map(|state| Sample {
                labels: [("state", state.label())],
                value: flows.iter().filter(|flow| **flow == state).count() as f64,
            }),
        );
        let ways = self.totals.forwarded();
        let way = |from, to, value: u64| Sample {
            labels: [("transport_in", from), ("transport_out", to)],
            value: value as f64,
        };
        families.counters(
            "derpd_udp_forwarded_bytes_total",
            "Payload bytes of flows forwarded in userspace, by transport.",
            ways.map(|(from, to, count)| way(from, to, count.bytes)),
        );
        families.counters(
            "derpd_udp_forwarded_packets_total",
            "Packets of flows forwarded in userspace, by transport.",
            ways.map(|(from, to, count)| way(from, to, count.packets)),
        );
        families.counters(
            "derpd_udp_send_failures_total",
            "Datagrams that userspace could not send, by reason.",
            self.totals.send_failures().map(|(reason, count)| Sample {
                labels: [("reason", reason)],
                value: count as f64,
            }),
        );
        families.counter(
            "derpd_udp_own_packets_total",
            "Datagrams of the relay's own, such as challenges and handshakes that it looks at first.",
            self.totals.own,
        );
        families.counter(
            "derpd_udp_notices_lost_total",
            "Packets that nothing was learnt from for want of room.",
            self.totals.notices_lost,
        );
    }

    /// Only reasons that have occurred: most cannot in userspace.
    fn refused(&self, families: &mut Families) {
        let all = Family::ALL
            .into_iter()
            .flat_map(|family| Reason::ALL.iter().map(move |reason| (family, *reason)));
        let occurred = all.filter(|(_, reason)| *reason != Reason::Forwarded);
        let samples = occurred.filter_map(|(family, reason)| {
            let packets = self.totals.count(family, reason).packets;
            let labels = [("address_family", family.label()), ("reason", reason.label())];
            (packets != 0).then_some(Sample { labels, value: packets as f64 })
        });
        families.counters(
            "derpd_udp_refused_packets_total",
            "Datagrams that userspace neither answered nor forwarded, by why.",
            samples,
        );
    }
}
