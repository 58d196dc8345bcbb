//! Looking at what there is for a vCPU (rule V2).

use super::{Local, Release};
use crate::door::{CALL, COMMANDS, Door, LOOK, LPIS, PRIVATE, SGIS};
use crate::interface::VirtualInterface;
use crate::sync::Ordering;
use crate::word::{FIRST_SPI, Word};

/// All that is taken off the door: commands of the ITS are executed apart.
const TAKEN: u64 = LOOK & !COMMANDS;

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    /// Takes what there is into the list registers. What comes meanwhile comes with a kick, which ends the guest's run at once.
    pub(crate) fn drain(&mut self) {
        let Some(door) = self.door() else { return };
        let taken = self.take(door);
        if taken == 0 {
            return;
        }
        if taken & PRIVATE != 0 {
            self.look_at(0, taken & PRIVATE);
        }
        door.take_hints(taken, |first, hints| self.look_at(first, hints));
        if taken & LPIS != 0
            && let Some(its) = &self.vgic.its
            && let Some(lpis) = its.hints(self.own.vcpu)
        {
            lpis.take(|first, hints| self.look_at(first, hints));
        }
        if taken & CALL != 0 {
            self.note_all();
        }
        self.fill();
    }

    /// Looks at the 64 interrupts from `first` on that have a bit in `hints`: what a list register holds is settled at once, the
    /// rest goes to the backlog.
    #[inline(always)]
    fn look_at(&mut self, first: u32, mut hints: u64) {
        for slot in self.slots() {
            let held = self.own.held.get(slot);
            let bit = held.map_or(u32::MAX, |held| held.intid.wrapping_sub(first));
            if bit < u64::BITS && hints >> bit & 1 != 0 {
                hints &= !(1 << bit);
                if !self.settle_raised(slot) {
                    self.settle(slot, Release::IfNeeded);
                }
            }
        }
        self.own.backlog.insert_all(first, hints);
    }

    /// Takes what there is to look at off a door, all in one exchange: it is rung anew by whoever comes later. SGIs are in their
    /// words before they leave the door, so that they are always in one of the two (rule V8).
    fn take(&mut self, door: &Door) -> u64 {
        let mut seen = door.word.load(Ordering::Relaxed);
        // Others only add bits: it fails less often than there are bits.
        while seen & TAKEN != 0 {
            let mut sgis = seen & SGIS;
            while sgis != 0 {
                if let Some(word) = self.word(sgis.trailing_zeros()) {
                    // Whoever reads the door without the bit reads this too.
                    word.fetch_or(Word::LATCH, Ordering::AcqRel);
                }
                sgis &= sgis - 1;
            }
            // Acquires what `ring` has released; releases the latches, and to `is_write_pending` what the guest did, which is
            // outside until all is looked at.
            match door.word.compare_exchange(
                seen,
                seen & !TAKEN,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return seen & TAKEN,
                Err(now) => seen = now,
            }
        }
        0
    }

    /// Has everything looked at by the next [`fill`](Self::fill), and at once what list registers hold.
    pub(crate) fn note_all(&mut self) {
        self.own.backlog.insert_all(0, PRIVATE);
        let count = self.vgic.spis.len() as u32;
        for first in (0..count).step_by(32) {
            self.own.backlog.insert_all(FIRST_SPI + first, PRIVATE);
        }
        if let Some(its) = &self.vgic.its {
            for intid in its.deliverable(self.own.vcpu) {
                self.own.backlog.insert(intid);
            }
        }
        self.settle_all();
    }

    /// Settles what the list registers hold.
    pub(crate) fn settle_all(&mut self) {
        for slot in self.slots() {
            self.settle(slot, Release::IfNeeded);
        }
    }
}
