use std::collections::BTreeMap;

use derp_common::settings::Port;
use proptest::prelude::*;

use super::*;
use crate::{
    client::Trust,
    config::{ConfigError, UsageError},
    peer_relay::{Allowed, Cloud, CloudChoice, Limits, Permission, Refusal},
    proto::keys::NodePublic,
    wireguard::Pairs,
};

const WHOLE: &str = include_str!("../../../../docs/derpd.toml");

fn fault(text: &str) -> String {
    let Fault { line, place, reason } = read(text, Some(3478)).expect_err(text);
    format!("{line}|{place}|{reason}")
}

/// What a text says of flags.
fn flags(text: &str) -> Result<BTreeMap<String, Vec<String>>, UsageError> {
    let file = ConfigFile::new("derpd.toml".into(), text.as_bytes().to_vec())?;
    let given = file.flags(&Options::command())?;
    Ok(given.into_iter().map(|given| (given.flag, given.values)).collect())
}

fn flow(lines: &str) -> String {
    format!("[relay]\nport = 40000\n[[flow]]\nname = \"x\"\n{lines}\n")
}

#[test]
fn nothing_means_the_defaults() {
    assert_eq!(read("", Some(3478)), Ok(FileSettings::default()));
    assert_eq!(read("[stun]\n[dataplane]\n", None), Ok(FileSettings::default()));
    let relay = RelaySettings { is_wanted: true, ..FileSettings::default().relay };
    assert_eq!(read("[relay]\n", None), Ok(FileSettings { relay, ..FileSettings::default() }));
}

#[test]
fn the_example_of_the_manual_is_understood() {
    let settings = read(WHOLE, Some(3478)).unwrap();
    assert_eq!(settings.relay.port, Some(40000));
    assert_eq!(settings.relay.slots, 16_384);
    assert_eq!(settings.relay.idle_timeout, Duration::from_secs(300));
    assert_eq!(settings.stun.rate, Rate::per_second(100, 200));
    assert!(!settings.stun.shed);
    let names: Vec<_> = settings.flows.iter().map(|flow| flow.name.as_str()).collect();
    assert_eq!(names, ["office to cloud", "site to site"]);
    let [office, site] = &settings.flows[..] else { panic!("two flows") };
    assert_eq!(office.kind, Kind::Geneve { vni: Some(7) });
    assert_eq!(office.ends[0].remote, Remote::Fixed("198.51.100.10:41641".parse().unwrap()));
    assert_eq!(office.rate, Some(FlowRate::bits_per_second(100_000_000).unwrap()));
    assert_eq!(site.kind, Kind::Any);
    assert_eq!(site.ends[1].local.port, 40001);
    let ports = settings.ports(Some(3478)).map(|port| (u16::from_be(port.number), port.services));
    let expected = [
        (3478, Services::STUN),
        (40000, Services::GENEVE),
        (40001, Services::ANY),
        (51820, Services::WIREGUARD),
    ];
    assert_eq!(ports, expected);
}

#[test]
fn the_peer_relay_of_the_example_is_understood_and_can_be_switched_off() {
    let settings = read(WHOLE, Some(3478)).unwrap();
    let peer_relay = settings.peer_relay.unwrap();
    assert_eq!(peer_relay.port, 40000);
    assert_eq!(peer_relay.addresses, ["203.0.113.1:40000".parse().unwrap()]);
    let Limits { endpoints, endpoints_per_node, .. } = peer_relay.limits;
    assert_eq!((endpoints, endpoints_per_node), (16_384, 256));
    let node = NodePublic::from_bytes([0x11; 32]);
    assert_eq!(peer_relay.allow.permission(&node, false), Permission::AnyKey);
    let other = NodePublic::from_bytes([0x12; 32]);
    assert_eq!(
        peer_relay.allow.permission(&other, true),
        Permission::Denied(Refusal::NotPermitted)
    );
    assert_eq!(Allowed::Any.permission(&other, false), Permission::AnyKey);
    let stun: Vec<_> = peer_relay.stun.iter().map(ToString::to_string).collect();
    assert_eq!(stun, ["stun.example.com:3478"]);
    let derp: Vec<_> = peer_relay.derp.iter().map(ToString::to_string).collect();
    assert_eq!(derp, ["https://derp.example.com"]);
    assert_eq!(peer_relay.derp_trust, Trust::Roots("/etc/derpd/derp-ca.pem".into()));

    let text = "[peer_relay]\nport = 5\nkey_file = \"/k\"\nallow = \"any\"\n";
    let on = read(text, Some(3478)).unwrap();
    assert!(on.relays());
    let settings = |more: &str| read(&format!("{text}{more}"), None).unwrap().peer_relay.unwrap();
    assert_eq!(settings("").stun, []);
    for (line, cloud) in [
        ("", CloudChoice::Detect),
        ("cloud = \"detect\"\n", CloudChoice::Detect),
        ("cloud = \"aws\"\n", CloudChoice::Given(Cloud::Aws)),
        ("cloud = \"off\"\n", CloudChoice::Off),
    ] {
        assert_eq!(settings(line).cloud, cloud, "{line}");
    }
    // Servers of other regions are asked, unless others are named or none.
    let derp = "derp = [\"http://a:3340\", \"b\"]\n";
    let names = |settings: &PeerRelaySettings| {
        settings.stun.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(&settings(derp)), ["a:3478", "b:3478"]);
    assert_eq!(settings(&format!("{derp}stun = []")).stun, []);
    let text = text.replace("any", "admitted");
    let admitted = read(&text, None).unwrap().peer_relay.unwrap().allow;
    assert_eq!(admitted.permission(&node, true), Permission::AnyKey);
    assert_eq!(admitted.permission(&node, false), Permission::Denied(Refusal::NotPermitted));
    assert_eq!(u16::from_be(on.ports(None)[0].number), 5);
    assert_eq!(on.ports(None)[0].services, Services::GENEVE);
    let off = read(&format!("{text}enabled = false\n"), Some(3478)).unwrap();
    assert_eq!(off, FileSettings::default());
}

