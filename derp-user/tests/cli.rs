//! The binary from outside: what it says and how it exits when something is wrong, and what it leaves on disk.

#[path = "support/binary.rs"]
mod binary;

use std::{
    ffi::OsStr,
    fs,
    io::Read,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::geteuid};

use self::binary::{HANG, PUBLIC, Place, Relay, assert_refused, derpd, run, wait};

const NOBODY: u32 = 65534;

#[test]
fn version_and_help_go_to_standard_output() {
    for flag in ["-version", "--version"] {
        let (code, stdout, stderr) = run(&mut derpd(&[flag]));
        assert_eq!((code, stderr.as_str()), (0, ""));
        assert!(stdout.starts_with(concat!("derpd ", env!("CARGO_PKG_VERSION"), " (")));
        assert_eq!(stdout.lines().count(), 1);
    }
    for flag in ["-h", "-help", "--help"] {
        let (code, stdout, stderr) = run(&mut derpd(&[flag]));
        assert_eq!((code, stderr.as_str()), (0, ""));
        assert!(stdout.contains("Usage: derpd [flags]") && stdout.contains("-stun-port"));
    }
}

#[test]
fn the_manual_has_every_flag() {
    const MANUAL: &str = include_str!("../../docs/OPERATIONS.md");
    let (_, help, _) = run(&mut derpd(&["-help"]));
    let flags: Vec<&str> = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix('-'))
        .filter_map(|line| line.split([' ', '[']).next())
        .collect();
    assert!(flags.len() > 20, "{flags:?}");
    for flag in flags {
        assert!(MANUAL.contains(&format!("\n| `-{flag}` |")), "-{flag} is missing");
    }
}

#[test]
fn case_68_the_key_file_is_made_once_and_keeps_the_identity() {
    let place = Place::new();
    let path = place.path("new/derper.key");
    let arguments = ["-a", "127.0.0.1:0", "-stun-port", "0", "-c", &path];
    let first = Relay::start(&mut derpd(&arguments));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let contents = fs::read_to_string(&path).unwrap();
    assert!(contents.starts_with("{\n\t\"PrivateKey\": \"privkey:"));
    let key_line = |relay: &Relay| {
        let line = relay.lines.iter().find(|line| line.contains("server key")).unwrap();
        line.split("nodekey:").nth(1).unwrap().to_owned()
    };
    let key = key_line(&first);
    drop(first);
    assert_eq!(key_line(&Relay::start(&mut derpd(&arguments))), key);
    assert_eq!(fs::read_to_string(&path).unwrap(), contents);

    let existing = Relay::start(&mut derpd(&place.arguments(&[])));
    assert!(existing.has_line(PUBLIC), "{:?}", existing.lines);
}

#[test]
fn a_damaged_key_file_is_named_and_left_alone() {
    let place = Place::new();
    let path = place.path("derper.key");
    for contents in ["", "{\"PrivateKey\":", "{\"PrivateKey\":\"privkey:12\"}", "{}", "\u{0}\u{1}"]
    {
        fs::write(&path, contents).unwrap();
        assert_refused(&mut derpd(&place.arguments(&[])), 1, &["-c", &path, "left as it is"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), contents);
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_refused(&mut derpd(&place.arguments(&[])), 1, &["-c", "cannot read", &path]);
    let below_a_file = place.path("file/derper.key");
    fs::write(place.path("file"), "").unwrap();
    let arguments = ["-a", "127.0.0.1:0", "-stun-port", "0", "-c", &below_a_file];
    assert_refused(&mut derpd(&arguments), 1, &["-c", "cannot", &place.path("file")]);
}

#[test]
fn a_bad_mesh_key_file_is_named() {
    let place = Place::new();
    let path = place.path("mesh.key");
    let arguments = place.arguments(&["-mesh-psk-file", &path]);
    assert_refused(&mut derpd(&arguments), 1, &["-mesh-psk-file", "cannot read", &path]);
    fs::write(&path, "not a key\n").unwrap();
    assert_refused(&mut derpd(&arguments), 1, &["-mesh-psk-file", "invalid mesh key", &path]);
    fs::write(&path, "ab".repeat(32)).unwrap();
    let relay = Relay::start(&mut derpd(&arguments));
    assert!(relay.has_line("Got mesh key from static file"));
    assert!(relay.has_line("DERP mesh key configured"));
}

#[test]
fn case_66_the_certificate_of_an_ip_address_is_made_with_its_hint() {
    let place = Place::new();
    let relay = Relay::start(&mut derpd(&place.tls_arguments(&[])));
    assert!(relay.has_line(" with TLS"));
    let at = relay
        .lines
        .iter()
        .position(|line| {
            line.ends_with(
                "Using self-signed certificate for IP address \"127.0.0.1\". Configure it in DERPMap \
                 using: (https://tailscale.com/s/custom-derp)",
            )
        })
        .expect("the hint");
    let node: serde_json::Value = serde_json::from_str(&relay.lines[at + 1]).expect("JSON");
    let pem = fs::read(place.path("certs/127.0.0.1.crt")).unwrap();
    let leaf = pem::parse(pem).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf.contents());
    let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(node["CertName"], format!("sha256-raw:{digest}"));
    assert_eq!(node["HostName"], "127.0.0.1");
    let mode = |name| fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("certs"), mode("certs/127.0.0.1.crt"), mode("certs/127.0.0.1.key")),
        (0o700, 0o644, 0o600)
    );
}

