//! A whole region in one thread: the relay's rules of many servers, on a virtual clock, joined by links that
//! delay, stall, break and lose what is on its way, with servers that crash and clients that come, move and
//! leave.
//!
//! Every run follows from its seed. `DERPD_SIMULATION_SEEDS` says how many are tried, 60 unless set;
//! `DERPD_TEST_SEED` repeats one. What large regions cost is measured by `cargo xtask scale`.

mod clients;
mod faults;
mod invariants;
mod keys;
mod links;
mod memory;
mod node;
mod random;
mod scale;
mod schedule;
mod servers;
mod tables;
mod world;

use random::Random;
use schedule::{MILLISECOND, SECOND};
use world::{Settings, World};

/// A region whose links are slow and whose frames take any time.
fn small(servers: usize, clients: usize) -> Settings {
    Settings {
        servers,
        clients,
        rate: 0,
        delay: MILLISECOND,
        jitter: 80 * MILLISECOND,
        work: 0,
        slowest_pace: 4 * MILLISECOND,
        forget_at_once: 3,
        checks: true,
    }
}

/// A region whose servers dial each other within `spread`.
fn begin_within(seed: u64, settings: Settings, spread: u64) -> World {
    let mut world = World::new(seed, settings);
    for dialler in 0..settings.servers {
        world.dial_everybody(dialler as u32, spread);
    }
    world
}

fn begin(seed: u64, settings: Settings) -> World {
    begin_within(seed, settings, 80 * MILLISECOND)
}

fn simulate(seed: u64) {
    let mut random = Random(seed ^ 0x5eed);
    let (servers, clients) = (3 + random.below(6), 5 + random.below(40));
    let mut world = begin(seed, small(servers, clients));
    for _ in 0..6 {
        for _ in 0..150 {
            world.change();
            let pause = world.random.next() % (30 * MILLISECOND);
            world.run_for(pause);
        }
        world.check_settled();
    }
    assert!(world.tally.delivered > 0);
}

#[test]
fn a_region_settles_after_whatever_happens() {
    let number =
        |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("DERPD_TEST_SEED") {
        return simulate(seed);
    }
    for seed in 0..number("DERPD_SIMULATION_SEEDS").unwrap_or(60) {
        // Printed only if this fails.
        println!("DERPD_TEST_SEED={seed}");
        simulate(seed);
    }
}

/// More clients than a watcher is told of at once, coming and going while it is told.
#[test]
fn servers_with_many_clients_settle() {
    const CLIENTS: usize = 6000;
    let mut world = begin(7, Settings { checks: false, ..small(3, CLIENTS) });
    for client in 0..CLIENTS {
        world.connect(client, client % 3);
    }
    for _ in 0..3 {
        // While the links come again and everything is told anew, clients do not stand still.
        (0..world.links.len() as u32).for_each(|link| world.cut(link));
        for _ in 0..2000 {
            let (client, server) = (world.random.below(CLIENTS), world.random.below(3));
            world.disconnect(client);
            if world.random.once_in(2) {
                world.connect(client, server);
            }
            if world.random.once_in(2) {
                world.run_for(MILLISECOND);
            }
        }
        world.check_settled();
        assert_eq!(world.servers[0].relay.check(), Ok(()));
    }
}

/// News wait for a link that takes none, but not without end: then the watcher is closed, and begins anew.
#[test]
fn a_watcher_that_hears_nothing_is_closed_and_begins_anew() {
    const CLIENTS: usize = 1000;
    let mut world = begin(11, Settings { checks: false, ..small(3, CLIENTS) });
    world.run_for(SECOND);
    let deaf = world.servers[0].links_to[1].expect("a link");
    world.links[deaf as usize].way(links::Side::Dialler).stalled_until = world.now() + 600 * SECOND;
    for round in 0..60 {
        for client in 0..CLIENTS {
            world.disconnect(client);
            world.connect(client, 1);
        }
        world.run_for(50 * MILLISECOND);
        let most = links::SOCKET + links::MOST_NEWS;
        assert!(
            world.links[deaf as usize].way(links::Side::Dialler).backlog <= most + 56,
            "{round}"
        );
    }
    assert_eq!(world.tally.overwhelmed, 1);
    world.check_settled();
}

/// What is written in `docs/SCALE.md` is computed from counts like these.
#[test]
fn a_large_region_settles_as_foretold() {
    let settings = scale::large(50, 20_000);
    let foretold = scale::Foretold::of(&settings);
    let figures = scale::measure(settings);
    assert_eq!(figures.start.frames, foretold.start_frames);
    let told = figures.restart.frames as f64 / foretold.restart_frames as f64;
    assert!((0.98..1.02).contains(&told), "{figures:?}");
    assert_eq!((figures.join.frames, figures.join.bytes), (49, 49 * 56));
    assert_eq!((figures.leave.frames, figures.leave.bytes), (49, 49 * 38));
    let late = figures.start.settled_after.as_secs_f64() / foretold.start_settled_after;
    assert!((0.8..1.2).contains(&late), "{figures:?}");
}
