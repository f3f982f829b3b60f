//! Asks STUN servers, from the relay's own port, with which addresses they see it.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    net::lookup_host,
    sync::{mpsc::Receiver, watch},
    time::{Instant, sleep_until, timeout},
};

use super::PeerRelayRules;
use crate::{
    client::random_fraction,
    forward::{Outlet, StunAnswer},
    peer_relay::{Mapping, Ports},
    stun::{
        MappingSurvey, PERIOD, StunTarget, VARIATION,
        client::{random_transaction, request},
    },
    udp::now,
};

/// How long names may take to be looked up.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(5);
/// Most addresses of one name that are asked, of each family.
const MOST_OF_NAME: usize = 2;

/// What asks.
pub(super) struct Surveyor {
    pub(super) rules: watch::Receiver<Arc<PeerRelayRules>>,
    pub(super) answers: Receiver<StunAnswer>,
    pub(super) outlet: Outlet,
    pub(super) ports: Ports,
    /// Who is told what holds.
    pub(super) mappings: watch::Sender<Vec<Mapping>>,
}

impl Surveyor {
    /// Goes on until dropped; on a Tokio runtime with I/O and time.
    pub(super) async fn run(mut self) {
        let mut survey = MappingSurvey::default();
        let mut targets = Vec::new();
        let mut next_round = Instant::now();
        // Whether servers were asked and nothing has been heard since, which is said once.
        let (mut is_waiting, mut is_warned) = (false, false);
        loop {
            let wanted = self.rules.borrow_and_update().stun.clone();
            if wanted != targets {
                targets = wanted;
                survey.clear();
                self.publish(&survey);
                next_round = Instant::now();
                (is_waiting, is_warned) = (false, false);
            }
            let deadline = survey
                .next_deadline()
                .map(|at| Instant::now() + Duration::from_nanos(at.saturating_sub(now())));
            let has_targets = !targets.is_empty();
            tokio::select! {
                changed = self.rules.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                Some(answer) = self.answers.recv() => {
                    let StunAnswer { from, transaction, seen } = answer;
                    if survey.answer(from, &transaction, seen, now()) {
                        self.publish(&survey);
                        (is_waiting, is_warned) = (false, false);
                    }
                }
                () = sleep_until(deadline.unwrap_or(next_round)), if deadline.is_some() => {
                    self.ask(&mut survey);
                }
                () = sleep_until(next_round), if has_targets => {
                    let variation = Duration::from_nanos(VARIATION).mul_f64(random_fraction());
                    next_round = Instant::now() + Duration::from_nanos(PERIOD) + variation;
                    if is_waiting && !is_warned {
                        is_warned = true;
                        tracing::warn!("peer relay: no STUN server answers (stun of [peer_relay])");
                    }
                    is_waiting = true;
                    survey.begin(look_up(&targets, self.ports).await, now());
                    self.publish(&survey);
                }
            }
        }
    }

    /// Sends the requests that are due.
    fn ask(&self, survey: &mut MappingSurvey) {
        let mut fault = None;
        let random = || {
            random_transaction().unwrap_or_else(|error| {
                fault = Some(error);
                [0; 12]
            })
        };
        let requests = survey.requests(now(), random);
        if let Some(error) = fault {
            // A transaction that can be guessed is none.
            survey.clear();
            return tracing::warn!("peer relay: STUN: {error}");
        }
        for (server, transaction) in requests {
            if let Err(error) = self.send(server, &request(&transaction)) {
                tracing::debug!(%server, %error, "peer relay: cannot ask a STUN server");
            }
        }
    }

    fn send(&self, server: SocketAddr, message: &[u8]) -> io::Result<()> {
        let from: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, self.ports.ipv4).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, self.ports.ipv6).into(),
        };
        self.outlet.send(from, server, message)
    }

    /// Tells what holds, and logs it, if that is not what held before.
    fn publish(&self, survey: &MappingSurvey) {
        let mappings = survey.mappings();
        self.mappings.send_if_modified(|before| {
            let addresses = |mappings: &[Mapping]| -> BTreeSet<SocketAddr> {
                mappings.iter().map(|mapping| mapping.seen).collect()
            };
            let (old, new) = (addresses(before), addresses(&mappings));
            if old != new {
                let seen: Vec<_> = new.iter().map(ToString::to_string).collect();
                let seen = if seen.is_empty() { "nowhere".to_owned() } else { seen.join(", ") };
                tracing::info!("peer relay: STUN servers see it at {seen}");
            }
            let is_other = *before != mappings;
            *before = mappings;
            is_other
        });
    }
}

/// The addresses of servers, in the families that the relay has sockets of. What a name stands for is looked up
/// anew in each round.
async fn look_up(targets: &[StunTarget], ports: Ports) -> Vec<SocketAddr> {
    let found = targets.iter().map(|target| async move {
        let found = timeout(LOOK_UP_TIMEOUT, lookup_host((target.host.as_str(), target.port)));
        match found.await {
            Ok(Ok(addresses)) => addresses.collect(),
            Ok(Err(error)) => {
                tracing::debug!(%target, %error, "peer relay: cannot look up a STUN server");
                Vec::new()
            }
            Err(_) => {
                tracing::debug!(%target, "peer relay: looking up a STUN server takes too long");
                Vec::new()
            }
        }
    });
    join_all(found).await.into_iter().flat_map(|found| of_families(found, ports)).collect()
}

fn of_families(found: Vec<SocketAddr>, ports: Ports) -> impl Iterator<Item = SocketAddr> {
    let mut left = [ports.ipv4, ports.ipv6].map(|port| if port == 0 { 0 } else { MOST_OF_NAME });
    found.into_iter().filter(move |address| {
        let [ipv4, ipv6] = &mut left;
        let left = match address.ip().to_canonical() {
            IpAddr::V4(_) => ipv4,
            IpAddr::V6(_) => ipv6,
        };
        let is_wanted = *left != 0;
        *left = left.saturating_sub(1);
        is_wanted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_addresses_are_looked_up_in_the_families_there_are() {
        let targets: Vec<StunTarget> =
            ["localhost:1", "192.0.2.1", "[2001:db8::1]", "nowhere.invalid"]
                .map(|target| target.parse().unwrap())
                .into();
        let both = look_up(&targets, Ports { ipv4: 1, ipv6: 1 }).await;
        assert!(both.contains(&"127.0.0.1:1".parse().unwrap()), "{both:?}");
        assert!(both.contains(&"192.0.2.1:3478".parse().unwrap()), "{both:?}");
        assert!(both.contains(&"[2001:db8::1]:3478".parse().unwrap()), "{both:?}");
        let ipv4 = look_up(&targets, Ports { ipv4: 1, ipv6: 0 }).await;
        assert!(ipv4.iter().all(SocketAddr::is_ipv4) && ipv4.len() >= 2, "{ipv4:?}");
    }

    #[test]
    fn few_addresses_of_a_name_are_asked() {
        let found = (1..=9).map(|last| SocketAddr::from(([192, 0, 2, last], 1))).collect();
        assert_eq!(of_families(found, Ports { ipv4: 1, ipv6: 1 }).count(), MOST_OF_NAME);
    }
}