#[test]
fn a_peer_relay_can_join_a_tailnet_whose_policy_decides() {
    let example = read(WHOLE, Some(3478)).unwrap().peer_relay.unwrap().control.unwrap();
    assert_eq!(example.url.to_string(), "https://controlplane.tailscale.com");
    assert_eq!((example.home_region, example.hostname.as_deref()), (Some(900), Some("relay-1")));
    let whole = "[peer_relay]\nport = 5\nkey_file = \"/k\"\nauth_key_file = \"/a\"\n";
    for (url, is_tls) in [
        ("https://control.example:8443", true),
        ("https://203.0.113.1", true),
        ("http://127.0.0.1:8080", false),
        ("http://localhost", false),
        ("http://10.77.0.1:8080", false),
        ("http://[fd00::1]:8080/", false),
    ] {
        let text = format!("{whole}control_url = {url:?}\n");
        let peer_relay = read(&text, Some(3478)).unwrap().peer_relay.unwrap();
        assert_eq!(peer_relay.allow, Allowed::Any);
        let control = peer_relay.control.unwrap();
        assert_eq!((control.url.tls, control.home_region), (is_tls, None), "{url}");
    }
    let node = NodePublic::from_bytes([0x11; 32]);
    let text = format!("{whole}control_url = \"https://c\"\nallow = [\"{node}\"]\n");
    let peer_relay = read(&text, Some(3478)).unwrap().peer_relay.unwrap();
    assert_eq!(peer_relay.allow, Allowed::Nodes([node].into()));
}

