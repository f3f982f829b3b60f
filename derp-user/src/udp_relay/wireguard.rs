//! The WireGuard relay at work: handshakes go to the state machine, what it decides goes out, what it has learnt is
//! kept.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::{
    sync::mpsc::Receiver,
    time::{MissedTickBehavior, interval},
};

use super::Keeper;
use crate::{
    files,
    flow::{FlowSpec, socket_address},
    forward::{HandshakePacket, Outlet},
    quiet::Quiet,
    udp::now,
    wireguard::{
        Arrival, Directory, Event, Limits, Refusal, Relayed, Resumable, Stored, WireGuardRelay,
        WireGuardView,
    },
};

/// How often sessions are reviewed.
const REVIEW: Duration = Duration::from_secs(5);
/// How often what has changed is saved at most.
const SAVE: Duration = Duration::from_secs(1);
/// Longest state file that is read.
const LONGEST_STATE: u64 = 64 << 20;
/// How many handshakes are dealt with at once.
const BATCH: usize = 64;
/// Log lines about single handshakes and peers, a second, and at once.
const LINES: derp_common::Rate = derp_common::Rate::per_second(2, 50);

/// Why the state of the process before is not used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}: {reason}", path.display())]
pub struct StateError {
    path: PathBuf,
    reason: String,
}

/// What another process has left, as far as it can still be used.
#[derive(Clone, Debug)]
pub struct Remembered {
    stored: Stored,
    sessions: Vec<Resumable>,
}

impl Remembered {
    /// Reads a state file; `None` if there is none.
    ///
    /// # Errors
    ///
    /// When it cannot be read or understood.
    pub fn load(path: &Path, directory: &Directory, port: u16) -> Result<Option<Self>, StateError> {
        let fault = |reason: String| StateError { path: path.to_owned(), reason };
        let json = match files::read_at_most(path, LONGEST_STATE) {
            Ok(json) => json,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault(error.to_string())),
        };
        let stored = Stored::from_json(&json).map_err(|error| fault(error.to_string()))?;
        let sessions = stored.sessions(directory, port, unix_time());
        Ok(Some(Self { stored, sessions }))
    }

    /// Returns the flows of the sessions, which are to be in the flow table again.
    #[must_use]
    pub fn flows(&self) -> Vec<FlowSpec> {
        self.sessions.iter().map(|it| it.spec.clone()).collect()
    }
}

/// The relay, which the service runs and others look at.
#[derive(Clone)]
pub struct WireGuardHandle {
    relay: Arc<Mutex<WireGuardRelay>>,
    keeper: Keeper,
    state_file: Option<Arc<StateFile>>,
}

/// Where the state is kept.
#[derive(Default)]
struct StateFile {
    path: PathBuf,
    /// Whether it could last not be written, which is said once.
    has_failed: AtomicBool,
}

impl WireGuardHandle {
    /// Makes the relay, and has it go on where another process has ended, with the flows that the keeper was given of
    /// it ([`KeeperOptions::resumed`](super::KeeperOptions)).
    #[must_use]
    pub fn new(
        directory: Directory,
        port: u16,
        keeper: Keeper,
        state_file: Option<PathBuf>,
        remembered: Option<Remembered>,
    ) -> Self {
        let mut relay = WireGuardRelay::new(directory, port, Limits::default());
        if let Some(Remembered { stored, sessions }) = remembered {
            let sessions = sessions.into_iter().zip(keeper.take_resumed());
            let sessions: Vec<_> = sessions.filter_map(|(it, flow)| Some((it, flow?))).collect();
            tracing::info!(sessions = sessions.len(), "WireGuard sessions go on");
            keeper.update(|table| relay.resume(table, &stored, sessions, unix_time(), now()));
        }
        let state_file =
            state_file.map(|path| Arc::new(StateFile { path, ..StateFile::default() }));
        Self { relay: Arc::new(Mutex::new(relay)), keeper, state_file }
    }

    /// Returns the relay as it is now.
    #[must_use]
    pub fn view(&self) -> WireGuardView {
        self.relay.lock().view(now())
    }

    /// Has other peers and pairs from now on; sessions of pairs that remain go on.
    pub fn reload(&self, directory: Directory) {
        let mut relay = self.relay.lock();
        self.keeper.update(|table| relay.reload(table, directory));
    }

    /// Saves what is to outlive the process, if anything has changed or `always`. May block for a disk's time.
    pub fn save(&self, always: bool) {
        let Some(file) = &self.state_file else { return };
        let path = file.path.display();
        let stored = {
            let mut relay = self.relay.lock();
            let has_changed = relay.take_changed();
            (has_changed || always).then(|| relay.store(unix_time(), now()))
        };
        let Some(stored) = stored else { return };
        match files::replace(&file.path, stored.to_json().as_bytes(), 0o600) {
            Ok(()) => {
                if file.has_failed.swap(false, Ordering::Relaxed) {
                    tracing::info!("{path} is saved again");
                }
            }
            Err(error) => {
                self.relay.lock().note_changed();
                if !file.has_failed.swap(true, Ordering::Relaxed) {
                    tracing::warn!("cannot save {path}: {error}: it is tried again every second");
                }
            }
        }
    }
}

