//! Gathers what one scrape of the metrics shows.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use derp_user::{
    admit::Admission,
    dataplane::{Xdp, interface_name},
    http::{BootstrapDns, TlsRequests},
    metrics::{AttachedInterface, KernelCount, Report, StunTotals, UdpFigures},
    privilege::{Layer, Sandbox},
    proxy_protocol::TrustedProxies,
    server::{Rates, Statistics},
    stun::StunCounters,
    tailnet::TailnetHandle,
    tls::Certificates,
    udp::Totals,
    udp_relay::{CompanionReader, Keeper, PeerRelayMonitor, WireGuardHandle},
};

use crate::{reload::Counts, udp::SharedXdp};

/// Where the numbers come from.
pub(crate) struct Sources {
    pub(crate) statistics: Arc<Statistics>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) rates: Option<Arc<Rates>>,
    pub(crate) proxies: Arc<TrustedProxies>,
    pub(crate) reloads: Arc<Counts>,
    pub(crate) stun: Option<Arc<StunCounters>>,
    pub(crate) bootstrap: Arc<BootstrapDns>,
    pub(crate) tls_requests: TlsRequests,
    /// What is given up, unless switched off.
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) sample_round_trips: bool,
    pub(crate) xdp: Option<SharedXdp>,
    pub(crate) keeper: Option<Keeper>,
    pub(crate) peer_relay: Option<PeerRelayMonitor>,
    /// Where there is a companion.
    pub(crate) companion: Option<CompanionReader>,
    pub(crate) tailnet: Option<TailnetHandle>,
    pub(crate) wireguard: Option<WireGuardHandle>,
    /// What the UDP sockets have counted.
    pub(crate) udp: Box<dyn Fn() -> Totals + Send + Sync>,
    /// Those of the TLS listener, if it is one.
    pub(crate) certificates: Option<Arc<Certificates>>,
    /// The start of the process by both clocks.
    pub(crate) started: (SystemTime, Instant),
}

impl Sources {
    /// Reads every number once.
    pub(crate) fn report(&self) -> Report {
        Report {
            version: crate::VERSION,
            started: self.started.0,
            uptime: self.started.1.elapsed(),
            certificates: self.certificates.as_ref().map(|certificates| certificates.figures()),
            totals: self.statistics.totals(),
            gauges: self.statistics.gauges(),
            admission: self.admission.figures(),
            rates: self.rates.as_ref().map(|rates| rates.limit()),
            proxy_faults: self.proxies.exist().then(|| self.proxies.faults()),
            reloads: self.reloads.read(),
            sandbox: self.layers(),
            mesh: self.statistics.mesh(),
            bootstrap: self.bootstrap.counts(),
            tls_requests: self.tls_requests.counts(),
            round_trips: self.sample_round_trips.then(|| self.statistics.round_trips()),
            stun: self.stun.as_ref().map(|counters| StunTotals {
                requests: counters.requests(),
                families: counters.families(),
            }),
            tailnet: self.tailnet.as_ref().map(TailnetHandle::status),
            udp: UdpFigures {
                totals: (self.udp)(),
                flows: self.keeper.as_ref().map(Keeper::states),
            },
            peer_relay: self.peer_relay.as_ref().map(PeerRelayMonitor::figures),
            companion: self.companion.as_ref().map(CompanionReader::view),
            wireguard: self.wireguard.as_ref().map(WireGuardHandle::view),
            kernel: self.xdp.as_ref().map(|xdp| kernel_counts(&xdp.lock())).unwrap_or_default(),
            interfaces: self.interfaces(),
        }
    }

    /// The layers of the sandbox, and whether they are in force.
    fn layers(&self) -> Vec<(&'static str, bool)> {
        let is_in_force = |layer| self.sandbox.as_ref().is_some_and(|it| it.has(layer));
        Layer::ALL.into_iter().map(|layer| (layer.as_str(), is_in_force(layer))).collect()
    }

    /// Where the XDP program is attached.
    pub(crate) fn interfaces(&self) -> Vec<AttachedInterface> {
        self.xdp.as_ref().map(|xdp| interfaces(&xdp.lock())).unwrap_or_default()
    }
}

fn kernel_counts(xdp: &Xdp) -> Vec<KernelCount> {
    let counts = xdp.counters().unwrap_or_else(|error| {
        tracing::warn!("metrics: {error}");
        Vec::new()
    });
    let convert = |count: derp_user::dataplane::Count| KernelCount {
        address_family: count.family.label(),
        outcome: count.reason.verdict().label(),
        reason: count.reason.label(),
        packets: count.packets,
        bytes: count.bytes,
    };
    counts.into_iter().map(convert).collect()
}

fn interfaces(xdp: &Xdp) -> Vec<AttachedInterface> {
    xdp.attachments()
        .iter()
        .map(|attachment| {
            let name = interface_name(attachment.index);
            AttachedInterface {
                is_there: name.is_some(),
                name: name.unwrap_or_else(|| attachment.interface.clone()),
                mode: attachment.mode.as_str(),
            }
        })
        .collect()
}
