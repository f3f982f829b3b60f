//! What outlives the process: where peers are, and their sessions. None of it is secret.

use std::net::{IpAddr, SocketAddr};

use derp_common::flow::Side;
use serde::{Deserialize, Serialize};

use super::{
    Directory, Index, PublicKey, WireGuardRelay,
    sessions::{SESSION_LIFETIME, Session, SessionEnd, flow_of},
    whereabouts::{Place, Whereabouts},
};
use crate::flow::{FlowId, FlowSpec, FlowTable, check_address};

/// The format described here. Another build may add fields without another version: those that are not known are
/// skipped.
const VERSION: u32 = 1;
const SECOND: u64 = 1_000_000_000;

/// What a relay leaves to the next one.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Stored {
    version: u32,
    /// When it was written, in seconds since 1970.
    saved_at: u64,
    /// Peers whose addresses were known.
    peers: Vec<StoredPeer>,
    sessions: Vec<StoredSession>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct StoredPeer {
    #[serde(with = "key_text")]
    public_key: PublicKey,
    address: SocketAddr,
    /// The address of the relay's host that it uses.
    local: IpAddr,
    idle_seconds: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct StoredSession {
    initiator: StoredEnd,
    responder: StoredEnd,
    age_seconds: u64,
    idle_seconds: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct StoredEnd {
    #[serde(with = "key_text")]
    public_key: PublicKey,
    address: SocketAddr,
    local: IpAddr,
    /// Receiver index of what it sends, as a number.
    receiver_index: u32,
    /// Whether data has come from it.
    was_heard: bool,
}

/// Why a stored state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// It is not JSON of this form.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Another version has written it.
    #[error("version {0} of the format, where {VERSION} is known")]
    Version(u32),
}

impl Stored {
    /// Reads what was written by [`Stored::to_json`].
    ///
    /// # Errors
    ///
    /// When it was not.
    pub fn from_json(json: &[u8]) -> Result<Self, StoredError> {
        /// All that is known of another version's format.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        match serde_json::from_slice(json)? {
            Versioned { version: VERSION } => Ok(serde_json::from_slice(json)?),
            Versioned { version } => Err(StoredError::Version(version)),
        }
    }

    /// Writes it for the next process.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Returns the sessions that can still be alive and that the configuration still allows, at a time in seconds since
    /// 1970, for a relay on this port.
    #[must_use]
    pub fn sessions(&self, directory: &Directory, port: u16, unix: u64) -> Vec<Resumable> {
        let passed = unix.saturating_sub(self.saved_at);
        let resumable = |stored: &StoredSession| {
            let idle = stored.idle_seconds.saturating_add(passed);
            let age = stored.age_seconds.saturating_add(passed);
            if idle.saturating_mul(SECOND) > SESSION_LIFETIME {
                return None;
            }
            let initiator = end(&stored.initiator, directory)?;
            let responder = end(&stored.responder, directory)?;
            if !directory.are_partners(initiator.peer, responder.peer) {
                return None;
            }
            let ends = [initiator, responder];
            let [a, b] = ends.map(|end| directory.name(end.peer));
            Some(Resumable {
                spec: flow_of(super::response::session_name(a, b), &ends, port),
                ends,
                age,
                idle,
            })
        };
        self.sessions.iter().filter_map(resumable).collect()
    }
}

fn end(stored: &StoredEnd, directory: &Directory) -> Option<SessionEnd> {
    let peer = directory.find(&stored.public_key)?;
    let remote = usable(stored.address)?;
    directory.may_be_at(peer, remote).then_some(SessionEnd {
        peer,
        remote,
        local: stored.local,
        index: Index::from_le(stored.receiver_index),
        heard: u64::from(stored.was_heard),
        counted: (0, 0),
    })
}

/// Returns the address of an end, if it can be one.
fn usable(address: SocketAddr) -> Option<SocketAddr> {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    check_address(address).is_ok().then_some(address)
}

/// A session of the process before.
#[derive(Clone, Debug)]
pub struct Resumable {
    /// Its flow.
    pub spec: FlowSpec,
    ends: [SessionEnd; 2],
    /// In seconds.
    age: u64,
    idle: u64,
}

impl WireGuardRelay {
    /// Goes on where another process has ended, at a time in seconds since 1970. The flows of its sessions are in the
    /// flow table again: `sessions` are those of [`Stored::sessions`], with their flows.
    pub fn resume(
        &mut self,
        table: &mut FlowTable,
        stored: &Stored,
        sessions: impl IntoIterator<Item = (Resumable, FlowId)>,
        unix: u64,
        now: u64,
    ) {
        let passed = unix.saturating_sub(stored.saved_at);
        let before = |seconds: u64| now.saturating_sub(seconds.saturating_mul(SECOND));
        for peer in &stored.peers {
            let Some(id) = self.directory.find(&peer.public_key) else { continue };
            let Some(remote) = usable(peer.address) else { continue };
            let home = Place {
                remote,
                local: peer.local,
                heard: before(peer.idle_seconds.saturating_add(passed)),
            };
            let whereabouts = Whereabouts { home: Some(home), ..Whereabouts::default() };
            self.atlas.put(id, whereabouts, &self.directory);
        }
        for (resumable, flow) in sessions {
            let Resumable { mut ends, age, idle, .. } = resumable;
            let (made, mut heard) = (before(age), before(idle));
            if ends.iter().all(|end| end.heard == 0) {
                // Its data may only not have been looked at: it has as long to show itself as a new one.
                heard = now;
            }
            for (side, end) in Side::ALL.into_iter().zip(&mut ends) {
                table.set_local(flow, side, end.local);
                end.counted = table.counted(flow, side);
                if end.heard != 0 {
                    // Not 0, which is never, whatever the clock.
                    end.heard = heard.max(1);
                }
            }
            for SessionEnd { peer, remote, local, .. } in
                ends.into_iter().filter(|end| end.heard != 0)
            {
                if self.directory.peer(peer).is_some_and(|it| it.pinned.is_none()) {
                    self.atlas.name(peer, remote, local, heard);
                }
            }
            let is_attested = true;
            self.sessions.insert(Session { flow, ends, mac1: [0; 16], is_attested, made, heard });
        }
    }

    /// Returns what is to outlive the process, at a time in seconds since 1970.
    #[must_use]
    pub fn store(&self, unix: u64, now: u64) -> Stored {
        let ago = |then: u64| now.saturating_sub(then) / SECOND;
        let peers = self.directory.ids().filter_map(|id| {
            let peer = self.directory.peer(id).filter(|peer| peer.pinned.is_none())?;
            let home = self.atlas.of(id)?.home?;
            Some(StoredPeer {
                public_key: peer.key,
                address: home.remote,
                local: home.local,
                idle_seconds: ago(home.heard),
            })
        });
        let end = |end: &SessionEnd| {
            Some(StoredEnd {
                public_key: self.directory.peer(end.peer)?.key,
                address: end.remote,
                local: end.local,
                receiver_index: end.index.to_le(),
                was_heard: end.heard != 0,
            })
        };
        let sessions = self.sessions.iter().filter_map(|(_, session)| {
            let [initiator, responder] = &session.ends;
            Some(StoredSession {
                initiator: end(initiator)?,
                responder: end(responder)?,
                age_seconds: ago(session.made),
                idle_seconds: ago(session.heard),
            })
        });
        Stored {
            version: VERSION,
            saved_at: unix,
            peers: peers.collect(),
            sessions: sessions.collect(),
        }
    }
}

mod key_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::PublicKey;

    pub(super) fn serialize<S: Serializer>(key: &PublicKey, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(key)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PublicKey, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
