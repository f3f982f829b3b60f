//! What became of datagrams in userspace, by family and reason.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use derp_common::{Family, Reason};
use nix::errno::Errno;

/// Packets and their bytes of UDP payload.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes of UDP payload.
    pub bytes: u64,
}

impl Count {
    /// Returns the sum of both.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

/// Why a datagram could not be sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(usize)]
pub enum SendFailure {
    /// The send buffer is full, or a queue or memory of the kernel: overload.
    NoBuffers,
    /// Longer than can be sent, even in fragments.
    TooLong,
    /// No route, or the host or network is known not to answer.
    Unreachable,
    /// Nobody listens there.
    Refused,
    /// A firewall or security policy of this host.
    NotPermitted,
    /// Refused as it is: most often the local address is gone.
    Invalid,
    /// Anything else.
    Other,
}

/// Every [`SendFailure`] with its metric label, in index order.
pub const SEND_FAILURES: [(SendFailure, &str); 7] = [
    (SendFailure::NoBuffers, "no_buffers"),
    (SendFailure::TooLong, "too_long"),
    (SendFailure::Unreachable, "unreachable"),
    (SendFailure::Refused, "refused"),
    (SendFailure::NotPermitted, "not_permitted"),
    (SendFailure::Invalid, "invalid"),
    (SendFailure::Other, "other"),
];

impl From<Errno> for SendFailure {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the list of errors is the system's")]
    fn from(error: Errno) -> Self {
        match error {
            Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => Self::NoBuffers,
            Errno::EMSGSIZE => Self::TooLong,
            Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN | Errno::EHOSTDOWN => {
                Self::Unreachable
            }
            Errno::ECONNREFUSED => Self::Refused,
            Errno::EPERM | Errno::EACCES => Self::NotPermitted,
            Errno::EINVAL | Errno::EADDRNOTAVAIL | Errno::ENODEV | Errno::ENXIO => Self::Invalid,
            _ => Self::Other,
        }
    }
}

const REASONS: usize = Family::ALL.len() * Reason::COUNT;
const WAYS: usize = 4;

/// Counts for one thread. Others may read.
#[derive(Debug)]
pub struct Tally {
    packets: [AtomicU64; REASONS],
    bytes: [AtomicU64; REASONS],
    /// By whether the sender uses IPv6, and whether the receiver does.
    forwarded_packets: [AtomicU64; WAYS],
    forwarded_bytes: [AtomicU64; WAYS],
    send_failures: [AtomicU64; SEND_FAILURES.len()],
    read_errors: AtomicU64,
    overruns: AtomicU64,
    notices_lost: AtomicU64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            packets: std::array::from_fn(|_| AtomicU64::new(0)),
            bytes: std::array::from_fn(|_| AtomicU64::new(0)),
            forwarded_packets: Default::default(),
            forwarded_bytes: Default::default(),
            send_failures: Default::default(),
            read_errors: AtomicU64::new(0),
            overruns: AtomicU64::new(0),
            notices_lost: AtomicU64::new(0),
        }
    }
}

impl Tally {
    /// Counts a datagram with `bytes` of payload that was not forwarded, or answered.
    pub fn refused(&self, family: Family, reason: Reason, bytes: usize) {
        let index = reason_index(family, reason);
        add(self.packets.get(index), 1);
        add(self.bytes.get(index), bytes);
    }

    /// Counts datagrams that were sent on.
    pub fn forwarded(&self, from_ipv6: bool, to_ipv6: bool, packets: usize, bytes: usize) {
        let family = if from_ipv6 { Family::Ipv6 } else { Family::Ipv4 };
        let index = reason_index(family, Reason::Forwarded);
        add(self.packets.get(index), packets);
        add(self.bytes.get(index), bytes);
        let way = usize::from(from_ipv6) << 1 | usize::from(to_ipv6);
        add(self.forwarded_packets.get(way), packets);
        add(self.forwarded_bytes.get(way), bytes);
    }

    /// Counts a datagram that could not be sent.
    pub fn send_failed(&self, failure: SendFailure) {
        add(self.send_failures.get(failure as usize), 1);
    }

    /// Counts a failure to receive.
    pub fn read_failed(&self) {
        add(Some(&self.read_errors), 1);
    }

    /// Counts what found the receive buffer of a socket full ([`Socket::take_overruns`](super::Socket::take_overruns)).
    pub fn overran(&self, count: u32) {
        add(Some(&self.overruns), count as usize);
    }

    /// Counts a packet that somebody should have been told of, and was not: they had enough to do.
    pub fn notice_lost(&self) {
        add(Some(&self.notices_lost), 1);
    }

    /// Adds this thread's counts to those of others.
    pub fn add_to(&self, totals: &mut Totals) {
        for (index, cell) in self.packets.iter().enumerate() {
            let bytes = self.bytes.get(index).map_or(0, |cell| cell.load(Relaxed));
            if let Some(count) = totals.reasons.get_mut(index) {
                *count = count.plus(Count { packets: cell.load(Relaxed), bytes });
            }
        }
        let ways = self.forwarded_packets.iter().zip(&self.forwarded_bytes);
        for (count, (packets, bytes)) in totals.ways.iter_mut().zip(ways) {
            *count =
                count.plus(Count { packets: packets.load(Relaxed), bytes: bytes.load(Relaxed) });
        }
        for (total, cell) in totals.send_failures.iter_mut().zip(&self.send_failures) {
            *total += cell.load(Relaxed);
        }
        totals.read_errors += self.read_errors.load(Relaxed);
        totals.overruns += self.overruns.load(Relaxed);
        totals.notices_lost += self.notices_lost.load(Relaxed);
    }
}

