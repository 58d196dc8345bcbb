//! What becomes of an interrupt in a list register when its owner looks at it (rule V3), as a function of the two.

use crate::interface::ListRegister;
use crate::word::Word;

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
    /// Whether the guest's deactivation has to ask for a maintenance interrupt.
    pub(crate) eoi: bool,
    /// Whether the physical interrupt behind it ends with the guest's deactivation.
    pub(crate) physical: bool,
    /// Whether the physical interrupt has to be ended now.
    pub(crate) ends_physical: bool,
}

/// What becomes of `word`, which `register` of its owner holds; `latched` says whether it was pending by a latch.
pub(crate) const fn settle(
    word: Word,
    register: ListRegister,
    latched: bool,
    place: Place,
) -> Settled {
    let edge = word.has(Word::EDGE);
    let latch = word.has(Word::LATCH);
    // What the guest has left, and what others asked for.
    let pending = register.pending() && !word.has(Word::DROP);
    let active = register.active() && !word.has(Word::CLRA) || word.has(Word::SETA);
    // A latch in the list register wasn't taken yet while that is pending; for an edge there is nothing else.
    let latch_left = latch || pending && (latched || edge);
    let line = !edge && word.has(Word::LEVEL);

    // The guest has ended the physical interrupt along with the virtual one, unless another was raised since.
    let ended = register.physical().is_some() && register.is_invalid() && !latch;
    let was_physical = word.has(Word::HW) && (!ended || word.has(Word::DEBT));

    let may_pend = word.has(Word::ENABLED) && matches!(place, Place::Here);
    // Pending and active at once: edges only, and none with a physical interrupt, whose state that is.
    let stays_active = active && !matches!(place, Place::Nowhere);
    let pends = if stays_active {
        may_pend && edge && !was_physical && latch_left
    } else {
        may_pend && (latch_left || line && !active)
    };
    let stays = stays_active || pends;
    let new_latch = latch_left && !pends;
    let leaves_active = active && !stays_active;
    let has_trace = new_latch || stays || leaves_active;

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
        // A level is sampled at its end, and what is left in the word comes back then (rule V7).
        eoi: stays && !physical && (!edge || new_latch),
        physical,
        ends_physical: was_physical && !has_trace,
    }
}
