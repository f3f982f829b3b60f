mod admission;
mod certificates;
mod key_files;

use std::{
    ffi::OsString, fs, num::NonZeroUsize, os::unix::fs::PermissionsExt, path::Path, time::Duration,
};

use hyper::Uri;
use proptest::prelude::*;

use super::{key_file::*, *};
use crate::{
    acme,
    client::Trust,
    http::Home,
    relay::limit::RateLimit,
    server::{AcceptLimit, ConnectionLimits, VerboseClients},
};

fn options(arguments: &[&str]) -> Result<Options, UsageError> {
    options_with(arguments, &|_| None)
}

fn options_with(
    arguments: &[&str],
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Options, UsageError> {
    let surroundings = Surroundings { variable, ..Surroundings::nothing() };
    match parse(arguments.iter().map(OsString::from), &surroundings)? {
        Invocation::Run(options) => Ok(*options),
        Invocation::Help(_) => panic!("help"),
    }
}

fn resolve_with(
    arguments: &[&str],
    variables: &[(&str, &str)],
    is_root: bool,
) -> Result<Config, ConfigError> {
    let variable = |name: &str| {
        let found = variables.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let environment = Environment {
        variable: &variable,
        is_root,
        file_exists: &|path| path == Path::new("/root-home/keys/derp-mesh.key"),
        processors: NonZeroUsize::new(3).unwrap(),
    };
    Config::resolve(options_with(arguments, &variable).unwrap(), &environment)
}

fn resolve(arguments: &[&str]) -> Result<Config, ConfigError> {
    let mut with_key = vec!["-c=/key"];
    with_key.extend(arguments);
    resolve_with(&with_key, &[], false)
}

#[test]
fn the_command_is_well_formed() {
    <Options as clap::CommandFactory>::command().debug_assert();
}

#[test]
fn defaults_are_derpers() {
    let options = options(&[]).unwrap();
    assert_eq!(options.a, ":443");
    assert_eq!((options.http_port, options.stun_port), (80, 3478));
    assert!(options.stun && options.derp && !options.dev && !options.version);
    assert_eq!(options.hostname, "derp.tailscale.com");
    assert_eq!(options.certmode, CertificateMode::LetsEncrypt);
    assert_eq!(options.tcp_keepalive_time, GoDuration::from_seconds(600));
    assert_eq!(options.tcp_user_timeout, GoDuration::from_seconds(15));
    assert_eq!(options.tcp_write_timeout, GoDuration::from_seconds(2));
    assert_eq!(options.accept_connection_limit, f64::INFINITY);
    assert_eq!(options.accept_connection_burst, i64::MAX as u64);
}

#[test]
fn one_dash_or_two_joined_or_apart() {
    for arguments in [
        ["-a", ":8443", "-http-port", "-1"].as_slice(),
        &["--a", ":8443", "--http-port", "-1"],
        &["-a=:8443", "-http-port=-1"],
        &["--a=:8443", "--http-port=-1"],
        &["-a=:1", "-a=:8443", "-http-port=5", "--http-port=-1"],
    ] {
        let options = options(arguments).unwrap();
        assert_eq!((options.a.as_str(), options.http_port), (":8443", -1), "{arguments:?}");
    }
}

#[test]
fn booleans_stand_alone_or_with_an_equals_sign() {
    for (arguments, expected) in [
        (["-stun"].as_slice(), true),
        (&["-stun=false"], false),
        (&["--stun=0"], false),
        (&["-stun=F"], false),
        (&["-stun=false", "-stun=t"], true),
    ] {
        assert_eq!(options(arguments).unwrap().stun, expected, "{arguments:?}");
    }
    let error = options(&["-stun", "false"]).unwrap_err().to_string();
    assert_eq!(error, "unexpected argument \"false\"; did you mean -stun=false?");
    let error = options(&["-stun=maybe"]).unwrap_err().to_string();
    assert_eq!(error, "-stun \"maybe\": must be true or false");
}

#[test]
fn lists_are_collected() {
    let options = options(&["-xdp-interface", "eth0", "--xdp-interface=eth1"]).unwrap();
    assert_eq!(options.xdp_interface, ["eth0", "eth1"]);
}

#[test]
fn faults_are_one_sentence_that_names_the_flag() {
    for (arguments, expected) in [
        (
            ["-htp-port", "1"].as_slice(),
            "unknown flag -htp-port; did you mean -http-port? (derpd -help lists all flags)",
        ),
        (&["-dve"], "unknown flag -dve; did you mean -dev? (derpd -help lists all flags)"),
        (&["-zzz"], "unknown flag -zzz (derpd -help lists all flags)"),
        (&["-a"], "-a needs a value"),
        (&["serve"], "unexpected argument \"serve\""),
        (&["-"], "unexpected argument \"-\""),
        (&["--"], "unexpected argument \"--\""),
        (&["-http-port", "x"], "-http-port \"x\": must be a port from 0 to 65535, or -1 for none"),
        (
            &["-http-port=70000"],
            "-http-port \"70000\": must be a port from 0 to 65535, or -1 for none",
        ),
        (&["-stun-port=65536"], "-stun-port \"65536\": must be a port from 0 to 65535"),
        (
            &["-tcp-write-timeout", "5"],
            "-tcp-write-timeout \"5\": a duration needs a unit, as in 15s, 1h30m or 100ms",
        ),
        (
            &["-accept-connection-limit=NaN"],
            "-accept-connection-limit \"NaN\": must be a number of connections per second, or +Inf",
        ),
        (&["-workers=0"], "-workers \"0\": must be a number from 1 to 1024"),
        (&["-min-workers=many"], "-min-workers \"many\": must be a number from 1 to 1024"),
        (&["-xdp-mode=fast"], "-xdp-mode \"fast\": must be native, generic, auto or off"),
        (&["-certmode=none"], "-certmode \"none\": must be one of manual, letsencrypt, gcp"),
        (&["-ace"], "-ace: derpd does not support tunnels for Tailscale's control plane"),
        (&["-verify-clients=perhaps"], "-verify-clients \"perhaps\": must be true or false"),
        (
            &["-verify-cache", "5"],
            "-verify-cache \"5\": a duration needs a unit, as in 15s, 1h30m or 100ms",
        ),
    ] {
        assert_eq!(options(arguments).unwrap_err().to_string(), expected);
    }
}

#[test]
fn flags_that_ask_for_nothing_are_accepted() {
    let arguments = [
        "-verify-clients=false",
        "--verify-client-url=",
        "-verify-client-url-fail-open",
        "-bootstrap-dns-names",
        "",
        "-unpublished-bootstrap-dns-names=",
        "-acme-email=a@example.com",
        "-ace=0",
        "-socket",
        "/run/tailscaled.sock",
    ];
    assert!(options(&arguments).is_ok());
}

#[test]
fn help_lists_every_flag_and_variable() {
    for spelling in ["-h", "--h", "-help", "--help"] {
        let Invocation::Help(help) =
            parse([OsString::from(spelling)], &Surroundings::nothing()).unwrap()
        else {
            panic!("no help")
        };
        for word in
            ["-a <", "-c <", "-xdp-interface <", "-tcp-write-timeout <", "2s", "TS_ALLOW_DEBUG_IP"]
        {
            assert!(help.contains(word), "{word} is missing from\n{help}");
        }
    }
}

#[test]
fn listen_addresses() {
    let listen =
        |text: &str| resolve(&[&format!("-a={text}")]).map(|config| config.listen.to_string());
    for (text, expected) in
        [(":8443", ":8443"), ("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:http", "[::1]:80")]
    {
        assert_eq!(listen(text).unwrap(), expected);
    }
    for text in [
        "",
        "8443",
        "localhost:80",
        "::1:80",
        "[127.0.0.1]:80",
        "[::1:80",
        ":65536",
        ":x",
        "1.2.3.4:",
    ] {
        let error = listen(text).unwrap_err();
        assert!(error.to_string().starts_with("-a "), "{error}");
        assert_eq!(error.exit_status(), 2);
    }
}

#[test]
fn key_sources() {
    let key = |arguments: &[&str], is_root| {
        let mut all = vec!["-a=:1"];
        all.extend(arguments);
        resolve_with(&all, &[], is_root).map(|config| config.key)
    };
    let file = |path: &str, by_default| KeySource::File { path: path.into(), by_default };
    assert_eq!(key(&["-c", "/k"], true).unwrap(), file("/k", false));
    assert_eq!(key(&[], true).unwrap(), file("/var/lib/derper/derper.key", true));
    assert!(matches!(key(&[], false), Err(ConfigError::NoKeyPath)));
    assert_eq!(key(&["-dev", "-c=/k"], false).unwrap(), KeySource::Ephemeral);
}

#[test]
fn development_mode() {
    let config = resolve_with(&["-dev"], &[("TAILSCALE_DERPER_MESH_KEY", "abc")], false).unwrap();
    assert_eq!(config.listen.to_string(), ":3340");
    assert_eq!(config.tls, None);
    assert_eq!(config.mesh_key, MeshKeySource::Text("abc".to_owned().into()));
    assert!(!format!("{config:?}").contains("abc"), "secrets are not printed");
}

#[test]
fn mesh_key_sources() {
    let source = |arguments: &[&str], home: &str| {
        let mut all = vec!["-a=:1", "-c=/k"];
        all.extend(arguments);
        resolve_with(&all, &[("HOME", home)], false).unwrap().mesh_key
    };
    assert_eq!(source(&[], "/elsewhere"), MeshKeySource::None);
    let default = MeshKeySource::File("/root-home/keys/derp-mesh.key".into());
    assert_eq!(source(&[], "/root-home"), default);
    assert_eq!(source(&["-mesh-psk-file=/m"], "/root-home"), MeshKeySource::File("/m".into()));
    assert_eq!(source(&["-mesh-psk-file="], "/root-home"), MeshKeySource::None);
}

#[test]
fn mesh_peers_and_what_they_must_show() {
    let mesh = |arguments: &[&str]| {
        let mut all = vec!["-a=:1", "-c=/k", "-mesh-psk-file=/m"];
        all.extend(arguments);
        resolve_with(&all, &[], false).map(|config| config.mesh)
    };
    assert_eq!(mesh(&[]).unwrap(), None);
    assert_eq!(mesh(&["-mesh-with="]).unwrap(), None);
    let config = mesh(&["-mesh-with=a.example,b.example:8443/10.0.0.5"]).unwrap().unwrap();
    let names: Vec<_> = config.peers.iter().map(|peer| peer.name.as_str()).collect();
    assert_eq!(names, ["a.example", "b.example:8443"]);
    assert_eq!(config.trust, Trust::System);
    let trust = |flag: &str| mesh(&["-mesh-with=a", flag]).unwrap().unwrap().trust;
    assert_eq!(trust("-mesh-ca-file=/ca.pem"), Trust::Roots("/ca.pem".into()));
    let pin = format!("sha256-raw:{}", "ab".repeat(32));
    assert_eq!(
        trust(&format!("-mesh-pin={pin},{pin}")),
        Trust::PinnedAny(vec![pin.parse().unwrap(); 2])
    );
    let refusal = |arguments: &[&str]| mesh(arguments).unwrap_err().to_string();
    assert_eq!(
        refusal(&["-mesh-with=a, b"]),
        "-mesh-with \"a, b\": \" b\": blanks are not allowed, not even after a comma"
    );
    assert_eq!(
        refusal(&["-mesh-with=a/b/c"]),
        "-mesh-with \"a/b/c\": \"a/b/c\": too many slashes: write host or host/dial-host"
    );
    assert_eq!(
        refusal(&["-mesh-with=a,,b"]),
        "-mesh-with \"a,,b\": \"\": it needs a host name or an IP address"
    );
    assert!(refusal(&["-mesh-with=a", "-mesh-pin=x"]).starts_with("-mesh-pin \"x\": \"x\" is no"));
    assert_eq!(
        refusal(&["-mesh-with=a", "-mesh-ca-file=/ca.pem", &format!("-mesh-pin={pin}")]),
        "-mesh-ca-file \"/ca.pem\": with -mesh-pin, no authority is asked: give one of the two"
    );
    assert_eq!(
        refusal(&["-mesh-with=a", "-mesh-psk-file="]),
        "-mesh-with \"a\": the servers of a mesh need a common key: give its file with \
         -mesh-psk-file"
    );
    let config =
        resolve_with(&["-a=:1", "-c=/k", "-mesh-psk-file=/m", "-mesh-with=a,b:1"], &[], false)
            .unwrap();
    let empty_file = config.check_mesh_key(None).unwrap_err().to_string();
    assert!(empty_file.starts_with("-mesh-with \"a,b:1\": the servers of a mesh"), "{empty_file}");
    let key = "ab".repeat(32).parse().unwrap();
    assert!(config.check_mesh_key(Some(&key)).is_ok());
}

#[test]
fn limits_and_timeouts() {
    let tcp = |arguments: &[&str]| {
        let mut all = vec!["-a=:1"];
        all.extend(arguments);
        resolve(&all).map(|config| config.tcp)
    };
    let default = tcp(&[]).unwrap();
    assert_eq!(default.accept_limit, None);
    assert_eq!(default.keepalive_idle, Some(Duration::from_secs(600)));
    assert_eq!(default.user_timeout, Some(Duration::from_secs(15)));
    assert_eq!(default.write_timeout, Some(Duration::from_secs(2)));

    let limited = tcp(&["-accept-connection-limit=2.5", "-accept-connection-burst=4"]).unwrap();
    assert_eq!(limited.accept_limit, Some(AcceptLimit { per_second: 2.5, burst: 4 }));
    let crowd = |arguments: &[&str], files| {
        let ConnectionLimits { connections, arrivals, per_source } =
            tcp(arguments).unwrap().connection_limits(files);
        (connections, arrivals, per_source.map(NonZeroUsize::get))
    };
    assert_eq!(crowd(&[], 20_000), (18_720, 9360, None));
    assert_eq!(crowd(&["-connection-limit=100", "-source-limit=7"], 20_000), (100, 50, Some(7)));
    assert_eq!(crowd(&["-connection-limit=99999"], 20_000), (18_720, 9360, None));
    assert_eq!(crowd(&["-arrival-limit=15000"], 20_000), (18_720, 15_000, None));
    assert_eq!(crowd(&["-connection-limit=9", "-arrival-limit=15000"], 20_000), (9, 9, None));
    let off = tcp(&["-tcp-keepalive-time=-1s", "-tcp-user-timeout=0", "-tcp-write-timeout", "0"]);
    let off = off.unwrap();
    assert_eq!((off.keepalive_idle, off.user_timeout, off.write_timeout), (None, None, None));
    let keepalive = |text: &str| tcp(&["-tcp-keepalive-time", text]).map(|tcp| tcp.keepalive_idle);
    assert_eq!(keepalive("0").unwrap(), Some(Duration::from_secs(15)));
    assert_eq!(keepalive("1ms").unwrap(), Some(Duration::from_secs(1)));
    assert!(keepalive("10h").is_err());
    assert!(tcp(&["-tcp-write-timeout=-1s"]).is_err());
    assert!(tcp(&["-tcp-user-timeout=1000h"]).is_err());
}

#[test]
fn environment_variables() {
    let with = |name, value| resolve_with(&["-a=:1", "-c=/k"], &[(name, value)], false);
    let depth = "TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH";
    assert_eq!(with(depth, "7").unwrap().queue_depth, 7);
    assert_eq!(with(depth, "").unwrap().queue_depth, 32);
    for wrong in ["x", "0", "-1", "65537"] {
        assert!(matches!(with(depth, wrong), Err(ConfigError::Variable { .. })), "{wrong}");
    }
    assert_eq!(with("RUST_LOG", "debug").unwrap().log, "debug");
    assert!(matches!(with("RUST_LOG", "a=b=c"), Err(ConfigError::Variable { .. })));
    assert!(matches!(resolve(&["-a=:1", "-log", "a=b=c"]), Err(ConfigError::Flag { .. })));
    assert_eq!(resolve(&["-a=:1", "-log=warn"]).unwrap().log, "warn");
    assert_eq!(with("HOME", "/").unwrap().workers.get(), 3);
}

#[test]
fn a_variable_is_blamed_for_what_only_its_meaning_shows() {
    let error = resolve_with(&["-a=:1", "-c=/k"], &[("DERP_MESH_WITH", "a")], false).unwrap_err();
    assert!(error.to_string().starts_with("DERP_MESH_WITH=\"a\": the servers"), "{error}");
    assert_eq!(error.exit_status(), 2);
}

#[test]
fn workers_are_as_many_as_processors_unless_said_otherwise() {
    let workers = |flags: &[&str]| {
        let config = resolve(&[&["-a=:1"], flags].concat())?;
        Ok::<_, ConfigError>((config.min_workers.get(), config.workers.get()))
    };
    assert_eq!(workers(&[]).unwrap(), (1, 3));
    assert_eq!(workers(&["-workers=2"]).unwrap(), (1, 2));
    assert_eq!(workers(&["-min-workers=5"]).unwrap(), (5, 5));
    assert_eq!(workers(&["-min-workers=2", "-workers=2"]).unwrap(), (2, 2));
    let error = workers(&["-min-workers=3", "-workers=2"]).unwrap_err();
    assert_eq!(error.to_string(), "-min-workers \"3\": more than the 2 that -workers allows");
}

#[test]
fn without_a_file_the_kernel_answers_nothing_but_stun() {
    let without_stun = ["-a=:1", "-stun=false", "-xdp-interface=eth0"];
    assert!(matches!(resolve(&without_stun), Err(ConfigError::Flag { flag: "xdp-interface", .. })));
    assert!(resolve(&["-a=:1", "-stun=false", "-xdp-interface=eth0", "-xdp-mode=off"]).is_ok());
}

#[test]
fn regression_a_relay_for_wireguard_alone_may_use_the_kernel() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("derpd.toml");
    fs::write(&file, "").unwrap();
    let surroundings = Surroundings { read: &read_file, ..Surroundings::nothing() };
    let flags =
        ["-c=/k", "-a=:1", "-stun=false", "-xdp-interface=eth0", "-config"].map(OsString::from);
    let Invocation::Run(options) =
        parse(flags.into_iter().chain([file.into()]), &surroundings).unwrap()
    else {
        panic!("help")
    };
    let environment = Environment {
        variable: &|_| None,
        is_root: false,
        file_exists: &|_| false,
        processors: NonZeroUsize::MIN,
    };
    assert!(Config::resolve(*options, &environment).is_ok());
}

#[test]
fn home_page() {
    let home = |value: &str| resolve(&["-a=:1", "-home", value]).map(|config| config.home);
    assert_eq!(home("blank").unwrap(), Home::Blank);
    assert!(matches!(home("example.com"), Err(ConfigError::Home(_))));
}

#[test]
fn bootstrap_names() {
    let names = |value: &str| resolve(&["-a=:1", value]).map(|config| config.bootstrap);
    let list = |text: &str| text.parse().unwrap();
    assert_eq!(names("-home=").unwrap(), crate::http::Names::default());
    let expected = crate::http::Names { published: list("a,b.example"), ..Default::default() };
    assert_eq!(names("-bootstrap-dns-names=a,b.example").unwrap(), expected);
    let expected = crate::http::Names { unpublished: list("a/b"), ..Default::default() };
    assert_eq!(names("-unpublished-bootstrap-dns-names=a/b").unwrap(), expected);
    for flag in ["-bootstrap-dns-names", "-unpublished-bootstrap-dns-names"] {
        let error = names(&format!("{flag}=a,https://b")).unwrap_err();
        let expected =
            format!("{flag} \"a,https://b\": \"https://b\" is not a DNS name, nor name/txtname");
        assert_eq!((error.to_string(), error.exit_status()), (expected, 2));
    }
}

#[test]
fn switches_of_the_environment() {
    let with = |variables: &[(&str, &str)]| resolve_with(&["-c=/key", "-a=:1"], variables, false);
    let config = with(&[]).unwrap();
    assert!(config.sample_round_trips);
    assert_eq!(config.verbose_clients, VerboseClients::None);
    assert!(!with(&[("TS_DERP_DISABLE_RTT_STATS", "1")]).unwrap().sample_round_trips);
    for (variables, expected) in [
        (&[("DERP_DEBUG_LOGS", "t")][..], VerboseClients::All),
        (&[("DERP_DEBUG_LOGS", "0"), ("DERP_PROBER_DEBUG_LOGS", "true")], VerboseClients::Probers),
        (&[("DERP_DEBUG_LOGS", "1"), ("DERP_PROBER_DEBUG_LOGS", "1")], VerboseClients::All),
    ] {
        assert_eq!(with(variables).unwrap().verbose_clients, expected, "{variables:?}");
    }
    let error = with(&[("DERP_DEBUG_LOGS", "yes")]).unwrap_err();
    assert_eq!(error.to_string(), "DERP_DEBUG_LOGS=\"yes\": must be true or false");
}

const KEY_TEXT: &str = "privkey:5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";

proptest! {
    #[test]
    fn any_arguments_are_judged(arguments in prop::collection::vec("-{0,2}(a|c|stun|http-port|x|verify-clients)?=?\\PC{0,8}", 0..6)) {
        if let Err(error) = parse(arguments.iter().map(OsString::from), &Surroundings::nothing()) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn any_listen_address_is_judged(text in "\\PC{0,24}") {
        let _ = resolve(&[&format!("-a={text}")]);
    }

    #[test]
    fn any_key_file_is_judged(contents in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse_key_file(&contents).is_err());
    }

    #[test]
    fn any_damage_to_a_key_file_is_judged(position: prop::sample::Index, byte: u8) {
        let mut contents = render_key_file(&KEY_TEXT.parse().unwrap()).into_bytes();
        let at = position.index(contents.len());
        contents[at] = byte;
        let _ = parse_key_file(&contents);
    }
}
