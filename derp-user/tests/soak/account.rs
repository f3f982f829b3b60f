//! The account of every packet: what clients, relay, kernel program and drivers have counted, which must agree to the last one
//! when nothing is on its way.

use std::sync::atomic::Ordering::Relaxed;

use crate::{
    clients::Clients,
    flows::Flows,
    lab::{Lab, RELAY_A, RELAY_B},
    laggard::Laggard,
    metrics::Metrics,
    probe::Probe,
    relay::Relay,
    witness::{Cable, Udp},
};

/// What the kernel program has done with frames, by reason.
const KERNEL: &str = "xdp_stun_server_packets_total";
/// Reasons of frames that hold no datagram: of neighbours and of ICMP.
const NO_DATAGRAMS: [&str; 2] = ["prog_end=\"not_ip\"", "prog_end=\"not_udp\""];

/// Two sums that have to be equal; or the second may be so much more.
struct Line {
    what: &'static str,
    one: u64,
    other: u64,
    slack: u64,
}

impl Line {
    fn is_even(&self) -> bool {
        (self.one..=self.one + self.slack).contains(&self.other)
    }
}

/// All of them at one moment.
pub(crate) struct Account {
    lines: Vec<Line>,
    /// What was lost, by reason.
    details: Vec<(String, u64)>,
}

/// Frames that were there before the program, or before the driver counted.
#[derive(Clone, Copy, Default)]
pub(crate) struct Base {
    program: u64,
    driver: Cable,
}

/// Everybody who has counted something.
pub(crate) struct Parties<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) relay: &'a Relay,
    pub(crate) clients: &'a Clients,
    pub(crate) flows: &'a Flows,
    pub(crate) probe: &'a Probe,
    pub(crate) laggard: &'a Laggard,
}

fn relay_cables(lab: &Lab) -> Cable {
    let [a, b] = [RELAY_A, RELAY_B].map(|interface| Cable::of(&lab.relay, interface));
    Cable {
        seen: a.seen + b.seen,
        dropped: a.dropped + b.dropped,
        forwarded: a.forwarded + b.forwarded,
        lost: a.lost + b.lost,
        refused: a.refused + b.refused,
    }
}

impl Base {
    /// Reads both counts while hardly anything comes.
    pub(crate) fn read(lab: &Lab, relay: &Relay) -> Self {
        loop {
            let driver = relay_cables(lab);
            let program = Metrics::read(&relay.daemon).sum(KERNEL, &[]);
            if relay_cables(lab) == driver {
                return Self { program, driver };
            }
        }
    }
}

