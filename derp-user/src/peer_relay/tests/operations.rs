//! What operators see, and what they can change.

use derp_common::flow::{LegStatistics, Side, table::statistics_index};

use super::support::*;
use crate::{
    flow::{FlowsView, Forwarder, Plane, Viewer},
    peer_relay::{EndedBy, EndpointState, PeerRelayView, disco::EndpointRecord},
    udp::Count,
};

impl World {
    /// Tells the flow table how many packets of 100 bytes a data plane has counted from each end so far.
    fn counted(&mut self, plane: Plane, endpoint: &EndpointRecord, packets: [u64; 2]) {
        let slot = endpoint.vni & (self.table.slots() - 1);
        for (side, packets) in Side::ALL.into_iter().zip(packets) {
            let last_seen = self.now;
            let counted = LegStatistics {
                packets,
                bytes: 100 * packets,
                last_seen,
                ..LegStatistics::default()
            };
            self.table.observe(plane, statistics_index(slot, side), &counted, self.now);
        }
    }

    fn status(&self) -> PeerRelayView {
        let viewer = Viewer { has_kernel: true, interface_name: &|_| None, now: self.now };
        let flows = FlowsView { counted_seconds: Some(1.0), flows: self.table.views(&viewer) };
        self.relay.status(flows, self.now)
    }

    fn forwarded(&self) -> [u64; 4] {
        self.relay.traffic().by_transport().map(|(_, _, count)| count.packets)
    }
}

/// The packets of both clients in the order of the endpoint's, which is that of their keys.
fn in_order(endpoint: &EndpointRecord, a: &Client, of_a: u64, of_b: u64) -> [u64; 2] {
    if endpoint.clients[0] == a.key() { [of_a, of_b] } else { [of_b, of_a] }
}

#[test]
fn what_both_data_planes_forward_is_counted_once_by_transport_and_outlives_the_endpoint() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let endpoint = world.open(&a, &b);
    let packets = |of_a, of_b| in_order(&endpoint, &a, of_a, of_b);
    world.counted(Plane::Kernel, &endpoint, packets(10, 5));
    world.counted(Plane::Userspace, &endpoint, packets(1, 2));
    for _ in 0..2 {
        world.relay.review(&mut world.table, world.now);
        assert_eq!(world.forwarded(), [18, 0, 0, 0], "the same count is not added again");
    }
    let kernel = Count { packets: 15, bytes: 1500 };
    assert_eq!(world.relay.traffic().by_plane(Plane::Kernel), kernel);
    assert_eq!(world.relay.traffic().by_plane(Plane::Userspace).packets, 3);

    // B moves to IPv6: what comes from it now is from there, what A sends goes there.
    world.bound_at(&b, &endpoint, 2, B_6, RELAY_6);
    world.counted(Plane::Userspace, &endpoint, packets(5, 9));
    world.relay.review(&mut world.table, world.now);
    assert_eq!(world.forwarded(), [18, 4, 7, 0]);

    // Tables that were made anew count from 0.
    world.counted(Plane::Kernel, &endpoint, packets(3, 0));
    world.relay.close(&mut world.table);
    assert_eq!(world.forwarded(), [18, 7, 7, 0], "what is not reviewed yet is counted at the end");
    let again = world.open(&a, &b);
    world.counted(Plane::Kernel, &again, packets(1, 1));
    world.relay.review(&mut world.table, world.now);
    assert_eq!(world.forwarded(), [20, 7, 7, 0]);
}

#[test]
fn endpoints_of_nodes_that_may_no_longer_ask_end() {
    let mut world = World::new();
    let (a, b, c) = (Client::new(1), Client::new(2), Client::new(3));
    let first = world.open(&a, &b);
    let second = world.endpoint(&b, &c);
    let ended = world.relay.retain(&mut world.table, |node| *node != a.node);
    assert_eq!(
        ended.iter().map(|it| (it.vni, it.by)).collect::<Vec<_>>(),
        [(first.vni, EndedBy::Permission)]
    );
    assert_eq!(world.live(), [second.vni]);
    // The other client may have another one.
    assert_ne!(world.endpoint(&b, &a).vni, first.vni);
    assert_eq!(world.relay.counts().ended_by(EndedBy::Permission), 1);
    world.relay.close(&mut world.table);
    assert_eq!(world.relay.counts().ended_by(EndedBy::Closing), 2);
    assert_eq!(world.relay.counts().ended, 3);
}

#[test]
fn the_status_shows_each_session_with_both_clients_and_their_own_ends() {
    let mut world = World::new();
    let (a, b, c) = (Client::new(1), Client::new(2), Client::new(3));
    let open = world.open(&a, &b);
    world.pass(7 * SECOND);
    let connecting = world.endpoint(&c, &a);
    world.bound(&c, &connecting, 1, "192.0.2.77:1");
    assert!(world.control(A, &b.bind(&connecting, 1)).is_err());
    world.counted(Plane::Kernel, &open, in_order(&open, &a, 3, 4));

    let status = world.status();
    assert_eq!(status.requests, [("allocated", 2), ("repeated", 0)].into());
    assert_eq!(status.handshakes["unknown_sender"], 1);
    assert_eq!(status.handshakes["bound"], 3);
    assert_eq!(status.limits.endpoints_per_node, 256);
    assert_eq!(status.disco_key, world.identity.to_string());
    assert_eq!(status.addresses, [RELAY, RELAY_6].map(address));
    let session = |vni| status.sessions.iter().find(|session| session.vni == vni).unwrap();
    assert_eq!(status.sessions.len(), 2);

    let session_open = session(open.vni);
    assert_eq!((session_open.state, session_open.age_seconds), (EndpointState::Open, 7));
    assert_eq!(session_open.node, a.node.to_string());
    for (client, remote, packets) in [(&a, A, 3), (&b, B, 4)] {
        let shown = session_open.clients.iter().find(|it| it.disco == client.key().short());
        let end = &shown.unwrap().end;
        assert_eq!((end.remote, end.kernel.packets), (Some(address(remote)), packets));
        assert_eq!(end.local, Some(address(RELAY).ip()));
        assert_eq!(end.forwarder, Forwarder::Unresolved, "no way to it was found here");
    }
    let other = session(connecting.vni);
    assert_eq!(other.state, EndpointState::Connecting);
    let bound = other.clients.iter().find(|it| it.disco == c.key().short()).unwrap();
    assert_eq!(bound.end.remote, Some(address("192.0.2.77:1")));
    let unbound = other.clients.iter().find(|it| it.disco == a.key().short()).unwrap();
    assert_eq!((unbound.end.remote, unbound.end.last_seen_seconds), (None, None));
}
