//! A relay for stock WireGuard, without its keys: the state machine, without any I/O (udp-relay reference, section 7).
//!
//! Each peer has the relay as `Endpoint` of all others. Handshakes come here, and teach the relay where peers are and
//! how their data is told apart; data is forwarded by the [flow table](crate::flow), in the kernel where it can.
//!
//! - An *initiation* shows for whom it is: its MAC1 is made with the responder's public key. It goes to where that
//!   peer is. Where nobody knows, it goes to strangers who may be that peer, because they have asked for its partners.
//! - The *response* shows who the initiator was: its MAC1 is made with that one's key, and only the responder can have
//!   known it. It is the responder's word on which a source becomes a peer's address. Both have now chosen an index, so
//!   the flow of the session is known: data of the one's source with the other's index, and the other way round.
//! - *Cookie replies* go back to whoever sent the message they answer.
//!
//! Nothing else teaches anything: data of an unknown source or index is dropped and moves no flow. A peer that has moved
//! is found at its next handshake.
//!
//! What an attacker can bring about, who knows every public key and may forge source addresses, is in
//! `whereabouts`; [`Limits`] says how much of it.

mod directory;
mod initiation;
mod key;
mod limits;
mod message;
mod pending;
mod refusal;
mod relay;
mod reload;
mod response;
mod review;
mod sessions;
mod snippet;
mod stored;
mod view;
mod whereabouts;

pub use self::{
    directory::{Directory, MOST_PEERS, Network, Pairs, PeerId, PeerSettings},
    key::{KEY_LENGTH, Mac1Key, PublicKey, PublicKeyError},
    limits::Limits,
    message::{Index, Mac1, Message},
    refusal::{Counts, Refusal},
    relay::{Arrival, Destination, MOST_PLACES, Relayed, WireGuardRelay},
    review::Event,
    sessions::{SESSION_LIFETIME, SESSIONS_PER_PAIR},
    snippet::snippets,
    stored::{Resumable, Stored, StoredError},
    view::{
        Amount, DroppedView, MessagesView, PairView, PeerView, SessionView, StrangerView,
        WireGuardView,
    },
};

#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
pub(crate) mod tests;
