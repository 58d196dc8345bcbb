//! Harvests dirty logs: bitmaps, rings, and dirty state that hardware noted. vCPUs may be running.
//!
//! Rule 9: first take the bits and ring entries, then write-protect the pages. The harvest returns only when no TLB lets a
//! further write go unnoticed: then the pages may be copied.
//!
//! Several CPUs may harvest the bitmap of one slot at the same time, each its own pages: what two of them meet on is a word of
//! the bitmap or a table entry, and both are changed by single atomic operations. A page that hardware notes as part of a block
//! has no entry of its own: the CPU that cleans the block hands the other pages' writes to the log only afterwards, and a
//! harvest of those pages would miss them meanwhile. So with hardware tracking only harvests of whole 2 MiB regions run
//! together; others exclude everything. Rings are harvested by one CPU at a time: a ring has one consumer, and takes as long as
//! its own entries only.

use crate::dirty::bitmap::{BYTES_PER_WORD, DirtyLog, PAGES_PER_WORD};
use crate::dirty::ring::DirtyPages;
use crate::dirty::slot_id::SlotId;
use crate::frames::GRANULE;
use crate::logging::switch::{LogError, SplitAhead};
use crate::space::control::Held;
use crate::space::mmu_lock::MmuLock;
use crate::space::slot::Slot;
use crate::space::{AddressSpace, IN_SPACE};
use crate::system::cpu::{Caches, CpuMemory};
use core::ops::Range;
use crossbeam_epoch::Guard;
use stage2::sync::full_barrier;
use stage2::{Ipa, IpaRange, Level, PAGE_SIZE, Tlb, Wanted};

/// Ring entries that are taken together: one TLB invalidation for each table of pages that they name.
const RING_BATCH: usize = 256;
/// Pages of a slot that are protected together, about what one table maps.
const PAGES_IN_TABLE: usize = 512;

/// The pages to take from a log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clear {
    /// The pages that the bitmap names.
    Named,
    /// All dirty pages, including dirty state that hardware has noted until now.
    AllThereIs,
}

