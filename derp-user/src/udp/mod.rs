//! UDP in batches: what the STUN server and the forwarder have in common.
//!
//! A [`Socket`] receives up to [`BATCH`] buffers with one system call into an [`Inbox`], each of which
//! may hold many datagrams of one sender that the kernel has merged (UDP GRO), and says of each by
//! which local address, with which hop limit and traffic class it came. What is sent names the local
//! address it leaves from; consecutive datagrams of one size to one destination go out as one
//! ([`Outbox`], UDP GSO). Nothing here decides about a packet.
//!
//! `nix` does the system calls. `quinn-udp`, which has recvmmsg and GSO too, hides hop limit and
//! traffic class, and after one EINVAL (a datagram beyond the MTU, a local address that is gone) it gives
//! up GSO and ECN on that socket for good, which any sender could bring about.

mod family;
mod inbox;
mod outbox;
mod socket;
mod sources;
mod state;
mod sync;
mod tally;

pub use self::{
    family::bind_families,
    inbox::{Arrival, BATCH, Inbox},
    outbox::{Outbox, Route},
    socket::{Merging, Socket},
    sources::SourceBuckets,
    state::{SettingsCell, SettingsView},
    tally::{Count, OwnTally, SEND_FAILURES, SendFailure, Tally, Totals},
};

/// Returns the time flows and rates are measured by: `CLOCK_MONOTONIC` in nanoseconds, as the kernel
/// program reads it.
#[must_use]
pub fn now() -> u64 {
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    let time = nix::time::clock_gettime(clock).map_or(std::time::Duration::ZERO, Into::into);
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use derp_common::{Settings, Switches};

    use super::*;

    #[test]
    fn a_flipped_switch_is_seen() {
        let cell = SettingsCell::new(Settings::new(3478));
        let mut view = SettingsView::new(&cell);
        assert!(!view.current(&cell).has(Switches::SHED_STUN));
        cell.update(|settings| settings.switches |= Switches::SHED_STUN);
        assert!(view.current(&cell).has(Switches::SHED_STUN));
        cell.store(Settings::new(3478));
        assert!(!view.current(&cell).has(Switches::SHED_STUN));
    }
}
