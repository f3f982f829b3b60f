//! The configuration file of `-config`: keys for flags, and what there are no flags for.

mod companion;
mod control;
mod echo;
mod flags;
mod loaded;
mod peer_relay;
mod ports;
mod reader;
mod wireguard;

use std::{collections::BTreeSet, fmt, time::Duration};

use clap::CommandFactory as _;
pub use companion::CompanionSettings;
pub use control::ControlSettings;
use derp_common::{Rate, flow::table::MAX_SLOTS, maps::DEFAULT_SLOTS, settings::Services};
pub use loaded::{ConfigFile, load_file};
pub use peer_relay::PeerRelaySettings;
pub use ports::FlowPortError;
use reader::{Fault, Section, Value};
pub use wireguard::WireGuardSettings;

use super::Options;
use crate::flow::{
    EndSpec, FlowRate, FlowSource, FlowSpec, FlowTable, Kind, Lifetime, Local, Remote,
    TableSettings,
};

/// What the configuration file says besides the flags, checked; without a file, the defaults.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FileSettings {
    /// The UDP relay.
    pub relay: RelaySettings,
    /// How STUN is answered.
    pub stun: StunSettings,
    /// The peer relay, if there is to be one.
    pub peer_relay: Option<PeerRelaySettings>,
    /// The companion of a tailscaled that is a peer relay, if there is to be one.
    pub companion: Option<CompanionSettings>,
    /// The relay for WireGuard, if there is to be one.
    pub wireguard: Option<WireGuardSettings>,
    /// The flows to be admitted, in the order of the file.
    pub flows: Vec<FlowSpec>,
}

/// The section `[relay]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RelaySettings {
    /// Whether there are flow tables: something is relayed, or the section is there and there is no flow yet.
    pub is_wanted: bool,
    /// UDP port of flows that name none.
    pub port: Option<u16>,
    /// How many flows there can be, a power of two.
    pub slots: u32,
    /// Silence after which a learnt end is forgotten.
    pub idle_timeout: Duration,
}

/// The section `[stun]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StunSettings {
    /// How often each source is answered.
    pub rate: Rate,
    /// Whether no request is answered, to shed load.
    pub shed: bool,
}

impl fmt::Display for StunSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.shed {
            return f.write_str("no request is answered (shed)");
        }
        match self.rate {
            Rate { interval: 0, .. } => f.write_str("no limit per source"),
            Rate { interval, burst } => {
                let (rate, burst) = (1_000_000_000 / interval, burst / interval);
                write!(f, "{rate} answers per second and source, {burst} at once")
            }
        }
    }
}

impl Default for FileSettings {
    fn default() -> Self {
        Self {
            relay: RelaySettings {
                is_wanted: false,
                port: None,
                slots: DEFAULT_SLOTS,
                idle_timeout: Duration::from_secs(300),
            },
            stun: StunSettings { rate: Rate::UNLIMITED, shed: false },
            peer_relay: None,
            companion: None,
            wireguard: None,
            flows: Vec::new(),
        }
    }
}

const IDLE_TIMEOUTS: [(&str, Duration); 2] =
    [("10s", Duration::from_secs(10)), ("24h", Duration::from_secs(24 * 3600))];
/// What a source may ask at once unless the file says otherwise, in answers.
const DEFAULT_BURST: u32 = 20;
const MOST_ANSWERS: u32 = 1_000_000;
const FEWEST_SLOTS: u32 = 16;

fn read(text: &str, stun_port: Option<u16>) -> Result<FileSettings, Fault> {
    let document = reader::parse(text)?;
    let document = Section::of_document(text, &document);
    // For their keys; their values are in force by then.
    flags::read(&document, &Options::command())?;
    let mut settings = FileSettings::default();
    if let Some(section) = document.section("relay")? {
        read_relay(&section, &mut settings.relay)?;
    }
    if let Some(section) = document.section("stun")? {
        settings.stun = read_stun(&section)?;
    }
    let peer_relay = document.section("peer_relay")?;
    if let Some(section) = &peer_relay {
        settings.peer_relay = peer_relay::read(section, settings.relay.port)?;
    }
    let companion = document.section("companion")?;
    if let Some(section) = &companion {
        settings.companion = companion::read(section)?;
    }
    let wireguard = document.section("wireguard")?;
    settings.wireguard = wireguard.as_ref().map(wireguard::read).transpose()?;
    let sections = document.sections("flow")?;
    let mut names = BTreeSet::new();
    let mut flows = Vec::new();
    for mut section in sections {
        let spec = read_flow(&mut section, settings.relay.port)?;
        if !names.insert(spec.name.clone()) {
            return Err(section.fault("another flow has this name"));
        }
        flows.push((section, spec));
    }
    let of_peer_relay = peer_relay.as_ref().zip(settings.peer_relay.as_ref());
    let of_peer_relay = of_peer_relay.map(|(section, it)| (section, (it.port, Services::GENEVE)));
    let of_wireguard = wireguard.as_ref().zip(settings.wireguard.as_ref());
    let of_wireguard = of_wireguard.map(|(section, it)| (section, (it.port, Services::WIREGUARD)));
    let of_flows = flows.iter().flat_map(|(section, spec)| {
        ports::of_flow(spec).into_iter().map(move |service| (section, service))
    });
    ports::check(of_peer_relay.into_iter().chain(of_wireguard).chain(of_flows), stun_port)
        .map_err(|(section, reason)| section.fault(reason))?;
    check_together(&flows, settings.relay.slots)?;
    settings.flows = flows.into_iter().map(|(_, spec)| spec).collect();
    settings.relay.is_wanted |= settings.relays();
    if let Some(section) = companion.filter(|_| settings.companion.is_some() && settings.relays()) {
        return Err(section.fault(
            "cannot be given together with [[flow]], [peer_relay] or [wireguard]: the kernel either drops what is no \
             flow's, or leaves it to tailscaled",
        ));
    }
    Ok(settings)
}

