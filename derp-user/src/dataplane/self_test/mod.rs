//! Whether frames that the program sends back will arrive, and whether it sees them as they were sent.
//!
//! Nobody outside has to cooperate, so this is no proof for any network. What is known to go wrong can be
//! seen from here: the other end of a veth pair (in another network namespace, too), what the driver does
//! with frames, who else owns the interface. [`look`] can before the program is attached, and does;
//! [`try_out`] tries the program and the way out with frames of its own, afterwards.
//!
//! What it cannot see beforehand, an other end that leaves checksums unfinished in a network namespace
//! without a name, shows in the counters later: [`suspicion`].

mod observe;
mod probe;
mod trap;

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use derp_common::{Reason, Services, Settings, Verdict};

pub use self::trap::Trap;
use self::{observe::Observer, trap::traps};
use super::{AttachedMode, Count, DataplaneError, Kernel, host::Snapshot, link::link};

/// Frames of a trial: more than an idle interface sends of its own in the time.
const TRIAL: u32 = 32;
/// How long these may take to be counted.
const PATIENCE: Duration = Duration::from_millis(200);
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// Refuses an interface on which this mode would lose frames.
///
/// # Errors
///
/// [`DataplaneError::Loses`]. What cannot be found out is no reason.
pub(super) fn refuse(name: &str, index: u32, mode: AttachedMode) -> Result<(), DataplaneError> {
    match look(index, mode).into_iter().find(Trap::is_lossy) {
        Some(trap) => Err(loses(name, mode, &trap)),
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
    name: &str,
    index: u32,
    mode: AttachedMode,
) -> Result<(), DataplaneError> {
    let mut found = look(index, mode);
    match try_out(kernel, settings, index, mode) {
        Ok(trap) => found.extend(trap),
        Err(error) => tracing::debug!(interface = name, %error, "the program cannot be tried out"),
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
    let observed = Observer::open().and_then(|mut observer| observer.observe(index));
    match observed {
        Ok(observed) => traps(&observed, mode),
        Err(error) => {
            tracing::debug!(interface = index, %error, "the interface cannot be looked at");
            Vec::new()
        }
    }
}

/// Has the attached program answer a request of nobody's, first without a network, then in native mode on veth
/// for good. The program's counters count them like any other.
///
/// `None` is no news: without a port for STUN there is no such request.
///
/// # Errors
///
/// When the kernel cannot do it.
pub fn try_out(
    kernel: &Kernel,
    settings: &Settings,
    index: u32,
    mode: AttachedMode,
) -> Result<Option<Trap>, DataplaneError> {
    let Some(port) = settings.ports.iter().find(|port| port.services & Services::STUN != 0) else {
        return Ok(None);
    };
    let mut observer = Observer::open().map_err(DataplaneError::Netlink)?;
    let before = link(&mut observer.netlink, index, None).map_err(DataplaneError::Netlink)?;
    let locals: Vec<IpAddr> = Snapshot::read()?.unicast().collect();
    let own = locals.iter().find(|ip| ip.is_ipv4()).or(locals.first());
    let (Some(mac), Some(&own)) = (before.mac, own) else { return Ok(None) };
    let Some(frame) = probe::frame(mac, own, port.number, &locals) else { return Ok(None) };
    let (action, _) = kernel.test_run_on(&frame, index)?;
    if action != XDP_TX {
        // Shed or limited, it is dropped.
        return Ok((action == XDP_PASS).then_some(Trap::NotAnswered { action }));
    }
    // On other drivers, these take another way than what is sent back, and may not be counted.
    if mode != AttachedMode::Native || before.kind != "veth" || !before.is_up {
        return Ok(None);
    }
    let already = answered(kernel)?;
    kernel.inject(index, &frame, TRIAL)?;
    // Fewer than were injected, where answers to one source are limited.
    let sent = answered(kernel)?.saturating_sub(already);
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let now = link(&mut observer.netlink, index, None).map_err(DataplaneError::Netlink)?;
        if now.sent.saturating_sub(before.sent) >= sent {
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
