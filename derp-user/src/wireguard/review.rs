//! What time brings: data that was counted, peers that have moved, sessions that are over.

use std::net::SocketAddr;

use derp_common::flow::Side;

use super::{PeerId, WireGuardRelay, sessions::SessionEnd, whereabouts::Place};
use crate::flow::FlowTable;

/// Something that an operator may want to know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// A peer's address is known from now on, or another one.
    Located {
        /// The peer.
        peer: PeerId,
        /// Where it is.
        at: SocketAddr,
        /// Where it was.
        before: Option<SocketAddr>,
    },
    /// A peer's last session is over.
    Silent {
        /// The peer.
        peer: PeerId,
    },
}

impl WireGuardRelay {
    /// Takes what the data planes have counted, and ends sessions that are over, with their flows.
    ///
    /// To be called when the flow table has been told what both data planes know *now* ([`FlowTable::observe`]), which
    /// is how a session that only the kernel sees is kept.
    pub fn review(&mut self, table: &mut FlowTable, now: u64) -> Vec<Event> {
        self.pending.expire(now);
        self.count(table);
        let mut events = self.locate(now);
        let over: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, it)| it.is_over(now) || table.name(it.flow).is_none())
            .map(|(number, it)| (number, it.ends.map(|end| end.peer)))
            .collect();
        for (number, _) in &over {
            self.end_session(table, *number);
        }
        let mut peers: Vec<_> = over.into_iter().flat_map(|(_, peers)| peers).collect();
        peers.sort_unstable();
        peers.dedup();
        let remaining = self.sessions.peers();
        peers.retain(|peer| !remaining.contains(peer));
        events.extend(peers.into_iter().map(|peer| Event::Silent { peer }));
        let sessions = &self.sessions;
        self.atlas.expire(|peer, remote| sessions.uses(peer, remote), now);
        events
    }

    /// Takes over what has been counted.
    fn count(&mut self, table: &FlowTable) {
        for session in self.sessions.values_mut() {
            let mut sent = [(0, 0); 2];
            for (side, sent) in Side::ALL.into_iter().zip(&mut sent) {
                let counted = table.counted(session.flow, side);
                let end = &mut session.ends[side as usize];
                // Counts begin anew with a new process of either data plane.
                let packets = counted.0.saturating_sub(end.counted.0);
                *sent = (packets, counted.1.saturating_sub(end.counted.1));
                end.counted = counted;
                // The clock of the kernel's program may lag behind the beginning of the session.
                if packets != 0 {
                    let heard = table.last_seen(session.flow, side).unwrap_or(session.made);
                    self.has_changed |= end.heard == 0;
                    end.heard = end.heard.max(heard);
                    session.heard = session.heard.max(heard);
                    self.atlas.heard(end.peer, end.remote, heard);
                }
            }
            for (side, sent) in Side::ALL.into_iter().zip(sent) {
                let [from, to] = [side, side.other()].map(|side| session.ends[side as usize].peer);
                if let Some(tallies) = self.tallies.get_mut(from.index()) {
                    tallies.sent.add(sent);
                }
                if let Some(tallies) = self.tallies.get_mut(to.index()) {
                    tallies.received.add(sent);
                }
            }
        }
    }

    /// Believes where peers are, of those with whom data goes both ways.
    fn locate(&mut self, now: u64) -> Vec<Event> {
        let mut events = Vec::new();
        for (_, session) in self.sessions.iter().filter(|(_, session)| session.is_confirmed()) {
            for SessionEnd { peer, remote, local, heard, .. } in session.ends {
                let place = Place { remote, local, heard };
                if self.directory.may_be_at(peer, remote)
                    && let Some(before) = self.atlas.confirm(peer, place, now)
                {
                    self.counts.roamed += u64::from(before.is_some());
                    self.has_changed = true;
                    events.push(Event::Located { peer, at: remote, before });
                }
            }
        }
        events
    }
}