#[test]
fn faults_of_the_peer_relay_are_named() {
    let with = |lines: &str| fault(&format!("[peer_relay]\n{lines}"));
    let whole = "port = 5\nkey_file = \"/k\"\nallow = \"any\"\n";
    let with_control = |lines: &str| {
        let lines = if lines.contains("auth_key_file") {
            lines.to_owned()
        } else {
            format!("{lines}\nauth_key_file = \"/a\"")
        };
        format!("port = 5\nkey_file = \"/k\"\n{lines}")
    };
    for (lines, expected) in [
        ("port = 5\nallow = []", "1|[peer_relay]|key_file is missing"),
        ("port = 5\nkey_file = \"/k\"", "1|[peer_relay]|allow is missing"),
        (
            "key_file = \"/k\"\nallow = []",
            "1|[peer_relay]|needs a port, here or as the port of [relay] for all flows",
        ),
        (
            "port = 5\nallow = []\nkey_file = \"k\"",
            "4|[peer_relay] key_file|must be an absolute path",
        ),
        (
            "port = 5\nkey_file = \"/k\"\nallow = \"all\"",
            "4|[peer_relay] allow|must be a list of node keys, \"any\" or \"admitted\"",
        ),
        (
            "port = 5\nkey_file = \"/k\"\nallow = [\"x\"]",
            "4|[peer_relay] allow|\"x\" is not a node key, like nodekey: and 64 digits",
        ),
        (
            &format!("{whole}addresses = [\"1.2.3.4\"]"),
            "5|[peer_relay] addresses|\"1.2.3.4\" is not an address with a port, like 203.0.113.1:40000",
        ),
        (
            &format!("{whole}stun = [\"stun:x\"]"),
            "5|[peer_relay] stun|\"stun:x\" is not a STUN server, like stun.example.com:3478",
        ),
        (&format!("{whole}stun = \"a\""), "5|[peer_relay] stun|must be a list in brackets"),
        (
            &format!("{whole}cloud = \"gcp\""),
            "5|[peer_relay] cloud|must be \"detect\", \"aws\" or \"off\"",
        ),
        (
            &format!("{whole}cloud = true"),
            "5|[peer_relay] cloud|must be \"detect\", \"aws\" or \"off\"",
        ),
        (
            &format!("{whole}derp = \"ftp://a\""),
            "5|[peer_relay] derp|\"ftp://a\" is not a DERP server, like https://derp.example.com/derp",
        ),
        (
            &format!("{whole}derp = [\"a\", \"https://a:443\"]"),
            "5|[peer_relay] derp|https://a is there twice",
        ),
        (
            &format!("{whole}derp = \"http://a\"\nderp_pin = \"sha256-raw:00\""),
            "6|[peer_relay] derp_pin|has no meaning without a derp that begins with https://",
        ),
        (
            &format!("{whole}derp = \"a\"\nderp_pin = \"sha256-raw:00\""),
            "6|[peer_relay] derp_pin|\"sha256-raw:00\" is not a pin, like sha256-raw: and 64 digits",
        ),
        (&format!("{whole}derp = \"a\"\nderp_pin = []"), "6|[peer_relay] derp_pin|must name a pin"),
        (
            &format!("{whole}derp = \"a\"\nderp_ca_file = \"ca.pem\""),
            "6|[peer_relay] derp_ca_file|must be an absolute path",
        ),
        (
            &format!("{whole}derp = \"a\"\nderp_ca_file = \"/ca.pem\"\nderp_pin = []"),
            "7|[peer_relay] derp_pin|cannot be given together with derp_ca_file: no authority is asked",
        ),
        (
            &format!("{whole}adresses = []"),
            "5|[peer_relay] adresses|unknown key; did you mean addresses?",
        ),
        (
            &format!("{whole}hostname = \"x\""),
            "5|[peer_relay] hostname|has no meaning without control_url",
        ),
        (
            &format!("{whole}control_url = \"https://c\""),
            "1|[peer_relay]|auth_key_file is missing, by which to join",
        ),
        (
            &format!("{whole}control_url = \"https://c\"\nauth_key_file = \"/a\""),
            "4|[peer_relay] allow|with control_url the tailnet's policy decides; leave it out, or list those of its \
             nodes that may",
        ),
        (
            &with_control("control_url = \"c.example\""),
            "4|[peer_relay] control_url|must begin with https://",
        ),
        (
            &with_control("control_url = \"ftp://c\""),
            "4|[peer_relay] control_url|\"ftp://c\" is not an address like https://control.example.com",
        ),
        (
            &with_control("control_url = \"http://c.example\""),
            "4|[peer_relay] control_url|plain HTTP is only for a private address: whoever is on the way could pose as \
             the control server",
        ),
        (
            &with_control("control_url = \"https://c\"\nauth_key_file = \"a\""),
            "5|[peer_relay] auth_key_file|must be an absolute path",
        ),
        (
            &with_control(
                "control_url = \"https://c\"\nauth_key_file = \"/a\"\nhostname = \"a_b\"",
            ),
            "6|[peer_relay] hostname|must be a name of letters, digits and hyphens, at most 63",
        ),
        (
            &with_control("control_url = \"https://c\"\nauth_key_file = \"/a\"\nca_file = 5"),
            "6|[peer_relay] ca_file|must be a text in quotes",
        ),
        (
            &with_control("control_url = \"https://c\"\nauth_key_file = \"/a\"\nhome_region = 0"),
            "6|[peer_relay] home_region|must be a number from 1 to 65535",
        ),
        (
            &format!(
                "{whole}[[flow]]\nname = \"x\"\nport = 5\na = \"192.0.2.1:1\"\nb = \"192.0.2.2:2\""
            ),
            "5|[[flow]] \"x\"|flows without vni need a port of their own, and port 5 also has flows with a vni",
        ),
    ] {
        assert_eq!(with(lines), expected, "{lines}");
    }
}

#[test]
fn a_companion_has_defaults_and_can_be_switched_off() {
    let settings = read("[companion]", Some(3478)).unwrap();
    let companion = CompanionSettings {
        socket: "/var/run/tailscale/tailscaled.sock".into(),
        poll: Duration::from_millis(250),
        sample: Duration::from_secs(30),
    };
    assert_eq!(settings.companion, Some(companion));
    assert!(settings.has_tables() && !settings.relays());
    let ports = settings.ports(Some(3478)).map(|port| u16::from_be(port.number));
    assert_eq!(ports, [3478, 0, 0, 0], "which port is tailscaled's, it says itself");
    let off = read("[companion]\nenabled = false", Some(3478)).unwrap();
    assert_eq!(off, FileSettings::default());
    let off = read(
        "[companion]\nenabled = false\n[[flow]]\nname = \"x\"\nport = 5\na = \"192.0.2.1:1\"\nb = \"192.0.2.2:2\"",
        None,
    );
    assert_eq!(off.unwrap().flows.len(), 1);
}

