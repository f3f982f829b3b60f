//! What others are told of packets that are not forwarded.

use std::net::{IpAddr, SocketAddr};

use derp_common::{
    Rate, Reason,
    flow::{Class, Datagram},
};
use tokio::sync::mpsc::Sender;

use crate::{
    stun::client,
    udp::{SourceBuckets, Tally},
};

/// A good capacity for the channels of [`Notices`]: a burst of new flows.
pub const NOTICES: usize = 256;

/// How often one source is reported.
const PER_SOURCE: Rate = Rate::per_second(2, 4);
/// How often strangers are reported, by one thread.
const IN_ALL: Rate = Rate::per_second(1000, NOTICES as u32);

/// How often handshakes of one source are passed on, so that no single one can fill the channel.
const HANDSHAKES_PER_SOURCE: Rate = Rate::per_second(200, 400);

/// A packet of a flow that is not, or not yet, its sender's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stranger {
    /// From where, and to which address and port of this host.
    pub datagram: Datagram,
    /// What it was, with its VNI or index.
    pub class: Class,
    /// Why it was not forwarded.
    pub reason: Reason,
    /// Index of the interface it came in by; 0 when that is not known.
    pub interface: u32,
}

/// A packet of the relay handshake, from a sender that the flow knows and within its allowance. Or one that comes so soon
/// after such a packet that the tables do not tell yet whose it is ([`Reason::Binding`]).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ControlPacket {
    /// From where, and to which address and port of this host.
    pub datagram: Datagram,
    /// Index of the interface it came in by; 0 when that is not known.
    pub interface: u32,
    /// The flow's VNI.
    pub vni: u32,
    /// All of it, from the Geneve header on.
    pub payload: Box<[u8]>,
}

impl ControlPacket {
    /// Tells whether it is from one client to the other, and no part of the handshake.
    #[must_use]
    pub fn is_data(&self) -> bool {
        self.payload.get(1).is_some_and(|flags| flags & 0x80 == 0)
    }
}

/// What a STUN server says to a request that has left from a relay port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StunAnswer {
    /// Who says it.
    pub from: SocketAddr,
    /// The request's transaction id.
    pub transaction: [u8; 12],
    /// Where the server has seen the request come from.
    pub seen: SocketAddr,
}

/// A message of a WireGuard handshake.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HandshakePacket {
    /// From where, and to which address and port of this host.
    pub datagram: Datagram,
    /// All of it.
    pub payload: Box<[u8]>,
}

/// Who is told. Nobody is waited for: what finds a channel full is counted as lost.
#[derive(Clone, Debug, Default)]
pub struct Notices {
    /// Those who admit flows and learn their ends
    /// ([`FlowTable::unknown`](crate::flow::FlowTable::unknown)). At most 2 packets a second of one source, 1000 in all.
    pub strangers: Option<Sender<Stranger>>,
    /// Those who answer the relay handshake.
    pub control: Option<Sender<ControlPacket>>,
    /// Those who ask STUN servers. At most 1000 answers a second.
    pub stun: Option<Sender<StunAnswer>>,
    /// Those who send WireGuard's handshakes on. At most 200 a second of one source.
    pub handshakes: Option<Sender<HandshakePacket>>,
}

/// Reports the packets of one thread.
pub(super) struct Reporter {
    notices: Notices,
    sources: SourceBuckets,
    bucket: u64,
    stun_bucket: u64,
    handshake_sources: SourceBuckets,
}

impl Reporter {
    pub(super) fn new(notices: Notices) -> Self {
        Self {
            notices,
            sources: SourceBuckets::new(),
            bucket: 0,
            stun_bucket: 0,
            handshake_sources: SourceBuckets::new(),
        }
    }

    /// Reports a stranger, if anybody wants to know and the limits allow.
    pub(super) fn stranger(&mut self, stranger: Stranger, tally: &Tally, now: u64) {
        let Some(strangers) = &self.notices.strangers else { return };
        if !concerns_flows(stranger.reason) {
            return;
        }
        if !self.sources.take(stranger.datagram.source.into(), PER_SOURCE, now) {
            return;
        }
        match IN_ALL.take(self.bucket, now) {
            Some(bucket) => self.bucket = bucket,
            None => return tally.notice_lost(),
        }
        if strangers.try_send(stranger).is_err() {
            tally.notice_lost();
        }
    }

    /// Passes an answer of a STUN server on, if anybody has asked any. Tells whether somebody has.
    pub(super) fn stun(
        &mut self,
        from: SocketAddr,
        message: &[u8],
        tally: &Tally,
        now: u64,
    ) -> bool {
        let Some(asking) = &self.notices.stun else { return false };
        let Some((transaction, seen)) = client::answer(message) else { return false };
        match IN_ALL.take(self.stun_bucket, now) {
            Some(bucket) => self.stun_bucket = bucket,
            None => {
                tally.notice_lost();
                return true;
            }
        }
        if asking.try_send(StunAnswer { from, transaction, seen }).is_err() {
            tally.notice_lost();
        }
        true
    }

