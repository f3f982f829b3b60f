//! The same random and mutated packets through the host function and the loaded program: verdict, bytes
//! and counters must agree.
//!
//! `DERPD_DIFFERENTIAL_PACKETS` sets how many, `DERPD_DIFFERENTIAL_SEED` repeats a run.

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/packets.rs"]
mod packets;

use std::{
    collections::{BTreeMap, HashMap},
    env,
};

use derp_common::{Address, Family, Host, Interface, Reason, Settings, SlicePacket, Verdict};
use derp_user::dataplane::Kernel;

use crate::packets::{
    Ip, SERVER_MAC, STUN_PORT, attribute, fix_checksums, frame, message, tailscale_request,
    with_fingerprint,
};

const PACKETS: usize = 30_000;

/// The maps of the kernel, on this side.
struct TestHost {
    settings: Settings,
    interface: Interface,
    addresses: HashMap<Address, u32>,
}

impl Host for TestHost {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }

    fn interface(&self) -> Option<&Interface> {
        Some(&self.interface)
    }

    fn address_kind(&self, address: &Address) -> Option<u32> {
        self.addresses.get(address).copied()
    }
}

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

fn random_frame(random: &mut Random) -> Vec<u8> {
    if random.one_in(10) {
        let length = 14 + random.below(200);
        let mut frame = random.bytes(length);
        frame[12..14].copy_from_slice(&random.pick(&[[8, 0], [0x86, 0xdd], [8, 6]]));
        return frame;
    }
    let ip = random.pick(&Ip::BOTH);
    let mut frame = frame(ip, &random_message(random));
    for _ in 0..random.below(4) {
        mutate(random, &mut frame);
    }
    if random.one_in(2) {
        fix_checksums(&mut frame, ip);
    }
    frame
}

fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Aborted => 0,
        Verdict::Pass => 2,
        Verdict::Transmit => 3,
    }
}

fn counters(kernel: &Kernel) -> BTreeMap<(Family, Reason), (u64, u64)> {
    let counts = kernel.counters().expect("counters").into_iter();
    let seen = counts.filter(|count| count.packets != 0);
    seen.map(|count| ((count.family, count.reason), (count.packets, count.bytes))).collect()
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

#[test]
fn host_function_and_loaded_program_agree() {
    let Some((kernel, _tables)) = kernel::load_configured("differential test") else { return };
    let host = TestHost {
        settings: Settings::new(STUN_PORT),
        interface: Interface::new(SERVER_MAC),
        addresses: kernel::local_addresses().map(|(it, kind)| (it, kind as u32)).into(),
    };
    let total = number("DERPD_DIFFERENTIAL_PACKETS").map_or(PACKETS, |n| n as usize);
    let seed = number("DERPD_DIFFERENTIAL_SEED").unwrap_or_else(|| std::process::id().into());
    println!("{total} packets, DERPD_DIFFERENTIAL_SEED={seed}");
    let mut random = Random(seed);
    let mut expected = BTreeMap::new();
    for number in 0..total {
        let frame = random_frame(&mut random);
        let mut buffer = frame.clone();
        buffer.resize(frame.len() + 64, 0);
        let mut packet = SlicePacket::new(&mut buffer, frame.len());
        let decision = derp_common::decide(&mut packet, &host);
        let count: &mut (u64, u64) =
            expected.entry((decision.family, decision.reason)).or_default();
        count.0 += 1;
        count.1 += packet.bytes().len() as u64;

        let (got_action, got) = kernel.test_run(&frame).expect("test run");
        let same = got_action == action(decision.reason.verdict()) && got == packet.bytes();
        assert!(
            same,
            "packet {number} of seed {seed}: host {decision:?}, kernel action {got_action}\n \
             frame  {frame:02x?}\n host   {:02x?}\n kernel {got:02x?}",
            packet.bytes()
        );
    }
    assert_eq!(counters(&kernel), expected, "seed {seed}");
    let missing: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| !expected.keys().any(|(_, seen)| seen == *reason))
        .collect();
    println!("{} counters moved; reasons not reached: {missing:?}", expected.len());
}
