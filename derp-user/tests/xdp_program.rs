//! The loaded program on one packet at a time: one valid request per family, and one mutation each.
//! Every case asserts the verdict, the bytes that come out, and that exactly one counter moved.

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/packets.rs"]
mod packets;

use std::{
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
};

use derp_common::{Family, Reason, Settings, Verdict};
use derp_user::dataplane::{Count, Kernel, Tables};

use crate::packets::{
    BROADCAST4, CLIENT_PORT, Ip, SERVER4, SERVER6, TRANSACTION, answer, answer_to, attribute,
    fix_checksums, fix_ip_checksum, fix_udp_checksum, frame, message, tailscale_request,
    with_fingerprint,
};

/// One packet and what must become of it.
struct Case {
    name: &'static str,
    family: Family,
    frame: Vec<u8>,
    reason: Reason,
}

/// Collects cases for one family.
struct Cases {
    ip: Ip,
    list: Vec<Case>,
}

impl Cases {
    fn new(ip: Ip) -> Self {
        Self { ip, list: Vec::new() }
    }

    fn push(&mut self, name: &'static str, frame: Vec<u8>, reason: Reason) {
        let family = match self.ip {
            Ip::V4 => Family::Ipv4,
            Ip::V6 => Family::Ipv6,
        };
        let unknown = [Reason::NotIp, Reason::Vlan].contains(&reason);
        let family = if unknown { Family::Unknown } else { family };
        self.list.push(Case { name, family, frame, reason });
    }

    /// The valid request after `edit`, with checksums as `edit` leaves them.
    fn raw(&mut self, name: &'static str, reason: Reason, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut frame = frame(self.ip, &tailscale_request());
        edit(&mut frame);
        self.push(name, frame, reason);
    }

    /// The valid request after `edit`, with checksums put right.
    fn fixed(&mut self, name: &'static str, reason: Reason, edit: impl FnOnce(&mut Vec<u8>)) {
        let ip = self.ip;
        self.raw(name, reason, |frame| {
            edit(frame);
            fix_checksums(frame, ip);
        });
    }

    /// A frame with this STUN message.
    fn stun(&mut self, name: &'static str, reason: Reason, message: &[u8]) {
        self.push(name, frame(self.ip, message), reason);
    }
}

fn ethernet(cases: &mut Cases) {
    cases.raw("VLAN tag", Reason::Vlan, |f| drop(f.splice(12..12, [0x81, 0, 0, 5])));
    cases.raw("ARP", Reason::NotIp, |f| f[12..14].copy_from_slice(&[8, 6]));
    cases.raw("802.3 length", Reason::NotIp, |f| f[12..14].copy_from_slice(&[0, 68]));
    cases.raw("other MAC", Reason::ForeignMac, |f| f[5] ^= 0x40);
    cases.raw("broadcast MAC", Reason::ForeignMac, |f| f[..6].fill(0xff));
    cases.raw("multicast MAC", Reason::ForeignMac, |f| f[0] |= 1);
    cases.raw("header cut", Reason::Malformed, |f| f.truncate(20));
    cases.raw("only Ethernet", Reason::Malformed, |f| f.truncate(14));
}

fn ipv4(cases: &mut Cases) {
    cases.fixed("version 6 in IPv4", Reason::Malformed, |f| f[14] = 0x65);
    cases.fixed("header length 4", Reason::Malformed, |f| f[14] = 0x44);
    cases.fixed("options", Reason::Ipv4Options, |f| {
        f.splice(34..34, [1, 1, 1, 0]);
        f[14] = 0x46;
        f[17] += 4;
    });
    cases.fixed("TCP", Reason::NotUdp, |f| f[23] = 6);
    cases.fixed("first fragment", Reason::Fragment, |f| f[20] = 0x20);
    cases.fixed("later fragment", Reason::Fragment, |f| f[21] = 8);
    cases.fixed("may be fragmented", Reason::StunAnswered, |f| f[20] = 0);
    cases.fixed("total length short", Reason::LengthMismatch, |f| f[17] -= 1);
    cases.fixed("total length long", Reason::LengthMismatch, |f| f[17] += 1);
    cases.fixed("total length tiny", Reason::Malformed, |f| f[17] = 19);
    cases.raw("header checksum", Reason::InvalidIpChecksum, |f| f[24] ^= 1);
    cases.raw("no UDP checksum", Reason::StunAnswered, |f| f[40..42].fill(0));
    for (name, address) in [
        ("from unspecified", Ipv4Addr::UNSPECIFIED),
        ("from this network", Ipv4Addr::new(0, 1, 2, 3)),
        ("from loopback", Ipv4Addr::LOCALHOST),
        ("from multicast", Ipv4Addr::new(224, 0, 0, 1)),
        ("from reserved", Ipv4Addr::new(240, 0, 0, 1)),
        ("from broadcast", Ipv4Addr::BROADCAST),
        ("from subnet broadcast", BROADCAST4),
        ("from this host", SERVER4),
    ] {
        cases.fixed(name, Reason::UnusableSource, |f| {
            f[26..30].copy_from_slice(&address.octets());
        });
    }
    for (name, address) in [
        ("to another host", Ipv4Addr::new(203, 0, 113, 2)),
        ("to multicast", Ipv4Addr::new(224, 0, 0, 1)),
        ("to broadcast", Ipv4Addr::BROADCAST),
        ("to subnet broadcast", BROADCAST4),
    ] {
        cases.fixed(name, Reason::NotLocal, |f| f[30..34].copy_from_slice(&address.octets()));
    }
}

