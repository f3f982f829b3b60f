//! Flows by Geneve between the two clients' namespaces, all of them at work at once.

use std::{
    fmt::Write as _,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{PATIENCE, lab::Lab, page};

/// How many flows there are.
pub(crate) const COUNT: u16 = 64;
const PORT: u16 = 40_000;
const FIRST_A: u16 = 41_000;
const FIRST_B: u16 = 51_000;
const LENGTH: usize = 200;
/// A packet that has not come after this long is lost.
const LOST: Duration = Duration::from_secs(5);

/// The configuration file with all of them, and the size of the kernel's tables.
pub(crate) fn configuration(slots: u32) -> String {
    let mut text = format!("[relay]\nport = {PORT}\nslots = {slots}\n");
    for number in 0..COUNT {
        let (vni, a, b) = (number + 1, FIRST_A + number, FIRST_B + number);
        write!(
            text,
            "\n[[flow]]\nname = \"flow {vni}\"\nvni = {vni}\na = \"10.78.1.2:{a}\"\nb = \"10.78.2.2:{b}\"\n"
        )
        .expect("a string takes everything");
    }
    text
}

/// The two sockets of one flow.
struct Pair([UdpSocket; 2]);

/// All flows.
pub(crate) struct Flows(Vec<Pair>);

/// What came of it.
#[derive(Default)]
pub(crate) struct Tally {
    /// Packets in each direction of each flow.
    pub(crate) rounds: u64,
    /// Round, flow and receiver, `a` or `b`, of those that have not come.
    pub(crate) lost: Vec<(u64, usize, char)>,
    /// The longest time from the first packet of a round to the arrival of its last one.
    pub(crate) longest: Duration,
}

impl Flows {
    pub(crate) fn new(lab: &Lab) -> Self {
        let pair = |number: u16| {
            let a = lab.socket(&lab.a, &format!("10.78.1.2:{}", FIRST_A + number));
            let b = lab.socket(&lab.b, &format!("10.78.2.2:{}", FIRST_B + number));
            for (socket, relay) in [(&a, "10.78.1.1"), (&b, "10.78.2.1")] {
                let relay = SocketAddr::new(relay.parse().expect("an address"), PORT);
                socket.connect(relay).expect("connect");
                socket.set_read_timeout(Some(LOST)).expect("a timeout");
            }
            Pair([a, b])
        };
        Self((0..COUNT).map(pair).collect())
    }

    /// Sends until the kernel forwards all of them, and nothing else is under way.
    pub(crate) fn acquaint(&mut self, lab: &Lab) {
        let deadline = Instant::now() + PATIENCE;
        let mut tally = Tally::default();
        loop {
            self.round(u64::MAX, &mut tally);
            let view = page(lab, "/debug/flows?format=json");
            let view: Value = serde_json::from_str(&view).expect("JSON");
            let flows = view["flows"].as_array().expect("flows");
            let is_kernels = |flow: &Value| {
                let ends = flow["ends"].as_array().expect("ends");
                ends.iter().all(|end| end["forwarder"] == "kernel")
            };
            if flows.len() == usize::from(COUNT) && flows.iter().all(is_kernels) {
                break;
            }
            assert!(Instant::now() < deadline, "the kernel does not forward all: {view:#}");
            thread::sleep(Duration::from_millis(100));
        }
        // What is decided is written within the update protocol's grace.
        thread::sleep(Duration::from_millis(100));
    }

    /// Sends one packet after the other on all of them, both ways, until told to stop or one is lost.
    pub(crate) fn run(&mut self, stop: &AtomicBool) -> Tally {
        let mut tally = Tally::default();
        while !stop.load(Ordering::Relaxed) && tally.lost.is_empty() {
            let begun = Instant::now();
            self.round(tally.rounds, &mut tally);
            tally.longest = tally.longest.max(begun.elapsed());
            tally.rounds += 1;
            thread::sleep(Duration::from_millis(2));
        }
        tally
    }

    fn be_quick(&self) {
        for end in self.0.iter().flat_map(|Pair(ends)| ends) {
            end.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
        }
    }

    fn round(&self, number: u64, tally: &mut Tally) {
        for (flow, Pair(ends)) in self.0.iter().enumerate() {
            for end in ends {
                // What an earlier packet met is told to the next one, which is not sent then.
                while let Err(error) = end.send(&packet(flow, number)) {
                    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
                }
            }
        }
        for (flow, Pair(ends)) in self.0.iter().enumerate() {
            for (end, name) in ends.iter().zip(['a', 'b']) {
                if !receive(end, &packet(flow, number)) {
                    tally.lost.push((number, flow, name));
                    // Whatever else was sent with it has had its time.
                    self.be_quick();
                }
            }
        }
    }
}

/// What the interfaces have dropped, for whoever looks for a lost packet.
pub(crate) fn losses(lab: &Lab) -> String {
    [&lab.relay, &lab.a, &lab.b]
        .map(|namespace| {
            let output = Command::new("ip").args(["-n", namespace, "-s", "link"]).output();
            output.map_or_else(
                |error| error.to_string(),
                |output| String::from_utf8_lossy(&output.stdout).into_owned(),
            )
        })
        .join("\n")
}

/// Whether exactly these bytes come in time.
fn receive(end: &UdpSocket, wanted: &[u8]) -> bool {
    let mut buffer = [0; LENGTH + 1];
    loop {
        match end.recv(&mut buffer) {
            Ok(length) if buffer[..length] == *wanted => return true,
            // One that was given up, and came after all.
            Ok(LENGTH) => {}
            Ok(length) => panic!("{length} bytes"),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return false;
            }
            Err(error) => panic!("receive: {error}"),
        }
    }
}

/// A packet of a flow with a number in it. Its checksum is the same for every number: of 65,536 different ones, the
/// kernel hands up the one that looks half computed.
fn packet(flow: usize, number: u64) -> Vec<u8> {
    let vni = u8::try_from(flow + 1).expect("not many");
    let mut packet = vec![0, 0, 0x7a, 0x12, 0, 0, vni, 0];
    packet.extend(number.to_be_bytes());
    packet.extend((!number).to_be_bytes());
    packet.resize(LENGTH, vni);
    packet
}
