//! Looking at what there is for a vCPU (rule V2).

use super::{Local, Release};
use crate::door::{CALL, Door, LOOK, LPIS, PRIVATE, SGIS};
use crate::interface::VirtualInterface;
use crate::sync::Ordering;
use crate::word::{FIRST_SPI, Word};

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    /// Takes what there is into the list registers. What comes meanwhile comes with a kick, which ends the guest's run at once.
    pub(crate) fn drain(&mut self) {
        let Some(door) = self.door() else { return };
        let taken = self.take(door);
        if taken == 0 {
            return;
        }
        self.own.backlog.insert_all(0, taken & PRIVATE);
        let backlog = &mut self.own.backlog;
        door.take_hints(taken, |first, hints| backlog.insert_all(first, hints));
        if taken & LPIS != 0
            && let Some(its) = &self.vgic.its
            && let Some(lpis) = its.hints(self.own.vcpu)
        {
            lpis.take(|first, hints| backlog.insert_all(first, hints));
        }
        if taken & CALL != 0 {
            self.note_all();
        }
        for slot in self.slots() {
            let Some(held) = self.own.held.get(slot) else {
                continue;
            };
            let intid = held.intid;
            if self.own.backlog.next(intid) == Some(intid) {
                self.own.backlog.remove(intid);
                self.settle(slot, Release::IfNeeded);
            }
        }
        self.fill();
    }

    /// Takes what there is to look at off a door, all in one exchange: it is rung anew by whoever comes later. SGIs are in their
    /// words before they leave the door, so that they are always in one of the two (rule V8).
    fn take(&mut self, door: &Door) -> u64 {
        let mut seen = door.word.load(Ordering::Relaxed);
        // Others only add bits: it fails less often than there are bits.
        while seen & LOOK != 0 {
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
                seen & !LOOK,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return seen & LOOK,
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

    /// Does what a maintenance interrupt asks for, whether it has come yet or not.
    pub(crate) fn maintain(&mut self) {
        self.settle_all();
        self.fill();
    }

    /// Settles what the list registers hold.
    pub(crate) fn settle_all(&mut self) {
        for slot in self.slots() {
            self.settle(slot, Release::IfNeeded);
        }
    }
}
