//! What loses frames, or keeps them from the program, on interfaces of some kinds.

use std::{collections::BTreeSet, fmt};

use super::super::{AttachedMode, link::Link};

/// Something about an interface that the program does not work well with.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Trap {
    /// The other end of a veth pair does not take in what the program sends back.
    NoProgramAtOtherEnd {
        /// The other end's name, in its own network namespace.
        other_end: String,
        /// It has another network namespace.
        is_elsewhere: bool,
    },
    /// The other end of a veth pair leaves checksums unfinished, which no hardware will finish.
    UnfinishedChecksums {
        /// The other end's name, in its own network namespace.
        other_end: String,
        /// It has another network namespace.
        is_elsewhere: bool,
    },
    /// Frames are merged before the program sees them.
    MergedFrames {
        /// What merges them, as `ethtool -K` takes it.
        feature: &'static str,
    },
    /// Tags of VLANs are taken off before the program sees the frame.
    StrippedTags {
        /// The VLAN's interface.
        vlan: String,
    },
    /// Frames for this host carry the MAC address of a bridge or bond.
    PortOf {
        /// The bridge or bond.
        master: String,
    },
    /// The program does not answer a request that it should.
    NotAnswered {
        /// What it does instead, as an XDP action.
        action: u32,
    },
    /// Frames the program sent for a trial never left.
    NeverLeft {
        /// How many were sent.
        sent: u64,
    },
}

impl Trap {
    /// Tells whether frames are lost that would not be without the program.
    #[must_use]
    pub fn is_lossy(&self) -> bool {
        match self {
            Self::NoProgramAtOtherEnd { .. } | Self::NeverLeft { .. } => true,
            Self::UnfinishedChecksums { .. }
            | Self::MergedFrames { .. }
            | Self::StrippedTags { .. }
            | Self::PortOf { .. }
            | Self::NotAnswered { .. } => false,
        }
    }

    /// Explains it, and what mends it on `interface`.
    #[must_use]
    pub fn explain<'a>(&'a self, interface: &'a str) -> impl fmt::Display + 'a {
        Explanation { trap: self, interface }
    }
}

struct Explanation<'a> {
    trap: &'a Trap,
    interface: &'a str,
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interface = self.interface;
        let there = |is_elsewhere| if is_elsewhere { ", in its network namespace" } else { "" };
        match self.trap {
            Trap::NoProgramAtOtherEnd { other_end, is_elsewhere } => write!(
                f,
                "what the program sends back by {interface} is lost or late, because {other_end}, the other \
                 end of the pair, has no XDP program in its driver; one that passes everything will do \
                 (`ip link set dev {other_end} xdpdrv obj PASS.o sec xdp`{}), and so will -xdp-mode generic \
                 here",
                there(*is_elsewhere)
            ),
            Trap::UnfinishedChecksums { other_end, is_elsewhere } => write!(
                f,
                "what {other_end}, the other end of {interface}, sends of its own carries half a checksum, \
                 for hardware to finish that is not there, and is left to userspace; \
                 `ethtool -K {other_end} tx off`{} has it finished",
                there(*is_elsewhere)
            ),
            Trap::MergedFrames { feature } => write!(
                f,
                "{interface} merges frames before the program sees them, which are then left to userspace; \
                 `ethtool -K {interface} {feature} off` ends that"
            ),
            Trap::StrippedTags { vlan } => write!(
                f,
                "the driver of {interface} takes the tag off frames of {vlan}, so that the program takes them \
                 for untagged ones and answers without; `ethtool -K {interface} rxvlan off` leaves it on"
            ),
            Trap::PortOf { master } => write!(
                f,
                "{interface} is a port of {master}, whose MAC address the frames for this host carry, so that \
                 all of them are left to userspace; use -xdp-interface {master} instead"
            ),
            Trap::NotAnswered { action } => write!(
                f,
                "the program does not answer a test request on {interface} (XDP action {action}), so that \
                 userspace has to; `xdpdump -i {interface} --rx-capture entry,exit` shows what becomes of \
                 others"
            ),
            Trap::NeverLeft { sent } => write!(
                f,
                "{sent} frames that the program sent back for a trial never left {interface}; the counters \
                 of `ethtool -S {interface}` say why, and -xdp-mode generic does without the driver"
            ),
        }
    }
}

/// What is to be known of an interface for [`traps`].
#[derive(Clone, Debug, Default)]
pub(super) struct Observed {
    /// The interface.
    pub(super) link: Link,
    /// What its driver does, by the kernel's names; empty where that is not known.
    pub(super) features: BTreeSet<String>,
    /// The other end of a veth pair, if it can be seen.
    pub(super) other_end: Option<OtherEnd>,
    /// The bridge or bond it is a port of.
    pub(super) master: Option<Link>,
    /// Names of the VLAN interfaces on it.
    pub(super) vlans: Vec<String>,
}

/// The other end of a veth pair.
#[derive(Clone, Debug, Default)]
pub(super) struct OtherEnd {
    pub(super) link: Link,
    pub(super) features: BTreeSet<String>,
    /// Its network namespace by number, if it is another one.
    pub(super) namespace: Option<i32>,
}

