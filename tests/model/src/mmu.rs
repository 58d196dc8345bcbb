//! An MMU in software that real threads run on: a TLB for each CPU, which keeps whole leaves until an invalidation reaches them, and a
//! walker that sets access flags and dirty state in the tables by itself (FEAT_HAFDBS).
//!
//! CPUs are threads, of the host or of a schedule. A CPU's TLB is locked for as long as an access takes, walk included: an
//! invalidation is complete when the accesses that it overtakes are, as the architecture has it. What walkers cache of links
//! to tables is [`System`](crate::System)'s.

use std::ptr::with_exposed_provenance;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use crate::pause;
use memory::{Caches, FaultKind};
use stage2::{Ipa, IpaRange, Layout, Level, Pa, Regime, Tlb};

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const WRITABLE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 10;
const DIRTY_MODIFIER: u64 = 1 << 51;
const ADDRESS: u64 = ((1 << 48) - 1) & !0xfff;
/// Leaves that a TLB holds at most.
const MOST_HELD: usize = 48;

/// A leaf in a TLB.
#[derive(Clone, Copy, Debug)]
struct Held {
    first: u64,
    end: u64,
    level: Level,
    word: u64,
}

impl Held {
    fn covers(&self, at: u64) -> bool {
        (self.first..self.end).contains(&at)
    }
}

/// All CPUs' TLBs.
#[derive(Debug)]
pub struct Mmu {
    layout: Layout,
    tlbs: Vec<Mutex<Vec<Held>>>,
}

impl Mmu {
    /// For guests whose tables are laid out so.
    pub fn new(layout: Layout, cpus: usize) -> Arc<Self> {
        let tlbs = (0..cpus).map(|_| Mutex::default()).collect();
        Arc::new(Self { layout, tlbs })
    }

