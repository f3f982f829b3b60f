//! One connection of a load: what it is for, and what it does when its socket is ready.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use super::{
    Tallies,
    skim::{Seen, Skimmer},
};
use crate::{
    client::wire::{Outgoing, Phase, Wire},
    proto::keys::NodePublic,
    tools::bench::{
        dial::Connection,
        frames::{Frames, Size},
        pace::Pace,
        statistics::Tally,
    },
};

/// Most bytes of frames that a sender encrypts before others have their turn.
const TURN: usize = 64 << 10;
/// Most bytes that one read takes.
const READ: usize = 64 << 10;

/// Whose packets are counted together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::tools::bench) enum Group {
    /// The load that was asked for.
    Load,
    /// Probes, and the pair that others trouble.
    Watched,
    /// The flood.
    Flood,
}

impl Group {
    pub(super) const COUNT: usize = 3;
}

/// What a sender sends and when.
pub(in crate::tools::bench) struct Sending {
    frames: Frames,
    /// Without a pace, as much as the socket takes.
    pace: Option<Pace>,
    stamped: bool,
    /// Frames that were encrypted.
    issued: u64,
    /// Where in the outgoing bytes each frame ends that the socket has not taken yet.
    ends: Vec<usize>,
}

impl Sending {
    /// Packets of this size for `destination`; those of a `stamped` sender carry the time at which
    /// they are sent.
    pub(in crate::tools::bench) fn new(
        destination: &NodePublic,
        size: Size,
        pace: Option<Pace>,
        stamped: bool,
    ) -> Self {
        let frames = Frames::new(size, destination);
        Self { frames, pace, stamped, issued: 0, ends: Vec::new() }
    }

    /// When the next packet is due; `None` if that is now and ever.
    pub(super) fn due(&self) -> Option<Duration> {
        self.pace.map(|pace| pace.due(self.issued))
    }
}

enum Role {
    Send(Box<Sending>),
    Receive(Box<Skimmer>),
    /// Reads nothing, ever.
    Stall,
    /// Reads and forgets.
    Silent,
}

/// A connection and its part in a load.
pub(in crate::tools::bench) struct Peer {
    socket: TcpStream,
    wire: Wire,
    outgoing: Outgoing,
    group: Group,
    role: Role,
}

/// Why a connection is over.
#[derive(Debug)]
pub(super) struct Over;

/// What became of a sender's turn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Turn {
    /// The socket took everything.
    Done,
    /// The socket is full.
    Full,
}

impl Peer {
    fn new(connection: Connection, group: Group, role: Role) -> Self {
        let Connection { socket, wire, .. } = connection;
        Self { socket, wire, outgoing: Outgoing::default(), group, role }
    }

    /// A connection that sends.
    pub(in crate::tools::bench) fn sender(
        connection: Connection,
        group: Group,
        sending: Sending,
    ) -> Self {
        Self::new(connection, group, Role::Send(Box::new(sending)))
    }

    /// A connection that counts what it receives.
    pub(in crate::tools::bench) fn receiver(connection: Connection, group: Group) -> Self {
        let mut skimmer = Skimmer::default();
        // Nobody sends before the load begins: this is the beginning of a KeepAlive at most.
        let _ = skimmer.feed(&connection.received, |_| ());
        Self::new(connection, group, Role::Receive(Box::new(skimmer)))
    }

    /// A connection that is sent to but never reads.
    pub(in crate::tools::bench) fn stalled(connection: Connection, group: Group) -> Self {
        Self::new(connection, group, Role::Stall)
    }

