//! The run state of a VM: running, paused, or ended.
//!
//! It is one word, which every exit reads and which is written only by pauses and by the VM's end; so pausing costs a running
//! guest nothing. Reasons to pause add up: the VM runs when nobody pauses it and it doesn't lack memory.

use spin::{Mutex, Once};
use stage2::sync::{AtomicU64, Ordering};

use crate::vm::stop_reason::{Starvation, StopReason};

/// The VM has ended, for good.
const ENDED: u64 = 1;
/// The VM lacks memory.
const STARVED: u64 = 2;
/// One pause; further ones are counted in the bits above.
const HOLD: u64 = 4;

/// The run state of a VM.
#[derive(Debug, Default)]
pub(crate) struct Life {
    /// 0 while vCPUs may run.
    word: AtomicU64,
    end: Once<StopReason>,
    /// The missing memory, while the VM is [`STARVED`]. Locked only when memory has run out, and by whoever checks for that.
    starvation: Mutex<Option<Starvation>>,
}

impl Life {
    /// Whether vCPUs may run. Acquire: changes made to them during a pause are visible.
    #[inline]
    pub(crate) fn runs(&self) -> bool {
        self.word.load(Ordering::Acquire) == 0
    }

    /// Whether it has ended.
    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.word.load(Ordering::Acquire) & ENDED != 0
    }

    /// Ends it, unless it has ended already.
    pub(crate) fn end(&self, reason: StopReason) {
        self.end.call_once(|| reason);
        self.word.fetch_or(ENDED, Ordering::SeqCst);
    }

    /// The reason of its end, if it has ended.
    pub(crate) fn reason(&self) -> Option<StopReason> {
        self.end.get().copied()
    }

    /// Pauses it until [`Self::release`].
    pub(crate) fn hold(&self) {
        self.word.fetch_add(HOLD, Ordering::SeqCst);
    }

    /// Whether it is paused exactly once, and lacks no memory.
    pub(crate) fn is_held_once(&self) -> bool {
        self.word.load(Ordering::Relaxed) & !ENDED == HOLD
    }

    /// Releases one [`Self::hold`]. Returns whether vCPUs may run now.
    pub(crate) fn release(&self) -> bool {
        self.word.fetch_sub(HOLD, Ordering::SeqCst) == HOLD
    }

    /// Pauses it for lack of memory; the first reported lack stays.
    pub(crate) fn starve(&self, starvation: Starvation) {
        let mut told = self.starvation.lock();
        told.get_or_insert(starvation);
        self.word.fetch_or(STARVED, Ordering::SeqCst);
    }

    /// The missing memory.
    pub(crate) fn starvation(&self) -> Option<Starvation> {
        *self.starvation.lock()
    }

    /// Ends the lack of memory. Returns whether vCPUs may run now, and couldn't before.
    pub(crate) fn feed(&self) -> bool {
        let mut told = self.starvation.lock();
        *told = None;
        self.word.fetch_and(!STARVED, Ordering::SeqCst) == STARVED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::VcpuId;
    use stage2::Ipa;

    #[test]
    fn it_runs_when_nobody_holds_it_and_it_lacks_nothing() {
        let life = Life::default();
        let lack = |vcpu| Starvation {
            vcpu: VcpuId(vcpu),
            ipa: Ipa::new(0x1000),
        };
        assert!(life.runs());
        life.hold();
        life.hold();
        life.starve(lack(1));
        life.starve(lack(2));
        assert_eq!(life.starvation(), Some(lack(1)), "the first one's");
        assert!(!life.release() && !life.runs());
        assert!(!life.feed() && !life.runs(), "somebody still holds it");
        assert_eq!(life.starvation(), None);
        assert!(life.release() && life.runs());
        assert!(!life.feed(), "it ran already");
        life.starve(lack(3));
        assert!(!life.runs());
        assert!(life.feed() && life.runs());
        assert!(!life.has_ended());
    }

    #[test]
    fn no_pauses_end_brings_an_ended_vm_back() {
        let life = Life::default();
        life.hold();
        life.end(StopReason::Reset);
        life.end(StopReason::PoweredOff);
        assert!(!life.release() && !life.runs() && life.has_ended());
        assert_eq!(life.reason(), Some(StopReason::Reset));
    }
}
