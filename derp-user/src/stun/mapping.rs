//! With which addresses a socket of this host is seen: whom to ask when, and what of the answers holds.
//!
//! Without I/O: the time and transaction ids are arguments. Behind a NAT the answers are only about the socket that
//! has asked, so whoever owns it sends the requests and brings the answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use super::client::Transaction;
use crate::peer_relay::Mapping;

const SECOND: u64 = 1_000_000_000;
/// How long after one round the next begins, at least, in nanoseconds; less than a NAT keeps a silent mapping, which
/// is 30 s for the worst of them. As in the reference (section 3.5 of the udp-relay reference).
pub(crate) const PERIOD: u64 = 20 * SECOND;
/// By how much the time between rounds varies, so that many relays do not ask together.
pub(crate) const VARIATION: u64 = 6 * SECOND;
/// How long the first, second and third request of a round may take (RFC 8489 section 6.2.1).
const PATIENCE: [u64; 3] = [SECOND / 2, SECOND, 2 * SECOND];
/// How long what a server has seen holds without being confirmed: three rounds may fail.
const VALIDITY: u64 = 80 * SECOND;
/// Most addresses that are asked in a round.
const MOST: usize = 32;

/// A STUN server as the operator names it: `stun.example.com`, `192.0.2.1:3478`, `[2001:db8::1]`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StunTarget {
    /// DNS name or IP address, the latter without brackets.
    pub host: String,
    /// UDP port.
    pub port: u16,
}

impl StunTarget {
    /// The port where nothing else is said (RFC 8489 section 8.1).
    pub const PORT: u16 = 3478;
}

