//! Everything served over UDP: STUN and relayed flows, in the kernel and in userspace.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use derp_common::{Rate, Settings, Switches};
use derp_user::{
    config::{
        self, Config, ConfigError, FileSettings, PeerRelaySettings, RelayKeys, WireGuardSettings,
    },
    dataplane::{
        DataplaneError, FlowEvent, FlowEvents, FlowMaps, KernelTables, MapSizes, Mode, Pin,
        Prepared, Watcher, Xdp, XdpOptions, route::Resolver, self_test,
    },
    flow::{FlowSpec, Mirror, SharedMirror},
    forward::{
        ControlPacket, Forwarder, ForwarderOptions, HandshakePacket, NOTICES, Notices, Outlet,
        Running, Stranger,
    },
    peer_relay::{PeerRelay, PeerRelayOptions, Ports, SEED_LENGTH},
    server::{DEFAULT_QUEUE_DEPTH, LocalClient, Statistics},
    stun::{Responder, StunServer},
    udp::{Merging, SettingsCell, Totals},
    udp_relay::{
        Keeper, KeeperOptions, PeerRelayService, Remembered, WireGuardHandle, WireGuardService,
    },
    wireguard::Directory,
};
use parking_lot::Mutex;
use tokio::{
    sync::mpsc::{Receiver, channel},
    time::sleep,
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
            let keys = config::load_relay_keys(&it.key_file)?;
            Ok::<_, ConfigError>((it, keys))
        };
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
            mode: if settings.ports[0].services == 0 { Mode::Off } else { config.xdp_mode },
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
            wireguard,
            xdp: xdp.map(|xdp| Arc::new(Mutex::new(xdp))),
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
        let (stun_port, wireguard) = (config.stun_port, self.wireguard.clone());
        Some(UdpReloader { path, stun_port, file: Mutex::new(file), settings, xdp, wireguard })
    }

    /// Returns the WireGuard relay, if there is one.
    pub(crate) fn wireguard(&self) -> Option<WireGuardHandle> {
        self.wireguard.clone()
    }

    /// Returns who keeps the flows, if there are any.
    pub(crate) fn keeper(&self) -> Option<Keeper> {
        self.keeper.clone()
    }

    /// Starts the threads that forward.
    pub(crate) fn start(self) -> anyhow::Result<Started> {
        let (strangers, reported) = channel(NOTICES);
        let (control, handshakes) = channel(NOTICES);
        let control = self.peer_relay.is_some().then_some(control);
        let (wireguard, of_wireguard) = channel::<HandshakePacket>(NOTICES);
        let wireguard = self.wireguard.is_some().then_some(wireguard);
        let notices = Notices { strangers: Some(strangers), control, handshakes: wireguard };
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
        let peer_relay = match (self.peer_relay, &self.keeper, outlet) {
            (Some((settings, keys)), Some(keeper), Some(outlet)) => Some(PeerRelayParts {
                settings,
                keys,
                keeper: keeper.clone(),
                control: handshakes,
                outlet,
                relay_addresses: self.relay_addresses,
            }),
            _ => None,
        };
        let keeper = self.keeper.map(|keeper| (keeper, reported));
        let Self { stun, watcher, events, xdp, .. } = self;
        let tasks = Tasks { stun, keeper, wireguard, watcher, events, xdp };
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
    keeper: Keeper,
    control: Receiver<ControlPacket>,
    outlet: Outlet,
    relay_addresses: Vec<SocketAddr>,
}

impl PeerRelayParts {
    /// Joins the DERP server that has these statistics.
    pub(crate) fn join(self, statistics: &Statistics) -> anyhow::Result<PeerRelayService> {
        let Self { settings, keys, keeper, control, outlet, relay_addresses } = self;
        let is_ours = |address: &&SocketAddr| address.port() == settings.port;
        let ours: Vec<_> = relay_addresses.iter().filter(is_ours).copied().collect();
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
        let client = LocalClient::join(statistics, node, address, NOTICES, DEFAULT_QUEUE_DEPTH);
        let (allow, addresses) = (settings.allow, settings.addresses);
        Ok(PeerRelayService { relay, keeper, client, control, outlet, allow, addresses, ports })
    }
}