#[test]
fn bad_certificate_files_are_named_and_left_alone() {
    let place = Place::new();
    drop(Relay::start(&mut derpd(&place.tls_arguments(&[]))));
    let (certificate, key) = (place.path("certs/127.0.0.1.crt"), place.path("certs/127.0.0.1.key"));
    let saved = fs::read(&key).unwrap();

    fs::write(&key, "junk").unwrap();
    assert_refused(&mut derpd(&place.tls_arguments(&[])), 1, &[&key, "not a PEM private key"]);
    assert_eq!(fs::read(&key).unwrap(), b"junk");
    fs::write(&key, &saved).unwrap();

    let other = place.tls_arguments(&["-hostname", "derp.example.com"]);
    let missing = place.path("certs/derp.example.com.crt");
    assert_refused(&mut derpd(&other), 1, &["-hostname derp.example.com", &missing]);

    fs::remove_file(&certificate).unwrap();
    assert_refused(&mut derpd(&place.tls_arguments(&[])), 1, &[&key, &certificate]);
    assert_eq!(fs::read(&key).unwrap(), saved, "the key of a half pair is not replaced");
}

#[test]
fn a_port_in_use_is_named_with_its_flag() {
    let place = Place::new();
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = tcp.local_addr().unwrap();
    let address = taken.to_string();
    let arguments = place.arguments(&["-a", &address]);
    assert_refused(&mut derpd(&arguments), 1, &[&address, "(-a)", "in use"]);

    let port = taken.port().to_string();
    let arguments = place.tls_arguments(&["-http-port", &port]);
    assert_refused(&mut derpd(&arguments), 1, &[&address, "(-http-port)", "in use"]);

    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = udp.local_addr().unwrap();
    let (port, address) = (address.port().to_string(), address.to_string());
    let arguments = place.arguments(&["-stun-port", &port]);
    assert_refused(&mut derpd(&arguments), 1, &[&address, "-stun-port", "in use"]);

    let arguments = place.arguments(&["-a", "192.0.2.1:0"]);
    assert_refused(
        &mut derpd(&arguments),
        1,
        &["192.0.2.1:0", "(-a)", "does not have the address"],
    );
}

#[test]
fn an_interface_that_does_not_exist_is_named() {
    let place = Place::new();
    for mode in ["native", "generic", "auto"] {
        let arguments = place.arguments(&["-xdp-interface", "nosuch0", "-xdp-mode", mode]);
        assert_refused(&mut derpd(&arguments), 1, &["\"nosuch0\"", "does not exist"]);
    }
    let arguments = place.arguments(&["-xdp-mode", "native"]);
    assert_refused(&mut derpd(&arguments), 1, &["-xdp-interface"]);
}

