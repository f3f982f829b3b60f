//! A flow as its source asks for it.

use std::net::{IpAddr, SocketAddr};

use derp_common::flow::Side;
use ipnet::IpNet;
use serde::Serialize;

/// Names one admitted flow, for as long as it exists and never again.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct FlowId {
    /// Numbers are given once.
    pub(super) serial: u64,
    /// The flow's place in the tables.
    pub(super) slot: u32,
}

impl FlowId {
    /// Returns the flow's place in the tables; another flow may have it later.
    #[must_use]
    pub const fn slot(self) -> u32 {
        self.slot
    }
}

/// A flow to be admitted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FlowSpec {
    /// What people call it; for the log and the admin page.
    pub name: String,
    /// How its packets are recognised.
    pub kind: Kind,
    /// Its ends, [`Side::A`] first.
    pub ends: [EndSpec; 2],
    /// What each end may send, if limited.
    pub rate: Option<FlowRate>,
    /// How long it lives.
    pub lifetime: Lifetime,
    /// Who asks for it.
    pub source: FlowSource,
}

impl FlowSpec {
    /// Returns one end.
    #[must_use]
    pub const fn end(&self, side: Side) -> &EndSpec {
        let [a, b] = &self.ends;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }
}

/// How a flow's packets are recognised.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// By a VNI in a Geneve header, and their source.
    Geneve {
        /// The VNI, 1 to 2^24 - 1; `None` for one that nobody can guess.
        vni: Option<u32>,
    },
    /// By their source alone, whatever they carry.
    Any,
    /// By their source and the receiver index of WireGuard data. Both ends are [`Remote::Fixed`].
    WireGuard {
        /// The receiver index in packets *from* each end, as it lies in the packet.
        indexes: [u32; 2],
    },
}

/// Who asks for a flow.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowSource {
    /// The configuration file.
    Configuration,
    /// The peer relay, for two of its clients.
    PeerRelay,
    /// The companion, on behalf of the process that owns the relay's socket and forwards what the kernel does not.
    Companion,
    /// The relay for WireGuard, for a session of two of its peers.
    #[serde(rename = "wireguard")]
    WireGuard,
}

impl FlowSource {
    /// Returns one line for people.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::PeerRelay => "peer relay",
            Self::Companion => "companion",
            Self::WireGuard => "WireGuard",
        }
    }
}

/// How long a flow lives.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Lifetime {
    /// Until it is removed. Ends that were learnt are forgotten when they have been silent for the idle timeout.
    Configured,
    /// Until it is removed, or one of its ends has been silent for the idle timeout.
    Session,
}

/// One end of a flow.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct EndSpec {
    /// Where its packets come from and go to.
    pub remote: Remote,
    /// Where they arrive and leave from.
    pub local: Local,
    /// First eight bytes, as they lie in a packet, of the disco public key whose control packets may reach
    /// userspace; 0 for none.
    pub sender: u64,
}

/// The remote address of an end.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Remote {
    /// This one.
    Fixed(SocketAddr),
    /// That of the first packet from one of these networks.
    Learn(Vec<IpNet>),
}

/// The local address of an end.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Local {
    /// The address; `None` for the one that the remote end uses, and until that is known, the one that
    /// routing prefers.
    pub ip: Option<IpAddr>,
    /// The port, not 0.
    pub port: u16,
}

/// What each end of a flow may send.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct FlowRate {
    nanoseconds_per_kibibyte: u32,
    burst_microseconds: u32,
}

/// A rate that cannot be kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the rate must be between {} bit/s and {} bit/s", FlowRate::MIN_BITS, FlowRate::MAX_BITS)]
pub struct FlowRateError;

impl FlowRate {
    /// The lowest rate, in bits per second.
    pub const MIN_BITS: u64 = 2_000;
    /// The highest rate, in bits per second. Above it the cost of a packet would be rounded too much.
    pub const MAX_BITS: u64 = 100_000_000_000;
    /// How much of the rate may come at once, in microseconds.
    const BURST: u64 = 50_000;
    const NANOSECONDS_PER_KIBIBYTE_PER_SECOND: u64 = 1024 * 8 * 1_000_000_000;

