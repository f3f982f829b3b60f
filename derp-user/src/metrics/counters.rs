//! Counters of the packet path: written by one worker without contention, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};

use super::histogram::{
    FRAMES_PER_WRITE_BOUNDS, Histogram, HistogramTotals, MESH_BATCH_BOUNDS, MESH_LOOP_BOUNDS,
    QueueTime, Waits,
};
use crate::relay::packet::{DropReason, PacketKind};

/// A number that only grows, with a single writer.
///
/// The writer does a plain load and store instead of an atomic addition, which would cost a locked
/// instruction per packet. Readers on other threads see some recent value.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`. Only the thread that owns the counter may call this: a second writer would lose counts.
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Adds one, under the same rule as [`Counter::add`].
    pub fn increment(&self) {
        self.add(1);
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

const KINDS: usize = PacketKind::ALL.len();
const REASONS: usize = DropReason::ALL.len();

/// Declares the counters once, for the worker's atomics and for the plain sums.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Everything one worker counts. Aligned so that no two workers share a cache line (pairs of 64 bytes,
        /// because the processor fetches them together).
        #[derive(Debug)]
        #[repr(align(128))]
        pub struct WorkerCounters {
            $($(#[$doc])* pub $name: Counter,)*
            /// Histogram of frames per write to a client.
            pub buffered_write_frames: Histogram<{ FRAMES_PER_WRITE_BOUNDS.len() }>,
            /// Histogram of news per batch to a watcher.
            pub mesh_update_batch_size: Histogram<{ MESH_BATCH_BOUNDS.len() }>,
            /// Histogram of batches that a watcher got in one go.
            pub mesh_update_loop_count: Histogram<{ MESH_LOOP_BOUNDS.len() }>,
            queue_time: QueueTime,
            packets_received_kind: [Counter; KINDS],
            packets_dropped: [[Counter; KINDS]; REASONS],
            bytes_dropped: [[Counter; KINDS]; REASONS],
        }

        /// The sum of all workers' counters at one moment.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct Totals {
            $($(#[$doc])* pub $name: u64,)*
            /// Histogram of frames per write to a client.
            pub buffered_write_frames: HistogramTotals<{ FRAMES_PER_WRITE_BOUNDS.len() }>,
            /// Histogram of news per batch to a watcher.
            pub mesh_update_batch_size: HistogramTotals<{ MESH_BATCH_BOUNDS.len() }>,
            /// Histogram of batches that a watcher got in one go.
            pub mesh_update_loop_count: HistogramTotals<{ MESH_LOOP_BOUNDS.len() }>,
            /// Milliseconds that packets wait for their client's socket: the moving average of each worker that has
            /// sent any, and of these the mean.
            pub average_queue_milliseconds: f64,
            packets_received_kind: [u64; KINDS],
            packets_dropped: [[u64; KINDS]; REASONS],
            bytes_dropped: [[u64; KINDS]; REASONS],
        }

        impl Default for WorkerCounters {
            fn default() -> Self {
                Self {
                    $($name: Counter::default(),)*
                    buffered_write_frames: Histogram::new(&FRAMES_PER_WRITE_BOUNDS),
                    mesh_update_batch_size: Histogram::new(&MESH_BATCH_BOUNDS),
                    mesh_update_loop_count: Histogram::new(&MESH_LOOP_BOUNDS),
                    queue_time: QueueTime::default(),
                    packets_received_kind: Default::default(),
                    packets_dropped: Default::default(),
                    bytes_dropped: Default::default(),
                }
            }
        }

        impl Default for Totals {
            fn default() -> Self {
                Self {
                    $($name: 0,)*
                    buffered_write_frames: HistogramTotals::new(&FRAMES_PER_WRITE_BOUNDS),
                    mesh_update_batch_size: HistogramTotals::new(&MESH_BATCH_BOUNDS),
                    mesh_update_loop_count: HistogramTotals::new(&MESH_LOOP_BOUNDS),
                    average_queue_milliseconds: 0.0,
                    packets_received_kind: Default::default(),
                    packets_dropped: Default::default(),
                    bytes_dropped: Default::default(),
                }
            }
        }

        impl Totals {
            fn add_scalars(&mut self, worker: &WorkerCounters) {
                $(self.$name = self.$name.wrapping_add(worker.$name.value());)*
            }
        }
    };
}

counters! {
    /// Connections that began the DERP protocol, before login.
    accepts,
    /// Those of them over WebSocket.
    websocket_accepts,
    /// TCP connections accepted on the TLS listener.
    tls_accepted,
    /// TCP connections closed at once because the accept limit was reached.
    tls_rejected,
    /// TCP connections closed at once because there were as many as there may be.
    connections_refused,
    /// Connections closed before they logged in, to make room for others.
    arrivals_evicted,
    /// Times that no connection could be accepted, for instance for lack of descriptors.
    accept_failures,
    /// TLS handshakes that failed.
    tls_handshake_failures,
    /// SendPacket frames from clients.
    packets_received,
    /// Packet bytes in SendPacket frames from clients.
    bytes_received,
    /// RecvPacket frames written to clients.
    packets_sent,
    /// Packet bytes in RecvPacket frames written to clients.
    bytes_sent,
    /// Ping frames from clients.
    got_ping,
    /// Pong frames written to clients.
    sent_pong,
    /// PeerGone frames written with reason "disconnected".
    peer_gone_disconnected_frames,
    /// PeerGone frames written with reason "not here".
    peer_gone_not_here_frames,
    /// Packets that mesh peers forwarded to this server.
    packets_forwarded_in,
    /// Packets that this server forwarded to mesh peers.
    packets_forwarded_out,
    /// Those of them that were dropped because the link was full or had ended.
    forwards_dropped,
    /// Links to mesh peers that came to stand.
    mesh_connects,
    /// Attempts to connect to a mesh peer that failed, and links that broke.
    mesh_failures,
    /// Keys that mesh peers announced beyond what one may.
    mesh_keys_refused,
    /// Connections closed because a write took longer than allowed.
    write_timeouts,
    /// Frames that had to wait for the rate limit of their client.
    rate_limit_waits,
    /// Frames of unknown type, read and dropped.
    unknown_frames,
    /// Clients that began to call this server their home.
    home_moves_in,
    /// Clients that stopped calling this server their home.
    home_moves_out,
}

impl WorkerCounters {
    /// Counts a SendPacket frame with `bytes` bytes of packet.
    pub fn packet_received(&self, kind: PacketKind, bytes: u64) {
        self.packets_received.increment();
        self.bytes_received.add(bytes);
        self.packets_received_kind[kind.index()].increment();
    }

    /// Counts packets that have waited for a client's socket: until they were sent, and counted as that, or until they
    /// had to make room for others.
    pub fn packets_waited(&self, waits: &Waits, were_sent: bool) {
        if !waits.is_empty() {
            self.queue_time.record(waits, were_sent, self.packets_sent.value());
        }
    }

    /// Counts one dropped packet of `bytes` bytes.
    pub fn packet_dropped(&self, reason: DropReason, kind: PacketKind, bytes: u64) {
        self.packets_dropped[reason.index()][kind.index()].increment();
        self.bytes_dropped[reason.index()][kind.index()].add(bytes);
    }
}

impl Totals {
    /// Adds up the counters of all workers.
    pub fn sum<'a>(workers: impl IntoIterator<Item = &'a WorkerCounters>) -> Self {
        let mut totals = Self::default();
        let mut senders = 0;
        for worker in workers {
            totals.add_scalars(worker);
            totals.buffered_write_frames.add(&worker.buffered_write_frames);
            totals.mesh_update_batch_size.add(&worker.mesh_update_batch_size);
            totals.mesh_update_loop_count.add(&worker.mesh_update_loop_count);
            let sent = worker.packets_sent.value();
            if sent > 0 {
                senders += 1;
                totals.average_queue_milliseconds += worker.queue_time.average(sent);
            }
            add_each(&mut totals.packets_received_kind, &worker.packets_received_kind);
            for reason in 0..REASONS {
                add_each(&mut totals.packets_dropped[reason], &worker.packets_dropped[reason]);
                add_each(&mut totals.bytes_dropped[reason], &worker.bytes_dropped[reason]);
            }
        }
        totals.average_queue_milliseconds /= f64::from(senders.max(1));
        totals
    }

    /// SendPacket frames of `kind`.
    pub fn packets_received_kind(&self, kind: PacketKind) -> u64 {
        self.packets_received_kind[kind.index()]
    }

    /// Packets of `kind` dropped for `reason`.
    pub fn packets_dropped(&self, reason: DropReason, kind: PacketKind) -> u64 {
        self.packets_dropped[reason.index()][kind.index()]
    }

    /// Packet bytes of `kind` dropped for `reason`.
    pub fn bytes_dropped(&self, reason: DropReason, kind: PacketKind) -> u64 {
        self.bytes_dropped[reason.index()][kind.index()]
    }
}

fn add_each(totals: &mut [u64], counters: &[Counter]) {
    for (total, counter) in totals.iter_mut().zip(counters) {
        *total += counter.value();
    }
}

/// Values that rise and fall, read from the relay's tables when somebody asks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Gauges {
    /// Registered DERP connections.
    pub current_connections: u64,
    /// TCP connections on the main listener that have not logged in.
    pub arriving_connections: u64,
    /// Connections whose client calls this server its home.
    pub current_home_connections: u64,
    /// Connections whose client would rather use another node of the region.
    pub current_notideal_connections: u64,
    /// Keys connected here.
    pub clients_local: u64,
    /// Keys known only through mesh peers.
    pub clients_remote: u64,
    /// Keys with two or more connections.
    pub current_dup_client_keys: u64,
    /// Connections of those keys.
    pub current_dup_client_conns: u64,
    /// Connections that ever joined another one of the same key. Only grows.
    pub total_dup_client_conns: u64,
    /// Connections that asked to be told who comes and goes.
    pub watchers: u64,
    /// Threads that relay now.
    pub active_workers: u64,
    /// Links to mesh peers that stand.
    pub mesh_links: u64,
    /// Times that a second mesh peer with the same key was found. Only grows.
    pub multi_forwarders_created: u64,
    /// Times that of several mesh peers with the same key one was left. Only grows.
    pub multi_forwarders_deleted: u64,
    /// Times that a mesh peer took back a key that another one, or this server, has. Only grows.
    pub forwarders_deleted_other: u64,
}