impl<L: MmuLock> AddressSpace<L> {
    /// Copies the log of the pages from `first_page` (a multiple of 64) on into `bitmap`. Changes nothing that a guest could
    /// notice.
    ///
    /// Contains every write made before this call, whatever other CPUs are doing to the pages (rule 14): with the vCPUs stopped
    /// outside of fault handlers, a later call would find no further write. Where hardware tracks writes, this waits for CPUs
    /// that are changing the range's backing. So the caller is in no epoch, and isn't one of those CPUs; and no other CPU harvests
    /// the same 2 MiB region meanwhile, as it may have taken what hardware noted there and not yet told the log.
    ///
    /// # Errors
    /// The slot isn't logged, or the bitmap's words don't lie within its log. An empty bitmap may begin at the log's end.
    pub fn get_dirty_log<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        first_page: u64,
        bitmap: &mut [u64],
    ) -> Result<(), LogError> {
        // What hardware has noted is taken over while nobody cleans it; else there is nothing to exclude.
        let by_hardware = {
            let guard = self.pin(cpu);
            let (_, log) = self.logged_slot(id, &guard)?;
            log.policy().by_hardware()
        };
        let hold = || self.hold_part(cpu, id, first_page, bitmap.len());
        let _control = by_hardware.then(hold).transpose()?;
        if by_hardware {
            self.note_hardware_dirty(cpu, id, first_page, bitmap.len())?;
        }
        let guard = self.pin(cpu);
        let (_, log) = self.logged_slot(id, &guard)?;
        let words = words_of(log, id, first_page, bitmap.len())?;
        log.copy(words.start, bitmap);
        Ok(())
    }

    /// Takes the pages that `bitmap` names, from `first_page` (a multiple of 64) on, from the log. On return `bitmap` names
    /// those that were dirty, and no vCPU can write to them unlogged: now they may be copied. If the log was initially set and
    /// blocks are split ahead of faults, the blocks of the range are split.
    ///
    /// Hardware dirty state is taken as far as [`Self::get_dirty_log`] has seen it.
    ///
    /// Several CPUs may clear the log of one slot at the same time, each for pages of its own. For pages that two CPUs name at
    /// once, each page is returned to one of them, and only that CPU may rely on it.
    ///
    /// # Errors
    /// As for [`Self::get_dirty_log`].
    pub fn clear_dirty_log<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        first_page: u64,
        bitmap: &mut [u64],
    ) -> Result<SplitAhead, LogError> {
        self.clear(cpu, id, first_page, bitmap, Clear::Named)
    }

    /// [`Self::get_dirty_log`] and [`Self::clear_dirty_log`] of all dirty pages in one call. Also serves as the final harvest,
    /// with the vCPUs stopped. Several CPUs may do it at the same time, as for [`Self::clear_dirty_log`]; where hardware tracks
    /// writes, each for 2 MiB regions of its own.
    ///
    /// # Errors
    /// As for [`Self::get_dirty_log`].
    pub fn get_and_clear_dirty_log<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        first_page: u64,
        bitmap: &mut [u64],
    ) -> Result<SplitAhead, LogError> {
        self.clear(cpu, id, first_page, bitmap, Clear::AllThereIs)
    }

    fn clear<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        first_page: u64,
        bitmap: &mut [u64],
        what: Clear,
    ) -> Result<SplitAhead, LogError> {
        let _control = self.hold_part(cpu, id, first_page, bitmap.len())?;
        if what == Clear::AllThereIs {
            self.note_hardware_dirty(cpu, id, first_page, bitmap.len())?;
            bitmap.fill(u64::MAX);
        }
        let (policy, words, range) = {
            let guard = self.pin(cpu);
            let (slot, log) = self.logged_slot(id, &guard)?;
            let words = words_of(log, id, first_page, bitmap.len())?;
            (*log.policy(), words.clone(), range_of(slot, &words))
        };
        let mut split = SplitAhead::default();
        if policy.initially_set {
            split = self.split_ahead(cpu, &policy, range.clone());
        }
        let guard = self.pin(cpu);
        let (slot, log) = self.logged_slot(id, &guard)?;
        log.take(words.start, bitmap);
        full_barrier();
        let start = range.start;
        let wanted = Named { bitmap, start };
        self.protect_logged(cpu, &guard, &policy, range, wanted, |block, level| {
            log.mark_unnamed(slot.pages_of(block, level), words.start, bitmap)
        });
        Ok(split)
    }

    /// Holds `control` for a harvest of so many words of a log from `first_page` on: shared, unless the harvest may clean blocks
    /// that reach beyond them and whose writes hardware notes.
    fn hold_part<T>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        first_page: u64,
        words: usize,
    ) -> Result<Held<'_>, LogError> {
        self.control().hold(|| {
            let guard = self.pin(cpu);
            let (slot, log) = self.logged_slot(id, &guard)?;
            let range = range_of(slot, &words_of(log, id, first_page, words)?);
            Ok(log.policy().by_hardware() && !is_of_regions(slot, &range))
        })
    }

    /// Marks all pages in `words` of a log that hardware has noted as written, with `control` held. This includes dirty state
    /// that other CPUs have taken out of the tables meanwhile, to move, merge or unmap pages, and pass to the log only after
    /// their invalidation (rule 14). Such a CPU publishes its range before it takes an entry. The walk skips entries that the
    /// CPU holds or has frozen, and then waits for it. That CPU never waits for `control` or for an epoch of this CPU's.
    fn note_hardware_dirty<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        first_page: u64,
        words: usize,
    ) -> Result<(), LogError> {
        let range = {
            let guard = self.pin(cpu);
            let (slot, log) = self.logged_slot(id, &guard)?;
            let range = range_of(slot, &words_of(log, id, first_page, words)?);
            if !log.policy().by_hardware() {
                return Ok(());
            }
            self.find_hardware_dirty(cpu, &guard, slot, log, range.clone());
            range
        };
        // The walk, full barrier, then a look at what is published: who took an entry before the walk came by is seen.
        self.space().tracker().wait(&range);
        Ok(())
    }

    /// Marks the dirty state that hardware has noted in the entries of a range.
    fn find_hardware_dirty<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        guard: &Guard,
        slot: &Slot,
        log: &DirtyLog,
        range: IpaRange,
    ) {
        let (tables, epoch) = (cpu.tables(self.vm()), cpu.retirement(self.vm(), guard));
        let worker = cpu.worker(&tables, &epoch);
        let _lock = self.lock().exclusive();
        self.stage2()
            .find_dirty(
                &worker,
                range,
                |part| !log.is_full(slot.page_of(part.start), pages_in(&part)),
                |ipa, level, bits| match level {
                    Level::L3 => log.mark_bits(slot.page_of(ipa), bits),
                    _ => log.mark(slot.pages_of(ipa, level)),
                },
            )
            .expect(IN_SPACE);
    }

    /// Takes up to `pages.len()` reports from a vCPU's ring, and returns how many: fewer only if the ring holds no more. When
    /// this returns, no vCPU can write to the reported pages unlogged: now they may be copied. A vCPU that waits for room in
    /// its ring can be woken. Reports about a slot that was removed or moved since aren't returned.
    pub fn harvest_ring<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        vcpu: usize,
        pages: &mut [DirtyPages],
    ) -> usize {
        let _control = self.control().lock();
        let Some(ring) = self.rings().of(vcpu) else {
            return 0;
        };
        let mut taken = 0;
        while taken < pages.len() {
            let wanted = RING_BATCH.min(pages.len() - taken);
            let batch = &mut pages[taken..taken + wanted];
            let peeked = ring.peek(batch);
            let batch = &mut batch[..peeked.reports];
            batch.sort_unstable();
            full_barrier();
            self.protect_reported(cpu, batch);
            ring.advance(peeked.entries);
            taken += peeked.reports;
            if peeked.entries < wanted {
                break;
            }
        }
        taken
    }

    /// Write-protects pages, which are sorted, one table of pages at a time.
    fn protect_reported<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, pages: &[DirtyPages]) {
        let guard = self.pin(cpu);
        let table = |pages: &DirtyPages| (pages.slot, pages.first as usize / PAGES_IN_TABLE);
        for near in pages.chunk_by(|one, next| table(one) == table(next)) {
            let Some(first) = near.first() else {
                continue;
            };
            // What an earlier log of the slot has left in the ring, the next one knows about in its own way.
            let Ok((slot, log)) = self.logged_slot(first.slot, &guard) else {
                continue;
            };
            if !log.policy().ring {
                continue;
            }
            let page = |number: u64| slot.range().start.offset(number * PAGE_SIZE);
            let end = near
                .iter()
                .map(|pages| page(pages.first + pages.count))
                .max();
            let end = end.unwrap_or(slot.range().end).min(slot.range().end);
            let mut named = [0; PAGES_IN_TABLE / u64::BITS as usize];
            for pages in near {
                let index = pages.first as usize % PAGES_IN_TABLE;
                match pages.count {
                    1 => named[index / 64] |= 1 << (index % 64),
                    _ => named.fill(u64::MAX),
                }
            }
            let wanted = |ipa: Ipa, level| {
                let number = slot.page_of(ipa) as usize;
                let index = number % PAGES_IN_TABLE;
                level != Level::L3 || named[index / 64] & 1 << (index % 64) != 0
            };
            let range = page(first.first)..end;
            self.protect_logged(cpu, &guard, log.policy(), range, wanted, |_, _| {});
        }
    }

    /// A slot whose writes are logged, with its log.
    fn logged_slot<'g>(
        &self,
        id: SlotId,
        guard: &'g Guard,
    ) -> Result<(&'g Slot, &'g DirtyLog), LogError> {
        let slot = self.slots(guard).get(id);
        let slot = slot.map_err(|_| LogError::Unknown(id))?;
        Ok((slot, slot.log(guard).ok_or(LogError::Disabled(id))?))
    }
}

