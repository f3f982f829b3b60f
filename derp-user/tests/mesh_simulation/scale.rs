//! How a large region fares: many servers, many keys, network interfaces with a rate, and a mesh thread that
//! takes time. Everything but memory and the time of the simulation itself follows from the settings.

use std::time::{Duration, Instant};

use crate::{
    begin_within, memory,
    schedule::{MILLISECOND, SECOND},
    world::{Settings, Tally, World},
};

/// The servers of a region that starts dial each other within this time.
const SPREAD: u64 = 500 * MILLISECOND;

/// Gigabit interfaces, half a millisecond between servers, and what derpd's mesh thread takes for a frame.
pub(crate) fn large(servers: usize, clients: usize) -> Settings {
    Settings {
        servers,
        clients,
        rate: 125_000_000,
        delay: MILLISECOND / 2,
        jitter: 0,
        work: 1_000,
        slowest_pace: 0,
        forget_at_once: 1024,
        checks: false,
    }
}

/// What one change of a region costs, until everything is as it should be again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// Frames to other servers, all servers together, and their bytes.
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    /// Virtual time until the last one was heard.
    pub(crate) settled_after: Duration,
}

/// What was measured of a region.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) servers: usize,
    pub(crate) clients: usize,
    /// All servers start at once, with their clients.
    pub(crate) start: Cost,
    pub(crate) join: Cost,
    pub(crate) leave: Cost,
    /// One server restarts, and its clients come back to it within two seconds.
    pub(crate) restart: Cost,
    /// Memory of all servers, without the model's own.
    pub(crate) bytes_per_key_and_server: f64,
    pub(crate) wall: Duration,
}

/// A region as it comes, loses a server and gets it back; checked at the end.
pub(crate) fn measure(settings: Settings) -> Figures {
    let Settings { servers, clients, .. } = settings;
    let begun = Instant::now();
    let mut world = begin_within(1, settings, SPREAD);
    for client in 0..clients {
        world.connect(client, client % servers);
    }
    let before = memory::resident();
    let start = cost(&mut world, 0, |_| {});
    let grown = memory::resident().saturating_sub(before) as f64;
    let (last, home) = (clients - 1, (clients - 1) % servers);
    let leave = cost(&mut world, 10 * SECOND, |world| world.disconnect(last));
    let join = cost(&mut world, 10 * SECOND, |world| world.connect(last, home));
    let restart = cost(&mut world, 0, |world| {
        world.crash(0, true);
        world.run_for(SECOND);
        world.restart(0, SPREAD);
        let of_it: Vec<_> = (0..clients).step_by(servers).collect();
        let pause = 2 * SECOND / of_it.len() as u64;
        for client in of_it {
            world.connect(client, 0);
            world.run_for(pause);
        }
    });
    world.check_presence();
    world.check_deliveries(200);
    Figures {
        servers,
        clients,
        start,
        join,
        leave,
        restart,
        bytes_per_key_and_server: grown / (servers * clients) as f64,
        wall: begun.elapsed(),
    }
}

/// Runs a change, and on until nobody has heard anything new for ten seconds.
fn cost(world: &mut World, lead: u64, change: impl FnOnce(&mut World)) -> Cost {
    world.run_for(lead);
    let Tally { news, news_bytes, .. } = world.tally;
    let begun = world.now();
    change(world);
    while world.now() < world.tally.last_news.max(begun) + 10 * SECOND {
        world.run_for(SECOND);
    }
    Cost {
        frames: world.tally.news - news,
        bytes: world.tally.news_bytes - news_bytes,
        settled_after: Duration::from_nanos(world.tally.last_news.saturating_sub(begun)),
    }
}

/// What must come out, by counting: every server tells every other of its clients and of the servers that
/// are connected to it.
pub(crate) struct Foretold {
    pub(crate) start_frames: u64,
    pub(crate) restart_frames: u64,
    /// Seconds.
    pub(crate) start_settled_after: f64,
}

impl Foretold {
    pub(crate) fn of(settings: &Settings) -> Self {
        let (servers, clients) = (settings.servers as u64, settings.clients as u64);
        let others = servers - 1;
        let start_frames = others * clients + servers * others * others;
        let of_one = clients.div_ceil(servers);
        // Its clients leave with it, which nobody has to be told; they come back to it. It hears of
        // everybody, and each other server tells the rest that it went and came.
        let restart_frames = others * (2 * of_one + 2 * others + 2 * (others - 1));
        let heard = start_frames as f64 / servers as f64;
        let seconds = |nanoseconds: u64| nanoseconds as f64 / SECOND as f64;
        // Each frame takes the interface first and then the mesh thread. That begins when the first of the
        // others has dialled, and cannot end before the last one has.
        let busy = heard * (56.0 / settings.rate as f64 + seconds(settings.work));
        let spread = seconds(SPREAD);
        Self {
            start_frames,
            restart_frames,
            start_settled_after: (spread / servers as f64 + busy).max(spread)
                + seconds(8 * settings.delay),
        }
    }
}

impl Settings {
    /// The same on slower lines over a greater distance.
    pub(crate) fn slow(self) -> Self {
        Self { rate: 12_500_000, delay: 20 * MILLISECOND, ..self }
    }
}
