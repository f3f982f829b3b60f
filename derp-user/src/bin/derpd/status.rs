//! Gathers what the status page shows: a sample every two seconds, and while somebody looks, the busiest clients and
//! flows.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use derp_user::{
    metrics::{self, Usage},
    proto::keys::NodePublic,
    server::ClientSight,
    status::{
        self, Busiest, Client, Clients, Flow, Flows, Inputs, Interface, KernelPackets, MOST_ROWS,
        PERIOD, Reading, Samples, Since, Status,
    },
    udp_relay::Keeper,
};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::metrics::Sources;

/// Clients and flows are looked at as long as somebody has asked within this time.
const ATTENTION: Duration = Duration::from_secs(10);
/// Looking at clients takes at most one part in so many of a processor.
const SHARE: u32 = 20;

/// Where the document comes from.
pub(crate) struct StatusBoard {
    sources: Arc<Sources>,
    keeper: Option<Keeper>,
    /// What does not change.
    pub(crate) facts: Facts,
    samples: Mutex<Samples>,
    /// What was last seen, while somebody looks.
    seen: Mutex<Option<(Clients, Flows)>>,
    /// When somebody last asked.
    asked: Mutex<Option<Instant>>,
    ask: Notify,
}

/// What does not change.
pub(crate) struct Facts {
    /// Empty where nobody has given one.
    pub(crate) hostname: String,
    pub(crate) machine: String,
}

impl StatusBoard {
    pub(crate) fn new(sources: Arc<Sources>, keeper: Option<Keeper>, facts: Facts) -> Self {
        let started = sources.started.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = u64::try_from(started.as_millis()).unwrap_or_default();
        Self {
            sources,
            keeper,
            facts,
            samples: Mutex::new(Samples::new(run)),
            seen: Mutex::default(),
            asked: Mutex::default(),
            ask: Notify::new(),
        }
    }

    /// The document. Who asks has clients and flows looked at for a while; the first to ask after a pause sees the first
    /// few clients.
    pub(crate) fn status(&self, since: Since) -> Status {
        *self.asked.lock() = Some(Instant::now());
        self.ask.notify_one();
        let (clients, flows) = self.rows();
        let sources = &self.sources;
        let reading = self.reading();
        let short = |key: &str| match key.parse::<NodePublic>() {
            Ok(key) => key.short().to_string(),
            Err(_) => String::new(),
        };
        let status = Status {
            version: crate::VERSION.to_owned(),
            hostname: self.facts.hostname.clone(),
            machine: self.facts.machine.clone(),
            admission: sources.admission.to_string(),
            interfaces: interfaces(sources),
            certificates: sources.certificates.as_ref().map(|certificates| {
                status::certificates(&certificates.figures(), SystemTime::now())
            }),
            links: status::links(&sources.statistics.mesh(), short),
            clients,
            flows,
            ..Status::default()
        };
        status.with_samples(&self.samples.lock(), &reading, since)
    }

    /// Samples, and looks while somebody wants it, until dropped; on a Tokio runtime with time.
    pub(crate) async fn run(&self) {
        tokio::join!(self.sample(), self.look());
    }

