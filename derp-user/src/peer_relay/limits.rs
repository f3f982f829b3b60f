//! How much of the relay anybody may use.

use std::hash::{BuildHasher as _, RandomState};

use derp_common::Rate;

use crate::{proto::keys::NodePublic, udp::SourceBuckets};

/// What anybody may use; the reference has no such limits. Rates are per second, with the burst allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Endpoints at one time.
    pub endpoints: usize,
    /// Endpoints at one time that one node has asked for.
    pub endpoints_per_node: usize,
    /// Requests of one node that are looked at.
    pub requests_per_node: Rate,
    /// Requests of everybody that are looked at.
    pub requests: Rate,
    /// Handshake messages from one address (an IPv4 address, or the /64 of an IPv6 address) that are opened.
    pub handshakes_per_source: Rate,
    /// Handshake messages of one client of one endpoint that are opened.
    pub handshakes_per_client: Rate,
}

impl Default for Limits {
    /// A client may come back with 256 peers at once. The handshake of one endpoint takes a message to each
    /// address of the relay, and an answer.
    fn default() -> Self {
        Self {
            endpoints: 16_384,
            endpoints_per_node: 256,
            requests_per_node: Rate::per_second(20, 256),
            requests: Rate::per_second(1000, 2000),
            handshakes_per_source: Rate::per_second(100, 1000),
            handshakes_per_client: Rate::per_second(10, 40),
        }
    }
}

/// Who has used up what.
#[derive(Default)]
pub(super) struct Allowances {
    nodes: SourceBuckets,
    seed: RandomState,
    all_requests: u64,
    sources: SourceBuckets,
}

impl Allowances {
    /// Takes a request of a node.
    pub(super) fn take_request(&mut self, node: &NodePublic, limits: &Limits, now: u64) -> bool {
        // Nobody can choose a key that shares another's allowance.
        let name = self.seed.hash_one(node);
        if !self.nodes.take_named(name, limits.requests_per_node, now) {
            return false;
        }
        take(&mut self.all_requests, limits.requests, now)
    }

    /// Takes a handshake message from a source, for the client whose bucket is `client`.
    pub(super) fn take_handshake(
        &mut self,
        source: std::net::IpAddr,
        client: &mut u64,
        limits: &Limits,
        now: u64,
    ) -> bool {
        self.sources.take(source, limits.handshakes_per_source, now)
            && take(client, limits.handshakes_per_client, now)
    }
}

fn take(bucket: &mut u64, rate: Rate, now: u64) -> bool {
    match rate.take(*bucket, now) {
        Some(full_at) => {
            *bucket = full_at;
            true
        }
        None => false,
    }
}
