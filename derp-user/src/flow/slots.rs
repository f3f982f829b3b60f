//! Which slot a new flow gets, and under which VNI.

use std::collections::VecDeque;

/// Bits of a VNI.
const VNI_BITS: u32 = 24;
/// The highest VNI.
pub(super) const MAX_VNI: u32 = (1 << VNI_BITS) - 1;

/// The slots: which are taken, and the generation that the VNIs of each have reached.
///
/// A VNI is the slot with a generation above it that moves each time the slot is given away, so that a late packet
/// of one flow is not taken for one of the next. Where it starts is random in each slot. A slot that was given
/// back waits until all others have had their turn.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    /// A power of two.
    count: u32,
    seed: u64,
    /// Slots below this have been given away, or were skipped because they were taken.
    next_fresh: u32,
    /// Slots that were given back, in that order; some may be taken again by now.
    returned: VecDeque<u32>,
    /// By slot, as far as any was taken.
    states: Vec<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    taken: bool,
    /// Whether it is in `returned`.
    waits: bool,
    /// The generation of the last VNI, if there was one.
    generation: Option<u32>,
}

impl Slots {
    /// Makes `count` free slots, a power of two. `seed` is random.
    pub(super) fn new(count: u32, seed: u64) -> Self {
        Self { count, seed, next_fresh: 0, returned: VecDeque::new(), states: Vec::new() }
    }

    /// Returns how many there are.
    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    /// Returns the slot of a VNI.
    pub(super) const fn slot_of(&self, vni: u32) -> u32 {
        vni & (self.count - 1)
    }

    /// Tells whether a slot is taken.
    pub(super) fn is_taken(&self, slot: u32) -> bool {
        self.states.get(slot as usize).is_some_and(|state| state.taken)
    }

    /// Takes the next slot, if one is free.
    pub(super) fn take(&mut self) -> Option<u32> {
        while self.next_fresh < self.count {
            let slot = self.next_fresh;
            self.next_fresh += 1;
            if self.take_this(slot) {
                return Some(slot);
            }
        }
        while let Some(slot) = self.returned.pop_front() {
            self.state(slot).waits = false;
            if self.take_this(slot) {
                return Some(slot);
            }
        }
        None
    }

    /// Takes this slot, if it exists and is free.
    pub(super) fn take_this(&mut self, slot: u32) -> bool {
        if slot >= self.count || self.is_taken(slot) {
            return false;
        }
        self.state(slot).taken = true;
        true
    }

    /// Gives a slot back.
    pub(super) fn give_back(&mut self, slot: u32) {
        if !self.is_taken(slot) {
            return;
        }
        let is_fresh = slot >= self.next_fresh;
        let state = self.state(slot);
        state.taken = false;
        if !is_fresh && !state.waits {
            state.waits = true;
            self.returned.push_back(slot);
        }
    }

    /// Makes a VNI for a slot, other than any of its last ones and never 0.
    pub(super) fn next_vni(&mut self, slot: u32) -> u32 {
        let bits = self.count.trailing_zeros();
        let mask = MAX_VNI >> bits;
        let first = (mix(self.seed ^ u64::from(slot)) >> 32) as u32;
        let mut generation = match self.state(slot).generation {
            Some(generation) => generation.wrapping_add(1) & mask,
            None => first & mask,
        };
        if slot == 0 && generation == 0 {
            generation = 1;
        }
        self.state(slot).generation = Some(generation);
        generation << bits | slot
    }

    /// Notes that its slot has this VNI.
    pub(super) fn note_vni(&mut self, vni: u32) {
        let generation = (vni & MAX_VNI) >> self.count.trailing_zeros();
        self.state(self.slot_of(vni)).generation = Some(generation);
    }

    fn state(&mut self, slot: u32) -> &mut State {
        let index = slot as usize;
        if index >= self.states.len() {
            self.states.resize(index + 1, State::default());
        }
        &mut self.states[index]
    }
}

/// Spreads a number over all 64 bits (the finaliser of SplitMix64).
fn mix(mut number: u64) -> u64 {
    number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_slot_is_given_away_once() {
        let mut slots = Slots::new(8, 1);
        assert!(slots.take_this(3));
        let taken: BTreeSet<_> = std::iter::from_fn(|| slots.take()).collect();
        assert_eq!(taken.into_iter().collect::<Vec<_>>(), [0, 1, 2, 4, 5, 6, 7]);
        assert_eq!(slots.take(), None);
        assert!(!slots.take_this(3) && !slots.take_this(8));
    }

    #[test]
    fn a_slot_given_back_comes_last() {
        let mut slots = Slots::new(4, 1);
        assert_eq!((slots.take(), slots.take()), (Some(0), Some(1)));
        slots.give_back(0);
        slots.give_back(1);
        assert_eq!([slots.take(), slots.take(), slots.take()], [Some(2), Some(3), Some(0)]);
        assert!(slots.take_this(1), "taken while it waits");
        assert_eq!(slots.take(), None);
        slots.give_back(1);
        assert_eq!(slots.take(), Some(1));
    }

    #[test]
    fn taking_and_returning_one_slot_needs_no_memory() {
        let mut slots = Slots::new(4, 1);
        for slot in 0..4 {
            assert_eq!(slots.take(), Some(slot));
        }
        for _ in 0..100 {
            slots.give_back(2);
            slots.give_back(2);
            assert!(slots.take_this(2));
        }
        assert!(slots.returned.len() <= 1);
    }

    #[test]
    fn the_vnis_of_a_slot_go_through_all_generations_and_are_never_zero() {
        for slot in [0, 1, 0x3fff] {
            let mut slots = Slots::new(1 << 14, 0x5eed);
            let vnis: Vec<_> = (0..1024).map(|_| slots.next_vni(slot)).collect();
            let distinct: BTreeSet<_> = vnis.iter().copied().collect();
            assert_eq!(distinct.len(), 1024 - usize::from(slot == 0));
            assert!(!distinct.contains(&0));
            assert!(distinct.iter().all(|&vni| vni <= MAX_VNI && slots.slot_of(vni) == slot));
            assert!(vnis.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }

    #[test]
    fn where_the_vnis_start_depends_on_slot_and_seed() {
        let first = |seed, slot| Slots::new(1 << 14, seed).next_vni(slot) >> 14;
        let by_slot: BTreeSet<_> = (0..64).map(|slot| first(1, slot)).collect();
        let by_seed: BTreeSet<_> = (0..64).map(|seed| first(seed, 1)).collect();
        assert!(by_slot.len() > 50 && by_seed.len() > 50);
    }

    #[test]
    fn a_fixed_vni_is_not_given_again_at_once() {
        let mut slots = Slots::new(1 << 14, 1);
        slots.note_vni(5 << 14 | 9);
        assert_eq!(slots.next_vni(9), 6 << 14 | 9);
    }
}
