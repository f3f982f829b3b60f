//! The JSON that `/debug/vars` serves: derper's variables as Go's expvar shows them, for scripts that read those.
//!
//! Made from the same families as the Prometheus text, so that both tell the same. What only derpd has is in that text.

use prometheus::proto::{MetricFamily, MetricType};
use serde_json::{Map, Number, Value};

use super::Report;

/// Counters of the group `derp` whose names say that they are.
const NAMED_COUNTERS: [&str; 6] = [
    "buffered_write_frames",
    "mesh_update_batch_size",
    "mesh_update_loop_count",
    "packets_received_kind",
    "tcp_rtt",
    "total_dup_client_conns",
];
/// Gauges of the group `derp` whose names do not.
const BARE_GAUGES: [&str; 3] = [
    "average_queue_duration_ms",
    "rate_limit_per_client_burst_bytes",
    "rate_limit_per_client_bytes_per_second",
];

impl Report {
    /// Renders derper's variables as one JSON object.
    pub fn to_vars(&self) -> String {
        let mut vars = Map::new();
        let arguments = std::env::args_os().map(|text| text.to_string_lossy().into_owned());
        vars.insert("cmdline".to_owned(), Value::from_iter(without_secrets(arguments)));
        vars.insert("version".to_owned(), self.version.into());
        for family in self.families().as_slice() {
            let Some((group, name)) = place(family) else { continue };
            let group = match group {
                Some(group) => object(&mut vars, group),
                None => Some(&mut vars),
            };
            if let Some(group) = group {
                group.insert(name, value(family));
            }
        }
        if let Some(derp) = object(&mut vars, "derp") {
            derp.insert("version".to_owned(), self.version.into());
        }
        format!("{:#}\n", Value::from(vars))
    }
}

/// The flag whose value is a secret itself, not the name of a file with one.
const SECRET: &str = "acme-eab-key";
/// What is shown in the place of a secret.
const HIDDEN: &str = "...";

/// The command line without its secrets, and without the queries of addresses, in which services have tokens.
fn without_secrets(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut is_secret = false;
    let hide = |argument: String| {
        if std::mem::take(&mut is_secret) {
            return HIDDEN.to_owned();
        }
        let (flag, value) = match argument.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (argument.as_str(), None),
        };
        if flag.starts_with('-') && flag.trim_start_matches('-') == SECRET {
            is_secret = value.is_none();
            return value.map_or_else(|| argument.clone(), |_| format!("{flag}={HIDDEN}"));
        }
        match argument.split_once('?') {
            Some((address, _)) if address.contains("://") => format!("{address}?{HIDDEN}"),
            Some(_) | None => argument,
        }
    };
    arguments.map(hide).collect()
}

/// Returns the group and the name of a metric among derper's variables; `None` if it is not one of them.
fn place(family: &MetricFamily) -> Option<(Option<&'static str>, String)> {
    let name = family.name();
    let is_gauge = family.get_field_type() == MetricType::GAUGE;
    let prefix = if is_gauge { "gauge_" } else { "counter_" };
    match name {
        "derp_bytes_dropped"
        | "derp_packets_dropped"
        | "derp_websocket_accepts"
        | "derper_tls_request_version"
        | "node_boot_time_seconds"
        | "process_start_unix_time" => return Some((None, name.to_owned())),
        "derper_tls_active_version" | "uptime_sec" => {
            return Some((None, format!("{prefix}{name}")));
        }
        _ => {}
    }
    if name.starts_with("bootstrap_dns_") {
        return Some((None, format!("{prefix}{name}")));
    }
    for group in ["stun", "tls_listener"] {
        if let Some(name) = name.strip_prefix(group).and_then(|rest| rest.strip_prefix('_')) {
            return Some((Some(group), format!("{prefix}{name}")));
        }
    }
    let name = name.strip_prefix("derp_")?;
    let is_prefixed =
        if is_gauge { !BARE_GAUGES.contains(&name) } else { NAMED_COUNTERS.contains(&name) };
    let name = if is_prefixed { format!("{prefix}{name}") } else { name.to_owned() };
    Some((Some("derp"), name))
}

/// A number; or objects of numbers, one inside the other, for each label.
fn value(family: &MetricFamily) -> Value {
    let mut values = Map::new();
    for metric in family.get_metric() {
        let value = match family.get_field_type() {
            MetricType::GAUGE => number(metric.get_gauge().get_value()),
            MetricType::HISTOGRAM => histogram(metric.get_histogram()),
            MetricType::COUNTER | MetricType::SUMMARY | MetricType::UNTYPED => {
                number(metric.get_counter().get_value())
            }
        };
        let labels = metric.get_label();
        let Some((last, groups)) = labels.split_last() else { return value };
        let within =
            groups.iter().try_fold(&mut values, |within, label| object(within, label.value()));
        if let Some(within) = within {
            within.insert(last.value().to_owned(), value);
        }
    }
    values.into()
}

fn histogram(histogram: &prometheus::proto::Histogram) -> Value {
    let buckets = histogram.get_bucket().iter();
    let mut values: Map<_, _> = buckets
        .map(|bucket| (bucket.upper_bound().to_string(), bucket.cumulative_count().into()))
        .collect();
    let count = Value::from(histogram.get_sample_count());
    values.insert("+Inf".to_owned(), count.clone());
    values.insert("count".to_owned(), count);
    values.insert("sum".to_owned(), number(histogram.get_sample_sum()));
    values.into()
}

/// A whole number is written as one.
fn number(value: f64) -> Value {
    let text = value.to_string();
    text.parse::<Number>().map_or(Value::Null, Value::Number)
}

/// The object of this name in another one, made if there is none; `None` if the name stands for something else.
fn object<'a>(
    within: &'a mut Map<String, Value>,
    name: &str,
) -> Option<&'a mut Map<String, Value>> {
    within.entry(name).or_insert_with(|| Value::Object(Map::new())).as_object_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_the_command_line_is_shown_without_its_secrets() {
        let shown = |text: &str| without_secrets(text.split(' ').map(str::to_owned)).join(" ");
        for (given, expected) in [
            ("derpd -a :443 -acme-eab-key c2VjcmV0 -dev", "derpd -a :443 -acme-eab-key ... -dev"),
            (
                "derpd --acme-eab-key=c2VjcmV0 -acme-eab-kid=me",
                "derpd --acme-eab-key=... -acme-eab-kid=me",
            ),
            (
                "derpd -verify-client-url=http://h/?token=t",
                "derpd -verify-client-url=http://h/?...",
            ),
            (
                "derpd -verify-client-url http://h/?token=t",
                "derpd -verify-client-url http://h/?...",
            ),
            ("derpd -log x?y -acme-eab-key", "derpd -log x?y -acme-eab-key"),
        ] {
            assert_eq!(shown(given), expected);
        }
    }
}
