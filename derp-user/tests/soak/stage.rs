//! One run from beginning to end.

use std::{
    process,
    sync::atomic::Ordering::Relaxed,
    thread,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    Plan,
    account::{Account, Base, Parties},
    clients::{Clients, Mode},
    crowd::Crowd,
    drift::{self, HEAD, Sample},
    flows::{Flows, SPOKES},
    lab::Lab,
    laggard::Laggard,
    metrics::Metrics,
    party::Keys,
    probe::Probe,
    relay::Relay,
    vitals::Vitals,
};

/// How long everybody may take to arrive, to leave, to be counted.
const PATIENCE: Duration = Duration::from_secs(120);
/// While the rate is looked for: how long each one is tried, where it begins, and where that ends.
const TRIAL: Duration = Duration::from_secs(3);
const FIRST_RATE: u32 = 1000;
const MOST: u32 = 200_000;
/// Threads that come for work with files, and stay for a while.
const SPARE_THREADS: usize = 2;
/// Between two lines about a long run.
const PROGRESS: Duration = Duration::from_secs(60);

/// Relay, clients, flows and the steady pair.
pub(crate) struct Stage<'a> {
    lab: &'a Lab,
    crowd: &'a Crowd,
    // In this order they leave.
    probe: Probe,
    laggard: Laggard,
    flows: Flows,
    clients: Clients,
    relay: Relay,
    base: Base,
}

/// What the relay needs while only those are there who stay, and nothing is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Still {
    descriptors: usize,
    threads: usize,
}

impl<'a> Stage<'a> {
    pub(crate) fn set(lab: &'a Lab, crowd: &'a Crowd, plan: &Plan) -> Self {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
        let hub = Keys::random();
        let spokes: Vec<_> = (0..SPOKES).map(|_| Keys::random()).collect();
        let relay = Relay::start(lab, plan.clients, &hub, &spokes);
        let base = Base::read(lab, &relay);
        let clients = Clients::start(&crowd.namespace, relay.connector(), plan.clients);
        let probe = Probe::start(&crowd.namespace);
        let laggard = Laggard::start(&crowd.namespace);
        let flows = Flows::start(lab, &crowd.namespace, relay.node, &hub, &spokes);
        Self { lab, crowd, probe, laggard, flows, clients, relay, base }
    }

    pub(crate) fn run(mut self, plan: &Plan) {
        let begun = Instant::now();
        self.wait("everybody to arrive", |this| this.clients.only_those_who_stay());
        println!("{} clients are there after {:.1?}", self.clients.staying(), begun.elapsed());
        let rate = plan.rate.unwrap_or_else(|| self.find_rate());
        self.clients.set_rate(rate);
        self.work();
        thread::sleep(plan.warms_up);
        let before = self.rest();
        self.settle_accounts();

        self.work();
        let samples = self.observe(plan);
        let after = self.rest();
        drift::print(&samples);
        self.settle_accounts().print();
        println!(
            "\n{} logins, certificate replaced {} times, {rate} packets/s asked of those who stay; at rest before and after: {before:?}, {after:?}",
            self.clients.counts().logins.load(Relaxed),
            self.relay.replaced,
        );
        assert_eq!(before.descriptors, after.descriptors, "at rest, with the same clients");
        assert!(after.threads <= before.threads + SPARE_THREADS, "{before:?}, {after:?}");
        let counts = self.clients.counts();
        let (logins, given_up) = (counts.logins.load(Relaxed), counts.given_up.load(Relaxed));
        assert!(given_up <= logins / 100, "{given_up} of {logins} logins were given up");
        assert!(self.relay.replaced > 0, "no certificate was replaced");
        if plan.judges_drift {
            drift::judge(&samples);
        }
        self.check();
    }

    /// Looks at it again and again, replaces its certificate, and says how it goes.
    fn observe(&mut self, plan: &Plan) -> Vec<Sample> {
        let begun = Instant::now();
        let mut samples = vec![Sample::take(begun, &self.relay, &self.probe)];
        let (mut replaced, mut told) = (begun, (begun, samples[0]));
        if plan.lasts > PROGRESS {
            println!("{HEAD}");
        }
        while begun.elapsed() < plan.lasts {
            thread::sleep(plan.samples);
            let sample = Sample::take(begun, &self.relay, &self.probe);
            samples.push(sample);
            for page in ["/debug/vars", "/debug/status.json", "/debug/flows", "/debug/wireguard"] {
                assert!(self.relay.daemon.get(page).is_some(), "{page}");
            }
            if replaced.elapsed() >= plan.replaces {
                self.relay.replace_certificate(&self.crowd.namespace);
                replaced = Instant::now();
            }
            if told.0.elapsed() >= PROGRESS {
                println!("{}", sample.row(&told.1));
                told = (Instant::now(), sample);
            }
            self.check();
        }
        samples
    }

