//! Where derpd does otherwise than Tailscale's derper, test by test, and why. A test may ask which of
//! the two it talks to only if it is listed here; `cargo xtask interop` prints the list.

use std::{
    io::{self, Write as _},
    process::Command,
    thread,
};

use crate::server::{self, Kind, skip};

/// How a test treats derper.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Treatment {
    /// It runs against both, and expects something else of derper.
    Otherwise,
    /// It runs against derpd alone.
    DerpdOnly,
}

use Treatment::{DerpdOnly, Otherwise};

/// Test, how it treats derper, and the reason.
const DIFFERENCES: &[(&str, Treatment, &str)] = &[
    (
        "admission::a_relay_that_is_open_says_so_where_its_operator_looks",
        DerpdOnly,
        "derper does not say that it is open",
    ),
    ("admission::an_allow_list_follows_its_file", DerpdOnly, "derper has no allow lists"),
    (
        "admission::case_54_the_admission_url_decides_and_its_absence_admits_by_default",
        Otherwise,
        "derper does not count decisions by reason",
    ),
    (
        "admission::case_56_the_local_tailscaled_decides_unless_the_mesh_key_is_shown",
        Otherwise,
        "derper's consistency check wants more of tailscaled than to know the client",
    ),
    (
        "admission::nodes_of_a_control_server_are_admitted_and_those_it_drops_must_go",
        DerpdOnly,
        "derper asks no control server for its nodes",
    ),
    (
        "admission::remembered_answers_are_not_asked_for_again",
        DerpdOnly,
        "derper remembers no answers",
    ),
    (
        "admission::sighup_reloads_under_traffic_all_or_nothing",
        DerpdOnly,
        "derper reloads its rate limits alone",
    ),
    (
        "admission::the_last_good_list_counts_for_its_lifetime",
        DerpdOnly,
        "derper asks no control server for its nodes",
    ),
    (
        "admission::the_secret_of_an_oauth_client_is_exchanged_for_a_token",
        DerpdOnly,
        "derper asks no control server for its nodes",
    ),
    ("admission::whoever_is_on_no_list_is_asked_about", DerpdOnly, "derper has no allow lists"),
    (
        "browser::a_real_browser_logs_in_and_exchanges_packets",
        Otherwise,
        "derper takes no message of more than 32 KiB, and gives back the reason of a close with its code",
    ),
    (
        "clocks::case_41_a_client_whose_window_stays_closed_is_dropped_at_the_write_deadline",
        Otherwise,
        "derper tries to say goodbye for 5 s more, on the socket that is blocked",
    ),
    (
        "duplicates::case_72_duplicates_leave_the_consistency_check_alone",
        Otherwise,
        "derper compares connections with keys, and takes duplicates for an inconsistency",
    ),
    (
        "http::case_73_connections_beyond_the_limit_are_closed_at_once",
        DerpdOnly,
        "derper ends when it reaches this limit",
    ),
    (
        "identity::a_new_manual_certificate_is_served_without_a_restart",
        DerpdOnly,
        "derper reads a manual certificate once, at its start",
    ),
    (
        "limits::case_58_sighup_changes_the_limit_of_those_who_wait_too",
        Otherwise,
        "a client of derper that waits goes on waiting for as long as the old limit says",
    ),
    (
        "limits::case_58_sighup_without_anything_to_reload_harms_nobody",
        DerpdOnly,
        "SIGHUP ends a derper without -rate-config",
    ),
    (
        "limits::the_limit_is_announced_only_if_asked_for",
        DerpdOnly,
        "derper never tells clients of their limit",
    ),
    (
        "mesh::a_peer_that_hangs_does_not_hold_up_senders",
        DerpdOnly,
        "senders of derper wait for the link, for up to ten seconds",
    ),
    (
        "mesh::admission_and_limits_are_for_clients_and_not_for_servers",
        DerpdOnly,
        "derper has no allow lists",
    ),
    (
        "mesh::case_46_a_forwarded_packet_is_not_forwarded_again",
        Otherwise,
        "derper counts itself, whom it sees as a client of its peer, among the remote clients",
    ),
    (
        "mesh::regression_a_peer_announces_a_million_keys_and_no_more",
        DerpdOnly,
        "derper takes as many as it is told",
    ),
    (
        "mesh::sighup_reloads_the_key_and_the_authorities_of_the_mesh",
        DerpdOnly,
        "derper reloads its rate limits alone",
    ),
    (
        "observed::few_can_look_at_the_traffic_at_once",
        DerpdOnly,
        "derper does not limit who looks at the traffic",
    ),
    (
        "observed::the_traffic_of_each_client_is_told",
        Otherwise,
        "derper needs the program ss to tell of the traffic",
    ),
    (
        "proxied::a_header_from_anybody_else_is_refused",
        Otherwise,
        "derper has no -proxy-protocol-from",
    ),
    (
        "proxied::a_trusted_proxy_must_send_a_header",
        DerpdOnly,
        "derper has no -proxy-protocol-from",
    ),
    (
        "proxied::real_haproxy_in_front_with_both_versions_and_health_checks",
        DerpdOnly,
        "derper has no -proxy-protocol-from",
    ),
    ("proxied::real_nginx_in_front", DerpdOnly, "derper has no -proxy-protocol-from"),
    (
        "proxied::the_address_in_the_header_counts_everywhere",
        DerpdOnly,
        "derper has no -proxy-protocol-from",
    ),
    (
        "stun::case_70_doubtful_requests_meet_silence",
        Otherwise,
        "derper answers Tailscale's own requests only, derpd any Binding request of RFC 8489",
    ),
    (
        "websocket::a_message_that_is_too_long_closes",
        Otherwise,
        "derper's limit is 32 KiB, which not every packet fits, derpd's 1 MiB",
    ),
    (
        "websocket::a_refused_browser_is_named_by_its_own_address",
        DerpdOnly,
        "derper has no -proxy-protocol-from",
    ),
    (
        "websocket::frames_against_the_protocol_close",
        Otherwise,
        "derper says 1000 to a frame without mask; RFC 6455 section 5.1 says 1002",
    ),
    (
        "websocket::the_largest_packets_pass_both_ways",
        Otherwise,
        "derper takes no message of more than 32 KiB, and sends longer ones",
    ),
];

