//! `/bootstrap-dns` of derpd, and of derper beside it, when both ask the same DNS server, which is one in this test. The
//! relays run in mount namespaces of their own, where `/etc/resolv.conf` names that server.

#[path = "support/go.rs"]
mod go;
#[path = "support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use std::{
    fs,
    net::{IpAddr, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use domain::{
    base::{Message, MessageBuilder, Name, Rtype, iana::Rcode},
    rdata::{A, Aaaa, Txt},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    peer::Wire,
    server::{Place, Server, binary, skip, wait_until, write_file},
};

static DERPER: go::Built = go::Built::new();

const FLAGS: [&str; 2] = [
    "-bootstrap-dns-names=one.test.example,gone.test.example,two.test.example",
    "-unpublished-bootstrap-dns-names=plain.test.example,all.test.example/all.txt.example,\
     none.test.example/none.txt.example,torn.test.example/torn.txt.example",
];

/// What the DNS server knows.
const ADDRESSES: [(&str, &[&str]); 6] = [
    ("one.test.example", &["192.0.2.1", "2001:db8::1"]),
    ("two.test.example", &["192.0.2.2"]),
    ("plain.test.example", &["192.0.2.3"]),
    ("all.test.example", &["2001:db8::4"]),
    ("none.test.example", &["192.0.2.5"]),
    ("torn.test.example", &["192.0.2.6"]),
];
const TEXTS: [(&str, &[&str]); 3] =
    [("all.txt.example", &["100"]), ("none.txt.example", &["0"]), ("torn.txt.example", &["half"])];

/// Whether this process may make mount namespaces; says that `what` is skipped if not.
fn can_mount(what: &str) -> bool {
    let tried = Command::new("unshare").args(["--mount", "true"]).output();
    let can = tried.is_ok_and(|output| output.status.success());
    if !can {
        skip(what, "no mount namespaces: run as root, with unshare (Debian package util-linux)");
    }
    can
}

/// Binds the DNS port of a loopback address of its own.
fn bind() -> (UdpSocket, IpAddr) {
    let address = Place::own_address().address();
    let socket = UdpSocket::bind((address, 53)).expect("root may bind port 53");
    (socket, address.into())
}

/// Answers from the tables for as long as the test runs.
fn serve(socket: UdpSocket) {
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if let Some(answer) = answer(&buffer[..length]) {
                socket.send_to(&answer, from).expect("the client is on this machine");
            }
        }
    });
}

fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_octets(question).ok()?;
    let question = message.sole_question().ok()?;
    let name = question.qname().to_string().to_ascii_lowercase();
    let find = |table: &[(&str, &'static [&'static str])]| {
        table.iter().find(|(known, _)| *known == name).map(|(_, values)| *values)
    };
    let (addresses, texts) = (find(&ADDRESSES), find(&TEXTS));
    let is_known = addresses.is_some() || texts.is_some();
    let rcode = if is_known { Rcode::NOERROR } else { Rcode::NXDOMAIN };
    let mut answer = MessageBuilder::new_vec().start_answer(&message, rcode).ok()?;
    answer.header_mut().set_ra(true);
    let owner = Name::vec_from_str(&name).ok()?;
    for address in addresses.unwrap_or_default() {
        match (address.parse().ok()?, question.qtype()) {
            (IpAddr::V4(ip), Rtype::A) => answer.push((&owner, 60, A::new(ip))).ok()?,
            (IpAddr::V6(ip), Rtype::AAAA) => answer.push((&owner, 60, Aaaa::new(ip))).ok()?,
            _ => {}
        }
    }
    for text in texts.unwrap_or_default().iter().filter(|_| question.qtype() == Rtype::TXT) {
        let text: Txt<Vec<u8>> = Txt::build_from_slice(text.as_bytes()).ok()?;
        answer.push((&owner, 60, text)).ok()?;
    }
    Some(answer.finish())
}

