//! Responses, with which sessions begin, and cookie replies.

use std::net::{IpAddr, SocketAddr};

use derp_common::flow::Side;

use super::{
    Destination, Index, Mac1, PeerId, Refusal, Relayed, WireGuardRelay,
    pending::{PENDING_LIFETIME, Pending},
    sessions::{Session, SessionEnd, flow_of},
};
use crate::flow::{AdmitError, FlowTable};

impl WireGuardRelay {
    pub(super) fn response(
        &mut self,
        table: &mut FlowTable,
        from: SocketAddr,
        local: IpAddr,
        [sender, receiver]: [Index; 2],
        mac1: &Mac1<'_>,
        now: u64,
    ) -> Result<Relayed, Refusal> {
        let (number, initiator) = self.answered(from, receiver, mac1, now)?;
        let pending = self.pending.get_mut(number).ok_or(Refusal::Unasked)?;
        if !self.directory.may_be_at(initiator, pending.from) {
            return Err(Refusal::Pinned);
        }
        let target = pending.target;
        let end = |peer, (remote, local), index| SessionEnd {
            peer,
            remote,
            local,
            index,
            heard: 0,
            counted: (0, 0),
        };
        // Each end sends with the index that the other one has chosen.
        let ends = [
            end(initiator, (pending.from, pending.local), sender),
            end(target, (from, local), receiver),
        ];
        let mac1 = pending.mac1;
        // Whoever was only guessed to be the responder gives his word for nothing, his own place included.
        let is_attested =
            self.atlas.of(target).is_some_and(|it| it.places().any(|place| place.remote == from));
        self.begin_session(table, ends, mac1, is_attested, now)?;
        if let Some(pending) = self.pending.get_mut(number) {
            pending.answered_from.push(from);
        }
        for SessionEnd { peer, remote, local, .. } in ends {
            if is_attested && self.directory.peer(peer).is_some_and(|it| it.pinned.is_none()) {
                self.atlas.name(peer, remote, local, now);
            }
            if let Some(tallies) = self.tallies.get_mut(peer.index()) {
                tallies.handshakes += 1;
                tallies.last_handshake = Some(now);
            }
        }
        let [SessionEnd { remote: to, local, .. }, _] = ends;
        let to = Destination { from: SocketAddr::new(local, self.port), to };
        Ok(Relayed::Response { peers: [initiator, target], to })
    }

    /// Finds the initiation that a response answers, and whose it was, which only the responder can know.
    fn answered(
        &mut self,
        from: SocketAddr,
        receiver: Index,
        mac1: &Mac1<'_>,
        now: u64,
    ) -> Result<(u64, PeerId), Refusal> {
        let mut refusal = Refusal::Unasked;
        for (number, pending) in self.pending.with_index(receiver) {
            if !pending.sent_to.contains(&from) {
                continue;
            }
            if pending.answered_from.contains(&from) {
                refusal = Refusal::Answered;
                continue;
            }
            // Whoever is known to be there, then everybody else who may talk to the responder.
            let is_partner = |it: &PeerId| self.directory.are_partners(*it, pending.target);
            let likely = self.atlas.owner(pending.from).filter(is_partner);
            if let Some(initiator) = self.directory.addressee(mac1, likely) {
                return Ok((number, initiator));
            }
            let partners = self.directory.partners(pending.target);
            if !self.allowances.take_trials(partners.len(), &self.limits, now) {
                return Err(Refusal::StrangersOverRate);
            }
            match self.directory.addressee(mac1, partners.iter().copied()) {
                Some(initiator) => return Ok((number, initiator)),
                None => refusal = Refusal::NotAllowed,
            }
        }
        Err(refusal)
    }

    /// Has the data of a session forwarded.
    fn begin_session(
        &mut self,
        table: &mut FlowTable,
        ends: [SessionEnd; 2],
        mac1: [u8; 16],
        is_attested: bool,
        now: u64,
    ) -> Result<(), Refusal> {
        let is_taken = |end: &SessionEnd| self.sessions.by_source(end.remote, end.index).is_some();
        if ends.iter().any(is_taken) {
            return Err(Refusal::IndexCollision);
        }
        let [initiator, responder] = ends;
        if let Some(surplus) = self.sessions.surplus(initiator.peer, responder.peer, now) {
            self.end_session(table, surplus);
        }
        let [a, b] = ends.map(|end| self.directory.name(end.peer));
        let name = session_name(a, b);
        let spec = flow_of(name, &ends, self.port);
        let mut added = table.add(spec.clone(), now);
        if let Err(AdmitError::Full { .. }) = added
            && let Some(in_vain) = self.sessions.in_vain(now)
        {
            self.end_session(table, in_vain);
            added = table.add(spec, now);
        }
        let flow = added.map_err(|error| refusal_of(&error))?;
        for (side, end) in Side::ALL.into_iter().zip(&ends) {
            // Packets to an end leave from the address that it sends to; anything else its NAT would drop.
            table.set_local(flow, side, end.local);
        }
        let session = Session { flow, ends, mac1, is_attested, made: now, heard: now };
        self.sessions.insert(session);
        self.has_changed = true;
        Ok(())
    }

    pub(super) fn end_session(&mut self, table: &mut FlowTable, number: u64) {
        if let Some(session) = self.sessions.remove(number) {
            table.remove(session.flow);
            self.has_changed = true;
        }
    }

    pub(super) fn cookie_reply(
        &mut self,
        from: SocketAddr,
        receiver: Index,
        now: u64,
    ) -> Result<Relayed, Refusal> {
        let mut asked =
            self.pending.with_index(receiver).filter(|(_, it)| it.sent_to.contains(&from));
        if let Some((_, Pending { from: to, local, .. })) = asked.next() {
            let to = Destination { from: SocketAddr::new(*local, self.port), to: *to };
            return Ok(Relayed::CookieReply { to });
        }
        // Or to a response: the initiator, too, may be under load.
        let (session, side) = self.sessions.by_source(from, receiver).ok_or(Refusal::Unasked)?;
        if side == Side::B || now.saturating_sub(session.made) > PENDING_LIFETIME {
            return Err(Refusal::Unasked);
        }
        let SessionEnd { remote, local, .. } = *session.end(side.other());
        let to = Destination { from: SocketAddr::new(local, self.port), to: remote };
        Ok(Relayed::CookieReply { to })
    }
}

/// Returns what the flow of a session between peers with these labels is called.
pub(super) fn session_name(initiator: &str, responder: &str) -> String {
    /// What fits the name of a flow, twice.
    const MOST: usize = 28;
    fn short(name: &str) -> &str {
        name.get(..name.floor_char_boundary(MOST)).unwrap_or_default()
    }
    format!("{} - {}", short(initiator), short(responder))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "every other reason lies in an address")]
const fn refusal_of(error: &AdmitError) -> Refusal {
    match error {
        AdmitError::Full { .. } => Refusal::Full,
        AdmitError::SourceTaken { .. } => Refusal::IndexCollision,
        _ => Refusal::UnusableAddress,
    }
}
