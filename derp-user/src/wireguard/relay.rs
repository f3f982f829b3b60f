//! The relay's state, and what becomes of a message.

use std::net::{IpAddr, SocketAddr};

use derp_common::flow::Side;

use super::{
    Counts, Directory, Index, Limits, Mac1, Message, PeerId, Refusal,
    directory::Peer,
    limits::Allowances,
    pending::{Pending, PendingTable},
    sessions::{Session, SessionEnd, Sessions, flow_of},
    view::Tallies,
    whereabouts::{Atlas, unspecified},
};
use crate::flow::{AdmitError, FlowTable, check_address};

/// Places that an initiation is sent to at most, where it is not known which is the right one.
pub const MOST_PLACES: usize = 4;

/// A message that has arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Who sent it.
    pub from: SocketAddr,
    /// Where it arrived.
    pub local: SocketAddr,
    /// The UDP payload.
    pub payload: &'a [u8],
}

/// Where a message is to be sent on to, as it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Destination {
    /// The address and port of this host that it is to leave from; the unspecified address where routing is to choose.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
}

/// What became of a message that was not refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Relayed {
    /// An initiation, which goes to wherever the peer may be; to nobody as long as that is nowhere.
    Initiation {
        /// For whom it is.
        target: PeerId,
        /// Where it goes.
        to: Vec<Destination>,
    },
    /// A response, with which a flow begins.
    Response {
        /// The initiator and the responder.
        peers: [PeerId; 2],
        /// Where it goes.
        to: Destination,
    },
    /// A cookie reply.
    CookieReply {
        /// Where it goes.
        to: Destination,
    },
}

impl Relayed {
    /// Returns where the message goes.
    #[must_use]
    pub fn destinations(&self) -> &[Destination] {
        match self {
            Self::Initiation { to, .. } => to,
            Self::Response { to, .. } | Self::CookieReply { to } => std::slice::from_ref(to),
        }
    }
}

/// A relay for WireGuard.
pub struct WireGuardRelay {
    pub(super) directory: Directory,
    pub(super) port: u16,
    pub(super) limits: Limits,
    pub(super) allowances: Allowances,
    pub(super) pending: PendingTable,
    pub(super) sessions: Sessions,
    pub(super) atlas: Atlas,
    pub(super) counts: Counts,
    /// By peer.
    pub(super) tallies: Vec<Tallies>,
    /// Whether what is to outlive the process has changed since it was last looked at.
    pub(super) has_changed: bool,
}

impl WireGuardRelay {
    /// Makes a relay on a UDP port of every address of this host. Where the peers are it has yet to learn.
    #[must_use]
    pub fn new(directory: Directory, port: u16, limits: Limits) -> Self {
        let mut allowances = Allowances::default();
        allowances.follow(&directory);
        let atlas = Atlas::new(&directory);
        let tallies = vec![Tallies::default(); directory.len()];
        Self {
            directory,
            port,
            limits,
            allowances,
            pending: PendingTable::default(),
            sessions: Sessions::default(),
            atlas,
            counts: Counts::default(),
            tallies,
            has_changed: false,
        }
    }

    /// Returns what has happened so far.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns a peer's label and the short form of its key, for the log.
    #[must_use]
    pub fn describe(&self, peer: PeerId) -> String {
        self.directory.peer(peer).map_or_else(String::new, |Peer { label, key, .. }| {
            let short = key.short();
            if *label == short { short } else { format!("{label} ({short})") }
        })
    }

    /// Tells whether there is something new to be kept over a restart, once.
    pub const fn take_changed(&mut self) -> bool {
        std::mem::replace(&mut self.has_changed, false)
    }

