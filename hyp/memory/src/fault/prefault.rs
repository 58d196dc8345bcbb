//! Pre-faulting: maps a range before the guest accesses it. Any number of CPUs may do so at once.

use crate::fault::{Fault, FaultKind, FaultOutcome};
use crate::frames::GRANULE;
use crate::space::AddressSpace;
use crate::space::mmu_lock::MmuLock;
use crate::system::cpu::{Caches, CpuMemory};
use core::fmt;
use stage2::sync::relax;
use stage2::{Access, Ipa, IpaRange, Level, PAGE_SIZE, Tlb};

/// How often a page is faulted in, while others unmap it or change its backing, before the caller is told. A guest could keep
/// that up for ever, and this CPU has interrupts to take, and perhaps a VM to stop.
const MOST_FAULTS: u32 = 64;

/// A range wasn't populated to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrefaultError {
    /// All of the range below this is populated.
    pub done_to: Ipa,
    /// The obstacle there.
    pub reason: NotPopulated,
}

/// Why a page can't be mapped ahead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotPopulated {
    /// No slot covers it.
    NoSlot,
    /// Its slot doesn't allow the access.
    NotPermitted,
    /// There is no frame left for it.
    OutOfFrames,
    /// The vCPU's dirty ring is full and must be harvested first.
    RingFull,
    /// The page's backing or entry was changed at each attempt: the caller looks for other work, and continues.
    Busy,
}

impl fmt::Display for PrefaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.reason {
            NotPopulated::NoSlot => "it is not backed by memory",
            NotPopulated::NotPermitted => "its slot doesn't allow the access",
            NotPopulated::OutOfFrames => "no memory is left",
            NotPopulated::RingFull => "the vCPU's dirty ring is full",
            NotPopulated::Busy => "other CPUs change it all the time",
        };
        write!(f, "populating stopped at {}: {why}", self.done_to)
    }
}

impl core::error::Error for PrefaultError {}

impl<L: MmuLock> AddressSpace<L> {
    /// Whether all of a range is memory that allows an access, in one slot or in many: checks a guest's request before anything
    /// is done to the range. Slots may change as soon as this returns.
    ///
    /// # Errors
    /// The first obstacle: an address without a slot, or in a slot that doesn't allow the access or is a device's.
    pub fn check_range<T>(
        &self,
        cpu: &CpuMemory<T>,
        range: &IpaRange,
        access: Access,
    ) -> Result<(), NotPopulated> {
        let guard = self.pin(cpu);
        let slots = self.slots(&guard);
        let mut at = range.start;
        while at < range.end {
            let slot = slots.find(at).ok_or(NotPopulated::NoSlot)?;
            if slot.object().is_device() || slot.read_only() && access == Access::Write {
                return Err(NotPopulated::NotPermitted);
            }
            at = slot.range().end;
        }
        Ok(())
    }

