use std::{collections::BTreeSet, net::SocketAddr, time::UNIX_EPOCH};

use super::*;
use crate::{
    admit::Verdict,
    companion::CompanionView,
    flow::StateView,
    metrics::{AddressView, DropReason, LinkState, PacketKind, PeerView, Waits, WorkerCounters},
    tailnet::Status,
};

fn udp_totals() -> crate::udp::Totals {
    let tally = crate::udp::Tally::default();
    tally.refused(derp_common::Family::Ipv4, derp_common::Reason::UnknownVni, 100);
    tally.forwarded(false, true, 2, 300);
    let mut totals = crate::udp::Totals::default();
    tally.add_to(&mut totals);
    totals
}

fn wireguard() -> WireGuardView {
    let peers = ["nas", "laptop"].map(|label| crate::wireguard::PeerSettings {
        label: label.to_owned(),
        key: crate::wireguard::PublicKey::from_bytes([label.len() as u8; 32]),
        address: (label == "nas").then(|| SocketAddr::from(([192, 0, 2, 1], 51_820))),
    });
    let network = crate::wireguard::Network {
        name: "home".to_owned(),
        peers: peers.to_vec(),
        pairs: crate::wireguard::Pairs::All,
    };
    let directory = crate::wireguard::Directory::new(&[network]);
    let limits = crate::wireguard::Limits::default();
    crate::wireguard::WireGuardRelay::new(directory, 51_820, limits).view(0)
}

