//! What an interface's driver does with frames, over generic netlink (families `ethtool` and `netdev`).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NlasIterator};

use super::netlink::Netlink;

/// A question to one generic netlink family (`linux/genetlink.h`).
struct Question {
    family: u16,
    command: u8,
}

/// The family that knows the others: `CTRL_CMD_GETFAMILY`.
const FAMILY: Question = Question { family: 16, command: 3 };
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// `linux/ethtool_netlink.h`.
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;

/// `linux/netdev.h`.
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_BASIC: u64 = 1;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;

const NESTED: u16 = 1 << 15;
/// A netlink header and a generic one.
const GENERIC_HEADER: usize = 4;

/// Asks about the drivers of the interfaces in this thread's network namespace.
pub(super) struct Features {
    netlink: Netlink,
    families: BTreeMap<&'static str, u16>,
}

impl Features {
    /// Opens a socket.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::generic()?, families: BTreeMap::new() })
    }

    /// Returns the features of an interface that are on, by the names the kernel has for them, such as
    /// `rx-lro`. (`ethtool -k` has other names for some; `-K` takes either.)
    ///
    /// # Errors
    ///
    /// What the kernel says; it may have no such family.
    pub(super) fn active(&mut self, interface: u32) -> io::Result<BTreeSet<String>> {
        let family = self.family("ethtool")?;
        let index = attribute(ETHTOOL_A_HEADER_DEV_INDEX, &interface.to_ne_bytes());
        let header = attribute(ETHTOOL_A_FEATURES_HEADER | NESTED, &index);
        let question = Question { family, command: ETHTOOL_MSG_FEATURES_GET };
        Ok(active(&self.ask(&question, &header)?))
    }

    /// Tells whether frames that came in by other interfaces can be sent out by this one.
    ///
    /// # Errors
    ///
    /// What the kernel says; before Linux 6.3 it does not tell.
    pub(super) fn is_redirect_target(&mut self, interface: u32) -> io::Result<bool> {
        Ok(self.xdp(interface)? & NETDEV_XDP_ACT_NDO_XMIT != 0)
    }

    /// Tells whether programs can be attached in the driver.
    ///
    /// # Errors
    ///
    /// As [`Self::is_redirect_target`].
    pub(super) fn has_native_xdp(&mut self, interface: u32) -> io::Result<bool> {
        Ok(self.xdp(interface)? & NETDEV_XDP_ACT_BASIC != 0)
    }

    /// Returns what the driver can do for XDP.
    fn xdp(&mut self, interface: u32) -> io::Result<u64> {
        let family = self.family("netdev")?;
        let index = attribute(NETDEV_A_DEV_IFINDEX, &interface.to_ne_bytes());
        let reply = self.ask(&Question { family, command: NETDEV_CMD_DEV_GET }, &index)?;
        let bytes = find(&reply, NETDEV_A_DEV_XDP_FEATURES).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_ne_bytes).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    fn family(&mut self, name: &'static str) -> io::Result<u16> {
        if let Some(&family) = self.families.get(name) {
            return Ok(family);
        }
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        let reply = self.ask(&FAMILY, &attribute(CTRL_ATTR_FAMILY_NAME, &text))?;
        let bytes = find(&reply, CTRL_ATTR_FAMILY_ID).and_then(|bytes| bytes.try_into().ok());
        let family = bytes.map(u16::from_ne_bytes).ok_or(io::ErrorKind::Unsupported)?;
        self.families.insert(name, family);
        Ok(family)
    }

    /// Returns the attributes of the answer.
    fn ask(&mut self, question: &Question, attributes: &[u8]) -> io::Result<Vec<u8>> {
        let length = 16 + GENERIC_HEADER + attributes.len();
        let length = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut request = Vec::from(length.to_ne_bytes());
        request.extend(question.family.to_ne_bytes());
        request.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        // Sequence number and port are the socket's business.
        request.extend([0; 8]);
        request.extend([question.command, 1, 0, 0]);
        request.extend(attributes);
        let replies = self.netlink.exchange(request)?;
        let payload = replies.first().map(|reply| reply.payload()).unwrap_or_default();
        Ok(payload.get(GENERIC_HEADER..).unwrap_or_default().to_vec())
    }
}

/// Reads the names out of an answer about features.
fn active(reply: &[u8]) -> BTreeSet<String> {
    let bits = find(reply, ETHTOOL_A_FEATURES_ACTIVE)
        .and_then(|bitset| find(bitset, ETHTOOL_A_BITSET_BITS))
        .unwrap_or_default();
    let name = |bit: &[u8]| {
        let name = find(bit, ETHTOOL_A_BITSET_BIT_NAME)?;
        let name = name.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(name).into_owned())
    };
    each(bits).filter_map(|(_, bit)| name(bit)).collect()
}

/// Returns the value of the first attribute of a kind.
fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    each(attributes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Returns attributes, each by kind and value, up to the first that is malformed.
fn each(attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(attributes).map_while(|attribute| {
        let attribute = attribute.ok()?;
        let length = attribute.value_length();
        // The buffer goes on to the end of all attributes.
        Some((attribute.kind(), attribute.into_inner().get(4..4 + length)?))
    })
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = Vec::from(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_features_are_found_in_their_nests() {
        let bit = |name: &[u8]| {
            let inner = [attribute(1, &[3, 0, 0, 0]), attribute(ETHTOOL_A_BITSET_BIT_NAME, name)];
            attribute(1 | NESTED, &inner.concat())
        };
        let bits = [bit(b"rx-lro\0"), bit(b"rx-gro\0")].concat();
        let size = attribute(2, &[64, 0, 0, 0]);
        let bitset = [size, attribute(ETHTOOL_A_BITSET_BITS | NESTED, &bits)].concat();
        let other = attribute(5 | NESTED, &attribute(2, &[64, 0, 0, 0]));
        let reply = [other, attribute(ETHTOOL_A_FEATURES_ACTIVE | NESTED, &bitset)].concat();
        let expected = ["rx-gro", "rx-lro"].map(str::to_owned);
        assert_eq!(active(&reply).into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_cut_short_is_harmless() {
        let whole = attribute(ETHTOOL_A_FEATURES_ACTIVE, &attribute(3, &[1, 2, 3, 4]));
        for length in 0..whole.len() {
            assert!(active(&whole[..length]).is_empty());
        }
        assert!(active(&[0; 64]).is_empty());
    }

    #[test]
    fn the_loopback_interface_is_asked() {
        let mut features = Features::open().expect("socket");
        match features.active(1) {
            Ok(active) => assert!(active.contains("loopback"), "{active:?}"),
            // A kernel without ETHTOOL_NETLINK.
            Err(error) => println!("skipped: ethtool over netlink: {error}"),
        }
        match features.is_redirect_target(1) {
            Ok(is_target) => assert!(!is_target),
            Err(error) => println!("skipped: XDP features of drivers: {error}"),
        }
        assert!(features.active(0x7fff_fff0).is_err());
    }
}