/// Whether no block of 2 MiB lies across an end of a part of the slot.
fn is_of_regions(slot: &Slot, range: &IpaRange) -> bool {
    let (slot, span) = (slot.range(), GRANULE.span(Level::L2));
    (range.start == slot.start || range.start.is_aligned(span))
        && (range.end == slot.end || range.end.is_aligned(span))
}

fn pages_in(range: &IpaRange) -> u64 {
    (range.end.get() - range.start.get()) / PAGE_SIZE
}

/// The addresses of `words` of a slot's log. The last word may have bits beyond the slot's pages; a word beyond it begins at
/// the slot's end.
fn range_of(slot: &Slot, words: &Range<usize>) -> IpaRange {
    let slot = slot.range();
    let start_of = |word: usize| {
        slot.start
            .offset(word as u64 * BYTES_PER_WORD)
            .min(slot.end)
    };
    start_of(words.start)..start_of(words.end)
}

/// Selects the leaves that a bitmap names, whose first page is at `start`. A block is named by any of its pages; its part
/// outside of the bitmap doesn't count.
#[derive(Clone, Copy)]
struct Named<'b> {
    bitmap: &'b [u64],
    start: Ipa,
}

impl Named<'_> {
    fn word(&self, index: u64) -> u64 {
        self.bitmap.get(index as usize).copied().unwrap_or(0)
    }
}

