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
//! Clients that log in with the mesh key of a region may watch who is connected ([`Sender::watch`]), forward
//! packets on behalf of others ([`Sender::forward`]) and have clients disconnected
//! ([`Sender::close_peer`]); `examples/mesh_watcher.rs` is one.
//!
//! Both halves may be used at the same time and by different tasks; their futures may be dropped at
//! any time without harm to the stream. What was sent before is never taken back. A connection ends
//! with its first error; connecting again is the caller's business.

mod dial;
mod error;
mod session;
mod target;
mod trust;
pub(crate) mod wire;

pub use dial::{CONNECT_TIMEOUT, Connector, Greeting};
pub use error::ClientError;
pub use session::{Client, Receiver, SILENCE_TIMEOUT, Sender};
pub use target::Target;
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
