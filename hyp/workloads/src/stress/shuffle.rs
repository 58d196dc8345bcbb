//! Random choices that leave nothing out: a shuffle, dealt like cards.

use alloc::vec::Vec;
use fastrand::Rng;

/// Cards that are dealt in random order, each one once before any is dealt again, so that even a short run does everything.
#[derive(Debug)]
pub(super) struct Shuffle<C> {
    cards: Vec<C>,
    /// How many of them are dealt.
    dealt: usize,
    /// How often all of them were.
    rounds: u64,
}

impl<C: Copy> Shuffle<C> {
    /// A deck of so many of each card.
    pub(super) fn of(counts: &[(C, usize)]) -> Self {
        let same = |&(card, count): &(C, usize)| core::iter::repeat_n(card, count);
        Self {
            cards: counts.iter().flat_map(same).collect(),
            dealt: 0,
            rounds: 0,
        }
    }

    /// The next card. The deck isn't empty.
    pub(super) fn deal(&mut self, random: &mut Rng) -> C {
        let pick = random.usize(self.dealt..self.cards.len());
        self.cards.swap(self.dealt, pick);
        let card = self.cards[self.dealt];
        self.dealt += 1;
        if self.dealt == self.cards.len() {
            self.dealt = 0;
            self.rounds += 1;
        }
        card
    }

    /// How often all cards have been dealt.
    pub(super) fn rounds(&self) -> u64 {
        self.rounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_deals_every_card_as_often_as_it_is_there() {
        let mut random = Rng::with_seed(5);
        let mut deck = Shuffle::of(&[('a', 1), ('b', 3), ('c', 2)]);
        let mut orders = Vec::new();
        for round in 0..20 {
            assert_eq!(deck.rounds(), round);
            let dealt: Vec<char> = (0..6).map(|_| deck.deal(&mut random)).collect();
            let mut sorted = dealt.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, ['a', 'b', 'b', 'b', 'c', 'c']);
            orders.push(dealt);
        }
        orders.sort_unstable();
        orders.dedup();
        assert!(orders.len() > 10, "the order is random: {orders:?}");
    }
}
