//! Tailscale's peer relay, as a server: the state machine without any I/O (udp-relay reference, sections 2 to 4).
//!
//! Clients that cannot reach each other directly ask a relay, by DERP, for an *endpoint*: a VNI under which the two
//! of them, and nobody else, may meet. Each client then *binds* its end from the address it sends from, in three UDP
//! messages of one size: bind, challenge, answer. From then on packets with that VNI are forwarded between the two
//! addresses, which is what the [flow table](crate::flow) does, in the kernel where it can. This module only decides
//! who gets an endpoint, where its ends are, and when it is over.
//!
//! [`PeerRelay`] knows no socket, clock or random number. Three inputs drive it:
//!
//! | Input | Method | What comes of it |
//! | --- | --- | --- |
//! | a packet that came by DERP for the relay's node key | [`PeerRelay::request`] | a [`Response`] to send back by DERP |
//! | a control packet on the relay's UDP port | [`PeerRelay::handshake`] | a [`Datagram`] to send, or an end that is bound |
//! | time, after both data planes' counts went into the flow table | [`PeerRelay::review`] | endpoints that [have ended](Ended) |
//!
//! Each gets the flow table and changes it; whoever keeps the table applies what follows from that.
//!
//! What differs from the reference, which has no limits at all: see [`Limits`]; VNIs cannot be guessed; a challenge
//! is never older than four minutes, however quiet the relay is; a handshake that is over cannot be begun again by
//! a repeated bind message; both ends cannot be at one address; being asked again for an endpoint that is not in use
//! yet gives its clients the bind lifetime anew, as the response says.

mod advertise;
mod challenge;
mod cloud;
pub mod disco;
mod endpoint;
mod handshake;
mod lifetime;
mod limits;
mod random;
mod refusal;
mod request;
mod server;
mod status;
mod traffic;
mod view;

pub use self::{
    advertise::{Mapping, Ports, Reachable, advertised},
    challenge::ROTATION,
    cloud::{Cloud, CloudChoice},
    handshake::{Arrival, Bound, Datagram, Reaction},
    lifetime::{Ended, EndedBy},
    limits::Limits,
    random::SEED_LENGTH,
    refusal::{Counts, Input, Refusal},
    request::{Allowed, Permission, Response},
    server::{BIND_LIFETIME, PeerRelay, PeerRelayOptions, STEADY_STATE_LIFETIME},
    status::{ClientView, DerpView, LimitsView, PeerRelayView, SessionView, TailscaleSessions},
    traffic::Traffic,
    view::{EndpointState, EndpointView},
};

pub(crate) use self::cloud::{
    BIOS_VENDOR, CloudAddresses, MOST_METADATA_BYTES, MetadataAnswer, MetadataRequest,
    MetadataRound,
};

#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
pub(crate) mod tests;
