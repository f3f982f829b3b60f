//! A report for people, within 80 columns.

use std::fmt;

use super::report::{
    ContentionReport, DelayFigures, Figures, IdleReport, LatencyReport, Load, PairFigures, Report,
    Server, StormReport, ThroughputReport,
};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Figures::Throughput(report) => throughput(f, report),
            Figures::Latency(report) => latency(f, report),
            Figures::Idle(report) => idle(f, report),
            Figures::Storm(report) => storm(f, report),
            Figures::Flood(report) => contention(f, report, "flood", "a flood to another client"),
            Figures::Stall(report) => contention(f, report, "stall", "a flood that nobody reads"),
        }
    }
}

fn throughput(f: &mut fmt::Formatter<'_>, report: &ThroughputReport) -> fmt::Result {
    writeln!(f, "throughput: {}", described(&report.load))?;
    if report.idle_connections > 0 {
        row(
            f,
            "beside",
            format_args!("{} silent connections", count(report.idle_connections as u64)),
        )?;
    }
    traffic(f, &report.load)?;
    server(f, report.server.as_ref())
}

fn latency(f: &mut fmt::Formatter<'_>, report: &LatencyReport) -> fmt::Result {
    if report.load.pairs == 0 {
        writeln!(f, "latency: nothing beside the probes, {:.1} s", report.load.duration_s)?;
    } else {
        writeln!(f, "latency: beside {}", described(&report.load))?;
        traffic(f, &report.load)?;
    }
    let (probes, answered) = (count(report.probes), count(report.answered));
    row(f, "probes", format_args!("{probes} of 128 B, {answered} arrived"))?;
    delays(f, &report.delays)?;
    server(f, report.server.as_ref())
}

fn idle(f: &mut fmt::Formatter<'_>, report: &IdleReport) -> fmt::Result {
    let conns = count(report.conns as u64);
    writeln!(f, "idle: {conns} connections, held for {:.1} s", report.hold_s)?;
    row(f, "connecting", format_args!("{:.2} s", report.connect_s))?;
    lost_connections(f, report.disconnected)?;
    let Some(used) = &report.server else { return Ok(()) };
    row(f, "server CPU", format_args!("{:.3} ms per connection", used.server_cpu_ms_per_conn))?;
    let (before, after) = (mib(used.rss_before_kib), mib(used.rss_after_kib));
    row(f, "server memory", format_args!("{before} before, {after} with all connections"))?;
    row(f, "", format_args!("{:.2} KiB per connection", used.rss_kib_per_conn))?;
    let (left, ratio) = (mib(used.rss_left_kib), used.rss_left_ratio);
    let settle = report.settle_s;
    row(f, "", format_args!("{left} {settle:.1} s after they left"))?;
    let (warm, warm_up) = (mib(used.rss_warm_kib), count(report.warm_up as u64));
    row(f, "", format_args!("{ratio:.2} of the {warm} after the first {warm_up} had left"))
}

fn storm(f: &mut fmt::Formatter<'_>, report: &StormReport) -> fmt::Result {
    let conns = count(report.conns);
    writeln!(f, "storm: {conns} connections, {} at a time", report.concurrency)?;
    let (per_second, seconds) = (report.connects_per_s, report.connect_s);
    row(f, "connecting", format_args!("{per_second:.0} per second, {seconds:.2} s in all"))?;
    let StormReport { p50_ms, p99_ms, max_ms, .. } = report;
    row(f, "time", format_args!("median {p50_ms:.2} ms, p99 {p99_ms:.2} ms, max {max_ms:.2} ms"))?;
    row(f, "generator CPU", format_args!("{:.2} s", report.client_cpu_s))?;
    let Some(used) = &report.server else { return Ok(()) };
    let (seconds, each) = (used.server_cpu_s, used.server_cpu_ms_per_conn);
    row(f, "server CPU", format_args!("{seconds:.2} s, {each:.3} ms per connection"))?;
    let (before, after) = (mib(used.rss_before_kib), mib(used.rss_kib));
    row(f, "server memory", format_args!("{before} before, {after} after"))
}

fn contention(
    f: &mut fmt::Formatter<'_>,
    report: &ContentionReport,
    name: &str,
    trouble: &str,
) -> fmt::Result {
    let (rate, seconds) = (report.rate_mbps, report.duration_s);
    writeln!(f, "{name}: a pair at {rate} Mbit/s beside {trouble}, {seconds:.1} s")?;
    pair(f, "alone", &report.pair_alone)?;
    pair(f, "beside", &report.pair_beside)?;
    let (sent, received) = (count(report.flood_sent), count(report.flood_recv));
    let rate = report.flood_recv_mbps;
    row(f, "flood", format_args!("{sent} sent, {received} arrived, {rate:.1} Mbit/s"))?;
    lost_connections(f, report.disconnected)?;
    server(f, report.server.as_ref())
}

