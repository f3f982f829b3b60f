//! A relay, two clients that mean well, and an attack: what it cost, and whether that is allowed.

use std::{
    env,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, SockRef, Socket, Type};

use crate::{
    apart::{self, Apart},
    pair::{Fare, Pair},
    server::{PATIENCE, Server, wait_until},
    vitals::Vitals,
};

/// How long an attack lasts, unless the variable says otherwise.
const ATTACK_SECONDS: u64 = 2;
const SECONDS_VARIABLE: &str = "DERPD_HOSTILE_SECONDS";
/// Delays that are no fault where attackers, relay and pair share two processors, with other tests beside them, and the
/// relay has not been optimised. [`Apart`] has another one.
const DELAY_FLOOR: Duration = Duration::from_millis(500);
/// Log lines that an attack may cause at once, and in a second.
const LINES: (usize, usize) = (60, 8);
/// Descriptors that come and go by themselves.
const SPARE_DESCRIPTORS: usize = 4;

pub(crate) const MEGABYTE: u64 = 1 << 20;

/// Held by the test that measures.
static TURN: Mutex<()> = Mutex::new(());

/// How long each attack lasts.
pub(crate) fn duration() -> Duration {
    let seconds = env::var(SECONDS_VARIABLE).ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(ATTACK_SECONDS))
}

/// A relay as a test starts it.
pub(crate) trait Relay: Sync {
    /// Its process.
    fn process(&self) -> u32;
    /// What it has logged.
    fn lines(&self) -> String;
    /// The tables' own check of themselves; an error in words.
    fn check(&self) -> Result<(), String>;
}

impl Relay for Server {
    fn process(&self) -> u32 {
        self.id()
    }

    fn lines(&self) -> String {
        self.log()
    }

    fn check(&self) -> Result<(), String> {
        let page = self.get("/debug/check");
        if page.status == 200 { Ok(()) } else { Err(page.body) }
    }
}

/// A relay and its pair, alone with it until this is dropped.
pub(crate) struct Scene<R = Server> {
    pair: Pair,
    /// What the machine alone does to such a pair.
    yardstick: Pair,
    pub(crate) server: R,
    apart: Option<Apart>,
    _turn: MutexGuard<'static, ()>,
}

/// An attack that goes on.
pub(crate) struct Attack<'a, R = Server> {
    pub(crate) server: &'a R,
    over: AtomicBool,
}

impl<R> Attack<'_, R> {
    /// Whether to go on.
    pub(crate) fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Holds still until it is over.
    pub(crate) fn wait(&self) {
        while self.goes_on() {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What an attack came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    name: &'static str,
    before: Fare,
    pub(crate) during: Fare,
    yardstick: Fare,
    calm: Vitals,
    /// The most memory and descriptors that were seen at any time.
    pub(crate) height: Vitals,
    after: Vitals,
    lasted: Duration,
    lines: usize,
}

impl Scene {
    /// Starts a relay with these flags, and the pair.
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::of(|| {
            let server = Server::start_with(&[apart::flags(), flags].concat());
            let pair = Pair::start(&server);
            (server, pair)
        })
    }
}

