//! Whose a packet is, and where it goes.

use super::{
    class::Class,
    statistics::LegCells,
    table::{
        Control, Leg, Senders, Side, Source, leg_index, slot_and_side, statistics_index,
        wireguard_sender,
    },
};
use crate::{
    address::Address,
    reason::Reason,
    settings::{Settings, Switches},
};

/// The flow tables, as their readers see them.
pub trait Tables {
    /// Loads the control word of a slot, at once.
    fn control(&self, slot: u32) -> Option<Control>;

    /// Returns a leg ([`leg_index`]).
    fn leg(&self, index: u32) -> Option<&Leg>;

    /// Returns a leg's statistics ([`statistics_index`]).
    fn statistics(&self, index: u32) -> Option<&LegCells>;

    /// Returns whose control packets may reach userspace, by slot.
    fn senders(&self, slot: u32) -> Option<Senders>;

    /// Returns whose packets these are
    /// ([`source_value`](crate::flow::table::source_value)).
    fn source(&self, source: &Source) -> Option<u32>;
}

/// A UDP datagram without its payload. Ports as they lie in the packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Datagram {
    /// Who sent it.
    pub source: Address,
    /// Where it arrived.
    pub destination: Address,
    /// The sender's port, big-endian.
    pub source_port: u16,
    /// The port it arrived at, big-endian.
    pub destination_port: u16,
}

impl Datagram {
    /// Returns the key of this sender in `SOURCES`, for this receiver index or 0.
    #[inline(always)]
    #[must_use]
    pub const fn source_key(&self, index: u32) -> Source {
        Source {
            address: self.source,
            port: self.source_port,
            local_port: self.destination_port,
            index,
        }
    }
}

/// One packet's way through a flow.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'a> {
    /// The flow's slot.
    pub slot: u32,
    /// The end it came from.
    pub side: Side,
    /// The leg it came from.
    pub from: &'a Leg,
    /// The leg it goes to.
    pub to: &'a Leg,
}

impl Hop<'_> {
    /// Tells whether a datagram of this hop arrived at the address of this host that its end is known to use.
    #[inline(always)]
    #[must_use]
    pub fn is_local_address(&self, datagram: &Datagram) -> bool {
        datagram.destination == self.from.local
    }
}

/// Finds the flow a datagram of this class belongs to, and its other end.
///
/// # Errors
///
/// As [`find`], and [`Reason::OtherLocal`] when it arrived at another address of this host than its end is
/// known to use.
#[inline(always)]
pub fn admit<'a, T: Tables>(
    datagram: &Datagram,
    class: Class,
    settings: &Settings,
    tables: &'a T,
    now: impl FnOnce() -> u64,
) -> Result<Hop<'a>, Reason> {
    let hop = find(datagram, class, settings, tables, now)?;
    if hop.is_local_address(datagram) { Ok(hop) } else { Err(Reason::OtherLocal) }
}

/// Like [`admit`], whichever address of this host the datagram arrived at: userspace forwards it and learns
/// the address.
///
/// # Errors
///
/// The reason why it belongs to no flow, or cannot be forwarded; for control packets always
/// [`Reason::RelayControl`] or why they are none.
#[inline(always)]
pub fn find<'a, T: Tables>(
    datagram: &Datagram,
    class: Class,
    settings: &Settings,
    tables: &'a T,
    now: impl FnOnce() -> u64,
) -> Result<Hop<'a>, Reason> {
    match class {
        Class::Stun => Err(Reason::NotRelayed),
        Class::Geneve { vni } => by_vni(datagram, vni, settings, tables, now),
        Class::Control { vni, sender } => Err(control(vni, sender, settings, tables, now())),
        Class::WireGuard { index } => by_index(datagram, index, tables),
        Class::Any => by_source(datagram, tables),
        Class::Known { value } => by_value(datagram, value, tables),
    }
}

#[inline(always)]
fn by_vni<'a, T: Tables>(
    datagram: &Datagram,
    vni: u32,
    settings: &Settings,
    tables: &'a T,
    now: impl FnOnce() -> u64,
) -> Result<Hop<'a>, Reason> {
    let slot = vni & settings.slot_mask;
    let control = tables.control(slot).ok_or(Reason::UnknownVni)?;
    if vni == 0 || control.vni() != vni {
        return Err(Reason::UnknownVni);
    }
    if !control.forwards() {
        if control.learns() {
            return Err(Reason::Learning);
        }
        return Err(unless_binding(Reason::Unbound, slot, settings, tables, now()));
    }
    let a = tables.leg(leg_index(slot, control.copy(), Side::A)).ok_or(Reason::UnknownVni)?;
    let b = tables.leg(leg_index(slot, control.copy(), Side::B)).ok_or(Reason::UnknownVni)?;
    if is_from(datagram, a) {
        hop(datagram, slot, Side::A, a, b)
    } else if is_from(datagram, b) {
        hop(datagram, slot, Side::B, b, a)
    } else {
        Err(unless_binding(Reason::UnknownLeg, slot, settings, tables, now()))
    }
}

