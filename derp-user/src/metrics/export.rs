//! The Prometheus text that `/debug/varz` serves.
//!
//! Names are derper's, so that existing dashboards and alerts keep working; that is why most counters lack the
//! customary `_total`. What derper does not have starts with `derpd_`. Only what is really measured appears.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::TextEncoder;

use super::{
    DropReason, Gauges, MeshView, PacketKind, Totals, UdpFigures,
    counters::FRAMES_PER_WRITE_BOUNDS,
    families::{Families, Sample},
    process::ProcessFigures,
};
use crate::{admit::AdmissionFigures, relay::limit::RateLimit, tls::CertificateFigures};

/// What the userspace STUN server has counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StunTotals {
    /// Datagrams by what became of them (label `disposition`).
    pub requests: [(&'static str, u64); 4],
    /// Valid requests by address family (label `family`).
    pub families: [(&'static str, u64); 2],
}

/// One counter of the XDP program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KernelCount {
    /// `ipv4`, `ipv6` or `unknown`.
    pub address_family: &'static str,
    /// What became of the packets: `pass`, `drop`, `tx`, `redirect` or `aborted`.
    pub outcome: &'static str,
    /// Why, as the program's closed list of reasons spells it.
    pub reason: &'static str,
    /// Packets so far.
    pub packets: u64,
    /// Their bytes as they left the program.
    pub bytes: u64,
}

/// An interface on which the XDP program runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AttachedInterface {
    /// Name of the interface.
    pub name: String,
    /// `native` or `generic`.
    pub mode: &'static str,
}

/// What has been reloaded on SIGHUP.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Reloads {
    /// Times everything was taken into use.
    pub good: u64,
    /// Times something was at fault, so that nothing changed.
    pub bad: u64,
}

/// Everything one scrape shows.
#[derive(Clone, Debug)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// When the process started.
    pub started: SystemTime,
    /// How long ago that was, by a clock that never jumps.
    pub uptime: Duration,
    /// The certificates of the main listener; without TLS neither they nor the TLS counters exist.
    pub certificates: Option<CertificateFigures>,
    /// Sums over all workers.
    pub totals: Totals,
    /// Values of the moment.
    pub gauges: Gauges,
    /// Who was admitted, and by whom.
    pub admission: AdmissionFigures,
    /// The byte rate limit of each client, where there may be one.
    pub rates: Option<Option<RateLimit>>,
    /// Connections of trusted proxies without a good PROXY header, where there are such proxies.
    pub proxy_faults: Option<u64>,
    /// What came of SIGHUP.
    pub reloads: Reloads,
    /// The links to the other servers of the region.
    pub mesh: MeshView,
    /// The userspace STUN server, where it runs.
    pub stun: Option<StunTotals>,
    /// What is served over UDP in userspace.
    pub udp: UdpFigures,
    /// Counters of the XDP program; empty where it is not attached.
    pub kernel: Vec<KernelCount>,
    /// Where the XDP program is attached.
    pub interfaces: Vec<AttachedInterface>,
}

impl Report {
    /// Renders the report in the Prometheus text format 0.0.4.
    pub fn to_text(&self) -> String {
        let mut families = Families::default();
        self.process(&mut families);
        self.traffic(&mut families);
        self.connections(&mut families);
        self.mesh(&mut families);
        self.admission(&mut families);
        self.limits(&mut families);
        self.drops(&mut families);
        self.stun(&mut families);
        self.udp.add_to(&mut families);
        self.kernel(&mut families);
        self.program(&mut families);
        TextEncoder::new().encode_to_string(families.as_slice()).unwrap_or_else(|error| {
            tracing::error!("metrics: {error}");
            String::new()
        })
    }

