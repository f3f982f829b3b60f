use std::{ffi::OsString, num::NonZeroUsize};

use super::{build::build, write::write, *};
use crate::{
    config::{ConfigError, Environment, Surroundings},
    tools::Invocation,
};

fn arguments(text: &str) -> Arguments {
    match parse(text.split_whitespace().map(OsString::from), &Surroundings::nothing()) {
        Ok(Invocation::Run(arguments)) => arguments,
        Ok(Invocation::Help(text)) => panic!("{text}"),
        Err(error) => panic!("{error}"),
    }
}

fn resolve(arguments: &Arguments) -> Result<Config, ConfigError> {
    let environment = Environment {
        variable: &|_| None,
        is_root: true,
        file_exists: &|_| false,
        processors: NonZeroUsize::MIN,
    };
    Config::resolve(arguments.relay.clone(), &environment)
}

fn built(text: &str, certificate: Option<&[u8]>) -> Result<(DerpMap, Vec<String>), DerpmapError> {
    let arguments = arguments(text);
    build(&arguments.own, &resolve(&arguments).unwrap(), certificate)
}

/// The relay's flags where only the others matter.
const RELAY: &str = "-certmode manual -certdir /certs -hostname relay.test";

fn map(text: &str) -> DerpMap {
    let signed = signed_certificate();
    let (map, notes) = built(&format!("{RELAY} {text}"), Some(&signed)).unwrap();
    assert_eq!(notes, [""; 0], "{text}");
    map
}

fn self_signed(name: &str) -> Vec<u8> {
    rcgen::generate_simple_self_signed([name.to_owned()]).unwrap().cert.der().to_vec()
}

fn signed_certificate() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "authority");
    let issuer = rcgen::Issuer::new(parameters, key);
    let own = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(["relay.test".to_owned()]).unwrap();
    parameters.signed_by(&own, &issuer).unwrap().der().to_vec()
}

#[test]
fn a_relay_with_everything_as_usual_needs_a_name_only() {
    let text = write(&map(""), Format::Json);
    let expected = r#"{
  "Regions": {
    "900": {
      "RegionID": 900,
      "RegionCode": "custom",
      "RegionName": "relay.test",
      "Nodes": [
        {
          "Name": "900a",
          "RegionID": 900,
          "HostName": "relay.test",
          "CanPort80": true
        }
      ]
    }
  }
}
"#;
    assert_eq!(text, expected);
    let policy: serde_json::Value =
        serde_json::from_str(&write(&map("--omit-default-regions"), Format::Tailscale)).unwrap();
    assert_eq!(policy["derpMap"]["omitDefaultRegions"], true);
}

#[test]
fn what_is_unusual_is_said() {
    let map = map(
        "-a :8443 -http-port -1 -stun-port 3479 --region-id=901 -region-code fra --region-name Frankfurt \
         --ipv4 192.0.2.1 -derp=false",
    );
    let region = &map.regions[&901];
    assert_eq!((&*region.code, &*region.name, region.id), ("fra", "Frankfurt", 901));
    let [node] = &region.nodes[..] else { panic!("{map:?}") };
    assert_eq!(
        (&*node.name, node.region_id, node.derp_port, node.stun_port),
        ("901a", 901, 8443, 3479)
    );
    assert_eq!(
        (&*node.ipv4, &*node.ipv6, node.stun_only, node.can_port80),
        ("192.0.2.1", "", true, false)
    );
    let closed = self::map("-stun=false --derp-port 8444");
    assert_eq!(
        (closed.regions[&900].nodes[0].stun_port, closed.regions[&900].nodes[0].derp_port),
        (-1, 8444)
    );
}

