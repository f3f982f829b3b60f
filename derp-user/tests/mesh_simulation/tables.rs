//! The tables of `docs/SCALE.md`. Each row is measured in a process of its own, so that no row finds memory
//! that another one has left.

use std::{
    env,
    process::{Command, Stdio},
};

use crate::{
    node,
    scale::{self, Cost},
};

/// What a process of its own is to measure: `node`, `region` or `slow`, servers, keys.
const POINT: &str = "DERPD_SCALE_POINT";

const NODES: [(usize, usize); 8] = [
    (3, 1_000),
    (3, 10_000),
    (3, 100_000),
    (3, 1_000_000),
    (30, 1_000_000),
    (100, 100_000),
    (1000, 100_000),
    (1000, 1_000_000),
];
/// A thousand servers, all of them, take more than ten minutes: a thousand million frames about each other.
const REGIONS: [(usize, usize); 5] =
    [(3, 1_000_000), (10, 1_000_000), (30, 1_000_000), (100, 100_000), (300, 100_000)];
const SLOW_REGIONS: [(usize, usize); 3] = [(3, 1_000_000), (10, 1_000_000), (100, 100_000)];

#[test]
#[ignore = "takes ten minutes: cargo xtask scale"]
fn scale_tables() {
    println!("\nOne server: its tables, and its time\n");
    println!(
        "| servers | keys | bytes per key | of them the relay's | flood: ns per frame | lock held at most, µs | \
         single change, ns | a link ends, ms | lookup, ns |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (servers, keys) in NODES {
        print_point("node", servers, keys);
    }
    for (title, kind, regions) in [
        ("1 Gbit/s, 1 ms between servers and back", "region", &REGIONS[..]),
        ("100 Mbit/s, 40 ms between servers and back", "slow", &SLOW_REGIONS[..]),
    ] {
        println!("\nWhole regions: {title}\n");
        println!(
            "| servers | keys | links | start: frames (foretold) | MB | settled after, s (foretold) | \
             a server restarts: frames (foretold) | MB | settled after, s | join: frames | ms | \
             bytes per key and server | simulated in, s |"
        );
        println!("|{}", " ---: |".repeat(13));
        for &(servers, keys) in regions {
            print_point(kind, servers, keys);
        }
    }
}

fn print_point(kind: &str, servers: usize, keys: usize) {
    let program = env::current_exe().expect("this program");
    let output = Command::new(program)
        .args(["--ignored", "--exact", "--nocapture", "tables::scale_point"])
        .env(POINT, format!("{kind} {servers} {keys}"))
        .stderr(Stdio::inherit())
        .output()
        .expect("this program runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let row = text.lines().find(|line| line.starts_with('|'));
    match row {
        Some(row) if output.status.success() => println!("{row}"),
        Some(_) | None => panic!("{kind} {servers} {keys}: {}\n{text}", output.status),
    }
}

#[test]
#[ignore = "one row of a table"]
fn scale_point() {
    let Ok(point) = env::var(POINT) else { return };
    let [kind, servers, keys] = point.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{POINT}: {point}");
    };
    let [servers, keys] = [servers, keys].map(|text| text.parse().expect("a number"));
    let settings = scale::large(servers, keys);
    match kind {
        "node" => print_node(node::measure(servers, keys)),
        "region" => print_region(&settings),
        "slow" => print_region(&settings.slow()),
        _ => panic!("{POINT}: {point}"),
    }
}

fn print_node(figures: node::Figures) {
    let node::Figures { servers, keys, .. } = figures;
    println!(
        "\n| {servers} | {keys} | {:.0} | {:.0} | {} | {} | {} | {:.1} | {} |",
        figures.bytes_per_key,
        figures.bytes_per_key_of_relay,
        figures.frame.as_nanos(),
        figures.longest.as_micros(),
        figures.change.as_nanos(),
        figures.link_end.as_secs_f64() * 1e3,
        figures.look_up.as_nanos(),
    );
}

fn print_region(settings: &crate::world::Settings) {
    let figures = scale::measure(*settings);
    let scale::Figures { servers, clients, start, join, restart, .. } = figures;
    let foretold = scale::Foretold::of(settings);
    let megabytes = |cost: Cost| cost.bytes as f64 / 1e6;
    println!(
        "\n| {servers} | {clients} | {} | {} ({}) | {:.0} | {:.2} ({:.2}) | {} ({}) | {:.1} | {:.2} | {} | {:.1} | \
         {:.0} | {:.0} |",
        servers * (servers - 1),
        start.frames,
        foretold.start_frames,
        megabytes(start),
        start.settled_after.as_secs_f64(),
        foretold.start_settled_after,
        restart.frames,
        foretold.restart_frames,
        megabytes(restart),
        restart.settled_after.as_secs_f64(),
        join.frames,
        join.settled_after.as_secs_f64() * 1e3,
        figures.bytes_per_key_and_server,
        figures.wall.as_secs_f64(),
    );
}