/// A WireGuard relay with everything it is connected to.
pub struct WireGuardService {
    handle: WireGuardHandle,
    handshakes: Receiver<HandshakePacket>,
    outlet: Outlet,
    /// Bucket of log lines.
    lines: u64,
    /// What to say of sessions that there is no room for.
    full: Quiet,
}

impl WireGuardService {
    /// Connects the relay with what the forwarder has received of handshakes, and a way to send.
    #[must_use]
    pub fn new(
        handle: WireGuardHandle,
        handshakes: Receiver<HandshakePacket>,
        outlet: Outlet,
    ) -> Self {
        Self { handle, handshakes, outlet, lines: 0, full: Quiet::lasting() }
    }

    /// Goes on until dropped; on a Tokio runtime with time.
    pub async fn run(mut self) {
        let mut reviews = interval(REVIEW);
        reviews.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut packets = Vec::with_capacity(BATCH);
        let saving = self.handle.clone();
        let save = async move {
            let mut saves = interval(SAVE);
            saves.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                saves.tick().await;
                let handle = saving.clone();
                if tokio::task::spawn_blocking(move || handle.save(false)).await.is_err() {
                    tracing::error!("saving WireGuard's state has panicked");
                }
            }
        };
        let serve = async {
            loop {
                tokio::select! {
                    count = self.handshakes.recv_many(&mut packets, BATCH) => {
                        if count == 0 {
                            // Nobody receives any more: the process is ending.
                            return std::future::pending().await;
                        }
                        for packet in packets.drain(..) {
                            self.receive(&packet);
                        }
                    }
                    _ = reviews.tick() => self.review(),
                }
            }
        };
        tokio::join!(save, serve);
    }

    fn receive(&mut self, packet: &HandshakePacket) {
        let datagram = &packet.datagram;
        let arrival = Arrival {
            from: socket_address(datagram.source, datagram.source_port),
            local: socket_address(datagram.destination, datagram.destination_port),
            payload: &packet.payload,
        };
        // Always in this order, here and below: the relay, then the flow table.
        let mut relay = self.handle.relay.lock();
        let result = self.handle.keeper.update(|table| relay.receive(table, &arrival, now()));
        let relayed = match result {
            Ok(relayed) => relayed,
            Err(refusal) => {
                let reason = refusal.label();
                if refusal == Refusal::Full
                    && let Some(suffix) = self.full.suffix(std::time::Instant::now())
                {
                    tracing::warn!(
                        "WireGuard: there is no room for another session ([relay] slots): those that there are go on{suffix}"
                    );
                }
                tracing::debug!(from = %arrival.from, reason, "a WireGuard message is dropped");
                return;
            }
        };
        match &relayed {
            Relayed::Initiation { target, to } => {
                let target = relay.describe(*target);
                tracing::debug!(from = %arrival.from, target, places = to.len(), "initiation");
            }
            Relayed::Response { peers, .. } => {
                let [initiator, responder] = peers.map(|peer| relay.describe(peer));
                tracing::debug!(initiator, responder, "a WireGuard session begins");
            }
            Relayed::CookieReply { to } => tracing::debug!(to = %to.to, "cookie reply"),
        }
        drop(relay);
        for destination in relayed.destinations() {
            let sent = self.outlet.send(destination.from, destination.to, &packet.payload);
            if let Err(error) = sent {
                tracing::debug!(to = %destination.to, %error, "cannot send a handshake on");
            }
        }
    }

    fn review(&mut self) {
        let mut relay = self.handle.relay.lock();
        let events = self.handle.keeper.update_observed(|table| relay.review(table, now()));
        for event in events {
            let Some(lines) = LINES.take(self.lines, now()) else { break };
            self.lines = lines;
            match event {
                Event::Located { peer, at, before: None } => {
                    tracing::info!(peer = relay.describe(peer), %at, "a WireGuard peer is there");
                }
                Event::Located { peer, at, before: Some(before) } => {
                    tracing::info!(peer = relay.describe(peer), %at, %before, "a WireGuard peer has moved");
                }
                Event::Silent { peer } => {
                    tracing::info!(peer = relay.describe(peer), "a WireGuard peer fell silent");
                }
            }
        }
    }
}

/// Returns the time in seconds since 1970.
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        flow::{Mirror, SharedMirror},
        udp_relay::KeeperOptions,
    };

    #[test]
    fn regression_a_state_that_could_not_be_saved_is_saved_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("later").join("wireguard.json");
        let options = KeeperOptions {
            slots: 16,
            idle_timeout: 1_000_000_000,
            flows: Vec::new(),
            resumed: Vec::new(),
        };
        let keeper = Keeper::start(&options, SharedMirror::new(Mirror::new(16)), None).unwrap();
        let nobody = Directory::new(&[]);
        let handle = WireGuardHandle::new(nobody.clone(), 51_820, keeper, Some(path.clone()), None);
        handle.save(false);
        handle.reload(nobody.clone());
        handle.save(false);
        fs::create_dir(directory.path().join("later")).unwrap();
        assert!(!path.exists());
        handle.save(false);
        assert!(path.exists(), "although nothing has changed since");
        fs::remove_file(&path).unwrap();
        handle.save(false);
        assert!(!path.exists(), "nor again without need");
        assert!(Remembered::load(&path, &nobody, 51_820).unwrap().is_none());
    }
}