fn pair(f: &mut fmt::Formatter<'_>, label: &str, pair: &PairFigures) -> fmt::Result {
    let (sent, loss) = (count(pair.sent), pair.loss_pct);
    row(f, label, format_args!("{sent} packets sent, {loss:.3} % lost"))?;
    delays(f, &pair.delays)
}

fn described(load: &Load) -> String {
    let pairs = if load.pairs == 1 { "1 pair".to_owned() } else { format!("{} pairs", load.pairs) };
    let offered = match load.offered_mbps {
        Some(rate) => format!("{rate} Mbit/s offered"),
        None => "flat out".to_owned(),
    };
    let unit = if load.size.to_string().ends_with("mixed") { "" } else { " B" };
    format!("{pairs}, {}{unit}, {offered}, {:.1} s", load.size, load.duration_s)
}

fn traffic(f: &mut fmt::Formatter<'_>, load: &Load) -> fmt::Result {
    row(f, "sent", format_args!("{} packets", count(load.sent)))?;
    let (received, rate, loss) = (count(load.recv), load.recv_mbps, load.loss_pct);
    row(f, "arrived", format_args!("{received} packets, {rate:.1} Mbit/s, {loss:.3} % lost"))?;
    lost_connections(f, load.disconnected)?;
    let (seconds, each) = (load.client_cpu_s, load.client_us_per_pkt);
    row(f, "generator CPU", format_args!("{seconds:.2} s, {each:.2} µs per packet"))
}

fn lost_connections(f: &mut fmt::Formatter<'_>, disconnected: u64) -> fmt::Result {
    if disconnected == 0 {
        return Ok(());
    }
    row(f, "lost", format_args!("{} connections ended before their time", count(disconnected)))
}

fn delays(f: &mut fmt::Formatter<'_>, figures: &DelayFigures) -> fmt::Result {
    let DelayFigures { p50_us, p90_us, p99_us, p999_us, max_us } = figures;
    row(
        f,
        "delay, µs",
        format_args!(
            "median {p50_us:.0}, p90 {p90_us:.0}, p99 {p99_us:.0}, p99.9 {p999_us:.0}, max {max_us:.0}"
        ),
    )
}

fn server(f: &mut fmt::Formatter<'_>, server: Option<&Server>) -> fmt::Result {
    let Some(used) = server else { return Ok(()) };
    let (seconds, each) = (used.server_cpu_s, used.server_us_per_pkt);
    row(f, "server CPU", format_args!("{seconds:.2} s, {each:.2} µs per packet"))?;
    let [before, end, peak] = [used.rss_before_kib, used.rss_kib, used.rss_peak_kib].map(mib);
    row(f, "server memory", format_args!("{before} before, {end} at the end, {peak} at most"))
}

fn row(f: &mut fmt::Formatter<'_>, label: &str, text: fmt::Arguments<'_>) -> fmt::Result {
    writeln!(f, "  {label:<14} {text}")
}