/// What of the UDP services runs on the control runtime.
pub(crate) struct Tasks {
    stun: Option<StunServer>,
    keeper: Option<(Keeper, Receiver<Stranger>)>,
    wireguard: Option<WireGuardService>,
    watcher: Option<Watcher>,
    events: Option<FlowEvents>,
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
        let suspicion = async {
            if let Some(xdp) = self.xdp {
                suspect(&xdp).await;
            }
        };
        tokio::join!(stun, keeper, wireguard, watcher, events, suspicion);
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

/// Takes what the configuration file says of STUN into use, while everything runs.
pub(crate) struct UdpReloader {
    path: PathBuf,
    stun_port: Option<u16>,
    /// What is in force, but for what only a start brings into force.
    file: Mutex<FileSettings>,
    settings: Arc<SettingsCell>,
    xdp: Option<SharedXdp>,
    wireguard: Option<WireGuardHandle>,
}

impl UdpReloader {
    /// Reads the file.
    pub(crate) fn prepare(&self) -> Result<FileSettings, ConfigError> {
        config::load_file(&self.path, self.stun_port)
    }

    /// Puts what it says into force, in the kernel first, and returns what has changed.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be told; nothing has changed then.
    pub(crate) fn apply(&self, new: FileSettings) -> Result<Vec<String>, DataplaneError> {
        let mut changes = Vec::new();
        let mut file = self.file.lock();
        if new.stun != file.stun {
            let mut settings = self.settings.load();
            settings.switches = switches(&new);
            settings.stun_rate = new.stun.rate;
            if let Some(xdp) = &self.xdp {
                xdp.lock().kernel_mut().configure(settings)?;
            }
            self.settings.store(settings);
            changes.push(format!("STUN: {}", new.stun));
        }
        let networks = |file: &FileSettings| file.wireguard.as_ref().map(|it| it.networks.clone());
        if let (Some(wireguard), Some(wanted)) = (&self.wireguard, networks(&new))
            && networks(&file).as_ref() != Some(&wanted)
        {
            let directory = Directory::new(&wanted);
            changes.push(format!("WireGuard: {} peers", directory.len()));
            wireguard.reload(directory);
            if let Some(section) = &mut file.wireguard {
                section.networks = wanted;
            }
        }
        let rest = |file: &FileSettings| {
            let wireguard = file.wireguard.as_ref();
            let wireguard = wireguard.map(|it| (it.port, it.state_file.clone()));
            (file.relay, file.pin.clone(), file.peer_relay.clone(), wireguard, file.flows.clone())
        };
        if rest(&new) != rest(&file) {
            changes.push(format!(
                "{}: [relay], [dataplane], [peer_relay], flows, and port and state_file of \
                 [wireguard] change at the next start",
                self.path.display()
            ));
        }
        file.stun = new.stun;
        Ok(changes)
    }
}

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
        let keeper = file.relays().then_some(keeper);
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
    let idle_timeout = u64::try_from(file.relay.idle_timeout.as_nanos());
    KeeperOptions {
        slots: slots(file),
        idle_timeout: idle_timeout.unwrap_or(u64::MAX),
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
    if file.relays() { file.relay.slots } else { NO_SLOTS }
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
        ..Settings::new(0)
    }
}

fn switches(file: &FileSettings) -> u32 {
    if file.stun.shed { Switches::SHED_STUN } else { 0 }
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

/// Where the kernel data plane is kept: the command line wins over the file.
fn pin(config: &Config, file: &FileSettings) -> Pin {
    match (&config.xdp_pin, &file.pin) {
        (Some(pin), _) => pin.clone(),
        (None, config::Pin::Unset) => Pin::if_possible(),
        (None, config::Pin::Off) => Pin::Off,
        (None, config::Pin::Directory(path)) => {
            Pin::Directory { path: path.clone(), is_required: true }
        }
    }
}
