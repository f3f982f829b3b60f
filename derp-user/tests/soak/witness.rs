//! What the system has counted itself: datagrams of a namespace, frames of a virtual cable.

use std::{fs, process::Command};

use crate::netns::run_in;

/// UDP of one network namespace, both families, since it was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Udp {
    /// Datagrams that its sockets have sent.
    pub(crate) sent: u64,
    /// Datagrams that its sockets were given, or that were for nobody.
    pub(crate) arrived: u64,
    /// Of those, the ones that no socket has read.
    pub(crate) unread: u64,
}

impl Udp {
    pub(crate) fn of(namespace: &str) -> Self {
        let (four, six) = run_in(namespace, || {
            let read = |file: &str| {
                fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("counters")
            };
            (read("snmp"), read("snmp6"))
        });
        // Of IPv4, a line of names and a line of values.
        let mut lines = four.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
        let value4 = |name: &str| {
            let mut pairs = names.split(' ').zip(values.split(' '));
            pairs.find(|(it, _)| *it == name).map_or("0", |(_, value)| value)
        };
        let value6 = |name: &str| {
            let mut pairs = six.lines().filter_map(|line| line.split_once(char::is_whitespace));
            pairs
                .find(|(it, _)| it.strip_prefix("Udp6") == Some(name))
                .map_or("0", |(_, value)| value)
        };
        let both = |name: &str| -> u64 {
            [value4(name), value6(name)]
                .map(|it| it.trim().parse::<u64>().expect("a number"))
                .iter()
                .sum()
        };
        // Errors include what found a full buffer and what had a wrong checksum.
        let unread = both("NoPorts") + both("InErrors");
        Self { sent: both("OutDatagrams"), arrived: both("InDatagrams") + unread, unread }
    }
}

impl std::ops::Add for Udp {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            arrived: self.arrived + other.arrived,
            unread: self.unread + other.unread,
        }
    }
}

/// What a virtual cable's driver has counted at one end.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Cable {
    /// Frames that came in, all of which the program has seen.
    pub(crate) seen: u64,
    /// Frames that the program has dropped.
    pub(crate) dropped: u64,
    /// Frames that it has sent back or to another interface.
    pub(crate) forwarded: u64,
    /// Frames sent by the program that the other end had no room for.
    pub(crate) lost: u64,
    /// Frames sent by sockets that the other end had no room for.
    pub(crate) refused: u64,
}

impl Cable {
    pub(crate) fn of(namespace: &str, interface: &str) -> Self {
        let output = Command::new("ip")
            .args(["netns", "exec", namespace, "ethtool", "-S", interface])
            .output()
            .expect("ethtool");
        let text = String::from_utf8(output.stdout).expect("text");
        let sum = |ending: &str| -> u64 {
            let lines = text.lines().filter_map(|line| line.trim().split_once(": "));
            let values = lines.filter(|(name, _)| name.contains("queue") && name.ends_with(ending));
            values.map(|(_, value)| value.parse::<u64>().expect("a number")).sum()
        };
        let refused = run_in(namespace, {
            let interface = interface.to_owned();
            move || {
                let text = fs::read_to_string("/proc/thread-self/net/dev").expect("interfaces");
                let line = text.lines().find_map(|line| {
                    line.trim().strip_prefix(interface.as_str())?.strip_prefix(':')
                });
                let mut fields = line.expect("the interface").split_whitespace();
                // After eight fields of what was received: bytes, packets, errors, drops.
                fields.nth(11).and_then(|it| it.parse().ok()).expect("a number")
            }
        });
        Self {
            seen: sum("_xdp_packets"),
            dropped: sum("_xdp_drops"),
            forwarded: sum("_xdp_tx") + sum("_xdp_redirect"),
            lost: sum("_xdp_tx_errors") + sum("_xdp_xmit_errors"),
            refused,
        }
    }
}
