//! Who is let in, and within which limits.

use super::Report;
use crate::metrics::families::{Families, Sample};

impl Report {
    pub(super) fn admission(&self, families: &mut Families) {
        let admission = &self.admission;
        families.counters(
            "derpd_admissions_total",
            "Logins decided, by who decided, how and why.",
            admission.verdicts.iter().map(|(verdict, count)| Sample {
                labels: [
                    ("source", verdict.source()),
                    ("decision", if verdict.is_admitted() { "admitted" } else { "refused" }),
                    ("reason", verdict.reason()),
                ],
                value: *count as f64,
            }),
        );
        families.counter(
            "derpd_admission_cache_hits_total",
            "Logins decided by an answer that was remembered.",
            admission.cache_hits,
        );
        families.gauges(
            "derpd_allowed_keys",
            "Keys on each allow list.",
            admission.lists.iter().map(|(source, keys, _)| Sample {
                labels: [("source", *source)],
                value: *keys as f64,
            }),
        );
        families.gauges(
            "derpd_allow_list_age_seconds",
            "Time since the control server last sent its list.",
            admission.lists.iter().filter_map(|(source, _, age)| {
                Some(Sample { labels: [("source", *source)], value: (*age)?.as_secs_f64() })
            }),
        );
        families.gauge(
            "derpd_open_relay",
            "1 if anybody may use this relay.",
            if admission.open { 1.0 } else { 0.0 },
        );
    }

    pub(super) fn limits(&self, families: &mut Families) {
        if let Some(limit) = self.rates {
            let (rate, burst) = limit.map_or((0, 0), |limit| (limit.bytes_per_second, limit.burst));
            families.gauge(
                "derp_rate_limit_per_client_bytes_per_second",
                "Bytes per second that each client may send; 0 for any number.",
                rate as f64,
            );
            families.gauge(
                "derp_rate_limit_per_client_burst_bytes",
                "Bytes that each client may send at once.",
                burst as f64,
            );
            families.counter(
                "derp_rate_limit_per_client_waited",
                "Frames that had to wait for the rate limit of their client.",
                self.totals.rate_limit_waits,
            );
        }
        if let Some(faults) = self.proxy_faults {
            families.counter(
                "derpd_proxy_protocol_errors_total",
                "Connections of trusted proxies without a good PROXY header.",
                faults,
            );
        }
        families.counters(
            "derpd_reloads_total",
            "Reloads on SIGHUP, by result; after a failed one nothing has changed.",
            [("ok", self.reloads.good), ("failed", self.reloads.bad)].map(|(result, count)| {
                Sample { labels: [("result", result)], value: count as f64 }
            }),
        );
    }
}