    /// Allows `bits` per second of UDP payload from each end.
    ///
    /// # Errors
    ///
    /// When that is below [`FlowRate::MIN_BITS`] or above [`FlowRate::MAX_BITS`].
    pub fn bits_per_second(bits: u64) -> Result<Self, FlowRateError> {
        if !(Self::MIN_BITS..=Self::MAX_BITS).contains(&bits) {
            return Err(FlowRateError);
        }
        let cost = Self::NANOSECONDS_PER_KIBIBYTE_PER_SECOND / bits;
        // The largest datagram must fit the bucket, or it could never pass.
        let largest = cost * 64 / 1000 + 1;
        let narrow = |number: u64| u32::try_from(number).map_err(|_| FlowRateError);
        Ok(Self {
            nanoseconds_per_kibibyte: narrow(cost)?,
            burst_microseconds: narrow(largest.max(Self::BURST))?,
        })
    }

    /// Returns what 1024 bytes use up, in nanoseconds.
    #[must_use]
    pub const fn nanoseconds_per_kibibyte(self) -> u32 {
        self.nanoseconds_per_kibibyte
    }

    /// Returns how much may be used up at once, in microseconds.
    #[must_use]
    pub const fn burst_microseconds(self) -> u32 {
        self.burst_microseconds
    }
}

#[cfg(test)]
mod tests {
    use derp_common::Rate;

    use super::*;

    /// What passes of `datagrams` of `bytes` each, `gap` nanoseconds apart.
    fn passed(rate: FlowRate, datagrams: u64, bytes: u64, gap: u64) -> u64 {
        let bucket_rate = Rate { interval: 1, burst: u64::from(rate.burst_microseconds()) * 1000 };
        let cost = (bytes * u64::from(rate.nanoseconds_per_kibibyte())) >> 10;
        let (mut bucket, mut passed) = (0, 0);
        for datagram in 0..datagrams {
            if let Some(next) = bucket_rate.take_cost(cost, bucket, 1_000_000_000 + datagram * gap)
            {
                bucket = next;
                passed += 1;
            }
        }
        passed
    }

    #[test]
    fn the_largest_datagram_passes_at_any_rate() {
        for bits in [FlowRate::MIN_BITS, 64_000, 1_000_000, 1_000_000_000, FlowRate::MAX_BITS] {
            let rate = FlowRate::bits_per_second(bits).unwrap();
            assert!(passed(rate, 1, 65_507, 1) == 1, "{bits} bit/s");
        }
    }

    #[test]
    fn a_rate_is_kept_to_within_a_few_percent() {
        for bits in [1_000_000, 100_000_000, 1_000_000_000, 10_000_000_000_u64] {
            let rate = FlowRate::bits_per_second(bits).unwrap();
            // Twice the rate for ten seconds: what passes is the rate and one burst.
            let gap = 1200 * 8 * 1_000_000_000 / bits / 2;
            let datagrams = 10_000_000_000 / gap;
            let expected = 10 * bits / 8 / 1200;
            let passed = passed(rate, datagrams, 1200, gap);
            let burst = bits / 8 * u64::from(rate.burst_microseconds()) / 1_000_000 / 1200;
            assert!(passed * 100 >= expected * 99, "{bits}: {passed} of {expected}");
            assert!(passed * 100 <= (expected + burst) * 102, "{bits}: {passed} of {expected}");
        }
    }

    #[test]
    fn rates_out_of_range_are_refused() {
        assert_eq!(FlowRate::bits_per_second(0), Err(FlowRateError));
        assert_eq!(FlowRate::bits_per_second(FlowRate::MIN_BITS - 1), Err(FlowRateError));
        assert_eq!(FlowRate::bits_per_second(FlowRate::MAX_BITS + 1), Err(FlowRateError));
    }
}
