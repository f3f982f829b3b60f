//! What a control server answers, in JSON: only the fields that matter here. Unknown fields, missing ones and Go's `null`
//! for an empty list are all right.

use std::{collections::BTreeMap, str::FromStr, time::SystemTime};

use serde::{Deserialize, Deserializer};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::keys::MachinePublic;
use crate::{peer_relay::disco::DiscoPublic, proto::keys::NodePublic};

/// The answer to `/key` (Tailscale's `tailcfg.OverTLSPublicKeyResponse`).
#[derive(Debug, Deserialize)]
pub(super) struct ServerKeys {
    #[serde(rename = "publicKey")]
    pub(super) public_key: Text<MachinePublic>,
}

/// The answer to `/machine/register` (`tailcfg.RegisterResponse`).
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RegisterResponse {
    pub(super) node_key_expired: bool,
    pub(super) machine_authorized: bool,
    #[serde(rename = "AuthURL", deserialize_with = "or_default")]
    pub(super) auth_url: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) error: String,
}

/// One message of `/machine/map` (`tailcfg.MapResponse`). Absent means unchanged.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct MapResponse {
    pub(super) keep_alive: bool,
    pub(super) ping_request: Option<PingRequest>,
    pub(super) node: Option<Node>,
    #[serde(rename = "DERPMap")]
    pub(super) derp_map: Option<DerpMap>,
    #[serde(deserialize_with = "or_default")]
    pub(super) peers: Vec<Node>,
    #[serde(deserialize_with = "or_default")]
    pub(super) peers_changed: Vec<Node>,
    #[serde(deserialize_with = "or_default")]
    pub(super) peers_removed: Vec<i64>,
    #[serde(deserialize_with = "or_default")]
    pub(super) peers_changed_patch: Vec<PeerChange>,
    pub(super) packet_filter: Option<Vec<FilterRule>>,
    pub(super) packet_filters: Option<BTreeMap<String, Option<Vec<FilterRule>>>>,
    #[serde(rename = "TKAInfo")]
    pub(super) tka_info: Option<TkaInfo>,
}

impl MapResponse {
    /// Whether nothing is said of the tailnet.
    pub(super) fn is_empty(&self) -> bool {
        self.node.is_none()
            && self.derp_map.is_none()
            && self.packet_filter.is_none()
            && self.packet_filters.is_none()
            && self.tka_info.is_none()
            && self.peers.is_empty()
            && self.peers_changed.is_empty()
            && self.peers_removed.is_empty()
            && self.peers_changed_patch.is_empty()
    }
}

/// A node (`tailcfg.Node`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Node {
    #[serde(rename = "ID")]
    pub(super) id: i64,
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
    pub(super) key: Text<NodePublic>,
    pub(super) key_expiry: Time,
    pub(super) disco_key: Text<DiscoPublic>,
    /// Networks; those of one address are the node's.
    #[serde(deserialize_with = "or_default")]
    pub(super) addresses: Vec<String>,
    pub(super) machine_authorized: bool,
    #[serde(rename = "UnsignedPeerAPIOnly")]
    pub(super) unsigned_peer_api_only: bool,
    pub(super) expired: bool,
}

/// What has changed of a peer (`tailcfg.PeerChange`).
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct PeerChange {
    #[serde(rename = "NodeID")]
    pub(super) node_id: i64,
    pub(super) key: Option<Text<NodePublic>>,
    pub(super) disco_key: Option<Text<DiscoPublic>>,
    pub(super) key_expiry: Option<Time>,
}

/// A rule of the packet filter (`tailcfg.FilterRule`), as far as it grants capabilities.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct FilterRule {
    #[serde(rename = "SrcIPs", deserialize_with = "or_default")]
    pub(super) source_ips: Vec<String>,
    /// How long the sources' networks are, in a form that is no longer sent.
    #[serde(rename = "SrcBits", deserialize_with = "or_default")]
    pub(super) source_bits: Vec<i64>,
    #[serde(deserialize_with = "or_default")]
    pub(super) cap_grant: Vec<CapGrant>,
}

/// What a rule grants towards which addresses (`tailcfg.CapGrant`).
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct CapGrant {
    #[serde(rename = "Dsts", deserialize_with = "or_default")]
    pub(super) destinations: Vec<String>,
    /// The older form.
    #[serde(deserialize_with = "or_default")]
    pub(super) caps: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) cap_map: BTreeMap<String, serde::de::IgnoredAny>,
}

/// The relays of a tailnet (`tailcfg.DERPMap`). Without regions it says that they are unchanged.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct DerpMap {
    /// By number. Headscale was seen to send regions that are `null`.
    pub(super) regions: Option<BTreeMap<u32, Option<DerpRegion>>>,
}

/// A region of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct DerpRegion {
    #[serde(deserialize_with = "or_default")]
    pub(super) nodes: Vec<DerpNode>,
}

/// A relay of a region.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct DerpNode {
    #[serde(deserialize_with = "or_default")]
    pub(super) host_name: String,
    #[serde(rename = "IPv4", deserialize_with = "or_default")]
    pub(super) ipv4: String,
    #[serde(rename = "IPv6", deserialize_with = "or_default")]
    pub(super) ipv6: String,
    #[serde(rename = "DERPPort")]
    pub(super) derp_port: u16,
    #[serde(rename = "STUNOnly")]
    pub(super) stun_only: bool,
}

/// Tailnet lock, as the server sees it (`tailcfg.TKAInfo`).
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct TkaInfo {
    #[serde(deserialize_with = "or_default")]
    pub(super) head: String,
    pub(super) disabled: bool,
}

/// A question whether this client is there (`tailcfg.PingRequest`).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct PingRequest {
    #[serde(rename = "URL", deserialize_with = "or_default")]
    pub(super) url: String,
    #[serde(rename = "URLIsNoise")]
    pub(super) url_is_noise: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) types: String,
    #[serde(rename = "IP", deserialize_with = "or_default")]
    pub(super) ip: String,
}

/// What a text says; nothing where it is empty or of a kind that is not known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Text<T>(pub(super) Option<T>);

impl<T> Default for Text<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: FromStr> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        Ok(Self(text.and_then(|text| text.parse().ok())))
    }
}

/// A point in time; nothing where it is Go's zero time, or cannot be read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Time(pub(super) Option<SystemTime>);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        Ok(Self(text.as_deref().and_then(time)))
    }
}

fn time(text: &str) -> Option<SystemTime> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    // Go's zero time is in the year 1. What ended before 1970 has ended.
    if time.year() <= 1 {
        return None;
    }
    let since = std::time::Duration::from_secs(u64::try_from(time.unix_timestamp()).unwrap_or(0));
    SystemTime::UNIX_EPOCH.checked_add(since)
}

fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
