//! A real browser, with nothing but what it brings and NaCl in JavaScript, is a client of the relay.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    differences::kind,
    fake::{Fake, Reply},
    peer::{Peer, parse_hex, random_bytes, to_hex},
    server::{Kind, Server, skip, wait_until},
};

const CHROMIUM: &str = "/usr/bin/chromium";
const NACL: &str = "/usr/share/nodejs/tweetnacl/nacl-fast.js";
const PAGE: &str = include_str!("browser.html");

/// A running browser, killed when dropped.
struct Browser(Child);

impl Drop for Browser {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Opens a page without a window. The relay's certificate is nobody's business here.
fn open(url: &str, directory: &Path) -> Browser {
    let child = Command::new(CHROMIUM)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--no-first-run", "--disable-background-networking", "--ignore-certificate-errors"])
        .arg(format!("--user-data-dir={}", directory.join("browser").display()))
        .arg(url)
        .env("HOME", directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the browser is there");
    Browser(child)
}

/// Waits for what the page reports under this path.
fn report(site: &Fake, path: &str) -> Value {
    let mut found = None;
    wait_until(&format!("the page to report {path}"), || {
        let asked = site.asked();
        let posted = |path: &str| {
            let line = format!("POST {path} HTTP/1.1");
            asked.iter().find(|asked| asked.head.first() == Some(&line)).map(|asked| &asked.body)
        };
        assert_eq!(posted("/failed"), None, "the page fails");
        found = posted(path).cloned();
        found.is_some()
    });
    serde_json::from_str(&found.expect("the wait ended with it")).expect("the page sends JSON")
}

#[test]
fn a_real_browser_logs_in_and_exchanges_packets() {
    let test = "a real browser as a client";
    if !Path::new(CHROMIUM).exists() {
        return skip(test, &format!("{CHROMIUM} is not there"));
    }
    let Ok(nacl) = fs::read_to_string(NACL) else {
        return skip(test, &format!("{NACL} is not there"));
    };
    let server = Server::start();
    let relay = format!("wss://{}/derp", server.tls_address());
    let mut page = Reply::new(200, &PAGE.replace("NACL", &nacl).replace("RELAY", &relay));
    page.headers = "Content-Type: text/html; charset=utf-8\r\n".to_owned();
    let site = Fake::on_tcp(page);
    let _browser = open(&site.url("/"), server.directory().path());

    let mut peer = Peer::connect(&server);
    let announced = to_hex(peer.wire.announced_key().as_bytes());
    let ready = report(&site, "/ready");
    assert_eq!((&ready["version"], &ready["server"]), (&json!(2), &json!(announced)));
    let key = parse_hex(ready["key"].as_str().expect("hex digits"));
    let key = crypto_box::PublicKey::from_slice(&key).expect("32 bytes");
    assert_eq!(server.metric("derp_websocket_accepts"), 1.0);

    let is_derpd = kind() == Kind::Derpd;
    // What derper takes in one message is a little less than 32 KiB.
    let largest = if is_derpd { 65_536 } else { 32_000 };
    let sizes: Vec<usize> = (0..98).map(|number| number * 15).chain([32_000, largest]).collect();
    for &size in &sizes {
        let mut packet = random_bytes::<16>().repeat(size.div_ceil(16));
        packet.truncate(size);
        peer.send(&key, &packet);
        assert_eq!(peer.receive(), (key.clone(), packet), "{size} bytes come back");
    }
    peer.send(&key, b"goodbye");
    let closed = json!({
        "code": 1000, "reason": if is_derpd { "" } else { "as asked" }, "wasClean": true,
        "protocol": "derp", "extensions": "", "echoed": sizes.len(),
    });
    assert_eq!(report(&site, "/closed"), closed);
    server.wait_for_metric("derp_current_connections", 1.0);
}
