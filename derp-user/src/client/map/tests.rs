use proptest::prelude::*;

use super::{read::standard, *};

const POLICY: &str = r#"// A policy file.
{
  "acls": [{"action": "accept"},], /* all */
  "derpMap": {
    "OmitDefaultRegions": true,
    "Regions": {
      "1": null, // not Tailscale's
      "900": {
        "RegionID": 900,
        "RegionCode": "home",
        "RegionName": "At home // not a comment",
        "Nodes": [{
          "Name": "900a",
          "HostName": "192.0.2.1",
          "CertName": "sha256-raw:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a",
          "IPv6": "none",
          "DERPPort": 8443,
          "STUNPort": -1,
          "CanPort80": true,
        },],
      },
    },
  },
}
"#;

const HEADSCALE: &str = "
regions:
  900:
    regionid: 900
    regioncode: home
    regionname: At home
    nodes:
      - name: 900a
        regionid: 900
        hostname: relay.example.com
        ipv4: 192.0.2.1
        ipv6: \"2001:db8::1\"
        stunport: 3479
        stunonly: false
        derpport: 0
";

#[test]
fn a_policy_file_with_comments_is_read() {
    let map: DerpMap = POLICY.parse().unwrap();
    assert!(map.omit_default_regions);
    assert_eq!(map.regions.keys().collect::<Vec<_>>(), [&900]);
    let region = map.region("home").unwrap();
    assert_eq!(map.region("900"), Some(region));
    assert_eq!(map.region("9"), None);
    assert_eq!(region.name, "At home // not a comment");
    let [node] = &region.nodes[..] else { panic!("{region:?}") };
    assert_eq!((node.region_id, node.derp_port(), node.stun_port()), (900, 8443, None));
    assert_eq!(node.ipv4(), NodeAddress::Fixed("192.0.2.1".parse().unwrap()));
    assert_eq!(node.ipv6(), NodeAddress::None);
    assert!(node.pin().unwrap().is_some() && node.can_port80);
}

#[test]
fn headscales_yaml_is_read() {
    let map: DerpMap = HEADSCALE.parse().unwrap();
    let node = &map.regions[&900].nodes[0];
    assert_eq!((node.derp_port(), node.stun_port()), (443, Some(3479)));
    assert_eq!(node.ipv6(), NodeAddress::Fixed("2001:db8::1".parse().unwrap()));
    assert_eq!((&*node.name, &*node.host_name), ("900a", "relay.example.com"));
}

#[test]
fn addresses_are_found_as_tailscale_finds_them() {
    let node = |host: &str, ipv4: &str, ipv6: &str| {
        let (ipv4, ipv6, host_name) = (ipv4.to_owned(), ipv6.to_owned(), host.to_owned());
        let node = Node { ipv4, ipv6, host_name, ..Node::default() };
        (node.ipv4(), node.ipv6())
    };
    let fixed = |text: &str| NodeAddress::Fixed(text.parse().unwrap());
    use NodeAddress::{None, OfName};
    assert_eq!(node("h", "", ""), (OfName, OfName));
    assert_eq!(node("h", "192.0.2.1", "none"), (fixed("192.0.2.1"), None));
    assert_eq!(node("h", "none", "2001:db8::1"), (None, fixed("2001:db8::1")));
    assert_eq!(node("192.0.2.9", "", ""), (fixed("192.0.2.9"), None));
    assert_eq!(node("2001:db8::9", "", ""), (None, fixed("2001:db8::9")));
    assert_eq!(node("192.0.2.9", "2001:db8::1", ""), (None, None));
}

#[test]
fn what_is_written_is_read_again_and_named_as_tailscale_names_it() {
    let map: DerpMap = POLICY.parse().unwrap();
    let text = serde_json::to_string_pretty(&map).unwrap();
    assert_eq!(text.parse::<DerpMap>().unwrap(), map);
    for name in
        ["omitDefaultRegions", "RegionID", "RegionCode", "HostName", "STUNPort", "CanPort80"]
    {
        assert!(text.contains(&format!("{name:?}")), "{name}: {text}");
    }
    assert!(!text.contains("STUNOnly") && !text.contains("IPv4"), "{text}");
}

#[test]
fn mistakes_are_named_with_their_place() {
    let node = r#""Name": "a", "HostName": "h""#;
    let map = |region: &str| format!("{{\"Regions\":\n{{\"900\": {{{region}}}}}}}");
    let with_node = |fields: &str| map(&format!("\"Nodes\": [{{{node}, {fields}}}]"));
    for (text, parts) in [
        ("{\"Regions\": \n{\"x\": {}}}".to_owned(), vec!["Regions", "line 2"]),
        ("{}".to_owned(), vec!["missing field `Regions`", "line 1"]),
        ("{\"Regions\": {".to_owned(), vec!["EOF", "line 1"]),
        (format!("{} x", map("")), vec!["trailing characters at line 2"]),
        (
            with_node("\"DERPPort\": 70000"),
            vec!["Regions.900.Nodes[0].DERPPort", "70000", "line 2"],
        ),
        (with_node("\"DERPPort\": \"x\""), vec!["Regions.900.Nodes[0].DERPPort", "u16"]),
        (with_node("\"STUNPort\": -2"), vec!["Regions.900.Nodes[0].STUNPort is -2"]),
        (with_node("\"CertName\": \"sha256-raw:00\""), vec!["Nodes[0].CertName", "64 hex"]),
        (with_node("\"IPv4\": \"2001:db8::1\""), vec!["Nodes[0].IPv4", "neither"]),
        (with_node("\"RegionID\": 1"), vec!["Nodes[0].RegionID is 1", "region 900"]),
        (map("\"RegionName\": \"a\\nb\""), vec!["Regions.900.RegionName \"a\\nb\" has control"]),
        (map("\"Nodes\": [{\"Name\": \"a\\r\\nX: y\"}]"), vec!["Nodes[0].Name", "control"]),
        (map("\"RegionID\": 901"), vec!["Regions.900.RegionID is 901"]),
        (map("\"Nodes\": [{\"Name\": \"a\"}]"), vec!["Nodes[0].HostName is missing"]),
        (map(&format!("\"Nodes\": [{{{node}}}, {{{node}}}]")), vec!["Nodes[1].Name \"a\" is also"]),
        ("regions:\n  900:\n    nodes: 7\n".to_owned(), vec!["line 3"]),
        ("hello".to_owned(), vec![]),
    ] {
        let error = text.parse::<DerpMap>().unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_judged(text in "[{}\\[\\]\",:/*\\\\ \na-z0-9]{0,60}") {
        let _ = text.parse::<DerpMap>();
        let standard = standard(&text);
        prop_assert_eq!(standard.chars().count(), text.chars().count());
        let ends = |text: &str| text.chars().map(|it| it == '\n').collect::<Vec<_>>();
        prop_assert_eq!(ends(&standard), ends(&text));
    }
}
