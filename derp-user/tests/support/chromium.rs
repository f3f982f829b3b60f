//! A real browser without a window, driven over its DevTools protocol: one JSON object a WebSocket message.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

pub(crate) const PROGRAM: &str = "/usr/bin/chromium";
/// A browser on a loaded machine needs its time; what takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running browser with one page, killed when dropped.
pub(crate) struct Browser {
    child: Child,
    socket: WebSocket<TcpStream>,
    last_id: u64,
    /// Everything that the browser has told unasked.
    events: Vec<Value>,
    _directory: TempDir,
}

impl Browser {
    /// Starts it with an empty page. The certificates of relays under test are nobody's business here.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let child = Command::new(PROGRAM)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-background-networking", "--hide-scrollbars"])
            .args(["--ignore-certificate-errors", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", directory.path().join("browser").display()))
            .arg("about:blank")
            .env("HOME", directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the browser is there");
        let socket = attach(&directory.path().join("browser").join("DevToolsActivePort"));
        let mut browser =
            Self { child, socket, last_id: 0, events: Vec::new(), _directory: directory };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        // What the security policy of a page has refused, for the test to read.
        let source = "window.refused = []; addEventListener('securitypolicyviolation', (event) => \
                      refused.push(`${event.violatedDirective}: ${event.blockedURI}`));";
        browser.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": source }));
        browser
    }

    /// Calls a method of the protocol and returns its result.
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let question = json!({ "id": self.last_id, "method": method, "params": params });
        self.socket.send(Message::text(question.to_string())).expect("the browser listens");
        loop {
            let message = self.socket.read().expect("the browser answers");
            let Message::Text(text) = message else { continue };
            let mut message: Value = serde_json::from_str(&text).expect("JSON");
            if message["id"] == self.last_id {
                assert_eq!(message.get("error"), None, "{method}");
                return message["result"].take();
            }
            self.events.push(message);
        }
    }

    /// Opens an address and waits until everything of it is there.
    pub(crate) fn open(&mut self, url: &str) {
        let answer = self.call("Page.navigate", json!({ "url": url }));
        assert_eq!(answer.get("errorText"), None, "{url}");
        self.wait_for("document.readyState === 'complete'");
    }

    /// The value of an expression, or of the promise that it is.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", params);
        assert_eq!(answer.get("exceptionDetails"), None, "{expression}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true.
    pub(crate) fn wait_for(&mut self, expression: &str) {
        let started = Instant::now();
        while self.evaluate(expression) != json!(true) {
            if started.elapsed() > PATIENCE {
                let text = self.evaluate("document.body.innerText");
                panic!("{expression} does not come true; the page says {text}");
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// A screen of this size in points, at two pixels each for phones.
    pub(crate) fn resize(&mut self, width: u32, height: u32) {
        let is_phone = width < 600;
        let scale = if is_phone { 2 } else { 1 };
        let params = json!({
            "width": width, "height": height, "deviceScaleFactor": scale, "mobile": is_phone,
        });
        self.call("Emulation.setDeviceMetricsOverride", params);
    }

    /// What the user has told the system to prefer: `light` or `dark`.
    pub(crate) fn prefer(&mut self, scheme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.call("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
    }

    /// Whether scripts of pages run, from the next page on.
    pub(crate) fn run_scripts(&mut self, run: bool) {
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": !run }));
    }

    /// The screen as PNG.
    pub(crate) fn screenshot(&mut self) -> Vec<u8> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let answer = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        STANDARD.decode(answer["data"].as_str().expect("base64")).expect("base64")
    }

    /// What pages have complained of since the last call: errors and warnings on the console, uncaught exceptions,
    /// what the browser says in the log.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        // Whatever happened before is told before the answer.
        self.evaluate("1");
        let complaint = |event: Value| {
            let params = &event["params"];
            let is_bad = |level: &Value| {
                ["error", "warning", "assert"].contains(&level.as_str()?).then_some(())
            };
            match event["method"].as_str()? {
                "Runtime.consoleAPICalled" => {
                    is_bad(&params["type"])?;
                    Some(format!("console: {}", params["args"]))
                }
                "Runtime.exceptionThrown" => {
                    Some(format!("exception: {}", params["exceptionDetails"]))
                }
                "Log.entryAdded" => {
                    let entry = &params["entry"];
                    is_bad(&entry["level"])?;
                    // Advice about how the test itself looks at what was drawn.
                    if entry["text"].as_str()?.contains("willReadFrequently") {
                        return None;
                    }
                    Some(format!("{}: {} {}", entry["source"], entry["text"], entry["url"]))
                }
                _ => None,
            }
        };
        self.events.drain(..).filter_map(complaint).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Connects to the browser's first page, once the file that tells its port is there.
fn attach(file: &Path) -> WebSocket<TcpStream> {
    let started = Instant::now();
    loop {
        let port = fs::read_to_string(file).ok();
        let port = port.and_then(|text| text.lines().next()?.parse::<u16>().ok());
        if let Some(page) = port.and_then(page_address) {
            let authority =
                page.trim_start_matches("ws://").split('/').next().expect("an authority");
            let stream = TcpStream::connect(authority).expect("the browser listens");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let (socket, _) = tungstenite::client(page.as_str(), stream).expect("a WebSocket");
            return socket;
        }
        assert!(started.elapsed() < PATIENCE, "the browser does not start");
        sleep(Duration::from_millis(50));
    }
}

/// Where the protocol of the first page is spoken.
fn page_address(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let request =
        format!("GET /json/list HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    // The browser may keep the connection open all the same.
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        answer.push_str(&String::from_utf8_lossy(&bytes[..count]));
        if answer.trim_end().ends_with(']') {
            break;
        }
    }
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let pages: Value = serde_json::from_str(body).ok()?;
    let page = pages.as_array()?.iter().find(|page| page["type"] == "page")?;
    page["webSocketDebuggerUrl"].as_str().map(str::to_owned)
}
