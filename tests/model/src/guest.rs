//! Guests' accesses and hardware's own updates, at whatever moment the schedule picks.
//!
//! An access goes through any translation that the CPU may have: what the tables say, or whatever stale value the checker
//! says that its TLB may hold. Access flags and dirty state are set by compare-exchange on the entry, as FEAT_HAFDBS does.

use crate::cpu::current;
use crate::schedule::{choose, pause, trace};
use crate::system::{Shared, System};
use crate::{Served, locked};
use checker::{Kind, Translation};
use stage2::{Access, Bbm, Features, Ipa, Pa, Request};
use std::ptr::with_exposed_provenance;
use std::sync::atomic::{AtomicU64, Ordering};

const ACCESSED: u64 = 1 << 10;
const WRITABLE: u64 = 1 << 7;
const NO_TRANSLATION: u64 = 1 << 16;
/// Times that an access may fault before something must be wrong.
const PATIENCE: usize = 10_000;

/// How an access ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It went through, to this address.
    Done(Pa),
    /// It faulted.
    Fault,
}

impl System {
    /// One access by a guest on `cpu`.
    pub fn guest(&self, cpu: usize, ipa: Ipa, access: Access) -> Outcome {
        self.enter(cpu);
        loop {
            pause();
            let mut ways = self
                .shared
                .checker
                .translations(self.root(), cpu, ipa.get());
            let faults = !ways.iter().any(|way| way.kind == Kind::Visible);
            let choice = choose(ways.len() + usize::from(faults));
            if choice == ways.len() {
                return Outcome::Fault;
            }
            let way = ways.swap_remove(choice);
            match self.take(way, access) {
                Taken::Through(output) => {
                    trace(cpu, || format!("{access:?} of {ipa} {way:x?}"));
                    if access == Access::Write {
                        let page = ipa.align_down(self.stage2().layout().page_size());
                        self.shared.checker.wrote(self.root(), page.get(), cpu);
                    }
                    return Outcome::Done(Pa::new(output));
                }
                Taken::Changed => {}
                Taken::Refused => return Outcome::Fault,
            }
        }
    }

    fn take(&self, way: Translation, access: Access) -> Taken {
        (self.shared).take(self.stage2().layout().features(), way, access)
    }

    /// Hardware looks at `ipa` of its own accord on `cpu`, and sets its access flag if it does that.
    pub fn speculate(&self, cpu: usize, ipa: Ipa) {
        pause();
        let mut ways = self
            .shared
            .checker
            .translations(self.root(), cpu, ipa.get());
        ways.retain(|way| !way.accessed);
        if !ways.is_empty() {
            let way = ways.swap_remove(choose(ways.len()));
            self.take(way, Access::Read);
        }
    }

    /// Accesses of a guest until one goes through, each fault being served. Returns where it went and what the last fault
    /// did; or why it never will.
    pub fn access(&self, cpu: usize, request: &Request) -> Result<(Pa, Option<Served>), Served> {
        let mut last = None;
        for _ in 0..PATIENCE {
            if let Outcome::Done(output) = self.guest(cpu, request.ipa, request.access) {
                return Ok((output, last));
            }
            match self.fault(cpu, request) {
                stuck @ (Served::NotPermitted | Served::OutOfFrames) => return Err(stuck),
                served => last = Some(served),
            }
        }
        let found = locked(&self.shared.found);
        panic!(
            "the guest on CPU {} never gets through to {:?}; the last fault was {last:?}; reported so far: {found:?}",
            current(),
            request.ipa
        );
    }
}

impl Shared {
    /// A guest's access by one of the ways that its CPU has, on a machine with these features.
    pub(crate) fn take(&self, features: &Features, way: Translation, access: Access) -> Taken {
        // Whether a walk that finds the nT bit of a block faults is the implementation's choice.
        let is_marked = features.bbm == Bbm::Level1
            && way.kind == Kind::Visible
            && way.level < 3
            && way.word & NO_TRANSLATION != 0;
        if is_marked && choose(2) == 0 {
            return Taken::Refused;
        }
        if !way.accessed {
            return match way.entry {
                Some(entry) if features.hardware_access => self.update(entry, way.word, ACCESSED),
                _ => Taken::Refused,
            };
        }
        let allowed = match access {
            Access::Read => way.readable,
            Access::Write => way.writable,
            Access::Execute => matches!(way.execute_never, 0b00 | 0b11),
            Access::ExecuteAtEl0 => matches!(way.execute_never, 0b00 | 0b01),
        };
        match way.entry {
            _ if allowed => Taken::Through(way.output),
            Some(entry)
                if access == Access::Write && way.dirty_modifier && features.hardware_dirty =>
            {
                self.update(entry, way.word, WRITABLE)
            }
            // Hardware makes an entry dirty in memory or not at all: a clean one in a TLB has it walk again.
            None if access == Access::Write && way.dirty_modifier => Taken::Changed,
            _ => Taken::Refused,
        }
    }

    /// Hardware sets a bit of an entry, if that is still what it was; either way it looks again.
    fn update(&self, entry: u64, word: u64, bit: u64) -> Taken {
        let place: *const AtomicU64 = with_exposed_provenance(entry as usize);
        let found = self.checker.hardware_change(entry, &mut || {
            // SAFETY: walkers can reach the entry's table, and only now was asked where they can be; nobody else has run
            // since, and a table that they can reach is a live one: the checker forgets it when it is freed.
            let place = unsafe { &*place };
            place
                .compare_exchange(word, word | bit, Ordering::AcqRel, Ordering::Relaxed)
                .ok()
                .map(|old| (old, old | bit))
        });
        trace(current(), || {
            format!("hardware sets {bit:#x} in {entry:#x}, {word:#x}")
        });
        self.note(found);
        Taken::Changed
    }
}

/// What came of taking one translation.
pub(crate) enum Taken {
    /// The access goes to this address.
    Through(u64),
    /// Hardware changed something, or walks again.
    Changed,
    /// It faults.
    Refused,
}
