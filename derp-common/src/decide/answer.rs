//! STUN on a port where it is served.

use core::sync::atomic::AtomicU64;

use super::{Arrival, Host, Outcome, StunBucket, is_foreign, names_one_host};
use crate::{
    address::Family,
    cell,
    checksum::Sum,
    eth,
    frame::Frame,
    ip::Ip,
    packet::Packet,
    reason::Reason,
    settings::Switches,
    stun::{HEADER, request, response},
    udp::{self, Udp},
};

/// Answers a Binding request in place, if it is one.
#[inline(always)]
pub(super) fn answer<I: Ip, P: Packet, H: Host>(
    frame: &mut Frame<'_, P>,
    arrival: &Arrival<'_>,
    host: &H,
) -> Result<Outcome, Reason> {
    let &Arrival { udp, datagram, at, length, .. } = arrival;
    names_one_host(I::FAMILY, datagram)?;
    if length < HEADER {
        is_foreign(&datagram.source, host)?;
        return Err(Reason::NotStun);
    }
    frame.ensure(at + HEADER).ok_or(Reason::Malformed)?;
    let header = request::check_header::<{ request::KERNEL_MAX }, _>(frame, at, length);
    // An answer to a question of ours is for whoever has asked it.
    if header == Ok(()) && arrival.settings.has(Switches::SHED_STUN) {
        return Err(Reason::StunShed);
    }
    allow::<I, H>(arrival, header.is_ok(), host)?;
    header?;
    let refuse = |_| Err(Reason::UnknownAttribute);
    let message = request::check_body::<{ request::KERNEL_MAX }, { request::KERNEL_ATTRIBUTES }, _>(
        frame, at, length, refuse,
    )?;
    let addresses = datagram.source.sum(I::FAMILY).plus(datagram.destination.sum(I::FAMILY));
    let intact = match (udp.checksum, I::FAMILY) {
        (0, Family::Ipv4) => true,
        (0, Family::Ipv6 | Family::Unknown) => false,
        (stored, _) => addresses.plus(udp.sum()).plus(message).half(stored).is_intact(),
    };
    if !intact {
        return Err(Reason::InvalidUdpChecksum);
    }
    Ok(reply::<I, P>(frame, arrival, addresses).into())
}

/// Checks that the source is not this host, and if it is a `request`, that it is within its allowance.
///
/// Requests are counted before the costly checks: what is over the rate is to cost little.
#[inline(always)]
fn allow<I: Ip, H: Host>(arrival: &Arrival<'_>, request: bool, host: &H) -> Result<(), Reason> {
    let source = &arrival.datagram.source;
    let rate = arrival.settings.stun_rate;
    if rate.interval == 0 || !request {
        return is_foreign(source, host);
    }
    let (key, rest) = source.rate_key(I::FAMILY);
    let now = host.now();
    let Some(bucket) = host.stun_bucket(key) else {
        is_foreign(source, host)?;
        if let Some(full_at) = rate.take(0, now) {
            let full_at = AtomicU64::new(full_at);
            host.add_stun_bucket(key, StunBucket { full_at, foreign: AtomicU64::new(rest) });
        }
        return Ok(());
    };
    if cell::load(&bucket.foreign) != rest {
        is_foreign(source, host)?;
        cell::store(&bucket.foreign, rest);
    }
    if rate.take_from(&bucket.full_at, now) { Ok(()) } else { Err(Reason::StunOverRate) }
}

/// Turns a frame whose request was accepted into its answer.
#[inline(always)]
fn reply<I: Ip, P: Packet>(
    frame: &mut Frame<'_, P>,
    arrival: &Arrival<'_>,
    addresses: Sum,
) -> Reason {
    let frame_length = eth::LEN + I::LEN + udp::LEN + response::len(I::FAMILY);
    // The one step that can fail for want of room comes first: the frame is still untouched.
    if frame.resize(frame_length).is_none() {
        return Reason::NoTailroom;
    }
    match frame.ensure(frame_length).and_then(|()| rewrite::<I, P>(frame, arrival, addresses)) {
        Some(()) => Reason::StunAnswered,
        None => Reason::RewriteFailed,
    }
}

/// The sum of both `addresses` is the same after they are swapped.
#[inline(always)]
fn rewrite<I: Ip, P: Packet>(
    frame: &mut Frame<'_, P>,
    arrival: &Arrival<'_>,
    addresses: Sum,
) -> Option<()> {
    let &Arrival { udp, datagram, at, .. } = arrival;
    let length = (udp::LEN + response::len(I::FAMILY)) as u16;
    let message = response::write(frame, at, I::FAMILY, &datagram.source, udp.source)?;
    let mut answer = Udp { source: udp.destination, destination: udp.source, length, checksum: 0 };
    answer.checksum = addresses.plus(answer.sum()).plus(message).udp_checksum();
    answer.write(frame, at - udp::LEN)?;
    I::write_reply(frame, length)?;
    eth::swap(frame)
}
