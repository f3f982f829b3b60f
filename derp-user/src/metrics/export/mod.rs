//! The Prometheus text that `/debug/varz` serves.
//!
//! Names are derper's, so that existing dashboards and alerts keep working; that is why most counters lack the
//! customary `_total`. What derper does not have starts with `derpd_`. Only what is really measured appears.

mod admission;
mod bootstrap;
mod companion;
mod connections;
mod mesh;
mod program;
mod stun;
mod tailnet;
mod traffic;
mod vars;
mod wireguard;

#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use prometheus::TextEncoder;

use super::{
    Gauges, MeshView, PeerRelayFigures, RoundTripTotals, Totals, UdpFigures, families::Families,
};
use crate::{
    admit::AdmissionFigures,
    companion::CompanionView,
    http::{BootstrapCounts, TlsVersion},
    relay::limit::RateLimit,
    tailnet::Status,
    tls::CertificateFigures,
    wireguard::WireGuardView,
};

/// What the userspace STUN server has counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StunTotals {
    /// Datagrams by what became of them (label `disposition`).
    pub requests: [(&'static str, u64); 4],
    /// Valid requests by address family (label `family`).
    pub families: [(&'static str, u64); 2],
}

/// One counter of the XDP program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KernelCount {
    /// `ipv4`, `ipv6` or `unknown`.
    pub address_family: &'static str,
    /// What became of the packets: `pass`, `drop`, `tx`, `redirect` or `aborted`.
    pub outcome: &'static str,
    /// Why, as the program's closed list of reasons spells it.
    pub reason: &'static str,
    /// Packets so far.
    pub packets: u64,
    /// Their bytes as they left the program.
    pub bytes: u64,
}

/// An interface on which the XDP program runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AttachedInterface {
    /// Name of the interface.
    pub name: String,
    /// `native` or `generic`.
    pub mode: &'static str,
    /// Whether the interface is still there.
    pub is_there: bool,
}

/// What has been reloaded on SIGHUP.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Reloads {
    /// Times everything was taken into use.
    pub good: u64,
    /// Times something was at fault, so that nothing changed.
    pub bad: u64,
}

/// Everything one scrape shows.
#[derive(Clone, Debug)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// When the process started.
    pub started: SystemTime,
    /// How long ago that was, by a clock that never jumps.
    pub uptime: Duration,
    /// The certificates of the main listener; without TLS neither they nor the TLS counters exist.
    pub certificates: Option<CertificateFigures>,
    /// Sums over all workers.
    pub totals: Totals,
    /// Values of the moment.
    pub gauges: Gauges,
    /// Who was admitted, and by whom.
    pub admission: AdmissionFigures,
    /// The byte rate limit of each client, where there may be one.
    pub rates: Option<Option<RateLimit>>,
    /// Connections of trusted proxies without a good PROXY header, where there are such proxies.
    pub proxy_faults: Option<u64>,
    /// What came of SIGHUP.
    pub reloads: Reloads,
    /// The layers of the sandbox, and whether they are in force.
    pub sandbox: Vec<(&'static str, bool)>,
    /// What `/bootstrap-dns` was asked.
    pub bootstrap: BootstrapCounts,
    /// Requests by version of TLS: so far, and being served.
    pub tls_requests: [(TlsVersion, u64, u64); TlsVersion::ALL.len()],
    /// Round trip times of clients, if they are sampled.
    pub round_trips: Option<RoundTripTotals>,
    /// The links to the other servers of the region.
    pub mesh: MeshView,
    /// The userspace STUN server, where it runs.
    pub stun: Option<StunTotals>,
    /// The control connection of the peer relay's node, where it has one.
    pub tailnet: Option<Status>,
    /// What is served over UDP in userspace.
    pub udp: UdpFigures,
    /// The peer relay, where there is one.
    pub peer_relay: Option<PeerRelayFigures>,
    /// The companion of a tailscaled, if there is one.
    pub companion: Option<CompanionView>,
    /// The WireGuard relay, where there is one.
    pub wireguard: Option<WireGuardView>,
    /// Counters of the XDP program; empty where it is not attached.
    pub kernel: Vec<KernelCount>,
    /// Where the XDP program is attached.
    pub interfaces: Vec<AttachedInterface>,
}

impl Report {
    /// Renders the report in the Prometheus text format 0.0.4.
    pub fn to_text(&self) -> String {
        TextEncoder::new().encode_to_string(self.families().as_slice()).unwrap_or_else(|error| {
            tracing::error!("metrics: {error}");
            String::new()
        })
    }

    fn families(&self) -> Families {
        let mut families = Families::default();
        self.process(&mut families);
        self.traffic(&mut families);
        self.connections(&mut families);
        self.mesh(&mut families);
        self.admission(&mut families);
        self.limits(&mut families);
        self.drops(&mut families);
        self.bootstrap(&mut families);
        self.stun(&mut families);
        self.udp.add_to(&mut families);
        if let Some(peer_relay) = &self.peer_relay {
            peer_relay.add_to(&mut families);
        }
        self.companion(&mut families);
        self.tailnet(&mut families);
        self.wireguard(&mut families);
        self.kernel(&mut families);
        self.program(&mut families);
        families
    }
}