/// A command that runs without privileges, if this machine lets us.
fn unprivileged<T: AsRef<OsStr>>(place: &Place, arguments: &[T]) -> Option<Command> {
    let mut command = derpd(arguments);
    if geteuid().is_root() {
        fs::set_permissions(place.directory.path(), fs::Permissions::from_mode(0o755))
            .expect("our own directory");
        command.uid(NOBODY).gid(NOBODY);
        let started = derpd(&["-version"]).uid(NOBODY).gid(NOBODY).spawn();
        let Ok(mut probe) = started else {
            println!("skipped: unprivileged start: user {NOBODY} may not run the test binary");
            return None;
        };
        wait(&mut probe);
    }
    Some(command)
}

#[test]
fn missing_capabilities_are_named() {
    let place = Place::new();
    let arguments = place.arguments(&["-xdp-interface", "lo", "-xdp-mode", "generic"]);
    let Some(mut command) = unprivileged(&place, &arguments) else { return };
    if derp_user::dataplane::embedded_object().is_some() {
        assert_refused(&mut command, 1, &["CAP_BPF", "CAP_NET_ADMIN"]);
    } else {
        println!("skipped: missing CAP_BPF: this build has no XDP program");
        assert_refused(&mut command, 1, &["built without its XDP program"]);
    }
}

/// `mount -t bpf bpf /sys/fs/bpf` makes a place where everybody may make directories.
#[test]
fn regression_missing_capabilities_are_named_where_everybody_may_make_the_pins() {
    if derp_user::dataplane::embedded_object().is_none() {
        return println!("skipped: missing CAP_BPF: this build has no XDP program");
    }
    let place = Place::new();
    let mount = place.path("bpf");
    fs::create_dir(&mount).expect("a directory");
    if !is_run(&["mount", "-t", "bpf", "bpf", &mount]) {
        return println!("skipped: missing CAP_BPF beside pins: no BPF file system can be mounted");
    }
    let pins = format!("-xdp-pin={mount}/derpd");
    let arguments = place.arguments(&["-xdp-interface=lo", "-xdp-mode=generic", &pins]);
    if let Some(mut command) = unprivileged(&place, &arguments) {
        assert_refused(&mut command, 1, &["CAP_BPF", "CAP_NET_ADMIN"]);
        assert!(!fs::exists(format!("{mount}/derpd")).expect("readable"), "nothing is left behind");
    }
    assert!(is_run(&["umount", &mount]));
}

fn is_run(command: &[&str]) -> bool {
    let [program, arguments @ ..] = command else { return false };
    Command::new(program).args(arguments).status().is_ok_and(|it| it.success())
}

#[test]
fn a_low_port_without_the_right_is_explained() {
    let place = Place::new();
    let first_free = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if first_free.ok().and_then(|port| port.trim().parse::<u16>().ok()).unwrap_or(1024) <= 81 {
        println!("skipped: low port: this machine lets everybody bind it");
        return;
    }
    let arguments = place.arguments(&["-a", "127.0.0.1:81"]);
    let Some(mut command) = unprivileged(&place, &arguments) else { return };
    assert_refused(&mut command, 1, &["127.0.0.1:81", "(-a)", "CAP_NET_BIND_SERVICE"]);
}

#[test]
fn an_ordinary_user_must_name_the_key_file() {
    let place = Place::new();
    let Some(mut command) = unprivileged(&place, &["-a", "127.0.0.1:0"]) else { return };
    assert_refused(&mut command, 2, &["-c is needed"]);
}

#[test]
fn a_place_to_pin_in_is_checked() {
    let place = Place::new();
    for wrong in ["on", "bpf", "/sys/fs/bpf/derpd.1"] {
        let arguments = place.arguments(&["-xdp-pin", wrong]);
        assert_refused(&mut derpd(&arguments), 2, &["-xdp-pin", wrong, "absolute path"]);
    }
}

