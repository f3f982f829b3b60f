//! The same packets through the host function and the loaded program: verdict, bytes and counters must agree, and
//! what is counted per leg.
//!
//! The packets are those that the fuzzer has found worth keeping (`fuzz/corpus`), mutations of them, and random
//! ones. `DERPD_DIFFERENTIAL_PACKETS` sets how many, `DERPD_DIFFERENTIAL_SEED` repeats a run; a failure names its seed.
//! Nothing here depends on the time: there are no rates and no samples, which have tests of their own. The packets in
//! `corpus`, one for each family and reason that can be reached so, have a test for themselves;
//! `DERPD_DIFFERENTIAL_CORPUS=write` writes them anew from what a run comes across.

#[path = "support/bed.rs"]
mod bed;
#[path = "support/flow_maps.rs"]
mod flow_maps;
#[path = "../../derp-common/tests/support/flows.rs"]
mod flows;
#[allow(dead_code, reason = "the fuzzer's target itself is run elsewhere")]
#[path = "../../derp-common/tests/support/fuzz.rs"]
mod fuzz;
#[path = "../../derp-common/tests/support/host.rs"]
mod host;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/packets.rs"]
mod packets;

use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Instant,
};

use derp_common::{
    Decision, Family, Reason, SlicePacket, Switches,
    flow::{LegStatistics, Side, table::statistics_index},
};

use crate::{
    bed::Bed,
    flows::{
        ANY_PORT, CLOSED_VNI, CROSS_VNI, INDEX, OFF_VNI, Plan, RELAY_PORT, SENDERS, SLOTS,
        UNBOUND_VNI, UNRESOLVED_VNI, VLAN_VNI, WIREGUARD_PORT, client, control, data, geneve, peer,
        redirected_vni, second_address, server, vni, wireguard,
    },
    host::TestHost,
    kernel::action,
    packets::{
        Ip, STUN_PORT, attribute, fix_checksums, message, tailscale_request, udp_frame,
        with_fingerprint,
    },
};

const PACKETS: usize = 30_000;
/// Counters are compared whenever there were so many more.
const COMPARED_EVERY: usize = 100_000;
/// The kernel runs no frame that has less than an Ethernet header, and none that fills more than a page with its own
/// room around it.
const LENGTHS: std::ops::RangeInclusive<usize> = 14..=3000;

/// SplitMix64: small, good enough, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("below a usize")
    }

    fn one_in(&mut self, chance: usize) -> bool {
        self.below(chance) == 0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.byte()).collect()
    }

    fn bytes_below(&mut self, limit: usize) -> Vec<u8> {
        let length = self.below(limit);
        self.bytes(length)
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// A message that is, or nearly is, a Binding request.
fn random_message(random: &mut Random) -> Vec<u8> {
    if random.one_in(4) {
        return tailscale_request();
    }
    let kind = if random.one_in(10) { random.pick(&[0x0101, 0x0011, 0x0003, 0x8001]) } else { 1 };
    let attributes: Vec<_> = (0..random.below(10))
        .map(|_| {
            let kinds = [0x8022, 0x8022, 0xc057, 0x0006, 0x0020, 0x0003, 0x0024, 0x8028];
            let kind = random.pick(&kinds);
            let length = random.below(24);
            attribute(kind, &random.bytes(length))
        })
        .collect();
    let message = message(kind, &attributes);
    if random.one_in(2) { with_fingerprint(message) } else { message }
}

fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(6) {
        0 => {
            let at = random.below(frame.len());
            frame[at] ^= 1 << random.below(8);
        }
        1 => {
            let at = random.below(frame.len());
            frame[at] = random.pick(&[0, 1, 4, 17, 0x7f, 0xff]);
        }
        2 => frame.truncate(14 + random.below(frame.len() - 13)),
        3 => {
            let length = random.below(40);
            frame.extend(random.bytes(length));
        }
        4 => {
            let at = random.below(frame.len());
            frame.insert(at, 0);
        }
        // The header fields are where the decisions are.
        _ => {
            let at = (14 + random.below(60)).min(frame.len() - 1);
            frame[at] = random.byte();
        }
    }
}

fn random_payload(random: &mut Random, ip: Ip) -> Vec<u8> {
    let vnis = [
        vni(ip),
        vni(ip),
        vni(ip),
        CROSS_VNI,
        redirected_vni(ip),
        UNBOUND_VNI,
        UNRESOLVED_VNI,
        OFF_VNI,
        VLAN_VNI,
        CLOSED_VNI,
        0,
        13,
        vni(ip) + SLOTS,
    ];
    match random.below(10) {
        0..3 => data(random.pick(&vnis)),
        3 => {
            let body = random.bytes_below(1600);
            let flags = random.pick(&[0, 0, 0, 0x80, 0x40, 1]);
            geneve(flags, random.pick(&[0x7a11, 0x7a12, 0x6558]), random.pick(&vnis), &body)
        }
        4 => control(random.pick(&vnis), random.pick(&[SENDERS[0], SENDERS[1], 0, 7])),
        5 => {
            let mut message = wireguard(random.pick(&[INDEX, 0x0100_0000, 7, 0x2112_a442]));
            if random.one_in(3) {
                message[0] = random.pick(&[1, 2, 3, 4, 5]);
                let length = random.pick(&[32, 63, 64, 92, 93, 148]) - random.below(2);
                message.resize(length, 0x66);
            }
            message
        }
        6 => random.bytes_below(60),
        _ => random_message(random),
    }
}

