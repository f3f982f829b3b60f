//! What a flow must be to be admitted.

use std::net::{IpAddr, SocketAddr};

use derp_common::flow::Side;

use super::{FlowSpec, Kind, Remote, slots::MAX_VNI, state::canonical};

/// Most networks that one end may be learnt from.
const MAX_NETWORKS: usize = 64;
/// Most bytes of a flow's name.
const MAX_NAME: usize = 64;

/// Why a flow, or a new address for one of its ends, is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AdmitError {
    /// The name is too long for a page or a log line.
    #[error("the name has more than {MAX_NAME} bytes")]
    Name,
    /// Such a VNI does not exist.
    #[error("the VNI {0} is not between 1 and {MAX_VNI}")]
    Vni(u32),
    /// Another flow has the place in the tables that this VNI stands for.
    #[error(
        "the VNI {vni} needs a slot that the flow {by:?} has (VNIs whose remainders by {slots} are equal exclude each other)"
    )]
    SlotTaken {
        /// The VNI asked for.
        vni: u32,
        /// How many slots there are.
        slots: u32,
        /// The flow in the way.
        by: String,
    },
    /// Every slot is taken.
    #[error("all {slots} slots are taken")]
    Full {
        /// How many there are.
        slots: u32,
    },
    /// No packet can come from or go to this address.
    #[error("the remote address {address} {fault}")]
    Remote {
        /// The address.
        address: SocketAddr,
        /// What is wrong with it, as the end of a sentence.
        fault: &'static str,
    },
    /// Nothing can arrive at this local address.
    #[error("the local address {address} {fault}")]
    Local {
        /// The address.
        address: SocketAddr,
        /// What is wrong with it, as the end of a sentence.
        fault: &'static str,
    },
    /// An end may be learnt from more networks than are looked through.
    #[error("an end may be learnt from at most {MAX_NETWORKS} networks")]
    Networks,
    /// The ends of such a flow are not learnt from data.
    #[error("the ends of a WireGuard flow are not learnt from its data")]
    Learn,
    /// Both ends are the same, so that nobody could tell which of them has sent a packet.
    #[error("both ends are {0}")]
    SameEnds(SocketAddr),
    /// Packets from this address to this port already belong to another flow.
    #[error("packets from {source_address} to port {port} belong to the flow {by:?}")]
    SourceTaken {
        /// The remote address.
        source_address: SocketAddr,
        /// The port of ours.
        port: u16,
        /// The other flow.
        by: String,
    },
    /// The flow has been removed.
    #[error("there is no such flow any more")]
    NoSuchFlow,
}

/// Checks everything that can be said about a flow without looking at others.
pub(super) fn check(spec: &FlowSpec) -> Result<(), AdmitError> {
    if spec.name.len() > MAX_NAME {
        return Err(AdmitError::Name);
    }
    if let Kind::Geneve { vni: Some(vni) } = spec.kind
        && !(1..=MAX_VNI).contains(&vni)
    {
        return Err(AdmitError::Vni(vni));
    }
    for end in &spec.ends {
        if end.local.port == 0 {
            let ip = end.local.ip.unwrap_or(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED));
            let address = SocketAddr::new(ip, 0);
            return Err(AdmitError::Local { address, fault: "has port 0" });
        }
        if let Some(ip) = end.local.ip {
            let address = SocketAddr::new(ip, end.local.port);
            check_address(address).map_err(|fault| AdmitError::Local { address, fault })?;
        }
        match &end.remote {
            Remote::Fixed(remote) => check_remote(*remote, end.local.ip)?,
            Remote::Learn(networks) if networks.len() > MAX_NETWORKS => {
                return Err(AdmitError::Networks);
            }
            Remote::Learn(_) => {}
        }
    }
    if let Kind::WireGuard { .. } = spec.kind
        && spec.ends.iter().any(|end| matches!(end.remote, Remote::Learn(_)))
    {
        return Err(AdmitError::Learn);
    }
    let [a, b] = &spec.ends;
    if let (Remote::Fixed(a), Remote::Fixed(b)) = (&a.remote, &b.remote) {
        check_ends(spec, *a, *b)?;
    }
    Ok(())
}

/// Checks a remote address beside the local address it is to be used with.
pub(super) fn check_remote(remote: SocketAddr, local: Option<IpAddr>) -> Result<(), AdmitError> {
    let fault = match check_address(remote) {
        Err(fault) => fault,
        Ok(()) if local.is_some_and(|local| !same_family(local, remote.ip())) => {
            "is not of the local address's family"
        }
        Ok(()) => return Ok(()),
    };
    Err(AdmitError::Remote { address: remote, fault })
}

/// Checks that packets from the two ends can be told apart.
pub(super) fn check_ends(spec: &FlowSpec, a: SocketAddr, b: SocketAddr) -> Result<(), AdmitError> {
    let port = |side| spec.end(side).local.port;
    let by_port = spec.kind == Kind::Any && port(Side::A) != port(Side::B);
    if canonical(a) == canonical(b) && !by_port {
        return Err(AdmitError::SameEnds(canonical(a)));
    }
    Ok(())
}

/// Says why packets can neither come from nor go to `address`, if so.
pub(crate) fn check_address(address: SocketAddr) -> Result<(), &'static str> {
    let ip = address.ip().to_canonical();
    if address.port() == 0 {
        return Err("has port 0");
    }
    let (is_broadcast, is_link_local) = match ip {
        IpAddr::V4(ip) => (ip.is_broadcast(), false),
        IpAddr::V6(ip) => (false, ip.is_unicast_link_local()),
    };
    if ip.is_unspecified() || ip.is_multicast() || is_broadcast {
        return Err("is not the address of one host");
    }
    if is_link_local {
        return Err("is link-local, which says nothing without an interface");
    }
    Ok(())
}

pub(super) fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.to_canonical().is_ipv4() == b.to_canonical().is_ipv4()
}