fn ipv6(cases: &mut Cases) {
    cases.fixed("version 4 in IPv6", Reason::Malformed, |f| f[14] = 0x40);
    cases.fixed("hop-by-hop options", Reason::NotUdp, |f| {
        f[20] = 0;
        f[19] += 8;
        f.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
    });
    cases.fixed("fragment header", Reason::NotUdp, |f| f[20] = 44);
    cases.fixed("TCP", Reason::NotUdp, |f| f[20] = 6);
    cases.fixed("payload length short", Reason::LengthMismatch, |f| f[19] -= 1);
    cases.fixed("payload length long", Reason::LengthMismatch, |f| f[19] += 1);
    cases.fixed("jumbogram length 0", Reason::LengthMismatch, |f| f[18..20].fill(0));
    cases.raw("no UDP checksum", Reason::InvalidUdpChecksum, |f| f[60..62].fill(0));
    for (name, address) in [
        ("from unspecified", Ipv6Addr::UNSPECIFIED),
        ("from loopback", Ipv6Addr::LOCALHOST),
        ("from multicast", Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
        ("from v4-mapped", Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped()),
        ("from this host", SERVER6),
    ] {
        cases.fixed(name, Reason::UnusableSource, |f| {
            f[22..38].copy_from_slice(&address.octets());
        });
    }
    for (name, address) in [
        ("to another host", Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
        ("to multicast", Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
    ] {
        cases.fixed(name, Reason::NotLocal, |f| f[38..54].copy_from_slice(&address.octets()));
    }
}

fn udp(cases: &mut Cases) {
    let udp = cases.ip.udp();
    cases.fixed("other port", Reason::OtherPort, |f| f[udp + 3] ^= 1);
    cases.fixed("port 0", Reason::OtherPort, |f| f[udp + 2..udp + 4].fill(0));
    cases.fixed("from port 0", Reason::UnusableSource, |f| f[udp..udp + 2].fill(0));
    cases.fixed("UDP length short", Reason::LengthMismatch, |f| f[udp + 5] -= 4);
    cases.fixed("UDP length long", Reason::LengthMismatch, |f| f[udp + 5] += 4);
    cases.raw("trailing byte", Reason::LengthMismatch, |f| f.push(0));
    cases.raw("last byte cut", Reason::LengthMismatch, |f| f.truncate(f.len() - 1));
    cases.raw("UDP checksum", Reason::InvalidUdpChecksum, |f| f[udp + 6] ^= 1);
    let stun = cases.ip.stun();
    cases.raw("damaged transaction id", Reason::InvalidFingerprint, |f| f[stun + 9] ^= 1);
    let ip = cases.ip;
    let mut damaged = frame(ip, &message(0x0001, &[]));
    damaged[stun + 9] ^= 1;
    cases.push("damaged without fingerprint", damaged, Reason::InvalidUdpChecksum);
    let mut empty = frame(ip, &[]);
    fix_udp_checksum(&mut empty, ip);
    cases.push("no payload", empty, Reason::NotStun);
}

fn stun(cases: &mut Cases) {
    let software = || attribute(0x8022, b"another client");
    let at = cases.ip.stun();
    cases.stun("bare", Reason::StunAnswered, &message(0x0001, &[]));
    cases.stun("other software", Reason::StunAnswered, &message(0x0001, &[software()]));
    let known = message(0x0001, &[attribute(0x0006, b"user"), attribute(0x0008, &[7; 20])]);
    cases.stun("credentials, ignored", Reason::StunAnswered, &with_fingerprint(known));
    let optional = message(0x0001, &[attribute(0xc057, &[0; 4]), attribute(0x8000, &[])]);
    cases.stun("unknown optional", Reason::StunAnswered, &optional);

    cases.stun("answer", Reason::NotBindingRequest, &message(0x0101, &[]));
    cases.stun("indication", Reason::NotBindingRequest, &message(0x0011, &[]));
    cases.stun("allocate", Reason::NotBindingRequest, &message(0x0003, &[]));
    cases.fixed("top bits", Reason::NotStun, |f| f[at] |= 0x80);
    cases.fixed("cookie", Reason::NotStun, |f| f[at + 7] ^= 1);
    cases.stun("header cut", Reason::NotStun, &message(0x0001, &[])[..16]);
    cases.fixed("length too small", Reason::InvalidStunLength, |f| f[at + 3] -= 4);
    cases.fixed("length too large", Reason::InvalidStunLength, |f| f[at + 3] += 4);
    let mut odd = message(0x0001, &[software(), vec![0; 2]]);
    cases.stun("length not in fours", Reason::InvalidStunLength, &odd);
    odd.truncate(20);
    odd[3] = 2;
    odd.extend([0x80, 0x22]);
    cases.stun("attribute cut", Reason::InvalidStunLength, &odd);
    let mut overrun = message(0x0001, &[software()]);
    overrun[23] = 17;
    cases.stun("attribute overruns", Reason::InvalidStunLength, &overrun);
    overrun[22] = 0xff;
    cases.stun("attribute of 65 kB", Reason::InvalidStunLength, &overrun);

    let change = message(0x0001, &[attribute(0x0003, &[0, 0, 0, 6])]);
    cases.stun("CHANGE-REQUEST", Reason::UnknownAttribute, &change);
    let unknown = message(0x0001, &[attribute(0x7fff, &[]), software()]);
    cases.stun("unknown required", Reason::UnknownAttribute, &with_fingerprint(unknown));

    cases.fixed("fingerprint value", Reason::InvalidFingerprint, |f| f[at + 39] ^= 1);
    let mut first = with_fingerprint(message(0x0001, &[]));
    first.extend(software());
    first[3] = u8::try_from(first.len() - 20).expect("short");
    cases.stun("fingerprint not last", Reason::InvalidFingerprint, &first);
    let wide = message(0x0001, &[attribute(0x8028, &[0; 8])]);
    cases.stun("fingerprint of 8 bytes", Reason::InvalidFingerprint, &wide);

    let longest = message(0x0001, &[attribute(0x8022, &[b'x'; 104])]);
    cases.stun("128 bytes", Reason::StunAnswered, &longest);
    let longer = message(0x0001, &[attribute(0x8022, &[b'x'; 108])]);
    cases.stun("132 bytes", Reason::StunTooLong, &longer);
    let eight: Vec<_> = (0..8).map(|_| attribute(0x8022, b"abc")).collect();
    cases.stun("8 attributes", Reason::StunAnswered, &message(0x0001, &eight));
    let nine: Vec<_> = (0..9).map(|_| attribute(0x8022, b"abc")).collect();
    cases.stun("9 attributes", Reason::StunTooLong, &message(0x0001, &nine));
}

fn cases(ip: Ip) -> Vec<Case> {
    let mut cases = Cases::new(ip);
    cases.raw("valid", Reason::StunAnswered, |_| ());
    ethernet(&mut cases);
    match ip {
        Ip::V4 => ipv4(&mut cases),
        Ip::V6 => ipv6(&mut cases),
    }
    udp(&mut cases);
    stun(&mut cases);
    cases.list
}

fn moved(before: &[Count], after: &[Count]) -> Vec<Count> {
    let changes = before.iter().zip(after).map(|(before, after)| Count {
        packets: after.packets - before.packets,
        bytes: after.bytes - before.bytes,
        ..*after
    });
    changes.filter(|change| change.packets != 0 || change.bytes != 0).collect()
}

/// Runs one case and returns what is wrong, if anything.
fn run(kernel: &Kernel, ip: Ip, case: &Case) -> Result<(), String> {
    let before = kernel.counters().expect("counters");
    let (got_action, got) = kernel.test_run(&case.frame).expect("test run");
    let counted = moved(&before, &kernel.counters().expect("counters"));
    let expected = match case.reason.verdict() {
        Verdict::Transmit => answer(ip, CLIENT_PORT),
        Verdict::Pass | Verdict::Drop | Verdict::Redirect | Verdict::Aborted => case.frame.clone(),
    };
    let count = Count {
        reason: case.reason,
        family: case.family,
        packets: 1,
        bytes: expected.len() as u64,
    };
    if got_action != kernel::action(case.reason.verdict()) || counted != [count] {
        return Err(format!("action {got_action}, counted {counted:?}, expected {count:?}"));
    }
    if got != expected {
        return Err(format!("bytes\n got      {got:02x?}\n expected {expected:02x?}"));
    }
    Ok(())
}

fn loaded(test: &str) -> Option<(Kernel, Tables)> {
    kernel::load_configured(test)
}

#[test]
fn verdict_bytes_and_counters_of_every_case() {
    let Some((kernel, _tables)) = loaded("XDP program table") else { return };
    let mut total = 0;
    let mut wrong = Vec::new();
    for ip in Ip::BOTH {
        for case in cases(ip) {
            total += 1;
            if let Err(what) = run(&kernel, ip, &case) {
                wrong.push(format!("{ip:?} {}: {what}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {total} cases:\n{}", wrong.len(), wrong.join("\n"));
    println!("{total} cases");
}

#[test]
fn case_71_udp_checksum_zero_is_answered_in_ipv4_and_passed_in_ipv6() {
    let Some((kernel, _tables)) = loaded("case 71") else { return };
    for (ip, expected) in [(Ip::V4, 3), (Ip::V6, 2)] {
        let mut frame = frame(ip, &tailscale_request());
        frame[ip.udp() + 6..ip.udp() + 8].fill(0);
        let (action, _) = kernel.test_run(&frame).expect("test run");
        assert_eq!(action, expected, "{ip:?}");
    }
}

#[test]
fn regression_a_checksum_that_computes_to_zero_goes_out_as_ffff() {
    let Some((kernel, _tables)) = loaded("zero checksum") else { return };
    for ip in Ip::BOTH {
        // In both families this part of the transaction id moves the sum over all its values.
        let (transaction, expected) = (0..=u16::MAX)
            .map(|number| {
                let mut transaction = TRANSACTION;
                transaction[6..8].copy_from_slice(&number.to_be_bytes());
                (transaction, answer_to(ip, CLIENT_PORT, transaction))
            })
            .find(|(_, answer)| answer[ip.udp() + 6..ip.udp() + 8] == [0xff, 0xff])
            .expect("some transaction id");
        let mut request = message(0x0001, &[]);
        request[8..20].copy_from_slice(&transaction);
        let (action, got) = kernel.test_run(&frame(ip, &request)).expect("test run");
        assert_eq!((action, got), (3, expected), "{ip:?}");
    }
}

#[test]
fn nothing_is_answered_before_the_daemon_has_configured_it() {
    let Some((mut kernel, mut tables)) = loaded("unconfigured program") else { return };
    let mut frame = frame(Ip::V4, &tailscale_request());
    fix_ip_checksum(&mut frame, Ip::V4);
    let case = |reason| Case { name: "", family: Family::Ipv4, frame: frame.clone(), reason };
    run(&kernel, Ip::V4, &case(Reason::StunAnswered)).expect("configured");

    kernel.configure(Settings { version: 0, ..Settings::new(3478) }).expect("settings");
    run(&kernel, Ip::V4, &case(Reason::Unconfigured)).expect("version 0");
    kernel.configure(Settings::new(3479)).expect("settings");
    run(&kernel, Ip::V4, &case(Reason::OtherPort)).expect("another port");
    kernel.configure(Settings::new(3478)).expect("settings");
    tables.remove_address(&IpAddr::from(SERVER4).into()).expect("remove");
    run(&kernel, Ip::V4, &case(Reason::NotLocal)).expect("address gone");
    tables.remove_interface(kernel::TEST_RUN_INTERFACE).expect("remove");
    run(&kernel, Ip::V4, &case(Reason::ForeignMac)).expect("interface unknown");
}

#[test]
fn a_missing_capability_is_named() {
    if !nix::unistd::geteuid().is_root() {
        return kernel::skip("missing capability", "only root can give up privilege");
    }
    // This test program again, as nobody, for the one helper below.
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", "--"])
        .arg(env::current_exe().expect("this program"))
        .args(["--ignored", "--exact", "--nocapture", "print_why_loading_fails"])
        .output();
    let Ok(output) = output else {
        return kernel::skip("missing capability", "there is no setpriv");
    };
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("built without") {
        return kernel::skip("missing capability", "no XDP program is embedded");
    }
    assert!(text.contains("this process lacks CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"), "{text}");
}

#[test]
#[ignore = "a helper of a_missing_capability_is_named"]
fn print_why_loading_fails() {
    match Kernel::load() {
        Ok(_) => println!("it does not fail"),
        Err(error) => println!("{error}"),
    }
}
