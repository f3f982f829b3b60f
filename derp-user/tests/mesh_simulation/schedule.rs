//! The virtual clock: what happens when. Times are nanoseconds since the start of the region.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::{
    keys::{KeyNumber, News},
    links::{LinkNumber, Side},
};

pub(crate) const MILLISECOND: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000 * MILLISECOND;

/// What travels on a link, and how many bytes of DERP frames it is.
#[derive(Debug)]
pub(crate) enum Freight {
    /// One or many things that a watcher is told, in order.
    One(News),
    Many(Box<[News]>),
    /// A packet that is forwarded.
    Packet {
        source: KeyNumber,
        destination: KeyNumber,
    },
}

impl Freight {
    pub(crate) fn news(&self) -> &[News] {
        match self {
            Self::One(news) => std::slice::from_ref(news),
            Self::Many(news) => news,
            Self::Packet { .. } => &[],
        }
    }
}

#[derive(Debug)]
pub(crate) enum Event {
    /// A server looks a name up, or its pause is over, and dials.
    Dial { dialler: u32, acceptor: u32 },
    /// Freight has crossed a link, and waits for the receiver's network interface.
    Arrive { link: LinkNumber, to: Side, bytes: u32, freight: Freight },
    /// The receiver has it.
    Handle { link: LinkNumber, to: Side, bytes: u32, freight: Freight },
    /// One end notices that a link is lost.
    Lost { link: LinkNumber, side: Side },
    /// A watcher's socket has taken what it was told.
    TellMore { link: LinkNumber },
    /// A link can take the next packet.
    Free { link: LinkNumber },
    /// A server notices that a client's connection is dead.
    Expire { server: u32, connection: u32 },
}

/// An event and its place in the order of things.
struct Entry {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// All events to come. Those of one moment happen in the order in which they were put here.
#[derive(Default)]
pub(crate) struct Schedule {
    entries: BinaryHeap<Reverse<Entry>>,
    now: u64,
    count: u64,
}

impl Schedule {
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    /// Puts an event at a time, or now, if that has passed.
    pub(crate) fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        let at = time.max(self.now);
        self.entries.push(Reverse(Entry { at, number: self.count, event }));
    }

    pub(crate) fn after(&mut self, pause: u64, event: Event) {
        self.at(self.now + pause, event);
    }

    /// The next event until `time`, which becomes the present if there is none.
    pub(crate) fn next(&mut self, time: u64) -> Option<Event> {
        match self.entries.peek() {
            Some(Reverse(entry)) if entry.at <= time => {
                let Reverse(entry) = self.entries.pop()?;
                self.now = entry.at;
                Some(entry.event)
            }
            Some(_) | None => {
                if time != u64::MAX {
                    self.now = time;
                }
                None
            }
        }
    }
}
