//! A VM's physical address space: its slots, its stage-2 tables, its dirty logs.
//!
//! Faults ([`AddressSpace::fault`]) run on any number of CPUs beside everything else here. What changes slots excludes
//! only other such changes, and harvests of dirty logs exclude each other (rule 9), by locks that no fault takes.

use crate::cpu::{Caches, CpuMemory};
use crate::frames::{FrameSize, GRANULE, Owner, Purpose, VmId};
use crate::locks::MmuLock;
use crate::published::Published;
use crate::reclaim::prepare_tables;
use crate::ring::{DirtyRings, RingError};
use crate::slots::{Backing, Slot, SlotArray, SlotError, SlotId};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use crossbeam_epoch::Guard;
use spin::Mutex;
use stage2::sync::full_barrier;
use stage2::{
    Ipa, IpaRange, Layout, Leaf, Level, OutOfFrames, PAGE_SIZE, Pa, Stage2, TableFrame, Tlb, Vttbr,
};

/// Tables that one step of an operation unlinks at most, before it looks whether too many await their epoch.
pub const UNLINKED_AT_ONCE: u64 = 64;
/// Entries of a table, for the length of a step.
const TABLE_ENTRIES: usize = 512;

/// One VM's memory.
#[derive(Debug)]
pub struct AddressSpace<L> {
    vm: VmId,
    stage2: Stage2,
    slots: Published<SlotArray>,
    lock: L,
    /// Held by whoever changes slots or takes from a dirty log. No fault takes it.
    pub(crate) control: Mutex<()>,
    rings: DirtyRings,
}

/// Guest memory can't be reached: no slot covers all of the range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotBacked {
    /// The first address that isn't backed.
    pub ipa: Ipa,
}

impl fmt::Display for NotBacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest address {} is not backed by memory", self.ipa)
    }
}

impl core::error::Error for NotBacked {}

impl<L: MmuLock> AddressSpace<L> {
    /// An empty address space, whose tables have 4 KiB pages. Its root comes from the pool.
    pub fn new<T>(cpu: &CpuMemory<T>, vm: VmId, layout: Layout) -> Result<Self, OutOfFrames> {
        let root = cpu
            .pool()
            .allocate_root(layout.root_tables(), vm)
            .ok_or(OutOfFrames)?;
        prepare_tables(root, layout.root_tables());
        Ok(Self {
            vm,
            stage2: Stage2::new(TableFrame::root(root, layout.root_tables()), layout),
            slots: Published::new(None),
            lock: L::default(),
            control: Mutex::new(()),
            rings: DirtyRings::default(),
        })
    }

    /// Gives `vcpus` vCPUs a dirty ring each, for slots that are logged by ring.
    ///
    /// # Errors
    /// The number of entries is none for a ring, or there is no memory for them.
    pub fn make_rings(&mut self, vcpus: usize, entries: usize) -> Result<(), RingError> {
        self.rings = DirtyRings::new(vcpus, entries)?;
        Ok(())
    }

    pub(crate) fn rings(&self) -> &DirtyRings {
        &self.rings
    }

    /// Gives the VM a VMID that is good on the calling CPU, and returns what VTTBR_EL2 and VTCR_EL2 are to hold there.
    pub fn activate<T: Tlb>(&self, cpu: &CpuMemory<T>) -> (Vttbr, u64) {
        cpu.activate(self.stage2.vmid());
        (self.stage2.vttbr(), cpu.system().vtcr(self.stage2.layout()))
    }

    /// The VM that it belongs to.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// The tables.
    pub fn stage2(&self) -> &Stage2 {
        &self.stage2
    }

    pub(crate) fn lock(&self) -> &L {
        &self.lock
    }