fn random_frame(random: &mut Random) -> Vec<u8> {
    if random.one_in(20) {
        let length = 14 + random.below(200);
        let mut frame = random.bytes(length);
        frame[12..14].copy_from_slice(&random.pick(&[[8, 0], [0x86, 0xdd], [8, 6], [0x81, 0]]));
        return frame;
    }
    let ip = random.pick(&Ip::BOTH);
    let stranger = SocketAddr::new(client(ip).ip(), random.pick(&[0, 1, 40_000]));
    let from = random.pick(&[client(ip), client(ip), client(ip), peer(ip), peer(ip), stranger]);
    let ports = [STUN_PORT, RELAY_PORT, RELAY_PORT, RELAY_PORT, WIREGUARD_PORT, ANY_PORT, 9];
    let mut to = server(ip, random.pick(&ports));
    if random.one_in(20) {
        to.set_ip(random.pick(&[second_address(ip), peer(ip).ip()]));
    }
    let mut frame = udp_frame(from, to, &random_payload(random, ip));
    let mutations = if random.one_in(2) { 0 } else { random.below(4) };
    for _ in 0..mutations {
        mutate(random, &mut frame);
    }
    if random.one_in(2) {
        fix_checksums(&mut frame, ip);
    }
    if random.one_in(20) {
        // As a datagram without a checksum, and as one whose checksum is left to a device.
        if let Some(checksum) = frame.get_mut(ip.udp() + 6..ip.udp() + 8) {
            checksum.fill(0);
        }
    }
    if random.one_in(10) {
        let tag = random.pick(&[[0x81, 0, 0, 7], [0x81, 0, 0xe0, 9], [0x81, 0, 0x20, 0]]);
        frame.splice(12..12, tag);
    }
    frame
}

/// What the fuzzer has found worth keeping.
struct Seeds {
    frames: Vec<Vec<u8>>,
    /// STUN messages, and what is nearly one.
    messages: Vec<Vec<u8>>,
}

impl Seeds {
    fn read() -> Self {
        let frames = inputs("packet").filter_map(|bytes| fuzz::frame(&bytes)).map(|(it, _)| it);
        Self {
            frames: frames.filter(|frame| LENGTHS.contains(&frame.len())).collect(),
            messages: inputs("stun").filter(|bytes| bytes.len() < 1500).collect(),
        }
    }

    /// One of them, or a mixture of two.
    fn pick(&self, random: &mut Random) -> Vec<u8> {
        if random.one_in(10) {
            let ip = random.pick(&Ip::BOTH);
            let message = &self.messages[random.below(self.messages.len())];
            return udp_frame(client(ip), server(ip, STUN_PORT), message);
        }
        let mut frame = self.frames[random.below(self.frames.len())].clone();
        if random.one_in(8) {
            let other = &self.frames[random.below(self.frames.len())];
            let at = random.below(frame.len().min(other.len()));
            frame.truncate(at);
            frame.extend(&other[at..]);
        }
        frame
    }

    fn mutated(&self, random: &mut Random) -> Vec<u8> {
        let mut frame = self.pick(random);
        for _ in 0..1 + random.below(4) {
            mutate(random, &mut frame);
        }
        let ip = if frame.get(12..14) == Some(&[0x86, 0xdd]) { Ip::V6 } else { Ip::V4 };
        if random.one_in(2) {
            fix_checksums(&mut frame, ip);
        }
        frame
    }
}

/// The corpus of a target of the fuzzer.
fn inputs(target: &str) -> impl Iterator<Item = Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.expect("entry").path())
        .collect();
    // A seed says the same everywhere.
    files.sort();
    files.into_iter().map(|file| fs::read(file).expect("an input"))
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// The two that must agree.
struct Both {
    bed: Bed,
    host: TestHost,
    expected: BTreeMap<(Family, Reason), (u64, u64)>,
}

impl Both {
    fn new(test: &str, companion: bool) -> Option<Self> {
        let mut bed = Bed::new(test)?;
        if companion {
            bed.companion();
        }
        let mut host = TestHost::new(bed.settings, SLOTS);
        host.addresses = bed::addresses().into_iter().map(|(it, kind)| (it, kind as u32)).collect();
        host.interfaces.extend(bed::interfaces());
        Plan::everything().apply(&mut host);
        Some(Self { bed, host, expected: BTreeMap::new() })
    }

