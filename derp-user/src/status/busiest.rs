//! Who has most to do: the rows of a table, out of any number of candidates.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    hash::Hash,
    time::Duration,
};

/// Bytes by the second in both directions; not known before somebody was looked at twice.
pub type Rates = Option<[f32; 2]>;

/// A candidate that was among the busiest.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen<R> {
    /// What is shown of it.
    pub row: R,
    /// Bytes so far in both directions.
    pub carried: [u64; 2],
    /// Bytes by the second since the round before.
    pub rates: Rates,
}

/// Looks at candidates round after round, and keeps the busiest of each round.
#[derive(Debug)]
pub struct Busiest<I, R> {
    most: usize,
    /// When this round and the one before began.
    began: Duration,
    before_began: Option<Duration>,
    before: HashMap<I, [u64; 2]>,
    now: HashMap<I, [u64; 2]>,
    /// By what they carried since the round before, then ever, then the order in which they were seen.
    kept: BTreeMap<(u64, u64, Reverse<usize>), Seen<R>>,
}

impl<I: Eq + Hash, R> Busiest<I, R> {
    /// Keeps at most `most` of a round.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            began: Duration::ZERO,
            before_began: None,
            before: HashMap::new(),
            now: HashMap::new(),
            kept: BTreeMap::new(),
        }
    }

    /// Begins a round at `now`, since some moment.
    pub fn begin(&mut self, now: Duration) {
        self.began = now;
    }

    /// Looks at a candidate that has carried this many bytes; `row` is only asked for if it is among the busiest so far.
    pub fn see(&mut self, id: I, carried: [u64; 2], row: impl FnOnce() -> R) {
        let before = self.before.get(&id);
        let seconds = self.before_began.map(|began| self.began.saturating_sub(began).as_secs_f64());
        let grown = before.map(|before| {
            [carried[0].saturating_sub(before[0]), carried[1].saturating_sub(before[1])]
        });
        let rates = grown.zip(seconds.filter(|seconds| *seconds > 0.0));
        let rates = rates.map(|(grown, seconds)| grown.map(|it| (it as f64 / seconds) as f32));
        let sum = |pair: [u64; 2]| pair[0].saturating_add(pair[1]);
        let rank = (grown.map_or(0, sum), sum(carried), Reverse(self.now.len()));
        self.now.insert(id, carried);
        if self.kept.len() >= self.most
            && self.kept.first_key_value().is_some_and(|(least, _)| *least >= rank)
        {
            return;
        }
        self.kept.insert(rank, Seen { row: row(), carried, rates });
        if self.kept.len() > self.most {
            self.kept.pop_first();
        }
    }

    /// Ends the round: the busiest, first things first. Whoever was not seen is forgotten.
    pub fn end(&mut self) -> Vec<Seen<R>> {
        self.before = std::mem::take(&mut self.now);
        self.before_began = Some(self.began);
        std::mem::take(&mut self.kept).into_values().rev().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(
        busiest: &mut Busiest<u8, u8>,
        second: u64,
        seen: &[(u8, [u64; 2])],
    ) -> Vec<(u8, Rates)> {
        busiest.begin(Duration::from_secs(second));
        for &(id, carried) in seen {
            busiest.see(id, carried, || id);
        }
        busiest.end().into_iter().map(|seen| (seen.row, seen.rates)).collect()
    }

    #[test]
    fn the_first_round_goes_by_what_was_ever_carried() {
        let mut busiest = Busiest::new(2);
        let seen = round(&mut busiest, 1, &[(1, [5, 5]), (2, [100, 0]), (3, [0, 20])]);
        assert_eq!(seen, [(2, None), (3, None)]);
    }

    #[test]
    fn later_rounds_go_by_what_was_carried_since() {
        let mut busiest = Busiest::new(2);
        round(&mut busiest, 1, &[(1, [5, 5]), (2, [100, 0]), (3, [0, 20])]);
        let seen =
            round(&mut busiest, 3, &[(1, [5, 45]), (2, [100, 0]), (3, [6, 20]), (4, [9, 9])]);
        assert_eq!(seen, [(1, Some([0.0, 20.0])), (3, Some([3.0, 0.0]))]);
        // 2 was not seen this time, so that nothing is known of it the next.
        round(&mut busiest, 5, &[(1, [5, 45])]);
        let seen = round(&mut busiest, 7, &[(2, [900, 0]), (1, [6, 45])]);
        assert_eq!(seen, [(1, Some([0.5, 0.0])), (2, None)]);
    }

    #[test]
    fn equals_stay_in_the_order_in_which_they_were_seen() {
        let mut busiest = Busiest::new(3);
        let seen = round(&mut busiest, 1, &[(4, [0, 0]), (2, [0, 0]), (9, [0, 0]), (1, [0, 0])]);
        assert_eq!(seen.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [4, 2, 9]);
    }

    #[test]
    fn rows_are_made_only_for_the_busiest() {
        let mut busiest = Busiest::new(1);
        busiest.begin(Duration::ZERO);
        busiest.see(1, [10, 0], || 1);
        busiest.see(2, [3, 0], || panic!("it carries less"));
        assert_eq!(busiest.end().len(), 1);
    }
}
