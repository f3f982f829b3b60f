use std::time::Duration;

use super::report::{Family, Measured, Report, Way};
use crate::{
    client::map::DerpMap,
    tools::{Severity, stun::Seen},
};

fn map() -> DerpMap {
    let node = |name: &str| format!(r#"{{"Name": "{name}", "HostName": "{name}.test"}}"#);
    format!(
        r#"{{"Regions": {{
            "1": {{"RegionCode": "fra", "RegionName": "Frankfurt", "Nodes": [{}, {}]}},
            "2": {{"RegionCode": "nyc", "RegionName": "New York", "Nodes": [{}]}},
            "3": {{"RegionCode": "x", "RegionName": "Elsewhere", "NoMeasureNoHome": true, "Nodes": [{}]}}
        }}}}"#,
        node("1a"),
        node("1b"),
        node("2a"),
        node("3a")
    )
    .parse()
    .unwrap()
}

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

fn stun(region: u32, latency: u64, address: &str) -> Measured {
    let address: std::net::SocketAddr = address.parse().unwrap();
    let family = if address.is_ipv6() { Family::Ipv6 } else { Family::Ipv4 };
    Measured { region, way: Way::Stun(Seen { address, latency: ms(latency) }, family) }
}

fn https(region: u32, latency: u64) -> Measured {
    Measured { region, way: Way::Https(ms(latency)) }
}

#[test]
fn the_nearest_region_is_the_one_with_the_nearest_relay() {
    let measured = [
        stun(1, 30, "192.0.2.9:1"),
        stun(1, 20, "192.0.2.9:1"),
        stun(2, 25, "192.0.2.9:1"),
        stun(2, 15, "[2001:db8::9]:1"),
        stun(3, 1, "192.0.2.9:1"),
        https(1, 40),
    ];
    let report = Report::new(&map(), &measured, true, Vec::new());
    assert_eq!(report.nearest, Some(2), "clients never live in region 3");
    assert_eq!(report.severity(), Severity::Ok);
    assert_eq!(report.mapping_varies, Some(false));
    let text = report.to_string();
    for line in [
        "\t* UDP: true\n",
        "\t* IPv4: yes, 192.0.2.9:1\n",
        "\t* IPv6: yes, [2001:db8::9]:1\n",
        "\t* MappingVariesByDestIP: false\n",
        "\t* Nearest DERP: New York\n",
        "\t\t- nyc: 15.0ms  (New York; IPv4 25.0ms, IPv6 15.0ms)\n",
        "\t\t- fra: 20.0ms  (Frankfurt; IPv4 20.0ms, HTTPS 40.0ms)\n",
    ] {
        assert!(text.contains(line), "{line:?}: {text}");
    }
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["PreferredDERP"], 2);
    assert_eq!(json["RegionLatency"]["1"], 20_000_000);
    assert_eq!(json["RegionV6Latency"], serde_json::json!({"2": 15_000_000}));
    assert_eq!(json["RegionHTTPSLatency"], serde_json::json!({"1": 40_000_000}));
    assert_eq!((&json["GlobalV4"], &json["Status"]), (&"192.0.2.9:1".into(), &"ok".into()));
}

#[test]
fn a_mapping_that_depends_on_the_relay_is_noticed() {
    let one = [stun(1, 1, "192.0.2.9:1")];
    assert_eq!(Report::new(&map(), &one, true, Vec::new()).mapping_varies, None);
    let two = [stun(1, 1, "192.0.2.9:1"), stun(2, 1, "192.0.2.9:2")];
    let report = Report::new(&map(), &two, true, Vec::new());
    assert_eq!(report.mapping_varies, Some(true));
    assert_eq!(report.severity(), Severity::Warning, "region 3 does not answer");
}

#[test]
fn without_udp_https_decides() {
    let measured = [https(1, 50), https(2, 40), https(3, 10)];
    let report = Report::new(&map(), &measured, false, vec!["reason".to_owned()]);
    assert_eq!((report.udp, report.nearest), (false, Some(2)));
    assert_eq!(report.severity(), Severity::Warning);
    let text = report.to_string();
    assert!(text.contains("IPv4: (no addr found)") && text.contains("unavailable in OS"), "{text}");
    assert!(text.ends_with("\t! reason\n"), "{text}");
    let nothing = Report::new(&map(), &[], true, Vec::new());
    assert_eq!((nothing.nearest, nothing.severity()), (None, Severity::Critical));
    assert!(nothing.to_string().contains("Nearest DERP: unknown"));
}

#[test]
fn a_region_without_stun_is_in_order_over_https() {
    let map = DerpMap::of_host("h", 443, -1, "");
    let report = Report::new(&map, &[https(1, 5)], true, Vec::new());
    assert_eq!((report.severity(), report.nearest), (Severity::Ok, Some(1)));
}
