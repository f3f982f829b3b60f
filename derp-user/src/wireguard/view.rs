//! The relay as operators see it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{PeerId, Refusal, SESSIONS_PER_PAIR, WireGuardRelay};

const SECOND: u64 = 1_000_000_000;
/// Most places where strangers may be that are shown.
const MOST_STRANGERS: usize = 100;

/// What one peer has had.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Tallies {
    /// Initiations for it.
    pub(super) initiations: u64,
    /// Handshakes that it took part in.
    pub(super) handshakes: u64,
    pub(super) last_handshake: Option<u64>,
    pub(super) sent: Amount,
    pub(super) received: Amount,
}

/// Data that was relayed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct Amount {
    /// Packets.
    pub packets: u64,
    /// Bytes of their UDP payloads.
    pub bytes: u64,
}

impl Amount {
    pub(super) const fn add(&mut self, (packets, bytes): (u64, u64)) {
        self.packets = self.packets.saturating_add(packets);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// The whole relay.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct WireGuardView {
    /// Its UDP port.
    pub port: u16,
    /// Sessions whose data is relayed.
    pub sessions: usize,
    /// Initiations that wait for an answer.
    pub pending: usize,
    /// What became of messages of handshakes.
    pub messages: MessagesView,
    /// The peers, in the order of the configuration.
    pub peers: Vec<PeerView>,
    /// The pairs that have a session.
    pub pairs: Vec<PairView>,
    /// Sources that have asked for a peer and are not known to be one.
    pub strangers: Vec<StrangerView>,
}

/// What became of messages of handshakes, since the start.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct MessagesView {
    /// Initiations sent on.
    pub initiations: u64,
    /// Initiations for a peer that could be nowhere.
    pub held: u64,
    /// Copies of initiations, beyond the first.
    pub copies: u64,
    /// Responses sent on.
    pub responses: u64,
    /// Cookie replies sent on.
    pub cookie_replies: u64,
    /// Peers found to be at another address.
    pub roamed: u64,
    /// What was dropped, by reason.
    pub dropped: Vec<DroppedView>,
}

/// Messages that were dropped for one reason.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct DroppedView {
    /// The reason ([`Refusal::label`]).
    pub reason: String,
    /// How many.
    pub messages: u64,
}

/// One peer.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct PeerView {
    /// Its network.
    pub network: String,
    /// What it is called.
    pub label: String,
    /// Its public key.
    pub public_key: String,
    /// Where it is, if that is known.
    pub address: Option<SocketAddr>,
    /// Whether that is configured.
    pub is_pinned: bool,
    /// Where it may be, too: named by a handshake, not confirmed by data, or its address until it moved.
    pub candidates: Vec<SocketAddr>,
    /// How many peers it may talk to.
    pub partners: usize,
    /// Sessions that it has.
    pub sessions: usize,
    /// Initiations for it, so far.
    pub initiations: u64,
    /// Handshakes that it took part in, so far.
    pub handshakes: u64,
    /// How long ago the last one was, in whole seconds.
    pub handshake_seconds: Option<u64>,
    /// How long ago it was last heard of, in whole seconds.
    pub heard_seconds: Option<u64>,
    /// Data that came from it.
    pub sent: Amount,
    /// Data that went to it.
    pub received: Amount,
}

/// Two peers that have sessions with each other.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct PairView {
    /// Their labels.
    pub peers: [String; 2],
    /// Their sessions, latest first.
    pub sessions: Vec<SessionView>,
}

/// A session.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct SessionView {
    /// Label of the one that has begun it.
    pub initiator: String,
    /// Where the initiator is, and the responder.
    pub addresses: [SocketAddr; 2],
    /// How long ago it began, in whole seconds.
    pub age_seconds: u64,
    /// How long ago data was last seen, in whole seconds.
    pub idle_seconds: u64,
    /// Whether data went both ways.
    pub is_confirmed: bool,
    /// The flow's slot.
    pub slot: u32,
}

/// A source that has asked for peers and is not known to be one.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct StrangerView {
    /// The source.
    pub address: SocketAddr,
    /// Labels of those it has asked for.
    pub wants: Vec<String>,
    /// Labels of those it may be: whoever may talk to all of them.
    pub may_be: Vec<String>,
}