    /// Maps all pages of a range for an access of vCPU `vcpu`, as if it had touched each. Afterwards such accesses take no
    /// fault there, until something removes the mapping. Pages populated for writing count as written in a dirty log. Any
    /// number of CPUs may populate the same range at once, with vCPUs running. To bound the time, pass a range of few pages.
    ///
    /// # Errors
    /// A page can't be mapped for the access, or not yet ([`NotPopulated::Busy`]). All pages before it are mapped.
    pub fn prefault<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        vcpu: usize,
        range: IpaRange,
        access: Access,
    ) -> Result<(), PrefaultError> {
        let mut at = range.start.align_down(PAGE_SIZE);
        let mut level = Level::L2;
        while at < range.end {
            // Beside a page that is mapped alone no block maps another one of the same 2 MiB.
            let is_mapped_alone = level == Level::L3 && !at.is_aligned(GRANULE.span(Level::L2));
            let populated = match is_mapped_alone {
                true => self.populate_lone_page(cpu, vcpu, at, access),
                false => self.populate_page(cpu, vcpu, at, access),
            };
            level = populated.map_err(|reason| PrefaultError {
                done_to: at.max(range.start),
                reason,
            })?;
            let span = GRANULE.span(level);
            let next = at.align_down(span).checked_add(span);
            at = next.unwrap_or(range.end);
            if cpu.needs_upkeep() {
                cpu.upkeep();
            }
        }
        Ok(())
    }

    /// As [`Self::populate_page`], where no leaf above level 3 is expected: without a look at the entry before the fault and
    /// after it. If a block maps the page meanwhile, its pages are found to be mapped one by one.
    fn populate_lone_page<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        vcpu: usize,
        ipa: Ipa,
        access: Access,
    ) -> Result<Level, NotPopulated> {
        let fault = fault_ahead(vcpu, ipa, access, FaultKind::Translation);
        match self.fault(cpu, &fault) {
            FaultOutcome::Resolved | FaultOutcome::RingLow => Ok(Level::L3),
            _ => self.populate_page(cpu, vcpu, ipa, access),
        }
    }

    /// Maps one page for an access. Returns the level of the leaf that maps it.
    fn populate_page<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        vcpu: usize,
        ipa: Ipa,
        access: Access,
    ) -> Result<Level, NotPopulated> {
        for _ in 0..MOST_FAULTS {
            let kind = match self.lookup(cpu, ipa) {
                Some((leaf, level)) if access.allowed_by(leaf) && leaf.accessed() => {
                    return Ok(level);
                }
                Some((leaf, _)) if access.allowed_by(leaf) => FaultKind::AccessFlag,
                Some(_) => FaultKind::Permission,
                None => FaultKind::Translation,
            };
            let fault = fault_ahead(vcpu, ipa, access, kind);
            match self.fault(cpu, &fault) {
                FaultOutcome::Resolved | FaultOutcome::RingLow => {}
                FaultOutcome::Retry => relax(),
                FaultOutcome::RingFull => return Err(NotPopulated::RingFull),
                FaultOutcome::NoSlot => return Err(NotPopulated::NoSlot),
                FaultOutcome::NotPermitted => return Err(NotPopulated::NotPermitted),
                FaultOutcome::OutOfFrames => return Err(NotPopulated::OutOfFrames),
            }
        }
        Err(NotPopulated::Busy)
    }
}

