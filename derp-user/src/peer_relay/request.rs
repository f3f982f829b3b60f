//! Requests for endpoints, which come by DERP.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::SocketAddr,
    sync::Arc,
};

use super::{
    Input, PeerRelay, Refusal,
    disco::{
        AllocateResponse, DiscoPrivate, DiscoPublic, Envelope, Message, NONCE_LENGTH, SharedKey,
        seal,
    },
};
use crate::{flow::FlowTable, proto::keys::NodePublic};

/// Most bytes of a request with its envelope. It has 148; what later versions may append is ignored.
const MAX_REQUEST: usize = 1024;
/// Clients whose shared keys are remembered, twice.
const REMEMBERED: usize = 2048;

/// Whether a node may ask for endpoints.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Permission {
    /// It may not, for this reason.
    Denied(Refusal),
    /// It may, with any disco key: nobody says which one is its own.
    AnyKey,
    /// It may, with this disco key.
    Key(DiscoPublic),
}

/// Who may ask for endpoints.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Allowed {
    /// Whoever is let in by a DERP server that leads here: this one, the others of its mesh, and those that the
    /// relay's node is a client of.
    Any,
    /// Whoever this DERP server itself has let in.
    Admitted,
    /// These nodes.
    Nodes(BTreeSet<NodePublic>),
}

impl Allowed {
    /// Returns what a node may do; `is_admitted` tells whether it is connected to this DERP server.
    #[must_use]
    pub fn permission(&self, node: &NodePublic, is_admitted: bool) -> Permission {
        let is_allowed = match self {
            Self::Any => true,
            Self::Admitted => is_admitted,
            Self::Nodes(nodes) => nodes.contains(node),
        };
        if is_allowed { Permission::AnyKey } else { Permission::Denied(Refusal::NotPermitted) }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("every node that a DERP server lets in"),
            Self::Admitted => f.write_str("every node that this DERP server has let in itself"),
            Self::Nodes(nodes) if nodes.len() == 1 => f.write_str("1 node"),
            Self::Nodes(nodes) => write!(f, "{} nodes", nodes.len()),
        }
    }
}

/// What is to be sent to a node by DERP.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Response {
    /// The node.
    pub to: NodePublic,
    /// A disco packet.
    pub packet: Vec<u8>,
}

impl PeerRelay {
    /// Takes a packet that came by DERP from the node `from`, which the DERP server has seen to own its key.
    ///
    /// Nothing is decrypted for a node without permission, or one that asks too often.
    ///
    /// # Errors
    ///
    /// Why there is no response.
    pub fn request(
        &mut self,
        table: &mut FlowTable,
        from: NodePublic,
        permission: Permission,
        packet: &[u8],
        now: u64,
    ) -> Result<Response, Refusal> {
        let result = self.answer_request(table, from, permission, packet, now);
        result.inspect_err(|refusal| self.counts.refuse(Input::Request, *refusal))
    }

    fn answer_request(
        &mut self,
        table: &mut FlowTable,
        from: NodePublic,
        permission: Permission,
        packet: &[u8],
        now: u64,
    ) -> Result<Response, Refusal> {
        let is_short = packet.len() <= MAX_REQUEST;
        let envelope = Envelope::parse(packet).filter(|_| is_short).ok_or(Refusal::Malformed)?;
        let sender = envelope.sender;
        if from.is_zero() {
            return Err(Refusal::NotPermitted);
        }
        match permission {
            Permission::Denied(reason) => return Err(reason),
            Permission::Key(key) if key != sender => return Err(Refusal::OtherKey),
            Permission::AnyKey | Permission::Key(_) => {}
        }
        if !self.allowances.take_request(&from, &self.limits, now) {
            return Err(Refusal::OverRate);
        }
        if sender.is_degenerate() {
            return Err(Refusal::UnusableClients);
        }
        let shared = self.correspondents.shared(&self.identity, &sender);
        let message = envelope.open(&shared).ok_or(Refusal::Seal)?;
        let message = match Message::decode(&message) {
            Ok(Message::AllocateRequest(request)) => {
                if !request.clients.contains(&sender) {
                    return Err(Refusal::NotListed);
                }
                let endpoint = self.allocate(table, from, request.clients, now)?;
                let generation = request.generation;
                Message::AllocateResponse(AllocateResponse { generation, endpoint })
            }
            Ok(Message::Ping { transaction }) => {
                self.counts.pinged += 1;
                Message::Pong { transaction, source: by_derp(self.home_region) }
            }
            Ok(_) | Err(_) => return Err(Refusal::OtherMessage),
        };
        let nonce: [u8; NONCE_LENGTH] = self.random.bytes();
        let mut packet = Vec::new();
        seal(&mut packet, &self.node, &shared, &nonce, &message);
        Ok(Response { to: from, packet })
    }
}

/// The address that stands for a way by DERP: 127.3.3.40, with the region's number as its port.
fn by_derp(region: u16) -> SocketAddr {
    SocketAddr::from(([127, 3, 3, 40], region))
}

/// The keys shared with those who have asked lately: a Diffie-Hellman costs more than all else.
///
/// When `recent` is full, it takes the place of `older`, which is forgotten.
#[derive(Default)]
pub(super) struct Correspondents {
    recent: HashMap<DiscoPublic, Arc<SharedKey>>,
    older: HashMap<DiscoPublic, Arc<SharedKey>>,
}

impl Correspondents {
    fn shared(&mut self, identity: &DiscoPrivate, client: &DiscoPublic) -> Arc<SharedKey> {
        if let Some(shared) = self.recent.get(client) {
            return Arc::clone(shared);
        }
        let shared = self.older.remove(client).unwrap_or_else(|| Arc::new(identity.shared(client)));
        if self.recent.len() >= REMEMBERED {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(*client, Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_keys_are_remembered_in_bounded_memory() {
        let identity = DiscoPrivate::from_random([1; 32]);
        let mut correspondents = Correspondents::default();
        let client = |number: usize| {
            let mut bytes = [9; 32];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            DiscoPublic::from_bytes(bytes)
        };
        for number in 0..2 * REMEMBERED + 1 {
            correspondents.shared(&identity, &client(number));
        }
        assert_eq!((correspondents.recent.len(), correspondents.older.len()), (1, REMEMBERED));
        assert!(!correspondents.older.contains_key(&client(0)));
        correspondents.shared(&identity, &client(REMEMBERED));
        assert!(correspondents.recent.contains_key(&client(REMEMBERED)), "it has asked again");
    }
}