#[test]
fn the_tools_for_the_kernel_explain_themselves_and_need_no_rights() {
    let place = Place::new();
    for (tool, part) in [("check", "--json"), ("detach", "--force")] {
        let (status, output, _) = run(&mut derpd(&[tool, "--help"]));
        assert_eq!(status, 0);
        assert!(output.contains(part) && output.contains("--pin"), "{output}");
        let (status, _, error) = run(&mut derpd(&[tool, "--nonsense"]));
        assert_eq!(status, 2);
        assert!(error.starts_with(&format!("derpd {tool}: ")), "{error}");
    }
    let nowhere = place.path("nowhere");
    let (status, output, error) = run(&mut derpd(&["detach", "--pin", &nowhere]));
    assert_eq!((status, error.as_str()), (0, ""));
    assert_eq!(output, format!("nothing was pinned in {nowhere}\n"));
    let (status, output, _) = run(&mut derpd(&["check", "--kernel", "--pin", &nowhere]));
    assert_eq!(status, 1);
    assert!(output.contains("problem  bpffs: ") && output.contains("mount -t bpf"), "{output}");
    let Some(mut command) = unprivileged(&place, &["check", "--kernel", "--json"]) else { return };
    let (status, output, _) = run(&mut command);
    assert_eq!(status, 1);
    let report: serde_json::Value = serde_json::from_str(&output).expect("JSON");
    let missing = |it: &serde_json::Value| it["status"] == "problem" && it["area"] == "rights";
    let findings = report["findings"].as_array().expect("findings");
    assert_eq!(findings.iter().filter(|it| missing(it)).count(), 3, "{output}");
}

#[test]
fn regression_check_finds_no_fault_with_pins_that_nobody_asked_for() {
    let place = Place::new();
    let key = format!("-c={}", place.path("key"));
    let check = |flags: &[&str]| {
        let flags =
            [&["check", "-a=127.0.0.1:0", "-stun-port=0", &key, "-xdp-interface=lo"], flags];
        run(&mut derpd(&flags.concat())).1
    };
    let without = check(&["-xdp-pin=off"]);
    assert!(without.contains("ok       bpffs: -xdp-pin=off: nothing is pinned\n"), "{without}");
    // The default directory is given up with a warning where it cannot be used.
    assert!(!check(&[]).contains("problem  bpffs"), "{}", check(&[]));
    let named = check(&[&format!("-xdp-pin={}", place.path("nowhere"))]);
    assert!(named.contains("problem  bpffs: "), "{named}");
}

#[test]
fn signals_end_it_with_status_0() {
    let place = Place::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let relay = Relay::start(&mut derpd(&place.arguments(&[])));
        assert!(relay.has_line("derper: serving on 127.0.0.1:"));
        assert!(relay.has_line("STUN server listening on 127.0.0.1:"));
        assert!(relay.stop(signal).success(), "{signal}");
    }
}

#[test]
fn a_relay_for_everybody_warns_once_unless_only_this_machine_reaches_it() {
    const WARNING: &str = "anybody who can reach this relay may use it";
    let place = Place::new();
    let key_file = place.path("derper.key");
    let keys = place.path("keys");
    fs::write(&keys, PUBLIC).unwrap();
    let allow = format!("-allow-keys={keys}");
    for (address, extra, warns, says) in [
        (":0", None, true, "WARN"),
        ("127.0.0.1:0", None, false, "admission: open: anybody may use this relay"),
        (":0", Some(allow.as_str()), false, "(1 keys)"),
        (":0", Some("-verify-clients"), false, "admission: the local tailscaled"),
        (
            ":0",
            Some("-verify-client-url=https://a.test/?secret=1"),
            false,
            "admission: the admission URL at a.test, open if unreachable",
        ),
        (":0", Some("-derp=false"), false, "relaying is disabled"),
    ] {
        let mut arguments = vec!["-a", address, "-stun=false", "-c", &key_file];
        arguments.extend(extra);
        let relay = Relay::start(&mut derpd(&arguments));
        let warnings = relay.lines.iter().filter(|line| line.contains(WARNING)).count();
        assert_eq!(warnings, usize::from(warns), "{arguments:?}: {:?}", relay.lines);
        assert!(relay.has_line(says), "{arguments:?}: {:?}", relay.lines);
        assert!(!relay.has_line("secret"));
    }
}

