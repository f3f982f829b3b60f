//! Packets of flows.

use super::{Arrival, Host, Outcome, check_mac};
use crate::{
    address::Family,
    checksum, eth,
    flow::{Hop, Side, table::statistics_index},
    frame::Frame,
    ip::{Change, Ip},
    packet::Packet,
    reason::Reason,
    settings::Switches,
    udp::{self, Udp},
};

/// Forwards a packet to the other end of its flow, in place, if it may and can go there.
///
/// Neither address is looked up: they are the leg's, and the daemon has seen to it that one is this host's
/// and the other is not.
#[inline(always)]
pub(super) fn forward<I: Ip, P: Packet, H: Host>(
    frame: &mut Frame<'_, P>,
    arrival: &Arrival<'_>,
    hop: &Hop<'_>,
    host: &H,
) -> Result<Outcome, Reason> {
    let ingress = host.ingress();
    let (from, to) = (hop.from, hop.to);
    // The way back to the sender commonly is the way it came, and then its MAC is at hand.
    let known = from.interface == ingress && eth::is_for(frame, from.source_mac) == Some(true);
    if !known {
        check_mac(frame, host)?;
    }
    check_way::<I, P>(frame, arrival, hop)?;
    let egress = to.interface;
    if egress != ingress && host.interface(egress).is_none_or(|it| it.is_redirect_target == 0) {
        return Err(Reason::Unresolved);
    }
    let now = host.now();
    if arrival.settings.has(Switches::COMPANION) {
        check_companion(arrival, hop, host, now)?;
    }
    let cells = host.statistics(statistics_index(hop.slot, hop.side)).ok_or(Reason::Unresolved)?;
    cells.account(from, arrival.settings, arrival.length, now)?;
    Ok(match rewrite::<I, P>(frame, arrival, hop) {
        None => Reason::RewriteFailed.into(),
        Some(()) if egress == ingress => Reason::Forwarded.into(),
        Some(()) => Outcome { reason: Reason::Redirected, interface: egress },
    })
}

/// Checks that the packet can go on as it is.
#[inline(always)]
fn check_way<I: Ip, P: Packet>(
    frame: &Frame<'_, P>,
    arrival: &Arrival<'_>,
    hop: &Hop<'_>,
) -> Result<(), Reason> {
    let Arrival { udp, datagram, length, .. } = arrival;
    let to = hop.to;
    let addresses = datagram.source.sum(I::FAMILY).plus(datagram.destination.sum(I::FAMILY));
    // The rest of the checksum is for the other end to verify; it goes there as wrong as it came.
    let is_unfit = udp.checksum == 0 && I::FAMILY == Family::Ipv6 || udp.is_partial(addresses);
    if is_unfit {
        return Err(Reason::InvalidUdpChecksum);
    }
    if I::hop_limit(frame).ok_or(Reason::Malformed)? <= 1 {
        return Err(Reason::HopLimit);
    }
    if to.interface == 0 {
        return Err(Reason::Unresolved);
    }
    if to.remote.family() != I::FAMILY || to.local.family() != I::FAMILY {
        return Err(Reason::CrossFamily);
    }
    if I::LEN + udp::LEN + length > usize::from(to.mtu) {
        return Err(Reason::TooBig);
    }
    match frame.can_carry(to.vlan) {
        Some(true) => Ok(()),
        Some(false) => Err(Reason::Vlan),
        None => Err(Reason::Malformed),
    }
}

/// Checks that the process that owns the relay's socket would still forward by the same flow.
#[inline(always)]
fn check_companion<H: Host>(
    arrival: &Arrival<'_>,
    hop: &Hop<'_>,
    host: &H,
    now: u64,
) -> Result<(), Reason> {
    if now >= arrival.settings.lease {
        return Err(Reason::Lapsed);
    }
    match host.statistics(statistics_index(hop.slot, Side::A)) {
        Some(cells) if !cells.is_suspect() => Ok(()),
        Some(_) | None => Err(Reason::Suspect),
    }
}

#[inline(always)]
fn rewrite<I: Ip, P: Packet>(
    frame: &mut Frame<'_, P>,
    arrival: &Arrival<'_>,
    hop: &Hop<'_>,
) -> Option<()> {
    let Arrival { udp, datagram, at, .. } = arrival;
    let to = hop.to;
    let change = Change {
        source: &to.local,
        destination: &to.remote,
        removed: datagram.source.sum(I::FAMILY).plus(datagram.destination.sum(I::FAMILY)),
        added: to.local.sum(I::FAMILY).plus(to.remote.sum(I::FAMILY)),
    };
    let forwarded = Udp {
        source: to.local_port,
        destination: to.remote_port,
        length: udp.length,
        checksum: checksum::update_udp(
            udp.checksum,
            change.removed.half(udp.source).half(udp.destination),
            change.added.half(to.local_port).half(to.remote_port),
        ),
    };
    forwarded.write(frame, at - udp::LEN)?;
    I::write_forwarded(frame, &change)?;
    frame.set_vlan(to.vlan)?;
    eth::write(frame, to.destination_mac, to.source_mac)
}