impl WireGuardRelay {
    /// Returns the relay as it is now.
    #[must_use]
    pub fn view(&self, now: u64) -> WireGuardView {
        let counts = &self.counts;
        let dropped = |reason: Refusal| DroppedView {
            reason: reason.label().to_owned(),
            messages: counts.refused(reason),
        };
        WireGuardView {
            port: self.port,
            sessions: self.sessions.len(),
            pending: self.pending.len(),
            messages: MessagesView {
                initiations: counts.initiations,
                held: counts.held,
                copies: counts.copies,
                responses: counts.responses,
                cookie_replies: counts.cookie_replies,
                roamed: counts.roamed,
                dropped: Refusal::ALL.map(dropped).to_vec(),
            },
            peers: self.peers(now),
            pairs: self.pairs(now),
            strangers: self.strangers(),
        }
    }

    fn peers(&self, now: u64) -> Vec<PeerView> {
        let mut sessions = vec![0; self.directory.len()];
        for end in self.sessions.iter().flat_map(|(_, session)| session.ends) {
            if let Some(count) = sessions.get_mut(end.peer.index()) {
                *count += 1;
            }
        }
        let ago = |then: u64| now.saturating_sub(then) / SECOND;
        let view = |id| {
            let peer = self.directory.peer(id)?;
            let tallies = self.tallies.get(id.index())?;
            let place = self.atlas.of(id)?;
            Some(PeerView {
                network: peer.network.clone(),
                label: peer.label.clone(),
                public_key: peer.key.to_string(),
                address: place.home.map(|home| home.remote),
                is_pinned: peer.pinned.is_some(),
                candidates: place.besides().map(|other| other.remote).collect(),
                partners: self.directory.partners(id).len(),
                sessions: sessions.get(id.index()).copied().unwrap_or(0),
                initiations: tallies.initiations,
                handshakes: tallies.handshakes,
                handshake_seconds: tallies.last_handshake.map(ago),
                heard_seconds: place.home.filter(|home| home.heard != 0).map(|it| ago(it.heard)),
                sent: tallies.sent,
                received: tallies.received,
            })
        };
        self.directory.ids().filter_map(view).collect()
    }

    fn pairs(&self, now: u64) -> Vec<PairView> {
        let ago = |then: u64| now.saturating_sub(then) / SECOND;
        let mut pairs = std::collections::BTreeMap::<_, Vec<SessionView>>::new();
        for (_, session) in self.sessions.iter() {
            let [a, b] = session.ends.map(|end| end.peer);
            let sessions = pairs.entry([a.min(b), a.max(b)]);
            let sessions = sessions.or_insert_with(|| Vec::with_capacity(SESSIONS_PER_PAIR));
            sessions.push(SessionView {
                initiator: self.directory.name(a).to_owned(),
                addresses: session.ends.map(|end| end.remote),
                age_seconds: ago(session.made),
                idle_seconds: ago(session.heard),
                is_confirmed: session.is_confirmed(),
                slot: session.flow.slot(),
            });
        }
        let view = |(peers, mut sessions): ([_; 2], Vec<_>)| {
            sessions.reverse();
            PairView { peers: peers.map(|peer| self.directory.name(peer).to_owned()), sessions }
        };
        pairs.into_iter().map(view).collect()
    }

    fn strangers(&self) -> Vec<StrangerView> {
        let mut views = Vec::new();
        for (address, asked) in self.pending.asked_by_strangers().take(MOST_STRANGERS) {
            let mut wants: Vec<_> = asked.map(|pending| pending.target).collect();
            wants.sort_unstable();
            wants.dedup();
            let first = wants.first().map(|it| self.directory.partners(*it)).unwrap_or_default();
            let may_be = first.iter().filter(|it| {
                self.directory.may_be_at(**it, address)
                    && wants.iter().all(|wanted| self.directory.are_partners(*wanted, **it))
            });
            let label = |id: &PeerId| self.directory.name(*id).to_owned();
            views.push(StrangerView {
                address,
                may_be: may_be.map(label).collect(),
                wants: wants.iter().map(label).collect(),
            });
        }
        views
    }
}
