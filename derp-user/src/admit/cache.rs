//! Answers that need not be asked for again for a while. Without I/O: the time is an argument.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::Verdict;
use crate::proto::keys::NodePublic;

/// Most admitted clients that are remembered.
const MAX_ADMITTED: usize = 64 << 10;
/// Most refused clients that are remembered. Fewer: anybody can make up keys.
const MAX_REFUSED: usize = 4 << 10;
/// A refusal is forgotten after this, so that a node that has just been added does not wait long.
const LONGEST_REFUSAL: Duration = Duration::from_secs(5);

/// Whom an answer is about: the admission URL is told the address too.
pub(super) type Subject = (NodePublic, IpAddr);

/// Remembers answers for a stated time. A stranger with many keys cannot displace those admitted.
#[derive(Debug)]
pub(super) struct Cache {
    lifetime: Duration,
    admitted: HashMap<Subject, (Verdict, Instant)>,
    refused: HashMap<Subject, (Verdict, Instant)>,
}

impl Cache {
    pub(super) fn new(lifetime: Duration) -> Self {
        Self { lifetime, admitted: HashMap::new(), refused: HashMap::new() }
    }

    /// The answer about `subject`, if one is remembered.
    pub(super) fn get(&self, subject: &Subject, now: Instant) -> Option<Verdict> {
        let (verdict, until) =
            self.admitted.get(subject).or_else(|| self.refused.get(subject)).copied()?;
        (now < until).then_some(verdict)
    }

    /// Remembers an answer, in place of an earlier one about the same client.
    pub(super) fn put(&mut self, subject: Subject, verdict: Verdict, now: Instant) {
        self.admitted.remove(&subject);
        self.refused.remove(&subject);
        let (answers, most, lifetime) = if verdict.is_admitted() {
            (&mut self.admitted, MAX_ADMITTED, self.lifetime)
        } else {
            (&mut self.refused, MAX_REFUSED, self.lifetime.min(LONGEST_REFUSAL))
        };
        if answers.len() >= most {
            answers.retain(|_, (_, until)| now < *until);
        }
        // Full of answers that still hold: this one is asked for again, which is never wrong.
        if answers.len() < most {
            answers.insert(subject, (verdict, now + lifetime));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn subject(number: u32) -> Subject {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        (NodePublic::from_bytes(key), Ipv4Addr::LOCALHOST.into())
    }

    #[test]
    fn answers_hold_for_their_lifetime_and_refusals_for_seconds() {
        let start = Instant::now();
        let mut cache = Cache::new(MINUTE);
        cache.put(subject(1), Verdict::Known, start);
        cache.put(subject(2), Verdict::Unknown, start);
        let at = |cache: &Cache, number, seconds| {
            cache.get(&subject(number), start + Duration::from_secs(seconds))
        };
        assert_eq!(at(&cache, 1, 59), Some(Verdict::Known));
        assert_eq!(at(&cache, 1, 60), None);
        assert_eq!(at(&cache, 2, 4), Some(Verdict::Unknown));
        assert_eq!(at(&cache, 2, 5), None);
        assert_eq!(at(&cache, 3, 0), None);
        let elsewhere = (subject(1).0, IpAddr::from([192, 0, 2, 1]));
        assert_eq!(cache.get(&elsewhere, start), None, "another address is another question");

        cache.put(subject(1), Verdict::Unknown, start);
        assert_eq!(at(&cache, 1, 0), Some(Verdict::Unknown), "the latest answer counts");
    }

    #[test]
    fn strangers_fill_only_their_own_half() {
        let start = Instant::now();
        let mut cache = Cache::new(MINUTE);
        cache.put(subject(0), Verdict::Allowed, start);
        for number in 1..=2 * MAX_REFUSED as u32 {
            cache.put(subject(number), Verdict::Denied, start);
        }
        assert_eq!(cache.refused.len(), MAX_REFUSED);
        assert_eq!(cache.get(&subject(0), start), Some(Verdict::Allowed));
        let later = start + LONGEST_REFUSAL;
        cache.put(subject(u32::MAX), Verdict::Denied, later);
        assert_eq!(cache.refused.len(), 1, "what no longer holds makes room");
    }
}