    /// Runs one frame on both.
    fn run(&mut self, what: &str, frame: &[u8]) -> Decision {
        let mut buffer = frame.to_vec();
        buffer.resize(frame.len() + 64, 0);
        let mut packet = SlicePacket::new(&mut buffer, frame.len());
        let decision = derp_common::decide(&mut packet, &self.host);
        let count = self.expected.entry((decision.family, decision.reason)).or_default();
        count.0 += 1;
        count.1 += packet.bytes().len() as u64;

        let (got_action, got) = self.bed.kernel.test_run(frame).expect("test run");
        let same = got_action == action(decision.verdict) && got == packet.bytes();
        assert!(
            same,
            "{what}: host {decision:?}, kernel action {got_action}\n frame  {frame:02x?}\n \
             host   {:02x?}\n kernel {got:02x?}",
            packet.bytes()
        );
        decision
    }

    /// Compares what both have counted. (Clocks differ; whether something was seen at all does not.)
    fn compare_counters(&self, what: &str) {
        assert_eq!(self.bed.counters(), self.expected, "{what}");
        let seen = |it: LegStatistics| {
            (it.packets, it.bytes, it.last_seen != 0, it.over_rate, it.suspect_since != 0)
        };
        for slot in 0..SLOTS {
            for side in Side::ALL {
                let host = self.host.statistics_of(statistics_index(slot, side));
                let kernel = self.bed.statistics(slot, side);
                assert_eq!(seen(kernel), seen(host), "{what}: slot {slot}, side {side:?}");
            }
        }
    }
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// Every packet of the corpus: its name, which says what it is, and its bytes.
fn read_corpus() -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(corpus()).expect("corpus").map(|entry| entry.expect("entry").path());
    let mut packets: Vec<_> = entries
        .map(|path| {
            let name = path.file_stem().expect("name").to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).expect("packet");
            let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
            let byte = |pair: &[u8]| {
                let pair = std::str::from_utf8(pair).expect("ASCII");
                u8::from_str_radix(pair, 16).expect("hex digits")
            };
            (name, digits.chunks(2).map(byte).collect())
        })
        .collect();
    packets.sort();
    packets
}

/// Writes the shortest packet of each kind, 32 bytes a line.
fn write_corpus(found: &BTreeMap<(Family, Reason), Vec<u8>>) {
    for ((family, reason), frame) in found {
        let line =
            |bytes: &[u8]| bytes.iter().map(|it| format!("{it:02x}")).collect::<String>() + "\n";
        let text: String = frame.chunks(32).map(line).collect();
        let name = format!("{}-{}.hex", family.label(), reason.label());
        fs::write(corpus().join(name), text).expect("corpus");
    }
}

#[test]
fn the_corpus_decides_as_it_is_named() {
    let Some(mut both) = Both::new("corpus", false) else { return };
    let corpus = read_corpus();
    assert!(corpus.len() > 50, "{} packets", corpus.len());
    for (name, frame) in corpus {
        let decision = both.run(&name, &frame);
        assert_eq!(format!("{}-{}", decision.family.label(), decision.reason.label()), name);
    }
    both.compare_counters("the corpus");
}

#[test]
fn host_function_and_loaded_program_agree() {
    agree(false);
}

#[test]
fn host_function_and_loaded_program_agree_beside_a_companion() {
    agree(true);
}

fn agree(companion: bool) {
    let Some(mut both) = Both::new("differential test", companion) else { return };
    let total = number("DERPD_DIFFERENTIAL_PACKETS").map_or(PACKETS, |n| n as usize);
    let seed = number("DERPD_DIFFERENTIAL_SEED").unwrap_or_else(|| std::process::id().into());
    println!("{total} packets, DERPD_DIFFERENTIAL_SEED={seed}");
    let begun = Instant::now();
    let seeds = Seeds::read();
    assert!(seeds.frames.len() > 50, "{} frames of the fuzzer", seeds.frames.len());
    for (number, frame) in seeds.frames.iter().enumerate() {
        both.run(&format!("frame {number} of the fuzzer"), frame);
    }
    let mut random = Random(seed);
    let mut found: BTreeMap<(Family, Reason), Vec<u8>> = BTreeMap::new();
    for number in 0..total {
        let frame =
            if random.one_in(3) { seeds.mutated(&mut random) } else { random_frame(&mut random) };
        let decision = both.run(&format!("packet {number} of seed {seed}"), &frame);
        let kind = (decision.family, decision.reason);
        if found.get(&kind).is_none_or(|shortest| shortest.len() > frame.len()) {
            found.insert(kind, frame);
        }
        // A companion's flow stays suspect until it is looked into; here, every now and then.
        if companion && number % 1000 == 0 {
            both.bed.trust_all();
            both.host.trust_all();
        }
        if number % COMPARED_EVERY == 0 {
            both.compare_counters(&format!("after packet {number} of seed {seed}"));
        }
    }
    both.compare_counters(&format!("at the end of seed {seed}"));
    println!("{total} packets of seed {seed} agree, after {:.0?}", begun.elapsed());
    let reached = |reason: &Reason| both.expected.keys().any(|(_, seen)| seen == reason);
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !reached(reason)).collect();
    println!("{} counters moved; reasons not reached: {missing:?}", both.expected.len());
    assert_eq!(both.bed.settings.has(Switches::COMPANION), companion);
    if !companion && env::var("DERPD_DIFFERENTIAL_CORPUS").is_ok_and(|what| what == "write") {
        write_corpus(&found);
    }
}
