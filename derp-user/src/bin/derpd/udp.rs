//! Everything served over UDP: STUN and relayed flows, in the kernel and in userspace.

use std::{net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Duration};

use anyhow::Context as _;
use derp_common::{
    Rate, Settings, Switches,
    settings::{Port, Services},
};
use derp_user::{
    companion::Serving,
    config::{
        self, CompanionSettings, Config, ConfigError, FileSettings, PeerRelaySettings, RelayKeys,
        WireGuardSettings,
    },
    dataplane::{
        AttachedMode, DataplaneError, FlowEvent, FlowEvents, FlowMaps, KernelTables, MapSizes,
        Mode, Pin, Prepared, Watcher, Xdp, XdpOptions, route::Resolver, self_test,
    },
    flow::{FlowSpec, Mirror, SharedMirror},
    forward::{
        ControlPacket, Forwarder, ForwarderOptions, HandshakePacket, NOTICES, Notices, Outlet,
        Running, Stranger, StunAnswer,
    },
    peer_relay::{PeerRelay, PeerRelayOptions, Ports, SEED_LENGTH},
    proto::keys::NodePublic,
    server::{DEFAULT_QUEUE_DEPTH, LocalClient, Statistics},
    stun::{Responder, StunServer},
    tailnet::{Tailnet, TailnetHandle},
    udp::{Merging, SettingsCell, Totals},
    udp_relay::{
        CompanionReader, CompanionService, CompanionServiceOptions, Keeper, KeeperOptions,
        PeerRelayMonitor, PeerRelayRules, PeerRelayService, Remembered, WireGuardHandle,
        WireGuardService,
    },
    wireguard::Directory,
};
use parking_lot::Mutex;
use tokio::{
    sync::{
        mpsc::{Receiver, channel},
        watch,
    },
    time::sleep,
};

use crate::{
    tailnet,
    udp_reload::{UdpReloader, rules},
};

