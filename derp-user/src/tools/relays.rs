//! Which relays a tool is to look at, as its command line says.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use clap::Args;
use hyper::{HeaderMap, Method, StatusCode, Uri};
use tokio::time::timeout;

use crate::{
    admit::web::{Question, Web},
    client::{ClientError, Target, Trust, map::DerpMap},
    config::GoDuration,
    files,
};

/// Longest that fetching a map may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest map that is read.
const MAX_MAP: usize = 1 << 20;
/// Most relays that one run looks at, and most of one region: each is a pair with each.
const MAX_NODES: usize = 1000;
const MAX_REGION: usize = 100;

/// The relays, and whose certificates count.
#[derive(Args, Clone, Debug)]
pub struct Relays {
    /// DERP map: a file or an address. JSON as clients are given it, a Tailscale policy file with one, or Headscale's
    /// YAML
    #[arg(long, value_name = "FILE|URL", required_unless_present = "server")]
    pub derp_map: Option<String>,
    /// One relay instead: `host` or `host:port`
    #[arg(long, value_name = "HOST", conflicts_with = "derp_map")]
    pub server: Option<String>,
    /// UDP port of STUN of --server; -1 for none [default: 3478]
    #[arg(long, value_name = "PORT", conflicts_with = "derp_map", allow_hyphen_values = true, value_parser = clap::value_parser!(i32).range(-1..=65535))]
    pub stun_port: Option<i32>,
    /// Certificate that --server must show: `sha256-raw:` and 64 hex digits
    #[arg(long, value_name = "PIN", conflicts_with = "derp_map")]
    pub pin: Option<String>,
    /// Only this region of the map, by its code or number
    #[arg(long, value_name = "REGION", conflicts_with = "server")]
    pub region: Option<String>,
    /// PEM file of root certificates to trust instead of the system's, for the map's address, too
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Accept any certificate of a relay where the map names none
    #[arg(long, conflicts_with = "ca")]
    pub insecure: bool,
}

/// How they are asked.
#[derive(Args, Clone, Copy, Debug)]
pub struct Patience {
    /// Longest that a relay may take to connect, to answer, and to pass on whatever it is sent
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = some_time)]
    pub timeout: Duration,
    /// Leave out STUN over IPv6, which this machine may not have
    #[arg(long)]
    pub no_ipv6: bool,
}

/// Longest time that makes sense anywhere: a day.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Reads a duration as Go writes it; none, and more than a day, are refused.
pub(super) fn some_time(text: &str) -> Result<Duration, String> {
    let parsed: GoDuration = text.parse().map_err(|error| format!("{error}"))?;
    match parsed.to_duration() {
        Some(time) if !time.is_zero() && time <= LONGEST => Ok(time),
        Some(_) | None => Err("must be more than 0s and at most 24h".to_owned()),
    }
}

/// Why it is not known which relays to look at.
#[derive(Debug, thiserror::Error)]
pub enum RelaysError {
    /// The map cannot be had.
    #[error("cannot read the DERP map {place}: {reason}")]
    Read {
        /// File or address.
        place: String,
        /// Why.
        reason: String,
    },
    /// The map cannot be understood.
    #[error("the DERP map {place} is malformed: {reason}")]
    Malformed {
        /// File or address.
        place: String,
        /// What is wrong where.
        reason: String,
    },
    /// The map has no such region.
    #[error("the DERP map {place} has no region {region:?}; it has {known}")]
    UnknownRegion {
        /// File or address.
        place: String,
        /// What was asked for.
        region: String,
        /// What there is.
        known: String,
    },
    /// There is nothing to look at.
    #[error("the DERP map {0} has no relays")]
    Empty(String),
    /// There is too much to look at.
    #[error("the DERP map {place} has {count} relays, more than {MAX_NODES}: choose a --region")]
    TooMany {
        /// File or address.
        place: String,
        /// How many.
        count: usize,
    },
    /// There are too many pairs of relays.
    #[error("region {region} of the DERP map {place} has {count} relays, more than {MAX_REGION}")]
    TooLarge {
        /// File or address.
        place: String,
        /// The region's code.
        region: String,
        /// How many.
        count: usize,
    },
    /// The relay is not named as one.
    #[error(transparent)]
    Server(#[from] ClientError),
}

impl Relays {
    /// Whose certificates count where the map is silent.
    pub(super) fn trust(&self) -> Trust {
        match &self.ca {
            Some(path) => Trust::Roots(path.clone()),
            None if self.insecure => Trust::Anything,
            None => Trust::System,
        }
    }

    /// The map with what is to be looked at, and nothing else.
    ///
    /// # Errors
    ///
    /// If it cannot be had, or there is nothing in it.
    pub(super) async fn load(&self) -> Result<DerpMap, RelaysError> {
        let (place, text) = match (&self.derp_map, &self.server) {
            (Some(place), _) => (place.clone(), self.fetch(place).await),
            (None, Some(server)) => return self.one(server),
            (None, None) => return Err(RelaysError::Empty("(none given)".to_owned())),
        };
        let text = text.map_err(|reason| RelaysError::Read { place: place.clone(), reason })?;
        let map = text.parse::<DerpMap>().map_err(|error| RelaysError::Malformed {
            place: place.clone(),
            reason: error.to_string(),
        })?;
        select(map, self.region.as_deref(), place)
    }

