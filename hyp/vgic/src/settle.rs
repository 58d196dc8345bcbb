//! What becomes of an interrupt in a list register when its owner looks at it (rule V3), as a function of the two.

use crate::interface::ListRegister;
use crate::word::{FIRST_LPI, Word};

/// The priority of what is active though the guest hasn't acknowledged it: no priority mask lets this one pass.
pub(crate) const BY_HAND: u8 = 0xff;

/// What a claimed list register holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Held {
    pub(crate) intid: u32,
    /// Whether it was pending by a latch when it was written.
    pub(crate) latched: bool,
    /// If it was active when it was written: the priority at which the guest had acknowledged it, or [`BY_HAND`].
    pub(crate) active_at: Option<u8>,
    /// Whether it is an SGI of a GICv2, of one source: what is pending is of another.
    pub(crate) has_source: bool,
}

/// Where an interrupt that isn't active may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// It may stay in the list register.
    Here,
    /// Its group is off, or it is routed to another vCPU.
    Elsewhere,
    /// Nothing may stay, not even what is active: the vCPU is put, or something better needs the list register.
    Nowhere,
}

/// The new word, and what goes with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Settled {
    pub(crate) word: Word,
    /// The state of the list register; neither: it is free.
    pub(crate) pending: bool,
    pub(crate) active: bool,
    /// Whether it is pending by a latch, which isn't in the word any more.
    pub(crate) latched: bool,
    /// If it is active, in the list register or by the word: the priority at which the guest has acknowledged it, or [`BY_HAND`].
    /// The guest ends the most urgent first, whatever their priorities are by now.
    pub(crate) active_at: Option<u8>,
    /// Whether the guest's deactivation has to ask for a maintenance interrupt.
    pub(crate) eoi: bool,
    /// Whether the physical interrupt behind it ends with the guest's deactivation.
    pub(crate) physical: bool,
    /// Whether the physical interrupt has to be ended now.
    pub(crate) ends_physical: bool,
}

/// What becomes of `word`, which `register` of its owner holds, written as `held` says.
pub(crate) const fn settle(
    word: Word,
    register: ListRegister,
    held: Held,
    place: Place,
) -> Settled {
    let edge = word.has(Word::EDGE);
    let latch = word.has(Word::LATCH);
    // What the guest has left, and what others asked for.
    let pending = register.pending() && !word.has(Word::DROP);
    let was_active = register.active() && !word.has(Word::CLRA);
    let active = was_active || word.has(Word::SETA);
    // A latch in the list register wasn't taken yet while that is pending.
    let latch_left = latch || pending && held.latched;
    let line = !edge && word.has(Word::LEVEL);

    // The guest has ended the physical interrupt along with the virtual one, unless another was raised since.
    let ended = register.physical().is_some() && register.is_invalid() && !latch;
    let was_physical = word.has(Word::HW) && (!ended || word.has(Word::DEBT));

    let may_pend = word.has(Word::ENABLED) && matches!(place, Place::Here);
    // Pending and active at once: edges only, and none with a physical interrupt, whose state that is, or with a source.
    let stays_active = active && !matches!(place, Place::Nowhere);
    let pends = if stays_active {
        may_pend && edge && !was_physical && !held.has_source && latch_left
    } else {
        may_pend && (latch_left || line && !active)
    };
    let stays = stays_active || pends;
    let new_latch = latch_left && !pends;
    // An LPI that was taken is over, if the CPU doesn't have it so already.
    let leaves_active = active && !stays_active && held.intid < FIRST_LPI;
    let has_trace = new_latch || stays || leaves_active;

    // What was pending beside it, and isn't any more, was acknowledged later.
    let retaken = held.latched && !register.pending();
    let active_at = match held.active_at {
        _ if !active => None,
        _ if !was_active => Some(BY_HAND),
        Some(priority) if !retaken => Some(priority),
        _ => Some(register.priority()),
    };

    let mut new =
        word.without(Word::MESSAGES | Word::LATCH | Word::CLAIMED | Word::P | Word::A | Word::HW);
    new = new.with_if(new_latch, Word::LATCH);
    new = new.with_if(stays, Word::CLAIMED);
    new = new.with_if(pends, Word::P);
    new = new.with_if(stays_active, Word::A);
    new = new.with_if(leaves_active || word.has(Word::ACT), Word::ACT);
    new = new.with_if(was_physical && has_trace, Word::HW);
    let physical = stays && was_physical && !new_latch;
    Settled {
        word: new,
        pending: pends,
        active: stays_active,
        latched: pends && latch_left,
        active_at,
        // A level is sampled at its end, and what is left in the word comes back then (rule V7).
        eoi: stays && !physical && (!edge || new_latch),
        physical,
        ends_physical: was_physical && !has_trace,
    }
}

