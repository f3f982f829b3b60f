//! The relay's state, and which endpoints there are.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use super::{
    Counts, EndedBy, Limits, Refusal, Traffic,
    challenge::Secrets,
    disco::{DiscoPrivate, DiscoPublic, EndpointRecord, MAX_ADDRESSES},
    endpoint::Endpoint,
    limits::Allowances,
    random::{Random, SEED_LENGTH},
    request::Correspondents,
};
use crate::{
    flow::{EndSpec, FlowSource, FlowSpec, FlowTable, Kind, Lifetime, Local, Remote},
    proto::keys::NodePublic,
};

/// How long the clients of an endpoint have to bind, in nanoseconds; as in the reference.
pub const BIND_LIFETIME: u64 = 30_000_000_000;
/// How long a client of an endpoint in use may be silent, in nanoseconds; as in the reference.
pub const STEADY_STATE_LIFETIME: u64 = 300_000_000_000;

/// What a relay is made with.
#[derive(Clone)]
pub struct PeerRelayOptions {
    /// The disco key that clients know the relay's node by.
    pub identity: DiscoPrivate,
    /// Random bytes. All that is random follows from them, also the key of the bind handshake, which clients take
    /// for the name of this run of the server: there must be others in each run.
    pub seed: [u8; SEED_LENGTH],
    /// The UDP port that packets arrive at, in both families.
    pub port: u16,
    /// What anybody may use.
    pub limits: Limits,
}

/// A peer relay server.
pub struct PeerRelay {
    pub(super) identity: DiscoPrivate,
    /// The public half of `identity`.
    pub(super) node: DiscoPublic,
    /// The DERP region in which the node is reached; 0 if that is not known.
    pub(super) home_region: u16,
    /// The key of the bind handshake, with its public half.
    pub(super) key: DiscoPrivate,
    pub(super) public: DiscoPublic,
    pub(super) port: u16,
    pub(super) limits: Limits,
    addresses: Vec<SocketAddr>,
    /// By VNI.
    pub(super) endpoints: BTreeMap<u32, Endpoint>,
    /// The VNI of two clients, whose keys are in order.
    by_clients: HashMap<[DiscoPublic; 2], u32>,
    /// How many endpoints each node has that has any.
    per_node: HashMap<NodePublic, usize>,
    last_lamport_id: u64,
    pub(super) correspondents: Correspondents,
    pub(super) secrets: Secrets,
    pub(super) random: Random,
    pub(super) allowances: Allowances,
    pub(super) counts: Counts,
    pub(super) traffic: Traffic,
}

impl PeerRelay {
    /// Makes a relay without endpoints. It answers no request before it knows its addresses
    /// ([`PeerRelay::set_addresses`]).
    #[must_use]
    pub fn new(options: PeerRelayOptions) -> Self {
        let mut random = Random::new(&options.seed);
        let key = DiscoPrivate::from_random(random.bytes());
        Self {
            node: options.identity.public(),
            home_region: 0,
            identity: options.identity,
            public: key.public(),
            key,
            port: options.port,
            limits: options.limits,
            addresses: Vec::new(),
            endpoints: BTreeMap::new(),
            by_clients: HashMap::new(),
            per_node: HashMap::new(),
            last_lamport_id: 0,
            correspondents: Correspondents::default(),
            secrets: Secrets::default(),
            random,
            allowances: Allowances::default(),
            counts: Counts::default(),
            traffic: Traffic::default(),
        }
    }

    /// Returns the key of the bind handshake.
    #[must_use]
    pub const fn public_key(&self) -> DiscoPublic {
        self.public
    }

    /// Says where clients can reach the relay, best first; see [`advertised`](super::advertised). At most
    /// [`MAX_ADDRESSES`] are told them.
    pub fn set_addresses(&mut self, addresses: impl IntoIterator<Item = SocketAddr>) {
        self.addresses = addresses.into_iter().take(MAX_ADDRESSES).collect();
    }

    /// Returns where clients are told that they can reach the relay.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Returns what anybody may use.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns the disco key that clients know the relay's node by.
    #[must_use]
    pub const fn identity(&self) -> DiscoPublic {
        self.node
    }

