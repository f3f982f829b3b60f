//! Whether frames that the program sends back will arrive, and whether it sees them as they were sent.
//!
//! Nobody outside has to cooperate, so this is no proof for any network. What is known to go wrong can be
//! seen from here: the other end of a veth pair (in another network namespace, too), what the driver does
//! with frames, who else owns the interface: [`look`], before the program is attached. Where the other end cannot
//! be looked at, frames of its own are sent afterwards: [`try_out`].
//!
//! What it cannot see beforehand, an other end that leaves checksums unfinished in a network namespace that
//! this process may not enter, shows in the counters later: [`suspicion`].

mod observe;
mod probe;
mod trap;

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use derp_common::{Port, Reason, Services, Settings, Verdict};

pub use self::trap::Trap;
use self::{
    observe::Observer,
    trap::{Observed, traps},
};
use super::{
    AttachedMode, Count, DataplaneError, Kernel,
    host::Snapshot,
    link::{Link, link},
    netlink::Netlink,
    xdp::Target,
};

/// Frames of a trial: more than an idle interface sends of its own in the time.
const TRIAL: u32 = 32;
/// How long these may take to be counted.
const PATIENCE: Duration = Duration::from_millis(200);
const XDP_PASS: u32 = 2;

/// Refuses an interface on which this mode would lose frames.
///
/// # Errors
///
/// [`DataplaneError::Loses`]. What cannot be found out is no reason.
pub(super) fn refuse(target: &Target, mode: AttachedMode) -> Result<(), DataplaneError> {
    match look(target.index, mode).into_iter().find(Trap::is_lossy) {
        Some(trap) => Err(loses(&target.name, mode, &trap)),
        None => Ok(()),
    }
}

/// Tests an interface the program has been attached to, and logs what is not as it should be.
///
/// # Errors
///
/// [`DataplaneError::Loses`].
pub(super) fn report(
    kernel: &Kernel,
    settings: &Settings,
    target: &Target,
    mode: AttachedMode,
) -> Result<(), DataplaneError> {
    let &Target { ref name, index } = target;
    let observed = observe(index);
    let mut found = observed.as_ref().map(|it| traps(it, mode)).unwrap_or_default();
    let is_unseen = observed
        .is_none_or(|observed| observed.link.kind == "veth" && observed.other_end.is_none());
    if is_unseen && mode == AttachedMode::Native {
        match try_out(kernel, settings, index) {
            Ok(trap) => found.extend(trap),
            Err(error) => tracing::debug!(interface = name, %error, "no trial"),
        }
    }
    let mut lossy = None;
    for trap in found {
        if trap.is_lossy() {
            lossy = Some(trap);
        } else {
            tracing::warn!("{}", trap.explain(name));
        }
    }
    match lossy {
        Some(trap) => Err(loses(name, mode, &trap)),
        None => Ok(()),
    }
}

/// Explains counters that only unfinished checksums account for. Once is enough to say it.
#[must_use]
pub fn suspicion(counts: &[Count]) -> Option<String> {
    /// Fewer may be damaged on their way.
    const MANY: u64 = 100;
    let sum = |wanted: &dyn Fn(Reason) -> bool| {
        counts.iter().filter(|count| wanted(count.reason)).map(|count| count.packets).sum::<u64>()
    };
    let invalid = sum(&|reason| reason == Reason::InvalidUdpChecksum);
    let good = sum(&|reason| matches!(reason.verdict(), Verdict::Transmit | Verdict::Redirect));
    (invalid >= MANY && invalid > good).then(|| {
        format!(
            "{invalid} packets came with a wrong UDP checksum, and {good} with a right one; whoever sends \
             them probably leaves checksums to hardware that is not there: `ethtool -K INTERFACE tx off` at \
             the other end of a veth pair, or at the host of a virtual machine"
        )
    })
}

fn loses(interface: &str, mode: AttachedMode, trap: &Trap) -> DataplaneError {
    let reason = trap.explain(interface).to_string();
    DataplaneError::Loses { interface: interface.to_owned(), mode, reason }
}

/// Finds what loses or withholds frames on an interface, by its index, if the program runs there in this mode.
/// What cannot be found out is no trap.
#[must_use]
pub fn look(index: u32, mode: AttachedMode) -> Vec<Trap> {
    observe(index).map(|observed| traps(&observed, mode)).unwrap_or_default()
}

