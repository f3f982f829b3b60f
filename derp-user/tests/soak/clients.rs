//! Clients of the DERP server, in their hundreds: half of them stay and exchange numbered packets in pairs, the others connect,
//! send to whoever may be there, and leave. Each counts what it has sent and received.

use std::{
    fs::File,
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use derp_user::{
    client::{ClientError, Connector, Receiver, Sender, new_key},
    proto::{
        client::read::Message,
        keys::{NodePrivate, NodePublic},
    },
};
use nix::sched::{CloneFlags, setns};
use tokio::{
    runtime,
    sync::watch,
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};

use crate::{netns::spawn_in, peer::random_bytes};

/// How long those who come and go stay, and stay away.
const STAY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
const AWAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(4));
/// Between two packets of theirs.
const PAUSE: Duration = Duration::from_millis(500);
/// So many of those who stay, and of the others, does a client send to.
const FRIENDS: usize = 8;
/// How long a client waits for the relay.
const PATIENCE: Duration = Duration::from_secs(60);
/// So many clients connect at once at the start.
const AT_ONCE: usize = 50;

/// What all are doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mode {
    /// Those who stay exchange packets, others come and go.
    Work,
    /// Those who stay are silent, others are not there.
    Rest,
    End,
}

/// What all of them have counted.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) logins: AtomicU64,
    /// Attempts to log in that took too long, as they may where a machine has too much to do.
    pub(crate) given_up: AtomicU64,
    /// Of the numbered packets between those who stay.
    pub(crate) lost: AtomicU64,
    /// Of those who come and go, how many are connected or about to be.
    passing: AtomicUsize,
    staying: AtomicUsize,
    /// What must not happen, in words.
    faults: Mutex<Vec<String>>,
}

struct Shared {
    counts: Counts,
    connector: Connector,
    mode: watch::Sender<Mode>,
    /// Nanoseconds between two packets of one that stays.
    interval: AtomicU64,
    stay: Vec<NodePrivate>,
    /// Keys of those who come and go and hear what is sent to them; they may have left.
    passing: Mutex<Vec<Option<NodePublic>>>,
}