/// Counts what a relay sends without having to forward it: challenges, handshakes that were looked at first, requests to STUN
/// servers. Any thread may count.
#[derive(Debug, Default)]
pub struct OwnTally {
    packets: AtomicU64,
    send_failures: [AtomicU64; SEND_FAILURES.len()],
}

impl OwnTally {
    /// Counts a datagram that was sent.
    pub fn sent(&self) {
        self.packets.fetch_add(1, Relaxed);
    }

    /// Counts a datagram that could not be sent.
    pub fn send_failed(&self, failure: SendFailure) {
        if let Some(cell) = self.send_failures.get(failure as usize) {
            cell.fetch_add(1, Relaxed);
        }
    }

    /// Adds these counts to those of others.
    pub fn add_to(&self, totals: &mut Totals) {
        totals.own += self.packets.load(Relaxed);
        for (total, cell) in totals.send_failures.iter_mut().zip(&self.send_failures) {
            *total += cell.load(Relaxed);
        }
    }
}

/// Sums of [`Tally`]s and [`OwnTally`]s at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Totals {
    reasons: [Count; REASONS],
    ways: [Count; WAYS],
    send_failures: [u64; SEND_FAILURES.len()],
    /// Failures to receive.
    pub read_errors: u64,
    /// Buffers, each a datagram or several merged ones, that found the receive buffer of their socket full.
    pub overruns: u64,
    /// Datagrams that were sent by an [`OwnTally`]'s owner.
    pub own: u64,
    /// Packets that the flow control or the relay handshake was not told of, for want of room.
    pub notices_lost: u64,
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            reasons: [Count::default(); REASONS],
            ways: [Count::default(); WAYS],
            send_failures: [0; SEND_FAILURES.len()],
            read_errors: 0,
            overruns: 0,
            own: 0,
            notices_lost: 0,
        }
    }
}

impl Totals {
    /// Adds those of other sockets.
    pub fn add(&mut self, other: &Self) {
        let counts = self.reasons.iter_mut().chain(&mut self.ways);
        for (count, more) in counts.zip(other.reasons.iter().chain(&other.ways)) {
            count.packets += more.packets;
            count.bytes += more.bytes;
        }
        for (count, more) in self.send_failures.iter_mut().zip(other.send_failures) {
            *count += more;
        }
        self.read_errors += other.read_errors;
        self.overruns += other.overruns;
        self.own += other.own;
        self.notices_lost += other.notices_lost;
    }

    /// Returns what came of the datagrams of one family, for one reason.
    #[must_use]
    pub fn count(&self, family: Family, reason: Reason) -> Count {
        self.reasons.get(reason_index(family, reason)).copied().unwrap_or_default()
    }

    /// Returns what was forwarded, by the labels Tailscale's relay uses: `transport_in`,
    /// `transport_out`.
    #[must_use]
    pub fn forwarded(&self) -> [(&'static str, &'static str, Count); WAYS] {
        let [four_four, four_six, six_four, six_six] = self.ways;
        [
            ("udp4", "udp4", four_four),
            ("udp4", "udp6", four_six),
            ("udp6", "udp4", six_four),
            ("udp6", "udp6", six_six),
        ]
    }

    /// Returns how many datagrams could not be sent, by reason.
    #[must_use]
    pub fn send_failures(&self) -> [(&'static str, u64); SEND_FAILURES.len()] {
        let mut failures = SEND_FAILURES.map(|(_, label)| (label, 0));
        for ((_, count), total) in failures.iter_mut().zip(self.send_failures) {
            *count = total;
        }
        failures
    }
}

fn reason_index(family: Family, reason: Reason) -> usize {
    family as usize * Reason::COUNT + reason as usize
}

/// Adds without a locked instruction: only one thread writes.
fn add(cell: Option<&AtomicU64>, amount: usize) {
    if let Some(cell) = cell {
        cell.store(cell.load(Relaxed).wrapping_add(amount as u64), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_added_up_and_every_index_is_its_own() {
        let (first, second) = (Tally::default(), Tally::default());
        for family in Family::ALL {
            for (number, reason) in Reason::ALL.iter().enumerate() {
                (0..number).for_each(|_| first.refused(family, *reason, family as usize));
            }
        }
        second.forwarded(true, false, 3, 300);
        let mut totals = Totals::default();
        first.add_to(&mut totals);
        second.add_to(&mut totals);
        let stun = Reason::StunShed;
        assert_eq!(totals.count(Family::Ipv4, stun).packets, stun as u64);
        assert_eq!(totals.count(Family::Ipv6, stun).bytes, 2 * stun as u64);
        let forwarded = totals.count(Family::Ipv6, Reason::Forwarded);
        assert_eq!(forwarded.packets, Reason::Forwarded as u64 + 3);
        let ways = totals.forwarded().map(|(from, to, count)| (from, to, count.packets));
        assert_eq!(ways[2], ("udp6", "udp4", 3));
        assert_eq!(ways.iter().map(|it| it.2).sum::<u64>(), 3);
    }

    #[test]
    fn send_failures_have_their_own_labels() {
        let tally = Tally::default();
        for (index, (failure, _)) in SEND_FAILURES.iter().enumerate() {
            assert_eq!(*failure as usize, index);
        }
        tally.send_failed(SendFailure::from(Errno::EMSGSIZE));
        let mut totals = Totals::default();
        tally.add_to(&mut totals);
        assert!(totals.send_failures().contains(&("too_long", 1)));
        assert_eq!(totals.send_failures().iter().map(|it| it.1).sum::<u64>(), 1);
    }
}
