//! From a frame to what is done with it, the same in the kernel and on the host.
//!
//! What most frames fail comes first: unrelated traffic costs a few comparisons. A frame is written to
//! only when everything about it is decided, so what is passed up the stack is untouched.

mod answer;
mod buckets;
mod forward;
mod host;

pub use self::{
    buckets::StunBuckets,
    host::{EVENT_RATE, Host},
};
use crate::{
    address::{AddressKind, Family, OwnPlaces},
    cell, eth,
    flow::{Class, Datagram, admit, class, identify},
    frame::Frame,
    ip::{Ip, Ipv4, Ipv6},
    maps::Event,
    packet::Packet,
    reason::{Reason, Verdict},
    settings::{Settings, Switches},
    udp::{self, Udp},
};

/// What became of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decision {
    /// The frame's IP version.
    pub family: Family,
    /// What was found.
    pub reason: Reason,
    /// What is to be done with it; follows from the reason, but for [`Switches::COMPANION`].
    pub verdict: Verdict,
    /// By which interface it leaves, where that is another than it came by; else 0.
    pub interface: u32,
}

/// Why a frame is done with, and by which interface it leaves ([`Decision::interface`]).
#[derive(Clone, Copy)]
struct Outcome {
    reason: Reason,
    interface: u32,
}

impl From<Reason> for Outcome {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self { reason, interface: 0 }
    }
}

/// Answers the frame in place if it is a STUN Binding request to this host, forwards it in place if it is of
/// a flow, and says what it was.
///
/// Nothing is written unless the verdict is to transmit, to redirect, or to abort.
#[inline(always)]
pub fn decide<P: Packet, H: Host>(packet: &mut P, host: &H) -> Decision {
    let mut frame = Frame::new(packet);
    let mut ethertype = ethertype(&mut frame);
    if ethertype == Ok(eth::VLAN) {
        if !settings(host).is_ok_and(|settings| settings.has(Switches::VLAN)) {
            return decision(Family::Unknown, Reason::Vlan.into(), host);
        }
        frame.skip_tag();
        ethertype = self::ethertype(&mut frame);
    }
    match ethertype {
        Ok(eth::IPV4) => decision(Family::Ipv4, decide_ip::<Ipv4, P, H>(frame, host), host),
        Ok(eth::IPV6) => decision(Family::Ipv6, decide_ip::<Ipv6, P, H>(frame, host), host),
        Ok(_) => decision(Family::Unknown, Reason::NotIp.into(), host),
        Err(reason) => decision(Family::Unknown, reason.into(), host),
    }
}

#[inline(always)]
fn ethertype<P: Packet>(frame: &mut Frame<'_, P>) -> Result<u16, Reason> {
    frame.ensure(eth::LEN).ok_or(Reason::Malformed)?;
    eth::ethertype(frame).ok_or(Reason::Malformed)
}

#[inline(always)]
fn settings<H: Host>(host: &H) -> Result<&Settings, Reason> {
    let settings = host.settings().ok_or(Reason::Unconfigured)?;
    if settings.version == Settings::VERSION { Ok(settings) } else { Err(Reason::Unconfigured) }
}

/// Where another process decides about what is not forwarded, nothing is dropped.
#[inline(always)]
fn decision<H: Host>(family: Family, outcome: Outcome, host: &H) -> Decision {
    let Outcome { reason, interface } = outcome;
    let mut verdict = reason.verdict();
    if verdict == Verdict::Drop
        && settings(host).is_ok_and(|settings| settings.has(Switches::COMPANION))
    {
        verdict = Verdict::Pass;
    }
    Decision { family, reason, verdict, interface }
}

#[inline(always)]
fn decide_ip<I: Ip, P: Packet, H: Host>(mut frame: Frame<'_, P>, host: &H) -> Outcome {
    match serve::<I, P, H>(&mut frame, host) {
        Ok(outcome) => outcome,
        Err(reason) => {
            cell::seldom();
            reason.into()
        }
    }
}

/// A UDP datagram to a port that is served, with an intact IP header, as long as its headers say.
struct Arrival<'a> {
    settings: &'a Settings,
    udp: Udp,
    datagram: &'a Datagram,
    /// Where the payload is.
    at: usize,
    /// How long it is.
    length: usize,
}

