//! CRC-32 of ISO 3309, as FINGERPRINT uses it, four or eight bytes at a step.

/// `TABLES[k][b]` is the CRC of byte `b` followed by `k` zero bytes.
static TABLES: [[u32; 256]; 24] = tables();

/// The first of them, where compiled.
const TABLES_OF_ONE: [u32; 256] = tables()[0];

/// The reflected polynomial.
const POLYNOMIAL: u32 = 0xedb8_8320;

const fn tables() -> [[u32; 256]; 24] {
    let mut tables = [[0; 256]; 24];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut zeros = 1;
    while zeros < 24 {
        let mut byte = 0;
        while byte < 256 {
            let crc = tables[zeros - 1][byte];
            tables[zeros][byte] = (crc >> 8) ^ tables[0][(crc & 0xff) as usize];
            byte += 1;
        }
        zeros += 1;
    }
    tables
}

/// Returns the CRC of these bytes, to be known when compiled.
pub(super) const fn of(bytes: &[u8]) -> u32 {
    let mut crc = !0;
    let mut at = 0;
    while at < bytes.len() {
        crc = crc >> 8 ^ TABLES_OF_ONE[(crc as u8 ^ bytes[at]) as usize];
        at += 1;
    }
    !crc
}

/// Returns what these twelve bytes, in the place of zeroes, with twelve more to follow, change in a CRC.
///
/// A CRC is linear: each byte's part in it depends on its place only, so that no step waits for another.
#[inline(always)]
pub(super) fn of_transaction([a, b, c, d, e, f, g, h]: [u8; 8], [i, j, k, l]: [u8; 4]) -> u32 {
    let part = |zeros: usize, byte: u8| TABLES[zeros][usize::from(byte)];
    part(23, a)
        ^ part(22, b)
        ^ part(21, c)
        ^ part(20, d)
        ^ part(19, e)
        ^ part(18, f)
        ^ part(17, g)
        ^ part(16, h)
        ^ part(15, i)
        ^ part(14, j)
        ^ part(13, k)
        ^ part(12, l)
}

/// A running CRC-32.
#[derive(Clone, Copy, Debug)]
pub struct Crc(u32);

impl Crc {
    /// The CRC of nothing, before its final complement.
    pub const START: Self = Self(!0);

    /// Adds the next four bytes.
    #[inline(always)]
    #[must_use]
    pub fn word(self, bytes: [u8; 4]) -> Self {
        let [a, b, c, d] = (self.0 ^ u32::from_le_bytes(bytes)).to_le_bytes();
        Self(
            TABLES[3][usize::from(a)]
                ^ TABLES[2][usize::from(b)]
                ^ TABLES[1][usize::from(c)]
                ^ TABLES[0][usize::from(d)],
        )
    }

    /// Adds the next eight bytes, in hardly more time than four.
    #[inline(always)]
    #[must_use]
    pub fn pair(self, bytes: [u8; 8]) -> Self {
        let [first @ .., e, f, g, h] = bytes;
        let [a, b, c, d] = (self.0 ^ u32::from_le_bytes(first)).to_le_bytes();
        Self(
            TABLES[7][usize::from(a)]
                ^ TABLES[6][usize::from(b)]
                ^ TABLES[5][usize::from(c)]
                ^ TABLES[4][usize::from(d)]
                ^ TABLES[3][usize::from(e)]
                ^ TABLES[2][usize::from(f)]
                ^ TABLES[1][usize::from(g)]
                ^ TABLES[0][usize::from(h)],
        )
    }

    /// Returns the finished CRC.
    #[inline(always)]
    #[must_use]
    pub const fn finish(self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_word(bytes: &[u8]) -> u32 {
        let words = bytes.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]);
        words.fold(Crc::START, Crc::word).finish()
    }

    fn by_bit(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc: u32, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (POLYNOMIAL * (crc & 1)))
        })
    }

    #[test]
    fn check_value() {
        // The check value of CRC-32/ISO-HDLC is over "123456789"; this is its prefix of whole words.
        assert_eq!(by_bit(b"123456789"), 0xcbf4_3926);
        assert_eq!(by_word(b"12345678"), 0x9ae0_daaf);
    }

    proptest! {
        #[test]
        fn agrees_with_the_bitwise_definition(
            words in proptest::collection::vec(any::<[u8; 4]>(), 0..64),
        ) {
            let bytes = words.concat();
            prop_assert_eq!(by_word(&bytes), by_bit(&bytes));
            let (pairs, rest) = bytes.as_chunks();
            let crc = pairs.iter().copied().fold(Crc::START, Crc::pair);
            let (words, _) = rest.as_chunks();
            let crc = words.iter().copied().fold(crc, Crc::word);
            prop_assert_eq!(crc.finish(), by_bit(&bytes));
        }
    }
}
