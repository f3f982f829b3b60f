//! The status page in a real browser: it renders, stays current, outlives the daemon, and breaks no rule of its own.
//!
//! With `DERPD_SCREENSHOTS` set to a directory, the pictures that a person should look at are left there.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::sys::signal::Signal;
use serde_json::json;

#[path = "support/binary.rs"]
mod binary;
#[path = "support/chromium.rs"]
mod chromium;

use binary::{Place, Relay, derpd};
use chromium::Browser;

const CONFIG: &str = "\
[relay]
port = PORT
[[flow]]
name = \"<office> to cloud\"
vni = 7
a = \"127.0.0.1:41641\"
b = \"127.0.0.1:51820\"
";

/// A relay with one of everything that the page has a table for, always on the same port.
struct Subject {
    place: Place,
    port: u16,
}

impl Subject {
    fn new() -> Self {
        let place = Place::new();
        let write = |name, contents: &str| {
            fs::write(place.directory.path().join(name), contents).expect("writable");
        };
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let udp = socket.local_addr().expect("bound").port();
        write("derpd.toml", &CONFIG.replace("PORT", &udp.to_string()));
        write("mesh.key", &"ab".repeat(32));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        Self { place, port }
    }

    fn start(&self) -> Relay {
        let (config, key) = (self.place.path("derpd.toml"), self.place.path("mesh.key"));
        let address = format!("127.0.0.1:{}", self.port);
        // Nobody listens at the mesh peer.
        let extra = ["-config", &config, "-mesh-psk-file", &key, "-mesh-with", "127.0.0.1:9"];
        let mut arguments = self.place.tls_arguments(&extra);
        arguments[1] = address;
        Relay::start(&mut derpd(&arguments))
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}/debug/", self.port)
    }

    /// Clients that send each other packets until dropped.
    fn load(&self) -> Load {
        let child = Command::new(env!("CARGO_BIN_EXE_derpd"))
            .args(["bench", "--server", &format!("127.0.0.1:{}", self.port), "--insecure"])
            .args(["throughput", "--duration", "300s", "--pairs", "3", "--rate", "5"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("derpd starts");
        Load(child)
    }
}

struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn skip_without_browser(test: &str) -> bool {
    let is_missing = !Path::new(chromium::PROGRAM).exists();
    if is_missing {
        eprintln!("skipped: {test}: {} is not there", chromium::PROGRAM);
    }
    is_missing
}

/// Leaves a picture where a person can look at it.
fn picture(browser: &mut Browser, name: &str) {
    let Some(directory) = std::env::var_os("DERPD_SCREENSHOTS").map(PathBuf::from) else { return };
    let png = browser.screenshot();
    fs::write(directory.join(format!("{name}.png")), png).expect("the directory is writable");
}

/// Words of tables and figures that are broken over two lines.
const BROKEN_WORDS: &str = "\
    Array.from(document.querySelectorAll('td, .tiles dd'), (cell) => cell.firstChild) \
      .filter((text) => text !== null && text.nodeType === Node.TEXT_NODE) \
      .flatMap((text) => Array.from(text.data.matchAll(/\\S+/g)).filter((word) => { \
        const range = document.createRange(); \
        range.setStart(text, word.index); \
        range.setEnd(text, word.index + word[0].length); \
        return range.getClientRects().length > 1; \
      }).map((word) => word[0]))";

/// The page is as wide as the screen, and each chart has drawn something.
fn check_layout(browser: &mut Browser, width: u32) {
    browser.wait_for(&format!("innerWidth === {width}"));
    let wide = "Array.from(document.querySelectorAll('body *')) \
                .filter((it) => it.getBoundingClientRect().right > innerWidth + 1) \
                .map((it) => it.outerHTML.slice(0, 80))";
    // Charts follow a moment later.
    browser.wait_for(
        "Array.from(document.querySelectorAll('.u-wrap')) \
         .every((it) => it.getBoundingClientRect().right <= innerWidth + 1)",
    );
    assert_eq!(browser.evaluate(wide), json!([]), "at {width} pixels");
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), json!(width));
    assert_eq!(browser.evaluate(BROKEN_WORDS), json!([]), "at {width} pixels");
    browser.wait_for(
        "Array.from(document.querySelectorAll('#charts .plot')).every((place) => { \
           const canvas = place.querySelector('canvas'); \
           if (Math.abs(canvas.getBoundingClientRect().width - place.clientWidth) > 1) return false; \
           const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data; \
           return pixels.some((it) => it !== 0); \
         })",
    );
}

