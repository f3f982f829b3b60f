//! What is to be sent, gathered so that datagrams with one destination cost one system call.

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use nix::errno::Errno;

use super::{Inbox, SendFailure, Socket};

/// Most datagrams the kernel takes as one (`UDP_MAX_SEGMENTS`).
const MOST_SEGMENTS: usize = 64;
/// Most bytes it takes as one: those of the longest IPv4 datagram.
const MOST_BYTES: usize = 65_507;

/// Where a datagram goes, and what its headers say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Route {
    /// To whom.
    pub destination: SocketAddr,
    /// The address of this host it leaves from; `None` leaves that to the route.
    pub source: Option<IpAddr>,
    /// TTL or hop limit; `None` is the system's.
    pub hop_limit: Option<u8>,
    /// DSCP and ECN.
    pub traffic_class: u8,
}

/// Datagrams of one destination, one size, and one socket.
struct Group {
    socket: usize,
    route: Route,
    segment: usize,
    bytes: usize,
    count: usize,
    /// Where they are in the inbox; neighbours are one range.
    pieces: Vec<Range<usize>>,
}

impl Group {
    /// Tells whether another datagram of this size may follow: only the last may be shorter.
    fn has_room(&self, length: usize) -> bool {
        length <= self.segment
            && length != 0
            && self.bytes == self.count * self.segment
            && self.count < MOST_SEGMENTS
            && self.bytes + length <= MOST_BYTES
    }

    fn add(&mut self, range: Range<usize>) {
        self.bytes += range.len();
        self.count += 1;
        match self.pieces.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.pieces.push(range),
        }
    }
}

/// What is to be sent of what an [`Inbox`] holds.
#[derive(Default)]
pub struct Outbox {
    groups: Vec<Group>,
    /// Those after them are kept for the memory they have.
    used: usize,
}

impl Outbox {
    /// Returns an empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the datagram at `range` of the inbox, to be sent by socket number `socket`. Datagrams of one
    /// route keep their order; others may overtake them.
    pub fn add(&mut self, socket: usize, route: Route, range: Range<usize>) {
        let length = range.len();
        let used = self.groups.get_mut(..self.used).unwrap_or_default();
        // The latest of this route, if any: an earlier one is complete.
        let same = |group: &&mut Group| group.socket == socket && group.route == route;
        if let Some(group) = used.iter_mut().rev().find(same)
            && group.has_room(length)
        {
            return group.add(range);
        }
        if self.used == self.groups.len() {
            let pieces = Vec::new();
            self.groups.push(Group { socket, route, segment: 0, bytes: 0, count: 0, pieces });
        }
        if let Some(group) = self.groups.get_mut(self.used) {
            self.used += 1;
            group.pieces.clear();
            (group.socket, group.route, group.segment) = (socket, route, length);
            (group.bytes, group.count) = (0, 0);
            group.add(range);
        }
    }

    /// Sends everything. `sockets` finds the sockets by number. Tells `sent` of each group that went out
    /// whole (socket number, route, datagrams, bytes), and `failed` of each datagram that did not.
    pub fn send<'a>(
        &mut self,
        inbox: &Inbox,
        sockets: impl Fn(usize) -> Option<&'a Socket>,
        mut sent: impl FnMut(&Route, usize, usize),
        mut failed: impl FnMut(&Route, SendFailure),
    ) {
        let groups = self.groups.get(..self.used).unwrap_or_default();
        for group in groups {
            if let Some(socket) = sockets(group.socket) {
                send_group(socket, group, inbox.all(), &mut sent, &mut failed);
            }
        }
        self.used = 0;
    }
}

