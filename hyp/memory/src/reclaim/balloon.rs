//! The balloon: lets a guest give memory back.
//!
//! A page that was given back reads as zero, and takes a frame again when it is written. The dirty log reports it as written.
//! vCPUs may be using the page meanwhile: their writes may be lost, and nothing else.

use crate::change::propagate::Changer;
use crate::frames::Owner;
use crate::object::claim_batch::Batch;
use crate::object::{Backing, Object};
use crate::space::AddressSpace;
use crate::space::mmu_lock::MmuLock;
use crate::space::slot::Slot;
use crate::system::cpu::{Caches, CpuMemory};
use core::fmt;
use core::ops::Range;
use stage2::sync::{full_barrier, relax};
use stage2::{Ipa, IpaRange, PAGE_SIZE, Tlb};

/// The most pages that are looked at during one stay in the epoch.
const AT_ONCE: u64 = 64;

/// Memory can't be given back; nothing was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BalloonError {
    /// The range is empty, or doesn't begin and end with pages.
    Unaligned,
    /// No slot covers the address.
    NoSlot {
        /// The first such address.
        ipa: Ipa,
    },
    /// The memory isn't the VM's own, or is read-only.
    NotOwn {
        /// The first such address.
        ipa: Ipa,
    },
}

impl fmt::Display for BalloonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned => f.write_str("what is given up must be whole pages, at least one"),
            Self::NoSlot { ipa } => write!(f, "guest address {ipa} is not backed by memory"),
            Self::NotOwn { ipa } => {
                write!(
                    f,
                    "the memory at guest address {ipa} is not the VM's own to give up"
                )
            }
        }
    }
}

impl core::error::Error for BalloonError {}

impl<L: MmuLock> AddressSpace<L> {
    /// Takes back a range of whole pages from a guest. They read as zero afterwards, and their frames are freed after an epoch.
    /// Returns how many of them had backing. To bound the time, pass a range of few pages.
    ///
    /// # Errors
    /// Some of the range isn't the VM's own memory. Nothing was given back then.
    pub fn balloon<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        range: IpaRange,
    ) -> Result<u64, BalloonError> {
        if range.start >= range.end
            || !range.start.is_aligned(PAGE_SIZE)
            || !range.end.is_aligned(PAGE_SIZE)
        {
            return Err(BalloonError::Unaligned);
        }
        self.check_own(cpu, &range)?;
        let (mut at, mut given) = (range.start, 0);
        while at < range.end {
            // A stay for each batch: its slot may go meanwhile, and takes the pages along.
            let guard = self.pin(cpu);
            let Some(slot) = self.slots(&guard).find(at).filter(|slot| self.owns(slot)) else {
                at = at.offset(PAGE_SIZE);
                continue;
            };
            let end = slot.range().end.min(range.end);
            let first = slot.object_page(at);
            let pages = first..first + ((end.get() - at.get()) / PAGE_SIZE).min(AT_ONCE);
            let part = (Changer { cpu, guard: &guard }).give_up(slot.object(), pages);
            full_barrier();
            if let Some(log) = slot.log(&guard) {
                let page = slot.page_of(at);
                log.mark(page..page + part.done);
            }
            drop(guard);
            // A guest that does nothing else would have what is given up wait, and the heap that this takes, without bound.
            cpu.let_epoch_advance();
            if part.done == 0 {
                // Somebody is changing what backs the page.
                relax();
            }
            given += part.given;
            at = at.offset(part.done * PAGE_SIZE);
        }
        cpu.pool().reclaim_released();
        cpu.system().reclaim().note_ballooned(given);
        Ok(given)
    }

    fn check_own<T>(&self, cpu: &CpuMemory<T>, range: &IpaRange) -> Result<(), BalloonError> {
        let guard = self.pin(cpu);
        let mut at = range.start;
        while at < range.end {
            let slot = self
                .slots(&guard)
                .find(at)
                .ok_or(BalloonError::NoSlot { ipa: at })?;
            if !self.owns(slot) {
                return Err(BalloonError::NotOwn { ipa: at });
            }
            at = slot.range().end;
        }
        Ok(())
    }

    fn owns(&self, slot: &Slot) -> bool {
        // What is shared, an image or a device is on no VM's account.
        slot.object().account() == Owner::Vm(self.vm()) && !slot.read_only()
    }
}

/// The result of giving pages back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct GivenUp {
    /// How many of the first pages have no backing any more.
    done: u64,
    /// How many of these had some.
    given: u64,
}

impl<T: Tlb + Caches> Changer<'_, T> {
    /// Drops the backing of the first of some pages: as many as a batch holds, up to a page that another CPU is changing, for
    /// which it doesn't wait while it holds claims.
    fn give_up(&self, object: &Object, pages: Range<u64>) -> GivenUp {
        let mut batch = Batch::new(object);
        let mut given = 0;
        let first = pages.start;
        let mut next = first;
        while next < pages.end && !batch.is_full() {
            let Some(claim) = object.claim(next) else {
                break;
            };
            match claim.backing() {
                Backing::Vacant | Backing::Zero | Backing::Device(_) => {}
                Backing::Compressed(handle) => {
                    claim.end(Backing::Zero);
                    object.discard(handle);
                    given += 1;
                }
                Backing::Owned(_) | Backing::Shared(_) => {
                    batch.add(claim);
                    given += 1;
                }
            }
            next += 1;
        }
        self.unmap_batch(&batch);
        for claim in batch.into_claims() {
            if let Backing::Owned(frame) | Backing::Shared(frame) = claim.backing() {
                self.end_without(claim, frame, Backing::Zero);
            }
        }
        GivenUp {
            done: next - first,
            given,
        }
    }
}