#[inline(always)]
fn serve<I: Ip, P: Packet, H: Host>(frame: &mut Frame<'_, P>, host: &H) -> Result<Outcome, Reason> {
    let udp_at = eth::LEN + I::LEN;
    frame.ensure(udp_at).ok_or(Reason::Malformed)?;
    let udp_length = I::udp_length(frame)?;
    let at = udp_at + udp::LEN;
    frame.ensure(at).ok_or(Reason::Malformed)?;
    let udp = Udp::read(frame, udp_at).ok_or(Reason::Malformed)?;
    let settings = settings(host)?;
    let services = settings.services(udp.destination);
    if services == 0 {
        return Err(Reason::OtherPort);
    }
    // Also refuses trailing bytes.
    if frame.len() != udp_at + udp_length || usize::from(udp.length) != udp_length {
        return Err(Reason::LengthMismatch);
    }
    let length = udp_length.checked_sub(udp::LEN).ok_or(Reason::LengthMismatch)?;
    I::check(frame)?;
    let (source, destination) = I::addresses(frame).ok_or(Reason::Malformed)?;
    let datagram = &Datagram {
        source,
        destination,
        source_port: udp.source,
        destination_port: udp.destination,
    };
    let arrival = &Arrival { settings, udp, datagram, at, length };

    if length >= 8 {
        frame.ensure(at + 8).ok_or(Reason::Malformed)?;
    }
    // Matched once, and what it holds used at once: what a value holds on other paths only, the compiler
    // leaves undefined, and the verifier does not let it be carried along.
    let hop = match identify(frame, at, length, services, datagram, host) {
        Ok(Class::Stun) => {
            let own = check_destination(frame, datagram, host)?;
            return answer::answer::<I, P, H>(frame, arrival, own, host);
        }
        Ok(class @ Class::Control { .. }) => {
            // It is counted, so it must first be known to be meant for this host.
            let own = check_destination(frame, datagram, host)?;
            check_source(I::FAMILY, datagram, own, host)?;
            return match admit(datagram, class, settings, host, || host.now()) {
                Ok(_) => Err(Reason::NotRelayed),
                Err(reason) => Err(reason),
            };
        }
        Ok(class) => admit(datagram, class, settings, host, || host.now()),
        Err(reason) => Err(reason),
    };
    match hop {
        Ok(hop) => forward::forward::<I, P, H>(frame, arrival, &hop, host),
        Err(reason) => {
            let own = check_destination(frame, datagram, host)?;
            check_source(I::FAMILY, datagram, own, host)?;
            tell(reason, frame, arrival, host);
            Err(reason)
        }
    }
}

/// Checks that the frame is addressed to this host, and returns where addresses of this host are.
#[inline(always)]
fn check_destination<P: Packet, H: Host>(
    frame: &Frame<'_, P>,
    datagram: &Datagram,
    host: &H,
) -> Result<OwnPlaces, Reason> {
    if let Some(place) = host.address_place(&datagram.destination)
        && place.address == datagram.destination
        && place.kind == AddressKind::Unicast as u32
        && place.ingress == host.ingress()
        && eth::is_for(frame, place.interface.mac) == Some(true)
    {
        return Ok(place.own);
    }
    check_mac(frame, host)?;
    if host.address_kind(&datagram.destination) != Some(AddressKind::Unicast as u32) {
        return Err(Reason::NotLocal);
    }
    Ok(OwnPlaces::ANY)
}

/// Checks that the frame is addressed to the interface it came in by.
#[inline(always)]
fn check_mac<P: Packet, H: Host>(frame: &Frame<'_, P>, host: &H) -> Result<(), Reason> {
    let interface = host.interface(host.ingress()).ok_or(Reason::ForeignMac)?;
    match eth::is_for(frame, interface.mac) {
        Some(true) => Ok(()),
        Some(false) => Err(Reason::ForeignMac),
        None => Err(Reason::Malformed),
    }
}

/// Checks that the sender names one host, and not this one.
#[inline(always)]
fn check_source<H: Host>(
    family: Family,
    datagram: &Datagram,
    own: OwnPlaces,
    host: &H,
) -> Result<(), Reason> {
    if datagram.source_port == 0 || !datagram.source.is_usable_source(family) {
        return Err(Reason::UnusableSource);
    }
    if own.may_hold(&datagram.source) && host.address_kind(&datagram.source).is_some() {
        return Err(Reason::UnusableSource);
    }
    Ok(())
}

/// Tells the daemon what it may want to learn from.
#[inline(always)]
fn tell<P: Packet, H: Host>(reason: Reason, frame: &Frame<'_, P>, arrival: &Arrival<'_>, host: &H) {
    if !matches!(reason, Reason::UnknownLeg | Reason::UnknownSource | Reason::OtherLocal) {
        return;
    }
    let Some(bucket) = host.event_bucket() else { return };
    if !EVENT_RATE.take_from(bucket, host.now()) {
        return;
    }
    // Only what is Geneve can come from an unknown leg.
    let vni = if reason == Reason::UnknownLeg { class::vni(frame, arrival.at) } else { None };
    host.event(&Event {
        source: arrival.datagram.source,
        reason: reason as u32,
        slot: vni.map_or(Event::NO_SLOT, |vni| vni & arrival.settings.slot_mask),
        source_port: arrival.datagram.source_port,
        local_port: arrival.datagram.destination_port,
        vni: vni.unwrap_or(0),
    });
}