/// Starts a relay that asks the DNS server at `dns`.
fn start(relay: &Path, dns: IpAddr, flags: &[&str]) -> Server {
    let directory = Arc::new(TempDir::new().expect("a temporary directory"));
    let resolv = format!("nameserver {dns}\noptions timeout:30 attempts:1\n");
    let resolv = write_file(directory.path(), "resolv.conf", &resolv);
    // Which relay it is, is told by the name of the program.
    let name = relay.file_name().and_then(|name| name.to_str()).expect("a name");
    let inside =
        format!("mount --bind {resolv} /etc/resolv.conf && exec {} \"$@\"", relay.display());
    let script = format!("#!/bin/sh\nexec unshare --mount sh -c '{inside}' {name} \"$@\"\n");
    let script: PathBuf = write_file(directory.path(), name, &script).into();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("our own file");
    Server::start_binary(&script, Place::own_address, directory, flags)
}

/// The names that an answer tells, with their addresses in order.
fn ask(server: &Server, query: &str) -> Value {
    let request =
        format!("GET /bootstrap-dns{query} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n");
    let body = Wire::connect(server).http(&request).body;
    if body.is_empty() {
        return Value::Null;
    }
    let mut names: Value = serde_json::from_str(&body).expect("JSON");
    for addresses in names.as_object_mut().into_iter().flat_map(|names| names.values_mut()) {
        addresses.as_array_mut().expect("a list").sort_by_key(ToString::to_string);
    }
    names
}

fn answers_by_what_dns_says(relay: &Path) {
    let (socket, dns) = bind();
    serve(socket);
    let server = start(relay, dns, &FLAGS);
    wait_until("both look-ups", || {
        ask(&server, "?q=plain.test.example")["plain.test.example"] != Value::Null
    });
    let before = server.metric("bootstrap_dns_requests");
    let published = json!({
        "one.test.example": ["192.0.2.1", "2001:db8::1"],
        "two.test.example": ["192.0.2.2"],
    });
    for (query, expected) in [
        ("", published.clone()),
        ("?q=one.test.example", published.clone()),
        ("?q=gone.test.example", published.clone()),
        ("?q=plain.test.example", json!({"plain.test.example": ["192.0.2.3"]})),
        ("?q=all.test.example", json!({"all.test.example": ["2001:db8::4"]})),
        ("?q=none.test.example", published.clone()),
        ("?q=torn.test.example", published.clone()),
    ] {
        assert_eq!(ask(&server, query), expected, "{query}\n{}", server.log());
    }
    for (name, expected) in [
        ("requests", before + 7.0),
        ("published_hits", 1.0),
        ("published_misses", 0.0),
        ("unpublished_percent_misses", 2.0),
        ("queried_domains", 6.0),
    ] {
        assert_eq!(server.metric(&format!("bootstrap_dns_{name}")), expected, "{name}");
    }
    server.wait_for_log("bootstrap DNS lookup \"gone.test.example\"");
}

#[test]
fn names_and_percentages_come_from_dns() {
    if can_mount("bootstrap DNS with a DNS server") {
        answers_by_what_dns_says(&binary());
    }
}

#[test]
fn derper_answers_the_same() {
    const WHAT: &str = "bootstrap DNS of derper with a DNS server";
    if !can_mount(WHAT) {
        return;
    }
    match go::go_binary(&DERPER, "derper", &["build"], "tailscale.com/cmd/derper") {
        Ok(derper) => answers_by_what_dns_says(&derper),
        Err(reason) => skip(WHAT, &reason),
    }
}

#[test]
fn a_name_that_is_being_looked_up_keeps_nothing_from_ending() {
    if !can_mount("bootstrap DNS without an answer") {
        return;
    }
    // Nobody reads from it.
    let (socket, dns) = bind();
    let server = start(&binary(), dns, &FLAGS);
    socket.peek(&mut [0; 512]).expect("a question comes");
    assert_eq!(ask(&server, ""), Value::Null);
    let asked = Instant::now();
    assert!(server.terminate().success());
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?}", asked.elapsed());
}
