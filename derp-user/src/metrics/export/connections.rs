//! Who is connected, and by way of which listener.

use super::Report;
use crate::{
    http::TlsVersion,
    metrics::families::{Families, Sample},
};

impl Report {
    pub(super) fn connections(&self, families: &mut Families) {
        let gauges = &self.gauges;
        for (name, help, value) in [
            ("derp_clients_local", "Keys connected to this server.", gauges.clients_local),
            ("derp_clients_remote", "Keys known through mesh peers.", gauges.clients_remote),
            ("derp_clients_total", "Keys known to this server.", gauges.clients_total()),
            ("derp_current_connections", "Registered connections.", gauges.current_connections),
            (
                "derp_current_dup_client_conns",
                "Connections of keys that have more than one.",
                gauges.current_dup_client_conns,
            ),
            (
                "derp_current_dup_client_keys",
                "Keys with more than one connection.",
                gauges.current_dup_client_keys,
            ),
            (
                "derp_current_home_connections",
                "Connections whose client calls this its home.",
                gauges.current_home_connections,
            ),
            (
                "derp_current_notideal_connections",
                "Connections whose client prefers another node of the region.",
                gauges.current_notideal_connections,
            ),
            ("derp_watchers", "Connections told who comes and goes.", gauges.watchers),
            ("derpd_active_workers", "Threads that relay now.", gauges.active_workers),
        ] {
            families.gauge(name, help, value as f64);
        }
        families.counter(
            "derp_total_dup_client_conns",
            "Connections that joined another one of the same key.",
            gauges.total_dup_client_conns,
        );
        families.counters(
            "derp_tcp_rtt",
            "Round trip times of clients' TCP connections, each sampled every 10 s.",
            self.round_trips
                .iter()
                .flatten()
                .map(|&(bucket, count)| Sample { labels: [("le", bucket)], value: count as f64 }),
        );
        if self.tls {
            self.tls(families);
        }
    }

    fn tls(&self, families: &mut Families) {
        for (name, help, value) in [
            (
                "tls_listener_accepted_connections",
                "Connections accepted on the TLS listener.",
                self.totals.tls_accepted,
            ),
            (
                "tls_listener_rejected_connections",
                "Connections closed because of the accept limit.",
                self.totals.tls_rejected,
            ),
            (
                "derpd_tls_handshake_failures_total",
                "TLS handshakes that failed.",
                self.totals.tls_handshake_failures,
            ),
        ] {
            families.counter(name, help, value);
        }
        let by_version = |count: fn(&(TlsVersion, u64, u64)) -> u64| {
            self.tls_requests.iter().map(move |counts| Sample {
                labels: [("version", counts.0.label())],
                value: count(counts) as f64,
            })
        };
        families.counters(
            "derper_tls_request_version",
            "Requests over TLS, by its version.",
            by_version(|&(_, requests, _)| requests),
        );
        families.gauges(
            "derper_tls_active_version",
            "Requests over TLS that are being served, DERP sessions among them, by its version.",
            by_version(|&(_, _, active)| active),
        );
    }
}
