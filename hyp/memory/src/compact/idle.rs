//! Compaction on idle CPUs: finds memory that was once mapped by blocks and is fragmented now, and makes blocks of it again.
//!
//! Copy-on-write, merging and reclaim work on single pages, so a 2 MiB region that they touch is mapped by pages from then on.
//! Once all pages of a region have frames of their own again, the region is moved into one run of frames (unless it still is
//! one) and mapped by a block in every VM. When this was the last shared region of a 1 GiB block, that block is restored too.
//! Memory that was requested in 4 KiB pages is left alone. So is memory with a dirty log: there the log's policy decides about
//! blocks, and its user calls [`restore_blocks`](crate::AddressSpace::restore_blocks).
//!
//! Runs beside everything else, on one CPU at a time. Does nothing while frames are short, and skips VMs that had to compress
//! memory to stay within their limit: reclaim would split their blocks again.

use crate::compact::compaction::Compacted;
use crate::frames::{GRANULE, Owner};
use crate::object::{Backing, Object, region_of};
use crate::space::mapping::Mapping;
use crate::system::cpu::{Caches, CpuMemory};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use stage2::{Level, Tlb};

/// The most regions that one call looks at.
const REGIONS_AT_ONCE: usize = 64;

impl<T: Tlb + Caches> CpuMemory<T> {
    /// A bounded step of compaction, at most one 2 MiB region. True if it compacted one: the caller should call again. The
    /// caller is in no epoch and holds no VM's lock.
    pub fn gather(&self) -> bool {
        let system = self.system();
        if system.reclaim().is_near(self.pool().free_frames()) {
            return false;
        }
        let Some(mut hand) = system.gathering().try_lock() else {
            return false;
        };
        for _ in 0..REGIONS_AT_ONCE {
            let Some(object) = hand.object(system.objects()) else {
                return false;
            };
            let region = region_of(hand.page);
            hand.page = region.end;
            if object.is_fragmented(&region)
                && !self.has_compressed(object.account())
                && self.gather_region(&object, &region)
            {
                system.gathered().add(1);
                return true;
            }
        }
        false
    }

    /// Whether an owner has compressed memory because of its limit.
    fn has_compressed(&self, owner: Owner) -> bool {
        let pool = self.pool();
        matches!(owner, Owner::Vm(vm) if pool.limit(vm).is_some())
            && pool.compressed_bytes(owner) != 0
    }

    /// Moves a region into one run of frames, and maps it by a block everywhere. False if it stays as it is.
    fn gather_region(&self, object: &Arc<Object>, region: &Range<u64>) -> bool {
        let Some(mappings) = self.mappings_of(object, region) else {
            return false;
        };
        let compacted = object.compact_region_anyhow(self, region.start);
        if !matches!(compacted, Compacted::Moved | Compacted::OwnAgain) {
            return false;
        }
        for mapping in mappings {
            mapping.make_block(self, region);
        }
        // The frames that were left are to be free soon: there may be more regions than runs.
        self.let_epoch_advance();
        true
    }

    /// The mappings of a region, for use beyond the epoch. `None` if a part of it is logged, or there is no heap.
    fn mappings_of(&self, object: &Object, region: &Range<u64>) -> Option<Vec<Mapping>> {
        let guard = &self.pin();
        let mut found = Vec::new();
        for mapping in Mapping::all_of(object, guard) {
            if mapping.range_of(region).is_empty() {
                continue;
            }
            if mapping.slot.log(guard).is_some() {
                return None;
            }
            found.try_reserve(1).ok()?;
            found.push(mapping.clone());
        }
        Some(found)
    }
}

impl Object {
    /// Whether a region was allocated as a block, is fragmented now, and could become a block again.
    fn is_fragmented(&self, region: &Range<u64>) -> bool {
        let owned = |page| matches!(self.look(page).backing(), Backing::Owned(_));
        let extent = self.look(region.start).extent();
        self.piece() <= Level::L2
            && (extent.level == Level::L3 || extent.read_only)
            && region.clone().all(owned)
    }
}

impl Mapping {
    /// Maps a region that is one run of frames by a block, as far as this slot covers it, still exists, and isn't logged.
    fn make_block<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, region: &Range<u64>) {
        let _control = self.space.control().lock();
        let range = self.range_of(region);
        let is_free_of_log = {
            let guard = &cpu.pin();
            let mut slots = self.space.slots(guard).iter();
            slots.any(|slot| Arc::ptr_eq(slot, &self.slot)) && self.slot.log(guard).is_none()
        };
        if is_free_of_log && range.end.get() - range.start.get() == GRANULE.span(Level::L2) {
            self.restore(cpu, range.clone(), Level::L2);
            // With the last region that others had a part of, all of its gigabyte is one run again.
            self.restore(cpu, range, Level::L1);
        }
    }
}
