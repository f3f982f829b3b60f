//! What of the UDP services runs on the control runtime.

use std::time::Duration;

use derp_user::{
    dataplane::{DataplaneError, FlowEvent, FlowEvents, Watcher, self_test},
    forward::Stranger,
    stun::StunServer,
    udp_relay::{CompanionService, Keeper, WireGuardService},
};
use tokio::{sync::mpsc::Receiver, time::sleep};

use super::SharedXdp;

/// How often the program's counters are looked at.
const SUSPICION: Duration = Duration::from_secs(30);

/// What of the UDP services runs on the control runtime.
pub(crate) struct Tasks {
    pub(super) stun: Option<StunServer>,
    pub(super) keeper: Option<(Keeper, Receiver<Stranger>)>,
    pub(super) wireguard: Option<WireGuardService>,
    pub(super) watcher: Option<Watcher>,
    pub(super) events: Option<FlowEvents>,
    pub(super) companion: Option<CompanionService>,
    pub(super) xdp: Option<SharedXdp>,
}

impl Tasks {
    /// Runs until dropped.
    pub(crate) async fn run(self) {
        let stun = async {
            if let Some(stun) = self.stun {
                stun.run().await;
            }
        };
        let keeper = async {
            if let Some((keeper, strangers)) = self.keeper {
                keeper.run(strangers).await;
            }
        };
        let wireguard = async {
            if let Some(wireguard) = self.wireguard {
                wireguard.run().await;
            }
        };
        let watcher = async {
            if let Some(watcher) = self.watcher
                && let Err(error) = watcher.run().await
            {
                tracing::error!("{error}: the kernel knows the addresses and routes of now only");
            }
        };
        let events = async {
            if let Some(events) = self.events
                && let Err(error) = log_events(events).await
            {
                tracing::error!("{error}");
            }
        };
        let companion = async {
            if let Some(companion) = self.companion {
                companion.run().await;
            }
        };
        let suspicion = async {
            if let Some(xdp) = self.xdp {
                suspect(&xdp).await;
            }
        };
        tokio::join!(stun, keeper, wireguard, watcher, events, companion, suspicion);
    }
}

/// Logs who sends what is not theirs; the program counts that, but not by whom.
async fn log_events(mut events: FlowEvents) -> Result<(), DataplaneError> {
    loop {
        let FlowEvent { source, local_port, reason, slot, vni } = events.next().await?;
        let reason = reason.label();
        tracing::debug!(%source, local_port, reason, slot, vni, "a packet of no flow");
    }
}

/// Says once if the program's counters suggest that the packets it sees are not as they should be.
async fn suspect(xdp: &SharedXdp) {
    loop {
        sleep(SUSPICION).await;
        let counts = xdp.lock().counters();
        if let Some(suspicion) = counts.ok().as_deref().and_then(self_test::suspicion) {
            return tracing::warn!("{suspicion}");
        }
    }
}