    fn process(&self, families: &mut Families) {
        let figures = match ProcessFigures::read() {
            Ok(figures) => figures,
            Err(error) => {
                tracing::debug!("metrics: process figures: {error}");
                return;
            }
        };
        families.counters(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            [Sample { labels: [], value: figures.cpu_seconds }],
        );
        for (name, help, value) in [
            ("process_max_fds", "Maximum number of open file descriptors.", figures.max_files),
            ("process_open_fds", "Number of open file descriptors.", figures.open_files),
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
                figures.resident_bytes,
            ),
            (
                "process_start_time_seconds",
                "Start time of the process since the Unix epoch in seconds.",
                figures.started,
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes.",
                figures.virtual_bytes,
            ),
            (
                "derp_current_file_descriptors",
                "Number of open file descriptors.",
                figures.open_files,
            ),
        ] {
            families.gauge(name, help, value);
        }
    }

    fn traffic(&self, families: &mut Families) {
        let totals = &self.totals;
        for (name, help, value) in [
            ("derp_accepts", "DERP connections begun, before login.", totals.accepts),
            ("derp_bytes_received", "Packet bytes received from clients.", totals.bytes_received),
            ("derp_bytes_sent", "Packet bytes written to clients.", totals.bytes_sent),
            ("derp_got_ping", "Ping frames received.", totals.got_ping),
            ("derp_home_moves_in", "Clients that made this their home.", totals.home_moves_in),
            ("derp_home_moves_out", "Clients that moved home elsewhere.", totals.home_moves_out),
            (
                "derp_packets_forwarded_in",
                "Packets received from mesh peers.",
                totals.packets_forwarded_in,
            ),
            (
                "derp_packets_forwarded_out",
                "Packets handed to mesh peers.",
                totals.packets_forwarded_out,
            ),
            ("derp_packets_received", "Packets received from clients.", totals.packets_received),
            ("derp_packets_sent", "Packets written to clients.", totals.packets_sent),
            (
                "derp_peer_gone_disconnected_frames",
                "PeerGone frames written because a peer disconnected.",
                totals.peer_gone_disconnected_frames,
            ),
            (
                "derp_peer_gone_not_here_frames",
                "PeerGone frames written because a destination is not here.",
                totals.peer_gone_not_here_frames,
            ),
            (
                "derp_sclient_write_timeouts",
                "Connections closed because a write took too long.",
                totals.write_timeouts,
            ),
            ("derp_sent_pong", "Pong frames written.", totals.sent_pong),
            ("derp_unknown_frames", "Frames of unknown type, ignored.", totals.unknown_frames),
            (
                "derp_websocket_accepts",
                "DERP connections begun over WebSocket, before login.",
                totals.websocket_accepts,
            ),
        ] {
            families.counter(name, help, value);
        }
        families.counters(
            "derp_packets_received_kind",
            "Packets received from clients, by what they look like.",
            PacketKind::ALL.map(|kind| Sample {
                labels: [("kind", kind.label())],
                value: totals.packets_received_kind(kind) as f64,
            }),
        );
        families.histogram(
            "derp_buffered_write_frames",
            "Frames per write to a client.",
            &FRAMES_PER_WRITE_BOUNDS,
            &totals.buffered_write_frames.buckets,
            totals.buffered_write_frames.sum,
        );
    }

    fn connections(&self, families: &mut Families) {
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
        if let Some(certificates) = &self.certificates {
            let seconds = |time: &SystemTime| {
                time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
            };
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
            families.counter(
                "tls_listener_accepted_connections",
                "Connections accepted on the TLS listener.",
                self.totals.tls_accepted,
            );
            families.counter(
                "tls_listener_rejected_connections",
                "Connections closed because of the accept limit.",
                self.totals.tls_rejected,
            );
            families.counter(
                "derpd_tls_handshake_failures_total",
                "TLS handshakes that failed.",
                self.totals.tls_handshake_failures,
            );
        }
    }

    fn mesh(&self, families: &mut Families) {
        let (totals, gauges) = (&self.totals, &self.gauges);
        for (name, help, value) in [
            (
                "derp_multiforwarder_created",
                "Times that a key was found behind a second mesh peer.",
                gauges.multi_forwarders_created,
            ),
            (
                "derp_multiforwarder_deleted",
                "Times that a key was left behind one mesh peer of several.",
                gauges.multi_forwarders_deleted,
            ),
            (
                "derp_packet_forwarder_delete_other_value",
                "Times that a mesh peer took back a key that is elsewhere.",
                gauges.forwarders_deleted_other,
            ),
            (
                "derpd_mesh_connects_total",
                "Links to mesh peers that came to stand.",
                totals.mesh_connects,
            ),
            (
                "derpd_mesh_failures_total",
                "Attempts to connect to a mesh peer that failed, and links that broke.",
                totals.mesh_failures,
            ),
            (
                "derpd_mesh_packets_dropped_total",
                "Packets for mesh peers dropped because the link was full or had ended.",
                totals.forwards_dropped,
            ),
        ] {
            families.counter(name, help, value);
        }
        let help = "Links to mesh peers that stand.";
        families.gauge("derpd_mesh_links", help, gauges.mesh_links as f64);
        self.mesh.add_to(families);
    }

    fn admission(&self, families: &mut Families) {
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

    fn limits(&self, families: &mut Families) {
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

    fn drops(&self, families: &mut Families) {
        let series = |value: fn(&Totals, DropReason, PacketKind) -> u64| {
            DropReason::ALL.into_iter().flat_map(move |reason| {
                PacketKind::ALL.map(|kind| Sample {
                    labels: [("reason", reason.label()), ("kind", kind.label())],
                    value: value(&self.totals, reason, kind) as f64,
                })
            })
        };
        families.counters(
            "derp_bytes_dropped",
            "Packet bytes dropped, by reason and kind of packet.",
            series(Totals::bytes_dropped),
        );
        families.counters(
            "derp_packets_dropped",
            "Packets dropped, by reason and kind of packet.",
            series(Totals::packets_dropped),
        );
    }

    fn stun(&self, families: &mut Families) {
        let Some(stun) = &self.stun else { return };
        let sample = |label, (word, count): (&'static str, u64)| Sample {
            labels: [(label, word)],
            value: count as f64,
        };
        families.counters(
            "stun_addrfamily",
            "Valid requests to the userspace STUN server, by address family.",
            stun.families.map(|pair| sample("family", pair)),
        );
        families.counters(
            "stun_requests",
            "Datagrams to the userspace STUN server, by what became of them.",
            stun.requests.map(|pair| sample("disposition", pair)),
        );
    }

    fn kernel(&self, families: &mut Families) {
        let series = |value: fn(&KernelCount) -> u64| {
            self.kernel.iter().map(move |count| Sample {
                labels: [
                    ("address_family", count.address_family),
                    ("xdp_outcome", count.outcome),
                    ("prog_end", count.reason),
                ],
                value: value(count) as f64,
            })
        };
        families.counters(
            "xdp_stun_server_bytes_total",
            "Bytes seen by the XDP program, by what became of the packets and why.",
            series(|count| count.bytes),
        );
        families.counters(
            "xdp_stun_server_packets_total",
            "Packets seen by the XDP program, by what became of them and why.",
            series(|count| count.packets),
        );
        families.gauges(
            "derpd_xdp_interface",
            "1 for each interface on which the XDP program runs, with its mode.",
            self.interfaces.iter().map(|interface| Sample {
                labels: [("interface", interface.name.as_str()), ("mode", interface.mode)],
                value: 1.0,
            }),
        );
    }

    fn program(&self, families: &mut Families) {
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        families.gauge(
            "process_start_unix_time",
            "Start time of the process since the Unix epoch in seconds.",
            started.as_secs() as f64,
        );
        families.counter("uptime_sec", "Seconds since the process started.", self.uptime.as_secs());
        families.gauges(
            "version",
            "1, with the version of the program.",
            [Sample { labels: [("version", self.version), ("binary", "derpd")], value: 1.0 }],
        );
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::SocketAddr};

    use super::*;
    use crate::{
        admit::Verdict,
        flow::StateView,
        metrics::{AddressView, LinkState, PeerView, WorkerCounters},
    };

    fn udp_totals() -> crate::udp::Totals {
        let tally = crate::udp::Tally::default();
        tally.refused(derp_common::Family::Ipv4, derp_common::Reason::UnknownVni, 100);
        tally.forwarded(false, true, 2, 300);
        let mut totals = crate::udp::Totals::default();
        tally.add_to(&mut totals);
        totals
    }

    fn full_report() -> Report {
        let worker = WorkerCounters::default();
        worker.packet_dropped(DropReason::QueueHead, PacketKind::Other, 1500);
        worker.buffered_write_frames.record(3);
        worker.buffered_write_frames.record(101);
        Report {
            version: "1.2.3",
            started: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            uptime: Duration::from_millis(12_900),
            certificates: Some(CertificateFigures {
                expiries: vec![(
                    "derp.example.com".to_owned(),
                    UNIX_EPOCH + Duration::from_secs(1_800_000_000),
                )],
                updates: 10,
                failures: 11,
            }),
            totals: Totals::sum([&worker]),
            gauges: Gauges { clients_local: 2, clients_remote: 3, ..Gauges::default() },
            admission: AdmissionFigures {
                open: false,
                verdicts: vec![(Verdict::ListedByApi, 3), (Verdict::Denied, 2)],
                cache_hits: 1,
                lists: vec![
                    ("allow_keys", 4, None),
                    ("allow_api", 5, Some(Duration::from_millis(1500))),
                ],
            },
            rates: Some(Some(RateLimit { bytes_per_second: 1000, burst: 65568, announced: false })),
            proxy_faults: Some(6),
            reloads: Reloads { good: 7, bad: 8 },
            mesh: MeshView {
                peers: vec![PeerView {
                    name: "b.example".to_owned(),
                    dials: "b.example:443".to_owned(),
                    look_up_fault: None,
                    addresses: vec![AddressView {
                        address: SocketAddr::from(([192, 0, 2, 1], 443)),
                        state: LinkState::Up,
                        seconds: 5,
                        server_key: None,
                        connects: 1,
                        failures: 0,
                        last_failure: None,
                        clients: 7,
                        forwarded_packets: 3,
                        forwarded_bytes: 300,
                        dropped_packets: 0,
                    }],
                }],
            },
            stun: Some(StunTotals {
                requests: [("read_error", 0), ("not_stun", 1), ("write_error", 0), ("success", 7)],
                families: [("ipv4", 7), ("ipv6", 0)],
            }),
            udp: UdpFigures {
                totals: udp_totals(),
                flows: Some(vec![StateView::Forwarding, StateView::Learning]),
            },
            kernel: vec![KernelCount {
                address_family: "ipv4",
                outcome: "tx",
                reason: "answered",
                packets: 9,
                bytes: 700,
            }],
            interfaces: vec![AttachedInterface { name: "eth0".to_owned(), mode: "native" }],
        }
    }

    /// Checks the text against the exposition format's rules and returns the names of its families.
    fn family_names(text: &str) -> BTreeSet<String> {
        let mut families = BTreeSet::new();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(header) = line.strip_prefix("# TYPE ") {
                let (name, kind) = header.split_once(' ').unwrap();
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(families.insert(name.to_owned()), "{name} appears twice");
                current = name.to_owned();
            } else if !line.starts_with("# HELP ") {
                assert!(line.starts_with(&current), "{line} is outside its family {current}");
                let value = line.rsplit_once(' ').unwrap().1;
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
        assert!(text.ends_with('\n'));
        families
    }

    #[test]
    fn exports_the_names_that_dashboards_use() {
        let names = family_names(&full_report().to_text());
        let expected = [
            "derp_accepts",
            "derp_buffered_write_frames",
            "derp_bytes_dropped",
            "derp_bytes_received",
            "derp_bytes_sent",
            "derp_clients_local",
            "derp_clients_remote",
            "derp_clients_total",
            "derp_current_connections",
            "derp_current_dup_client_conns",
            "derp_current_dup_client_keys",
            "derp_current_file_descriptors",
            "derp_current_home_connections",
            "derp_current_notideal_connections",
            "derp_got_ping",
            "derp_home_moves_in",
            "derp_home_moves_out",
            "derp_multiforwarder_created",
            "derp_multiforwarder_deleted",
            "derp_packet_forwarder_delete_other_value",
            "derp_packets_dropped",
            "derp_packets_forwarded_in",
            "derp_packets_forwarded_out",
            "derp_packets_received",
            "derp_packets_received_kind",
            "derp_packets_sent",
            "derp_peer_gone_disconnected_frames",
            "derp_peer_gone_not_here_frames",
            "derp_rate_limit_per_client_burst_bytes",
            "derp_rate_limit_per_client_bytes_per_second",
            "derp_rate_limit_per_client_waited",
            "derp_sclient_write_timeouts",
            "derp_sent_pong",
            "derp_total_dup_client_conns",
            "derp_unknown_frames",
            "derp_watchers",
            "derp_websocket_accepts",
            "derpd_active_workers",
            "derpd_admission_cache_hits_total",
            "derpd_admissions_total",
            "derpd_allow_list_age_seconds",
            "derpd_allowed_keys",
            "derpd_certificate_expiry_timestamp_seconds",
            "derpd_certificate_updates_total",
            "derpd_mesh_connects_total",
            "derpd_mesh_failures_total",
            "derpd_mesh_link_clients",
            "derpd_mesh_link_connects_total",
            "derpd_mesh_link_forwarded_bytes_total",
            "derpd_mesh_link_forwarded_packets_total",
            "derpd_mesh_link_up",
            "derpd_mesh_links",
            "derpd_mesh_packets_dropped_total",
            "derpd_open_relay",
            "derpd_proxy_protocol_errors_total",
            "derpd_reloads_total",
            "derpd_tls_handshake_failures_total",
            "derpd_udp_flows",
            "derpd_udp_forwarded_bytes_total",
            "derpd_udp_forwarded_packets_total",
            "derpd_udp_notices_lost_total",
            "derpd_udp_refused_packets_total",
            "derpd_udp_send_failures_total",
            "derpd_xdp_interface",
            "process_cpu_seconds_total",
            "process_max_fds",
            "process_open_fds",
            "process_resident_memory_bytes",
            "process_start_time_seconds",
            "process_start_unix_time",
            "process_virtual_memory_bytes",
            "stun_addrfamily",
            "stun_requests",
            "tls_listener_accepted_connections",
            "tls_listener_rejected_connections",
            "uptime_sec",
            "version",
            "xdp_stun_server_bytes_total",
            "xdp_stun_server_packets_total",
        ];
        assert_eq!(names, expected.map(str::to_owned).into());
        const MANUAL: &str = include_str!("../../../docs/OPERATIONS.md");
        for name in expected {
            let named = [format!("`{name}`"), format!("`{name}{{")];
            assert!(named.iter().any(|name| MANUAL.contains(name)), "{name} is not in the manual");
        }
    }

    #[test]
    fn renders_values_with_labels() {
        let text = full_report().to_text();
        for line in [
            "derp_packets_dropped{reason=\"queue_head\",kind=\"other\"} 1",
            "derp_bytes_dropped{reason=\"queue_head\",kind=\"other\"} 1500",
            "derp_bytes_dropped{reason=\"dup_client\",kind=\"disco\"} 0",
            "derp_clients_total 5",
            "derp_buffered_write_frames_bucket{le=\"2\"} 0",
            "derp_buffered_write_frames_bucket{le=\"3\"} 1",
            "derp_buffered_write_frames_bucket{le=\"100\"} 1",
            "derp_buffered_write_frames_bucket{le=\"+Inf\"} 2",
            "derp_buffered_write_frames_sum 104",
            "derp_buffered_write_frames_count 2",
            "stun_requests{disposition=\"success\"} 7",
            "derpd_admissions_total{source=\"allow_api\",decision=\"admitted\",reason=\"listed\"} 3",
            "derpd_admissions_total{source=\"url\",decision=\"refused\",reason=\"denied\"} 2",
            "derpd_allowed_keys{source=\"allow_keys\"} 4",
            "derpd_allow_list_age_seconds{source=\"allow_api\"} 1.5",
            "derpd_open_relay 0",
            "derp_rate_limit_per_client_burst_bytes 65568",
            "derpd_proxy_protocol_errors_total 6",
            "derpd_reloads_total{result=\"failed\"} 8",
            "derpd_mesh_link_clients{peer=\"b.example\",address=\"192.0.2.1:443\"} 7",
            "derpd_certificate_expiry_timestamp_seconds{name=\"derp.example.com\"} 1800000000",
            "derpd_certificate_updates_total{result=\"ok\"} 10",
            "derpd_certificate_updates_total{result=\"failed\"} 11",
            "xdp_stun_server_packets_total{address_family=\"ipv4\",xdp_outcome=\"tx\",prog_end=\"answered\"} 9",
            "derpd_xdp_interface{interface=\"eth0\",mode=\"native\"} 1",
            "process_start_unix_time 1700000000",
            "uptime_sec 12",
            "version{version=\"1.2.3\",binary=\"derpd\"} 1",
        ] {
            assert!(text.lines().any(|candidate| candidate == line), "missing: {line}\n{text}");
        }
        assert_eq!(text.matches("derp_packets_dropped{").count(), 14);
        assert_eq!(text.matches("derp_bytes_dropped{").count(), 14);
    }

    #[test]
    fn leaves_out_what_does_not_run() {
        let report = Report {
            certificates: None,
            rates: None,
            proxy_faults: None,
            stun: None,
            kernel: Vec::new(),
            interfaces: Vec::new(),
            ..full_report()
        };
        let names = family_names(&report.to_text());
        assert!(!names.iter().any(|name| {
            name.starts_with("tls_")
                || name.contains("certificate")
                || name.contains("rate_limit")
                || name.contains("proxy")
                || name.starts_with("stun_")
                || name.contains("xdp")
        }));
    }
}