impl Account {
    pub(crate) fn draw(parties: &Parties<'_>, base: &Base) -> Self {
        let Parties { lab, relay, clients, flows, probe, laggard } = parties;
        let cables = relay_cables(lab);
        let metrics = Metrics::read(&relay.daemon);
        let mut lines = Vec::new();
        let mut line = |what, one, other| lines.push(Line { what, one, other, slack: 0 });

        // DERP. The peer relay's node is a client in the same process: it is asked, and answers.
        let counts = clients.counts();
        let (few_sent, few_received) = [probe.counts(), laggard.counts()]
            .iter()
            .fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        let sent = counts.sent.load(Relaxed) + few_sent + flows.shared.asked.load(Relaxed);
        let taken =
            counts.received.load(Relaxed) + few_received + flows.shared.answered.load(Relaxed);
        let requests = metrics.sum("derpd_peer_relay_requests_total", &[]);
        let answers =
            metrics.sum_any("derpd_peer_relay_requests_total", &["allocated", "repeated"]);
        let received = metrics.sum("derp_packets_received", &[]);
        let delivered = metrics.sum("derp_packets_sent", &[]);
        let dropped = metrics.sum("derp_packets_dropped", &[]);
        line("DERP: sent by clients = received by the relay", sent + answers, received);
        line("DERP: received = delivered + dropped", received, delivered + dropped);
        line(
            "DERP: received = received, by kind",
            received,
            metrics.sum("derp_packets_received_kind", &[]),
        );
        let few = Probe::CONNECTIONS + Laggard::CONNECTIONS + Flows::CONNECTIONS;
        let logins = counts.logins.load(Relaxed) + few as u64;
        let accepted = metrics.sum("derp_accepts", &[]);
        // The relay may have heard of those that were given up.
        let given_up = counts.given_up.load(Relaxed);

        // UDP, from the clients' sockets to the program.
        let ends = Udp::of(&lab.a) + Udp::of(&lab.b);
        let refused = Cable::of(&lab.a, "a0").refused + Cable::of(&lab.b, "b0").refused;
        let frames = metrics.sum(KERNEL, &[]);
        let datagrams = frames - metrics.sum_any(KERNEL, &NO_DATAGRAMS);
        let outcome = |outcome: &str| metrics.sum(KERNEL, &[&format!("xdp_outcome=\"{outcome}\"")]);
        let (thrown, on) =
            (outcome("drop") + outcome("aborted"), outcome("tx") + outcome("redirect"));
        line(
            "XDP: frames of the drivers = frames of the program",
            cables.seen - base.driver.seen,
            frames - base.program,
        );
        line(
            "UDP: sent by clients = seen by the program + no room",
            ends.sent,
            datagrams + refused,
        );
        line("XDP: seen = forwarded + dropped + passed", frames, on + thrown + outcome("pass"));
        line("XDP: dropped = dropped by the drivers", thrown, cables.dropped);
        line("XDP: forwarded = forwarded by the drivers", on, cables.forwarded);

        // What the program passes, in userspace.
        let passed = datagrams - thrown - on;
        let host = Udp::of(&lab.relay);
        let forwarded = metrics.sum("derpd_udp_forwarded_packets_total", &[]);
        let failed = metrics.sum("derpd_udp_send_failures_total", &[]);
        let turned_away = metrics.sum("derpd_udp_refused_packets_total", &[]);
        let own = metrics.sum("derpd_udp_own_packets_total", &[]);
        line(
            "UDP: passed = forwarded + refused + not sent + for nobody",
            passed,
            forwarded + turned_away + failed + host.unread,
        );
        // The system itself counts a run of datagrams that a socket sends at once as one.
        line(
            "UDP: forwarded by both, and the relay's own = arrived + no room",
            on + forwarded + own,
            ends.arrived + cables.lost + cables.refused,
        );
        // And have sent them something.
        let what = "DERP: received by clients = delivered by the relay";
        lines.push(Line { what, one: taken + requests, other: delivered, slack: 100 * given_up });
        let what = "DERP: logins of clients = accepted";
        lines.push(Line { what, one: logins, other: accepted, slack: given_up });

        let mut details = Vec::new();
        for name in ["derp_packets_dropped", KERNEL, "derpd_udp_refused_packets_total"] {
            details
                .extend(metrics.each(name).into_iter().map(|(it, n)| (format!("{name} {it}"), n)));
        }
        for (what, count) in [
            ("logins that were given up after 10 s", given_up),
            ("DERP packets between those who stay, lost", counts.lost.load(Relaxed)),
            ("UDP packets of conversations, sent", flows.shared.sent.load(Relaxed)),
            ("UDP packets of conversations, received", flows.shared.received.load(Relaxed)),
            ("times that an end of a flow has moved", flows.shared.moves.load(Relaxed)),
            ("frames that found no room in a cable", refused + cables.lost + cables.refused),
            ("datagrams that no client's socket has read", ends.unread),
        ] {
            details.push((what.to_owned(), count));
        }
        Self { lines, details }
    }

    pub(crate) fn is_even(&self) -> bool {
        self.lines.iter().all(Line::is_even)
    }

    pub(crate) fn print(&self) {
        println!("\n| account | | |\n| --- | ---: | ---: |");
        for line in &self.lines {
            let Line { what, one, other, .. } = line;
            let verdict = if line.is_even() { "" } else { " **differ**" };
            println!("| {what} | {one} | {other}{verdict} |");
        }
        println!("\n| count | |\n| --- | ---: |");
        for (what, count) in &self.details {
            println!("| {what} | {count} |");
        }
    }
}
