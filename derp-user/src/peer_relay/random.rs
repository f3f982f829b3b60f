//! Random numbers for the core, from one seed.

use aws_lc_rs::hmac;

/// Bytes of the seed.
pub const SEED_LENGTH: usize = 32;

/// A sequence that nobody can guess who does not know the seed: HMAC-SHA256 of a counter.
pub(super) struct Random {
    key: hmac::Key,
    counter: u64,
}

impl Random {
    pub(super) fn new(seed: &[u8; SEED_LENGTH]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, seed), counter: 0 }
    }

    /// Returns the next bytes, at most 32.
    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        const { assert!(N <= 32) };
        self.counter += 1;
        let block = hmac::sign(&self.key, &self.counter.to_be_bytes());
        let mut bytes = [0; N];
        bytes.iter_mut().zip(block.as_ref()).for_each(|(byte, random)| *byte = *random);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_comes_twice_and_the_seed_decides() {
        let mut random = Random::new(&[1; 32]);
        let first: [[u8; 24]; 3] = std::array::from_fn(|_| random.bytes());
        assert!(first[0] != first[1] && first[1] != first[2] && first[0] != first[2]);
        assert_eq!(Random::new(&[1; 32]).bytes::<24>(), first[0]);
        assert_ne!(Random::new(&[2; 32]).bytes::<24>(), first[0]);
    }
}
