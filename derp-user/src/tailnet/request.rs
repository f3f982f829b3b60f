//! What a control server is told, in JSON, with the names of Go's fields.

use serde::Serialize;

use super::noise::VERSION;
use crate::{peer_relay::disco::DiscoPublic, proto::keys::NodePublic};

/// What is said of this host. The server replaces all of it each time, so all of it is always sent.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HostInfo {
    #[serde(rename = "IPNVersion")]
    version: String,
    #[serde(rename = "OS")]
    os: &'static str,
    app: &'static str,
    hostname: String,
    /// Shown in the admin console; clients go by the policy.
    peer_relay: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    net_info: Option<NetInfo>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
struct NetInfo {
    #[serde(rename = "PreferredDERP")]
    preferred_derp: u32,
}

impl HostInfo {
    /// Of a host with this name, which is reached by DERP in this region.
    pub(super) fn new(hostname: &str, home_region: Option<u32>) -> Self {
        Self {
            version: concat!("derpd-", env!("CARGO_PKG_VERSION")).to_owned(),
            os: "linux",
            app: "derpd",
            hostname: hostname.to_owned(),
            peer_relay: true,
            net_info: home_region.map(|preferred_derp| NetInfo { preferred_derp }),
        }
    }
}

/// `/machine/register` (Tailscale's `tailcfg.RegisterRequest`).
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RegisterRequest<'a> {
    version: u16,
    node_key: String,
    /// The key that the new one takes the place of.
    #[serde(skip_serializing_if = "Option::is_none")]
    old_node_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth: Option<Auth<'a>>,
    hostinfo: &'a HostInfo,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Auth<'a> {
    auth_key: &'a str,
}

impl<'a> RegisterRequest<'a> {
    pub(super) fn new(
        node: &NodePublic,
        old_node: Option<&NodePublic>,
        auth_key: Option<&'a str>,
        hostinfo: &'a HostInfo,
    ) -> Self {
        Self {
            version: VERSION,
            node_key: node.to_string(),
            old_node_key: old_node.map(ToString::to_string),
            auth: auth_key.map(|auth_key| Auth { auth_key }),
            hostinfo,
        }
    }
}

/// `/machine/map` (Tailscale's `tailcfg.MapRequest`). No UDP endpoints are said: what clients would send there is not
/// for this node's relay, whose addresses they learn from its responses.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct MapRequest<'a> {
    version: u16,
    keep_alive: bool,
    node_key: String,
    disco_key: String,
    stream: bool,
    omit_peers: bool,
    hostinfo: &'a HostInfo,
}

impl<'a> MapRequest<'a> {
    /// Publishes what is said of the host and the disco key.
    pub(super) fn update(node: &NodePublic, disco: &DiscoPublic, hostinfo: &'a HostInfo) -> Self {
        Self::new(node, disco, hostinfo, false)
    }

    /// Asks for everything, and for what changes later. Nothing is published by it.
    pub(super) fn stream(node: &NodePublic, disco: &DiscoPublic, hostinfo: &'a HostInfo) -> Self {
        Self::new(node, disco, hostinfo, true)
    }

    fn new(node: &NodePublic, disco: &DiscoPublic, hostinfo: &'a HostInfo, stream: bool) -> Self {
        Self {
            version: VERSION,
            keep_alive: stream,
            node_key: node.to_string(),
            disco_key: disco.to_string(),
            stream,
            omit_peers: !stream,
            hostinfo,
        }
    }
}

/// The answer to a ping of a kind that this node does not do (Tailscale's `tailcfg.PingResponse`).
#[derive(Serialize)]
pub(super) struct PingResponse<'a> {
    #[serde(rename = "Type")]
    pub(super) kind: &'a str,
    #[serde(rename = "IP")]
    pub(super) ip: &'a str,
    #[serde(rename = "Err")]
    pub(super) error: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_names_of_the_reference() {
        let node = NodePublic::from_bytes([1; 32]);
        let old = NodePublic::from_bytes([2; 32]);
        let disco = DiscoPublic::from_bytes([3; 32]);
        let host = HostInfo::new("relay", Some(900));
        let hostinfo = format!(
            r#"{{"IPNVersion":"derpd-{}","OS":"linux","App":"derpd","Hostname":"relay","PeerRelay":true,"NetInfo":{{"PreferredDERP":900}}}}"#,
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(
            json(&RegisterRequest::new(&node, Some(&old), Some("tskey"), &host)),
            format!(
                r#"{{"Version":130,"NodeKey":"{node}","OldNodeKey":"{old}","Auth":{{"AuthKey":"tskey"}},"Hostinfo":{hostinfo}}}"#
            )
        );
        assert_eq!(
            json(&MapRequest::update(&node, &disco, &host)),
            format!(
                r#"{{"Version":130,"KeepAlive":false,"NodeKey":"{node}","DiscoKey":"{disco}","Stream":false,"OmitPeers":true,"Hostinfo":{hostinfo}}}"#
            )
        );
        let stream = json(&MapRequest::stream(&node, &disco, &HostInfo::new("relay", None)));
        assert!(stream.contains(r#""KeepAlive":true"#) && stream.contains(r#""Stream":true"#));
        assert!(!stream.contains("NetInfo"), "{stream}");
        let first = json(&RegisterRequest::new(&node, None, None, &host));
        assert!(!first.contains("Auth") && !first.contains("OldNodeKey"), "{first}");
    }

    fn json(value: &impl Serialize) -> String {
        serde_json::to_string(value).unwrap()
    }
}