fn full_report() -> Report {
    let worker = WorkerCounters::default();
    worker.packet_dropped(DropReason::QueueHead, PacketKind::Other, 1500);
    worker.buffered_write_frames.record(3);
    worker.buffered_write_frames.record(101);
    worker.mesh_update_batch_size.record(1001);
    worker.mesh_update_loop_count.record(1);
    worker.packets_sent.increment();
    let mut waits = Waits::default();
    waits.add(Duration::from_millis(5));
    worker.packets_waited(&waits, true);
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
            unsaved: 1,
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
        sandbox: vec![("landlock", false), ("seccomp", true)],
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
        bootstrap: BootstrapCounts { requests: 4, ..BootstrapCounts::default() },
        tls_requests: [
            (TlsVersion::V12, 1, 0),
            (TlsVersion::V13, 5, 2),
            (TlsVersion::Unknown, 0, 0),
        ],
        round_trips: Some(vec![("10ms", 8), ("error", 0)]),
        stun: Some(StunTotals {
            requests: [("read_error", 0), ("not_stun", 1), ("write_error", 0), ("success", 7)],
            families: [("ipv4", 7), ("ipv6", 0)],
        }),
        tailnet: Some(Status { key_expiry: Some(1_900_000_000), peers: 3, ..Status::default() }),
        udp: UdpFigures {
            totals: udp_totals(),
            flows: Some(vec![StateView::Forwarding, StateView::Learning]),
        },
        peer_relay: Some(PeerRelayFigures {
            derp: vec![("https://derp.example.com".to_owned(), true)],
            endpoints: [3, 4],
            ..PeerRelayFigures::default()
        }),
        companion: Some(CompanionView { answers: 3, ..CompanionView::default() }),
        wireguard: Some(wireguard()),
        kernel: vec![KernelCount {
            address_family: "ipv4",
            outcome: "tx",
            reason: "answered",
            packets: 9,
            bytes: 700,
        }],
        interfaces: vec![AttachedInterface {
            name: "eth0".to_owned(),
            mode: "native",
            is_there: true,
        }],
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
        "bootstrap_dns_published_hits",
        "bootstrap_dns_published_misses",
        "bootstrap_dns_queried_domains",
        "bootstrap_dns_requests",
        "bootstrap_dns_unpublished_hits",
        "bootstrap_dns_unpublished_misses",
        "bootstrap_dns_unpublished_percent_misses",
        "derp_accepts",
        "derp_average_queue_duration_ms",
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
        "derp_mesh_update_batch_size",
        "derp_mesh_update_loop_count",
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
        "derp_tcp_rtt",
        "derp_total_dup_client_conns",
        "derp_unknown_frames",
        "derp_watchers",
        "derp_websocket_accepts",
        "derpd_accept_failures_total",
        "derpd_active_workers",
        "derpd_admission_cache_hits_total",
        "derpd_admissions_total",
        "derpd_allow_list_age_seconds",
        "derpd_allowed_keys",
        "derpd_arrivals_evicted_total",
        "derpd_arriving_connections",
        "derpd_certificate_expiry_timestamp_seconds",
        "derpd_certificate_updates_total",
        "derpd_certificates_unsaved",
        "derpd_companion_accompanying",
        "derpd_companion_answers_total",
        "derpd_companion_failures_total",
        "derpd_companion_flushes_total",
        "derpd_companion_sessions",
        "derpd_companion_suspicions_total",
        "derpd_connections_refused_total",
        "derpd_mesh_connects_total",
        "derpd_mesh_failures_total",
        "derpd_mesh_keys_refused_total",
        "derpd_mesh_link_clients",
        "derpd_mesh_link_connects_total",
        "derpd_mesh_link_forwarded_bytes_total",
        "derpd_mesh_link_forwarded_packets_total",
        "derpd_mesh_link_up",
        "derpd_mesh_links",
        "derpd_mesh_packets_dropped_total",
        "derpd_open_relay",
        "derpd_peer_relay_addresses",
        "derpd_peer_relay_derp_connected",
        "derpd_peer_relay_endpoints_ended_total",
        "derpd_peer_relay_forwarded_bytes_total",
        "derpd_peer_relay_forwarded_packets_total",
        "derpd_peer_relay_handshake_messages_total",
        "derpd_peer_relay_requests_total",
        "derpd_peer_relay_stun_mappings",
        "derpd_proxy_protocol_errors_total",
        "derpd_reloads_total",
        "derpd_sandbox_in_force",
        "derpd_tailnet_granted_peers",
        "derpd_tailnet_joins_total",
        "derpd_tailnet_key_expiry_timestamp_seconds",
        "derpd_tailnet_messages_total",
        "derpd_tailnet_peers",
        "derpd_tailnet_phase",
        "derpd_tailnet_pings_total",
        "derpd_tls_handshake_failures_total",
        "derpd_udp_flows",
        "derpd_udp_forwarded_bytes_total",
        "derpd_udp_forwarded_packets_total",
        "derpd_udp_notices_lost_total",
        "derpd_udp_own_packets_total",
        "derpd_udp_receive_overruns_total",
        "derpd_udp_refused_packets_total",
        "derpd_udp_send_failures_total",
        "derpd_wireguard_handshakes_dropped_total",
        "derpd_wireguard_handshakes_total",
        "derpd_wireguard_peer_bytes_total",
        "derpd_wireguard_peer_handshakes_total",
        "derpd_wireguard_peer_located",
        "derpd_wireguard_peer_packets_total",
        "derpd_wireguard_peer_sessions",
        "derpd_wireguard_pending",
        "derpd_wireguard_roamed_total",
        "derpd_wireguard_sessions",
        "derpd_xdp_interface",
        "derper_tls_active_version",
        "derper_tls_request_version",
        "node_boot_time_seconds",
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_network_receive_bytes_total",
        "process_network_transmit_bytes_total",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_start_unix_time",
        "process_virtual_memory_bytes",
        "process_virtual_memory_max_bytes",
        "stun_addrfamily",
        "stun_requests",
        "tailscaled_peer_relay_endpoints",
        "tailscaled_peer_relay_forwarded_bytes_total",
        "tailscaled_peer_relay_forwarded_packets_total",
        "tls_listener_accepted_connections",
        "tls_listener_rejected_connections",
        "uptime_sec",
        "version",
        "xdp_stun_server_bytes_total",
        "xdp_stun_server_packets_total",
    ];
    assert_eq!(names, expected.map(str::to_owned).into());
    const MANUAL: &str = include_str!("../../../../docs/OPERATIONS.md");
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
        "derp_mesh_update_batch_size_bucket{le=\"1000\"} 0",
        "derp_mesh_update_batch_size_bucket{le=\"+Inf\"} 1",
        "derp_mesh_update_loop_count_bucket{le=\"1\"} 1",
        "derp_average_queue_duration_ms 0.5",
        "derp_tcp_rtt{le=\"10ms\"} 8",
        "derper_tls_request_version{version=\"1.3\"} 5",
        "derper_tls_active_version{version=\"1.3\"} 2",
        "bootstrap_dns_requests 4",
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
        "derpd_peer_relay_requests_total{result=\"allocated\"} 0",
        "derpd_peer_relay_handshake_messages_total{result=\"bound\"} 0",
        "derpd_peer_relay_endpoints_ended_total{reason=\"silence\"} 0",
        "derpd_peer_relay_derp_connected{server=\"https://derp.example.com\"} 1",
        "tailscaled_peer_relay_endpoints{state=\"open\"} 4",
        "tailscaled_peer_relay_forwarded_packets_total{transport_in=\"udp4\",transport_out=\"udp6\"} 0",
        "derpd_certificate_expiry_timestamp_seconds{name=\"derp.example.com\"} 1800000000",
        "derpd_certificate_updates_total{result=\"ok\"} 10",
        "derpd_certificate_updates_total{result=\"failed\"} 11",
        "derpd_certificates_unsaved 1",
        "xdp_stun_server_packets_total{address_family=\"ipv4\",xdp_outcome=\"tx\",prog_end=\"answered\"} 9",
        "derpd_tailnet_phase{phase=\"connecting\"} 1",
        "derpd_tailnet_phase{phase=\"connected\"} 0",
        "derpd_tailnet_key_expiry_timestamp_seconds 1900000000",
        "derpd_xdp_interface{interface=\"eth0\",mode=\"native\"} 1",
        "process_start_unix_time 1700000000",
        "uptime_sec 12",
        "version{version=\"1.2.3\",binary=\"derpd\"} 1",
        "derpd_sandbox_in_force{layer=\"landlock\"} 0",
        "derpd_sandbox_in_force{layer=\"seccomp\"} 1",
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
        round_trips: None,
        stun: None,
        kernel: Vec::new(),
        interfaces: Vec::new(),
        ..full_report()
    };
    let names = family_names(&report.to_text());
    assert!(!names.iter().any(|name| {
        name.starts_with("tls_")
            || name.contains("certificate")
            || name.starts_with("derper_tls_")
            || name == "derp_tcp_rtt"
            || name.contains("rate_limit")
            || name.contains("proxy")
            || name.starts_with("stun_")
            || name.contains("xdp")
    }));
}

