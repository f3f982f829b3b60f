//! Everything served over UDP: STUN and relayed flows, in the kernel and in userspace.

mod companion;
mod flows;
mod peer_relay;
mod planes;
mod reload;
mod tasks;

use std::{net::SocketAddr, num::NonZeroUsize, sync::Arc};

use derp_user::{
    config::{
        self, Config, ConfigError, FileSettings, PeerRelaySettings, RelayKeys, WireGuardSettings,
    },
    dataplane::{FlowEvents, MapSizes, Mode, Watcher, Xdp, XdpOptions},
    flow::SharedMirror,
    forward::{Forwarder, ForwarderOptions, HandshakePacket, NOTICES, Notices, Running},
    stun::{Responder, StunServer},
    udp::{Merging, SettingsCell, Totals},
    udp_relay::{
        CompanionReader, CompanionService, Keeper, PeerRelayRules, Remembered, WireGuardHandle,
        WireGuardService,
    },
    wireguard::Directory,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc::channel, watch};

use self::{
    companion::accompany,
    flows::FlowReloader,
    planes::{Planes, relay_ports, serves_any, settings, slots},
    reload::rules,
};
pub(crate) use self::{peer_relay::PeerRelayParts, reload::UdpReloader, tasks::Tasks};

/// Most threads that forward in userspace.
const MOST_THREADS: usize = 4;

/// The kernel data plane, which metrics and reloading share.
pub(crate) type SharedXdp = Arc<Mutex<Xdp>>;

/// UDP services that are bound and attached, but that nobody runs yet.
pub(crate) struct Udp {
    stun: Option<StunServer>,
    forwarder: Option<Forwarder>,
    responder: Arc<Responder>,
    settings: Arc<SettingsCell>,
    mirror: SharedMirror,
    keeper: Option<Keeper>,
    watcher: Option<Watcher>,
    events: Option<FlowEvents>,
    peer_relay: Option<(PeerRelaySettings, RelayKeys)>,
    /// The rules of the peer relay, where there is one.
    rules: Option<watch::Sender<Arc<PeerRelayRules>>>,
    companion: Option<CompanionService>,
    wireguard: Option<WireGuardHandle>,
    /// The kernel data plane, where there is one.
    pub(crate) xdp: Option<SharedXdp>,
    /// Where STUN is answered.
    pub(crate) stun_addresses: Vec<SocketAddr>,
    /// Where flows are relayed.
    pub(crate) relay_addresses: Vec<SocketAddr>,
}