impl Gauges {
    /// Keys known to this server, local and remote.
    pub fn clients_total(&self) -> u64 {
        self.clients_local + self.clients_remote
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_every_field_of_every_worker() {
        let workers = [WorkerCounters::default(), WorkerCounters::default()];
        workers[0].packet_received(PacketKind::Disco, 62);
        workers[1].packet_received(PacketKind::Other, 1000);
        workers[1].packets_sent.increment();
        workers[1].bytes_sent.add(1000);
        workers[0].packet_dropped(DropReason::QueueHead, PacketKind::Disco, 62);
        workers[1].packet_dropped(DropReason::QueueHead, PacketKind::Disco, 100);
        workers[1].home_moves_out.add(3);

        let totals = Totals::sum(&workers);
        assert_eq!(totals.packets_received, 2);
        assert_eq!(totals.bytes_received, 1062);
        assert_eq!(totals.packets_received_kind(PacketKind::Disco), 1);
        assert_eq!(totals.packets_sent, 1);
        assert_eq!(totals.bytes_sent, 1000);
        assert_eq!(totals.packets_dropped(DropReason::QueueHead, PacketKind::Disco), 2);
        assert_eq!(totals.bytes_dropped(DropReason::QueueHead, PacketKind::Disco), 162);
        assert_eq!(totals.packets_dropped(DropReason::QueueHead, PacketKind::Other), 0);
        assert_eq!(totals.home_moves_out, 3);
    }

    #[test]
    fn the_average_wait_is_that_of_the_workers_that_send() {
        let workers = [(); 3].map(|()| WorkerCounters::default());
        let mut waits = Waits::default();
        waits.add(std::time::Duration::from_millis(100));
        workers[0].packets_sent.increment();
        workers[0].packets_waited(&waits, true);
        workers[1].packets_sent.increment();
        assert_eq!(Totals::sum(&workers).average_queue_milliseconds, 5.0);
    }

    #[test]
    fn labels_follow_the_variants() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), index);
        }
        for (index, kind) in PacketKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), index);
        }
    }
}