    /// Says in which DERP region the relay's node is reached; pongs show it.
    pub const fn set_home_region(&mut self, region: u16) {
        self.home_region = region;
    }

    /// Has other limits from now on. What is beyond them already stays.
    pub const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Returns what has happened so far.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns the endpoint of two clients, which is a new one if they have none, on behalf of `node`. Whether it
    /// may ask has been decided.
    pub(super) fn allocate(
        &mut self,
        table: &mut FlowTable,
        node: NodePublic,
        mut clients: [DiscoPublic; 2],
        now: u64,
    ) -> Result<EndpointRecord, Refusal> {
        if self.addresses.is_empty() {
            return Err(Refusal::NoAddress);
        }
        clients.sort_unstable();
        // Clients that are to ping the relay's node itself ask for an endpoint with it.
        let is_own = |client: &DiscoPublic| [self.public, self.node].contains(client);
        let is_usable = |client: &DiscoPublic| !is_own(client) && !client.is_degenerate();
        if clients[0] == clients[1] || !clients.iter().all(is_usable) {
            return Err(Refusal::UnusableClients);
        }
        if let Some(&vni) = self.by_clients.get(&clients)
            && let Some(endpoint) = self.endpoints.get_mut(&vni)
            && table.vni(endpoint.flow) == Some(vni)
        {
            endpoint.asked_at = now;
            let lamport_id = endpoint.lamport_id;
            self.counts.repeated += 1;
            return Ok(self.record(clients, vni, lamport_id));
        }
        if self.endpoints.len() >= self.limits.endpoints {
            return Err(Refusal::Full);
        }
        if self.per_node.get(&node).copied().unwrap_or(0) >= self.limits.endpoints_per_node {
            return Err(Refusal::NodeFull);
        }
        let flow = table.add(self.flow(clients), now).map_err(|_| Refusal::Full)?;
        let vni = table.vni(flow).ok_or(Refusal::Full)?;
        // Whatever had the VNI or the clients before has lost its flow.
        self.forget(vni, EndedBy::Removal);
        if let Some(&vni) = self.by_clients.get(&clients) {
            self.forget(vni, EndedBy::Removal);
        }
        self.last_lamport_id += 1;
        let lamport_id = self.last_lamport_id;
        self.endpoints.insert(vni, Endpoint::new(flow, lamport_id, node, clients, now));
        self.by_clients.insert(clients, vni);
        *self.per_node.entry(node).or_default() += 1;
        self.counts.allocated += 1;
        Ok(self.record(clients, vni, lamport_id))
    }

    /// Removes an endpoint, whose flow is no longer.
    pub(super) fn forget(&mut self, vni: u32, by: EndedBy) {
        let Some(endpoint) = self.endpoints.remove(&vni) else { return };
        self.by_clients.remove(&endpoint.keys());
        if let Some(count) = self.per_node.get_mut(&endpoint.owner) {
            *count -= 1;
            if *count == 0 {
                self.per_node.remove(&endpoint.owner);
            }
        }
        self.counts.end(by);
    }

    fn record(&self, clients: [DiscoPublic; 2], vni: u32, lamport_id: u64) -> EndpointRecord {
        EndpointRecord {
            server: self.public,
            clients,
            lamport_id,
            vni,
            bind_lifetime: BIND_LIFETIME,
            steady_state_lifetime: STEADY_STATE_LIFETIME,
            addresses: self.addresses.clone(),
        }
    }

    /// Returns the flow of a new endpoint. Its ends are nowhere yet, and are never learnt from packets; when it
    /// ends is decided here.
    fn flow(&self, clients: [DiscoPublic; 2]) -> FlowSpec {
        let end = |client: &DiscoPublic| EndSpec {
            remote: Remote::Learn(Vec::new()),
            local: Local { ip: None, port: self.port },
            sender: client.prefix(),
        };
        FlowSpec {
            name: format!("{} {}", clients[0].short(), clients[1].short()),
            kind: Kind::Geneve { vni: None },
            ends: [end(&clients[0]), end(&clients[1])],
            rate: None,
            lifetime: Lifetime::Configured,
            source: FlowSource::PeerRelay,
        }
    }
}