/// The admission URL is an HTTPS one here: another derpd, which answers 405 to a POST there. Only who
/// trusts its certificate gets that answer.
#[tokio::test]
async fn an_https_admission_url_must_show_a_good_certificate() {
    use derp_user::client::{Connector, Trust, new_key};

    let (place, other) = (Place::new(), Place::new());
    let asked = Relay::start(&mut derpd(&other.tls_arguments(&[])));
    let port = |relay: &Relay| {
        let line = relay.lines.iter().find(|line| line.contains("serving on")).unwrap();
        let address = line.split("127.0.0.1:").nth(1).unwrap();
        address.split(' ').next().unwrap().parse::<u16>().unwrap()
    };
    let url = format!("-verify-client-url=https://127.0.0.1:{}/derp/probe", port(&asked));
    for (trusted, reason) in [(true, "bad_answer"), (false, "unreachable")] {
        let arguments = place.arguments(&[&url, "-verify-client-url-fail-open=false"]);
        let mut command = derpd(&arguments);
        let certificate =
            if trusted { other.path("certs/127.0.0.1.crt") } else { own_certificate(&place) };
        let relay = Relay::start(command.env("SSL_CERT_FILE", certificate));
        let target = format!("http://127.0.0.1:{}", port(&relay));
        let connector = Connector::new(target.parse().unwrap(), &Trust::Anything).unwrap();
        assert!(connector.connect(&new_key().unwrap()).await.is_err(), "refused");
        let (mut stream, mut page) =
            (std::net::TcpStream::connect(("127.0.0.1", port(&relay))).unwrap(), String::new());
        let request = "GET /debug/varz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        stream.read_to_string(&mut page).unwrap();
        let counter = "derpd_admissions_total{source=\"url\",decision=\"refused\",reason=";
        assert!(page.contains(&format!("{counter}\"{reason}\"}} 1")), "{reason}: {page}");
    }
}

/// A certificate of somebody else.
fn own_certificate(place: &Place) -> String {
    drop(Relay::start(&mut derpd(&place.tls_arguments(&[]))));
    place.path("certs/127.0.0.1.crt")
}

#[tokio::test]
async fn lost_packets_for_a_key_of_interest_and_frames_are_logged() {
    use derp_user::client::{Connector, Trust, new_key};

    let place = Place::new();
    let (sender, wanted) = (new_key().unwrap(), new_key().unwrap());
    let log_file = place.path("log");
    let mut command = derpd(&place.arguments(&["-workers=1"]));
    command.env("TS_DEBUG_VERBOSE_DROPS", wanted.public().to_hex());
    command.env("DERP_DEBUG_LOGS", "true").env("TS_DERP_DISABLE_RTT_STATS", "1");
    command.stderr(fs::File::create(&log_file).unwrap());
    let mut child = command.spawn().unwrap();
    let log = || fs::read_to_string(&log_file).unwrap();
    let started = Instant::now();
    while !log().contains("serving on") {
        assert!(started.elapsed() < HANG, "{}", log());
        sleep(Duration::from_millis(5));
    }
    let address = log().split("serving on ").nth(1).unwrap().lines().next().unwrap().to_owned();
    let target = format!("http://{address}").parse().unwrap();
    let connector = Connector::new(target, &Trust::Anything).unwrap();
    let (mut to_relay, _from_relay) = connector.connect(&sender).await.unwrap().split();
    to_relay.send(&new_key().unwrap().public(), b"of no interest").await.unwrap();
    to_relay.send(&wanted.public(), b"of interest").await.unwrap();
    let expected =
        format!("drop ({}) unknown_dest -> {}", sender.public().short(), wanted.public().short());
    while !log().contains(&expected) {
        assert!(started.elapsed() < HANG, "{}", log());
        sleep(Duration::from_millis(5));
    }
    assert_eq!(log().matches("drop (").count(), 1, "{}", log());
    // Both packets, with the key in front: every frame is, also the first.
    for length in [14, 11] {
        let frame = format!("{}: read frame type 4 len {}", sender.public().short(), 32 + length);
        assert!(log().contains(&frame), "{frame:?} is not in\n{}", log());
    }
    let mut page = String::new();
    let mut stream = std::net::TcpStream::connect(&address).unwrap();
    let request = "GET /debug/varz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.contains("derp_accepts 1") && !page.contains("derp_tcp_rtt"), "{page}");
    let _ = child.kill();
    let _ = child.wait();
}