#[test]
fn a_certificate_that_nobody_signed_is_pinned() {
    let flags = "-a :8443 -certmode manual -certdir /certs -hostname 192.0.2.1";
    let certificate = self_signed("192.0.2.1");
    let (map, _) = built(flags, Some(&certificate)).unwrap();
    let node = &map.regions[&900].nodes[0];
    assert!(node.pin().unwrap().is_some(), "{node:?}");
    assert_eq!((&*node.ipv4, &*node.ipv6), ("192.0.2.1", "none"));
    let (map, _) = built(flags, Some(&signed_certificate())).unwrap();
    assert_eq!(map.regions[&900].nodes[0].cert_name, "", "an authority vouches for it");
    let error = built(flags, None).unwrap_err();
    assert!(matches!(error, DerpmapError::NoCertificate { .. }));
    assert!(error.to_string().starts_with("/certs/192.0.2.1.crt is not there"), "{error}");
    assert!(built(RELAY, None).is_ok(), "an authority will vouch for it");
}

#[test]
fn mesh_peers_are_further_nodes_and_the_relay_itself_is_not() {
    let pin = format!("sha256-raw:{}", "0a".repeat(32));
    let flags = format!(
        "-mesh-psk-file /key -mesh-with relay.test,b.test:8443/10.0.0.2,[2001:db8::1]:444 -mesh-pin {pin}"
    );
    let map = map(&flags);
    let nodes = &map.regions[&900].nodes;
    let seen: Vec<_> =
        nodes.iter().map(|it| (&*it.name, &*it.host_name, it.derp_port, &*it.cert_name)).collect();
    assert_eq!(
        seen,
        [
            ("900a", "relay.test", 0, ""),
            ("900b", "b.test", 8443, &*pin),
            ("900c", "2001:db8::1", 444, &*pin)
        ]
    );
    assert_eq!((&*nodes[2].ipv4, &*nodes[2].ipv6), ("none", "2001:db8::1"));
    let flags =
        format!("{RELAY} -mesh-psk-file /key -mesh-with b.test,c.test -mesh-pin {pin},{pin}");
    let (map, notes) = built(&flags, None).unwrap();
    assert!(map.regions[&900].nodes[1].cert_name.is_empty());
    assert!(notes[0].contains("-mesh-pin"), "{notes:?}");
}

#[test]
fn what_cannot_be_known_is_noted_or_refused() {
    let (map, notes) = built("-a :8080 -hostname relay.test", None).unwrap();
    assert_eq!(map.regions[&900].nodes[0].derp_port, 0);
    assert!(notes[0].contains("plain HTTP") && notes[0].contains("port 443"), "{notes:?}");
    let error = built("-certmode manual -certdir /certs", None).unwrap_err();
    assert!(error.to_string().contains("-hostname"), "{error}");
    assert_eq!(error.exit_status(), 2);
    for (text, part) in [
        ("--region-id 0", "--region-id"),
        ("--format yaml", "yaml"),
        ("-hostnam x", "-hostname"),
        ("--ipv4 ::1", "--ipv4"),
    ] {
        let error =
            parse(text.split(' ').map(OsString::from), &Surroundings::nothing()).err().unwrap();
        assert!(error.to_string().contains(part), "{text}: {error}");
        assert_eq!(error.exit_status(), 2);
    }
    let help = parse([OsString::from("-h")], &Surroundings::nothing()).unwrap();
    assert!(matches!(help, Invocation::Help(text) if text.contains("--region-id")));
}

#[test]
fn headscales_form_says_the_same() {
    let peers = "-mesh-psk-file /key -mesh-with b.test:8443 --region-name \"a:#'b'\" --omit-default-regions";
    let map = map(peers);
    let text = write(&map, Format::Headscale);
    assert!(text.contains("\n    regioncode: \"custom\"\n"), "{text}");
    assert!(text.contains("\n    - name: \"900b\"\n      regionid: 900\n"), "{text}");
    assert_eq!(text.parse::<DerpMap>().unwrap(), map);
}

#[test]
fn nodes_are_lettered() {
    let peers: Vec<String> = (0..28).map(|number| format!("p{number}.test")).collect();
    let map = map(&format!("-mesh-psk-file /key -mesh-with {}", peers.join(",")));
    let names: Vec<_> = map.regions[&900].nodes.iter().map(|it| &*it.name).collect();
    assert_eq!((names[0], names[25], names[26], names[28]), ("900a", "900z", "900aa", "900ac"));
}
