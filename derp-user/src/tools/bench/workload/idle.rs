//! What connections cost that do nothing.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::tools::bench::{
    BenchError, Setting, dial,
    load::{self, Peer},
    report::{Figures, IdleReport, IdleServer},
    statistics::per,
};

/// How often the progress bar moves while nothing happens.
const STEP: Duration = Duration::from_millis(100);

/// How long the server has to forget the clients that warmed it up.
const REST: Duration = Duration::from_millis(300);

/// Opens connections, holds them, closes them, and looks at the server's memory after each step.
pub(super) fn run(
    setting: &Setting,
    connections: usize,
    warm_up: usize,
    hold: Duration,
    settle: Duration,
) -> Result<Figures, BenchError> {
    let process = setting.process;
    let rss = || process.map(|process| process.resident_kib()).transpose();
    let cpu = || process.map(|process| process.cpu_seconds()).transpose();
    let rss_before = rss()?;
    if warm_up > 0 {
        dial::open(setting, warm_up)?.into_iter().map(Peer::silent).for_each(Peer::close);
        thread::sleep(REST);
    }
    let (rss_warm, cpu_before, began) = (rss()?, cpu()?, Instant::now());
    let opened = dial::open(setting, connections)?;
    let (connect_s, conns) = (began.elapsed().as_secs_f64(), opened.len());
    let cpu_connected = cpu()?;
    if conns == 0 {
        return Err(BenchError::Interrupted);
    }

    let count = setting.threads.get();
    let mut threads: Vec<Vec<Peer>> = (0..count).map(|_| Vec::new()).collect();
    for (index, connection) in opened.into_iter().enumerate() {
        threads[index % count].push(Peer::silent(connection));
    }
    // The connections are closed at the end of this; the server's memory was last looked at before.
    let outcome = load::run(setting, "holding", threads, hold)?;

    let began = Instant::now();
    setting.progress.begin_time("waiting after they have left", settle);
    while began.elapsed() < settle {
        let left = settle.saturating_sub(began.elapsed());
        if setting.stop.is_set() {
            break;
        }
        thread::sleep(left.min(STEP));
        setting.progress.at(began.elapsed());
    }
    let memory = rss_before.zip(rss_warm).zip(rss()?);
    let server = match (memory, cpu_before, cpu_connected, outcome.server) {
        (Some(((before, warm), left)), Some(cpu_before), Some(cpu_connected), Some(held)) => {
            let grown = held.rss_kib.saturating_sub(before) as f64;
            Some(IdleServer {
                server_cpu_ms_per_conn: per((cpu_connected - cpu_before) * 1e3, conns as f64),
                rss_before_kib: before,
                rss_warm_kib: warm,
                rss_after_kib: held.rss_kib,
                rss_kib_per_conn: per(grown, conns as f64),
                rss_left_kib: left,
                rss_left_ratio: per(left as f64, warm as f64),
            })
        }
        _ => None,
    };
    Ok(Figures::Idle(IdleReport {
        conns,
        warm_up,
        connect_s,
        hold_s: outcome.duration.as_secs_f64(),
        settle_s: began.elapsed().as_secs_f64(),
        disconnected: outcome.disconnected(),
        server,
    }))
}