    async fn sample(&self) {
        let mut turns = interval(PERIOD);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            let reading = self.reading();
            self.samples.lock().add(reading);
        }
    }

    async fn look(&self) {
        loop {
            self.ask.notified().await;
            let (mut clients, mut flows) = (Busiest::new(MOST_ROWS), FlowRounds::default());
            while self.is_wanted() {
                let began = Instant::now();
                let mut home = 0;
                clients.begin(self.sources.started.1.elapsed());
                let look = |sight: &ClientSight| {
                    home += u64::from(sight.figures.is_home);
                    clients.see(sight.id, sight.carried, || client(sight));
                };
                self.sources.statistics.look_at_clients(look).await;
                let clients = self.clients(home, clients.end());
                let flows = flows.look(self.keeper.as_ref(), self.sources.started.1.elapsed());
                *self.seen.lock() = Some((clients, flows));
                sleep(PERIOD.max(began.elapsed() * SHARE)).await;
            }
            // Nobody needs what was there before any more.
            *self.seen.lock() = None;
        }
    }

    fn is_wanted(&self) -> bool {
        self.asked.lock().is_some_and(|asked| asked.elapsed() < ATTENTION)
    }

    /// The rows of the last round, or of a quick look if there is none.
    fn rows(&self) -> (Clients, Flows) {
        if let Some((clients, flows)) = &*self.seen.lock() {
            return (clients.clone(), flows.clone());
        }
        let mut first = Busiest::new(MOST_ROWS);
        let mut home = 0;
        self.sources.statistics.look_at_first_clients(|sight| {
            home += u64::from(sight.figures.is_home);
            first.see(sight.id, sight.carried, || client(sight));
        });
        let flows = FlowRounds::default().look(self.keeper.as_ref(), Duration::ZERO);
        (self.clients(home, first.end()), flows)
    }

    fn clients(&self, home: u64, seen: Vec<status::Seen<Client>>) -> Clients {
        let shown = seen.into_iter().map(|seen| Client {
            received_rate: seen.rates.map(|rates| rates[0]),
            sent_rate: seen.rates.map(|rates| rates[1]),
            ..seen.row
        });
        Clients {
            total: self.sources.statistics.headcount().connections,
            home,
            shown: shown.collect(),
        }
    }

    fn reading(&self) -> Reading {
        let sources = &self.sources;
        let counts = sources.xdp.as_ref().map(|xdp| xdp.lock().counters());
        let counts = counts.transpose().unwrap_or_else(|error| {
            tracing::debug!("status: {error}");
            None
        });
        let kernel: Vec<_> = counts
            .into_iter()
            .flatten()
            .map(|it| KernelPackets { reason: it.reason, packets: it.packets, bytes: it.bytes })
            .collect();
        let stun = sources.stun.as_ref().map(|counters| counters.requests());
        let answered = stun.into_iter().flatten().filter(|(word, _)| *word == "success");
        let usage = metrics::usage().unwrap_or_else(|error| {
            tracing::debug!("status: {error}");
            Usage::default()
        });
        Reading::from(Inputs {
            at: sources.started.1.elapsed(),
            totals: &sources.statistics.totals(),
            headcount: sources.statistics.headcount(),
            active_workers: sources.statistics.active_workers(),
            kernel: &kernel,
            stun_answered: answered.map(|(_, count)| count).sum(),
            udp: &(sources.udp)(),
            usage,
        })
    }
}

/// Looks at flows whenever they have been counted anew.
#[derive(Default)]
struct FlowRounds {
    busiest: Option<Busiest<u32, Flow>>,
    /// When what is shown was counted, since the start.
    counted: Option<Duration>,
    shown: Vec<Flow>,
}

impl FlowRounds {
    /// What the counts of two rounds may differ by, in time, and be the same.
    const SAME: Duration = Duration::from_millis(500);

    fn look(&mut self, keeper: Option<&Keeper>, now: Duration) -> Flows {
        let view = keeper.map(Keeper::views).unwrap_or_default();
        let counted = view.counted_seconds.map(Duration::from_secs_f64);
        let counted = counted.map(|age| now.saturating_sub(age));
        let is_new = match (counted, self.counted) {
            (Some(counted), Some(before)) => counted.saturating_sub(before) > Self::SAME,
            (Some(_) | None, None) => true,
            (None, Some(_)) => false,
        };
        let forwarding = |flow: &&derp_user::flow::FlowView| {
            flow.state == derp_user::flow::StateView::Forwarding
        };
        if is_new {
            self.counted = counted;
            let busiest = self.busiest.get_or_insert_with(|| Busiest::new(MOST_ROWS));
            busiest.begin(counted.unwrap_or_default());
            for flow in &view.flows {
                let carried = flow
                    .ends
                    .each_ref()
                    .map(|end| end.kernel.bytes.saturating_add(end.userspace.bytes));
                busiest.see(flow.slot, carried, || status::flow(flow));
            }
            let seen = busiest.end().into_iter();
            self.shown = seen.map(|seen| seen.row.with_rates(seen.rates)).collect();
        }
        Flows {
            total: view.flows.len() as u64,
            forwarding: view.flows.iter().filter(forwarding).count() as u64,
            shown: self.shown.clone(),
        }
    }
}

fn client(sight: &ClientSight) -> Client {
    Client {
        key: sight.key.short().to_string(),
        address: sight.remote.to_string(),
        received_bytes: sight.carried[0],
        sent_bytes: sight.carried[1],
        received_rate: None,
        sent_rate: None,
        round_trip_milliseconds: (sight.round_trip.as_secs_f64() * 1e5).round() / 100.0,
        connected_seconds: sight.figures.connected_at.elapsed().as_secs(),
        is_home: sight.figures.is_home,
        senders: sight.figures.senders as u64,
        is_waiting: sight.is_blocked,
    }
}

fn interfaces(sources: &Sources) -> Vec<Interface> {
    let interfaces = sources.interfaces().into_iter().filter(|it| it.is_there);
    interfaces.map(|it| Interface { name: it.name, mode: it.mode.to_owned() }).collect()
}
