//! A client of the server that is part of this process: it has a key and no socket.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    sync::Arc,
};

use derp_common::Rate;
use parking_lot::Mutex;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{
    Statistics,
    connection::{Connection, WriteScratch},
    hub::Hub,
};
use crate::{
    metrics::WorkerCounters,
    proto::{
        frame::{self, FrameType, HEADER_LENGTH, MAX_PACKET_LENGTH, header},
        keys::{KEY_LENGTH, NodePublic},
        message::ClientTraits,
    },
    relay::{
        Presence,
        packet::{DropReason, PacketKind},
    },
    udp::{SourceBuckets, now},
};

/// A packet for the local client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LocalPacket {
    /// Who sent it.
    pub from: NodePublic,
    /// What was sent.
    pub packet: Box<[u8]>,
}

/// How many packets of one sender are taken: what one sends without pause must leave room for others.
const PER_SENDER: Rate = Rate::per_second(100, 512);

/// Where the packets of a connection without a socket go.
pub(super) struct LocalInbox {
    packets: Sender<LocalPacket>,
    senders: Mutex<SourceBuckets>,
    /// Makes numbers of keys, of which nobody can find two with one number.
    seed: RandomState,
}

impl LocalInbox {
    fn new(packets: Sender<LocalPacket>) -> Self {
        let senders = Mutex::new(SourceBuckets::new());
        Self { packets, senders, seed: RandomState::new() }
    }

    /// Takes a RecvPacket frame, unless as many wait as may, or the sender has used up its allowance. Nobody is waited
    /// for.
    pub(super) fn take(&self, frame: &[u8]) -> bool {
        let Some((from, packet)) =
            frame.get(HEADER_LENGTH..).and_then(<[u8]>::split_first_chunk::<KEY_LENGTH>)
        else {
            return false;
        };
        let from = NodePublic::from_bytes(*from);
        let sender = self.seed.hash_one(from);
        self.senders.lock().take_named(sender, PER_SENDER, now())
            && self.packets.try_send(LocalPacket { from, packet: packet.into() }).is_ok()
    }
}

/// A client of a server, until dropped. Others see it like any client, also in the mesh; but it is told nothing of
/// others that leave, and nobody can disconnect it. A server has at most one.
pub struct LocalClient {
    key: NodePublic,
    hub: Arc<Hub>,
    connection: Arc<Connection>,
    counters: Arc<WorkerCounters>,
    queue_depth: usize,
    scratch: WriteScratch,
    frame: Vec<u8>,
    forwarded: Vec<u8>,
    packets: Receiver<LocalPacket>,
}

impl LocalClient {
    /// Joins the server that has these statistics. `address` is what mesh peers are told of where the client is;
    /// `inbox` is how many packets may wait for it, and `queue_depth` how many of its own may for each client whose
    /// socket is full.
    #[must_use]
    pub fn join(
        statistics: &Statistics,
        key: NodePublic,
        address: SocketAddr,
        inbox: usize,
        queue_depth: usize,
    ) -> Self {
        let hub = Arc::clone(&statistics.hub);
        let counters = Arc::clone(&statistics.local_counters);
        let (sender, packets) = channel(inbox.max(1));
        let connection =
            Arc::new(Connection::local(hub.next_id(), key, address, LocalInbox::new(sender)));
        hub.register(
            &connection,
            Presence { key, address, traits: ClientTraits::default() },
            &counters,
        );
        Self {
            key,
            hub,
            connection,
            counters,
            queue_depth,
            scratch: WriteScratch::default(),
            frame: Vec::new(),
            forwarded: Vec::new(),
            packets,
        }
    }

    /// Tells whether a client with this key is connected to this server itself, and not only to others of its mesh.
    #[must_use]
    pub fn is_neighbour(&self, key: &NodePublic) -> bool {
        self.hub.active_connection(key).is_some_and(|connection| connection.forwards().is_none())
    }

    /// Waits for the next packet. May be dropped while it waits.
    pub async fn receive(&mut self) -> LocalPacket {
        match self.packets.recv().await {
            Some(packet) => packet,
            // The connection, which this client holds, has the other end.
            None => std::future::pending().await,
        }
    }

    /// Sends a packet. Returns whether it is on its way, or waits for a full socket; it is not if nobody here or in
    /// the mesh has this key, or if it is longer than packets may be.
    pub fn send(&mut self, to: &NodePublic, packet: &[u8]) -> bool {
        let Some(length) = u32::try_from(KEY_LENGTH + packet.len())
            .ok()
            .filter(|_| packet.len() <= MAX_PACKET_LENGTH)
        else {
            return false;
        };
        let kind = PacketKind::of(packet);
        self.counters.packet_received(kind, packet.len() as u64);
        let Some(receiver) = self.hub.active_connection(to) else {
            let reason = DropReason::UnknownDestination;
            self.counters.packet_dropped(reason, kind, packet.len() as u64);
            return false;
        };
        self.frame.clear();
        self.frame.extend(header(FrameType::RecvPacket, length));
        self.frame.extend(self.key.as_bytes());
        self.frame.extend(packet);
        let frame = if let Some(tally) = receiver.forwards() {
            self.forwarded.clear();
            frame::recv_to_forward(&mut self.forwarded, &self.frame, to);
            self.counters.packets_forwarded_out.increment();
            tally.handed_over(1, packet.len() as u64);
            &self.forwarded
        } else {
            self.hub.first_packet(self.key, receiver.id);
            &self.frame
        };
        let whole = 0..frame.len();
        receiver.deliver(
            frame,
            std::slice::from_ref(&whole),
            &mut self.scratch,
            &self.counters,
            self.queue_depth,
        );
        true
    }
}

