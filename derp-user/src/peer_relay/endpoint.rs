//! One endpoint: two clients that may meet under a VNI.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use derp_common::flow::Side;

use super::disco::{DiscoPrivate, DiscoPublic, SharedKey};
use crate::{flow::FlowId, proto::keys::NodePublic, udp::Count};

/// An endpoint that was given to two clients.
pub(super) struct Endpoint {
    /// What forwards for it. Side A is the client with the smaller key.
    pub(super) flow: FlowId,
    /// Tells it from endpoints of other times that had the same clients or VNI.
    pub(super) lamport_id: u64,
    /// The node that asked for it first.
    pub(super) owner: NodePublic,
    /// When it was given first.
    pub(super) allocated_at: u64,
    /// When it was last asked for.
    pub(super) asked_at: u64,
    clients: [Client; 2],
}

/// One client's end.
pub(super) struct Client {
    pub(super) key: DiscoPublic,
    /// Between this client and the server; made with its first message.
    shared: Option<SharedKey>,
    /// The generation of the handshake that was begun last, 0 when it is over.
    pub(super) in_progress: u32,
    /// The generation of the last handshake that came to its end, 0 when none did.
    pub(super) completed: u32,
    /// Where it is bound.
    pub(super) remote: Option<SocketAddr>,
    /// The address of this host that it has bound to; unspecified if that is not known.
    pub(super) local: IpAddr,
    /// When it was bound last, at this address.
    pub(super) bound_at: u64,
    /// The bucket of its handshake messages.
    pub(super) bucket: u64,
    /// How much of what has come from it is in the relay's [`Traffic`](super::Traffic), by data plane.
    pub(super) counted: [Count; 2],
}

impl Endpoint {
    pub(super) fn new(
        flow: FlowId,
        lamport_id: u64,
        owner: NodePublic,
        clients: [DiscoPublic; 2],
        now: u64,
    ) -> Self {
        let client = |key| Client {
            key,
            shared: None,
            in_progress: 0,
            completed: 0,
            remote: None,
            local: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            bound_at: 0,
            bucket: 0,
            counted: [Count::default(); 2],
        };
        let clients = clients.map(client);
        Self { flow, lamport_id, owner, allocated_at: now, asked_at: now, clients }
    }

    pub(super) const fn client(&self, side: Side) -> &Client {
        let [a, b] = &self.clients;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }

    pub(super) const fn client_mut(&mut self, side: Side) -> &mut Client {
        let [a, b] = &mut self.clients;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }

    /// Returns both clients' keys, in order.
    pub(super) fn keys(&self) -> [DiscoPublic; 2] {
        Side::ALL.map(|side| self.client(side).key)
    }

    /// Tells which client has this key.
    pub(super) fn side_of(&self, key: &DiscoPublic) -> Option<Side> {
        Side::ALL.into_iter().find(|side| self.client(*side).key == *key)
    }

    /// Tells whether both clients are bound. That never ends before the endpoint does.
    pub(super) fn is_open(&self) -> bool {
        self.clients.iter().all(|client| client.remote.is_some())
    }
}

impl Client {
    /// Returns what boxes between this client and the server, whose key `server` is, are sealed with.
    pub(super) fn shared(&mut self, server: &DiscoPrivate) -> &SharedKey {
        self.shared.get_or_insert_with(|| server.shared(&self.key))
    }
}