#[test]
fn faults_of_the_companion_are_named() {
    let with = |lines: &str| fault(&format!("[companion]\n{lines}"));
    let together = "1|[companion]|cannot be given together with [[flow]], [peer_relay] or [wireguard]: the kernel either \
        drops what is no flow's, or leaves it to tailscaled";
    for (lines, expected) in [
        ("socket = \"s\"", "2|[companion] socket|must be an absolute path"),
        ("poll = \"10ms\"", "2|[companion] poll|must be from 50ms to 5s"),
        ("poll = 1", "2|[companion] poll|must be a text in quotes"),
        ("sample = \"5m\"", "2|[companion] sample|must be from 1s to 2m"),
        ("sample = \"x\"", "2|[companion] sample|\"x\" is not a duration like 30s or 5m"),
        (
            "interval = 1",
            "2|[companion] interval|unknown key (there are enabled, socket, poll, sample)",
        ),
        ("port = 1", "2|[companion] port|unknown key (there are enabled, socket, poll, sample)"),
        ("enabled = 1", "2|[companion] enabled|must be true or false"),
        ("[peer_relay]\nport = 5\nkey_file = \"/k\"\nallow = \"any\"", together),
        (
            "[wireguard]\n[[wireguard.network]]\nname = \"x\"\n\
             [[wireguard.network.peer]]\npublic_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\n\
             [[wireguard.network.peer]]\npublic_key = \"TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=\"",
            together,
        ),
        ("[[flow]]\nname = \"x\"\nport = 5\na = \"192.0.2.1:1\"\nb = \"192.0.2.2:2\"", together),
    ] {
        assert_eq!(with(lines), expected, "{lines}");
    }
}

#[test]
fn stun_and_relay_may_share_a_port() {
    let text = flow("vni = 1\na = \"192.0.2.1:1\"\nb = \"192.0.2.2:2\"\nport = 3478");
    let settings = read(&text, Some(3478)).unwrap();
    let [port, ..] = settings.ports(Some(3478));
    assert_eq!(
        port,
        Port { number: 3478_u16.to_be(), services: Services::STUN | Services::GENEVE }
    );
}

