//! From a frame to what is done with it, the same in the kernel and on the host.

use crate::{
    address::{Address, AddressKind, Family},
    checksum::Sum,
    eth,
    ip::{Ip, Ipv4, Ipv6},
    packet::Packet,
    reason::Reason,
    settings::{Interface, Services, Settings},
    stun::{request, response},
    udp::{self, Udp},
};

/// What a decision needs to know of the machine it is taken on: in the kernel, the maps.
pub trait Host {
    /// Returns the daemon's settings.
    fn settings(&self) -> Option<&Settings>;

    /// Returns the interface the frame came in by.
    fn interface(&self) -> Option<&Interface>;

    /// Returns what this address is to this host ([`AddressKind`]); `None` for others' addresses.
    fn address_kind(&self, address: &Address) -> Option<u32>;
}

/// What became of a frame. The verdict follows from the reason.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decision {
    /// The frame's IP version.
    pub family: Family,
    /// What was found.
    pub reason: Reason,
}

/// Answers the frame in place if it is a STUN Binding request to this host, and says what it was.
///
/// Nothing is written unless the verdict is to transmit, or to abort.
#[inline(always)]
pub fn answer<P: Packet, H: Host>(packet: &mut P, host: &H) -> Decision {
    match eth::ethertype(packet) {
        Some(eth::IPV4) => answer_ip::<Ipv4, P, H>(packet, host),
        Some(eth::IPV6) => answer_ip::<Ipv6, P, H>(packet, host),
        Some(_) => Decision { family: Family::Unknown, reason: Reason::NotIp },
        None => Decision { family: Family::Unknown, reason: Reason::Malformed },
    }
}

#[inline(always)]
fn answer_ip<I: Ip, P: Packet, H: Host>(packet: &mut P, host: &H) -> Decision {
    let reason = match inspect::<I, P, H>(packet, host) {
        Ok(request) => reply::<I, P>(packet, &request),
        Err(reason) => reason,
    };
    Decision { family: I::FAMILY, reason }
}

/// What of a request the answer is made from.
struct Request {
    source: Address,
    udp: Udp,
    /// Sum of both addresses, which swapping them does not change.
    addresses: Sum,
}

/// Finds out, without writing, whether the frame is a request to answer.
///
/// What most frames fail comes first: unrelated traffic costs a few comparisons.
#[inline(always)]
fn inspect<I: Ip, P: Packet, H: Host>(packet: &P, host: &H) -> Result<Request, Reason> {
    let udp_length = I::udp_length(packet)?;
    let udp_at = eth::LEN + I::LEN;
    let udp = Udp::read(packet, udp_at).ok_or(Reason::Malformed)?;
    let settings = host.settings().ok_or(Reason::Unconfigured)?;
    if settings.version != Settings::VERSION {
        return Err(Reason::Unconfigured);
    }
    if settings.services(udp.destination) & Services::STUN == 0 {
        return Err(Reason::OtherPort);
    }
    // Also refuses the merged frames that generic XDP sees behind GRO, and trailing bytes.
    if packet.len() != udp_at + udp_length || usize::from(udp.length) != udp_length {
        return Err(Reason::LengthMismatch);
    }
    I::check(packet)?;

    let interface = host.interface().ok_or(Reason::ForeignMac)?;
    if !eth::is_for(packet, interface).ok_or(Reason::Malformed)? {
        return Err(Reason::ForeignMac);
    }
    let (source, destination) = I::addresses(packet).ok_or(Reason::Malformed)?;
    if host.address_kind(&destination) != Some(AddressKind::Unicast as u32) {
        return Err(Reason::NotLocal);
    }
    let usable = udp.source != 0 && source.is_usable_source(I::FAMILY);
    if !usable || host.address_kind(&source).is_some() {
        return Err(Reason::UnusableSource);
    }

    let message_at = udp_at + udp::LEN;
    let length = udp_length.checked_sub(udp::LEN).ok_or(Reason::NotStun)?;
    let refuse = |_| Err(Reason::UnknownAttribute);
    let message = request::check::<{ request::KERNEL_MAX }, { request::KERNEL_ATTRIBUTES }, P>(
        packet, message_at, length, refuse,
    )?;
    let addresses = source.sum(I::FAMILY).plus(destination.sum(I::FAMILY));
    let intact = match (udp.checksum, I::FAMILY) {
        (0, Family::Ipv4) => true,
        (0, Family::Ipv6 | Family::Unknown) => false,
        (stored, _) => addresses.plus(udp.sum()).plus(message).half(stored).is_intact(),
    };
    if !intact {
        return Err(Reason::InvalidUdpChecksum);
    }
    Ok(Request { source, udp, addresses })
}

/// Turns a frame that [`inspect`] accepted into its answer.
#[inline(always)]
fn reply<I: Ip, P: Packet>(packet: &mut P, request: &Request) -> Reason {
    let frame_length = eth::LEN + I::LEN + udp::LEN + response::len(I::FAMILY);
    // The one step that can fail for want of room comes first: the frame is still untouched.
    if packet.resize(frame_length).is_none() {
        return Reason::NoTailroom;
    }
    match rewrite::<I, P>(packet, request) {
        Some(()) => Reason::StunAnswered,
        None => Reason::RewriteFailed,
    }
}

#[inline(always)]
fn rewrite<I: Ip, P: Packet>(packet: &mut P, request: &Request) -> Option<()> {
    let udp_at = eth::LEN + I::LEN;
    let length = (udp::LEN + response::len(I::FAMILY)) as u16;
    let source_port = request.udp.source;
    let message =
        response::write(packet, udp_at + udp::LEN, I::FAMILY, &request.source, source_port)?;
    let mut udp =
        Udp { source: request.udp.destination, destination: source_port, length, checksum: 0 };
    udp.checksum = request.addresses.plus(udp.sum()).plus(message).udp_checksum();
    udp.write(packet, udp_at)?;
    I::write_reply(packet, length)?;
    eth::swap(packet)
}
