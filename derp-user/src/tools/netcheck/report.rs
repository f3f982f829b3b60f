//! What `derpd netcheck` has found, for people and for programs. Without I/O.

use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Duration};

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use crate::{
    client::map::DerpMap,
    tools::{Severity, stun::Seen},
};

/// What one question came to.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) region: u32,
    pub(super) way: Way,
}

/// How a relay was asked.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// By STUN, to an address of this family.
    Stun(Seen, Family),
    /// By HTTPS.
    Https(Duration),
}

/// Which of the two.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Family {
    Ipv4,
    Ipv6,
}

/// How the network reaches the relays.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Whether UDP gets through to any relay.
    pub udp: bool,
    /// How relays see this machine over IPv4.
    pub global_v4: Option<SocketAddr>,
    /// How relays see this machine over IPv6.
    pub global_v6: Option<SocketAddr>,
    /// Whether this machine has IPv6 at all.
    pub os_has_ipv6: bool,
    /// Whether different relays see different addresses; `None` if fewer than two have answered over IPv4.
    pub mapping_varies: Option<bool>,
    /// The nearest region.
    pub nearest: Option<u32>,
    /// Every region of the map.
    pub regions: BTreeMap<u32, RegionReport>,
    /// What did not work, in sentences.
    pub problems: Vec<String>,
}

/// How far away one region is: the nearest of its relays.
#[derive(Clone, Debug, Default)]
pub struct RegionReport {
    /// Short name.
    pub code: String,
    /// Long name.
    pub name: String,
    /// By STUN over IPv4.
    pub v4: Option<Duration>,
    /// By STUN over IPv6.
    pub v6: Option<Duration>,
    /// By HTTPS.
    pub https: Option<Duration>,
    /// Whether clients never make it their home.
    pub is_never_home: bool,
    /// Whether it answers STUN at all, as the map has it.
    pub has_stun: bool,
}

impl RegionReport {
    /// The shortest latency by STUN, or by HTTPS where UDP does not get through.
    fn latency(&self) -> Option<Duration> {
        self.stun().or(self.https)
    }

    fn stun(&self) -> Option<Duration> {
        self.v4.into_iter().chain(self.v6).min()
    }
}

