use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use super::{
    judge::{self, Expiry},
    plan::{Kind, plan},
    traffic::Flow,
    *,
};
use crate::tools::{Severity, bench::Delays};

const DAY: Duration = Duration::from_secs(24 * 3600);
const LIMITS: Expiry = Expiry { warning: 14, critical: 7 };

fn arguments(text: &str) -> Arguments {
    match parse(text.split_whitespace().map(OsString::from)) {
        Ok(Invocation::Run(arguments)) => arguments,
        Ok(Invocation::Help(text)) => panic!("{text}"),
        Err(error) => panic!("{error}"),
    }
}

fn map() -> DerpMap {
    r#"{"Regions": {
        "1": {"RegionCode": "fra", "Nodes": [
            {"Name": "1a", "HostName": "a.test"},
            {"Name": "1b", "HostName": "b.test"},
            {"Name": "1s", "HostName": "s.test", "STUNOnly": true}
        ]},
        "2": {"RegionCode": "nyc", "Nodes": [{"Name": "2a", "HostName": "c.test", "STUNPort": -1}]}
    }}"#
    .parse()
    .unwrap()
}

fn planned(text: &str) -> Vec<(String, bool)> {
    let (ipv4, ipv6): (SocketAddr, SocketAddr) =
        ("192.0.2.1:3478".parse().unwrap(), "[2001:db8::1]:3478".parse().unwrap());
    let stun = [
        Ok(vec![ipv4, ipv6]),
        Ok(vec![ipv4]),
        Err("cannot look up s.test: no".to_owned()),
        Ok(Vec::new()),
    ];
    let (map, arguments) = (map(), arguments(&format!("--derp-map m {text}")));
    let tasks = plan(&map, &stun, &arguments);
    let failed = |kind: &Kind<'_>| matches!(kind, Kind::Failed(text) if text.contains("s.test"));
    assert_eq!(tasks.iter().filter(|task| failed(&task.kind)).count(), 1);
    tasks.into_iter().map(|task| (task.name, task.kind.wants_to_be_alone())).collect()
}

#[test]
fn every_relay_and_every_ordered_pair_is_probed_under_derpprobes_names() {
    let names: Vec<_> = planned("").into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "derp/fra/1a/tls",
            "derp/fra/1a/http",
            "derp/fra/1a/udp",
            "derp/fra/1a/udp6",
            "derp/fra/1b/tls",
            "derp/fra/1b/http",
            "derp/fra/1b/udp",
            "derp/fra/1s/dns",
            "derp/fra/1a/1a/mesh",
            "derp/fra/1a/1b/mesh",
            "derp/fra/1b/1a/mesh",
            "derp/fra/1b/1b/mesh",
            "derp/nyc/2a/tls",
            "derp/nyc/2a/http",
            "derp/nyc/2a/2a/mesh",
        ]
    );
    assert!(!planned("--no-ipv6").iter().any(|(name, _)| name.ends_with("udp6")));
}

#[test]
fn what_needs_quiet_is_made_alone() {
    let planned = planned("--bandwidth-size 1000 --delay-packets 10");
    let alone: Vec<_> =
        planned.iter().filter(|(_, alone)| *alone).map(|(name, _)| &**name).collect();
    assert_eq!(alone.len(), 10);
    assert_eq!(alone[..3], ["derp/fra/1a/1a/qd", "derp/fra/1a/1a/bw", "derp/fra/1a/1b/qd"]);
}

/// A chain of a certificate that ends in so many days, and the relay's own one, which ends tomorrow.
fn chain(days: i64, is_self_signed: bool) -> Vec<Vec<u8>> {
    let key = || rcgen::KeyPair::generate().unwrap();
    let now = SystemTime::now();
    let ends = |days: i64| {
        let apart = DAY * u32::try_from(days.unsigned_abs()).unwrap();
        // Half a day more, so that the days that are left are whole.
        if days < 0 { now - apart } else { now + apart + DAY / 2 }
    };
    let mut own = rcgen::CertificateParams::new(["relay.test".to_owned()]).unwrap();
    (own.not_before, own.not_after) = ((now - 400 * DAY).into(), ends(days).into());
    let own = if is_self_signed {
        own.self_signed(&key()).unwrap()
    } else {
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.distinguished_name.push(rcgen::DnType::CommonName, "authority");
        own.signed_by(&key(), &rcgen::Issuer::new(authority, key())).unwrap()
    };
    let mut meta = rcgen::CertificateParams::new(Vec::new()).unwrap();
    meta.distinguished_name.push(rcgen::DnType::CommonName, "derpkey");
    (meta.not_before, meta.not_after) = ((now - DAY).into(), ends(1).into());
    let meta = meta.self_signed(&key()).unwrap();
    vec![own.der().to_vec(), meta.der().to_vec()]
}