/// Returns the reason why a packet of a flow goes nowhere, or that one of the flow's ends is just being bound: clients
/// send the first packet right behind the last message of their handshake, which userspace may not have dealt with yet.
#[inline(always)]
fn unless_binding<T: Tables>(
    reason: Reason,
    slot: u32,
    settings: &Settings,
    tables: &T,
    now: u64,
) -> Reason {
    let is_binding = |side| {
        tables.statistics(statistics_index(slot, side)).is_some_and(|cells| cells.had_control(now))
    };
    // Another process sees all of these.
    if !settings.has(Switches::COMPANION) && (is_binding(Side::A) || is_binding(Side::B)) {
        Reason::Binding
    } else {
        reason
    }
}

#[inline(always)]
fn by_source<'a, T: Tables>(datagram: &Datagram, tables: &'a T) -> Result<Hop<'a>, Reason> {
    let value = tables.source(&datagram.source_key(0)).ok_or(Reason::UnknownSource)?;
    by_value(datagram, value, tables)
}

/// One source may send in many flows, so unlike elsewhere the leg does not tell whether `SOURCES` has led astray.
#[inline(always)]
fn by_index<'a, T: Tables>(
    datagram: &Datagram,
    index: u32,
    tables: &'a T,
) -> Result<Hop<'a>, Reason> {
    let value = tables.source(&datagram.source_key(index)).ok_or(Reason::UnknownSource)?;
    let (slot, side) = slot_and_side(value);
    let [a, b] = tables.senders(slot).ok_or(Reason::UnknownSource)?;
    let sender = match side {
        Side::A => a,
        Side::B => b,
    };
    if sender != wireguard_sender(index) {
        return Err(Reason::UnknownSource);
    }
    by_value(datagram, value, tables)
}

#[inline(always)]
fn by_value<'a, T: Tables>(
    datagram: &Datagram,
    value: u32,
    tables: &'a T,
) -> Result<Hop<'a>, Reason> {
    let (slot, side) = slot_and_side(value);
    let control = tables.control(slot).ok_or(Reason::UnknownSource)?;
    if !control.forwards() || control.vni() != 0 {
        return Err(Reason::UnknownSource);
    }
    let from = tables.leg(leg_index(slot, control.copy(), side)).ok_or(Reason::UnknownSource)?;
    let to = tables.leg(leg_index(slot, control.copy(), side.other()));
    let to = to.ok_or(Reason::UnknownSource)?;
    if !is_from(datagram, from) {
        return Err(Reason::UnknownSource);
    }
    hop(datagram, slot, side, from, to)
}

#[inline(always)]
fn is_from(datagram: &Datagram, leg: &Leg) -> bool {
    // A leg that is not bound has port 0, which no usable source has.
    datagram.source_port == leg.remote_port
        && datagram.source_port != 0
        && datagram.source == leg.remote
}

#[inline(always)]
fn hop<'a>(
    datagram: &Datagram,
    slot: u32,
    side: Side,
    from: &'a Leg,
    to: &'a Leg,
) -> Result<Hop<'a>, Reason> {
    if datagram.destination_port != from.local_port {
        return Err(Reason::OtherLocal);
    }
    if to.remote_port == 0 {
        return Err(Reason::Unbound);
    }
    Ok(Hop { slot, side, from, to })
}

#[inline(always)]
fn control<T: Tables>(vni: u32, sender: u64, settings: &Settings, tables: &T, now: u64) -> Reason {
    let slot = vni & settings.slot_mask;
    let known = tables.control(slot).is_some_and(|control| control.vni() == vni);
    if vni == 0 || !known {
        return Reason::UnknownVni;
    }
    let Some([a, b]) = tables.senders(slot) else { return Reason::UnknownVni };
    let side = if sender == 0 {
        return Reason::UnknownSender;
    } else if sender == a {
        Side::A
    } else if sender == b {
        Side::B
    } else {
        return Reason::UnknownSender;
    };
    let Some(cells) = tables.statistics(statistics_index(slot, side)) else {
        return Reason::UnknownVni;
    };
    if settings.has(Switches::COMPANION)
        && let Some(flow) = tables.statistics(statistics_index(slot, Side::A))
    {
        flow.suspect(now);
    }
    if cells.admits_control(settings, now) { Reason::RelayControl } else { Reason::ControlOverRate }
}
