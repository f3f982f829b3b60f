//! What runs besides the relay itself, until a signal says to stop.

use std::{net::TcpListener, sync::Arc, time::Duration};

use anyhow::Context as _;
use derp_user::{
    http::{BootstrapDns, Site, SystemDns, serve_port80},
    proto::keys::NodePublic,
    proxy_protocol::TrustedProxies,
    server::{Server, Statistics},
    udp_relay::PeerRelayService,
};
use parking_lot::Mutex;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
    time::sleep,
};

use crate::{reload::Reloader, status::StatusBoard, udp::Tasks};

/// Tells a service manager that waits for it, as systemd does for units of `Type=notify`.
pub(crate) fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}

/// The signals that stop the relay or make it reload. Caught before it says that it serves, so that none is missed.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(crate) fn catch() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot catch SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("cannot catch SIGTERM")?,
            hangup: signal(SignalKind::hangup()).context("cannot catch SIGHUP")?,
        })
    }
}

/// How the relay ends.
pub(crate) struct Drain<'a> {
    /// How long clients may stay that are connected.
    pub(crate) timeout: Arc<Mutex<Option<Duration>>>,
    /// How many of the clients are this process itself.
    pub(crate) own_clients: u64,
    pub(crate) server: &'a Server,
    /// Told when it has begun.
    pub(crate) begun: Notify,
}

impl Drain<'_> {
    /// How often it is looked whether clients are still there.
    const LOOK: Duration = Duration::from_millis(100);

    /// Closes the listener, and waits until the last client has left or its time is over.
    async fn run(&self, statistics: &Statistics) {
        let Some(timeout) = *self.timeout.lock() else { return };
        self.server.drain();
        self.begun.notify_one();
        let clients = || statistics.gauges().clients_local.saturating_sub(self.own_clients);
        tracing::info!(
            clients = clients(),
            "draining: no more connections are accepted; the rest end in {timeout:?}, or at the next signal"
        );
        let gone = async {
            while clients() > 0 {
                sleep(Self::LOOK).await;
            }
        };
        match tokio::time::timeout(timeout, gone).await {
            Ok(()) => tracing::info!("drained: every client has left"),
            Err(_) => tracing::info!(clients = clients(), "drained: the time is over"),
        }
    }
}

/// What is looked at again and again.
pub(crate) struct Watch {
    pub(crate) bootstrap: Arc<BootstrapDns>,
    pub(crate) statistics: Arc<Statistics>,
    pub(crate) sample_round_trips: bool,
    pub(crate) board: Arc<StatusBoard>,
}

impl Watch {
    async fn run(&self) {
        let round_trips = async {
            if self.sample_round_trips {
                self.statistics.sample_round_trips().await;
            }
        };
        let dns = SystemDns::default();
        tokio::join!(self.bootstrap.run(&dns), round_trips, self.board.run());
    }
}

/// Runs what is not the relay itself, until a signal says to stop.
pub(crate) async fn control(
    mut signals: Signals,
    port80: Option<(TcpListener, Arc<Site>, Arc<TrustedProxies>)>,
    reloader: Reloader,
    tasks: Tasks,
    watch: Watch,
    peer_relay: Option<PeerRelayService>,
    drain: Drain<'_>,
) -> anyhow::Result<()> {
    let port80 = match port80 {
        Some((listener, site, proxies)) => {
            Some((tokio::net::TcpListener::from_std(listener)?, site, proxies))
        }
        None => None,
    };
    let services = async {
        let port80 = async {
            if let Some((listener, site, proxies)) = port80 {
                serve_port80(listener, site, proxies, drain.begun.notified()).await;
            }
        };
        let disconnect = |keys: &[NodePublic]| reloader.disconnect(keys);
        let admission = reloader.admission.run(&disconnect);
        let reload = async {
            while signals.hangup.recv().await.is_some() {
                reloader.reload();
            }
        };
        let certificates = async {
            if let Some(source) = &reloader.certificates {
                source.run().await;
            }
        };
        let peer_relay = async {
            if let Some(peer_relay) = peer_relay {
                peer_relay.run().await;
            }
        };
        tokio::join!(port80, tasks.run(), admission, certificates, reload, watch.run(), peer_relay);
        std::future::pending::<()>().await;
    };
    let end = async {
        tokio::select! {
            _ = signals.interrupt.recv() => {
                tracing::info!("received SIGINT, stopping");
                reloader.statistics.announce_restart();
                return;
            }
            _ = signals.terminate.recv() => tracing::info!("received SIGTERM, stopping"),
        }
        reloader.statistics.announce_restart();
        tokio::select! {
            () = drain.run(&reloader.statistics) => {}
            _ = signals.interrupt.recv() => tracing::info!("received SIGINT, stopping at once"),
            _ = signals.terminate.recv() => tracing::info!("received SIGTERM, stopping at once"),
        }
    };
    tokio::select! {
        () = end => {}
        () = services => {}
    }
    Ok(())
}