/// The new word of an edge that was raised again after the guest had ended it, if that is all that happened: it is pending in its
/// list register again. [`settle`] says the same of all that may have happened.
pub(crate) const fn raised_again(word: Word, register: ListRegister) -> Option<Word> {
    const RAISED: u64 = Word::ENABLED | Word::EDGE | Word::CLAIMED | Word::LATCH;
    const NOTHING_ELSE: u64 = RAISED | Word::ACT | Word::HW | Word::MESSAGES;
    if word.0 & NOTHING_ELSE == RAISED && register.is_invalid() {
        Some(word.without(Word::LATCH | Word::A).with(Word::P))
    } else {
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Of a list register that holds nothing any more, of an interrupt that may be taken where it is.
        #[test]
        fn what_is_raised_again_is_settled_so(bits in 0_u64..1 << 36, eoi: bool, active_at: Option<u8>, latched: bool) {
            let word = Word(bits | Word::CLAIMED);
            let register = ListRegister::new(40, 0xa0).with_eoi(eoi);
            if let Some(new) = raised_again(word, register) {
                let held = Held { intid: 40, latched, active_at, has_source: false };
                let expected = Settled {
                    word: new,
                    pending: true,
                    active: false,
                    latched: true,
                    active_at: None,
                    eoi: false,
                    physical: false,
                    ends_physical: false,
                };
                prop_assert_eq!(settle(word, register, held, Place::Here), expected);
            }
        }
    }

    #[test]
    fn an_edge_is_raised_again() {
        let (again, ended) = (Word(EDGE | Word::LATCH | Word::A), register(false, false));
        assert_eq!(raised_again(again, ended), Some(Word(EDGE | Word::P)));
        for bits in [Word::ACT, Word::HW, Word::DROP, Word::SYNC] {
            assert_eq!(raised_again(again.with(bits), ended), None);
        }
        assert_eq!(raised_again(again.without(Word::LATCH), ended), None);
        assert_eq!(raised_again(again, register(false, true)), None);
    }

    const ON: u64 = Word::ENABLED | Word::CLAIMED;
    const EDGE: u64 = ON | Word::EDGE;

    fn register(pending: bool, active: bool) -> ListRegister {
        ListRegister::new(40, 0).with_state(pending, active)
    }

    fn settled(word: u64, register: ListRegister, place: Place) -> Settled {
        let held = Held {
            intid: 40,
            latched: word & Word::EDGE != 0,
            active_at: None,
            has_source: false,
        };
        settle(Word(word), register, held, place)
    }

    /// One row for each thing that others ask for: the word, the list register, where it may be; the state that it has then,
    /// whether a latch is left, whether its end is asked for.
    #[test]
    fn words_and_list_registers_become_one() {
        use Place::{Elsewhere, Here, Nowhere};
        let (p, a, pa, none) = ((true, false), (false, true), (true, true), (false, false));
        let rows = [
            ("nothing happened", EDGE, p, Here, p, false, false),
            ("it was ended", EDGE, none, Here, none, false, false),
            (
                "and raised again",
                EDGE | Word::LATCH,
                none,
                Here,
                p,
                false,
                false,
            ),
            (
                "raised while active",
                EDGE | Word::LATCH,
                a,
                Here,
                pa,
                false,
                false,
            ),
            (
                "raised while pending",
                EDGE | Word::LATCH,
                p,
                Here,
                p,
                false,
                false,
            ),
            ("cleared", EDGE | Word::DROP, p, Here, none, false, false),
            (
                "cleared and raised",
                EDGE | Word::DROP | Word::LATCH,
                p,
                Here,
                p,
                false,
                false,
            ),
            (
                "cleared too late",
                EDGE | Word::DROP,
                a,
                Here,
                a,
                false,
                false,
            ),
            (
                "deactivated",
                EDGE | Word::CLRA,
                a,
                Here,
                none,
                false,
                false,
            ),
            (
                "deactivated, pending left",
                EDGE | Word::CLRA,
                pa,
                Here,
                p,
                false,
                false,
            ),
            ("activated", EDGE | Word::SETA, p, Here, pa, false, false),
            (
                "activated anew",
                EDGE | Word::SETA,
                none,
                Here,
                a,
                false,
                false,
            ),
            ("moved", EDGE, p, Elsewhere, none, true, false),
            ("moved while active", EDGE, a, Elsewhere, a, false, false),
            (
                "moved, pending and active",
                EDGE,
                pa,
                Elsewhere,
                a,
                true,
                true,
            ),
            (
                "disabled",
                EDGE & !Word::ENABLED,
                p,
                Here,
                none,
                true,
                false,
            ),
            (
                "disabled while both",
                EDGE & !Word::ENABLED,
                pa,
                Here,
                a,
                true,
                true,
            ),
            ("put", EDGE, p, Nowhere, none, true, false),
            ("put while active", EDGE, a, Nowhere, none, false, false),
            ("put while both", EDGE, pa, Nowhere, none, true, false),
            (
                "a level that is up",
                ON | Word::LEVEL,
                p,
                Here,
                p,
                false,
                true,
            ),
            ("a level that fell", ON, p, Here, none, false, false),
            (
                "a level that was ended",
                ON | Word::LEVEL,
                none,
                Here,
                p,
                false,
                true,
            ),
            (
                "a level that runs",
                ON | Word::LEVEL,
                a,
                Here,
                a,
                false,
                true,
            ),
            (
                "a level that is set by hand",
                ON | Word::LATCH,
                none,
                Here,
                p,
                false,
                true,
            ),
            (
                "a level that is set while it runs",
                ON | Word::LATCH,
                a,
                Here,
                a,
                true,
                true,
            ),
            (
                "a level that is put",
                ON | Word::LEVEL,
                p,
                Nowhere,
                none,
                false,
                false,
            ),
            (
                "a level that moves",
                ON | Word::LEVEL,
                p,
                Elsewhere,
                none,
                false,
                false,
            ),
        ];
        for (what, word, (pending, active), place, state, latch, eoi) in rows {
            let settled = settled(word | Word::SYNC, register(pending, active), place);
            assert_eq!((settled.pending, settled.active), state, "{what}");
            assert_eq!(settled.word.has(Word::LATCH), latch, "{what}");
            assert_eq!(settled.eoi, eoi, "{what}");
            assert!(!settled.word.has(Word::MESSAGES), "{what}");
            let stays = settled.pending || settled.active;
            assert_eq!(settled.word.has(Word::CLAIMED), stays, "{what}");
            assert_eq!(settled.word.has(Word::P), settled.pending, "{what}");
            assert_eq!(settled.word.has(Word::A), settled.active, "{what}");
            let outside = place == Nowhere && active;
            assert_eq!(settled.word.has(Word::ACT), outside, "{what}");
            assert!(!settled.physical && !settled.ends_physical, "{what}");
        }
    }

    /// The same for what stands behind it: whether the list register has it, whether it is ended now, or lives on.
    #[test]
    fn a_physical_interrupt_is_ended_once() {
        use Place::{Elsewhere, Here, Nowhere};
        const HW: u64 = EDGE | Word::HW;
        let (p, a, none) = ((true, false), (false, true), (false, false));
        let with = |(pending, active)| register(pending, active).with_physical(9);
        let rows = [
            ("pending", HW, with(p), Here, (true, false, true)),
            ("active", HW, with(a), Here, (true, false, true)),
            (
                "the guest has ended it",
                HW,
                with(none),
                Here,
                (false, false, false),
            ),
            (
                "it fired again",
                HW | Word::LATCH,
                with(none),
                Here,
                (true, false, true),
            ),
            (
                "cleared",
                HW | Word::DROP,
                with(p),
                Here,
                (false, true, false),
            ),
            (
                "deactivated",
                HW | Word::CLRA,
                with(a),
                Here,
                (false, true, false),
            ),
            ("moved", HW, with(p), Elsewhere, (false, false, true)),
            ("put", HW, with(a), Nowhere, (false, false, true)),
            (
                "disabled",
                HW & !Word::ENABLED,
                with(p),
                Here,
                (false, false, true),
            ),
            (
                "set by hand while active",
                HW | Word::LATCH,
                with(a),
                Here,
                (false, false, true),
            ),
            (
                "ended without it",
                HW,
                register(false, false),
                Here,
                (false, true, false),
            ),
            (
                "a debt",
                HW | Word::DEBT,
                with(none),
                Here,
                (false, true, false),
            ),
            (
                "no debt of one that lives",
                HW | Word::DEBT,
                with(a),
                Here,
                (true, false, true),
            ),
        ];
        for (what, word, register, place, expected) in rows {
            let settled = settled(word, register, place);
            let found = (
                settled.physical,
                settled.ends_physical,
                settled.word.has(Word::HW),
            );
            assert_eq!(found, expected, "{what}");
            assert!(!(settled.physical && settled.eoi), "{what}");
        }
    }
}