#[test]
fn the_page_lives_in_a_real_browser() {
    if skip_without_browser("the status page in a real browser") {
        return;
    }
    let subject = Subject::new();
    let relay = subject.start();
    let load = subject.load();
    let mut browser = Browser::start();
    browser.resize(1280, 900);
    browser.prefer("light");
    browser.open(&subject.url());
    assert_eq!(browser.evaluate("document.querySelectorAll('#charts canvas').length"), json!(9));

    // It becomes current by itself: clients, their rates, and the curves of what they send.
    browser.wait_for("document.getElementById('state').textContent.startsWith('live, up ')");
    browser.wait_for("document.querySelectorAll('#clients tbody tr').length === 6");
    browser.wait_for(
        "/^[\\d.]+ [kM]bit\\/s$/.test(document.querySelector('[data-series=bytes_received] b').textContent)",
    );
    browser.wait_for(
        "/bit\\/s/.test(document.querySelector('#clients td[data-label=Rate]').textContent)",
    );
    for (id, part) in [
        ("mesh", "127.0.0.1:9"),
        ("flows", "<office> to cloud"),
        ("certificates", "127.0.0.1"),
        ("facts", "Admission"),
    ] {
        let shown = format!("document.getElementById('{id}').innerText.includes('{part}')");
        assert_eq!(browser.evaluate(&shown), json!(true), "{part} in {id}");
    }
    assert_eq!(
        browser.evaluate("/nodekey:[0-9a-f]{20}/.test(document.documentElement.outerHTML)"),
        json!(false),
        "no key is shown in full"
    );
    check_layout(&mut browser, 1280);
    picture(&mut browser, "light");
    let light = browser.evaluate("getComputedStyle(document.body).backgroundColor");
    browser.prefer("dark");
    assert_ne!(browser.evaluate("getComputedStyle(document.body).backgroundColor"), light);
    check_layout(&mut browser, 1280);
    picture(&mut browser, "dark");
    browser.resize(375, 812);
    check_layout(&mut browser, 375);
    picture(&mut browser, "phone-dark");
    browser.prefer("light");
    picture(&mut browser, "phone-light");
    browser.evaluate("document.getElementById('clients').scrollIntoView()");
    picture(&mut browser, "phone-clients");
    browser.resize(1280, 900);
    check_layout(&mut browser, 1280);

    // A table is sorted by following a link, which stays in the address.
    browser.evaluate("document.querySelector('#clients a[href*=rtt]').click()");
    browser.wait_for("location.search === '?sort=rtt' && document.readyState === 'complete'");
    browser.wait_for("document.querySelector('#clients [aria-sort]').textContent === 'Round trip'");
    browser.wait_for("document.getElementById('state').className === 'live'");
    assert_eq!(browser.complaints(), [""; 0]);
    assert_eq!(browser.evaluate("refused"), json!([]), "nothing breaks the security policy");

    // The daemon goes and comes back: the page says so, and goes on.
    drop(load);
    relay.stop(Signal::SIGTERM);
    browser.wait_for("document.getElementById('state').className === 'lost'");
    browser.wait_for("document.getElementById('state').textContent.startsWith('no answer since ')");
    picture(&mut browser, "lost");
    let _relay = subject.start();
    browser.wait_for("document.getElementById('state').className === 'live'");
    browser.wait_for("document.getElementById('clients').innerText.includes('None.')");
    check_layout(&mut browser, 1280);
    let complaints = browser.complaints();
    let is_about_the_gap = |it: &String| it.starts_with("\"network\": ");
    assert!(complaints.iter().all(is_about_the_gap), "{complaints:?}");
    assert_eq!(browser.evaluate("refused"), json!([]));

    // What would be refused is noticed.
    browser.evaluate(
        "document.body.append(Object.assign(document.createElement('style'), { textContent: 'a {}' }))",
    );
    browser.wait_for("refused.length === 1 && refused[0].startsWith('style-src')");
    assert!(!browser.complaints().is_empty());
}

#[test]
fn the_page_is_whole_without_its_script() {
    if skip_without_browser("the status page in a browser without scripts") {
        return;
    }
    let subject = Subject::new();
    let _relay = subject.start();
    let _load = subject.load();
    let mut browser = Browser::start();
    browser.run_scripts(false);
    browser.resize(375, 812);
    browser.open(&subject.url());
    // The browser comes back by itself, and finds the clients that have come meanwhile.
    browser.wait_for("document.querySelectorAll('#clients tbody tr').length === 6");
    browser.wait_for("document.querySelector('.tiles').innerText.includes('bit/s')");
    browser.wait_for("document.getElementById('certificates') !== null");
    let hidden = "Array.from(document.querySelectorAll('.plot')) \
                  .every((it) => getComputedStyle(it).display === 'none')";
    browser.wait_for(hidden);
    browser.wait_for("document.documentElement.scrollWidth === 375");
    picture(&mut browser, "no-script");
}