impl Udp {
    /// Binds the ports, attaches the kernel program and admits the flows of the configuration.
    pub(crate) fn prepare(config: &Config, file: &FileSettings) -> anyhow::Result<Self> {
        let host = config.listen.ip;
        let peer_relay = file.peer_relay.clone();
        let with_keys = |it: PeerRelaySettings| {
            let keys = config::load_relay_keys(&it.key_file, it.control.is_some())?;
            Ok::<_, ConfigError>((it, keys))
        };
        let rules = peer_relay.as_ref().map(rules).transpose()?;
        let rules = rules.map(|rules| watch::Sender::new(Arc::new(rules)));
        let peer_relay = peer_relay.map(with_keys).transpose()?;
        let relay_ports = relay_ports(file);
        let shares_stun = config.stun_port.is_some_and(|port| relay_ports.contains(&port));
        let stun = match config.stun_port.filter(|_| !shares_stun) {
            Some(port) => Some(StunServer::bind(host, port)?),
            None => None,
        };
        let forwarder = if file.may_relay() {
            let threads = config.workers.get().min(MOST_THREADS);
            Some(Forwarder::bind(&ForwarderOptions {
                host,
                ports: relay_ports,
                threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
                merging: merging(config),
            })?)
        } else {
            None
        };
        let relay_addresses =
            forwarder.as_ref().map(Forwarder::local_addresses).unwrap_or_default();
        let stun_addresses = match &stun {
            Some(stun) => stun.local_addresses(),
            None => {
                let is_stun = |it: &&SocketAddr| Some(it.port()) == config.stun_port;
                relay_addresses.iter().filter(is_stun).copied().collect()
            }
        };
        let responder = stun.as_ref().map_or_else(Arc::default, StunServer::responder);
        let settings = settings(file, stun_addresses.first().map(SocketAddr::port));
        let serves_kernel = serves_any(&settings) || file.may_relay();
        let sizes = MapSizes { slots: slots(file), ..MapSizes::default() };
        let options = XdpOptions {
            interfaces: config.xdp_interfaces.clone(),
            mode: if serves_kernel { config.xdp_mode } else { Mode::Off },
            stun_port: stun_addresses.first().map_or(0, SocketAddr::port),
            pin: config.xdp_pin.clone(),
            sizes,
        };
        let directory = file.wireguard.as_ref().map(|it| Directory::new(&it.networks));
        let remembered = file.wireguard.as_ref().zip(directory.as_ref());
        let remembered = remembered.and_then(|(settings, directory)| remember(settings, directory));
        let resumed = remembered.as_ref().map(Remembered::flows).unwrap_or_default();
        let planes = Planes::prepare(&options, file, settings, resumed)?;
        let Planes { xdp, keeper, mirror, watcher, events } = planes;
        let wireguard = match (&file.wireguard, directory, &keeper) {
            (Some(settings), Some(directory), Some(keeper)) => Some(WireGuardHandle::new(
                directory,
                settings.port,
                keeper.clone(),
                settings.state_file.clone(),
                remembered,
            )),
            _ => None,
        };
        let settings = Arc::new(SettingsCell::new(settings));
        let stun = stun.map(|stun| stun.with_settings(Arc::clone(&settings)));
        let xdp = xdp.map(|xdp| Arc::new(Mutex::new(xdp)));
        let has_interfaces = !config.xdp_interfaces.is_empty() && config.xdp_mode != Mode::Off;
        if has_interfaces && !serves_kernel {
            tracing::warn!("XDP is not attached: there is neither STUN nor a flow for the kernel");
        }
        let companion = file.companion.as_ref().and_then(|companion| {
            let kernel = xdp.as_ref().zip(keeper.as_ref());
            let accompany = |(xdp, keeper)| accompany(companion, xdp, keeper, &settings);
            kernel.map(accompany).or_else(|| {
                tracing::warn!(
                    "[companion] does nothing: only the kernel data plane (-xdp-interface) could"
                );
                None
            })
        });
        Ok(Self {
            stun,
            forwarder,
            responder,
            settings,
            mirror,
            keeper,
            watcher,
            events,
            peer_relay,
            rules,
            companion,
            wireguard,
            xdp,
            stun_addresses,
            relay_addresses,
        })
    }

    /// Returns what answers STUN, and counts that.
    pub(crate) fn responder(&self) -> Option<Arc<Responder>> {
        (!self.stun_addresses.is_empty()).then(|| Arc::clone(&self.responder))
    }

    /// Returns what takes another configuration file into use.
    pub(crate) fn reloader(&self, file: FileSettings) -> UdpReloader {
        let flows = self.keeper.as_ref().zip(self.forwarder.as_ref());
        let flows = flows.map(|(keeper, forwarder)| FlowReloader {
            keeper: keeper.clone(),
            ports: forwarder.ports(),
            stun_port: self.stun_addresses.first().map(SocketAddr::port),
            stun: Mutex::new(self.stun.as_ref().map(StunServer::sockets)),
        });
        UdpReloader {
            flows,
            file: Mutex::new(file),
            settings: Arc::clone(&self.settings),
            xdp: self.xdp.clone(),
            rules: self.rules.clone(),
            wireguard: self.wireguard.clone(),
        }
    }

