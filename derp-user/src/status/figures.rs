//! The few numbers that are shown large.

use super::{Status, words};

/// A name and its number in words.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Figure {
    /// What it is.
    pub name: &'static str,
    /// How much.
    pub value: String,
    /// What else there is to say of it.
    pub note: String,
    /// Whether somebody should look at it.
    pub is_notable: bool,
}

/// The numbers of the moment.
pub fn figures(status: &Status) -> Vec<Figure> {
    let rate = |series: &str| f64::from(status.history.newest(series));
    let sum = |prefix: &str| -> f64 {
        let series = status.history.series.keys().filter(|name| name.starts_with(prefix));
        series.map(|name| rate(name)).sum()
    };
    let (dropped, failed) = (sum("dropped_"), rate("tls_handshake_failures"));
    let kernel_share = |kernel: &str, userspace: &str| {
        format!(
            "{} in the kernel, {} in userspace",
            words::rate(rate(kernel)),
            words::rate(rate(userspace))
        )
    };
    let figure = |name, value, note| Figure { name, value, note, is_notable: false };
    vec![
        figure(
            "From clients",
            words::bits(rate("bytes_received")),
            words::packets(rate("packets_received")),
        ),
        figure("To clients", words::bits(rate("bytes_sent")), words::packets(rate("packets_sent"))),
        Figure {
            is_notable: dropped > 0.0,
            ..figure(
                "Dropped",
                words::rate(dropped),
                format!("{} since the start", words::number(dropped_ever(status) as f64)),
            )
        },
        figure(
            "Connections",
            status.value("connections").to_string(),
            format!("{} call this home", status.clients.home),
        ),
        Figure {
            is_notable: failed > 0.0,
            ..figure(
                "Handshakes",
                words::rate(rate("tls_accepted")),
                format!("{} failed", words::rate(failed)),
            )
        },
        figure(
            "STUN",
            words::rate(rate("stun_kernel") + rate("stun_userspace")),
            kernel_share("stun_kernel", "stun_userspace"),
        ),
        figure(
            "Flow packets",
            words::rate(rate("flow_packets_kernel") + rate("flow_packets_userspace")),
            kernel_share("flow_packets_kernel", "flow_packets_userspace"),
        ),
        figure(
            "Processor",
            format!("{:.1} %", rate("cpu")),
            match status.value("active_workers") {
                1 => "of one; 1 thread relays".to_owned(),
                workers => format!("of one; {workers} threads relay"),
            },
        ),
        figure("Memory", words::bytes(status.value("memory")), "resident".to_owned()),
    ]
}

fn dropped_ever(status: &Status) -> u64 {
    let values = status.values.iter().filter(|(name, _)| name.starts_with("dropped_"));
    values.map(|(_, value)| *value).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::status::{Reading, Samples, Since};

    #[test]
    fn figures_are_of_the_newest_sample() {
        let mut samples = Samples::new(0);
        let at = Duration::from_secs;
        samples.add(Reading { at: at(2), ..Reading::default() });
        let reading = Reading {
            at: at(4),
            bytes_received: 250_000,
            packets_received: 400,
            dropped_queue_head: 3,
            dropped_by_xdp: 1,
            stun_kernel: 1990,
            stun_userspace: 10,
            cpu: 150_000_000,
            connections: 12,
            memory: 20_500_000,
            ..Reading::default()
        };
        samples.add(reading);
        let status = Status::default().with_samples(&samples, &reading, Since::Last);
        let figures = figures(&status);
        let figure = |name| figures.iter().find(|figure| figure.name == name).unwrap();
        let text = |name| (figure(name).value.as_str(), figure(name).note.as_str());
        assert_eq!(text("From clients"), ("1.00 Mbit/s", "200 packets/s"));
        assert_eq!(text("Dropped"), ("2/s", "4 since the start"));
        assert_eq!(text("STUN"), ("1.00 k/s", "995/s in the kernel, 5/s in userspace"));
        assert_eq!(text("Processor"), ("7.5 %", "of one; 0 threads relay"));
        assert_eq!(text("Memory"), ("20.5 MB", "resident"));
        let notable: Vec<_> = figures.iter().filter(|it| it.is_notable).map(|it| it.name).collect();
        assert_eq!(notable, ["Dropped"]);
    }
}