fn read_relay(section: &Section<'_>, relay: &mut RelaySettings) -> Result<(), Fault> {
    section.expect_only(&["port", "slots", "idle_timeout"])?;
    relay.is_wanted = true;
    if let Some(value) = section.value("port") {
        relay.port = Some(value.number(1..=u16::MAX)?);
    }
    if let Some(value) = section.value("slots") {
        relay.slots = value.number(FEWEST_SLOTS..=MAX_SLOTS)?;
        if !relay.slots.is_power_of_two() {
            let next = relay.slots.next_power_of_two();
            return Err(value.fault(format!("must be a power of two, like {next}")));
        }
    }
    if let Some(value) = section.value("idle_timeout") {
        relay.idle_timeout = value.duration(IDLE_TIMEOUTS)?;
    }
    Ok(())
}

fn read_stun(section: &Section<'_>) -> Result<StunSettings, Fault> {
    let rate = section.value("rate").map(|value| value.number(0..=MOST_ANSWERS)).transpose()?;
    let burst = section.value("burst").map(|value| value.number(1..=MOST_ANSWERS)).transpose()?;
    let shed = section.value("shed").map(|value| value.boolean()).transpose()?;
    if let (None, Some(burst)) = (rate, section.value("burst")) {
        return Err(burst.fault("has no meaning without rate"));
    }
    let rate = rate.unwrap_or(0);
    Ok(StunSettings {
        rate: Rate::per_second(rate, burst.unwrap_or(DEFAULT_BURST.max(rate))),
        shed: shed.unwrap_or(false),
    })
}

fn read_flow(section: &mut Section<'_>, port: Option<u16>) -> Result<FlowSpec, Fault> {
    let keys =
        ["name", "vni", "a", "learn_a", "local_a", "b", "learn_b", "local_b", "port", "rate"];
    section.expect_only(&keys)?;
    let name = section.value("name").ok_or_else(|| section.fault("name is missing"))?;
    let text = name.text()?;
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(name.fault("must be a word or two"));
    }
    section.name = format!("{} {text:?}", section.name);
    let port = match section.value("port") {
        Some(value) => value.number(1..=u16::MAX)?,
        None => port.ok_or_else(|| {
            section.fault("needs a port, here or as the port of [relay] for all flows")
        })?,
    };
    Ok(FlowSpec {
        name: text.to_owned(),
        kind: section.value("vni").map_or(Ok(Kind::Any), |value| kind(&value))?,
        ends: [
            read_end(section, ["a", "learn_a", "local_a"], port)?,
            read_end(section, ["b", "learn_b", "local_b"], port)?,
        ],
        rate: section.value("rate").map(|value| rate(&value)).transpose()?,
        lifetime: Lifetime::Configured,
        source: FlowSource::Configuration,
    })
}

fn kind(value: &Value<'_>) -> Result<Kind, Fault> {
    if value.as_text() == Some("random") {
        return Ok(Kind::Geneve { vni: None });
    }
    let number = value.as_number().and_then(|number| u32::try_from(number).ok());
    match number.filter(|number| (1..1 << 24).contains(number)) {
        Some(number) => Ok(Kind::Geneve { vni: Some(number) }),
        None => Err(value.fault("must be a number from 1 to 16777215, or \"random\"")),
    }
}

fn read_end(
    section: &Section<'_>,
    [fixed, learn, local]: [&str; 3],
    port: u16,
) -> Result<EndSpec, Fault> {
    let remote = match (section.value(fixed), section.value(learn)) {
        (Some(value), None) => {
            Remote::Fixed(value.parsed("an address with a port, like 192.0.2.1:51820")?)
        }
        (None, Some(value)) => {
            let networks = value.list()?;
            if networks.is_empty() {
                return Err(value.fault("must name a network"));
            }
            let network = |value: &Value<'_>| value.parsed("a network, like 192.0.2.0/24");
            Remote::Learn(networks.iter().map(network).collect::<Result<_, _>>()?)
        }
        (Some(_), Some(value)) => {
            return Err(value.fault(format!("cannot be given together with {fixed}")));
        }
        (None, None) => return Err(section.fault(format!("needs {fixed} or {learn}"))),
    };
    let ip = section.value(local).map(|value| value.parsed("an address, like 192.0.2.1"));
    Ok(EndSpec { remote, local: Local { ip: ip.transpose()?, port }, sender: 0 })
}

/// Reads a rate like `100 Mbit/s`.
fn rate(value: &Value<'_>) -> Result<FlowRate, Fault> {
    let text = value.text()?;
    let example = || value.fault(format!("{text:?} is not a rate like \"100 Mbit/s\""));
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(example)?;
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit.trim_start() {
        "bit/s" => 1,
        "kbit/s" => 1_000,
        "Mbit/s" => 1_000_000,
        "Gbit/s" => 1_000_000_000,
        _ => return Err(example()),
    };
    let number: u64 = number.parse().map_err(|_| example())?;
    FlowRate::bits_per_second(number.saturating_mul(unit))
        .map_err(|error| value.fault(error.to_string()))
}

/// Checks that the flows can be admitted together.
fn check_together(flows: &[(Section<'_>, FlowSpec)], slots: u32) -> Result<(), Fault> {
    let mut trial = FlowTable::new(TableSettings { slots, idle_timeout: 0, seed: 0 });
    for has_vni in [true, false] {
        for (section, spec) in flows {
            if matches!(spec.kind, Kind::Geneve { vni: Some(_) }) == has_vni {
                trial.add(spec.clone(), 0).map_err(|error| section.fault(error.to_string()))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
