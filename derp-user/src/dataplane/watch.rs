//! Follows changes of the host's addresses and interfaces over netlink.

use std::{pin::pin, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _};
use rtnetlink::MulticastGroup;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{DataplaneError, host::HostTables, kernel::KernelLog};

/// After a change, how long further ones are gathered before the host is read again.
const SETTLE: Duration = Duration::from_millis(20);
/// How often the host is read without being told to, should a notice be lost.
const UNPROMPTED: Duration = Duration::from_secs(10);

/// Keeps the kernel's knowledge of this host current, and passes on what the program logs. Run it beside
/// the attached program.
pub struct Watcher {
    tables: HostTables,
    log: Option<KernelLog>,
}

impl Watcher {
    pub(super) fn new(tables: HostTables, log: Option<KernelLog>) -> Self {
        Self { tables, log }
    }

    /// Follows the host until it is dropped; on a Tokio runtime with I/O and time, current-thread
    /// included. A change that cannot be written is logged and tried again.
    ///
    /// A netlink notice only says that something changed. The host is then read whole and compared, so
    /// that a lost or overtaken notice leaves nothing wrong for long.
    ///
    /// # Errors
    ///
    /// When netlink cannot be listened to, or stops.
    pub async fn run(mut self) -> Result<(), DataplaneError> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _handle, mut notices) =
            rtnetlink::new_multicast_connection(&groups).map_err(DataplaneError::Netlink)?;
        let mut connection = pin!(connection);
        let mut unprompted = interval(UNPROMPTED);
        unprompted.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // The first tick comes at once: it catches what changed before netlink was listened to.
            let closed = tokio::select! {
                () = &mut connection => true,
                notice = notices.next() => notice.is_none(),
                _ = unprompted.tick() => false,
            };
            if closed {
                let error = std::io::Error::other("the netlink socket was closed");
                return Err(DataplaneError::Netlink(error));
            }
            tokio::select! {
                () = &mut connection => {}
                () = sleep(SETTLE) => {}
            }
            while let Some(Some(_)) = notices.next().now_or_never() {}
            // Such a line reports a fault of the program; it may be some seconds late.
            if let Some(log) = &mut self.log {
                log.flush();
            }
            if let Err(error) = self.tables.refresh() {
                tracing::warn!(%error, "the kernel's view of this host's addresses may be stale");
            }
        }
    }
}
