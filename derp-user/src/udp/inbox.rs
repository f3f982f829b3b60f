//! Buffers for what is received, shared by all sockets of a thread.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

/// Most buffers one system call fills.
pub const BATCH: usize = 64;

/// Longest UDP payload there is, and longest run of merged datagrams.
const LONGEST: usize = 65_535;
/// Between two buffers, so that their first bytes do not all fall into one set of the processor's cache.
const SKEW: usize = 129;

/// One buffer's worth of datagrams, all from one sender.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Arrival {
    /// Who sent them.
    pub from: SocketAddr,
    /// The address of this host they were sent to; `None` when the kernel does not say.
    pub to: Option<IpAddr>,
    /// The interface they came in by; 0 when the kernel does not say.
    pub interface: u32,
    /// TTL or hop limit.
    pub hop_limit: Option<u8>,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Bytes of each datagram but the last, which may be shorter.
    pub stride: usize,
    /// Bytes of all of them.
    pub length: usize,
    /// Set when the datagram was longer than the buffer.
    pub truncated: bool,
}

/// What was received last.
pub struct Inbox {
    bytes: Vec<u8>,
    size: usize,
    pub(super) arrivals: Vec<Arrival>,
}

impl Inbox {
    /// Makes room for [`BATCH`] datagrams of any length, or runs of merged ones. The system provides the
    /// memory, 4 MiB at most, when and where datagrams first reach it.
    #[must_use]
    pub fn new() -> Self {
        Self::with_size(LONGEST)
    }

    /// Makes room for [`BATCH`] datagrams of at most `size` bytes; longer ones are marked as truncated.
    #[must_use]
    pub fn with_size(size: usize) -> Self {
        let bytes = vec![0; BATCH * (size + SKEW)];
        Self { bytes, size, arrivals: Vec::with_capacity(BATCH) }
    }

    /// Returns the buffers, as one iterator of slices.
    pub(super) fn buffers(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let size = self.size;
        self.bytes
            .chunks_exact_mut(size + SKEW)
            .map(move |chunk| chunk.get_mut(..size).unwrap_or_default())
    }

    /// Returns what has arrived, in order.
    #[must_use]
    pub fn arrivals(&self) -> &[Arrival] {
        &self.arrivals
    }

    /// Returns where the datagrams of an arrival are, in order; for [`Inbox::bytes`].
    pub fn datagrams(&self, index: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (stride, length) =
            self.arrivals.get(index).map_or((1, 0), |arrival| (arrival.stride, arrival.length));
        let start = index * (self.size + SKEW);
        // A datagram without payload is one, too.
        let count = length.div_ceil(stride.max(1)).max(1);
        (0..count).map(move |number| {
            let first = number * stride;
            start + first..start + length.min(first + stride)
        })
    }

    /// Returns the bytes in a range.
    pub fn bytes(&mut self, range: Range<usize>) -> &mut [u8] {
        self.bytes.get_mut(range).unwrap_or_default()
    }

    /// Returns all buffers, for [`Outbox::send`](super::Outbox::send).
    pub(super) fn all(&self) -> &[u8] {
        &self.bytes
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(stride: usize, length: usize) -> Vec<usize> {
        let mut inbox = Inbox::with_size(1000);
        let from = "192.0.2.1:1".parse().expect("address");
        let arrival = Arrival {
            from,
            to: None,
            interface: 0,
            hop_limit: None,
            traffic_class: 0,
            stride,
            length,
            truncated: false,
        };
        inbox.arrivals = vec![arrival; 3];
        let ranges: Vec<_> = inbox.datagrams(2).collect();
        assert!(ranges.first().is_some_and(|first| first.start == 2 * (1000 + SKEW)));
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(ranges.iter().all(|range| inbox.bytes(range.clone()).len() == range.len()));
        ranges.iter().map(Range::len).collect()
    }

    #[test]
    fn a_run_of_merged_datagrams_is_taken_apart() {
        assert_eq!(lengths(400, 1000), [400, 400, 200]);
        assert_eq!(lengths(400, 800), [400, 400]);
        assert_eq!(lengths(400, 400), [400]);
        assert_eq!(lengths(1, 2), [1, 1]);
    }

    #[test]
    fn a_datagram_without_payload_is_one() {
        assert_eq!(lengths(0, 0), [0]);
    }
}