fn mib(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

/// A number with its thousands apart.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::bench::{
        frames::Size,
        report::{IdleServer, StormServer},
    };

    const DELAYS: DelayFigures = DelayFigures {
        p50_us: 123.4,
        p90_us: 456.7,
        p99_us: 12_345.6,
        p999_us: 123_456.7,
        max_us: 1_234_567.8,
    };

    fn load(pairs: usize) -> Load {
        Load {
            pairs,
            size: Size::Fixed(1400),
            offered_mbps: Some(300.0),
            duration_s: 5.0,
            sent: 133_929,
            recv: 133_928,
            loss_pct: 0.000_746,
            recv_mbps: 299.99,
            disconnected: 0,
            client_cpu_s: 0.9,
            client_us_per_pkt: 6.72,
        }
    }

    fn server() -> Server {
        Server {
            server_cpu_s: 1.5,
            server_us_per_pkt: 11.2,
            rss_before_kib: 10_240,
            rss_kib: 11_264,
            rss_peak_kib: 12_288,
        }
    }

    fn all() -> [Report; 6] {
        let pair = PairFigures { sent: 4465, recv: 4465, loss_pct: 0.0, delays: DELAYS };
        let contention = |stalled_sent| ContentionReport {
            rate_mbps: 10.0,
            duration_s: 5.0,
            pair_alone: pair,
            pair_beside: pair,
            flood_sent: 1_234_567_890,
            flood_recv: 1_234_567_890,
            flood_recv_mbps: 12_345.6,
            stalled_sent,
            disconnected: 1,
            client_cpu_s: 1.0,
            server: Some(server()),
        };
        [
            Figures::Throughput(ThroughputReport {
                load: load(10),
                idle_connections: 3000,
                server: Some(server()),
            }),
            Figures::Latency(LatencyReport {
                load: load(1),
                probes: 5000,
                answered: 5000,
                delays: DELAYS,
                server: None,
            }),
            Figures::Idle(IdleReport {
                conns: 10_000,
                warm_up: 10,
                connect_s: 9.5,
                hold_s: 3.0,
                settle_s: 5.0,
                disconnected: 0,
                server: Some(IdleServer {
                    server_cpu_ms_per_conn: 0.5,
                    rss_before_kib: 9_216,
                    rss_warm_kib: 10_240,
                    rss_after_kib: 102_400,
                    rss_kib_per_conn: 9.2,
                    rss_left_kib: 15_360,
                    rss_left_ratio: 1.5,
                }),
            }),
            Figures::Storm(StormReport {
                conns: 3000,
                concurrency: 16,
                connect_s: 2.0,
                connects_per_s: 1500.0,
                p50_ms: 9.0,
                p99_ms: 20.0,
                max_ms: 33.0,
                client_cpu_s: 1.9,
                server: Some(StormServer {
                    server_cpu_s: 1.8,
                    server_cpu_ms_per_conn: 0.6,
                    rss_before_kib: 10_240,
                    rss_kib: 10_240,
                }),
            }),
            Figures::Flood(contention(None)),
            Figures::Stall(contention(Some(7))),
        ]
        .map(Report)
    }

    #[test]
    fn summaries_fit_80_columns() {
        for report in all() {
            let text = report.to_string();
            assert!(text.ends_with('\n'));
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }

    #[test]
    fn a_summary_says_what_was_measured() {
        let [throughput, ..] = all();
        assert_eq!(
            throughput.to_string(),
            "\
throughput: 10 pairs, 1400 B, 300 Mbit/s offered, 5.0 s
  beside         3,000 silent connections
  sent           133,929 packets
  arrived        133,928 packets, 300.0 Mbit/s, 0.001 % lost
  generator CPU  0.90 s, 6.72 µs per packet
  server CPU     1.50 s, 11.20 µs per packet
  server memory  10.0 MiB before, 11.0 MiB at the end, 12.0 MiB at most
"
        );
    }

    #[test]
    fn json_has_the_keys_of_the_documentation() {
        let keys = |report: &Report, wanted: &[&str]| {
            let value: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
            for key in wanted {
                let value = value.pointer(&format!("/{key}")).unwrap_or_else(|| panic!("{key}"));
                assert!(value.is_number() || *key == "workload", "{key}");
            }
        };
        let [throughput, latency, idle, storm, flood, stall] = all();
        keys(
            &throughput,
            &[
                "workload",
                "pairs",
                "size",
                "duration_s",
                "sent",
                "recv",
                "loss_pct",
                "recv_mbps",
                "client_cpu_s",
                "client_us_per_pkt",
                "server_cpu_s",
                "server_us_per_pkt",
                "rss_before_kib",
                "rss_kib",
                "rss_peak_kib",
            ],
        );
        keys(&latency, &["probes", "answered", "p50_us", "p90_us", "p99_us", "p999_us", "max_us"]);
        keys(
            &idle,
            &[
                "conns",
                "connect_s",
                "server_cpu_ms_per_conn",
                "rss_before_kib",
                "rss_warm_kib",
                "rss_after_kib",
                "rss_kib_per_conn",
                "rss_left_kib",
                "rss_left_ratio",
            ],
        );
        keys(
            &storm,
            &["conns", "connect_s", "connects_per_s", "server_cpu_ms_per_conn", "p50_ms", "p99_ms"],
        );
        let contention = [
            "pair_alone/loss_pct",
            "pair_alone/p50_us",
            "pair_beside/p99_us",
            "pair_beside/p999_us",
            "flood_sent",
            "flood_recv",
            "rss_before_kib",
            "rss_peak_kib",
        ];
        keys(&flood, &contention);
        keys(&stall, &contention);
        keys(&stall, &["stalled_sent"]);
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