#[test]
fn variables_are_placed_as_derper_places_them() {
    let vars: serde_json::Value = serde_json::from_str(&full_report().to_vars()).unwrap();
    for (path, expected) in [
        ("/derp/accepts", "0"),
        ("/derp/gauge_clients_total", "5"),
        ("/derp/counter_total_dup_client_conns", "0"),
        ("/derp/average_queue_duration_ms", "0.5"),
        ("/derp/counter_tcp_rtt", r#"{"10ms":8,"error":0}"#),
        ("/derp/counter_packets_received_kind", r#"{"disco":0,"other":0}"#),
        ("/derp/counter_buffered_write_frames/100", "1"),
        ("/derp/counter_buffered_write_frames/+Inf", "2"),
        ("/derp/counter_buffered_write_frames/sum", "104"),
        ("/derp/counter_mesh_update_batch_size/count", "1"),
        ("/derp/rate_limit_per_client_bytes_per_second", "1000"),
        ("/derp/version", "\"1.2.3\""),
        ("/derp_packets_dropped/queue_head", r#"{"disco":0,"other":1}"#),
        ("/derper_tls_request_version/1.3", "5"),
        ("/gauge_derper_tls_active_version/1.3", "2"),
        ("/tls_listener/counter_accepted_connections", "0"),
        ("/stun/counter_requests/success", "7"),
        ("/counter_bootstrap_dns_requests", "4"),
        ("/counter_uptime_sec", "12"),
        ("/process_start_unix_time", "1700000000"),
        ("/version", "\"1.2.3\""),
    ] {
        let value = vars.pointer(path).map(ToString::to_string);
        assert_eq!(value.as_deref(), Some(expected), "{path} in\n{vars:#}");
    }
    assert!(vars["cmdline"][0].as_str().is_some_and(|name| name.contains("derp")));
    for ours in ["derpd_active_workers", "active_workers", "xdp_stun_server_packets_total"] {
        assert!(!full_report().to_vars().contains(ours), "{ours} is elsewhere");
    }
}