fn observe(index: u32) -> Option<Observed> {
    Observer::open()
        .and_then(|mut observer| observer.observe(index))
        .inspect_err(|error| {
            tracing::debug!(interface = index, %error, "the interface cannot be looked at");
        })
        .ok()
}

/// A request of nobody's that the program should answer, as it would come in by an interface.
struct Probe {
    netlink: Netlink,
    link: Link,
    frame: Vec<u8>,
}

impl Probe {
    /// Returns `None` where there can be none: without a port for STUN, an address or a MAC.
    fn new(settings: &Settings, index: u32) -> Result<Option<Self>, DataplaneError> {
        let serves_stun = |port: &&Port| port.services & Services::STUN != 0;
        let Some(port) = settings.ports.iter().find(serves_stun) else { return Ok(None) };
        let mut netlink = Netlink::route().map_err(DataplaneError::Netlink)?;
        let link = link(&mut netlink, index, None).map_err(DataplaneError::Netlink)?;
        let locals: Vec<IpAddr> = Snapshot::read()?.unicast().collect();
        let own = locals.iter().find(|ip| ip.is_ipv4()).or(locals.first());
        let (Some(mac), Some(&own)) = (link.mac, own) else { return Ok(None) };
        let frame = probe::frame(mac, own, port.number, &locals);
        Ok(frame.map(|frame| Self { netlink, link, frame }))
    }
}

/// Has the program, before it runs anywhere, answer a request of nobody's without a network, and counts that
/// as little as it happened.
///
/// # Errors
///
/// When the counters cannot be cleared. A kernel that cannot rehearse is no error.
pub(super) fn rehearse(kernel: &mut Kernel, target: &Target) -> Result<(), DataplaneError> {
    let &Target { ref name, index } = target;
    let settings = kernel.settings()?;
    let rehearsed = Probe::new(&settings, index).and_then(|probe| match probe {
        Some(probe) => kernel.test_run_on(&probe.frame, index).map(|(action, _)| Some(action)),
        None => Ok(None),
    });
    match rehearsed {
        // Shed, it is dropped.
        Ok(Some(action @ XDP_PASS)) => {
            tracing::warn!("{}", Trap::NotAnswered { action }.explain(name));
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(interface = name, %error, "no rehearsal"),
    }
    kernel.clear_counters()
}

/// Has the attached program answer requests of nobody's on a veth interface in native mode, for good. Its
/// counters count them like any other. It is for an other end that cannot be looked at.
///
/// `None` is no news: without a port for STUN there is no such request, and on other drivers than veth what is
/// sent like this takes another way than what is sent back.
///
/// # Errors
///
/// When the kernel cannot do it.
pub fn try_out(
    kernel: &Kernel,
    settings: &Settings,
    index: u32,
) -> Result<Option<Trap>, DataplaneError> {
    let Some(mut probe) = Probe::new(settings, index)? else { return Ok(None) };
    if probe.link.kind != "veth" || !probe.link.is_up {
        return Ok(None);
    }
    let already = answered(kernel)?;
    kernel.inject(index, &probe.frame, TRIAL)?;
    // Fewer than were injected, where answers to one source are limited.
    let sent = answered(kernel)?.saturating_sub(already);
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let now = link(&mut probe.netlink, index, None).map_err(DataplaneError::Netlink)?;
        if now.sent.saturating_sub(probe.link.sent) >= sent {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(Some(Trap::NeverLeft { sent }))
}

/// Returns how many requests the program has answered.
fn answered(kernel: &Kernel) -> Result<u64, DataplaneError> {
    let counts = kernel.counters()?;
    let answered = counts.iter().filter(|count| count.reason == Reason::StunAnswered);
    Ok(answered.map(|count| count.packets).sum())
}

#[cfg(test)]
mod tests {
    use derp_common::Family;

    use super::*;

    fn counts(invalid: u64, answered: u64) -> Vec<Count> {
        let count = |reason, packets| Count { reason, family: Family::Ipv4, packets, bytes: 0 };
        vec![
            count(Reason::InvalidUdpChecksum, invalid),
            count(Reason::StunAnswered, answered),
            count(Reason::OtherPort, 1_000_000),
        ]
    }

    #[test]
    fn a_few_damaged_packets_are_not_suspicious() {
        assert_eq!(suspicion(&counts(99, 0)), None);
        assert_eq!(suspicion(&counts(1000, 1000)), None);
        let text = suspicion(&counts(1000, 3)).expect("suspicious");
        assert!(text.contains("1000") && text.contains("tx off"), "{text}");
    }
}