    /// A connection on which nothing happens.
    pub(in crate::tools::bench) fn silent(connection: Connection) -> Self {
        Self::new(connection, Group::Load, Role::Silent)
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(super) fn group(&self) -> Group {
        self.group
    }

    /// Whether data on the socket matters.
    pub(super) fn reads(&self) -> bool {
        !matches!(self.role, Role::Stall)
    }

    /// Whether delays are measured on this connection.
    pub(super) fn is_prompt(&self) -> bool {
        self.sending().is_some_and(|sending| sending.stamped)
    }

    /// Whether it sends as much as the socket takes.
    pub(super) fn is_free(&self) -> bool {
        self.sending().is_some_and(|sending| sending.pace.is_none())
    }

    pub(super) fn sending(&self) -> Option<&Sending> {
        match &self.role {
            Role::Send(sending) => Some(sending),
            Role::Receive(_) | Role::Stall | Role::Silent => None,
        }
    }

    /// Encrypts and writes the frames that are due at `elapsed` after `begin`, no more than one turn
    /// may take. The socket must have taken what was sent before.
    pub(super) fn send(
        &mut self,
        begin: Instant,
        elapsed: Duration,
        tally: &mut Tally,
    ) -> Result<Turn, Over> {
        let Role::Send(sending) = &mut self.role else { return Ok(Turn::Done) };
        let Sending { frames, pace, stamped, issued, ends } = &mut **sending;
        if !self.outgoing.is_empty() {
            return Ok(Turn::Full);
        }
        let most = (TURN / 64) as u64;
        let count = pace.map_or(most, |pace| pace.owed(*issued, elapsed, most));
        let before = ends.len();
        let (wire, outgoing) = (&mut self.wire, &mut self.outgoing);
        if *stamped {
            for _ in 0..count {
                frames.stamp(nanoseconds(begin.elapsed()));
                wire.send(frames.take(1, TURN), outgoing, |end| ends.push(end))
                    .map_err(|_| Over)?;
                if outgoing.filled() >= TURN {
                    break;
                }
            }
        } else {
            wire.send(frames.take(count, TURN), outgoing, |end| ends.push(end))
                .map_err(|_| Over)?;
        }
        *issued += (ends.len() - before) as u64;
        self.flush(tally)
    }

    /// Writes what the socket takes.
    pub(super) fn flush(&mut self, tally: &mut Tally) -> Result<Turn, Over> {
        while !self.outgoing.is_empty() {
            match self.socket.write(self.outgoing.unsent()) {
                Ok(count) => self.outgoing.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Full),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Over),
            }
        }
        if let Role::Send(sending) = &mut self.role {
            tally.sent += sending.ends.len() as u64;
            sending.ends.clear();
        }
        Ok(Turn::Done)
    }

    /// Reads once, and counts what it finds. Whether the read was full, and more may be there.
    pub(super) fn receive(
        &mut self,
        scratch: &mut Vec<u8>,
        begin: Instant,
        tallies: &mut Tallies,
    ) -> Result<(Turn, bool), Over> {
        let Self { socket, wire, outgoing, group, role } = self;
        let tally = tallies.of(*group);
        let kept = wire.incomplete().len();
        scratch.resize(scratch.len().max(kept + READ), 0);
        scratch[..kept].copy_from_slice(wire.incomplete());
        let count = match socket.read(&mut scratch[kept..kept + READ]) {
            Ok(0) => return Err(Over),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok((Turn::Done, false));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return Ok((Turn::Done, true));
            }
            Err(_) => return Err(Over),
        };
        let now = Instant::now();
        let mut readable = Ok(());
        let mut data = |piece: &[u8]| {
            if let Role::Receive(skimmer) = &mut *role
                && readable.is_ok()
            {
                readable = skimmer.feed(piece, |seen| count_packet(tally, seen, begin, now));
            }
        };
        let phase = wire.receive(&mut scratch[..kept + count], &mut data, outgoing);
        if readable.is_err() || !matches!(phase, Ok(Phase::Established)) {
            return Err(Over);
        }
        let full = count == READ;
        if self.outgoing.is_empty() {
            return Ok((Turn::Done, full));
        }
        self.flush(tallies.of(self.group)).map(|turn| (turn, full))
    }

    /// Counts those frames of an unfinished write that the socket has taken whole.
    pub(super) fn count_partial(&self, tally: &mut Tally) {
        if let Some(sending) = self.sending() {
            let taken = sending.ends.iter().filter(|end| **end <= self.outgoing.sent());
            tally.sent += taken.count() as u64;
        }
    }

    /// Says farewell, as far as the socket lets it.
    pub(in crate::tools::bench) fn close(mut self) {
        if self.outgoing.is_empty() {
            self.wire.close(&mut self.outgoing);
            // The server notices either way.
            let _ = self.socket.write(self.outgoing.unsent());
        }
    }
}

fn count_packet(tally: &mut Tally, seen: Seen, begin: Instant, now: Instant) {
    tally.received += 1;
    tally.received_bytes += seen.length as u64;
    tally.last_received = Some(now);
    if seen.stamp > 0 {
        let sent = begin + Duration::from_nanos(seen.stamp);
        tally.delays.get_or_insert_default().record(now.saturating_duration_since(sent));
    }
}

/// The time for a stamp; never 0, which stands for none.
fn nanoseconds(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX).max(1)
}