    /// Takes a message of a handshake. What it changes in the flow table is applied before the message is sent on.
    ///
    /// Data is not for here: it is forwarded by the flow table alone, and moves nothing.
    ///
    /// # Errors
    ///
    /// Why the message is dropped.
    pub fn receive(
        &mut self,
        table: &mut FlowTable,
        arrival: &Arrival<'_>,
        now: u64,
    ) -> Result<Relayed, Refusal> {
        let from = SocketAddr::new(arrival.from.ip().to_canonical(), arrival.from.port());
        let local = arrival.local.ip().to_canonical();
        let result = self.relay(table, from, local, arrival.payload, now);
        match &result {
            Ok(Relayed::Initiation { to, .. }) => {
                let places = to.len() as u64;
                self.counts.initiations += u64::from(places > 0);
                self.counts.held += u64::from(places == 0);
                self.counts.copies += places.saturating_sub(1);
            }
            Ok(Relayed::Response { .. }) => self.counts.responses += 1,
            Ok(Relayed::CookieReply { .. }) => self.counts.cookie_replies += 1,
            Err(refusal) => self.counts.refuse(*refusal),
        }
        result
    }

    fn relay(
        &mut self,
        table: &mut FlowTable,
        from: SocketAddr,
        local: IpAddr,
        payload: &[u8],
        now: u64,
    ) -> Result<Relayed, Refusal> {
        let message = Message::parse(payload).ok_or(Refusal::Malformed)?;
        let is_us = from.port() == self.port && table.is_this_host(from.ip());
        if is_us || check_address(from).is_err() {
            return Err(Refusal::UnusableSource);
        }
        if !self.allowances.take_message(from.ip(), &self.limits, now) {
            return Err(Refusal::SourceOverRate);
        }
        self.pending.expire(now);
        match message {
            Message::Initiation { sender, mac1 } => {
                self.initiation(from, local, sender, &mac1, now)
            }
            Message::Response { sender, receiver, mac1 } => {
                self.response(table, from, local, [sender, receiver], &mac1, now)
            }
            Message::CookieReply { receiver } => self.cookie_reply(from, receiver, now),
        }
    }

    fn initiation(
        &mut self,
        from: SocketAddr,
        local: IpAddr,
        index: Index,
        mac1: &Mac1<'_>,
        now: u64,
    ) -> Result<Relayed, Refusal> {
        let owner = self.atlas.owner(from);
        let known = owner.filter(|owner| {
            self.directory.pinned_to(from).is_some()
                || self.atlas.of(*owner).is_some_and(|it| it.is_alive(now))
        });
        let target = self.addressee(owner, mac1, now)?;
        if let Some(known) = known
            && !self.directory.are_partners(known, target)
        {
            return Err(Refusal::NotAllowed);
        }
        let partners = self.directory.partners(target);
        if partners.is_empty() {
            return Err(Refusal::NotAllowed);
        }
        if !partners.iter().any(|partner| self.directory.may_be_at(*partner, from)) {
            return Err(Refusal::Pinned);
        }
        self.check_index(target, from, index, mac1)?;
        let is_stranger = known.is_none();
        let is_full = if is_stranger {
            self.pending.strangers() >= self.limits.pending_strangers
                || self.pending.of_stranger(from) >= self.limits.pending_per_stranger
        } else {
            self.pending.len() - self.pending.strangers() >= self.limits.pending
        };
        if is_full {
            return Err(Refusal::TooManyPending);
        }
        if !self.allowances.take_target(target, is_stranger, &self.limits, now) {
            return Err(Refusal::TargetOverRate);
        }
        let to = self.destinations(target, from, known, now);
        self.pending.insert(Pending {
            target,
            index,
            from,
            local,
            mac1: mac1.mac,
            sent_to: to.iter().map(|place| place.to).collect(),
            is_stranger,
            is_answered: false,
            at: now,
        });
        if let Some(tallies) = self.tallies.get_mut(target.index()) {
            tallies.initiations += 1;
        }
        Ok(Relayed::Initiation { target, to })
    }

