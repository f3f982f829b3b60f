//! Both data planes, and the settings that they share.

use std::time::Duration;

use anyhow::Context as _;
use derp_common::{Rate, Settings, Switches};
use derp_user::{
    config::FileSettings,
    dataplane::{
        FlowEvents, FlowMaps, KernelTables, Prepared, Watcher, Xdp, XdpOptions, route::Resolver,
    },
    flow::{FlowSpec, Mirror, SharedMirror},
    udp_relay::{Keeper, KeeperOptions},
};

/// How often control packets of one end may reach userspace: a handshake takes two.
const CONTROL_RATE: Rate = Rate::per_second(10, 20);
/// Slots of the kernel's tables when there are no flows.
const NO_SLOTS: u32 = 16;

/// Both data planes, with the flows of the configuration in them.
pub(super) struct Planes {
    pub(super) xdp: Option<Xdp>,
    pub(super) keeper: Option<Keeper>,
    pub(super) mirror: SharedMirror,
    pub(super) watcher: Option<Watcher>,
    pub(super) events: Option<FlowEvents>,
}

impl Planes {
    pub(super) fn prepare(
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
        let keeper = if file.may_relay() {
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
        let keeper = file.has_tables().then_some(keeper);
        let resolver = match &keeper {
            Some(keeper) => Some(find_ways(keeper, slots(file), prepared.is_adopted())?),
            None => None,
        };
        prepared.configure(settings)?;
        let Some(mut xdp) = options.degrade(prepared.commit().map(Some))? else {
            return Ok(None);
        };
        let mut watcher = xdp.take_watcher();
        if let (Some(watcher), Some(resolver)) = (&mut watcher, resolver) {
            watcher.follow_routes(resolver);
        }
        let events = keeper.is_some().then(|| FlowEvents::take(xdp.kernel_mut())).transpose()?;
        Ok(Some(Self { xdp: Some(xdp), keeper, mirror, watcher, events }))
    }
}

/// Has the ways of the flows found. New maps, which an earlier daemon's program is about to be exchanged for, hold them
/// before they are used, so that the kernel passes no packet up in between; adopted ones hold them already.
fn find_ways(keeper: &Keeper, slots: u32, is_adopted: bool) -> anyhow::Result<Resolver> {
    let legs = usize::try_from(slots).unwrap_or(usize::MAX).saturating_mul(2);
    let (mut resolver, ways) = Resolver::new(legs).context("cannot ask for routes")?;
    keeper.follow(ways);
    if !is_adopted {
        match resolver.find() {
            Ok(()) => keeper.settle_ways(),
            Err(error) => tracing::warn!("{error}: userspace forwards until routes are known"),
        }
    }
    Ok(resolver)
}

fn keeper_options(file: &FileSettings) -> KeeperOptions {
    KeeperOptions {
        slots: slots(file),
        idle_timeout: nanoseconds(file.relay.idle_timeout),
        flows: file.flows.clone(),
        resumed: Vec::new(),
    }
}

pub(super) fn slots(file: &FileSettings) -> u32 {
    if file.has_tables() { file.relay.slots } else { NO_SLOTS }
}

/// The ports flows are relayed on.
pub(super) fn relay_ports(file: &FileSettings) -> Vec<u16> {
    let relays = file.ports(None).into_iter().filter(|port| port.services != 0);
    relays.map(|port| u16::from_be(port.number)).collect()
}

pub(super) fn settings(file: &FileSettings, stun_port: Option<u16>) -> Settings {
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

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Tells whether there is anything for the kernel program, now or, beside a companion, later.
pub(super) fn serves_any(settings: &Settings) -> bool {
    settings.has(Switches::COMPANION) || settings.ports.iter().any(|port| port.services != 0)
}
