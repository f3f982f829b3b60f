//! Initiations: for whom they are, and where that peer may be.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use super::{
    Destination, Index, MOST_PLACES, Mac1, PeerId, Refusal, Relayed, WireGuardRelay,
    pending::Pending, whereabouts::unspecified,
};

impl WireGuardRelay {
    pub(super) fn initiation(
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
        if known.is_none() && !self.allowances.take_stranger(from.ip(), &self.limits, now) {
            return Err(Refusal::SourceOverRate);
        }
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
        if is_full || self.pending.between(from, target) >= self.limits.pending_per_pair {
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
            answered_from: Vec::new(),
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
            whereabouts.besides().map(|place| (place.remote, place.local)).collect();
        // Two impostors may have taken the places of two peers while both were silent. These come back as strangers who
        // ask for each other, and must be able to meet.
        if sender.is_none() || !whereabouts.is_alive(now) {
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
    /// Those that ask for the one who is looking for it come first, then those who can be fewest others. Of each host one
    /// comes first, lest somebody crowd the others out.
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
        let mut of_host = HashMap::new();
        let mut places: Vec<_> = guesses
            .into_iter()
            .map(|(is_other, .., stranger, local)| {
                let place = of_host.entry((is_other, stranger.ip())).or_insert(0_usize);
                *place += 1;
                (is_other, *place, (stranger, local))
            })
            .collect();
        places.sort_by_key(|(is_other, place, _)| (*is_other, *place));
        places.into_iter().map(|(.., found)| found).collect()
    }

    /// Tells whether a stranger may be this peer: it is not known to be elsewhere.
    fn may_be(&self, peer: PeerId, stranger: SocketAddr) -> bool {
        let is_somewhere = self.atlas.of(peer).is_some_and(|it| it.home.is_some());
        self.directory.may_be_at(peer, stranger)
            && (!is_somewhere || self.atlas.owner(stranger) == Some(peer))
    }
}
