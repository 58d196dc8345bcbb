//! Filling list registers from the backlog (rule V4).

use super::{Local, Release};
use crate::interface::{VirtualInterface, hcr};
use crate::settle::Settled;
use crate::sync::Ordering;
use crate::vgic::Vgic;
use crate::word::Word;

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    /// Fills the list registers with what there is in the backlog, and asks for the maintenance interrupts that are needed.
    #[inline(always)]
    pub(crate) fn fill(&mut self) {
        let waits = !self.own.backlog.is_empty() || !self.own.outside.is_empty();
        if waits || self.own.hcr != hcr::EN {
            self.fill_from_backlog();
        }
    }

    #[inline(never)]
    fn fill_from_backlog(&mut self) {
        let mut wanted = hcr::EN;
        if !self.own.backlog.is_empty() && !self.claim_all() {
            wanted |= self.claim_best();
        }
        if !self.own.outside.is_empty() {
            self.take_back_active();
            wanted |= self.outside_hcr();
        }
        if wanted != self.own.hcr {
            self.own.hcr = wanted;
            self.hw.write_hcr(wanted);
        }
    }

    /// Claims what is in the backlog, in any order, while there are list registers. Returns whether there were enough.
    fn claim_all(&mut self) -> bool {
        let groups = self.vgic.groups();
        let mut from = 0;
        while let Some(intid) = self.own.backlog.next(from) {
            from = intid + 1;
            if self.may_claim(intid, groups) {
                let Some(slot) = self.free_slot() else {
                    return false;
                };
                self.claim(slot, intid, groups);
            }
            self.own.backlog.remove(intid);
        }
        true
    }

    /// Whether an interrupt of the backlog may be taken here. If not, whoever changes that tells of it.
    pub(super) fn may_claim(&mut self, intid: u32, groups: u64) -> bool {
        let Some(word) = self.word(intid) else {
            return false;
        };
        self.look_at_sources(intid);
        // Acquires nothing that the door or the hint hasn't: what they told of is seen.
        let word = Word(word.load(Ordering::Acquire));
        if word.has(Word::HW) && !word.has(Word::CLAIMED) {
            self.look_at_physical(intid, word);
        }
        word.is_deliverable() && Self::is_for(self.vgic, self.own.vcpu, intid, word, groups)
    }

    /// Pays what another vCPU has left to this one (rule V13), and ends a physical interrupt whose line has fallen again before
    /// the guest got it.
    fn look_at_physical(&mut self, intid: u32, word: Word) {
        let line = self.vgic.physical(intid).and_then(|id| self.hw.line(id));
        let fell = !word.has(Word::EDGE) && line == Some(false);
        if !word.has(Word::DEBT) && !fell {
            return;
        }
        let Some(place) = self.word(intid) else {
            return;
        };
        let changed = Vgic::change(place, |old| {
            if !old.has(Word::HW) || old.has(Word::CLAIMED) {
                return None;
            }
            let new = old.without(Word::DEBT);
            let new = if fell { new.without(Word::LATCH) } else { new };
            Some(if new.is_traceless() {
                new.without(Word::HW)
            } else {
                new
            })
        });
        if changed.is_ok_and(|(_, new)| !new.has(Word::HW)) {
            self.end_physical(intid);
        }
    }

    /// A list register that is free, or whose interrupt the guest has deactivated (rule V11).
    pub(super) fn free_slot(&mut self) -> Option<usize> {
        let count = self.list_registers();
        let first = self.own.claimed.trailing_ones() as usize;
        if first < count {
            return Some(first);
        }
        for slot in self.slots() {
            if self.hw.read_lr(slot).is_invalid() {
                self.settle(slot, Release::IfNeeded);
                if self.own.claimed >> slot & 1 == 0 {
                    return Some(slot);
                }
            }
        }
        None
    }

    /// Claims an interrupt for a list register, if it still may be taken here (rule V4). Nothing but its owner's settling
    /// releases it.
    pub(super) fn claim(&mut self, slot: usize, intid: u32, groups: u64) -> bool {
        let Some(word) = self.word(intid) else {
            return false;
        };
        let (vgic, vcpu) = (self.vgic, self.own.vcpu);
        let claimed = Vgic::change(word, |old| {
            let may = old.is_deliverable() && Self::is_for(vgic, vcpu, intid, old, groups);
            let new = old.without(Word::LATCH | Word::A);
            may.then(|| new.with(Word::CLAIMED | Word::P).with_owner(vcpu))
        });
        let Ok((old, new)) = claimed else {
            return false;
        };
        let physical = new.has(Word::HW);
        let mut settled = Settled {
            word: new,
            pending: true,
            active: false,
            latched: old.has(Word::LATCH),
            eoi: !new.has(Word::EDGE),
            physical,
            active_at: None,
            ends_physical: false,
        };
        settled.eoi |= self.take_source(intid);
        self.write_lr(slot, intid, &settled);
        true
    }
}
