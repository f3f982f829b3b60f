//! Which clients a rollout percentage includes.

use std::net::IpAddr;

/// Percent of the clients that are told a name.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Percentage(u8);

impl Percentage {
    pub(super) const ALL: Self = Self(100);

    /// Reads the values of TXT records: the last one that is a number from 0 to 100 counts, and none is 0.
    pub(super) fn of_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let numbers = texts.into_iter().filter_map(|text| text.parse::<i64>().ok());
        let valid = numbers.filter_map(|number| u8::try_from(number).ok());
        Self(valid.filter(|&percent| percent <= 100).last().unwrap_or(0))
    }

    /// Whether the client at this address is included. An address always gets the same answer, and keeps it while the
    /// percentage grows; only for loopback addresses `coin` decides.
    pub(super) fn includes(self, from: IpAddr, coin: impl FnOnce() -> bool) -> bool {
        let from = from.to_canonical();
        match self.0 {
            0 => false,
            100 => true,
            _ if from.is_loopback() => coin(),
            percent => f64::from(percent) / 100.0 > place(from),
        }
    }
}

/// The place of an address in [0, 1): the first number of Go's PCG-DXSM generator with the address as its seed, so that
/// every server of a region, derper or derpd, includes the same clients.
fn place(address: IpAddr) -> f64 {
    let octets = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
    .octets();
    let half = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&octets[at..at + 8]);
        u128::from(u64::from_le_bytes(bytes))
    };
    const MULTIPLIER: u128 = 2549297995355413924 << 64 | 4865540595714422341;
    const INCREMENT: u128 = 6364136223846793005 << 64 | 1442695040888963407;
    const CHEAP_MULTIPLIER: u64 = 0xda94_2042_e4dd_58b5;
    let seed = half(0) << 64 | half(8);
    let state = seed.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT);
    let (mut high, low) = ((state >> 64) as u64, state as u64);
    high ^= high >> 32;
    high = high.wrapping_mul(CHEAP_MULTIPLIER);
    high ^= high >> 48;
    high = high.wrapping_mul(low | 1);
    // The 53 bits that a float holds exactly.
    (high << 11 >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_reference() {
        for (address, expected) in [("1.2.3.4", 0.068658), ("1.2.3.6", 0.858255)] {
            let place = place(address.parse().unwrap());
            assert!((place - expected).abs() < 1e-6, "{address}: {place}");
        }
        let half = Percentage(50);
        let never = || panic!("no coin is tossed for an address of the network");
        for (last, expected) in
            [(4, true), (5, true), (6, false), (7, true), (8, false), (9, true), (10, true)]
        {
            let address: IpAddr = format!("1.2.3.{last}").parse().unwrap();
            assert_eq!(half.includes(address, never), expected, "{address}");
            let mapped: IpAddr = format!("::ffff:1.2.3.{last}").parse().unwrap();
            assert_eq!(half.includes(mapped, never), expected, "{mapped}");
        }
    }

    #[test]
    fn the_ends_include_nobody_and_everybody() {
        let never = || panic!("no coin is tossed");
        for address in ["127.0.0.1", "::1", "1.2.3.4", "2001:db8::1"] {
            let address = address.parse().unwrap();
            assert!(!Percentage(0).includes(address, never));
            assert!(Percentage::ALL.includes(address, never));
        }
        for toss in [true, false] {
            assert_eq!(Percentage(1).includes("127.0.0.1".parse().unwrap(), || toss), toss);
            assert_eq!(Percentage(99).includes("::1".parse().unwrap(), || toss), toss);
        }
    }

    #[test]
    fn the_last_valid_number_counts() {
        for (texts, expected) in [
            (&["50"][..], 50),
            (&["0", "100"], 100),
            (&["10", "20", "101", "-1", "x", ""], 20),
            (&["+7"], 7),
            (&[" 5", "5%", "0x5", "1e1"], 0),
            (&["99999999999999999999"], 0),
            (&[], 0),
        ] {
            assert_eq!(
                Percentage::of_texts(texts.iter().copied()),
                Percentage(expected),
                "{texts:?}"
            );
        }
    }
}
