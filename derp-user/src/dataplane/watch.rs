//! Follows changes of the host over netlink: links, addresses, routes and neighbours.

use std::{
    io,
    pin::pin,
    time::{Duration, Instant},
};

use derp_common::flow::Side;
use futures_util::{FutureExt as _, StreamExt as _};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{
    DataplaneError,
    host::HostTables,
    kernel::KernelLog,
    route::{Neighbour, News, Resolver},
};
use crate::{flow::FlowId, quiet::Quiet};

/// After a change, how long further ones are gathered before the host is read again.
const SETTLE: Duration = Duration::from_millis(20);
/// How often the host is read without being told to, should a notice be lost.
const UNPROMPTED: Duration = Duration::from_secs(10);
/// Every so many of those, routes too: an ICMP message that lowers a path's MTU is no notice.
const UNPROMPTED_ROUTES: u32 = 6;

const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Neigh,
];

/// Keeps the kernel's knowledge of this host current, finds the ways of flows, and passes on what the
/// program logs. Run it beside the attached program.
pub struct Watcher<C = (FlowId, Side)> {
    tables: Option<HostTables>,
    log: Option<KernelLog>,
    resolver: Option<Resolver<C>>,
    /// What to say of addresses that cannot be written.
    stale_tables: Quiet,
    /// What to say of routes that cannot be asked for.
    stale_routes: Quiet,
}

impl<C: Copy + Ord> Watcher<C> {
    pub(super) fn new(tables: HostTables, log: Option<KernelLog>) -> Self {
        Self { tables: Some(tables), log, ..Self::idle() }
    }

    /// Makes a watcher that only finds ways.
    #[must_use]
    pub fn for_routes(resolver: Resolver<C>) -> Self {
        Self { resolver: Some(resolver), ..Self::idle() }
    }

    fn idle() -> Self {
        Self {
            tables: None,
            log: None,
            resolver: None,
            stale_tables: Quiet::lasting(),
            stale_routes: Quiet::lasting(),
        }
    }

    /// Runs this resolver, too.
    pub fn follow_routes(&mut self, resolver: Resolver<C>) {
        self.resolver = Some(resolver);
    }

    /// Follows the host until it is dropped; on a Tokio runtime with I/O and time, current-thread
    /// included. A change that cannot be written is logged and tried again.
    ///
    /// A netlink notice only says that something changed, neighbours excepted. The host is then read whole
    /// and compared, so that a lost or overtaken notice leaves nothing wrong for long.
    ///
    /// # Errors
    ///
    /// When netlink cannot be listened to, or stops.
    pub async fn run(mut self) -> Result<(), DataplaneError> {
        // Without flows, the host's routes are nobody's business.
        let groups = if self.resolver.is_some() { GROUPS.as_slice() } else { &GROUPS[..3] };
        let (connection, _handle, mut notices) =
            rtnetlink::new_multicast_connection(groups).map_err(DataplaneError::Netlink)?;
        let mut connection = pin!(connection);
        let mut unprompted = interval(UNPROMPTED);
        unprompted.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = 0_u32;
        loop {
            let mut news = News::default();
            // The first tick comes at once: it catches what changed before netlink was listened to.
            let closed = tokio::select! {
                () = &mut connection => true,
                notice = notices.next() => match notice {
                    Some((message, _)) => {
                        add(&mut news, &message);
                        false
                    }
                    None => true,
                },
                _ = unprompted.tick() => {
                    news = News { routes: ticks.is_multiple_of(UNPROMPTED_ROUTES), ..News::everything() };
                    ticks = ticks.wrapping_add(1);
                    false
                }
                () = asked(self.resolver.as_ref()) => false,
            };
            if closed {
                let error = io::Error::other("the netlink socket was closed");
                return Err(DataplaneError::Netlink(error));
            }
            if !news.is_empty() {
                tokio::select! {
                    () = &mut connection => {}
                    () = sleep(SETTLE) => {}
                }
            }
            while let Some(Some((message, _))) = notices.next().now_or_never() {
                add(&mut news, &message);
            }
            self.refresh(&news).await;
        }
    }

