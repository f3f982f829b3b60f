//! The messages of `/machine/map`: a length of four bytes, little-endian, then JSON.

/// Most bytes of one message: a tailnet of some 30,000 nodes.
pub(super) const MAX_MESSAGE: usize = 64 << 20;

/// A message is longer than is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a message of the map has {0} bytes, but at most {most}", most = MAX_MESSAGE)]
pub(super) struct TooLong(u32);

/// Puts messages together from what comes. Holds no more than has come.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: Vec<u8>,
    /// The length of the message that has begun.
    length: Option<usize>,
    message: Vec<u8>,
}

impl Frames {
    const HEAD: usize = 4;

    /// Takes bytes off `data`, and returns a message once it is whole; `None` when all of `data` is taken.
    pub(super) fn next(&mut self, data: &mut &[u8]) -> Result<Option<Vec<u8>>, TooLong> {
        let length = match self.length {
            Some(length) => length,
            None => {
                take(data, &mut self.head, Self::HEAD);
                let Ok(head) = <[u8; Self::HEAD]>::try_from(self.head.as_slice()) else {
                    return Ok(None);
                };
                let length = u32::from_le_bytes(head);
                let size = usize::try_from(length).ok().filter(|size| *size <= MAX_MESSAGE);
                let size = size.ok_or(TooLong(length))?;
                self.head.clear();
                *self.length.insert(size)
            }
        };
        take(data, &mut self.message, length);
        if self.message.len() < length {
            return Ok(None);
        }
        self.length = None;
        Ok(Some(std::mem::take(&mut self.message)))
    }
}

/// Moves bytes until `target` has `length`.
fn take(data: &mut &[u8], target: &mut Vec<u8>, length: usize) {
    let count = length.saturating_sub(target.len()).min(data.len());
    let (taken, rest) = data.split_at(count);
    target.extend(taken);
    *data = rest;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(chunks: &[&[u8]]) -> Result<Vec<Vec<u8>>, TooLong> {
        let mut frames = Frames::default();
        let mut messages = Vec::new();
        for mut chunk in chunks.iter().copied() {
            while let Some(message) = frames.next(&mut chunk)? {
                messages.push(message);
            }
            assert!(chunk.is_empty());
        }
        Ok(messages)
    }

    #[test]
    fn a_length_alone_reserves_nothing_and_one_beyond_the_limit_ends_it() {
        let mut frames = Frames::default();
        let length = u32::try_from(MAX_MESSAGE).unwrap();
        assert_eq!(frames.next(&mut &length.to_le_bytes()[..]), Ok(None));
        assert_eq!(frames.message.capacity(), 0);
        for length in [length + 1, u32::MAX] {
            let result = Frames::default().next(&mut &length.to_le_bytes()[..]);
            assert_eq!(result, Err(TooLong(length)));
        }
    }

    proptest! {
        #[test]
        fn messages_come_out_whole_however_they_are_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6),
            cuts in prop::collection::vec(1usize..9, 1..8),
        ) {
            let mut bytes = Vec::new();
            for message in &messages {
                bytes.extend(u32::try_from(message.len()).unwrap().to_le_bytes());
                bytes.extend(message);
            }
            let mut chunks = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, after) = rest.split_at((*cut).min(rest.len()));
                chunks.push(chunk);
                rest = after;
            }
            prop_assert_eq!(all(&chunks), Ok(messages));
        }

        #[test]
        fn any_bytes_are_messages_or_too_long(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = all(&[&bytes]);
        }
    }
}