    /// The text of a map.
    async fn fetch(&self, place: &str) -> Result<String, String> {
        let uri = place.parse::<Uri>().ok();
        let bytes = match uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https"))) {
            Some(uri) => timeout(FETCH_TIMEOUT, self.download(uri))
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {FETCH_TIMEOUT:?}")))?,
            None => {
                let path = place.strip_prefix("file://").unwrap_or(place);
                files::read_bounded(path.as_ref()).map_err(|error| error.to_string())?
            }
        };
        String::from_utf8(bytes).map_err(|_| "it is no UTF-8 text".to_owned())
    }

    async fn download(&self, uri: Uri) -> Result<Vec<u8>, String> {
        // Pins are in the map: where it comes from is never to be just anybody.
        let trust = self.ca.clone().map_or(Trust::System, Trust::Roots);
        let web = Web::trusting(&trust, "derp-map", &uri).map_err(|error| error.to_string())?;
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        let answer = web.ask(Question { method: Method::GET, uri, headers, body }).await?;
        let status = answer.status();
        if status != StatusCode::OK {
            return Err(format!("HTTP status {}", status.as_u16()));
        }
        match answer.body(MAX_MAP).await? {
            (bytes, true) => Ok(bytes),
            (_, false) => Err("longer than 1 MiB".to_owned()),
        }
    }

    fn one(&self, server: &str) -> Result<DerpMap, RelaysError> {
        let target: Target = server.parse()?;
        if !target.tls {
            let (text, reason) = (server.to_owned(), "the relays of a map speak TLS");
            return Err(ClientError::Target { text, reason }.into());
        }
        if let Some(pin) = &self.pin {
            pin.parse::<crate::client::Pin>()?;
        }
        let pin = self.pin.as_deref().unwrap_or_default();
        let stun_port = self.stun_port.unwrap_or_default();
        Ok(DerpMap::of_host(&target.host, target.port, stun_port, pin))
    }
}

fn select(mut map: DerpMap, region: Option<&str>, place: String) -> Result<DerpMap, RelaysError> {
    if let Some(wanted) = region {
        let Some(id) = map.region(wanted).map(|region| region.id) else {
            let known = map.regions.values().map(|it| format!("{} ({})", it.code, it.id));
            let known = known.collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none".to_owned() } else { known };
            return Err(RelaysError::UnknownRegion { place, region: wanted.to_owned(), known });
        };
        map.regions.retain(|it, _| *it == id);
    }
    if let Some(large) = map.regions.values().find(|region| region.nodes.len() > MAX_REGION) {
        let (region, count) = (large.code.clone(), large.nodes.len());
        return Err(RelaysError::TooLarge { place, region, count });
    }
    match map.regions.values().map(|region| region.nodes.len()).sum() {
        0 => Err(RelaysError::Empty(place)),
        1..=MAX_NODES => Ok(map),
        count => Err(RelaysError::TooMany { place, count }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> DerpMap {
        r#"{"Regions": {
            "1": {"RegionCode": "a", "Nodes": [{"Name": "1a", "HostName": "h"}]},
            "2": {"RegionCode": "b"}
        }}"#
        .parse()
        .unwrap()
    }

    #[test]
    fn regions_are_chosen_by_code_or_number() {
        for wanted in ["a", "1"] {
            let chosen = select(map(), Some(wanted), "m".to_owned()).unwrap();
            assert_eq!(chosen.regions.keys().collect::<Vec<_>>(), [&1]);
        }
        let error = select(map(), Some("c"), "m.json".to_owned()).unwrap_err().to_string();
        assert_eq!(error, "the DERP map m.json has no region \"c\"; it has a (1), b (2)");
        let error = select(map(), Some("b"), "m.json".to_owned()).unwrap_err().to_string();
        assert_eq!(error, "the DERP map m.json has no relays");
        assert_eq!(select(map(), None, String::new()).unwrap().regions.len(), 2);
    }

    #[test]
    fn a_map_may_not_be_endless() {
        let mut map = map();
        let region = map.regions.get_mut(&1).unwrap();
        region.nodes = vec![region.nodes[0].clone(); MAX_REGION + 1];
        let error = select(map.clone(), None, "m".to_owned()).unwrap_err().to_string();
        assert_eq!(error, "region a of the DERP map m has 101 relays, more than 100");
        let region = map.regions.get_mut(&1).unwrap();
        region.nodes.pop();
        let region = region.clone();
        map.regions = (1..=11).map(|id| (id, region.clone())).collect();
        let error = select(map, None, "m".to_owned()).unwrap_err().to_string();
        assert!(error.contains("1100 relays") && error.contains("--region"), "{error}");
    }
}
