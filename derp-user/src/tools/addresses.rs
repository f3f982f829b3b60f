//! Where the relays of a map answer STUN.

use std::net::{IpAddr, SocketAddr};

use tokio::time::timeout;

use crate::client::{
    CONNECT_TIMEOUT, ClientError, Target, look_up,
    map::{Node, NodeAddress},
};

/// The addresses where `node` answers STUN, one of each family at most.
pub(super) async fn stun_addresses(node: &Node) -> Result<Vec<SocketAddr>, ClientError> {
    let Some(port) = node.stun_port() else { return Ok(Vec::new()) };
    if let Ok(ip) = node.stun_test_ip.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let families = [node.ipv4(), node.ipv6()];
    let found = if families.contains(&NodeAddress::OfName) {
        let target = Target { tls: true, host: node.host_name.clone(), port };
        let host = node.host_name.clone();
        timeout(CONNECT_TIMEOUT, look_up(&target))
            .await
            .unwrap_or(Err(ClientError::ConnectTimeout { host, limit: CONNECT_TIMEOUT }))?
    } else {
        Vec::new()
    };
    let pairs = families.into_iter().zip([SocketAddr::is_ipv4, SocketAddr::is_ipv6]);
    let addresses = pairs.filter_map(|(address, is_family)| match address {
        NodeAddress::Fixed(ip) => Some(SocketAddr::new(ip, port)),
        NodeAddress::OfName => found.iter().copied().find(is_family),
        NodeAddress::None => None,
    });
    Ok(addresses.collect())
}
