//! Clients that come and go.

use std::{num::NonZeroUsize, time::Instant};

use crate::tools::bench::{
    BenchError, Setting, dial,
    process::own_cpu_seconds,
    report::{Figures, StormReport, StormServer, millis},
    statistics::{Delays, per},
};

/// Connects, logs in and leaves, `connections` times.
pub(super) fn run(
    setting: &Setting,
    connections: usize,
    concurrency: usize,
) -> Result<Figures, BenchError> {
    dial::check_file_limit(concurrency)?;
    let process = setting.process;
    let cpu = || process.map(|process| process.cpu_seconds()).transpose();
    let rss = || process.map(|process| process.resident_kib()).transpose();
    let (rss_before, cpu_before, client_before) = (rss()?, cpu()?, own_cpu_seconds()?);
    setting.progress.begin("connecting and leaving", connections as u64);
    let began = Instant::now();
    let concurrency = NonZeroUsize::new(concurrency).unwrap_or(dial::CONCURRENCY);
    let attempts = dial::for_each(setting, connections, concurrency, async |client, _, took| {
        client.close().await;
        Ok(took)
    })?;
    let connect_s = began.elapsed().as_secs_f64();
    let client_cpu_s = own_cpu_seconds()? - client_before;
    let mut delays = Delays::default();
    for (number, attempt) in attempts {
        let wanted = connections;
        delays.record(attempt.map_err(|source| BenchError::Connect {
            number: number + 1,
            wanted,
            source,
        })?);
    }
    let conns = delays.count();
    if conns == 0 {
        return Err(BenchError::Interrupted);
    }
    let server = match (cpu()?, cpu_before, rss()?, rss_before) {
        (Some(after), Some(before), Some(rss_kib), Some(rss_before_kib)) => Some(StormServer {
            server_cpu_s: after - before,
            server_cpu_ms_per_conn: per((after - before) * 1e3, conns as f64),
            rss_before_kib,
            rss_kib,
        }),
        _ => None,
    };
    Ok(Figures::Storm(StormReport {
        conns,
        concurrency: concurrency.get(),
        connect_s,
        connects_per_s: per(conns as f64, connect_s),
        p50_ms: millis(delays.quantile(0.5)),
        p99_ms: millis(delays.quantile(0.99)),
        max_ms: millis(delays.longest()),
        client_cpu_s,
        server,
    }))
}
