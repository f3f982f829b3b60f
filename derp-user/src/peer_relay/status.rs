//! The whole relay as operators see it: what it knows itself, with what the flow table and its surroundings know.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use serde::Serialize;

use super::{EndedBy, EndpointState, Input, Mapping, PeerRelay, Refusal};
use crate::flow::{EndView, FlowsView, Plane};

/// A peer relay and its sessions.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PeerRelayView {
    /// The node key of the relay's node, as text.
    pub node_key: String,
    /// Its disco key, as text.
    pub disco_key: String,
    /// The UDP port.
    pub port: u16,
    /// Who may ask for endpoints, in words.
    pub allow: String,
    /// Where clients are told that they can reach the relay, best first.
    pub addresses: Vec<SocketAddr>,
    /// What STUN servers see of the relay's sockets.
    pub mappings: Vec<Mapping>,
    /// What the metadata service of this host's cloud calls its addresses.
    pub cloud: Vec<IpAddr>,
    /// The other DERP servers that the relay's node is a client of.
    pub derp: Vec<DerpView>,
    /// What anybody may use.
    pub limits: LimitsView,
    /// What has come of requests since the start.
    pub requests: BTreeMap<&'static str, u64>,
    /// What has come of handshake messages.
    pub handshakes: BTreeMap<&'static str, u64>,
    /// Endpoints that have ended, by why.
    pub ended: BTreeMap<&'static str, u64>,
    /// Packets and bytes forwarded, by data plane.
    pub forwarded: BTreeMap<&'static str, (u64, u64)>,
    /// How long ago what the data planes have counted was read, in seconds; `None` if never.
    pub counted_seconds: Option<f64>,
    /// The endpoints, by VNI.
    pub sessions: Vec<SessionView>,
}

/// A DERP server that the relay's node is a client of.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct DerpView {
    /// As the operator wrote it.
    pub server: String,
    /// Whether there is a connection.
    pub is_connected: bool,
    /// For how many seconds there is one, or none.
    pub seconds: u64,
    /// Why the last attempt failed or the last connection ended, if one has.
    pub fault: Option<String>,
}

/// What anybody may use.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct LimitsView {
    /// Endpoints at one time.
    pub endpoints: usize,
    /// Endpoints at one time that one node has asked for.
    pub endpoints_per_node: usize,
}

/// An endpoint and what goes through it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct SessionView {
    /// Its VNI.
    pub vni: u32,
    /// Whether it is in use.
    pub state: EndpointState,
    /// The node key, as text, of who has asked for it first.
    pub node: String,
    /// How long ago that was, in seconds.
    pub age_seconds: u64,
    /// Its clients, in the order of their disco keys.
    pub clients: [ClientView; 2],
}

/// A client of an endpoint.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ClientView {
    /// Its disco key, short.
    pub disco: String,
    /// Its end of the flow.
    #[serde(flatten)]
    pub end: EndView,
}

impl PeerRelay {
    /// Returns everything that the relay and the flow table know; `flows` are all flows, with those of the relay.
    #[must_use]
    pub fn status(&self, flows: FlowsView, now: u64) -> PeerRelayView {
        let counts = self.counts();
        let refused = |input| {
            let refused = Refusal::ALL.map(|it| (it.label(), counts.refused_of(input, it)));
            refused.into_iter().filter(|(_, count)| *count != 0)
        };
        let mut requests: BTreeMap<_, _> = refused(Input::Request).collect();
        requests.extend([("allocated", counts.allocated), ("repeated", counts.repeated)]);
        let mut handshakes: BTreeMap<_, _> = refused(Input::Handshake).collect();
        handshakes.extend([("challenged", counts.challenged), ("bound", counts.bound)]);
        let ended = EndedBy::ALL.map(|by| (by.label(), counts.ended_by(by)));
        let forwarded = Plane::ALL.map(|plane| {
            let count = self.traffic().by_plane(plane);
            (plane.label(), (count.packets, count.bytes))
        });
        PeerRelayView {
            disco_key: self.identity().to_string(),
            addresses: self.addresses().to_vec(),
            limits: LimitsView {
                endpoints: self.limits().endpoints,
                endpoints_per_node: self.limits().endpoints_per_node,
            },
            requests,
            handshakes,
            ended: ended.into(),
            forwarded: forwarded.into(),
            counted_seconds: flows.counted_seconds,
            sessions: self.sessions(flows, now),
            ..PeerRelayView::default()
        }
    }

    fn sessions(&self, flows: FlowsView, now: u64) -> Vec<SessionView> {
        let of_flow = flows.flows.into_iter().filter_map(|flow| Some((flow.vni?, flow.ends)));
        let mut ends: HashMap<u32, [EndView; 2]> = of_flow.collect();
        let session = |view: super::EndpointView| {
            let [first, second] = ends.remove(&view.vni)?;
            let [first_key, second_key] = view.clients;
            Some(SessionView {
                vni: view.vni,
                state: view.state,
                node: view.node.to_string(),
                age_seconds: now.saturating_sub(view.allocated_at) / 1_000_000_000,
                clients: [
                    ClientView { disco: first_key, end: first },
                    ClientView { disco: second_key, end: second },
                ],
            })
        };
        self.views().filter_map(session).collect()
    }
}

/// Sessions as the local API of a tailscaled that is a peer relay has them: `tailscale debug peer-relay-sessions`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TailscaleSessions {
    /// `null` where there is no relay.
    #[serde(rename = "UDPPort")]
    udp_port: Option<u16>,
    sessions: Vec<TailscaleSession>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct TailscaleSession {
    #[serde(rename = "VNI")]
    vni: u32,
    client1: TailscaleClient,
    client2: TailscaleClient,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct TailscaleClient {
    /// Empty while the client has not bound its end.
    endpoint: String,
    short_disco: String,
    packets_tx: u64,
    bytes_tx: u64,
}

impl From<&PeerRelayView> for TailscaleSessions {
    fn from(view: &PeerRelayView) -> Self {
        let client = |client: &ClientView| {
            let (kernel, userspace) = (&client.end.kernel, &client.end.userspace);
            TailscaleClient {
                endpoint: client.end.remote.map(|remote| remote.to_string()).unwrap_or_default(),
                short_disco: client.disco.clone(),
                packets_tx: kernel.packets.saturating_add(userspace.packets),
                bytes_tx: kernel.bytes.saturating_add(userspace.bytes),
            }
        };
        let session = |session: &SessionView| {
            let [first, second] = &session.clients;
            let (client1, client2) = (client(first), client(second));
            TailscaleSession { vni: session.vni, client1, client2 }
        };
        let sessions = view.sessions.iter().map(session).collect();
        Self { udp_port: Some(view.port).filter(|port| *port != 0), sessions }
    }
}