/// All clients, at work until dropped.
pub(crate) struct Clients {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Clients {
    /// Begins to connect `count` clients from a namespace, who rest.
    pub(crate) fn start(namespace: &str, connector: Connector, count: usize) -> Self {
        let staying = (count / 2).next_multiple_of(2);
        let stay = (0..staying).map(|_| new_key().expect("random numbers")).collect();
        let shared = Arc::new(Shared {
            counts: Counts::default(),
            connector,
            mode: watch::Sender::new(Mode::Rest),
            interval: AtomicU64::new(u64::MAX),
            stay,
            passing: Mutex::new(vec![None; count - staying]),
        });
        let file = format!("/run/netns/{namespace}");
        let thread = spawn_in(namespace, {
            let shared = Arc::clone(&shared);
            move || {
                let runtime = runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .on_thread_start(move || {
                        let namespace = File::open(&file).expect("the namespace");
                        setns(namespace, CloneFlags::CLONE_NEWNET).expect("setns");
                    })
                    .enable_all()
                    .build();
                runtime.expect("a runtime").block_on(run(shared));
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// How many packets they have sent.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.counts.sent.load(Relaxed)
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// How many stay.
    pub(crate) fn staying(&self) -> usize {
        self.shared.stay.len()
    }

    /// Whether everybody who is to stay is there, and nobody else.
    pub(crate) fn only_those_who_stay(&self) -> bool {
        self.shared.counts.staying.load(Relaxed) == self.staying()
            && self.shared.counts.passing.load(Relaxed) == 0
    }

    /// Has those who stay send so many packets per second together.
    pub(crate) fn set_rate(&self, rate: u32) {
        let interval = 1_000_000_000 * self.staying() as u64 / u64::from(rate.max(1));
        self.shared.interval.store(interval, Relaxed);
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// What has happened that must not.
    pub(crate) fn faults(&self) -> Vec<String> {
        lock(&self.shared.counts.faults).clone()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.set_mode(Mode::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    for number in 0..shared.stay.len() {
        tasks.spawn(stay(Arc::clone(&shared), number));
    }
    let places = lock(&shared.passing).len();
    for place in 0..places {
        tasks.spawn(come_and_go(Arc::clone(&shared), place));
    }
    while let Some(result) = tasks.join_next().await {
        if let Err(error) = result {
            shared.fault(format!("a client has panicked: {error}"));
        }
    }
}

impl Shared {
    fn fault(&self, what: String) {
        let mut faults = lock(&self.counts.faults);
        // The first ones say it all.
        if faults.len() < 20 {
            faults.push(what);
        }
    }

    async fn connect(&self, key: &NodePrivate) -> Result<(Sender, Receiver), ClientError> {
        let client = self.connector.connect(key).await?;
        self.counts.logins.fetch_add(1, Relaxed);
        Ok(client.split())
    }

    async fn send(
        &self,
        sender: &mut Sender,
        to: &NodePublic,
        packet: &[u8],
    ) -> Result<(), ClientError> {
        sender.send(to, packet).await?;
        self.counts.sent.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Counts a message if it is a packet.
    fn note(&self, message: &Message<'_>) {
        if matches!(message, Message::Packet { .. }) {
            self.counts.received.fetch_add(1, Relaxed);
        }
    }

    fn is(&self, mode: Mode) -> bool {
        *self.mode.borrow() == mode
    }
}

/// A packet with a number, of a length that depends on it.
fn packet(number: u64) -> Vec<u8> {
    let mut packet = number.to_be_bytes().to_vec();
    packet.resize(60 + (number * 37 % 1200) as usize, number as u8);
    packet
}

/// One that stays, and its partner.
async fn stay(shared: Arc<Shared>, number: usize) {
    // Not all at once.
    sleep(Duration::from_millis((1000 * (number / AT_ONCE)) as u64 / 4)).await;
    let partner = shared.stay[number ^ 1].public();
    if let Err(error) = talk(&shared, &shared.stay[number], partner).await {
        shared.fault(format!("one that stays: {error}"));
    }
}

async fn talk(shared: &Shared, key: &NodePrivate, partner: NodePublic) -> Result<(), ClientError> {
    let (mut sender, mut receiver) = shared.connect(key).await?;
    shared.counts.staying.fetch_add(1, Relaxed);
    let mut mode = shared.mode.subscribe();
    let (mut next, mut expected) = (0, 0);
    let mut due = tokio::time::Instant::now();
    loop {
        let now = *mode.borrow_and_update();
        if now == Mode::End {
            return Ok(());
        }
        let is_at_work = now == Mode::Work;
        let turn = async { if is_at_work { sleep_until(due).await } else { pending().await } };
        tokio::select! {
            () = turn => {
                shared.send(&mut sender, &partner, &packet(next)).await?;
                next += 1;
                let interval = Duration::from_nanos(shared.interval.load(Relaxed));
                due = (due + interval).max(tokio::time::Instant::now());
            }
            message = receiver.recv() => {
                let message = message?;
                shared.note(&message);
                if let Message::Packet { source, packet: got } = message && source == partner {
                    let number = got.first_chunk().map_or(0, |it| u64::from_be_bytes(*it));
                    if number < expected || got != packet(number) {
                        shared.fault(format!("packet {number} comes where {expected} was expected"));
                    }
                    shared.counts.lost.fetch_add(number.saturating_sub(expected), Relaxed);
                    expected = number + 1;
                }
            }
            changed = mode.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                due = tokio::time::Instant::now();
            }
        }
    }
}

/// One place that is taken by one client after the other.
async fn come_and_go(shared: Arc<Shared>, place: usize) {
    let mut mode = shared.mode.subscribe();
    // A quarter leaves without a farewell; nobody sends to those, since what is on its way to them is lost.
    let is_abrupt = place % 4 == 3;
    // It comes again as the same node. The relay remembers who has sent to whom, for as long as the receiver stays.
    let key = new_key().expect("random numbers");
    if !is_abrupt {
        lock(&shared.passing)[place] = Some(key.public());
    }
    loop {
        if mode.wait_for(|mode| *mode != Mode::Rest).await.is_err() || shared.is(Mode::End) {
            return;
        }
        sleep(between(AWAY)).await;
        shared.counts.passing.fetch_add(1, Relaxed);
        if shared.is(Mode::Work)
            && let Err(error) = visit(&shared, &key, place, is_abrupt).await
        {
            shared.fault(format!("one that comes and goes: {error}"));
        }
        shared.counts.passing.fetch_sub(1, Relaxed);
    }
}

/// Comes, sends, and leaves, with a farewell unless it is abrupt.
async fn visit(
    shared: &Shared,
    key: &NodePrivate,
    place: usize,
    is_abrupt: bool,
) -> Result<(), ClientError> {
    let (mut sender, mut receiver) = match shared.connect(key).await {
        Err(ClientError::ConnectTimeout { .. }) => {
            shared.counts.given_up.fetch_add(1, Relaxed);
            return Ok(());
        }
        connected => connected?,
    };
    let until = Instant::now() + between(STAY);
    while Instant::now() < until && shared.is(Mode::Work) {
        let to = shared.somebody(place);
        for number in 0..1 + below(4) as u64 {
            shared.send(&mut sender, &to, &packet(number)).await?;
        }
        let pause = sleep(PAUSE);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                message = receiver.recv() => shared.note(&message?),
            }
        }
    }
    // The relay has then taken everything that was sent.
    sender.ping([7; 8]).await?;
    let pong = async {
        loop {
            let message = receiver.recv().await?;
            shared.note(&message);
            if matches!(message, Message::Pong(_)) {
                return Ok::<_, ClientError>(());
            }
        }
    };
    match timeout(PATIENCE, pong).await {
        Ok(result) => result?,
        Err(_) => shared.fault(format!("no Pong within {PATIENCE:?}")),
    }
    if is_abrupt {
        return Ok(());
    }
    sender.close().await?;
    // What the relay has sent before it knew comes before the end of its stream.
    let rest = async {
        while let Ok(message) = receiver.recv().await {
            shared.note(&message);
        }
    };
    if timeout(PATIENCE, rest).await.is_err() {
        shared.fault(format!("the connection does not end within {PATIENCE:?}"));
    }
    Ok(())
}

impl Shared {
    /// One of the few that a client in this place sends to: one that stays, one that comes and goes, or nobody.
    fn somebody(&self, place: usize) -> NodePublic {
        let friend = |of: usize| (place + below(FRIENDS)) % of;
        match below(8) {
            0 => NodePublic::from_bytes(random_bytes()),
            1..4 => self.stay[friend(self.stay.len())].public(),
            _ => {
                let passing = lock(&self.passing);
                let key = passing[friend(passing.len())];
                key.unwrap_or_else(|| self.stay[0].public())
            }
        }
    }
}

/// A number by chance.
fn below(limit: usize) -> usize {
    u32::from_be_bytes(random_bytes()) as usize % limit
}

/// A time by chance.
fn between((least, most): (Duration, Duration)) -> Duration {
    least + (most - least) * u32::from(u16::from_be_bytes(random_bytes())) / (1 << 16)
}
