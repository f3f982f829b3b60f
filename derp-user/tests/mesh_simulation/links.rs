//! Links between servers: what a link is and what its two directions hold.

use std::collections::VecDeque;

use crate::schedule::Freight;

pub(crate) type LinkNumber = u32;

/// An end of a link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    /// The server that dialled: it hears who is at the other, and sends packets there.
    Dialler = 0,
    Acceptor = 1,
}

/// Bytes that sockets hold for a connection. While they are full, a new watcher is not told more.
pub(crate) const SOCKET: u32 = 256 << 10;
/// Bytes of news that may wait besides: a watcher that has more is closed, as in `server::connection`.
pub(crate) const MOST_NEWS: u32 = 4 << 20;
/// Packets that wait for a link; more push out the oldest.
pub(crate) const LINK_QUEUE: usize = 8;

/// A connection from the server that dialled to the one that accepted.
pub(crate) struct Link {
    /// Its servers.
    pub(crate) servers: [u32; 2],
    /// Its names there.
    pub(crate) names: [u32; 2],
    /// Neither end nor the net has broken it.
    pub(crate) open: bool,
    pub(crate) ways: [Way; 2],
    /// The acceptor has more to tell, once the socket has room.
    pub(crate) tells_more: bool,
    /// Packets that wait.
    pub(crate) waiting: VecDeque<Freight>,
    pub(crate) busy_until: u64,
    /// It takes one packet in so long.
    pub(crate) pace: u64,
}

/// One direction of a link, named after the end that it leads to.
#[derive(Clone, Copy, Default)]
pub(crate) struct Way {
    /// When the last freight arrives: nothing overtakes.
    pub(crate) arrival: u64,
    /// Nothing arrives before: the way is stalled.
    pub(crate) stalled_until: u64,
    /// Bytes between sender and receiver.
    pub(crate) backlog: u32,
}

impl Link {
    pub(crate) fn new(servers: [u32; 2], names: [u32; 2], pace: u64) -> Self {
        Self {
            servers,
            names,
            open: true,
            ways: [Way::default(); 2],
            tells_more: false,
            waiting: VecDeque::new(),
            busy_until: 0,
            pace,
        }
    }

    /// Server and name of an end.
    pub(crate) fn end(&self, side: Side) -> (u32, u32) {
        (self.servers[side as usize], self.names[side as usize])
    }

    pub(crate) fn way(&mut self, to: Side) -> &mut Way {
        &mut self.ways[to as usize]
    }
}
