//! Flags over the file over variables over defaults, and what is said when one of them is wrong.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
};

use clap::CommandFactory as _;

use super::*;

const EXAMPLE: &str = include_str!("../../../docs/derpd.toml");

/// Files and variables as they are said to be.
struct World {
    files: BTreeMap<PathBuf, Vec<u8>>,
    variables: BTreeMap<String, String>,
}

impl World {
    fn new(files: &[(&str, &str)], variables: &[(&str, &str)]) -> Self {
        let file = |(path, text): &(&str, &str)| (path.into(), text.as_bytes().to_vec());
        let variable = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self {
            files: files.iter().map(file).collect(),
            variables: variables.iter().map(variable).collect(),
        }
    }

    fn options(&self, arguments: &str) -> Result<Options, UsageError> {
        let surroundings = Surroundings {
            variable: &|name| self.variables.get(name).cloned(),
            read: &|path| {
                self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
            },
        };
        match parse(arguments.split_whitespace().map(OsString::from), &surroundings)? {
            Invocation::Run(options) => Ok(*options),
            Invocation::Help(_) => panic!("help"),
        }
    }

    fn config(&self, arguments: &str) -> Result<Config, ConfigError> {
        let options = self.options(arguments).expect("good flags");
        let environment = Environment {
            variable: &|name| self.variables.get(name).cloned(),
            is_root: true,
            file_exists: &|_| false,
            processors: std::num::NonZeroUsize::MIN,
        };
        Config::resolve(options, &environment)
    }
}

fn of_file(text: &str) -> World {
    World::new(&[("/f", text)], &[])
}

fn fault(text: &str) -> String {
    let error = of_file(text).options("-config /f").expect_err(text);
    assert_eq!(error.exit_status(), 1);
    let error = error.to_string();
    error.strip_prefix("-config: /f: ").expect("the file is named").to_owned()
}

#[test]
fn a_flag_wins_over_the_file_and_that_over_a_variable() {
    let world = World::new(
        &[(
            "/f",
            "[stun]\nport = 2\n[server]\nhttp_port = 81\n[dataplane]\ninterface = [\"eth2\"]",
        )],
        &[
            ("DERP_STUN_PORT", "1"),
            ("DERP_HTTP_PORT", "x"),
            ("DERP_XDP_INTERFACE", "eth0,eth1"),
            ("DERP_HOME", "blank"),
        ],
    );
    let options = world.options("-config /f -stun-port 3").expect("good layers");
    assert_eq!((options.stun_port, options.http_port), (3, 81));
    assert_eq!(
        (options.home.as_str(), &options.xdp_interface[..]),
        ("blank", &["eth2".to_owned()][..])
    );
    let origin = |flag| options.layers.origin(flag).cloned();
    assert_eq!(origin("stun-port"), Some(Origin::Flag));
    let place = "[server] http_port".to_owned();
    assert_eq!(origin("http-port"), Some(Origin::File { line: 4, place }));
    assert_eq!(origin("home"), Some(Origin::Variable("DERP_HOME".to_owned())));
    assert_eq!(origin("derp"), None);
}

#[test]
fn the_default_file_is_read_if_it_is_there_and_nothing_else_is_said() {
    let text = "[server]\nhome = \"blank\"";
    let other = "[server]\nhome = \"https://a.test\"";
    let files = [(DEFAULT_FILE, text), ("/f", other)];
    let home = |arguments: &str, variables: &[(&str, &str)]| {
        World::new(&files, variables).options(arguments).expect("good").home
    };
    assert_eq!(home("", &[]), "blank");
    assert_eq!(home("-config /f", &[]), "https://a.test");
    assert_eq!(home("", &[("DERP_CONFIG", "/f")]), "https://a.test");
    assert_eq!(home("-config=", &[("DERP_CONFIG", "/f")]), "");
    assert_eq!(home("-dev", &[]), "");
    assert_eq!(home("", &[("DERP_DEV", "true")]), "");
    assert_eq!(home("-dev=false", &[("DERP_DEV", "true")]), "blank");
    assert_eq!(home("-dev -config /f", &[]), "https://a.test");
    assert!(World::new(&[], &[]).options("").expect("no file").layers.file.is_none());
    let missing = World::new(&[], &[]).options("-config /none").expect_err("missing");
    assert_eq!(missing.to_string(), "-config: cannot read /none: entity not found");
    // Whoever asks for the version is told it, whatever the file says.
    assert!(World::new(&[(DEFAULT_FILE, "x")], &[]).options("-version").expect("good").version);
}