#[test]
fn certificates_are_judged_by_the_days_they_have_left() {
    let judged = |days, is_self_signed, is_pinned| {
        let chain = chain(days, is_self_signed);
        judge::certificates(&chain, None, is_pinned, LIMITS, SystemTime::now())
    };
    assert_eq!(
        judged(90, false, false),
        (Severity::Ok, "the certificate is valid for 90 days".into())
    );
    assert_eq!(judged(14, false, false).0, Severity::Ok);
    assert_eq!(judged(13, false, false).0, Severity::Warning);
    assert_eq!(judged(6, false, false).0, Severity::Critical);
    assert_eq!(judged(6, true, false).0, Severity::Critical, "its own certificate counts");
    let (status, text) = judged(-3, false, false);
    assert_eq!((status, &*text), (Severity::Critical, "a certificate has expired 3 days ago"));
    let (status, text) = judged(6, true, true);
    assert_eq!((status, &*text), (Severity::Ok, "the pinned certificate is valid for 6 days"));
    let (status, text) = judged(-3, true, true);
    assert!(status == Severity::Ok && text.contains("3 days ago"), "{text}");
}

#[test]
fn a_certificate_that_clients_refuse_is_critical() {
    let judged = |days, fault: &str| {
        judge::certificates(&chain(days, false), Some(fault), false, LIMITS, SystemTime::now())
    };
    let (status, text) = judged(90, "not valid for name");
    assert_eq!(
        (status, &*text),
        (Severity::Critical, "clients refuse the certificate: not valid for name")
    );
    let (status, text) = judged(-3, "expired");
    assert_eq!(
        (status, &*text),
        (Severity::Critical, "a certificate has expired 3 days ago (expired)")
    );
    let none: [&[u8]; 0] = [];
    let nothing = judge::certificates(&none, None, false, LIMITS, SystemTime::now());
    assert_eq!(nothing.0, Severity::Critical);
}

#[test]
fn flows_are_judged_by_what_is_lost() {
    let judged = |sent, received| {
        let mut delays = Delays::default();
        for _ in 0..received {
            delays.record(Duration::from_millis(2));
        }
        judge::flow(&Flow { sent, delays }, 0.01)
    };
    let (status, text) = judged(100, 100);
    assert_eq!(status, Severity::Ok);
    assert!(text.starts_with("0 of 100 packets lost; delay p50 2.00 ms"), "{text}");
    assert_eq!(judged(100, 99).0, Severity::Ok);
    assert_eq!(judged(100, 98).0, Severity::Warning);
    assert_eq!(judged(100, 89).0, Severity::Critical);
    assert_eq!(judged(1, 0).0, Severity::Critical);
    assert_eq!(judge::page(204, Duration::ZERO).0, Severity::Critical);
    assert_eq!(judge::page(200, Duration::from_millis(3)), (Severity::Ok, "3.00 ms".into()));
}

#[test]
fn a_report_says_the_worst_first() {
    let outcome = |name: &str, status| Outcome {
        name: name.to_owned(),
        class: "tls",
        status,
        text: "text".to_owned(),
        values: [("latency_seconds", 0.5)].into(),
    };
    let good = Report::new(SystemTime::UNIX_EPOCH, vec![outcome("a", Severity::Ok)]);
    assert_eq!(good.to_string(), "DERP OK: 1 probes\nOK       a: text\n");
    let probes = [Severity::Ok, Severity::Critical, Severity::Warning];
    let probes = probes.map(|status| outcome(&status.to_string().to_lowercase(), status));
    let report = Report::new(SystemTime::UNIX_EPOCH + DAY, probes.into());
    assert_eq!(
        report.to_string(),
        "DERP CRITICAL: 2 of 3 probes: critical, warning\n\
         OK       ok: text\nCRITICAL critical: text\nWARNING  warning: text\n"
    );
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!((&json["status"], &json["time"]), (&"critical".into(), &86400.into()));
    assert_eq!(json["probes"][1]["values"]["latency_seconds"], 0.5);
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    for (text, part) in [
        ("", "--derp-map"),
        ("--derp-map m --server s", "--server"),
        ("--server s --region r", "--region"),
        ("--derp-map m --pin x", "--pin"),
        ("--derp-map m --timeout 0s", "--timeout"),
        ("--derp-map m --timeout 25h", "24h"),
        ("--derp-map m --concurrency 0", "--concurrency"),
        ("--derp-map m --count 2", "--interval"),
        ("--derp-map m --loss-warning 101", "0 to 100"),
        ("--derp-map m --delay-packets 1001", "1000"),
        ("--server s --stun-port -2", "--stun-port"),
    ] {
        let error = parse(text.split_whitespace().map(OsString::from)).err().unwrap();
        assert!(error.to_string().contains(part), "{text}: {error}");
        assert_eq!(error.exit_status(), 3);
    }
}
