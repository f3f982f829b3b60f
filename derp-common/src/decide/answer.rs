//! STUN on a port where it is served.

use super::{Arrival, Host, Outcome, StunBuckets, check_source};
use crate::{
    address::{Family, OwnPlaces},
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
    own: OwnPlaces,
    host: &H,
) -> Result<Outcome, Reason> {
    let &Arrival { udp, datagram, at, length, .. } = arrival;
    check_source(I::FAMILY, datagram, own, host)?;
    let is_usual = length == request::USUAL_LENGTH && is_usual(frame, at)?;
    if !is_usual {
        if length < HEADER {
            return Err(Reason::NotStun);
        }
        frame.ensure(at + HEADER).ok_or(Reason::Malformed)?;
        request::check_header::<{ request::KERNEL_MAX }, _>(frame, at, length)?;
    }
    allow::<I, H>(arrival, host)?;
    let message = if is_usual {
        frame.ensure(at + request::USUAL_LENGTH).ok_or(Reason::Malformed)?;
        request::check_usual(frame, at)?
    } else {
        let refuse = |_| Err(Reason::UnknownAttribute);
        request::check_body::<{ request::KERNEL_MAX }, { request::KERNEL_ATTRIBUTES }, _>(
            frame, at, length, refuse,
        )?
    };
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

#[inline(always)]
fn is_usual<P: Packet>(frame: &mut Frame<'_, P>, at: usize) -> Result<bool, Reason> {
    frame.ensure(at + request::USUAL_LENGTH).ok_or(Reason::Malformed)?;
    Ok(request::is_usual(frame, at))
}

/// Checks that a request may be answered now, before the costly checks: what is over the rate is to cost
/// little. (An answer to a question of ours, which is no request, is for whoever has asked it.)
#[inline(always)]
fn allow<I: Ip, H: Host>(arrival: &Arrival<'_>, host: &H) -> Result<(), Reason> {
    let Arrival { settings, datagram, .. } = arrival;
    if settings.has(Switches::SHED_STUN) {
        return Err(Reason::StunShed);
    }
    if settings.stun_rate.interval == 0 {
        return Ok(());
    }
    let key = datagram.source.rate_key(I::FAMILY);
    let buckets = host.stun_buckets(StunBuckets::index(key, settings.stun_mask));
    // Without a bucket, a source is answered.
    if buckets.is_none_or(|it| it.take(key, settings.stun_rate, host.now())) {
        Ok(())
    } else {
        Err(Reason::StunOverRate)
    }
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