impl std::fmt::Display for StunTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.parse() {
            Ok(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The text is not that of a STUN server.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a host with or without a UDP port")]
pub struct StunTargetError;

impl FromStr for StunTarget {
    type Err = StunTargetError;

    fn from_str(text: &str) -> Result<Self, StunTargetError> {
        let unbracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let (host, port) = if let Ok(address) = text.parse::<SocketAddr>() {
            (address.ip().to_string(), address.port())
        } else if let Ok(ip) = unbracketed.unwrap_or(text).parse::<IpAddr>() {
            (ip.to_string(), Self::PORT)
        } else if let Some((host, port)) = text.split_once(':') {
            (host.to_owned(), port.parse().map_err(|_| StunTargetError)?)
        } else {
            (text.to_owned(), Self::PORT)
        };
        let is_address = host.parse::<IpAddr>().is_ok();
        let is_name = !host.is_empty()
            && host.len() <= 253
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if (is_address || is_name) && port != 0 {
            Ok(Self { host, port })
        } else {
            Err(StunTargetError)
        }
    }
}

/// What is asked of one server in this round.
struct Question {
    /// How often it was asked.
    asked: usize,
    /// When it is asked next, or given up.
    next: u64,
}

/// Asks servers, over and over, with which address they see a socket.
#[derive(Default)]
pub(crate) struct MappingSurvey {
    questions: BTreeMap<SocketAddr, Question>,
    /// The requests of this round that may still be answered.
    sent: HashMap<Transaction, SocketAddr>,
    /// What each server has seen, and when it said so.
    seen: BTreeMap<SocketAddr, (SocketAddr, u64)>,
}

impl MappingSurvey {
    /// Begins a round with these servers. What others have said holds until it is too old.
    pub(crate) fn begin(&mut self, servers: impl IntoIterator<Item = SocketAddr>, now: u64) {
        let servers: BTreeSet<_> = servers.into_iter().map(canonical).collect();
        self.sent.clear();
        self.questions.clear();
        let question = |server| (server, Question { asked: 0, next: now });
        self.questions.extend(servers.into_iter().take(MOST).map(question));
        self.forget(now);
    }

    /// Forgets everything, since other servers are to be asked.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns whom to send a request now, under transaction ids that `random` makes.
    pub(crate) fn requests(
        &mut self,
        now: u64,
        mut random: impl FnMut() -> Transaction,
    ) -> Vec<(SocketAddr, Transaction)> {
        let mut requests = Vec::new();
        for (server, question) in &mut self.questions {
            if question.next > now {
                continue;
            }
            let Some(patience) = PATIENCE.get(question.asked) else { continue };
            question.asked += 1;
            question.next = now + patience;
            let transaction = random();
            self.sent.insert(transaction, *server);
            requests.push((*server, transaction));
        }
        let is_over = |it: &Question| it.asked >= PATIENCE.len() && it.next <= now;
        self.questions.retain(|_, question| !is_over(question));
        if self.questions.is_empty() {
            self.sent.clear();
        }
        requests
    }

    /// Returns when something of this round is due; `None` once it is over.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.questions.values().map(|question| question.next).min()
    }

    /// Takes an answer from `from`, that the sender of this transaction was seen at `seen`. It only counts if it comes
    /// from the server that was asked and is of its family. Returns whether it did.
    pub(crate) fn answer(
        &mut self,
        from: SocketAddr,
        transaction: &Transaction,
        seen: SocketAddr,
        now: u64,
    ) -> bool {
        let (from, seen) = (canonical(from), canonical(seen));
        let is_sane = seen.is_ipv4() == from.is_ipv4() && seen.port() != 0;
        if self.sent.get(transaction) != Some(&from) || !is_sane {
            return false;
        }
        self.sent.retain(|_, server| *server != from);
        self.questions.remove(&from);
        self.seen.insert(from, (seen, now));
        true
    }

    /// Forgets what is too old to hold. Returns whether there was any.
    pub(crate) fn forget(&mut self, now: u64) -> bool {
        let before = self.seen.len();
        self.seen.retain(|_, (_, at)| now.saturating_sub(*at) < VALIDITY);
        self.seen.len() != before
    }

    /// Returns what holds, by server.
    pub(crate) fn mappings(&self) -> Vec<Mapping> {
        let mapping = |(server, (seen, _)): (&SocketAddr, &(SocketAddr, u64))| Mapping {
            server: *server,
            seen: *seen,
        };
        self.seen.iter().map(mapping).collect()
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000 * SECOND;
    const SERVER: &str = "198.51.100.1:3478";
    const OTHER: &str = "198.51.100.2:3478";
    const SEEN: &str = "203.0.113.9:40000";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// Numbers transactions from 1.
    fn counting(count: &mut u8) -> impl FnMut() -> Transaction + '_ {
        move || {
            *count += 1;
            [*count; 12]
        }
    }

    fn begun(servers: &[&str]) -> MappingSurvey {
        let mut survey = MappingSurvey::default();
        survey.begin(servers.iter().map(|server| at(server)), NOW);
        survey
    }

    #[test]
    fn a_server_is_asked_three_times_at_growing_intervals_then_given_up() {
        let (mut survey, mut count) = (begun(&[SERVER]), 0);
        let mut asked = Vec::new();
        for step in 0..80 {
            let now = NOW + step * SECOND / 10;
            if survey.next_deadline().is_some_and(|deadline| deadline <= now) {
                asked.extend(survey.requests(now, counting(&mut count)).iter().map(|_| step));
            }
        }
        assert_eq!(asked, [0, 5, 15]);
        assert_eq!(survey.next_deadline(), None);
        assert!(!survey.answer(at(SERVER), &[3; 12], at(SEEN), NOW + 8 * SECOND), "too late");
        assert_eq!(survey.mappings(), []);
    }

    #[test]
    fn an_answer_counts_from_the_server_that_was_asked_under_any_of_its_transactions() {
        let (mut survey, mut count) = (begun(&[SERVER, OTHER]), 0);
        survey.requests(NOW, counting(&mut count));
        survey.requests(NOW + SECOND / 2, counting(&mut count));
        for (from, transaction, seen, why) in [
            (OTHER, 1, SEEN, "another server"),
            ("198.51.100.1:3479", 1, SEEN, "another port"),
            (SERVER, 9, SEEN, "a transaction that is none"),
            (SERVER, 1, "[2001:db8::1]:1", "the other family"),
            (SERVER, 1, "203.0.113.9:0", "no port"),
        ] {
            let answered = survey.answer(at(from), &[transaction; 12], at(seen), NOW + SECOND);
            assert!(!answered, "{why}");
        }
        assert!(survey.answer(at("[::ffff:198.51.100.1]:3478"), &[1; 12], at(SEEN), NOW + SECOND));
        assert!(!survey.answer(at(SERVER), &[3; 12], at(SEEN), NOW + SECOND), "answered already");
        assert_eq!(survey.mappings(), [Mapping { server: at(SERVER), seen: at(SEEN) }]);
        assert_eq!(survey.requests(NOW + 2 * SECOND, counting(&mut count)).len(), 1, "the other");
    }

    #[test]
    fn what_is_not_confirmed_holds_for_a_while() {
        let (mut survey, mut count) = (begun(&[SERVER]), 0);
        survey.requests(NOW, counting(&mut count));
        assert!(survey.answer(at(SERVER), &[1; 12], at(SEEN), NOW));
        for round in 1..=3 {
            let now = NOW + round * (PERIOD + VARIATION);
            survey.begin([at(SERVER)], now);
            survey.requests(now, counting(&mut count));
            assert_eq!(survey.mappings().len(), 1, "{round}");
        }
        assert!(!survey.forget(NOW + VALIDITY - 1));
        assert!(survey.forget(NOW + VALIDITY));
        assert_eq!(survey.mappings(), []);
    }

    #[test]
    fn a_new_answer_takes_the_place_of_the_old_one() {
        let (mut survey, mut count) = (begun(&[SERVER]), 0);
        for seen in [SEEN, "203.0.113.9:61000"] {
            survey.begin([at(SERVER)], NOW);
            survey.requests(NOW, counting(&mut count));
            assert!(survey.answer(at(SERVER), &[count; 12], at(seen), NOW));
            assert_eq!(survey.mappings(), [Mapping { server: at(SERVER), seen: at(seen) }]);
        }
        survey.clear();
        assert_eq!((survey.mappings(), survey.next_deadline()), (vec![], None));
    }

    #[test]
    fn a_round_is_bounded() {
        let servers = (0..1000).map(|port| SocketAddr::from(([192, 0, 2, 1], port + 1)));
        let (mut survey, mut count) = (MappingSurvey::default(), 0);
        survey.begin(servers, NOW);
        assert_eq!(survey.requests(NOW, counting(&mut count)).len(), MOST);
    }

    #[test]
    fn servers_are_named_as_people_name_them() {
        for (text, host, port, whole) in [
            ("stun.example.com", "stun.example.com", 3478, "stun.example.com:3478"),
            ("stun.example.com:19302", "stun.example.com", 19302, "stun.example.com:19302"),
            ("192.0.2.1", "192.0.2.1", 3478, "192.0.2.1:3478"),
            ("192.0.2.1:1", "192.0.2.1", 1, "192.0.2.1:1"),
            ("2001:db8::1", "2001:db8::1", 3478, "[2001:db8::1]:3478"),
            ("[2001:db8::1]", "2001:db8::1", 3478, "[2001:db8::1]:3478"),
            ("[2001:db8::1]:5", "2001:db8::1", 5, "[2001:db8::1]:5"),
        ] {
            let target: StunTarget = text.parse().unwrap();
            assert_eq!((target.host.as_str(), target.port), (host, port), "{text}");
            assert_eq!(target.to_string(), whole);
        }
        for text in ["", ":1", "a:0", "a:b", "a:70000", "stun://a", "a/b", "a b", "[a]:1", "\u{e9}"]
        {
            assert_eq!(text.parse::<StunTarget>(), Err(StunTargetError), "{text}");
        }
    }
}