    #[inline]
    pub(crate) fn slots<'g>(&self, guard: &'g Guard) -> &'g SlotArray {
        static NONE: SlotArray = SlotArray::new();
        self.slots.load(guard).unwrap_or(&NONE)
    }

    /// What the tables map `ipa` to at this moment, and at which level.
    pub fn lookup<T: Tlb>(&self, cpu: &CpuMemory<T>, ipa: Ipa) -> Option<(Leaf, Level)> {
        let guard = cpu.pin();
        let (tables, epoch) = (cpu.tables(self.vm), cpu.retirement(self.vm, &guard));
        self.stage2.lookup(&cpu.worker(&tables, &epoch), ipa)
    }

    /// Backs `bytes` from `start` on with zeroed memory, in pieces of the span of `piece`, which are also the largest
    /// blocks that map it. vCPUs may be running.
    pub fn add_slot<T: Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        start: Ipa,
        bytes: u64,
        piece: Level,
        read_only: bool,
    ) -> Result<(), SlotError> {
        let _control = self.control.lock();
        let range = self.checked_range(start, bytes, piece)?;
        let guard = cpu.pin();
        let slots = self.slots(&guard);
        slots.check(id, &range)?;
        let backing = self.allocate_backing(cpu, bytes, piece)?;
        let slot = Arc::new(Slot::new(id, start, backing, read_only));
        let prepared = read_only || slot.prepare_log();
        let Some(with_slot) = slots.with(slot.clone()).filter(|_| prepared) else {
            free_backing(cpu, self.vm, slot.backing());
            return Err(SlotError::OutOfMemory { bytes });
        };
        self.slots.replace(Some(with_slot), &guard);
        Ok(())
    }

    fn checked_range(&self, start: Ipa, bytes: u64, piece: Level) -> Result<IpaRange, SlotError> {
        let bits = self.stage2.layout().ipa_bits();
        if bytes == 0 {
            return Err(SlotError::Empty);
        }
        if !start.is_aligned(GRANULE.span(piece)) || !bytes.is_multiple_of(GRANULE.span(piece)) {
            return Err(SlotError::Unaligned {
                piece: GRANULE.span(piece),
            });
        }
        let end = start
            .checked_add(bytes)
            .ok_or(SlotError::BeyondIpaSpace { bits })?;
        if !self.stage2.layout().contains(&(start..end)) {
            return Err(SlotError::BeyondIpaSpace { bits });
        }
        Ok(start..end)
    }

    fn allocate_backing<T: Caches>(
        &self,
        cpu: &CpuMemory<T>,
        bytes: u64,
        piece: Level,
    ) -> Result<Backing, SlotError> {
        let out_of_memory = SlotError::OutOfMemory { bytes };
        let count = usize::try_from(bytes / GRANULE.span(piece)).map_err(|_| out_of_memory)?;
        let mut backing = Backing {
            piece,
            pieces: Vec::new(),
        };
        backing
            .pieces
            .try_reserve_exact(count)
            .map_err(|_| out_of_memory)?;
        for _ in 0..count {
            let Some(pa) = cpu.pool().allocate(
                FrameSize::of_level(piece),
                Owner::Vm(self.vm),
                Purpose::Guest,
            ) else {
                free_backing(cpu, self.vm, &backing);
                return Err(out_of_memory);
            };
            // SAFETY: the frames have just come from the pool, whose memory is mapped.
            unsafe { crate::frames::zero(pa, GRANULE.span(piece)) };
            self.show_guest(cpu, pa, GRANULE.span(piece));
            backing.pieces.push(pa);
        }
        Ok(backing)
    }

    /// Makes what was written at `pa` visible to the guest, however it looks at it.
    fn show_guest<T: Caches>(&self, cpu: &CpuMemory<T>, pa: Pa, bytes: u64) {
        if self.stage2.layout().features().fwb {
            cpu.hardware().clean_for_fetches(pa, bytes);
        } else {
            cpu.hardware().clean_for_guest(pa, bytes);
        }
    }

    /// Copies bytes into guest memory, as a device would: read-only slots too, and marked in the dirty log.
    /// Nothing is written unless all of the range is backed. vCPUs that use the same bytes meanwhile see some mixture.
    pub fn write_guest<T: Caches>(
        &self,
        cpu: &CpuMemory<T>,
        ipa: Ipa,
        bytes: &[u8],
    ) -> Result<(), NotBacked> {
        let guard = cpu.pin();
        self.for_each_page(&guard, ipa, bytes.len(), |_, _, _, _| {})?;
        self.for_each_page(&guard, ipa, bytes.len(), |slot, page, pa, part| {
            // SAFETY: the slot's frames back the guest, and stay its own in the epoch that `guard` holds.
            unsafe { crate::frames::write_bytes(pa, &bytes[part.clone()]) };
            self.show_guest(cpu, pa, part.len() as u64);
            // Logging that is switched on meanwhile is seen here, or what is copied then has these bytes (rule 8).
            full_barrier();
            if let Some(log) = slot.log(&guard) {
                log.mark(page, 1);
            }
        })
    }

    /// Copies bytes out of guest memory. vCPUs that write them meanwhile may leave any mixture.
    pub fn read_guest<T>(
        &self,
        cpu: &CpuMemory<T>,
        ipa: Ipa,
        bytes: &mut [u8],
    ) -> Result<(), NotBacked> {
        let guard = cpu.pin();
        let length = bytes.len();
        self.for_each_page(&guard, ipa, length, |_, _, pa, part| {
            // SAFETY: as for `write_guest`.
            unsafe { crate::frames::read_bytes(pa, &mut bytes[part]) }
        })
    }

    /// Calls `each` with the slot, the page's number in it, the physical address and the part of the buffer, for every
    /// page that the range touches.
    fn for_each_page(
        &self,
        guard: &Guard,
        ipa: Ipa,
        length: usize,
        mut each: impl FnMut(&Slot, u64, Pa, Range<usize>),
    ) -> Result<(), NotBacked> {
        let slots = self.slots(guard);
        let mut done = 0;
        while done < length {
            let at = ipa.checked_add(done as u64).ok_or(NotBacked { ipa })?;
            let slot = slots.find(at).ok_or(NotBacked { ipa: at })?;
            let offset = at.offset_in(PAGE_SIZE);
            let part = done..length.min(done + (PAGE_SIZE - offset) as usize);
            done = part.end;
            each(
                slot,
                slot.page_of(at),
                slot.frame_of(at).offset(offset),
                part,
            );
        }
        Ok(())
    }

    /// Tears everything down and returns when every frame of the VM is back in the pool, but for tables that other CPUs
    /// have yet to let go of their epoch for; those are counted as pending until then. No vCPU of this VM runs or will run.
    pub fn destroy<T: Tlb + Caches>(self, cpu: &CpuMemory<T>) {
        let Self {
            vm, stage2, slots, ..
        } = self;
        let mut teardown = {
            let guard = cpu.pin();
            let (tables, epoch) = (cpu.tables(vm), cpu.retirement(vm, &guard));
            stage2.destroy(&cpu.worker(&tables, &epoch))
        };
        let mut ended = false;
        while !ended {
            cpu.settle();
            let guard = cpu.pin();
            let (tables, epoch) = (cpu.tables(vm), cpu.retirement(vm, &guard));
            let entries = UNLINKED_AT_ONCE as usize * TABLE_ENTRIES;
            ended = teardown.step(&cpu.worker(&tables, &epoch), entries, |_, _, _| {});
        }
        // Rule 10: frames go back after the invalidation and an epoch.
        cpu.wait_for_epoch();
        let guard = cpu.pin();
        for slot in slots.load(&guard).into_iter().flat_map(SlotArray::iter) {
            free_backing(cpu, vm, slot.backing());
        }
    }
}

/// Gives a slot's memory back to the pool. No guest reaches it any more.
fn free_backing<T>(cpu: &CpuMemory<T>, vm: VmId, backing: &Backing) {
    for pa in &backing.pieces {
        let size = FrameSize::of_level(backing.piece);
        cpu.pool().free(*pa, size, Owner::Vm(vm), Purpose::Guest);
    }
}