#[test]
fn faults_name_line_key_and_what_would_be_right() {
    for (text, expected) in [
        ("[relay]\nprot = 1", "2|[relay] prot|unknown key; did you mean port?"),
        ("\n\n[rely]", "3|rely|unknown key; did you mean relay?"),
        (
            "zzz = 1",
            "1|zzz|unknown key (there are server, stun, acme, mesh, admission, limits, dataplane, log, relay, peer_relay, \
             companion, wireguard, flow)",
        ),
        ("[relay]\nport = 0", "2|[relay] port|must be a number from 1 to 65535"),
        ("[relay]\nport = \"1\"", "2|[relay] port|must be a number from 1 to 65535"),
        ("[relay]\nslots = 1000", "2|[relay] slots|must be a power of two, like 1024"),
        ("[relay]\nslots = 8", "2|[relay] slots|must be a number from 16 to 262144"),
        (
            "[relay]\nidle_timeout = \"5\"",
            "2|[relay] idle_timeout|\"5\" is not a duration like 30s or 5m",
        ),
        ("[relay]\nidle_timeout = \"5s\"", "2|[relay] idle_timeout|must be from 10s to 24h"),
        ("[relay]\nidle_timeout = 5", "2|[relay] idle_timeout|must be a text in quotes"),
        ("relay = 5", "1|relay|must be a table"),
        ("[stun]\nshed = 1", "2|[stun] shed|must be true or false"),
        ("[stun]\nburst = 1", "2|[stun] burst|has no meaning without rate"),
        ("[stun]\nrate = -1", "2|[stun] rate|must be a number from 0 to 1000000"),
        (
            "[dataplane]\npin = 5",
            "2|[dataplane] pin|must be a directory of a BPF file system like \"/sys/fs/bpf/derpd\", or false",
        ),
        ("[flow]\nname = \"x\"", "1|flow|must be tables that begin with [[flow]]"),
        ("[[flow]]\nvni = 1", "1|[[flow]]|name is missing"),
        ("[[flow]]\nname = \"\"", "2|[[flow]] name|must be a word or two"),
        (
            "[[flow]]\nname = \"x\"",
            "1|[[flow]] \"x\"|needs a port, here or as the port of [relay] for all flows",
        ),
    ] {
        assert_eq!(fault(text), expected, "{text}");
    }
    let end = "b = \"192.0.2.2:2\"";
    for (lines, expected) in [
        ("", "3|[[flow]] \"x\"|needs a or learn_a"),
        ("vni = 0", "5|[[flow]] \"x\" vni|must be a number from 1 to 16777215, or \"random\""),
        (
            "vni = \"some\"",
            "5|[[flow]] \"x\" vni|must be a number from 1 to 16777215, or \"random\"",
        ),
        (
            "a = \"192.0.2.1\"",
            "5|[[flow]] \"x\" a|\"192.0.2.1\" is not an address with a port, like 192.0.2.1:51820",
        ),
        (
            "learn_a = [\"192.0.2.0/24\",\n\"192.0.2.0/33\"]",
            "6|[[flow]] \"x\" learn_a|\"192.0.2.0/33\" is not a network, like 192.0.2.0/24",
        ),
        ("learn_a = []", "5|[[flow]] \"x\" learn_a|must name a network"),
        ("learn_a = \"10.0.0.0/8\"", "5|[[flow]] \"x\" learn_a|must be a list in brackets"),
        (
            "a = \"192.0.2.1:1\"\nlearn_a = [\"::/0\"]",
            "6|[[flow]] \"x\" learn_a|cannot be given together with a",
        ),
        (
            "a = \"192.0.2.1:1\"\nlocal_a = \"eth0\"",
            "6|[[flow]] \"x\" local_a|\"eth0\" is not an address, like 192.0.2.1",
        ),
        ("a = \"192.0.2.1:1\"\nb = \"192.0.2.1:1\"", "3|[[flow]] \"x\"|both ends are 192.0.2.1:1"),
        (
            &format!("a = \"192.0.2.1:1\"\n{end}\nrate = \"5 MB/s\""),
            "7|[[flow]] \"x\" rate|\"5 MB/s\" is not a rate like \"100 Mbit/s\"",
        ),
        (
            &format!("a = \"192.0.2.1:1\"\n{end}\nrate = \"5 bit/s\""),
            "7|[[flow]] \"x\" rate|the rate must be between 2000 bit/s and 100000000000 bit/s",
        ),
        (
            &format!("a = \"192.0.2.1:1\"\n{end}\nport = 3478"),
            "3|[[flow]] \"x\"|flows without vni need a port of their own, and port 3478 also has STUN",
        ),
        (
            &format!(
                "a = \"192.0.2.1:1\"\n{end}\n[[flow]]\nname = \"x\"\nvni = 1\na = \"192.0.2.3:1\"\n{end}"
            ),
            "7|[[flow]] \"x\"|another flow has this name",
        ),
        (
            &format!(
                "a = \"192.0.2.1:1\"\n{end}\n[[flow]]\nname = \"y\"\nvni = 1\na = \"192.0.2.3:1\"\n{end}"
            ),
            "7|[[flow]] \"y\"|flows without vni need a port of their own, and port 40000 also has flows with a vni",
        ),
        (
            &format!(
                "a = \"192.0.2.1:1\"\n{end}\n[[flow]]\nname = \"y\"\na = \"192.0.2.3:1\"\n{end}"
            ),
            "7|[[flow]] \"y\"|packets from 192.0.2.2:2 to port 40000 belong to the flow \"x\"",
        ),
    ] {
        assert_eq!(fault(&flow(lines)), expected, "{lines}");
    }
}

#[test]
fn vnis_that_exclude_each_other_are_told_apart_from_the_rest() {
    let flow = |name: &str, vni: u32| {
        format!(
            "[[flow]]\nname = \"{name}\"\nvni = {vni}\na = \"192.0.2.1:1\"\nb = \"192.0.2.2:2\"\n"
        )
    };
    let random =
        "[[flow]]\nname = \"r\"\nvni = \"random\"\na = \"192.0.2.1:1\"\nb = \"192.0.2.2:2\"\n";
    let start = "[relay]\nport = 40000\nslots = 16\n";
    let fits = format!("{start}{random}{}", flow("x", 16));
    assert_eq!(
        read(&fits, None).unwrap().flows.len(),
        2,
        "the one with a VNI has the first choice"
    );
    let text = format!("{start}{}{}", flow("x", 1), flow("y", 17));
    let Fault { line, reason, .. } = read(&text, None).unwrap_err();
    assert_eq!(line, 9);
    assert!(reason.contains("\"x\"") && reason.contains("17"), "{reason}");
}