    /// Passes on a packet that comes right behind a control packet, within the limits of strangers.
    pub(super) fn early(
        &mut self,
        source: IpAddr,
        packet: impl FnOnce() -> ControlPacket,
        tally: &Tally,
        now: u64,
    ) {
        if self.sources.take(source, PER_SOURCE, now) {
            self.control(packet, tally);
        }
    }

    /// Passes a message of a WireGuard handshake on, if its source has not sent too many.
    pub(super) fn handshake(
        &mut self,
        datagram: Datagram,
        payload: &[u8],
        tally: &Tally,
        now: u64,
    ) {
        let Some(handshakes) = &self.notices.handshakes else { return };
        let source = datagram.source.into();
        if !self.handshake_sources.take(source, HANDSHAKES_PER_SOURCE, now) {
            return tally.notice_lost();
        }
        if handshakes.try_send(HandshakePacket { datagram, payload: payload.into() }).is_err() {
            tally.notice_lost();
        }
    }

    /// Passes a control packet on. `packet` is only made when somebody wants it.
    pub(super) fn control(&self, packet: impl FnOnce() -> ControlPacket, tally: &Tally) {
        if let Some(control) = &self.notices.control
            && control.try_send(packet()).is_err()
        {
            tally.notice_lost();
        }
    }
}

/// Tells whether a flow might be meant to have this sender, or be about to.
fn concerns_flows(reason: Reason) -> bool {
    let reasons = [
        Reason::UnknownLeg,
        Reason::UnknownSource,
        Reason::OtherLocal,
        Reason::Learning,
        Reason::Unbound,
    ];
    reasons.contains(&reason)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use derp_common::Address;
    use tokio::sync::mpsc;

    use super::*;
    use crate::udp::Totals;

    const NOW: u64 = 5_000_000_000;

    fn stranger(host: u32, reason: Reason) -> Stranger {
        let source = Address::from(IpAddr::V4(Ipv4Addr::from_bits(host)));
        let datagram =
            Datagram { source, destination: source, source_port: 1, destination_port: 2 };
        Stranger { datagram, class: Class::Any, reason, interface: 1 }
    }

    fn lost(tally: &Tally) -> u64 {
        let mut totals = Totals::default();
        tally.add_to(&mut totals);
        totals.notices_lost
    }

    #[test]
    fn strangers_are_reported_within_limits() {
        let (sender, mut receiver) = mpsc::channel(NOTICES);
        let mut reporter = Reporter::new(Notices { strangers: Some(sender), ..Notices::default() });
        let tally = Tally::default();
        for _ in 0..10 {
            reporter.stranger(stranger(0x0a00_0001, Reason::UnknownSource), &tally, NOW);
        }
        reporter.stranger(stranger(0x0a00_0002, Reason::UnknownVni), &tally, NOW);
        reporter.stranger(stranger(0x0a00_0002, Reason::UnknownLeg), &tally, NOW);
        let hosts: Vec<_> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
        assert_eq!(hosts.len(), 5, "four of one source, one of another, none of no flow");
        assert_eq!(lost(&tally), 0, "a talkative source is no loss");

        for host in 0..2000 {
            reporter.stranger(stranger(0x0b00_0000 + host, Reason::UnknownLeg), &tally, NOW);
        }
        let reported = std::iter::from_fn(|| receiver.try_recv().ok()).count();
        assert!((200..=NOTICES).contains(&reported), "{reported}");
        assert_eq!(lost(&tally), 2000 - reported as u64);
    }

    #[test]
    fn answers_of_stun_servers_reach_whoever_asks_within_limits() {
        let tally = Tally::default();
        let from = "192.0.2.1:3478".parse().unwrap();
        let answer = b"\x01\x01\x00\x0c\x21\x12\xa4\x42transaction!\
            \x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43";
        let nobody = Notices::default();
        assert!(!Reporter::new(nobody).stun(from, answer, &tally, NOW), "nobody has asked");

        let (sender, mut receiver) = mpsc::channel(NOTICES);
        let mut reporter = Reporter::new(Notices { stun: Some(sender), ..Notices::default() });
        assert!(!reporter.stun(from, &answer[..30], &tally, NOW), "no address in it");
        assert!(reporter.stun(from, answer, &tally, NOW));
        let seen = "192.0.2.1:32853".parse().unwrap();
        let transaction = *b"transaction!";
        assert_eq!(receiver.try_recv(), Ok(StunAnswer { from, transaction, seen }));
        (0..2000).for_each(|_| assert!(reporter.stun(from, answer, &tally, NOW)));
        assert!(lost(&tally) >= 2000 - NOTICES as u64);
    }

    #[test]
    fn nobody_is_waited_for() {
        let (sender, _receiver) = mpsc::channel(1);
        let reporter = Reporter::new(Notices { control: Some(sender), ..Notices::default() });
        let tally = Tally::default();
        let datagram = stranger(1, Reason::RelayControl).datagram;
        let packet = || ControlPacket { datagram, interface: 1, vni: 1, payload: Box::default() };
        (0..3).for_each(|_| reporter.control(packet, &tally));
        assert_eq!(lost(&tally), 2);
    }
}