    /// A CPU's TLB. Others may run while this waits, and while it is held: so no thread of a schedule may block on it.
    fn tlb(&self, cpu: usize) -> MutexGuard<'_, Vec<Held>> {
        loop {
            if let Ok(tlb) = self.tlbs[cpu].try_lock() {
                return tlb;
            }
            pause();
            thread::yield_now();
        }
    }

    fn drop_from(&self, cpu: usize, gone: impl Fn(&Held) -> bool) {
        let mut tlb = self.tlb(cpu);
        pause();
        tlb.retain(|held| !gone(held));
    }

    fn drop_everywhere(&self, gone: impl Fn(&Held) -> bool) {
        for cpu in 0..self.tlbs.len() {
            self.drop_from(cpu, &gone);
        }
    }

    /// One access of the guest on `cpu`, whose tables begin at `root`: calls `act` with where it goes. `any` is a random
    /// number, for what hardware is free to do.
    pub fn access(
        &self,
        cpu: usize,
        root: Pa,
        ipa: Ipa,
        write: bool,
        any: u64,
        act: impl FnOnce(Pa),
    ) -> Result<(), FaultKind> {
        let mut tlb = self.tlb(cpu);
        if any.is_multiple_of(7) && !tlb.is_empty() {
            let forgotten = any as usize / 7 % tlb.len();
            tlb.swap_remove(forgotten);
        }
        let held = tlb.iter().find(|held| held.covers(ipa.get())).copied();
        // Hardware notes a write in the tables or not at all: with a clean leaf it walks again.
        let usable = held.filter(|held| {
            !write || held.word & WRITABLE != 0 || held.word & DIRTY_MODIFIER == 0 || !self.tracks()
        });
        let leaf = match usable {
            Some(held) => held,
            None => {
                let walked = self.walk(root, ipa, write)?;
                tlb.retain(|held| !(held.first == walked.first && held.level == walked.level));
                if tlb.len() == MOST_HELD {
                    tlb.swap_remove(any as usize % MOST_HELD);
                }
                tlb.push(walked);
                walked
            }
        };
        if write && leaf.word & WRITABLE == 0 {
            return Err(FaultKind::Permission);
        }
        pause();
        let start = leaf.word & ADDRESS & !(leaf.end - leaf.first - 1);
        act(Pa::new(start + (ipa.get() - leaf.first)));
        Ok(())
    }

    fn tracks(&self) -> bool {
        self.layout.features().hardware_dirty
    }

    /// Walks the tables and sets what hardware sets.
    fn walk(&self, root: Pa, ipa: Ipa, write: bool) -> Result<Held, FaultKind> {
        let mut level = self.layout.start();
        let mut table = root.get();
        let mut index = ipa.get() >> self.layout.shift(level);
        loop {
            pause();
            let place: *const AtomicU64 = with_exposed_provenance((table + index * 8) as usize);
            // SAFETY: the table is the root or was linked when its parent was read; its frame is of the arena, which lasts.
            let entry = unsafe { &*place };
            let word = entry.load(Ordering::Acquire);
            match level.below() {
                _ if word & VALID == 0 => return Err(FaultKind::Translation),
                Some(below) if word & TABLE_OR_PAGE != 0 => {
                    level = below;
                    table = word & ADDRESS;
                    index = (ipa.get() >> self.layout.shift(level))
                        & (self.layout.table_entries() as u64 - 1);
                }
                _ => match self.noted(entry, word, write)? {
                    Some(word) => {
                        let span = self.layout.span(level);
                        let first = ipa.align_down(span).get();
                        let end = first + span;
                        return Ok(Held {
                            first,
                            end,
                            level,
                            word,
                        });
                    }
                    // Changed under its hands: it looks again.
                    None => continue,
                },
            }
        }
    }

    /// Sets the access flag and the dirty state of a leaf where hardware does.
    fn noted(&self, entry: &AtomicU64, word: u64, write: bool) -> Result<Option<u64>, FaultKind> {
        let features = self.layout.features();
        let mut noted = word;
        if word & ACCESSED == 0 {
            if !features.hardware_access {
                return Err(FaultKind::AccessFlag);
            }
            noted |= ACCESSED;
        }
        if write && word & DIRTY_MODIFIER != 0 && features.hardware_dirty {
            noted |= WRITABLE;
        }
        if noted == word {
            return Ok(Some(word));
        }
        pause();
        let exchanged = entry.compare_exchange(word, noted, Ordering::AcqRel, Ordering::Relaxed);
        Ok(exchanged.ok().map(|_| noted))
    }
}

/// One CPU's TLB instructions.
#[derive(Clone, Debug)]
pub struct Hardware {
    /// The machine's.
    pub mmu: Arc<Mmu>,
    /// Which CPU.
    pub cpu: usize,
}

impl Tlb for Hardware {
    fn invalidate_leaf(&self, _: Regime, ipa: Ipa, level: Option<Level>) {
        let at = ipa.get();
        self.mmu.drop_everywhere(|held| {
            held.covers(at) && level.is_none_or(|level| level == held.level)
        });
    }

    fn invalidate_range(&self, _: Regime, range: IpaRange, _: bool) {
        let (start, end) = (range.start.get(), range.end.get());
        self.mmu
            .drop_everywhere(|held| held.first < end && start < held.end);
    }

    fn invalidate_vmid(&self, _: Regime) {
        self.mmu.drop_everywhere(|_| true);
    }

    fn invalidate_all_vmids(&self) {
        self.mmu.drop_everywhere(|_| true);
    }

    fn invalidate_local(&self, _: Regime, ipa: Ipa, level: Option<Level>, _: Option<u64>) {
        let at = ipa.get();
        self.mmu.drop_from(self.cpu, |held| {
            held.covers(at) && level.is_none_or(|level| level == held.level)
        });
    }

    fn publish_tables(&self) {}
}

impl Caches for Hardware {
    fn clean_for_guest(&self, _: Pa, _: u64) {}
}
