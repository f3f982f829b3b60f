//! Connecting to whichever relay of a region is there.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{
    CONNECT_TIMEOUT, Client, ClientError, Connector, Proxies, Trust, UsualJudge, map::Region,
};
use crate::proto::{keys::NodePrivate, login::ClientInfo};

/// Connects to one region of a DERP map, as often as wanted: to its first relay, or to the first one behind
/// that lets the client in.
#[derive(Clone)]
pub struct RegionConnector {
    code: String,
    nodes: Arc<[Connector]>,
}

impl RegionConnector {
    /// A connector to `region`. Certificates must be as the map says, and as `trust` says where that is
    /// silent.
    ///
    /// # Errors
    ///
    /// If there is no relay in it, if one has a name or pin that cannot be one, or if root certificates
    /// cannot be had.
    pub fn new(region: &Region, trust: &Trust) -> Result<Self, ClientError> {
        let ideal = region.nodes.first().map(|node| node.name.as_str()).unwrap_or_default();
        let usual = UsualJudge::new(trust);
        let relays = region.nodes.iter().enumerate().filter(|(_, node)| !node.stun_only);
        let nodes = relays.map(|(at, node)| {
            let connector = Connector::to_node_of(node, &usual)?;
            Ok(if at == 0 { connector } else { connector.with_ideal_node(ideal) })
        });
        let nodes = nodes.collect::<Result<Arc<[_]>, ClientError>>()?;
        if nodes.is_empty() {
            return Err(ClientError::NoRelay(region.code.clone()));
        }
        Ok(Self { code: region.code.clone(), nodes })
    }

    /// Says this of the client when logging in; called for each relay of the region.
    #[must_use]
    pub fn with_info(mut self, info: impl Fn() -> ClientInfo) -> Self {
        self.nodes = self.nodes.iter().map(|node| node.clone().with_info(info())).collect();
        self
    }

    /// Connects through the proxies that lead to these relays, where there are some.
    ///
    /// # Errors
    ///
    /// If one speaks another protocol than plain HTTP.
    pub fn with_proxies(mut self, proxies: &Proxies) -> Result<Self, ClientError> {
        let nodes = self.nodes.iter().map(|node| node.clone().with_proxies(proxies));
        self.nodes = nodes.collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// Connects and logs in as the owner of `key`. The relays are tried in the order of the map; one that
    /// does not answer leaves the others their share of [`CONNECT_TIMEOUT`].
    ///
    /// # Errors
    ///
    /// If none lets the client in: what each of them did.
    pub async fn connect(&self, key: &NodePrivate) -> Result<Client, ClientError> {
        let begun = Instant::now();
        let mut reasons = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let left = (begun + CONNECT_TIMEOUT).saturating_duration_since(Instant::now());
            let share = share(left, self.nodes.len() - at);
            match timeout_at(Instant::now() + share, node.connect(key)).await {
                Ok(Ok(client)) => return Ok(client),
                Ok(Err(error)) => reasons.push(error.to_string()),
                Err(_) => {
                    let host = node.target().authority();
                    reasons.push(ClientError::ConnectTimeout { host, limit: share }.to_string());
                }
            }
        }
        Err(ClientError::Region { region: self.code.clone(), reasons })
    }
}

/// What one of `relays` gets of the time that is left.
fn share(left: Duration, relays: usize) -> Duration {
    left / u32::try_from(relays).unwrap_or(u32::MAX).max(1)
}