impl<R: Relay> Scene<R> {
    /// When it is this test's turn, starts a relay with a pair in its own way.
    pub(crate) fn of(start: impl FnOnce() -> (R, Pair)) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        raise_file_limit();
        let apart = Apart::begin();
        let (server, pair) = start();
        if let Some(apart) = apart {
            apart.give(server.process());
        }
        Self { server, pair, yardstick: Pair::without_relay(), apart, _turn: turn }
    }

    /// Runs an attack; it ends when [`Attack::goes_on`] says so, and everything of it is gone then.
    pub(crate) fn suffer(
        &self,
        name: &'static str,
        attack: impl FnOnce(&Attack<'_, R>) + Send,
    ) -> Outcome {
        let process = self.server.process();
        thread::sleep(Duration::from_millis(200));
        let start = self.pair.now();
        // As long as the attack, since what takes longer than 99 % is seldom.
        thread::sleep(duration());
        let (calm, middle, lines) = (Vitals::of(process), self.pair.now(), self.lines());
        let yardstick_start = self.yardstick.now();
        let this = Attack { server: &self.server, over: AtomicBool::new(false) };
        let begun = Instant::now();
        let mut height = calm;
        let mut look = || {
            let vitals = Vitals::of(process);
            height.memory = height.memory.max(vitals.memory);
            height.descriptors = height.descriptors.max(vitals.descriptors);
            height.processor = vitals.processor;
        };
        let end = thread::scope(|scope| {
            let attacker = scope.spawn(|| {
                if self.apart.is_some() {
                    Apart::come_last();
                }
                attack(&this);
            });
            while begun.elapsed() < duration() && !attacker.is_finished() {
                look();
                thread::sleep(Duration::from_millis(20));
            }
            let end = (self.pair.now(), self.yardstick.now());
            this.over.store(true, Ordering::Relaxed);
            while !attacker.is_finished() {
                look();
                thread::sleep(Duration::from_millis(20));
            }
            if let Err(panic) = attacker.join() {
                std::panic::resume_unwind(panic);
            }
            end
        });
        let lasted = begun.elapsed();
        let (end, yardstick_end) = end;
        let (before, during) = (self.pair.fare(start, middle), self.pair.fare(middle, end));
        let yardstick = self.yardstick.fare(yardstick_start, yardstick_end);
        let allowed = calm.descriptors + SPARE_DESCRIPTORS;
        wait_until("the relay to close what the attack had opened", || {
            Vitals::of(process).descriptors <= allowed
        });
        let outcome = Outcome {
            name,
            before,
            during,
            yardstick,
            calm,
            height,
            after: Vitals::of(process),
            lasted,
            lines: self.lines() - lines,
        };
        outcome.print();
        outcome
    }

    /// Checks what must hold after every attack. `memory` is what it may have added, in bytes.
    pub(crate) fn judge(&self, outcome: &Outcome, memory: u64) {
        let name = outcome.name;
        let grown = outcome.height.memory.saturating_sub(outcome.calm.memory);
        assert!(grown <= memory, "{name}: {} MB more, {} allowed", grown >> 20, memory >> 20);
        assert!(outcome.during.sent > 0, "{name}: the pair sent nothing");
        assert!(outcome.during.loss() < 1.0, "{name}: {:?}", outcome.during);
        let floor = self.apart.map_or(DELAY_FLOOR, |apart| apart.floor);
        let allowed = (3 * outcome.before.p99.max(outcome.yardstick.p99)).max(floor);
        assert!(outcome.during.p99 <= allowed, "{name}: {:?}, {allowed:?} allowed", outcome.during);
        let (at_once, per_second) = LINES;
        let allowed = at_once + per_second * (outcome.lasted.as_secs() as usize + 1);
        assert!(outcome.lines <= allowed, "{name}: {} log lines", outcome.lines);
        assert!(!self.server.lines().contains("panicked"), "{name}");
        assert_eq!(self.server.check(), Ok(()), "{name}");
    }

    fn lines(&self) -> usize {
        self.server.lines().lines().count()
    }
}

impl Outcome {
    /// One row of the table in docs/RELIABILITY.md.
    fn print(&self) {
        let Self { name, before, during, yardstick, calm, height, after, lasted, lines } = self;
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let mebibytes = |bytes: u64| bytes as f64 / MEGABYTE as f64;
        let processor = height.processor.saturating_sub(calm.processor);
        let row = format!(
            "| {name} | {:.2} | {:.2} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {:.0} | {} | {:.0} | {lines} |\n",
            during.loss(),
            milliseconds(before.p99),
            milliseconds(during.median),
            milliseconds(during.p99),
            milliseconds(yardstick.p99),
            mebibytes(calm.memory),
            mebibytes(height.memory),
            mebibytes(after.memory),
            height.descriptors,
            100.0 * processor.as_secs_f64() / lasted.as_secs_f64(),
        );
        io::stdout().write_all(row.as_bytes()).ok();
    }
}

/// Connects from any source address of this machine; the connection is reset when it is dropped, so that its
/// port can be used again at once. `None` if the relay does not take it.
pub(crate) fn connect_from(source: Option<Ipv4Addr>, to: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a descriptor");
    if let Some(source) = source {
        socket.bind(&SocketAddr::from((source, 0)).into()).expect("a loopback address");
    }
    socket.connect_timeout(&to.into(), Duration::from_secs(5)).ok()?;
    socket.set_linger(Some(Duration::ZERO)).expect("a legal time");
    Some(socket.into())
}

pub(crate) fn connect(to: SocketAddr) -> Option<TcpStream> {
    connect_from(None, to)
}

/// Makes a connection take and keep as little as the system lets it.
pub(crate) fn shrink(stream: &TcpStream) {
    SockRef::from(stream).set_recv_buffer_size(4096).expect("a legal size");
}

/// Whether the relay closes the connection in time; what it sends before is dropped.
pub(crate) fn is_closed_within(stream: &mut TcpStream, patience: Duration) -> bool {
    let deadline = Instant::now() + patience.min(PATIENCE);
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        stream.set_read_timeout(Some(left)).expect("a non-zero timeout");
        match io::Read::read(stream, &mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
}

/// As many open files as the system lets this process have.
fn raise_file_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
}
