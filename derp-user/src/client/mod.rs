//! A DERP client: connects to a relay, logs in, and exchanges packets with other clients by their keys.
//!
//! ```no_run
//! use derp_user::{
//!     client::{Connector, Trust, new_key},
//!     proto::client::read::Message,
//! };
//!
//! # async fn example() -> Result<(), derp_user::client::ClientError> {
//! let connector = Connector::new("relay.example.com".parse()?, &Trust::System)?;
//! let (alice, bob) = (new_key()?, new_key()?);
//! let (mut to_relay, _) = connector.connect(&alice).await?.split();
//! let (_, mut from_relay) = connector.connect(&bob).await?.split();
//!
//! to_relay.send(&bob.public(), b"hello").await?;
//! loop {
//!     if let Message::Packet { source, packet } = from_relay.recv().await? {
//!         assert_eq!((source, packet), (alice.public(), &b"hello"[..]));
//!         break;
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Where to connect to
//!
//! - One relay, by its address: [`Connector::new`] with a [`Target`].
//! - A region of a [`map::DerpMap`]: [`RegionConnector`] tries its relays in the order of the map, and
//!   trusts the certificates that the map names.
//!
//! A host with several addresses is connected to by whichever answers first, IPv6 and IPv4 in turn. Over
//! TLS 1.3 the login goes out together with the request for DERP, since the relay's certificates tell its
//! key. [`Connector::with_proxies`] goes through an HTTP proxy, with name and password if it wants them.
//!
//! # To stay connected
//!
//! A connection ends with its first error. [`standing`] makes a client that connects again, with pauses
//! that grow:
//!
//! ```no_run
//! use derp_user::{
//!     client::{Event, Proxies, RegionConnector, Trust, map::DerpMap, new_key, standing},
//!     proto::client::read::Message,
//! };
//!
//! # async fn example(map: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let map: DerpMap = std::fs::read_to_string(map)?.parse()?;
//! let region = map.region("fra").ok_or("no such region")?;
//! let connector = RegionConnector::new(region, &Trust::System)?
//!     .with_proxies(&Proxies::from_environment())?;
//! let (to_relay, mut from_relay) = standing(connector, new_key()?);
//! loop {
//!     match from_relay.next().await {
//!         Event::Connected { host, .. } => println!("connected to {host}"),
//!         Event::Disconnected { error, pause } => println!("{error}; again in {pause:?}"),
//!         Event::Message(Message::Packet { source, packet }) => {
//!             to_relay.send(&source, packet).await?;
//!         }
//!         Event::Message(_) => {}
//!     }
//! }
//! # }
//! ```
//!
//! `examples/echo.rs` is this as a program.
//!
//! # As a mesh peer
//!
//! Clients that log in with the mesh key of a region may watch who is connected ([`Sender::watch`],
//! [`StandingReceiver::watching`]), forward packets on behalf of others ([`Sender::forward`]) and have
//! clients disconnected ([`Sender::close_peer`]); `examples/mesh_watcher.rs` watches.
//!
//! # What to know
//!
//! Both halves may be used at the same time and by different tasks; their futures may be dropped at
//! any time without harm to the stream. What was sent before is never taken back. A relay may ask its clients
//! to keep to a rate; what is beyond it is not sent ([`Sender::held_back`]).

mod backoff;
mod dial;
mod error;
pub mod map;
mod meta;
mod proxy;
mod race;
mod region;
mod session;
mod standing;
mod stream;
mod target;
mod trust;
pub(crate) mod wire;

pub(crate) use backoff::Backoff;
pub(crate) use dial::look_up;
pub use dial::{CONNECT_TIMEOUT, Connector, Greeting};
pub use error::ClientError;
pub use proxy::Proxies;
pub use region::RegionConnector;
pub use session::{Client, Receiver, SILENCE_TIMEOUT, Sender};
pub use standing::{Dialer, Event, StandingReceiver, StandingSender, standing};
pub use target::Target;
pub(crate) use trust::UsualJudge;
pub use trust::{Pin, Trust};

use crate::proto::keys::{KEY_LENGTH, NodePrivate};

/// A new random key for a client.
///
/// # Errors
///
/// If the system has no random numbers.
pub fn new_key() -> Result<NodePrivate, ClientError> {
    random::<KEY_LENGTH>().map(NodePrivate::from_random)
}

fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], ClientError> {
    let mut bytes = [0; LENGTH];
    getrandom::fill(&mut bytes).map_err(|error| ClientError::Random(error.to_string()))?;
    Ok(bytes)
}

/// A random number from 0 to 1, to spread waits with.
pub(crate) fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness waits are merely not spread.
    let _ = getrandom::fill(&mut bytes);
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}