impl Drop for LocalClient {
    fn drop(&mut self) {
        self.hub.unregister(self.connection.id, &self.counters);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use crate::{
        client::new_key,
        proto::{client::read::Message, keys::NodePublic, message::GoneReason},
        server::{
            LocalClient, Statistics,
            tests::{PATIENCE, connector, packet, start},
        },
    };

    const KEY: NodePublic = NodePublic::from_bytes([9; 32]);

    fn join(statistics: &Statistics, inbox: usize) -> LocalClient {
        LocalClient::join(statistics, KEY, "127.0.0.1:1".parse().unwrap(), inbox, 32)
    }

    #[tokio::test]
    async fn a_local_client_talks_to_others_and_its_departure_is_told() {
        let (server, statistics, address) = start();
        let mut local = join(&statistics, 8);
        let key = new_key().unwrap();
        let (mut sender, mut receiver) = connector(address).connect(&key).await.unwrap().split();
        sender.send(&KEY, b"question").await.unwrap();
        let question = timeout(PATIENCE, local.receive()).await.expect("in time");
        assert_eq!((question.from, &*question.packet), (key.public(), &b"question"[..]));
        assert!(local.is_neighbour(&key.public()));
        assert!(!local.is_neighbour(&NodePublic::from_bytes([8; 32])));
        assert!(local.send(&key.public(), b"answer"));
        assert_eq!(packet(&mut receiver).await, b"answer");
        assert!(!local.send(&NodePublic::from_bytes([8; 32]), b"to nobody"));
        assert!(!local.send(&key.public(), &vec![0; (64 << 10) + 1]), "too long");
        statistics.disconnect(&[KEY]);
        assert_eq!(statistics.gauges().current_connections, 2);
        assert_eq!(statistics.check(), Ok(()));

        drop(local);
        loop {
            let message = timeout(PATIENCE, receiver.recv()).await.expect("in time").unwrap();
            if let Message::PeerGone { key, reason } = message {
                assert_eq!((key, reason), (KEY, Some(GoneReason::Disconnected)));
                break;
            }
        }
        assert_eq!(statistics.gauges().current_connections, 1);
        server.stop().unwrap();
    }

    #[tokio::test]
    async fn a_sender_without_pause_leaves_room_for_others() {
        let (server, statistics, address) = start();
        let mut local = join(&statistics, 4096);
        let (flooder, other) = (new_key().unwrap(), new_key().unwrap());
        let (mut to_relay, mut from_relay) =
            connector(address).connect(&flooder).await.unwrap().split();
        for _ in 0..2000 {
            to_relay.send(&KEY, b"flood").await.unwrap();
        }
        to_relay.send(&flooder.public(), b"done").await.unwrap();
        assert_eq!(packet(&mut from_relay).await, b"done");
        let (mut sender, _receiver) = connector(address).connect(&other).await.unwrap().split();
        sender.send(&KEY, b"question").await.unwrap();
        let mut taken = 0;
        while timeout(PATIENCE, local.receive()).await.expect("the question").from != other.public()
        {
            taken += 1;
        }
        assert!((512..1500).contains(&taken), "{taken} of the flood");
        server.stop().unwrap();
    }

    #[tokio::test]
    async fn what_a_local_client_does_not_take_is_dropped_and_counted() {
        let (server, statistics, address) = start();
        let mut local = join(&statistics, 2);
        let key = new_key().unwrap();
        let (mut sender, mut receiver) = connector(address).connect(&key).await.unwrap().split();
        for number in 0..5 {
            sender.send(&KEY, &[number]).await.unwrap();
        }
        // What comes back shows that all of it has been dealt with.
        sender.send(&key.public(), b"done").await.unwrap();
        assert_eq!(packet(&mut receiver).await, b"done");
        for number in 0..2 {
            assert_eq!(*local.receive().await.packet, [number]);
        }
        assert!(timeout(std::time::Duration::ZERO, local.receive()).await.is_err());
        // A packet is counted once it has been written, when its receiver may have it already.
        let counted = || {
            let totals = statistics.totals();
            (totals.packets_received, totals.packets_sent)
        };
        let patience = std::time::Duration::from_secs(60);
        let seen = async {
            while counted() != (6, 3) {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        assert!(timeout(patience, seen).await.is_ok(), "{:?}", counted());
        server.stop().unwrap();
    }
}
