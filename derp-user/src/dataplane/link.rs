//! What is asked of a network interface, read off the kernel's description of it.

use std::{collections::BTreeMap, io};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{
        InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
        LinkXdp, VlanProtocol, XdpAttached,
    },
};

use super::netlink::Netlink;

/// A network interface.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Link {
    /// Its index.
    pub(super) index: u32,
    /// Its name.
    pub(super) name: String,
    /// What kind of virtual interface it is, as `ip link` says it; empty for hardware.
    pub(super) kind: String,
    /// Its Ethernet address, unless it is no Ethernet interface.
    pub(super) mac: Option<[u8; 6]>,
    /// Longest IP packet, in bytes.
    pub(super) mtu: u32,
    /// Switched on, and connected.
    pub(super) is_up: bool,
    /// The loopback interface.
    pub(super) is_loopback: bool,
    /// Asks its neighbours for their addresses.
    pub(super) has_neighbours: bool,
    /// The bridge or bond it is a port of.
    pub(super) master: Option<u32>,
    /// The interface below it, or the other end of a pair.
    pub(super) lower: Option<u32>,
    /// The network namespace of `lower` by number, if it is another one.
    pub(super) lower_namespace: Option<i32>,
    /// The VLAN it stands for.
    pub(super) vlan: Option<Vlan>,
    /// An XDP program runs in its driver.
    pub(super) has_native_program: bool,
    /// Packets sent.
    pub(super) sent: u64,
}

/// What a VLAN interface stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Vlan {
    /// Its number.
    pub(super) id: u16,
    /// IEEE 802.1Q, not 802.1ad.
    pub(super) is_ordinary: bool,
}

impl Link {
    /// Reads the kernel's description.
    pub(super) fn new(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        let mut link = Self {
            index: message.header.index,
            is_up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
            is_loopback: flags.contains(LinkFlags::Loopback),
            has_neighbours: !flags.contains(LinkFlags::Noarp),
            ..Self::default()
        };
        for attribute in &message.attributes {
            link.add(attribute, is_ethernet);
        }
        link
    }

    fn add(&mut self, attribute: &LinkAttribute, is_ethernet: bool) {
        if let LinkAttribute::IfName(name) = attribute {
            self.name.clone_from(name);
        } else if let LinkAttribute::Address(bytes) = attribute {
            let mac = bytes.as_slice().try_into().ok();
            self.mac = mac.filter(|mac| is_ethernet && *mac != [0; 6]);
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            self.mtu = *mtu;
        } else if let LinkAttribute::Controller(index) = attribute {
            self.master = Some(*index);
        } else if let LinkAttribute::Link(index) = attribute {
            self.lower = Some(*index);
        } else if let LinkAttribute::LinkNetNsId(number) = attribute {
            self.lower_namespace = Some(*number);
        } else if let LinkAttribute::Stats64(statistics) = attribute {
            self.sent = statistics.tx_packets;
        } else if let LinkAttribute::Xdp(attributes) = attribute {
            self.has_native_program = attributes.iter().any(is_native);
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            infos.iter().for_each(|info| self.add_info(info));
        }
    }

    fn add_info(&mut self, info: &LinkInfo) {
        if let LinkInfo::Kind(kind) = info {
            self.kind = kind.to_string();
        } else if let LinkInfo::Data(InfoData::Vlan(vlan)) = info {
            let is_ordinary = !vlan.iter().any(|it| {
                matches!(it, InfoVlan::Protocol(protocol) if *protocol != VlanProtocol::Ieee8021Q)
            });
            let id = vlan.iter().find_map(|it| {
                let InfoVlan::Id(id) = it else { return None };
                Some(*id)
            });
            self.vlan = id.map(|id| Vlan { id, is_ordinary });
        }
    }
}

fn is_native(attribute: &LinkXdp) -> bool {
    let LinkXdp::Attached(how) = attribute else { return false };
    matches!(how, XdpAttached::Driver | XdpAttached::Hardware | XdpAttached::Multiple)
}

/// Returns every interface of the namespace, by index.
///
/// # Errors
///
/// What the kernel says.
pub(super) fn links(netlink: &mut Netlink) -> io::Result<BTreeMap<u32, Link>> {
    let messages = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let links = messages.iter().filter_map(read);
    Ok(links.map(|link| (link.index, link)).collect())
}

/// Returns one interface, of another network namespace if its number is given.
///
/// # Errors
///
/// What the kernel says.
pub(super) fn link(netlink: &mut Netlink, index: u32, namespace: Option<i32>) -> io::Result<Link> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.attributes.extend(namespace.map(LinkAttribute::IfNetnsId));
    let messages = netlink.ask(RouteNetlinkMessage::GetLink(request), 0)?;
    messages.iter().find_map(read).ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn read(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    Some(Link::new(message))
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::InfoKind;

    use super::*;

    fn message(kind: LinkLayerType, attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.link_layer_type = kind;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes = attributes;
        message
    }

    fn vlan(protocol: VlanProtocol) -> Link {
        Link::new(&message(
            LinkLayerType::Ether,
            vec![
                LinkAttribute::IfName("eth0.42".to_owned()),
                LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
                LinkAttribute::Mtu(1496),
                LinkAttribute::Link(3),
                LinkAttribute::LinkInfo(vec![
                    LinkInfo::Kind(InfoKind::Vlan),
                    LinkInfo::Data(InfoData::Vlan(vec![
                        InfoVlan::Id(42),
                        InfoVlan::Protocol(protocol),
                    ])),
                ]),
            ],
        ))
    }

    #[test]
    fn a_vlan_interface_is_read() {
        let link = vlan(VlanProtocol::Ieee8021Q);
        assert_eq!(link.vlan, Some(Vlan { id: 42, is_ordinary: true }));
        assert_eq!((link.index, link.lower, link.mtu), (7, Some(3), 1496));
        assert_eq!((link.kind.as_str(), link.is_up), ("vlan", true));
        assert_eq!(link.mac, Some([2, 0, 0, 0, 0, 1]));
        let outer = vlan(VlanProtocol::Ieee8021Ad);
        assert_eq!(outer.vlan, Some(Vlan { id: 42, is_ordinary: false }));
    }

    #[test]
    fn only_ethernet_has_a_mac() {
        let address = |bytes: &[u8]| vec![LinkAttribute::Address(bytes.to_vec())];
        let ipip = message(LinkLayerType::Tunnel, address(&[192, 0, 2, 1]));
        assert_eq!(Link::new(&ipip).mac, None);
        let zero = message(LinkLayerType::Ether, address(&[0; 6]));
        assert_eq!(Link::new(&zero).mac, None);
        let infiniband = message(LinkLayerType::Infiniband, address(&[1; 20]));
        assert_eq!(Link::new(&infiniband).mac, None);
    }

    #[test]
    fn a_generic_program_is_not_native() {
        for (how, expected) in [
            (XdpAttached::Driver, true),
            (XdpAttached::Multiple, true),
            (XdpAttached::SocketBuffer, false),
            (XdpAttached::None, false),
        ] {
            let attributes = vec![LinkAttribute::Xdp(vec![LinkXdp::Attached(how)])];
            let link = Link::new(&message(LinkLayerType::Ether, attributes));
            assert_eq!(link.has_native_program, expected, "{how:?}");
        }
    }

    #[test]
    fn the_loopback_interface_is_there() {
        let mut netlink = Netlink::route().expect("socket");
        let links = links(&mut netlink).expect("links");
        assert!(links[&1].is_loopback && links[&1].mac.is_none());
        assert_eq!(link(&mut netlink, 1, None).expect("loopback").name, links[&1].name);
    }
}