    /// Finds how many packets per second take half of what the processors can do, for relay and clients together; or half of
    /// those that get through, where others leave less than that.
    fn find_rate(&self) -> u32 {
        let processors = thread::available_parallelism().map_or(1, |it| it.get()) as f64;
        let used = || {
            [self.relay.daemon.id(), process::id()]
                .map(|process| Vitals::of(process).processor)
                .iter()
                .sum::<Duration>()
        };
        let mut rate = FIRST_RATE;
        loop {
            self.clients.set_rate(rate);
            self.work();
            thread::sleep(TRIAL / 3);
            let (begun, before, sent) = (Instant::now(), used(), self.clients.sent());
            thread::sleep(TRIAL);
            let seconds = begun.elapsed().as_secs_f64();
            let share = (used() - before).as_secs_f64() / seconds / processors;
            let sent = ((self.clients.sent() - sent) as f64 / seconds) as u32;
            println!(
                "asked for {rate} packets/s, {sent} are sent: {:.0} % of the processors",
                100.0 * share
            );
            self.check_clients();
            if sent < rate / 5 * 4 {
                return sent / 2;
            }
            if share >= 0.5 || rate >= MOST {
                return rate;
            }
            rate += rate / 2;
        }
    }

    fn work(&self) {
        self.clients.set_mode(Mode::Work);
        self.flows.rest(false);
        self.laggard.rest(false);
        self.probe.rest(false);
    }

    /// Has everybody who goes leave and everybody who stays be silent, and looks at the relay then.
    fn rest(&self) -> Still {
        self.clients.set_mode(Mode::Rest);
        self.flows.rest(true);
        self.laggard.rest(true);
        self.probe.rest(true);
        self.wait("flows to rest", |this| this.flows.all_rest() && this.laggard.is_resting());
        self.wait("those who go to leave", |this| this.clients.only_those_who_stay());
        let few = Probe::CONNECTIONS + Laggard::CONNECTIONS + Flows::CONNECTIONS;
        let there = (self.clients.staying() + few) as u64;
        self.wait("the relay to see that", |this| {
            let metrics = Metrics::read(&this.relay.daemon);
            let arriving = metrics.sum("derpd_arriving_connections", &[]);
            // The peer relay's node is one of its clients.
            (metrics.sum("derp_current_connections", &[]), arriving) == (there + 1, 0)
        });
        // The connections by which its pages are read come and go.
        let process = self.relay.daemon.id();
        let looks = (0..20).map(|_| {
            thread::sleep(Duration::from_millis(50));
            (Vitals::of(process).descriptors, drift::threads(process))
        });
        let looks: Vec<_> = looks.collect();
        let least = |of: fn(&(usize, usize)) -> usize| looks.iter().map(of).min().expect("some");
        Still { descriptors: least(|it| it.0), threads: least(|it| it.1) }
    }

    /// Draws the account until it is even, and insists that it becomes so.
    fn settle_accounts(&self) -> Account {
        let parties = Parties {
            lab: self.lab,
            relay: &self.relay,
            clients: &self.clients,
            flows: &self.flows,
            probe: &self.probe,
            laggard: &self.laggard,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let account = Account::draw(&parties, &self.base);
            if account.is_even() {
                return account;
            }
            if Instant::now() >= deadline {
                account.print();
                panic!("packets are not accounted for\n{}", self.relay.daemon.log());
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            self.check_clients();
            if Instant::now() >= deadline {
                let metrics = Metrics::read(&self.relay.daemon);
                panic!(
                    "waited {PATIENCE:?} for {what}; {} connections, {} arriving",
                    metrics.sum("derp_current_connections", &[]),
                    metrics.sum("derpd_arriving_connections", &[]),
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn check_clients(&self) {
        let faults = self.clients.faults();
        assert!(faults.is_empty(), "{faults:#?}\n{}", self.relay.daemon.log());
        assert!(!self.flows.have_failed(), "a thread with flows has ended");
        assert!(!self.laggard.has_failed(), "the laggard's thread has ended");
    }

    /// Nobody complains, and the relay does not contradict itself.
    fn check(&self) {
        self.check_clients();
        assert!(self.relay.daemon.get("/debug/check").is_some(), "{}", self.relay.daemon.log());
        let log = self.relay.daemon.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}