impl Report {
    /// Puts together what was measured on the relays of `map`.
    pub(super) fn new(
        map: &DerpMap,
        measured: &[Measured],
        os_has_ipv6: bool,
        problems: Vec<String>,
    ) -> Self {
        let mut report = Self { os_has_ipv6, problems, ..Self::default() };
        for region in map.regions.values() {
            let found = RegionReport {
                code: region.code.clone(),
                name: region.name.clone(),
                is_never_home: region.no_measure_no_home,
                has_stun: region.nodes.iter().any(|node| node.stun_port().is_some()),
                ..RegionReport::default()
            };
            report.regions.insert(region.id, found);
        }
        let mut mappings = Vec::new();
        for Measured { region, way } in measured {
            let Some(region) = report.regions.get_mut(region) else { continue };
            let (place, latency) = match way {
                Way::Https(latency) => (&mut region.https, *latency),
                Way::Stun(seen, Family::Ipv4) => {
                    mappings.push(seen.address);
                    report.global_v4.get_or_insert(seen.address);
                    (&mut region.v4, seen.latency)
                }
                Way::Stun(seen, Family::Ipv6) => {
                    report.global_v6.get_or_insert(seen.address);
                    (&mut region.v6, seen.latency)
                }
            };
            *place = Some(place.map_or(latency, |best| best.min(latency)));
        }
        report.udp = report.global_v4.or(report.global_v6).is_some();
        if let [first, others @ ..] = &mappings[..]
            && !others.is_empty()
        {
            report.mapping_varies = Some(others.iter().any(|other| other != first));
        }
        let homes = report.regions.iter().filter(|(_, region)| !region.is_never_home);
        let reached = homes.filter_map(|(id, region)| Some((region.latency()?, *id)));
        report.nearest = reached.min().map(|(_, id)| id);
        report
    }

    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        if self.regions.values().all(|region| region.latency().is_none()) {
            return Severity::Critical;
        }
        let is_reached = |region: &RegionReport| {
            if region.has_stun { region.stun().is_some() } else { region.https.is_some() }
        };
        if self.regions.values().all(is_reached) { Severity::Ok } else { Severity::Warning }
    }

    /// Writes it as one JSON object. Durations are nanoseconds, as Tailscale writes them.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let latencies = |of: fn(&RegionReport) -> Option<Duration>| {
            let known = self.regions.iter().filter_map(|(id, it)| Some((*id, of(it)?)));
            known.map(|(id, it)| (id, nanoseconds(it))).collect::<BTreeMap<u32, u64>>()
        };
        let address = |address: Option<SocketAddr>| {
            address.map(|address| address.to_string()).unwrap_or_default()
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("UDP", &self.udp)?;
        map.serialize_entry("IPv4", &self.global_v4.is_some())?;
        map.serialize_entry("IPv6", &self.global_v6.is_some())?;
        map.serialize_entry("OSHasIPv6", &self.os_has_ipv6)?;
        map.serialize_entry("MappingVariesByDestIP", &self.mapping_varies)?;
        map.serialize_entry("PreferredDERP", &self.nearest.unwrap_or_default())?;
        map.serialize_entry("RegionLatency", &latencies(RegionReport::latency))?;
        map.serialize_entry("RegionV4Latency", &latencies(|it| it.v4))?;
        map.serialize_entry("RegionV6Latency", &latencies(|it| it.v6))?;
        map.serialize_entry("RegionHTTPSLatency", &latencies(|it| it.https))?;
        map.serialize_entry("GlobalV4", &address(self.global_v4))?;
        map.serialize_entry("GlobalV6", &address(self.global_v6))?;
        map.serialize_entry("Status", &self.severity())?;
        map.serialize_entry("Problems", &self.problems)?;
        map.end()
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Report:")?;
        writeln!(f, "\t* UDP: {}", self.udp)?;
        match self.global_v4 {
            Some(address) => writeln!(f, "\t* IPv4: yes, {address}")?,
            None => writeln!(f, "\t* IPv4: (no addr found)")?,
        }
        match (self.global_v6, self.os_has_ipv6) {
            (Some(address), _) => writeln!(f, "\t* IPv6: yes, {address}")?,
            (None, true) => writeln!(f, "\t* IPv6: no, but OS has support")?,
            (None, false) => writeln!(f, "\t* IPv6: no, unavailable in OS")?,
        }
        let varies = match self.mapping_varies {
            Some(varies) => varies.to_string(),
            None => "unknown (fewer than two relays answered)".to_owned(),
        };
        writeln!(f, "\t* MappingVariesByDestIP: {varies}")?;
        let nearest = self.nearest.and_then(|id| self.regions.get(&id));
        match nearest {
            Some(region) => writeln!(f, "\t* Nearest DERP: {}", region.name)?,
            None => writeln!(f, "\t* Nearest DERP: unknown (no response to latency probes)")?,
        }
        writeln!(f, "\t* DERP latency:")?;
        let mut regions: Vec<_> = self.regions.iter().collect();
        regions.sort_by_key(|(id, it)| (it.latency().is_none(), it.latency(), **id));
        for (_, region) in regions {
            let RegionReport { code, name, v4, v6, https, .. } = region;
            let ways = [("IPv4", v4), ("IPv6", v6), ("HTTPS", https)];
            let ways: Vec<_> = ways
                .iter()
                .filter_map(|(way, it)| Some(format!("{way} {}", milliseconds((**it)?))))
                .collect();
            let latency = region.latency().map(milliseconds).unwrap_or_default();
            let ways = if ways.is_empty() { "no answer".to_owned() } else { ways.join(", ") };
            writeln!(f, "\t\t- {code:>3}: {latency:<7} ({name}; {ways})")?;
        }
        self.problems.iter().try_for_each(|problem| writeln!(f, "\t! {problem}"))
    }
}

/// With one digit behind the point.
fn milliseconds(duration: Duration) -> String {
    format!("{:.1}ms", duration.as_secs_f64() * 1e3)
}