impl Wanted for Named<'_> {
    fn leaf(&self, ipa: Ipa, level: Level) -> bool {
        let named =
            |page: u64| self.word(page / PAGES_PER_WORD) & 1 << (page % PAGES_PER_WORD) != 0;
        let first = ipa.get().saturating_sub(self.start.get()) / PAGE_SIZE;
        let end = (ipa.get() + GRANULE.span(level)).saturating_sub(self.start.get()) / PAGE_SIZE;
        (first..end.min(self.bitmap.len() as u64 * PAGES_PER_WORD)).any(named)
    }

    #[inline]
    fn pages(&self, first: Ipa, _: usize, _: u64) -> u64 {
        let page = (first.get() - self.start.get()) / PAGE_SIZE;
        let (index, shift) = (page / PAGES_PER_WORD, (page % PAGES_PER_WORD) as u32);
        match shift {
            0 => self.word(index),
            _ => self.word(index) >> shift | self.word(index + 1) << (u64::BITS - shift),
        }
    }
}

/// The range of so many words of `log` from `first_page` on; `None` if it ends behind the last word.
fn words_of(
    log: &DirtyLog,
    id: SlotId,
    first_page: u64,
    words: usize,
) -> Result<Range<usize>, LogError> {
    let out_of_range = LogError::OutOfRange(id);
    if !first_page.is_multiple_of(PAGES_PER_WORD) {
        return Err(out_of_range);
    }
    let first = usize::try_from(first_page / PAGES_PER_WORD).map_err(|_| out_of_range)?;
    let end = first
        .checked_add(words)
        .filter(|end| *end <= log.len())
        .ok_or(out_of_range)?;
    Ok(first..end)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_block_is_named_by_any_of_its_pages(page in 0u64..2048, block in 0u64..6) {
            // The bitmap begins in the middle of the second block.
            let start = Ipa::new((512 + 256) * PAGE_SIZE);
            let mut bitmap = [0; 32];
            bitmap[(page / 64) as usize] = 1 << (page % 64);
            let named = Named { bitmap: &bitmap, start };
            let by_block = named.leaf(Ipa::new(block * 512 * PAGE_SIZE), Level::L2);
            prop_assert_eq!(by_block, (page + 768) / 512 == block);
            let at = start.offset(page * PAGE_SIZE);
            prop_assert!(named.leaf(at, Level::L3));
            prop_assert!(!named.leaf(at.offset(PAGE_SIZE), Level::L3));
        }

        #[test]
        fn pages_are_named_together_as_one_by_one(bitmap: [u64; 3], first in 0u64..192) {
            let start = Ipa::new(7 * PAGE_SIZE);
            let named = Named { bitmap: &bitmap, start };
            let at = |page: u64| start.offset((first + page) * PAGE_SIZE);
            let bits = named.pages(at(0), 64, PAGE_SIZE);
            for page in 0..64 {
                prop_assert_eq!(bits & 1 << page != 0, named.leaf(at(page), Level::L3));
            }
        }
    }
}