/// How often control packets of one end may reach userspace: a handshake takes two.
const CONTROL_RATE: Rate = Rate::per_second(10, 20);
/// Slots of the kernel's tables when there are no flows.
const NO_SLOTS: u32 = 16;
/// How often the program's counters are looked at.
const SUSPICION: Duration = Duration::from_secs(30);
/// Most threads that forward in userspace.
const MOST_THREADS: usize = 4;

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
        let forwarder = if relay_ports.is_empty() {
            None
        } else {
            let threads = config.workers.get().min(MOST_THREADS);
            Some(Forwarder::bind(&ForwarderOptions {
                host,
                ports: relay_ports,
                threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
                merging: merging(config),
            })?)
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
        let sizes = MapSizes { slots: slots(file), ..MapSizes::default() };
        let options = XdpOptions {
            interfaces: config.xdp_interfaces.clone(),
            mode: if serves_any(&settings) { config.xdp_mode } else { Mode::Off },
            stun_port: stun_addresses.first().map_or(0, SocketAddr::port),
            pin: pin(config, file),
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
        if has_interfaces && !serves_any(&settings.load()) {
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
    pub(crate) fn reloader(&self, config: &Config, file: FileSettings) -> Option<UdpReloader> {
        let path = config.file.clone()?;
        let (settings, xdp) = (Arc::clone(&self.settings), self.xdp.clone());
        let (stun_port, rules) = (config.stun_port, self.rules.clone());
        let wireguard = self.wireguard.clone();
        Some(UdpReloader {
            path,
            stun_port,
            file: Mutex::new(file),
            settings,
            xdp,
            rules,
            wireguard,
        })
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

/// A peer relay that is not at work yet.
pub(crate) struct PeerRelayParts {
    settings: PeerRelaySettings,
    keys: RelayKeys,
    rules: watch::Receiver<Arc<PeerRelayRules>>,
    keeper: Keeper,
    control: Receiver<ControlPacket>,
    stun_answers: Receiver<StunAnswer>,
    outlet: Outlet,
    relay_addresses: Vec<SocketAddr>,
}

impl PeerRelayParts {
    /// Has the relay's node join its tailnet, if it is to be in one.
    pub(crate) fn join_tailnet(
        &self,
        config: &Config,
        port: u16,
    ) -> anyhow::Result<Option<Tailnet>> {
        tailnet::start(config, port, &self.settings, &self.keys)
    }

    /// Joins the DERP server that has these statistics and the key `own_server`.
    pub(crate) fn join(
        self,
        statistics: &Arc<Statistics>,
        own_server: NodePublic,
        tailnet: Option<TailnetHandle>,
    ) -> anyhow::Result<PeerRelayService> {
        let Self { settings, keys, rules, keeper, control, stun_answers, outlet, relay_addresses } =
            self;
        let is_ours = |address: &&SocketAddr| address.port() == settings.port;
        let ours: Vec<_> = relay_addresses.iter().filter(is_ours).copied().collect();
        let specified = ours.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified());
        let bound = specified.collect();
        let has = |is_ipv4| ours.iter().any(|address| address.is_ipv4() == is_ipv4);
        let port = |is_ipv4| if has(is_ipv4) { settings.port } else { 0 };
        let ports = Ports { ipv4: port(true), ipv6: port(false) };
        let mut seed = [0; SEED_LENGTH];
        getrandom::fill(&mut seed).map_err(ConfigError::Random)?;
        let node = keys.node.public();
        tracing::info!("peer relay on UDP port {}: {node}, {}", settings.port, keys.disco.public());
        let address = ours.first().copied().unwrap_or(([0, 0, 0, 0], settings.port).into());
        let relay = PeerRelay::new(PeerRelayOptions {
            identity: keys.disco,
            seed,
            port: settings.port,
            limits: settings.limits,
        });
        let statistics = Arc::clone(statistics);
        let join =
            move |node| LocalClient::join(&statistics, node, address, NOTICES, DEFAULT_QUEUE_DEPTH);
        Ok(PeerRelayService {
            monitor: PeerRelayMonitor::new(relay, keeper, node, settings.port),
            client: join(node),
            join: Box::new(join),
            node: keys.node,
            own_server,
            control,
            stun_answers,
            outlet,
            rules,
            tailnet,
            ports,
            bound,
        })
    }
}

/// What of the UDP services runs on the control runtime.
pub(crate) struct Tasks {
    stun: Option<StunServer>,
    keeper: Option<(Keeper, Receiver<Stranger>)>,
    wireguard: Option<WireGuardService>,
    watcher: Option<Watcher>,
    events: Option<FlowEvents>,
    companion: Option<CompanionService>,
    xdp: Option<SharedXdp>,
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

/// The kernel data plane, which metrics and reloading share.
pub(crate) type SharedXdp = Arc<Mutex<Xdp>>;

/// Both data planes, with the flows of the configuration in them.
struct Planes {
    xdp: Option<Xdp>,
    keeper: Option<Keeper>,
    mirror: SharedMirror,
    watcher: Option<Watcher>,
    events: Option<FlowEvents>,
}

impl Planes {
    fn prepare(
        options: &XdpOptions,
        file: &FileSettings,
        settings: Settings,
        resumed: Vec<FlowSpec>,
    ) -> anyhow::Result<Self> {
        let keeper_options = KeeperOptions { resumed, ..keeper_options(file) };
        let prepared = options.degrade(Xdp::prepare(options))?;
        if let Some(prepared) = prepared
            && let Some(planes) =
                Self::with_kernel(options, prepared, file, settings, &keeper_options)?
        {
            return Ok(planes);
        }
        let mirror = SharedMirror::new(Mirror::new(slots(file)));
        let keeper = if file.relays() {
            Some(Keeper::start(&keeper_options, mirror.clone(), None)?)
        } else {
            None
        };
        Ok(Self { xdp: None, keeper, mirror, watcher: None, events: None })
    }

    /// Returns `None` where the options let userspace serve alone after all.
    fn with_kernel(
        options: &XdpOptions,
        mut prepared: Prepared,
        file: &FileSettings,
        settings: Settings,
        keeper_options: &KeeperOptions,
    ) -> anyhow::Result<Option<Self>> {
        // Also without flows: an earlier daemon may have left some.
        let mirror = SharedMirror::new(Mirror::new(slots(file)));
        let tables = KernelTables::new(FlowMaps::take(prepared.kernel_mut())?)?;
        let keeper = Keeper::start(keeper_options, mirror.clone(), Some(tables))?;
        prepared.configure(settings)?;
        let Some(mut xdp) = options.degrade(prepared.commit().map(Some))? else {
            return Ok(None);
        };
        let mut watcher = xdp.take_watcher();
        let keeper = file.has_flows().then_some(keeper);
        if let (Some(watcher), Some(keeper)) = (&mut watcher, &keeper) {
            let legs = usize::try_from(slots(file)).unwrap_or(usize::MAX).saturating_mul(2);
            let (resolver, ways) = Resolver::new(legs).context("cannot ask for routes")?;
            watcher.follow_routes(resolver);
            keeper.follow(ways);
        }
        let events = keeper.is_some().then(|| FlowEvents::take(xdp.kernel_mut())).transpose()?;
        Ok(Some(Self { xdp: Some(xdp), keeper, mirror, watcher, events }))
    }
}

fn keeper_options(file: &FileSettings) -> KeeperOptions {
    KeeperOptions {
        slots: slots(file),
        idle_timeout: nanoseconds(file.relay.idle_timeout),
        flows: file.flows.clone(),
        resumed: Vec::new(),
    }
}

/// Reads what another process has left of WireGuard's sessions. Without that, peers need a handshake each.
fn remember(settings: &WireGuardSettings, directory: &Directory) -> Option<Remembered> {
    let path = settings.state_file.as_ref()?;
    Remembered::load(path, directory, settings.port).unwrap_or_else(|error| {
        tracing::warn!("{error}: WireGuard peers have to shake hands again");
        None
    })
}

fn slots(file: &FileSettings) -> u32 {
    if file.has_flows() { file.relay.slots } else { NO_SLOTS }
}

/// The ports flows are relayed on.
fn relay_ports(file: &FileSettings) -> Vec<u16> {
    let relays = file.ports(None).into_iter().filter(|port| port.services != 0);
    relays.map(|port| u16::from_be(port.number)).collect()
}

fn settings(file: &FileSettings, stun_port: Option<u16>) -> Settings {
    Settings {
        switches: switches(file),
        ports: file.ports(stun_port),
        slot_mask: slots(file) - 1,
        stun_rate: file.stun.rate,
        control_rate: CONTROL_RATE,
        sample_interval: file.companion.as_ref().map_or(0, |it| nanoseconds(it.sample)),
        ..Settings::new(0)
    }
}

pub(crate) fn switches(file: &FileSettings) -> u32 {
    let switch = |is_on, switch| if is_on { switch } else { 0 };
    switch(file.stun.shed, Switches::SHED_STUN)
        | switch(file.companion.is_some(), Switches::COMPANION)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Tells whether there is anything for the kernel program, now or, beside a companion, later.
fn serves_any(settings: &Settings) -> bool {
    settings.has(Switches::COMPANION) || settings.ports.iter().any(|port| port.services != 0)
}

/// Makes the companion, which tells the kernel program what is tailscaled's.
fn accompany(
    companion: &CompanionSettings,
    xdp: &SharedXdp,
    keeper: &Keeper,
    settings: &Arc<SettingsCell>,
) -> CompanionService {
    let base = settings.load().ports;
    let own_ports = base.iter().filter(|port| port.services != 0);
    let own_ports = own_ports.map(|port| u16::from_be(port.number)).collect();
    for attachment in xdp.lock().attachments() {
        if attachment.mode == AttachedMode::Generic {
            let interface = &attachment.interface;
            tracing::warn!(
                "companion: in generic mode the kernel merges packets for tailscaled's socket first, and leaves them \
                 to it; `ethtool -K {interface} gro off` prevents that"
            );
        }
    }
    let (xdp, settings) = (Arc::clone(xdp), Arc::clone(settings));
    let serve = move |serving: Option<Serving>| {
        let mut new = settings.load();
        new.ports = base;
        if let Some(Serving { port, .. }) = serving
            && let Some(place) = new.ports.iter_mut().find(|place| place.services == 0)
        {
            *place = Port { number: port.to_be(), services: Services::GENEVE };
        }
        new.lease = serving.map_or(0, |serving| serving.lease);
        xdp.lock().kernel_mut().configure(new)?;
        settings.store(new);
        Ok(())
    };
    CompanionService::new(CompanionServiceOptions {
        socket: companion.socket.clone(),
        poll: companion.poll,
        own_ports,
        keeper: keeper.clone(),
        serve: Box::new(serve),
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

/// Where the kernel data plane is kept: the command line wins over the file, and the file over the environment.
fn pin(config: &Config, file: &FileSettings) -> Pin {
    match (&config.xdp_pin, &file.pin) {
        (Some(pin), config::Pin::Unset) => pin.clone(),
        (Some(pin), _) if !config.open_to_file.pins => pin.clone(),
        (None, config::Pin::Unset) => Pin::if_possible(),
        (_, config::Pin::Off) => Pin::Off,
        (_, config::Pin::Directory(path)) => {
            Pin::Directory { path: path.clone(), is_required: true }
        }
    }
}
