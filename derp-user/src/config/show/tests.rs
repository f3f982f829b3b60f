use std::{ffi::OsString, num::NonZeroUsize};

use super::{
    super::{Environment, Invocation, Surroundings, parse},
    *,
};

const EXAMPLE: &str = include_str!("../../../../docs/derpd.toml");

fn settings(arguments: &str, file: &str, variables: &[(&str, &str)]) -> (Settings, Config) {
    let variable = |name: &str| {
        let found = variables.iter().find(|(it, _)| *it == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let bytes = file.as_bytes().to_vec();
    let surroundings = Surroundings { variable: &variable, read: &|_| Ok(bytes.clone()) };
    let arguments = arguments.split_whitespace().map(OsString::from);
    let Invocation::Run(options) = parse(arguments, &surroundings).expect("good") else {
        panic!("help")
    };
    let environment = Environment {
        variable: &variable,
        is_root: true,
        file_exists: &|_| false,
        processors: NonZeroUsize::MIN,
    };
    let config = Config::resolve(*options, &environment).expect("good");
    (Settings::new(&config, &variable).expect("good"), config)
}

/// What is in force of flags: their values, without who says them.
fn in_force(config: &Config) -> Vec<(String, Vec<String>)> {
    let command = Options::command();
    let value = |flag: &Arg| {
        let id = flag.get_id().to_string();
        let of = resolved(&id, config).map(|value| vec![value]);
        (id, of.unwrap_or_else(|| config.layers.values(flag)))
    };
    let is_infinite = |text: &String| text.parse().is_ok_and(f64::is_infinite);
    // `+Inf` is the same as `inf`.
    let as_numbers = |(id, values): (String, Vec<String>)| {
        let value = |text: String| if is_infinite(&text) { "inf".to_owned() } else { text };
        (id, values.into_iter().map(value).collect())
    };
    let flags = command.get_arguments().filter(|flag| Key::of(flag).is_some());
    flags.map(value).map(as_numbers).collect()
}

#[test]
fn what_is_shown_may_be_read_again() {
    for (arguments, file) in [
        ("-config=/f -hostname derp.example.com -certdir /certs", ""),
        ("-config=/f -a :8443 -certmode manual -workers 3 -home=blank", EXAMPLE),
        (
            "-config=/f",
            "[server]\naddress = \":80\"\n[limits]\naccept_connection_limit = 2.5\n[dataplane]\ninterface = [\"a\", \
             \"b\"]\n[[flow]]\nname = \"\\u0022x\\\\\"\nport = 1\na = \"192.0.2.1:1\"\nb = \"192.0.2.2:2\"\n",
        ),
    ] {
        let (shown, config) = settings(arguments, file, &[]);
        let (again, config_again) = settings("-config=/g", &shown.to_string(), &[]);
        assert_eq!(in_force(&config_again), in_force(&config), "{shown}");
        let sections = |config: &Config| config.file_settings().expect("good");
        assert_eq!(sections(&config_again), sections(&config), "{shown}");
        let values = |settings: &Settings| {
            let lines = settings.to_string();
            let lines = lines.lines().filter(|line| !line.starts_with("# What"));
            lines
                .map(|line| line.split("  # ").next().unwrap_or(line).trim_end().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(values(&again).len(), values(&shown).len(), "{again}");
    }
}

#[test]
fn each_value_has_its_source() {
    let file = "[server]\nhttp_port = 81\nkey_file = \"/k\"\n[stun]\nrate = 5\n[relay]\n";
    let variables =
        [("DERP_STUN_PORT", "3479"), ("RUST_LOG", "warn"), ("TS_ALLOW_DEBUG_IP", "::1")];
    let (shown, _) = settings("-config=/f -a :1234", file, &variables);
    let text = shown.to_string();
    for (line, source) in [
        ("address = \":1234\"", "-a"),
        ("http_port = 81", "/f:2"),
        ("key_file = \"/k\"", "/f:3"),
        ("port = 3479", "DERP_STUN_PORT"),
        ("rate = 5", "/f:5"),
        ("shed = false", "default"),
        ("enabled = true", "default"),
        ("levels = \"warn\"", "RUST_LOG"),
        ("slots = 16384", "default"),
        ("# psk_file is not set", "default"),
        ("workers = 1", "default"),
    ] {
        let expected = format!("{line:<COLUMN$}# {source}\n");
        assert!(text.contains(&expected), "{expected}{text}");
    }
    assert!(text.ends_with("# TS_ALLOW_DEBUG_IP=\"::1\"\n# RUST_LOG=\"warn\"\n"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&shown.to_json()).expect("JSON");
    let of = |flag: &str| {
        let settings = json["settings"].as_array().expect("a list");
        settings.iter().find(|it| it["flag"] == flag).expect("there").clone()
    };
    assert_eq!(of("http-port")["value"], 81);
    assert_eq!(of("http-port")["source"]["line"], 2);
    assert_eq!(of("a")["source"]["kind"], "flag");
    assert_eq!(of("stun-port")["source"]["variable"], "DERP_STUN_PORT");
    assert_eq!(of("mesh-psk-file")["value"], serde_json::Value::Null);
    assert_eq!((&json["file"], &json["variables"]["RUST_LOG"]), (&"/f".into(), &"warn".into()));
}

#[test]
fn regression_a_long_value_and_its_source_stay_apart() {
    let path = format!("/{}", "long/".repeat(20));
    let (shown, _) = settings(&format!("-certdir={path} -a=:1 -dev"), "", &[]);
    let expected = format!("certdir = \"{path}\" # -certdir\n");
    assert!(shown.to_string().contains(&expected), "{shown}");
}

#[test]
fn secrets_are_not_shown() {
    let file = "[acme]\neab_key = \"c2VjcmV0\"\neab_kid = \"id\"\n";
    let url = "https://admit.example.com/?token=c2VjcmV0";
    let variables = [("DERP_VERIFY_CLIENT_URL", url), (SECRET_VARIABLE, "c2VjcmV0")];
    let (shown, _) = settings("-config=/f -a=:1 -dev", file, &variables);
    for text in [shown.to_string(), shown.to_json()] {
        assert!(!text.contains("c2VjcmV0"), "{text}");
    }
    let text = shown.to_string();
    assert!(text.contains("# eab_key is secret, and not shown"), "{text}");
    assert!(text.contains("# verify_client_url is secret, and not shown"), "{text}");
    assert!(text.contains("eab_kid = \"id\""), "{text}");
    assert!(has_secret("http://a:b@c/") && has_secret("http://c?x") && !has_secret("http://c/d"));
}
