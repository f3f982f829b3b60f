//! How packets leave for the far end of a leg.

use std::net::{IpAddr, SocketAddr};

use derp_common::flow::Side;

use super::FlowId;

/// The layer-2 way to one remote address: what a frame to it needs besides the flow itself.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Resolved {
    /// Index of the interface that leads there, never 0.
    pub interface: u32,
    /// MAC address of that interface.
    pub source_mac: [u8; 6],
    /// MAC address of the next hop.
    pub destination_mac: [u8; 6],
    /// Longest IP packet on the way, in bytes.
    pub mtu: u16,
    /// VLAN of the way as a number, 0 when it is untagged.
    pub vlan: u16,
    /// The address of this host that packets leave from, of the remote address's family.
    pub local: IpAddr,
}

/// A leg whose way is to be found; the answer goes to [`FlowTable::set_way`](super::FlowTable::set_way), now
/// and whenever routes or neighbours change it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WayRequest {
    /// The flow.
    pub flow: FlowId,
    /// Which of its ends.
    pub side: Side,
    /// The address of this host that packets are to leave from; `None` leaves it to routing.
    pub local: Option<IpAddr>,
    /// Where they are to go. `None` while that is not known, or is this host: earlier requests for this leg
    /// are void, and no answer is expected.
    pub remote: Option<SocketAddr>,
}
