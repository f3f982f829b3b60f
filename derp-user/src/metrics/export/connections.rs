//! Who is connected, and by way of which listener.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Report;
use crate::{
    http::TlsVersion,
    metrics::families::{Families, Sample},
    tls::CertificateFigures,
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
            (
                "derpd_arriving_connections",
                "Connections that have not logged in, browsers among them.",
                gauges.arriving_connections,
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
        for (name, help, value) in [
            (
                "derpd_connections_refused_total",
                "Connections closed because there were as many as there may be.",
                self.totals.connections_refused,
            ),
            (
                "derpd_arrivals_evicted_total",
                "Connections closed before they logged in, to make room for others.",
                self.totals.arrivals_evicted,
            ),
            (
                "derpd_accept_failures_total",
                "Times that no connection could be accepted.",
                self.totals.accept_failures,
            ),
        ] {
            families.counter(name, help, value);
        }
        families.counters(
            "derp_tcp_rtt",
            "Round trip times of clients' TCP connections, each sampled every 10 s.",
            self.round_trips
                .iter()
                .flatten()
                .map(|&(bucket, count)| Sample { labels: [("le", bucket)], value: count as f64 }),
        );
        if let Some(certificates) = &self.certificates {
            self.tls(certificates, families);
        }
    }

    fn tls(&self, certificates: &CertificateFigures, families: &mut Families) {
        let seconds =
            |time: &SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        families.gauges(
            "derpd_certificate_expiry_timestamp_seconds",
            "End of the life of each certificate since the Unix epoch in seconds.",
            certificates.expiries.iter().map(|(name, time)| Sample {
                labels: [("name", name.as_str())],
                value: seconds(time),
            }),
        );
        families.counters(
            "derpd_certificate_updates_total",
            "New certificates while the relay ran, by result.",
            [("ok", certificates.updates), ("failed", certificates.failures)].map(
                |(result, count)| Sample { labels: [("result", result)], value: count as f64 },
            ),
        );
        families.gauge(
            "derpd_certificates_unsaved",
            "Certificates that are served but could not be saved: a restart would lose them.",
            certificates.unsaved as f64,
        );
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