/// Which of the two is under test, for a test that expects something else of derper.
pub(crate) fn kind() -> Kind {
    if let Some((test, reason)) = listed(Otherwise)
        && server::kind() == Kind::Derper
    {
        // Past the harness, and in one piece, as the lines about skipped tests.
        io::stderr().write_all(format!("differs: {test}: {reason}\n").as_bytes()).ok();
    }
    server::kind()
}

/// Whether derpd is under test; if not, says why the test does nothing.
pub(crate) fn is_derpd() -> bool {
    let listed = listed(DerpdOnly);
    if server::kind() == Kind::Derpd {
        return true;
    }
    if let Some((test, reason)) = listed {
        skip(&test, reason);
    }
    false
}

/// The running test and the reason it is listed with. `None` if the harness runs tests on its own
/// thread, which then has no name of theirs.
fn listed(treatment: Treatment) -> Option<(String, &'static str)> {
    let test = thread::current().name().filter(|name| *name != "main")?.to_owned();
    let row = DIFFERENCES.iter().find(|(name, ..)| *name == test);
    let Some((_, listed, reason)) = row else {
        panic!("{test} asks which relay it talks to, and is not listed in differences.rs");
    };
    assert_eq!(*listed, treatment, "{test}");
    Some((test, reason))
}

#[test]
fn every_difference_is_one_of_a_test() {
    let program = std::env::current_exe().expect("a running program");
    let output = Command::new(program).arg("--list").output().expect("it can run");
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    for (test, ..) in DIFFERENCES {
        assert!(
            list.lines().any(|line| line == format!("{test}: test")),
            "there is no test {test}"
        );
    }
    assert!(DIFFERENCES.is_sorted_by_key(|(test, ..)| test), "in alphabetical order");
}
