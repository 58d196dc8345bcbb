//! Finds cold pages: an active and an inactive list for each owner of memory.
//!
//! A newly found page joins the inactive list. The oldest inactive page is compressed next; if it was accessed while listed, it
//! becomes active instead. While there are more active pages than inactive ones, the oldest active pages become inactive, and
//! stay if they are accessed again in that time. Linux ages anonymous memory in the same way.
//!
//! A list holds identifiers of pages, whose backing may have changed meanwhile: whoever takes one checks. The lists' lock is
//! held for single steps; a fault takes it only when it has run out of frames.

use crate::frames::{OWNERS, Owner};
use alloc::collections::VecDeque;

/// How often each page is looked at in vain before reclaim gives up: once as it was accessed, once as it was active.
const VAIN_LOOKS: u64 = 3;
/// How often all memory is searched in vain before reclaim gives up.
const VAIN_ROUNDS: u64 = 2;

/// The lists of all owners, of pages identified by `P`.
#[derive(Debug)]
pub(crate) struct Lists<P> {
    owners: [Pair<P>; OWNERS],
}

#[derive(Debug)]
struct Pair<P> {
    active: VecDeque<P>,
    inactive: VecDeque<P>,
    /// The pages that remain of the owner's turn: owners with more pages get longer turns.
    due: u64,
    /// Pages that were looked at in vain since the last one was compressed, and the number of searches of all memory at that
    /// time.
    in_vain: u64,
    rounds: u64,
}

impl<P> Pair<P> {
    fn len(&self) -> usize {
        self.active.len() + self.inactive.len()
    }
}

impl<P> Lists<P> {
    pub(crate) const fn new() -> Self {
        Self {
            owners: [const {
                Pair {
                    active: VecDeque::new(),
                    inactive: VecDeque::new(),
                    due: 0,
                    in_vain: 0,
                    rounds: 0,
                }
            }; OWNERS],
        }
    }

    /// The owner whose pages are compressed next: in proportion to the owners' listed pages.
    pub(crate) fn whose_turn(&mut self) -> Option<Owner> {
        let mut total = 0;
        for pair in &mut self.owners {
            pair.due += pair.len() as u64;
            total += pair.len() as u64;
        }
        let owners = Owner::all().filter(|owner| self.owners[owner.index()].len() > 0);
        let most = owners.max_by_key(|owner| self.owners[owner.index()].due)?;
        let due = &mut self.owners[most.index()].due;
        *due = due.saturating_sub(total);
        Some(most)
    }

    /// Lists a page as the newest inactive one. False without heap.
    pub(crate) fn enlist(&mut self, owner: Owner, page: P) -> bool {
        push(&mut self.owners[owner.index()].inactive, page)
    }

    /// Lists a page as the newest active one. False without heap.
    pub(crate) fn activate(&mut self, owner: Owner, page: P) -> bool {
        push(&mut self.owners[owner.index()].active, page)
    }

    /// Whether one more inactive page can be listed. Allocates; false without heap.
    pub(crate) fn has_room(&mut self, owner: Owner) -> bool {
        self.owners[owner.index()].inactive.try_reserve(1).is_ok()
    }

    /// Lists a page as the oldest inactive one, which is compressed next. There is room for it.
    pub(crate) fn enlist_next(&mut self, owner: Owner, page: P) {
        self.owners[owner.index()].inactive.push_front(page);
    }

    /// Notes how many inactive pages of an owner were looked at, whether any was compressed, and how often all memory was
    /// searched by now.
    pub(crate) fn note(&mut self, owner: Owner, looks: u64, any_away: bool, rounds: u64) {
        let pair = &mut self.owners[owner.index()];
        if any_away {
            pair.in_vain = 0;
            pair.rounds = rounds;
        } else {
            pair.in_vain += looks;
        }
    }

    /// Whether it may help to continue, for one owner or for all: not all pages were looked at again and again in vain, or
    /// there may be unlisted ones.
    pub(crate) fn is_hopeful(&self, of: Option<Owner>, rounds: u64) -> bool {
        let hopeful = |owner: Owner| {
            let pair = &self.owners[owner.index()];
            pair.in_vain <= VAIN_LOOKS * pair.len() as u64 && pair.len() != 0
                || rounds < pair.rounds + VAIN_ROUNDS
        };
        match of {
            Some(owner) => hopeful(owner),
            None => Owner::all().any(hopeful),
        }
    }

    /// Takes the oldest inactive page.
    pub(crate) fn take_inactive(&mut self, owner: Owner) -> Option<P> {
        self.owners[owner.index()].inactive.pop_front()
    }

    /// Takes the oldest active page, if more are active than inactive.
    pub(crate) fn take_surplus(&mut self, owner: Owner) -> Option<P> {
        let pair = &mut self.owners[owner.index()];
        if pair.active.len() > pair.inactive.len() {
            pair.active.pop_front()
        } else {
            None
        }
    }

    /// How many pages are listed as active and as inactive.
    pub(crate) fn lengths(&self) -> (u64, u64) {
        self.owners.iter().fold((0, 0), |(active, inactive), pair| {
            (
                active + pair.active.len() as u64,
                inactive + pair.inactive.len() as u64,
            )
        })
    }
}

fn push<P>(list: &mut VecDeque<P>, page: P) -> bool {
    let has_room = list.try_reserve(1).is_ok();
    if has_room {
        list.push_back(page);
    }
    has_room
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::VmId;

    const VM: Owner = Owner::Vm(VmId::new(3).unwrap());

    #[test]
    fn pages_go_in_the_order_in_which_they_came_and_a_second_chance_puts_them_last() {
        let mut lists = Lists::new();
        assert!((1..=4).all(|page| lists.enlist(VM, page)));
        assert_eq!(lists.take_inactive(VM), Some(1));
        assert!(lists.activate(VM, 1));
        assert_eq!(lists.take_surplus(VM), None, "one active, three inactive");
        assert_eq!(lists.take_inactive(VM), Some(2));
        assert_eq!(lists.take_inactive(VM), Some(3));
        assert_eq!(
            lists.take_surplus(VM),
            None,
            "as many as there are inactive"
        );
        assert!(lists.activate(VM, 3));
        assert_eq!(lists.take_surplus(VM), Some(1), "the oldest");
        assert!(lists.enlist(VM, 1));
        assert_eq!(lists.lengths(), (1, 2));
        assert_eq!(lists.take_inactive(VM), Some(4));
        assert_eq!(lists.take_inactive(VM), Some(1));
        assert_eq!(lists.take_inactive(VM), None);
        assert_eq!(lists.take_surplus(VM), Some(3));
        assert_eq!(lists.whose_turn(), None);
    }

    #[test]
    fn who_has_more_is_asked_for_more_and_nobody_is_forgotten() {
        let mut lists = Lists::new();
        for page in 0..300 {
            let owner = if page % 3 == 0 { Owner::Shared } else { VM };
            lists.enlist(owner, page);
        }
        let turns: Vec<Owner> = (0..30).filter_map(|_| lists.whose_turn()).collect();
        let shared = turns.iter().filter(|owner| **owner == Owner::Shared);
        assert_eq!((turns.len(), shared.count()), (30, 10));
        let longest = turns.chunk_by(|a, b| a == b).map(<[_]>::len).max();
        assert_eq!(longest, Some(2), "{turns:?}");
        // Who has none left gets no turn, whatever was due.
        while lists.take_inactive(VM).is_some() {}
        assert!((0..5).all(|_| lists.whose_turn() == Some(Owner::Shared)));
    }
}
