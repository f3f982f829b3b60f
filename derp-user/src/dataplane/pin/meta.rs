//! What a generation of maps says about itself: the one value of the pinned map `META`.

use derp_common::Settings;

use crate::dataplane::layout::Digest;

/// The name of the map, which no map of the program has.
pub(super) const META: &str = "META";
/// Bytes of its value.
pub(super) const SIZE: usize = 80;

const MAGIC: [u8; 4] = *b"derp";
/// Of this layout of bytes. Another one says nothing that can be relied on.
const FORMAT: u32 = 1;

/// A generation's description of itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Meta {
    /// `Settings::VERSION` of the program, for the reader; the digest decides.
    pub(crate) settings_version: u32,
    /// Whether the tables were filled, so that a program may use them.
    pub(crate) is_complete: bool,
    /// The layout of the maps.
    pub(crate) layout: Digest,
    /// The object the pinned program came from.
    pub(crate) object: Digest,
    /// Inode of the network namespace whose interfaces are meant.
    pub(crate) namespace: u64,
    /// The daemon that last had the maps.
    pub(crate) process: u32,
    /// When that daemon took them, in seconds since 1970.
    pub(crate) taken: u64,
}

impl Meta {
    /// Describes maps that nothing is in yet, and no program.
    pub(crate) fn empty(layout: Digest, namespace: u64, now: u64) -> Self {
        Self {
            settings_version: Settings::VERSION,
            is_complete: false,
            layout,
            object: Digest::default(),
            namespace,
            process: std::process::id(),
            taken: now,
        }
    }

    pub(super) fn to_bytes(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let mut rest = &mut bytes[..];
        for field in [
            &MAGIC[..],
            &FORMAT.to_ne_bytes(),
            &self.settings_version.to_ne_bytes(),
            &u32::from(self.is_complete).to_ne_bytes(),
            &self.layout,
            &self.object,
            &self.namespace.to_ne_bytes(),
            &self.taken.to_ne_bytes(),
            &self.process.to_ne_bytes(),
        ] {
            let (place, next) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = next;
        }
        bytes
    }

    /// Returns `None` for what another version has written.
    pub(super) fn from_bytes(bytes: &[u8; SIZE]) -> Option<Self> {
        let mut rest = Reader(bytes);
        if rest.take() != MAGIC || u32::from_ne_bytes(rest.take()) != FORMAT {
            return None;
        }
        Some(Self {
            settings_version: u32::from_ne_bytes(rest.take()),
            is_complete: u32::from_ne_bytes(rest.take()) == 1,
            layout: rest.take(),
            object: rest.take(),
            namespace: u64::from_ne_bytes(rest.take()),
            taken: u64::from_ne_bytes(rest.take()),
            process: u32::from_ne_bytes(rest.take()),
        })
    }
}

/// Takes fields off the front; what is missing reads as zeroes.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        Meta {
            settings_version: 2,
            is_complete: true,
            layout: [3; 16],
            object: [4; 16],
            namespace: 5 << 40,
            process: 6,
            taken: 7 << 33,
        }
    }

    #[test]
    fn it_comes_back_as_it_was_written() {
        assert_eq!(Meta::from_bytes(&meta().to_bytes()), Some(meta()));
        assert_eq!(Meta::from_bytes(&Meta::default().to_bytes()), Some(Meta::default()));
    }

    #[test]
    fn what_another_version_wrote_is_not_read() {
        for at in 0..8 {
            let mut bytes = meta().to_bytes();
            bytes[at] ^= 1;
            assert_eq!(Meta::from_bytes(&bytes), None, "byte {at}");
        }
        assert_eq!(Meta::from_bytes(&[0; SIZE]), None);
    }
}
