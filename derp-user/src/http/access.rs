//! Who may see the debug pages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::{Method, http::request::Parts};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::Origin;

/// Addresses that Tailscale gives to nodes.
const TAILSCALE_IPV4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
/// Part of that range which ChromeOS uses for itself, so it proves nothing.
const CHROMEOS_IPV4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 115, 92, 0), 23);
const TAILSCALE_IPV6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);

/// A value of the access settings that cannot be used.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum AccessError {
    /// `TS_ALLOW_DEBUG_IP` is no IP address.
    #[error("TS_ALLOW_DEBUG_IP: {0:?} is not an IP address")]
    Address(String),
    /// An entry of `TS_DEBUG_TRUSTED_CIDRS` is no network.
    #[error("TS_DEBUG_TRUSTED_CIDRS: {0:?} is not a network like 10.0.0.0/8")]
    Network(String),
}

/// The access rule of `/debug/`: loopback and Tailscale addresses, plus what the operator allows.
#[derive(Clone, Default)]
pub struct DebugAccess {
    address: Option<IpAddr>,
    networks: Vec<IpNet>,
    key: Option<Zeroizing<String>>,
    hint: bool,
}

impl DebugAccess {
    /// Reads the texts of the operator's settings: one address, networks separated by commas, and the secret that
    /// opens the pages to anyone who puts it into `?debugkey=`. With `hint`, a refusal says how to get in.
    pub fn new(
        address: Option<&str>,
        networks: Option<&str>,
        key: Option<&str>,
        hint: bool,
    ) -> Result<Self, AccessError> {
        let address = non_empty(address)
            .map(|text| text.parse().map_err(|_| AccessError::Address(text.to_owned())))
            .transpose()?;
        let networks = non_empty(networks)
            .map(|list| list.split(',').map(str::trim))
            .into_iter()
            .flatten()
            .map(|text| text.parse().map_err(|_| AccessError::Network(text.to_owned())))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            address,
            networks,
            key: non_empty(key).map(|key| Zeroizing::new(key.to_owned())),
            hint,
        })
    }

    /// Whether this request may see the debug pages.
    pub fn allows(&self, request: &Parts, origin: &Origin) -> bool {
        if request.method == Method::GET && self.has_key(request.uri.query()) {
            return true;
        }
        // Behind a proxy the address is the proxy's, and the header can say anything.
        if request.headers.contains_key("x-forwarded-for") {
            return false;
        }
        let remote = origin.remote.ip().to_canonical();
        remote.is_loopback()
            || is_tailscale(remote)
            || self.address.is_some_and(|address| address.to_canonical() == remote)
            || self.networks.iter().any(|network| network.contains(&remote))
    }

    /// What a refused client is told.
    pub(super) fn refusal(&self, origin: &Origin) -> String {
        let refusal = "debug access denied".to_owned();
        if self.hint {
            let remote = origin.remote.ip().to_canonical();
            return format!(
                "{refusal}\n\nTo allow this address, start derpd with TS_ALLOW_DEBUG_IP={remote}"
            );
        }
        refusal
    }

    fn has_key(&self, query: Option<&str>) -> bool {
        let (Some(key), Some(query)) = (&self.key, query) else { return false };
        form_urlencoded::parse(query.as_bytes())
            .find(|(name, _)| name == "debugkey")
            .is_some_and(|(_, value)| value.as_bytes().ct_eq(key.as_bytes()).into())
    }
}

fn non_empty(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

fn is_tailscale(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            TAILSCALE_IPV4.contains(&address) && !CHROMEOS_IPV4.contains(&address)
        }
        IpAddr::V6(address) => TAILSCALE_IPV6.contains(&address),
    }
}
