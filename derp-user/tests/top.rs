//! `derpd top`, the binary, against a running relay: one look for scripts, and a real terminal.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

#[path = "support/binary.rs"]
mod binary;

use binary::{HANG, Place, Relay, derpd, run};

/// Gives a program a terminal.
const SCRIPT: &str = "/usr/bin/script";

/// A relay over plain HTTP, always on the same port.
struct Subject {
    place: Place,
    address: String,
}

impl Subject {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        Self { place: Place::new(), address }
    }

    fn start(&self) -> Relay {
        let mut arguments = self.place.arguments(&[]);
        arguments[1].clone_from(&self.address);
        Relay::start(&mut derpd(&arguments))
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

#[test]
fn one_look_is_for_scripts() {
    let subject = Subject::new();
    let url = subject.url();
    let (code, stdout, stderr) = run(&mut derpd(&["top", "--once", "--json", &url]));
    assert_eq!((code, stdout.as_str()), (1, ""), "nobody listens yet");
    assert!(stderr.starts_with(&format!("derpd top: {url}: ")), "{stderr}");

    let _relay = subject.start();
    let (code, stdout, stderr) = run(&mut derpd(&["top", "--once", "--json", &url]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    let document: Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert_eq!(document["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(document["values"]["connections"], 0);
    assert_eq!(document["certificates"], Value::Null);
    assert!(document["values"]["memory"].as_u64().expect("bytes") > 1 << 20);

    let (code, stdout, stderr) = run(&mut derpd(&["top", "--once", &url]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("Connections   0 "), "{stdout}");

    let (code, stdout, stderr) = run(&mut derpd(&["top", &url]));
    assert_eq!((code, stdout.as_str()), (2, ""), "a pipe is no terminal");
    assert_eq!(stderr, "derpd top: standard output is no terminal; --once prints one look\n");
}

#[test]
fn regression_a_relay_without_a_name_goes_by_its_machines_and_not_by_derpers_default() {
    let subject = Subject::new();
    let _relay = subject.start();
    let url = subject.url();
    let (_, stdout, _) = run(&mut derpd(&["top", "--once", "--json", &url]));
    let document: Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert_eq!(document["hostname"], "");
    let (_, stdout, _) = run(&mut derpd(&["top", "--once", &url]));
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
    let expected = format!("derpd {} on {}, ", env!("CARGO_PKG_VERSION"), machine.trim());
    assert!(stdout.starts_with(&expected), "{stdout}");
}

#[test]
fn samples_come_by_themselves_and_later_ones_alone_if_wished() {
    let subject = Subject::new();
    let _relay = subject.start();
    let document = |query: &str| {
        let mut stream = TcpStream::connect(&subject.address).expect("it listens");
        let head = "Host: relay\r\nConnection: close\r\n\r\n";
        write!(stream, "GET /debug/status.json{query} HTTP/1.1\r\n{head}").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
        serde_json::from_str::<Value>(body).expect("JSON")
    };
    let times = |document: &Value| document["history"]["times"].as_array().expect("times").clone();
    let started = Instant::now();
    let first = loop {
        let document = document("");
        if times(&document).len() >= 2 {
            break document;
        }
        assert!(started.elapsed() < HANG, "no samples come");
        sleep(Duration::from_millis(200));
    };
    let last = times(&first).last().expect("two").clone();
    let query = format!("?run={}&after={last}&rows=0", first["run"]);
    let started = Instant::now();
    let later = loop {
        let later = times(&document(&query));
        if !later.is_empty() {
            break later;
        }
        assert!(started.elapsed() < HANG, "no samples come");
        sleep(Duration::from_millis(200));
    };
    assert!(later.iter().all(|time| time.as_u64() > last.as_u64()), "{later:?} after {last}");
    // A viewer that has seen another run is told everything.
    let other = times(&document(&format!("?run=1&after={last}")));
    assert!(other.len() > later.len(), "{other:?}");
}

/// A program in a terminal of 100 columns and 30 rows.
struct Terminal {
    child: Child,
    shown: Arc<Mutex<String>>,
    /// Everything since the start.
    written: Arc<Mutex<String>>,
}

impl Terminal {
    fn start(command: &str) -> Self {
        let mut child = Command::new(SCRIPT)
            .args(["--quiet", "--return", "--command"])
            .arg(format!("stty rows 30 cols 100; {command}"))
            .arg("/dev/null")
            .env("TERM", "xterm-256color")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("script is there");
        let mut output = child.stdout.take().expect("piped");
        let shown = Arc::new(Mutex::new(String::new()));
        let copy = Arc::clone(&shown);
        let written = Arc::new(Mutex::new(String::new()));
        let all = Arc::clone(&written);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
                all.lock().expect("not poisoned").push_str(&text);
                copy.lock().expect("not poisoned").push_str(&text);
            }
        });
        Self { child, shown, written }
    }

    /// Waits until something is drawn, and forgets everything up to it.
    fn wait_for(&self, part: &str) {
        let started = Instant::now();
        loop {
            let mut shown = self.shown.lock().expect("not poisoned");
            if let Some(at) = shown.find(part) {
                shown.drain(..at + part.len());
                return;
            }
            assert!(started.elapsed() < HANG, "{part:?} is not drawn: {shown:?}");
            drop(shown);
            sleep(Duration::from_millis(50));
        }
    }

    /// Waits until something is on the screen. Only cells that change are written, so it may never be written in one.
    fn wait_until_seen(&self, part: &str) {
        let started = Instant::now();
        loop {
            let screen = screen(&self.written.lock().expect("not poisoned"));
            if screen.contains(part) {
                return;
            }
            assert!(started.elapsed() < HANG, "{part:?} is not there:\n{screen}");
            sleep(Duration::from_millis(50));
        }
    }

    fn type_in(&mut self, text: &str) {
        let input = self.child.stdin.as_mut().expect("piped");
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).expect("it reads");
    }
}

/// What is to be seen after all of this was written.
fn screen(written: &str) -> String {
    let blank = vec![vec![' '; 100]; 30];
    let mut rows = blank.clone();
    let (mut row, mut column) = (0, 0);
    let mut letters = written.chars();
    while let Some(letter) = letters.next() {
        if letter == '\x1b' {
            if letters.next() != Some('[') {
                continue;
            }
            let mut numbers = String::new();
            let command = letters.by_ref().find(|it| {
                let is_end = ('@'..='~').contains(it);
                if !is_end {
                    numbers.push(*it);
                }
                is_end
            });
            match command {
                Some('H') => {
                    let mut numbers = numbers.split(';').map(|it| it.parse().unwrap_or(1_usize));
                    row = numbers.next().unwrap_or(1).saturating_sub(1);
                    column = numbers.next().unwrap_or(1).saturating_sub(1);
                }
                Some('J') => rows.clone_from(&blank),
                Some(_) | None => {}
            }
        } else {
            if let Some(cell) = rows.get_mut(row).and_then(|row| row.get_mut(column)) {
                *cell = letter;
            }
            column += 1;
        }
    }
    let rows: Vec<String> = rows.into_iter().map(|row| row.into_iter().collect()).collect();
    rows.join("\n")
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

const ENTER_SCREEN: &str = "\x1b[?1049h";
const LEAVE_SCREEN: &str = "\x1b[?1049l";
const SHOW_CURSOR: &str = "\x1b[?25h";

#[test]
fn a_terminal_is_drawn_on_and_given_back() {
    if !Path::new(SCRIPT).exists() {
        eprintln!("skipped: derpd top in a terminal: {SCRIPT} is not there");
        return;
    }
    let subject = Subject::new();
    let relay = subject.start();
    let command = format!("{} top --interval 1 {}", env!("CARGO_BIN_EXE_derpd"), subject.url());
    let mut terminal = Terminal::start(&format!("{command}; echo ended with $?; stty -a"));
    terminal.wait_for(ENTER_SCREEN);
    terminal.wait_for("Overview");
    terminal.wait_for("Throughput");
    terminal.type_in("5");
    terminal.wait_until_seen("served without TLS");
    // The relay is restarted meanwhile.
    relay.stop(Signal::SIGTERM);
    terminal.wait_until_seen("no answer: ");
    let _relay = subject.start();
    terminal.wait_until_seen("restarted 1");
    terminal.type_in("q");
    terminal.wait_for(LEAVE_SCREEN);
    terminal.wait_for(SHOW_CURSOR);
    terminal.wait_for("ended with 0");
    // Lines are edited and echoed again.
    terminal.wait_for(" icanon");
    terminal.wait_for(" echo");
}

#[test]
fn a_signal_gives_the_terminal_back_too() {
    if !Path::new(SCRIPT).exists() {
        eprintln!("skipped: derpd top in a terminal that gets a signal: {SCRIPT} is not there");
        return;
    }
    let subject = Subject::new();
    let _relay = subject.start();
    let (program, url) = (env!("CARGO_BIN_EXE_derpd"), subject.url());
    let file = subject.place.path("pid");
    let terminal = Terminal::start(&format!(
        "sh -c 'echo $$ > {file}; exec {program} top {url}'; echo ended with $?; stty -a"
    ));
    terminal.wait_for("Throughput");
    let pid = std::fs::read_to_string(file).expect("written").trim().parse().expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).expect("it runs");
    terminal.wait_for(LEAVE_SCREEN);
    terminal.wait_for("ended with 0");
    terminal.wait_for(" icanon");
}
