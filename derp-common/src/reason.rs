//! The one list of what can become of a packet: counter index, metric label and log word.

/// What is done with a packet.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u32)]
pub enum Verdict {
    /// Handed to the network stack, untouched.
    Pass,
    /// Thrown away.
    Drop,
    /// Sent back out of the interface it came in by.
    Transmit,
    /// Sent out of another interface.
    Redirect,
    /// Thrown away because the rewrite broke off half way; a fault of ours.
    Aborted,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 5] =
        [Self::Pass, Self::Drop, Self::Transmit, Self::Redirect, Self::Aborted];

    /// Returns the metric label, the values of `xdp_outcome`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Transmit => "tx",
            Self::Redirect => "redirect",
            Self::Aborted => "aborted",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $help:literal])+ $reason:ident = $label:literal => $verdict:ident,)+) => {
        /// Why a packet got its verdict. The discriminant is the index of the kernel's counter.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $help])+ $reason,)+
        }

        impl Reason {
            /// Every reason, in index order.
            pub const ALL: &[Self] = &[$(Self::$reason),+];

            /// Returns the metric label and log word, the values of `prog_end`.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$reason => $label,)+ }
            }

            /// Returns one line of help.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$reason => concat!($($help),+),)+ }
            }

            /// Returns what is done with a packet for this reason.
            #[inline(always)]
            #[must_use]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$reason => Verdict::$verdict,)+ }
            }
        }
    };
}

reasons! {
    /// Neither IPv4 nor IPv6 straight after an untagged Ethernet II header
    NotIp = "not_ip" => Pass,
    /// The frame ends inside the headers, or the IP version contradicts the EtherType
    Malformed = "malformed" => Pass,
    /// IPv4 with options
    Ipv4Options = "ipv4_options" => Pass,
    /// An IPv4 fragment
    Fragment = "fragment" => Pass,
    /// Another protocol than UDP, or an IPv6 extension header
    NotUdp = "not_udp" => Pass,
    /// The daemon has not written its settings, or they are of another version
    Unconfigured = "unconfigured" => Pass,
    /// UDP to a port that is not served here
    OtherPort = "not_stun_port" => Pass,
    /// IP or UDP length differs from the bytes present
    LengthMismatch = "length_mismatch" => Pass,
    /// The IPv4 header checksum is wrong
    InvalidIpChecksum = "invalid_ip_csum" => Pass,
    /// The destination MAC address is not this interface's
    ForeignMac = "foreign_mac" => Pass,
    /// The destination address is not a unicast address of this host
    NotLocal = "not_local" => Pass,
    /// The source is port 0, an address of this host, or no single host's address
    UnusableSource = "unusable_source" => Pass,
    /// The UDP checksum is wrong, or absent in IPv6
    InvalidUdpChecksum = "invalid_udp_csum" => Pass,
    /// On the STUN port, but no STUN message
    NotStun = "not_stun" => Pass,
    /// A STUN message other than a Binding request
    NotBindingRequest = "not_binding_request" => Pass,
    /// The STUN length or an attribute does not fit the message
    InvalidStunLength = "invalid_stun_length" => Pass,
    /// A longer STUN message than is answered here
    StunTooLong = "stun_too_long" => Pass,
    /// A comprehension-required attribute that is not known
    UnknownAttribute = "unknown_attribute" => Pass,
    /// FINGERPRINT is wrong or not the last attribute
    InvalidFingerprint = "invalid_fingerprint" => Pass,
    /// The frame cannot grow to hold the answer
    NoTailroom = "no_tailroom" => Pass,
    /// A Binding request, answered
    StunAnswered = "stun_answered" => Transmit,
    /// STUN is switched off to shed load
    StunShed = "stun_shed" => Drop,
    /// The source has used up its allowance of STUN answers
    StunOverRate = "stun_over_rate" => Drop,
    /// A frame with a VLAN tag, which is not looked into or leads out of another VLAN
    Vlan = "vlan" => Pass,
    /// On a relay port, but too short for what is relayed there
    ShortPayload = "short_payload" => Drop,
    /// On a relay port, but of no shape that is relayed there
    NotRelayed = "not_relayed" => Pass,
    /// A Geneve header that is not one of a relayed packet
    UnusualGeneve = "unusual_geneve" => Pass,
    /// A control packet of a relay handshake
    RelayControl = "relay_control" => Pass,
    /// A control packet of a relay handshake, of the wrong length or without the magic
    InvalidRelayControl = "invalid_relay_control" => Drop,
    /// A control packet by nobody who is an end of the flow
    UnknownSender = "unknown_sender" => Drop,
    /// The flow's end has used up its allowance of control packets
    ControlOverRate = "control_over_rate" => Drop,
    /// No flow has this VNI
    UnknownVni = "unknown_vni" => Drop,
    /// The flow has this VNI, but not this source
    UnknownLeg = "unknown_leg" => Drop,
    /// One end of the flow has not been seen
    Unbound = "unbound" => Drop,
    /// The same, or not this source, while an end of the flow is being bound
    Binding = "binding" => Pass,
    /// The flow has this VNI, and learns one of its ends from a packet
    Learning = "learning" => Pass,
    /// A flow's packet to another address of this host than the flow's
    OtherLocal = "other_local" => Pass,
    /// No flow has this source
    UnknownSource = "unknown_source" => Pass,
    /// A message of a WireGuard handshake
    WireGuardHandshake = "wireguard_handshake" => Pass,
    /// On a WireGuard port, of one of its types, but not of that type's length
    InvalidWireGuard = "invalid_wireguard" => Drop,
    /// The TTL or hop limit is used up
    HopLimit = "hop_limit" => Pass,
    /// The way to the other end is not known
    Unresolved = "unresolved" => Pass,
    /// The ends are of different address families
    CrossFamily = "cross_family" => Pass,
    /// Longer than the way out allows
    TooBig = "too_big" => Pass,
    /// The other process may be moving this end of the flow
    Suspect = "suspect" => Pass,
    /// The other process has not been heard of for too long
    Lapsed = "lapsed" => Pass,
    /// Due to be seen by userspace as a sample of its flow
    Sampled = "sampled" => Pass,
    /// The flow's end has used up its allowance
    OverRate = "over_rate" => Drop,
    /// Forwarded to the other end of its flow
    Forwarded = "forwarded" => Transmit,
    /// Forwarded to the other end of its flow by another interface
    Redirected = "redirected" => Redirect,
    /// The rewrite broke off half way
    RewriteFailed = "rewrite_failed" => Aborted,
}

impl Reason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn index_label_and_help_are_consistent() {
        let labels: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), Reason::COUNT, "labels are unique");
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{reason:?}");
            let label = reason.label();
            assert!(
                label.bytes().all(|b| b == b'_' || b.is_ascii_lowercase() || b.is_ascii_digit()),
                "{label}"
            );
            let help = reason.help().trim();
            assert!(!help.is_empty() && !help.ends_with('.') && !help.contains('\n'), "{help}");
        }
    }

    #[test]
    fn the_manual_lists_every_reason() {
        let manual = include_str!("../../docs/DATAPLANE.md");
        for reason in Reason::ALL {
            let (label, verdict, help) = (reason.label(), reason.verdict().label(), reason.help());
            let row = format!("| `{label}` | {verdict} | {} |", help.trim());
            assert!(manual.contains(&row), "{row}");
        }
    }

    #[test]
    fn every_verdict_has_a_reason() {
        for verdict in Verdict::ALL {
            assert!(Reason::ALL.iter().any(|reason| reason.verdict() == verdict), "{verdict:?}");
        }
    }
}