    /// Finds out for whom an initiation is: one of those whom its sender may talk to, if that is known, costs little.
    fn addressee(
        &mut self,
        sender: Option<PeerId>,
        mac1: &Mac1<'_>,
        now: u64,
    ) -> Result<PeerId, Refusal> {
        let partners = sender.map(|id| self.directory.partners(id)).unwrap_or_default();
        if let Some(target) = self.directory.addressee(mac1, partners.iter().copied()) {
            return Ok(target);
        }
        if !self.allowances.take_trials(self.directory.len(), &self.limits, now) {
            return Err(Refusal::StrangersOverRate);
        }
        self.directory.addressee(mac1, self.directory.ids()).ok_or(Refusal::UnknownKey)
    }

    /// Refuses an initiation whose answer, or the data after it, could not be told from another one's.
    fn check_index(
        &self,
        target: PeerId,
        from: SocketAddr,
        index: Index,
        mac1: &Mac1<'_>,
    ) -> Result<(), Refusal> {
        let because = |mac: &[u8]| {
            if *mac == mac1.mac { Refusal::Replayed } else { Refusal::IndexCollision }
        };
        let mut same = self.pending.with_index(index).filter(|(_, it)| it.target == target);
        if let Some((_, pending)) = same.next() {
            return Err(because(&pending.mac1));
        }
        let places = self.atlas.of(target).into_iter().flat_map(|it| it.places());
        for place in places {
            // The target sends its data with this index already.
            if let Some((session, _)) = self.sessions.by_source(place.remote, index) {
                return Err(because(&session.mac1));
            }
        }
        // Only a replay can have the same index from the same place, where the target has moved in the meantime.
        match self.sessions.by_source(from, index) {
            Some((session, _)) if session.mac1 == mac1.mac => Err(Refusal::Replayed),
            _ => Ok(()),
        }
    }

    /// Returns where a peer may be, best first.
    fn destinations(
        &mut self,
        target: PeerId,
        from: SocketAddr,
        sender: Option<PeerId>,
        now: u64,
    ) -> Vec<Destination> {
        let port = self.port;
        let mut found: Vec<Destination> = Vec::new();
        let whereabouts = self.atlas.of(target).cloned().unwrap_or_default();
        if let Some(home) = whereabouts.home.filter(|home| home.remote != from) {
            found.push(Destination { from: SocketAddr::new(home.local, port), to: home.remote });
        }
        let is_pinned = self.directory.peer(target).is_some_and(|peer| peer.pinned.is_some());
        if is_pinned {
            return found;
        }
        let mut guesses: Vec<_> =
            whereabouts.others.iter().rev().map(|other| (other.remote, other.local)).collect();
        if !whereabouts.is_alive(now) {
            guesses.extend(self.guesses(target, from, sender, now));
        }
        for (to, local) in guesses {
            let is_new = to != from && found.iter().all(|it| it.to != to);
            if found.len() >= MOST_PLACES || !is_new {
                continue;
            }
            // Beyond one message out for one in, there is an allowance for everybody together.
            if !found.is_empty() && !self.allowances.take_copy(&self.limits, now) {
                break;
            }
            if self.allowances.take_guess(to.ip(), &self.limits, now) {
                found.push(Destination { from: SocketAddr::new(local, port), to });
            }
        }
        found
    }

