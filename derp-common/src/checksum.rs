//! The Internet checksum: whole (RFC 1071), incremental (RFC 1624), and UDP's rules about zero.

/// A running one's-complement sum of 16-bit units, not yet folded.
///
/// The units are added as they lie in memory, in whichever byte order the machine has: RFC 1071
/// section 2(B) shows that the result then comes out in memory order too. 64 bits hold the sum of
/// more words than any packet has, so there is no carry to handle before [`Sum::fold`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// Adds four bytes as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, word: u32) -> Self {
        Self(self.0.wrapping_add(word as u64))
    }

    /// Adds two bytes as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub const fn half(self, half: u16) -> Self {
        Self(self.0.wrapping_add(half as u64))
    }

    /// Adds a number that stands in the packet in big-endian order.
    #[inline(always)]
    #[must_use]
    pub const fn number(self, number: u16) -> Self {
        self.half(number.to_be())
    }

    /// Adds everything another sum holds.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// Folds the carries into 16 bits, in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        (sum & 0xffff) as u16
    }

    /// Tells whether data summed together with its own checksum is intact.
    #[inline(always)]
    #[must_use]
    pub const fn is_intact(self) -> bool {
        self.fold() == 0xffff
    }

    /// Returns the checksum to store, in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }

    /// Returns the UDP checksum to store: a computed zero goes out as `FFFF`, because zero on the wire
    /// means "none" in IPv4 (RFC 768) and is refused in IPv6 (RFC 8200 section 8.1).
    #[inline(always)]
    #[must_use]
    pub const fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

/// Returns the checksum after the units in `removed` were replaced by those in `added`
/// (RFC 1624 equation 3: `HC' = ~(~HC + ~m + m')`).
#[inline(always)]
#[must_use]
pub const fn update(checksum: u16, removed: Sum, added: Sum) -> u16 {
    Sum::ZERO.half(!checksum).half(!removed.fold()).plus(added).checksum()
}

/// Like [`update`] for a UDP checksum: "no checksum" stays so, and a computed zero becomes `FFFF`.
#[inline(always)]
#[must_use]
pub const fn update_udp(checksum: u16, removed: Sum, added: Sum) -> u16 {
    match checksum {
        0 => 0,
        checksum => Sum::ZERO.half(!checksum).half(!removed.fold()).plus(added).udp_checksum(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(bytes: &[u8]) -> Sum {
        bytes.chunks(2).fold(Sum::ZERO, |sum, pair| {
            sum.half(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
        })
    }

    /// The textbook algorithm, on big-endian numbers with a carry per step.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum: u32 = 0;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&bytes).fold().to_ne_bytes(), [0xdd, 0xf2]);
        assert_eq!(sum(&bytes).checksum().to_ne_bytes(), [0x22, 0x0d]);
    }

    #[test]
    fn rfc_1624_example() {
        // Section 4: checksum DD2F, a unit changes from 5555 to 3285, the result is 0000.
        let updated =
            update(0xdd2f_u16.to_be(), Sum::ZERO.number(0x5555), Sum::ZERO.number(0x3285));
        assert_eq!(updated.to_be(), 0);
        let udp =
            update_udp(0xdd2f_u16.to_be(), Sum::ZERO.number(0x5555), Sum::ZERO.number(0x3285));
        assert_eq!(udp, 0xffff);
    }

    #[test]
    fn forwarding_vector_keeps_the_payload_out_of_it() {
        // 198.51.100.10:41641 -> 203.0.113.1:40000 becomes 203.0.113.1:40000 -> 192.0.2.20:51820:
        // UDP 248d becomes 64f3; IPv4, with the TTL going from 57 to 56, c935 becomes 325f.
        let word = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
        let removed = Sum::ZERO.word(word([198, 51, 100, 10]));
        let added = Sum::ZERO.word(word([192, 0, 2, 20]));
        let udp = update_udp(0x248d_u16.to_be(), removed.number(41641), added.number(51820));
        assert_eq!(udp.to_be(), 0x64f3);
        let ip = update(0xc935_u16.to_be(), removed.number(0x3911), added.number(0x3811));
        assert_eq!(ip.to_be(), 0x325f);
    }

    #[test]
    fn regression_zero_checksum_is_sent_as_ffff() {
        assert_eq!(Sum::ZERO.half(0xffff).udp_checksum(), 0xffff);
        assert_eq!(Sum::ZERO.half(0xffff).checksum(), 0);
    }

    #[test]
    fn no_udp_checksum_stays_no_checksum() {
        assert_eq!(update_udp(0, Sum::ZERO.number(1), Sum::ZERO.number(2)), 0);
    }

    proptest! {
        #[test]
        fn agrees_with_the_textbook(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert_eq!(sum(&bytes).fold().to_be(), naive(&bytes));
        }

        #[test]
        fn words_add_like_halves(words in proptest::collection::vec(any::<u32>(), 0..200)) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let by_word = words.iter().fold(Sum::ZERO, |sum, &word| sum.word(word));
            prop_assert_eq!(by_word.fold(), sum(&bytes).fold());
        }

        #[test]
        fn folds_any_sum(value: u64) {
            let expected = match value % 0xffff { 0 if value != 0 => 0xffff, rest => rest };
            prop_assert_eq!(u64::from(Sum(value).fold()), expected);
        }

        #[test]
        fn incremental_equals_whole(
            mut bytes in proptest::collection::vec(any::<u8>(), 40..=40),
            at in 0usize..20,
            value: u16,
        ) {
            let before = sum(&bytes).checksum();
            let old = u16::from_ne_bytes([bytes[at * 2], bytes[at * 2 + 1]]);
            bytes[at * 2..at * 2 + 2].copy_from_slice(&value.to_ne_bytes());
            // Data of zeros only has no unique representation; RFC 1624 section 3.
            prop_assume!(bytes.iter().any(|&byte| byte != 0));
            let updated = update(before, Sum::ZERO.half(old), Sum::ZERO.half(value));
            let whole = sum(&bytes).checksum();
            prop_assert_eq!(updated, whole);
        }
    }
}