#[test]
fn there_are_only_so_many_ports() {
    let mut text = String::new();
    for number in 1..=4 {
        text += &format!(
            "[[flow]]\nname = \"{number}\"\nport = {number}\na = \"192.0.2.{number}:1\"\nb = \"192.0.3.{number}:2\"\n"
        );
    }
    assert!(read(&text, None).is_ok());
    assert!(read(&text, Some(3478)).unwrap_err().reason.starts_with("at most 4 UDP ports"));
}

#[test]
fn rates_are_read() {
    for (text, bits) in [
        ("2000 bit/s", 2_000),
        ("64kbit/s", 64_000),
        ("100 Mbit/s", 100_000_000),
        ("10  Gbit/s", 10_000_000_000),
    ] {
        let lines = format!("a = \"192.0.2.1:1\"\nb = \"192.0.2.2:2\"\nrate = \"{text}\"");
        let rate = read(&flow(&lines), None).unwrap().flows[0].rate;
        assert_eq!(rate, Some(FlowRate::bits_per_second(bits).unwrap()), "{text}");
    }
    for text in [
        "",
        "Mbit/s",
        "100",
        "1.5 Mbit/s",
        "100 mbit/s",
        "99999999999999999999 bit/s",
        "99999999999999 Gbit/s",
    ] {
        let lines = format!("a = \"192.0.2.1:1\"\nb = \"192.0.2.2:2\"\nrate = \"{text}\"");
        assert!(read(&flow(&lines), None).is_err(), "{text}");
    }
}

#[test]
fn pins() {
    let pin =
        |value: &str| flags(&format!("[dataplane]\npin = {value}")).unwrap()["xdp-pin"].clone();
    assert_eq!(pin("false"), ["off"]);
    assert_eq!(pin("true"), ["/sys/fs/bpf/derpd"]);
    assert_eq!(pin("\"/run/x\""), ["/run/x"]);
}

#[test]
fn no_toml_at_all_is_one_sentence() {
    for text in ["[relay", "a = ", "x = \"\n", "= 1", "[relay]\n[relay]", "\u{0}"] {
        let fault = read(text, None).unwrap_err();
        assert!(!fault.reason.contains('\n') && !fault.reason.is_empty(), "{fault:?}");
    }
}

#[test]
fn the_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("derpd.toml");
    let missing = load_file(&path, None).unwrap_err();
    assert!(matches!(missing, ConfigError::Read { flag: "-config", .. }));
    std::fs::write(&path, "[relay]\nprot = 1").unwrap();
    let error = load_file(&path, None).unwrap_err();
    let expected = "line 2: [relay] prot: unknown key; did you mean port?";
    assert_eq!(error.to_string(), format!("-config: {}: {expected}", path.display()));
    assert_eq!(error.exit_status(), 1);
    std::fs::write(&path, b"\xff").unwrap();
    assert!(load_file(&path, None).unwrap_err().to_string().ends_with(": not UTF-8"));
    std::fs::write(&path, "[stun]\nrate = 5").unwrap();
    let rate = load_file(&path, None).unwrap().stun.rate;
    assert_eq!(rate, Rate::per_second(5, 20));
}

const KEYS: [&str; 3] = [
    "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
    "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=",
    "gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA=",
];

/// A network with these lines and two peers, `nas` and one without a label; the second has `last` as its last line.
fn wireguard(lines: &str, last: &str) -> String {
    let [a, b, _] = KEYS;
    format!(
        "[wireguard]\n[[wireguard.network]]\nname = \"home\"\n{lines}\n\
         [[wireguard.network.peer]]\nlabel = \"nas\"\npublic_key = \"{a}\"\n\
         [[wireguard.network.peer]]\npublic_key = \"{b}\"\n{last}\n"
    )
}

fn pairs(lines: &str) -> Pairs {
    let settings = read(&wireguard(lines, ""), None).expect(lines).wireguard.expect("wireguard");
    settings.networks[0].pairs.clone()
}

#[test]
fn wireguard_has_defaults_and_three_ways_to_name_pairs() {
    let settings = read(&wireguard("", ""), Some(3478)).unwrap();
    assert!(settings.relays());
    let ports = settings.ports(Some(3478)).map(|it| (u16::from_be(it.number), it.services));
    assert_eq!(ports[1], (51820, Services::WIREGUARD));
    let section = settings.wireguard.unwrap();
    assert_eq!((section.endpoint, section.state_file), (None, None));
    let labels: Vec<_> = section.networks[0].peers.iter().map(|it| it.label.clone()).collect();
    assert_eq!(labels, ["nas", "TrMvSoP4"]);
    assert_eq!(pairs(""), Pairs::All);
    assert_eq!(pairs("pairs = \"all\""), Pairs::All);
    assert_eq!(pairs("pairs = \"star\"\nhub = \"TrMvSoP4\""), Pairs::Star(1));
    let list = "pairs = [[\"TrMvSoP4\", \"nas\"]]";
    assert_eq!(pairs(list), Pairs::List(vec![[1, 0]]));
}