#[test]
fn faults_of_the_file_name_line_and_key() {
    for (text, expected) in [
        ("[server]\naddress = 443", "line 2: [server] address: must be a text in quotes"),
        (
            "[server]\nhttp_port = \"80\"",
            "line 2: [server] http_port: must be a number, without quotes",
        ),
        (
            "[server]\nhttp_port = 70000",
            "line 2: [server] http_port: must be a port from 0 to 65535, or -1 for none",
        ),
        (
            "[server]\nhttp_port = 1.5",
            "line 2: [server] http_port: must be a port from 0 to 65535, or -1 for none",
        ),
        ("[stun]\nenabled = 1", "line 2: [stun] enabled: must be true or false"),
        ("[stun]\nenabled = \"true\"", "line 2: [stun] enabled: must be true or false"),
        (
            "[server]\nhtp_port = 1",
            "line 2: [server] htp_port: unknown key; did you mean http_port?",
        ),
        ("[server]\n\na = \":1\"", "line 3: [server] a: unknown key; -a is address in [server]"),
        (
            "[server]\nstun_port = 1",
            "line 2: [server] stun_port: unknown key; -stun-port is port in [stun]",
        ),
        ("hostname = \"a\"", "line 1: hostname: unknown key; -hostname is hostname in [server]"),
        ("config = \"a\"", "line 1: config: -config has no key"),
        ("[servr]", "line 1: servr: unknown key; did you mean server?"),
        (
            "[server]\ncertmode = \"magic\"",
            "line 2: [server] certmode: must be one of manual, letsencrypt, gcp",
        ),
        (
            "[limits]\ndrain_timeout = 5",
            "line 2: [limits] drain_timeout: must be a duration in quotes, like \"15s\" or \"1h30m\"",
        ),
        (
            "[limits]\ndrain_timeout = \"5\"",
            "line 2: [limits] drain_timeout: a duration needs a unit, as in 15s, 1h30m or 100ms",
        ),
        ("[limits]\nworkers = 0", "line 2: [limits] workers: must be a number from 1 to 1024"),
        ("[mesh]\nwith = [1]", "line 2: [mesh] with: must be a text in quotes"),
        (
            "[mesh]\nwith = [\n\"a\",\n\"b,c\"]",
            "line 4: [mesh] with: a comma separates items; give each its own quotes",
        ),
        ("[mesh]\nwith = true", "line 2: [mesh] with: must be a list in brackets"),
        (
            "[dataplane]\ninterface = [[]]",
            "line 2: [dataplane] interface: must be a text in quotes",
        ),
        (
            "[dataplane]\nmode = \"fast\"",
            "line 2: [dataplane] mode: must be native, generic, auto or off",
        ),
        (
            "[dataplane]\npin = \"bpf\"",
            "line 2: [dataplane] pin: must be `off`, or the absolute path of a directory without `.` in its name",
        ),
        (
            "[log]\nformat = \"xml\"",
            "line 2: [log] format: must be one of auto, human, json, journald",
        ),
        (
            "[limits]\nmin_workers = 2024-01-01",
            "line 2: [limits] min_workers: must be a number, without quotes",
        ),
    ] {
        assert_eq!(fault(text), expected, "{text}");
    }
    let error = fault("[acme]\neab_key = \"se!cret\"");
    assert!(error.starts_with("line 2: [acme] eab_key: ") && !error.contains("se!cret"), "{error}");
}

#[test]
fn what_only_the_meaning_shows_is_the_files_fault_too() {
    for (text, expected) in [
        (
            "[server]\naddress = \"8443\"",
            "line 2: [server] address: write :port, ip:port or [ip6]:port",
        ),
        (
            "[server]\naddress = \":1\"\nhome = \"x\"",
            "line 3: [server] home: must be blank, or start with http:// or https://",
        ),
        (
            "[server]\naddress = \":1\"\n[admission]\nverify_cache = \"1m\"",
            "line 4: [admission] verify_cache: there is nothing to remember without -verify-clients or -verify-client-url",
        ),
        (
            "[server]\naddress = \":1\"\n[mesh]\nwith = [\"a\", \"b\"]",
            "line 4: [mesh] with: the servers of a mesh need a common key: give its file with -mesh-psk-file",
        ),
    ] {
        let error = of_file(text).config("-config /f").expect_err(text);
        assert_eq!(error.to_string(), format!("-config: /f: {expected}"));
        assert_eq!(error.exit_status(), 1);
    }
    let error =
        of_file("[server]\naddress = \":1\"").config("-config /f -a 8443").expect_err("flag");
    assert_eq!(error.to_string(), "-a \"8443\": write :port, ip:port or [ip6]:port");
}

#[test]
fn every_value_has_a_form_in_the_file() {
    let text = "[server]\naddress = \":1\"\n[limits]\naccept_connection_limit = inf\nworkers = 0x10\n\
                [mesh]\npin = []\n[dataplane]\ninterface = []\n[acme]\nip_certs = true";
    let options = of_file(text).options("-config /f").expect("good");
    assert_eq!(options.accept_connection_limit, f64::INFINITY);
    assert_eq!(options.workers.map(std::num::NonZeroUsize::get), Some(16));
    assert_eq!((options.mesh_pin.as_str(), options.acme_ip_certs), ("", true));
    let world =
        World::new(&[("/f", "[dataplane]\ninterface = []")], &[("DERP_XDP_INTERFACE", "eth0")]);
    assert!(world.options("-config /f").expect("good").xdp_interface.is_empty());
}

#[test]
fn the_example_has_every_key_of_a_flag_and_is_understood() {
    let example = of_file(EXAMPLE);
    let options = example.options("-config /f").expect("a good example");
    for flag in Options::command().get_arguments() {
        let Some(key) = Key::of(flag) else { continue };
        let is_given =
            matches!(options.layers.origin(flag.get_id().as_str()), Some(Origin::File { .. }));
        let commented = format!("\n# {} = ", key.name);
        let section =
            EXAMPLE.split("\n[").find(|part| part.starts_with(&format!("{}]", key.section)));
        let is_shown = section.is_some_and(|section| section.contains(&commented));
        assert!(is_given || is_shown, "{key} is not in docs/derpd.toml");
    }
}

#[test]
fn regression_nothing_of_a_file_is_in_its_debug_form() {
    let options = of_file("[acme]\neab_key = \"c2VjcmV0\"").options("-config /f").expect("good");
    let mut text = String::new();
    write!(text, "{:?}", options.layers.file).expect("a text");
    assert!(text.contains("/f") && !text.contains("c2VjcmV0"), "{text}");
    assert_eq!(options.layers.path().as_deref(), Some(Path::new("/f")));
}