/// A fault that no vCPU has taken yet.
fn fault_ahead(vcpu: usize, ipa: Ipa, access: Access, kind: FaultKind) -> Fault {
    Fault {
        vcpu,
        ipa,
        va: None,
        access,
        kind,
    }
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::*;
    use crate::frames::{FramePool, VmId, arena};
    use crate::{BackingPolicy, MemorySystem, Object, Owner, Parallel, SlotConfig, SlotId};
    use crate::{Change, TrackerMode};
    use stage2::{Features, Layout, NoTlb};

    /// The only CPU of a machine with `frames` frames.
    fn cpu(frames: usize) -> CpuMemory<NoTlb> {
        let pool: &FramePool = Box::leak(Box::new(FramePool::new()));
        // SAFETY: the arena is leaked, and added once.
        unsafe { pool.add(arena::leak(frames)) };
        let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(pool, 1, 8).unwrap()));
        CpuMemory::new(system, 0, NoTlb, Box::leak(Box::default()))
    }

    /// What a fault would map by a block is more than its own page.
    #[test]
    fn a_block_of_which_any_page_is_being_changed_is_not_mapped() {
        let cpu = cpu(2048);
        let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
        let space = AddressSpace::<Parallel>::new(&cpu, VmId::new(0).unwrap(), layout).unwrap();
        let bytes = GRANULE.span(Level::L2);
        let start = Ipa::new(bytes);
        let added = space.add_slot(&cpu, SlotId(0), start, bytes, Level::L2, false);
        added.unwrap();
        let page = |number: u64| start.offset(number * PAGE_SIZE);
        let fault = |number| Fault {
            vcpu: 0,
            ipa: page(number),
            va: None,
            access: Access::Write,
            kind: FaultKind::Translation,
        };
        for changed in [0, 1, 300, 511] {
            let change = space
                .space()
                .tracker()
                .begin(page(changed)..page(changed + 1));
            for faulting in [0, 300, 511] {
                let outcome = space.fault(&cpu, &fault(faulting));
                assert_eq!(outcome, FaultOutcome::Retry, "{faulting} beside {changed}");
                assert_eq!(space.lookup(&cpu, page(faulting)), None);
            }
            change.end();
        }
        assert_eq!(space.fault(&cpu, &fault(300)), FaultOutcome::Resolved);
        assert_eq!(space.lookup(&cpu, start).unwrap().1, Level::L2);
        space.destroy(&cpu);
    }

    /// Whatever is mapped already: nothing, single pages, pages without the right to be written, a block.
    #[test]
    fn all_of_a_range_is_populated_whatever_is_mapped_there() {
        let cpu = cpu(4096);
        let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
        let space = AddressSpace::<Parallel>::new(&cpu, VmId::new(0).unwrap(), layout).unwrap();
        let block = GRANULE.span(Level::L2);
        let pieces = [Level::L3, Level::L2, Level::L3];
        for (id, piece) in (0..).zip(pieces) {
            let start = Ipa::new(block * (1 + u64::from(id)));
            let added = space.add_slot(&cpu, SlotId(id), start, block, piece, false);
            added.unwrap();
        }
        let page = |number: u64| Ipa::new(block + number * PAGE_SIZE);
        let populate = |pages: core::ops::Range<u64>, access| {
            let range = page(pages.start)..page(pages.end);
            assert_eq!(space.prefault(&cpu, 0, range, access), Ok(()));
        };
        populate(3..5, Access::Write);
        populate(7..9, Access::Read);
        populate(600..601, Access::Write);
        populate(1025..1027, Access::Read);
        for access in [Access::Read, Access::Write, Access::Write] {
            populate(0..3 * 512, access);
            for number in 0..3 * 512 {
                let (leaf, level) = space.lookup(&cpu, page(number)).unwrap();
                assert!(access.allowed_by(leaf), "page {number}");
                assert_eq!(level, pieces[number as usize / 512], "page {number}");
            }
        }
        space.destroy(&cpu);
    }

    /// With one count for all of the VM, any change anywhere restarts every fault.
    #[test]
    fn a_range_that_is_never_let_alone_is_given_up_with_what_was_done() {
        let cpu = cpu(256);
        let backing = BackingPolicy {
            tracker: TrackerMode::Sequence,
            change: Change::Direct,
        };
        let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
        let vm = VmId::new(0).unwrap();
        let space = AddressSpace::<Parallel>::with_backing(&cpu, vm, layout, backing).unwrap();
        let bytes = 8 * PAGE_SIZE;
        let slot = SlotConfig {
            id: SlotId(0),
            start: Ipa::new(0),
            object: Object::anonymous(&cpu, Owner::Vm(vm), bytes, Level::L3).unwrap(),
            offset: 0,
            bytes,
            read_only: false,
            write_faults: false,
        };
        space.map_object(&cpu, slot).unwrap();
        let page = |number: u64| Ipa::new(number * PAGE_SIZE);
        let populate = |range: IpaRange| space.prefault(&cpu, 0, range, Access::Write);
        populate(page(0)..page(3)).unwrap();
        let elsewhere = page(1 << 20)..page((1 << 20) + 1);
        let changed = space.space().tracker().begin(elsewhere);
        let busy = PrefaultError {
            done_to: page(3),
            reason: NotPopulated::Busy,
        };
        assert_eq!(populate(page(0)..page(8)), Err(busy));
        changed.end();
        populate(page(0)..page(8)).unwrap();
        space.destroy(&cpu);
    }
}
