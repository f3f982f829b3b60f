//! Asks the relays of a map.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{net::UdpSocket, time::timeout};

use super::report::{Family, Measured, Report, Way};
use crate::{
    client::{
        ClientError, Connector, UsualJudge,
        map::{DerpMap, Node, Region},
    },
    tools::{addresses::stun_addresses, in_lanes, progress::Progress, relays::Patience, stun},
};

/// Names that are looked up at any time.
const LOOK_UPS: usize = 16;
/// Relays that are asked over HTTPS at any time.
const HANDSHAKES: usize = 4;
/// Relays of one region that are asked; its nearest is among the first in the map.
const PER_REGION: usize = 4;
/// What is asked for.
pub(in crate::tools) const LATENCY_CHECK: &str = "/derp/latency-check";

/// Asks every region of the map.
pub(super) async fn measure(
    map: &DerpMap,
    usual: &UsualJudge<'_>,
    Patience { timeout, no_ipv6 }: Patience,
    progress: &Progress,
) -> Report {
    let nodes: Vec<_> = map
        .regions
        .values()
        .flat_map(|region| region.nodes.iter().take(PER_REGION).map(move |node| (region, node)))
        .collect();
    progress.begin("looking names up", nodes.len() as u64);
    let found = in_lanes(LOOK_UPS, nodes.len(), async |at| {
        let (region, node) = nodes[at];
        let found = stun_addresses(node).await;
        progress.step();
        (region.id, found)
    });
    let mut problems = Vec::new();
    let mut servers = Vec::new();
    for (region, found) in found.await {
        match found {
            Ok(found) => servers.extend(found.into_iter().map(|address| (region, address))),
            Err(error) => problems.push(error.to_string()),
        }
    }
    servers.retain(|(_, server)| !(no_ipv6 && server.is_ipv6()));
    progress.begin("asking by STUN", 1);
    let regions: Vec<_> = map.regions.values().collect();
    let (ipv4, ipv6) = tokio::join!(survey(Family::Ipv4, &servers), survey(Family::Ipv6, &servers));
    // Not at the same time: handshakes take the processor, and answers would seem to be late.
    progress.begin("asking by HTTPS", regions.len() as u64);
    let https = in_lanes(HANDSHAKES, regions.len(), async |at| {
        let answer = ask_https(regions[at], usual, timeout).await;
        progress.step();
        answer
    });
    let mut measured = Vec::new();
    for (family, surveyed) in [(Family::Ipv4, ipv4), (Family::Ipv6, ipv6)] {
        match surveyed {
            Ok(found) => measured.extend(found),
            Err(error) => problems.push(format!("no UDP over {family:?}: {error}")),
        }
    }
    for answer in https.await {
        match answer {
            Ok(Some(answer)) => measured.push(answer),
            Ok(None) => {}
            Err(error) => problems.push(error),
        }
    }
    Report::new(map, &measured, os_has_ipv6().await, problems)
}

/// Asks all servers of one family over one socket.
async fn survey(family: Family, servers: &[(u32, SocketAddr)]) -> std::io::Result<Vec<Measured>> {
    let ours = servers.iter().filter(|(_, it)| it.is_ipv6() == (family == Family::Ipv6));
    let (regions, addresses): (Vec<u32>, Vec<SocketAddr>) = ours.copied().unzip();
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    let socket = match family {
        Family::Ipv4 => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?,
        Family::Ipv6 => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await?,
    };
    let found = stun::survey(&socket, &addresses).await?;
    let seen = regions.into_iter().zip(found);
    Ok(seen
        .filter_map(|(region, seen)| Some(Measured { region, way: Way::Stun(seen?, family) }))
        .collect())
}

/// Asks the first relay of a region that answers.
async fn ask_https(
    region: &Region,
    usual: &UsualJudge<'_>,
    limit: Duration,
) -> Result<Option<Measured>, String> {
    let relays = region.nodes.iter().take(PER_REGION).filter(|node| !node.stun_only);
    let mut fault = None;
    for node in relays {
        match get(node, usual, limit).await {
            Ok((200, latency)) => {
                return Ok(Some(Measured { region: region.id, way: Way::Https(latency) }));
            }
            Ok((status, _)) => {
                let host = &node.host_name;
                fault = Some(format!("{host}: HTTP status {status} on {LATENCY_CHECK}"));
            }
            Err(error) => fault = Some(error.to_string()),
        }
    }
    fault.map_or(Ok(None), Err)
}

async fn get(
    node: &Node,
    usual: &UsualJudge<'_>,
    limit: Duration,
) -> Result<(u16, Duration), ClientError> {
    let connector = Connector::to_node_of(node, usual)?;
    let host = connector.target().authority();
    timeout(limit, connector.get(LATENCY_CHECK))
        .await
        .unwrap_or(Err(ClientError::ConnectTimeout { host, limit }))
}

async fn os_has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok()
}