    async fn refresh(&mut self, news: &News) {
        // Such a line reports a fault of the program; it may be some seconds late.
        if let Some(log) = &mut self.log {
            log.flush();
        }
        if let Some(tables) = self.tables.as_mut().filter(|_| news.links)
            && let Err(error) = tables.refresh()
            && let Some(suffix) = self.stale_tables.suffix(Instant::now())
        {
            tracing::warn!(%error, "the kernel's view of this host's addresses may be stale{suffix}");
        }
        if let Some(resolver) = &mut self.resolver
            && let Err(error) = resolver.refresh(news).await
            && let Some(suffix) = self.stale_routes.suffix(Instant::now())
        {
            tracing::warn!(%error, "routes of flows may be stale{suffix}");
        }
    }
}

async fn asked<C: Copy + Ord>(resolver: Option<&Resolver<C>>) {
    match resolver {
        Some(resolver) => resolver.asked().await,
        None => std::future::pending().await,
    }
}

/// Notes what a notice says has changed.
fn add(news: &mut News, notice: &NetlinkMessage<RouteNetlinkMessage>) {
    let NetlinkPayload::InnerMessage(message) = &notice.payload else {
        // More came than fits the socket's buffer.
        if matches!(notice.payload, NetlinkPayload::Overrun(_)) {
            *news = News::everything();
        }
        return;
    };
    if let RouteNetlinkMessage::NewNeighbour(message) = message {
        if let Some((hop, neighbour)) = Neighbour::new(message) {
            news.add(hop, neighbour);
        }
    } else if let RouteNetlinkMessage::DelNeighbour(message) = message {
        if let Some((hop, _)) = Neighbour::new(message) {
            news.add(hop, Neighbour::default());
        }
    } else if matches!(
        message,
        RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_)
            | RouteNetlinkMessage::NewRule(_)
            | RouteNetlinkMessage::DelRule(_)
    ) {
        news.routes = true;
    } else {
        news.links = true;
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::{
        link::LinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
        route::RouteMessage,
    };

    use super::*;

    fn neighbour(last: u8) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        let address = NeighbourAddress::Inet([192, 0, 2, last].into());
        message.attributes.push(NeighbourAttribute::Destination(address));
        message
    }

    #[test]
    fn notices_are_sorted() {
        let of = |message: RouteNetlinkMessage| {
            let mut news = News::default();
            add(&mut news, &NetlinkMessage::from(message));
            news
        };
        let links = of(RouteNetlinkMessage::DelLink(LinkMessage::default()));
        assert_eq!(links, News { links: true, ..News::default() });
        let routes = of(RouteNetlinkMessage::DelRoute(RouteMessage::default()));
        assert_eq!(routes, News { routes: true, ..News::default() });
        let gone = of(RouteNetlinkMessage::DelNeighbour(neighbour(1)));
        assert_eq!(gone.neighbour.into_values().collect::<Vec<_>>(), [Neighbour::default()]);
    }

    #[test]
    fn an_overrun_may_have_hidden_anything() {
        let mut news = News::default();
        let overrun = NetlinkPayload::Overrun(Vec::new());
        add(&mut news, &NetlinkMessage::new(Default::default(), overrun));
        assert_eq!(news, News::everything());
    }

    #[test]
    fn a_storm_of_neighbours_is_bounded() {
        let mut news = News::default();
        for interface in 0..5000 {
            let mut message = neighbour(1);
            message.header.ifindex = interface;
            let message = RouteNetlinkMessage::NewNeighbour(message);
            add(&mut news, &NetlinkMessage::from(message));
        }
        assert!(news.neighbours && news.neighbour.len() <= 1024);
    }
}