fn send_group(
    socket: &Socket,
    group: &Group,
    bytes: &[u8],
    sent: &mut impl FnMut(&Route, usize, usize),
    failed: &mut impl FnMut(&Route, SendFailure),
) {
    let slice = |range: &Range<usize>| bytes.get(range.clone()).unwrap_or_default();
    let mut whole = None;
    if group.count == 1 || socket.segments() {
        let segment = u16::try_from(group.segment).ok().filter(|_| group.count > 1);
        let result = match group.pieces.as_slice() {
            [piece] => socket.send(&group.route, &[IoSlice::new(slice(piece))], segment),
            pieces => {
                let slices: Vec<_> = pieces.iter().map(|it| IoSlice::new(slice(it))).collect();
                socket.send(&group.route, &slices, segment)
            }
        };
        match result {
            Ok(()) => return sent(&group.route, group.count, group.bytes),
            Err(error) => whole = Some(error),
        }
    }
    match whole {
        // One by one, they might get through: longer than the MTU, each can be fragmented.
        None | Some(Errno::EINVAL | Errno::EMSGSIZE | Errno::EIO) if group.count > 1 => {}
        None => return,
        Some(error) => {
            let failure = SendFailure::from(error);
            return (0..group.count).for_each(|_| failed(&group.route, failure));
        }
    }
    if whole == Some(Errno::EIO) && socket.segments() {
        tracing::info!(
            to = %group.route.destination,
            "the way out cannot segment UDP; every datagram is sent by itself from now on"
        );
        socket.stop_segmenting();
    }
    for piece in &group.pieces {
        for datagram in slice(piece).chunks(group.segment.max(1)) {
            match socket.send(&group.route, &[IoSlice::new(datagram)], None) {
                Ok(()) => sent(&group.route, 1, datagram.len()),
                Err(error) => failed(&group.route, error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(port: u16) -> Route {
        let destination = SocketAddr::from(([192, 0, 2, 1], port));
        Route { destination, source: None, hop_limit: Some(63), traffic_class: 0 }
    }

    /// Port, datagrams, bytes and pieces of each group.
    fn groups(datagrams: &[(u16, usize)]) -> Vec<(u16, usize, usize, usize)> {
        let mut outbox = Outbox::new();
        // A second use of the same memory must not see the first.
        for _ in 0..2 {
            outbox.used = 0;
            let mut at = 0;
            for (port, length) in datagrams {
                outbox.add(0, route(*port), at..at + length);
                at += length;
            }
        }
        let used = &outbox.groups[..outbox.used];
        let port = |group: &Group| group.route.destination.port();
        used.iter().map(|it| (port(it), it.count, it.bytes, it.pieces.len())).collect()
    }

    #[test]
    fn datagrams_of_one_size_to_one_destination_go_together() {
        assert_eq!(groups(&[(1, 100), (1, 100), (1, 40)]), [(1, 3, 240, 1)]);
        assert_eq!(groups(&[(1, 100), (2, 100), (1, 100)]), [(1, 2, 200, 2), (2, 1, 100, 1)]);
    }

    #[test]
    fn a_shorter_datagram_is_the_last_of_its_group() {
        assert_eq!(groups(&[(1, 100), (1, 40), (1, 40)]), [(1, 2, 140, 1), (1, 1, 40, 1)]);
        assert_eq!(groups(&[(1, 40), (1, 100)]), [(1, 1, 40, 1), (1, 1, 100, 1)]);
        assert_eq!(groups(&[(1, 0), (1, 0)]), [(1, 1, 0, 1), (1, 1, 0, 1)]);
    }

    #[test]
    fn a_later_datagram_never_overtakes_one_of_its_route() {
        let groups = groups(&[(1, 100), (1, 200), (1, 100)]);
        assert_eq!(groups, [(1, 1, 100, 1), (1, 2, 300, 1)]);
    }

    #[test]
    fn groups_are_bounded_in_number_and_bytes() {
        assert_eq!(groups(&[(1, 10); 65]), [(1, 64, 640, 1), (1, 1, 10, 1)]);
        let long = groups(&[(1, 1400); 50]);
        assert_eq!(long, [(1, 46, 64_400, 1), (1, 4, 5600, 1)]);
    }
}