/// Finds what loses or withholds frames in this mode.
pub(super) fn traps(observed: &Observed, mode: AttachedMode) -> Vec<Trap> {
    let Observed { link, features, other_end, master, vlans } = observed;
    let is_on = |name: &str| features.contains(name);
    let is_native = mode == AttachedMode::Native;
    let mut traps = Vec::new();
    if let Some(OtherEnd { link: other, features, namespace }) = other_end {
        let (other_end, is_elsewhere) = (other.name.clone(), namespace.is_some());
        // A generic program does not have the driver take frames in.
        if is_native && !other.has_native_program {
            traps.push(Trap::NoProgramAtOtherEnd { other_end: other_end.clone(), is_elsewhere });
        }
        if CHECKSUMS.iter().any(|name| features.contains(*name)) {
            traps.push(Trap::UnfinishedChecksums { other_end, is_elsewhere });
        }
    }
    let merges = MERGES
        .iter()
        .filter(|(name, _, only_generic)| is_on(name) && !(*only_generic && is_native));
    traps.extend(merges.map(|&(_, feature, _)| Trap::MergedFrames { feature }));
    // Generic mode puts the tag back on whatever it sends back.
    if is_native && is_on("rx-vlan-hw-parse") {
        traps.extend(vlans.iter().cloned().map(|vlan| Trap::StrippedTags { vlan }));
    }
    if let Some(master) = master.as_ref().filter(|master| master.mac != link.mac) {
        traps.push(Trap::PortOf { master: master.name.clone() });
    }
    traps
}

/// The kernel's names of transmit checksum offloads.
const CHECKSUMS: [&str; 3] = ["tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6"];

/// What merges frames: the kernel's name, that of `ethtool -K`, and whether it happens between driver and
/// generic XDP only.
const MERGES: [(&str, &str, bool); 3] = [
    ("rx-lro", "lro", false),
    ("rx-gro-hw", "rx-gro-hw", false),
    ("rx-udp-gro-forwarding", "rx-udp-gro-forwarding", true),
];

#[cfg(test)]
mod tests {
    use super::*;

    const NATIVE: AttachedMode = AttachedMode::Native;
    const GENERIC: AttachedMode = AttachedMode::Generic;

    fn named(name: &str, mac: u8) -> Link {
        Link { name: name.to_owned(), mac: Some([2, 0, 0, 0, 0, mac]), ..Link::default() }
    }

    fn features(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn hardware(names: &[&str]) -> Observed {
        Observed { link: named("eth0", 1), features: features(names), ..Observed::default() }
    }

    fn veth(has_native_program: bool, names: &[&str]) -> Observed {
        let link = Link { has_native_program, ..named("peer0", 2) };
        let other_end = OtherEnd { link, features: features(names), namespace: Some(0) };
        Observed { other_end: Some(other_end), ..hardware(&[]) }
    }

    fn explained(observed: &Observed, mode: AttachedMode) -> Vec<String> {
        traps(observed, mode).iter().map(|trap| trap.explain("eth0").to_string()).collect()
    }

    fn one(observed: &Observed, mode: AttachedMode) -> String {
        let [text] = <[_; 1]>::try_from(explained(observed, mode)).expect("one trap");
        text
    }

    #[test]
    fn nothing_is_said_where_nothing_is_wrong() {
        let quiet = ["rx-gro", "rx-vlan-hw-parse", "tx-checksum-ip-generic", "rx-checksum"];
        for mode in [NATIVE, GENERIC] {
            assert!(explained(&hardware(&quiet), mode).is_empty());
            assert!(explained(&veth(true, &["rx-gro"]), mode).is_empty());
        }
    }

    #[test]
    fn an_other_end_without_a_program_loses_what_native_mode_sends() {
        let observed = veth(false, &[]);
        let text = one(&observed, NATIVE);
        assert!(text.contains("ip link set dev peer0 xdpdrv"), "{text}");
        assert!(text.contains("in its network namespace"), "{text}");
        assert!(traps(&observed, NATIVE)[0].is_lossy());
        assert!(explained(&observed, GENERIC).is_empty());
    }

    #[test]
    fn an_other_end_that_leaves_checksums_to_hardware_is_named_in_either_mode() {
        for name in CHECKSUMS {
            for mode in [NATIVE, GENERIC] {
                let text = one(&veth(true, &[name]), mode);
                assert!(text.contains("`ethtool -K peer0 tx off`"), "{text}");
            }
        }
    }

    #[test]
    fn what_merges_frames_is_named() {
        let text = one(&hardware(&["rx-lro"]), NATIVE);
        assert!(text.contains("`ethtool -K eth0 lro off`"), "{text}");
        let text = one(&hardware(&["rx-gro-hw"]), GENERIC);
        assert!(text.contains("`ethtool -K eth0 rx-gro-hw off`"), "{text}");
        let forwarding = hardware(&["rx-udp-gro-forwarding"]);
        assert!(explained(&forwarding, NATIVE).is_empty());
        assert_eq!(explained(&forwarding, GENERIC).len(), 1);
    }

    #[test]
    fn a_driver_that_strips_tags_matters_where_there_are_vlans() {
        let mut observed = hardware(&["rx-vlan-hw-parse"]);
        observed.vlans = vec!["eth0.42".to_owned()];
        let text = one(&observed, NATIVE);
        assert!(text.contains("eth0.42") && text.contains("rxvlan off"), "{text}");
        assert!(explained(&observed, GENERIC).is_empty());
        observed.features.clear();
        assert!(explained(&observed, NATIVE).is_empty());
    }

    #[test]
    fn a_port_matters_when_frames_carry_another_mac() {
        let mut observed = hardware(&[]);
        observed.master = Some(named("br0", 9));
        let text = one(&observed, NATIVE);
        assert!(text.contains("use -xdp-interface br0"), "{text}");
        observed.master = Some(named("br0", 1));
        assert!(explained(&observed, NATIVE).is_empty());
    }
}