    /// Returns the WireGuard relay, if there is one.
    pub(crate) fn wireguard(&self) -> Option<WireGuardHandle> {
        self.wireguard.clone()
    }

    /// Returns who keeps the flows, if there are any.
    pub(crate) fn keeper(&self) -> Option<Keeper> {
        self.keeper.clone()
    }

    /// Returns who reads what the companion does, if there is one.
    pub(crate) fn companion(&self) -> Option<CompanionReader> {
        self.companion.as_ref().map(CompanionService::reader)
    }

    /// Starts the threads that forward.
    pub(crate) fn start(self) -> anyhow::Result<Started> {
        let (strangers, reported) = channel(NOTICES);
        let (control, handshakes) = channel(NOTICES);
        let (stun, stun_answers) = channel(NOTICES);
        let (wireguard, of_wireguard) = channel::<HandshakePacket>(NOTICES);
        let is_peer_relay = self.peer_relay.is_some();
        let notices = Notices {
            strangers: Some(strangers),
            control: is_peer_relay.then_some(control),
            stun: is_peer_relay.then_some(stun),
            handshakes: self.wireguard.is_some().then_some(wireguard),
        };
        let outlet = self.forwarder.as_ref().map(Forwarder::outlet);
        let forwarder = match self.forwarder {
            Some(forwarder) => {
                Some(forwarder.start(&self.mirror, &self.settings, &self.responder, &notices)?)
            }
            None => None,
        };
        let stun_totals = self.stun.as_ref().map(StunServer::totals);
        let relay_totals = forwarder.as_ref().map(Running::totals);
        let totals = Box::new(move || {
            let mut totals = relay_totals.as_ref().map(|read| read()).unwrap_or_default();
            totals.add(&stun_totals.as_ref().map(|read| read()).unwrap_or_default());
            totals
        });
        let wireguard = self.wireguard.zip(outlet.clone());
        let wireguard =
            wireguard.map(|(handle, outlet)| WireGuardService::new(handle, of_wireguard, outlet));
        let peer_relay = match (self.peer_relay, self.rules, &self.keeper, outlet) {
            (Some((settings, keys)), Some(rules), Some(keeper), Some(outlet)) => {
                Some(PeerRelayParts {
                    settings,
                    keys,
                    rules: rules.subscribe(),
                    keeper: keeper.clone(),
                    control: handshakes,
                    stun_answers,
                    outlet,
                    relay_addresses: self.relay_addresses,
                })
            }
            _ => None,
        };
        let keeper = self.keeper.map(|keeper| (keeper, reported));
        let Self { stun, watcher, events, companion, xdp, .. } = self;
        let tasks = Tasks { stun, keeper, wireguard, watcher, events, companion, xdp };
        Ok(Started { forwarder, totals, tasks, peer_relay })
    }
}

/// UDP services at work.
pub(crate) struct Started {
    /// The threads that forward, until dropped.
    pub(crate) forwarder: Option<Running>,
    /// Reads what the sockets have counted.
    pub(crate) totals: Box<dyn Fn() -> Totals + Send + Sync>,
    /// What is to run on the control runtime.
    pub(crate) tasks: Tasks,
    /// The peer relay, which has yet to join the DERP server.
    pub(crate) peer_relay: Option<PeerRelayParts>,
}

/// Reads what another process has left of WireGuard's sessions. Without that, peers need a handshake each.
fn remember(settings: &WireGuardSettings, directory: &Directory) -> Option<Remembered> {
    let path = settings.state_file.as_ref()?;
    Remembered::load(path, directory, settings.port).unwrap_or_else(|error| {
        tracing::warn!("{error}: WireGuard peers have to shake hands again");
        None
    })
}

/// Generic XDP sees packets after the kernel has merged them for sockets that ask for it, and could not
/// forward them then.
fn merging(config: &Config) -> Merging {
    if config.xdp_interfaces.is_empty() || config.xdp_mode == Mode::Native {
        Merging::On
    } else {
        Merging::Off
    }
}