    /// Returns who, of the strangers that wait for an answer, may be a peer: those who ask for its partners only.
    /// Those that ask for the one who is looking for it come first, then those who can be fewest others.
    ///
    /// A wrong guess costs one message, which its receiver cannot read.
    fn guesses(
        &self,
        target: PeerId,
        from: SocketAddr,
        sender: Option<PeerId>,
        now: u64,
    ) -> Vec<(SocketAddr, IpAddr)> {
        let mut guesses = Vec::new();
        for (stranger, asked) in self.pending.asked_by_strangers() {
            let owner = self.atlas.owner(stranger);
            let is_other = owner.is_some_and(|owner| {
                owner != target && self.atlas.of(owner).is_some_and(|it| it.is_alive(now))
            });
            if stranger == from || is_other || !self.directory.may_be_at(target, stranger) {
                continue;
            }
            let (mut wanted, mut local, mut last) = (Vec::new(), unspecified(stranger), 0);
            for pending in asked {
                wanted.push(pending.target);
                local = pending.local;
                last = pending.at;
            }
            if !wanted.iter().all(|it| self.directory.are_partners(*it, target)) {
                continue;
            }
            let is_mutual = match sender {
                Some(sender) => wanted.contains(&sender),
                // Whoever asks for the target is one of its partners: so are all that are wanted.
                None => wanted.iter().any(|it| self.may_be(*it, from)),
            };
            let others = wanted.iter().map(|it| self.directory.partners(*it).len()).min();
            guesses.push((!is_mutual, others, std::cmp::Reverse(last), stranger, local));
        }
        guesses.sort_unstable();
        guesses.into_iter().map(|(.., stranger, local)| (stranger, local)).collect()
    }

    /// Tells whether a stranger may be this peer: it is not known to be elsewhere.
    fn may_be(&self, peer: PeerId, stranger: SocketAddr) -> bool {
        let is_somewhere = self.atlas.of(peer).is_some_and(|it| it.home.is_some());
        self.directory.may_be_at(peer, stranger)
            && (!is_somewhere || self.atlas.owner(stranger) == Some(peer))
    }

    fn response(
        &mut self,
        table: &mut FlowTable,
        from: SocketAddr,
        local: IpAddr,
        [sender, receiver]: [Index; 2],
        mac1: &Mac1<'_>,
        now: u64,
    ) -> Result<Relayed, Refusal> {
        let (number, initiator) = self.answered(from, receiver, mac1)?;
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
        self.begin_session(table, ends, mac1, now)?;
        if let Some(pending) = self.pending.get_mut(number) {
            pending.is_answered = true;
        }
        for SessionEnd { peer, remote, local, .. } in ends {
            if self.directory.peer(peer).is_some_and(|it| it.pinned.is_none()) {
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
        &self,
        from: SocketAddr,
        receiver: Index,
        mac1: &Mac1<'_>,
    ) -> Result<(u64, PeerId), Refusal> {
        let mut refusal = Refusal::Unasked;
        for (number, pending) in self.pending.with_index(receiver) {
            if !pending.sent_to.contains(&from) {
                continue;
            }
            if pending.is_answered {
                refusal = Refusal::Answered;
                continue;
            }
            // Whoever is known to be there, then everybody else who may talk to the responder.
            let is_partner = |it: &PeerId| self.directory.are_partners(*it, pending.target);
            let likely = self.atlas.owner(pending.from).filter(is_partner);
            let partners = self.directory.partners(pending.target).iter().copied();
            match self.directory.addressee(mac1, likely.into_iter().chain(partners)) {
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
        let session = Session { flow, ends, mac1, made: now, heard: now };
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

    fn cookie_reply(
        &mut self,
        from: SocketAddr,
        receiver: Index,
        now: u64,
    ) -> Result<Relayed, Refusal> {
        /// How long a response may take to be answered by a cookie, in nanoseconds.
        const MOST: u64 = super::pending::PENDING_LIFETIME;
        let mut asked =
            self.pending.with_index(receiver).filter(|(_, it)| it.sent_to.contains(&from));
        if let Some((_, Pending { from: to, local, .. })) = asked.next() {
            let to = Destination { from: SocketAddr::new(*local, self.port), to: *to };
            return Ok(Relayed::CookieReply { to });
        }
        // Or to a response: the initiator, too, may be under load.
        let (session, side) = self.sessions.by_source(from, receiver).ok_or(Refusal::Unasked)?;
        if side == Side::B || now.saturating_sub(session.made) > MOST {
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