#[test]
fn wireguard_shares_a_port_with_what_can_be_told_apart() {
    let shared = |port: u16| {
        wireguard("", "").replace("[wireguard]", &format!("[wireguard]\nport = {port}"))
    };
    let ports = read(&shared(3478), Some(3478)).unwrap().ports(Some(3478));
    assert_eq!(ports[0].services, Services::STUN | Services::WIREGUARD);
    let geneve = flow("vni = 7\na = \"192.0.2.1:1\"\nb = \"192.0.2.2:2\"");
    let ports = read(&format!("{geneve}{}", shared(40000)), Some(3478)).unwrap().ports(None);
    assert_eq!(ports[0].services, Services::GENEVE | Services::WIREGUARD);
    let any = flow("a = \"192.0.2.1:1\"\nb = \"192.0.2.2:2\"");
    assert_eq!(
        fault(&format!("{any}{}", shared(40000))),
        "3|[[flow]] \"x\"|flows without vni need a port of their own, and port 40000 also has [wireguard]"
    );
}

#[test]
fn what_is_wrong_with_wireguard_is_said() {
    let [a, b, c] = KEYS;
    let home = "[[wireguard.network]] \"home\"";
    let cases = [
        (
            "[wireguard]\nprot = 1".to_owned(),
            "2|[wireguard] prot|unknown key; did you mean port?".to_owned(),
        ),
        ("[wireguard]".to_owned(), "1|[wireguard]|needs a [[wireguard.network]]".to_owned()),
        (
            "[wireguard]\nport = 0".to_owned(),
            "2|[wireguard] port|must be a number from 1 to 65535".to_owned(),
        ),
        (
            "[wireguard]\nendpoint = \"relay\"".to_owned(),
            "2|[wireguard] endpoint|\"relay\" is not a host with a port, like relay.example.com:51820"
                .to_owned(),
        ),
        (
            "[wireguard]\nstate_file = \"x.json\"".to_owned(),
            "2|[wireguard] state_file|must be an absolute path".to_owned(),
        ),
        (
            "[wireguard]\n[[wireguard.network]]".to_owned(),
            "2|[[wireguard.network]]|name is missing".to_owned(),
        ),
        (
            "[wireguard]\n[[wireguard.network]]\nname = \"home\"".to_owned(),
            format!("2|{home}|needs at least two [[wireguard.network.peer]]"),
        ),
        (
            wireguard("pairs = \"some\"", ""),
            format!(
                "4|{home} pairs|must be \"all\", \"star\" or a list of pairs like [[\"laptop\", \"nas\"]]"
            ),
        ),
        (
            wireguard("pairs = \"star\"", ""),
            format!("2|{home}|pairs = \"star\" needs a hub, the label of a peer"),
        ),
        (
            wireguard("pairs = \"star\"\nhub = \"nsa\"", ""),
            format!("5|{home} hub|no peer of this network has the label \"nsa\""),
        ),
        (
            wireguard("hub = \"nas\"", ""),
            format!("4|{home} hub|has no meaning without pairs = \"star\""),
        ),
        (
            wireguard("pairs = [[\"nas\", \"tv\"]]", ""),
            format!("4|{home} pairs|no peer of this network has the label \"tv\""),
        ),
        (
            wireguard("pairs = [[\"nas\"]]", ""),
            format!("4|{home} pairs|must be two labels, like [\"laptop\", \"nas\"]"),
        ),
        (
            wireguard("pairs = [[\"nas\", \"nas\"]]", ""),
            format!("4|{home} pairs|must be two different peers"),
        ),
        (
            wireguard("", "").replace(b, "no key"),
            "9|[[wireguard.network.peer]] public_key|must be a WireGuard public key: 44 letters of base64, as \
             `wg pubkey` prints them"
                .to_owned(),
        ),
        (
            wireguard("", "").replace(b, a),
            "9|[[wireguard.network.peer]] public_key|the peer \"nas\" of network \"home\" has this key"
                .to_owned(),
        ),
        (
            wireguard("", "label = \"nas\""),
            "10|[[wireguard.network.peer]] label|another peer of this network has this label".to_owned(),
        ),
        (
            wireguard("", "address = \"192.0.2.1\""),
            "10|[[wireguard.network.peer]] address|\"192.0.2.1\" is not an address with a port, like \
             203.0.113.5:51820"
                .to_owned(),
        ),
        (
            wireguard("", "address = \"224.0.0.1:51820\""),
            "10|[[wireguard.network.peer]] address|224.0.0.1:51820 is not the address of one host".to_owned(),
        ),
        (
            wireguard("", "address = \"192.0.2.1:1\"\n[[wireguard.network.peer]]\npublic_key = \"C\"\naddress = \"192.0.2.1:1\"")
                .replace("\"C\"", &format!("\"{c}\"")),
            "13|[[wireguard.network.peer]] address|the peer \"TrMvSoP4\" of network \"home\" has this address"
                .to_owned(),
        ),
        (
            format!("{}{}", wireguard("", ""), "[[wireguard.network]]\nname = \"home\""),
            "12|[[wireguard.network]] name|another network has this name".to_owned(),
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(fault(&text), expected, "{text}");
    }
}

#[test]
fn no_more_wireguard_peers_are_taken_than_are_tried() {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let peer = |number: u32| {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        format!("[[wireguard.network.peer]]\npublic_key = \"{}\"\n", BASE64_STANDARD.encode(key))
    };
    let text = |count| {
        let peers: String = (0..count).map(peer).collect();
        format!("[wireguard]\n[[wireguard.network]]\nname = \"large\"\n{peers}")
    };
    assert!(read(&text(1000), None).is_ok());
    assert_eq!(
        fault(&text(1001)),
        "2|[[wireguard.network]] \"large\"|at most 1000 peers are possible in all networks"
    );
}

proptest! {
    #[test]
    fn any_text_is_judged(text in "\\PC*") {
        let _ = read(&text, None);
    }

    #[test]
    fn a_damaged_example_is_judged(at in 0..WHOLE.len(), letter in "[\\PC\n]") {
        let mut text = WHOLE.to_owned();
        if text.is_char_boundary(at) {
            text.insert_str(at, &letter);
            let _ = read(&text, Some(3478));
            text.truncate(at);
            let _ = read(&text, Some(3478));
        }
    }
}

#[test]
fn another_files_flows_need_ports_that_are_free_until_the_next_start() {
    let settings = |text: &str| read(text, Some(3478)).expect("a good file");
    let flow = |name: &str, port: u16, vni: &str| {
        let ends = "a = \"192.0.2.1:1\"\nb = \"192.0.2.2:2\"\n";
        format!("[[flow]]\nname = \"{name}\"\nport = {port}\n{vni}{ends}")
    };
    let network = format!(
        "[[wireguard.network]]\nname = \"n\"\n{}",
        ['E', 'I']
            .map(|byte| format!(
                "[[wireguard.network.peer]]\nlabel = \"{byte}\"\npublic_key = \"{}=\"\n",
                String::from(byte).repeat(43)
            ))
            .concat()
    );
    let wireguard = |port: u16| format!("[wireguard]\nport = {port}\n{network}");
    let in_force =
        settings(&format!("{}[relay]\nslots = 32\n{}", wireguard(51820), flow("x", 1, "")));

    // The relay for WireGuard moves at the next start only; a flow that is to have its port has to wait.
    let moved = settings(&format!("{}{}", wireguard(51821), flow("y", 51820, "")));
    let error = in_force.with_flows_of(&moved, Some(3478)).expect_err("a port in use");
    assert_eq!(
        error.to_string(),
        "the flow \"y\" cannot be admitted before the next start: flows without vni need a port of their own, \
         and port 51820 also has [wireguard]"
    );
    let many = [1, 2, 3].map(|it| flow(&it.to_string(), it, "")).concat();
    let error = in_force.with_flows_of(&settings(&many), Some(3478)).expect_err("a port too many");
    assert!(error.to_string().ends_with("at most 4 UDP ports can be served, STUN's included"));

    let text =
        format!("[relay]\nport = 7\nslots = 64\nidle_timeout = \"1m\"\n{}", flow("y", 2, ""));
    let taken = in_force.with_flows_of(&settings(&text), Some(3478)).expect("flows that can be");
    assert_eq!(taken.flows, settings(&text).flows);
    assert_eq!(taken.wireguard, in_force.wireguard);
    let relay = RelaySettings {
        is_wanted: true,
        port: Some(7),
        slots: 32,
        idle_timeout: Duration::from_secs(60),
    };
    assert_eq!(taken.relay, relay);
}

#[test]
fn the_section_of_the_relay_has_tables_made_without_flows() {
    let settings = |text: &str| read(text, Some(3478)).expect("a good file");
    assert!(!settings("").has_tables());
    let relay = settings("[relay]\n");
    assert!(relay.has_tables() && relay.may_relay() && !relay.relays());
    let companion = settings("[relay]\n[companion]\n");
    assert!(companion.has_tables() && !companion.may_relay());
}
