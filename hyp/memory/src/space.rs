//! A VM's physical address space: its slots, its stage-2 tables, its dirty logs.
//!
//! Faults ([`AddressSpace::fault`]) run on any number of CPUs beside every other operation. Changes of slots and switches of
//! dirty logs exclude each other and the work that relies on them (harvests, splitting ahead, restoring blocks), by a lock that
//! no fault takes. That work runs on any number of CPUs at once, each with a part of the pages.

pub(crate) mod control;
pub(crate) mod mapping;
pub(crate) mod mmu_lock;
pub(crate) mod slot;
pub(crate) mod slot_edit;

use crate::dirty::ring::{DirtyRings, RingError};
use crate::epoch::published::Published;
use crate::frames::VmId;
use crate::frames::tables::prepare_tables;
use crate::space::control::Control;
use crate::space::mapping::Mapping;
use crate::space::mmu_lock::MmuLock;
use crate::space::slot::{Slot, SlotArray};
use crate::system::MemorySystem;
use crate::system::cpu::{Caches, CpuMemory};
use crate::tracker::{Tracker, TrackerMode};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use crossbeam_epoch::Guard;
use spin::Once;
use stage2::{Ipa, Layout, Leaf, Level, OutOfFrames, PAGE_SIZE, Stage2, TableFrame, Tlb, Vttbr};

/// The most tables that one step of an operation unlinks before it checks how many wait for their epoch.
pub const UNLINKED_AT_ONCE: u64 = 64;
/// Why the tables refuse no range that this crate works on: each is part of a slot, or a block around it.
pub(crate) const IN_SPACE: &str = "slots are whole pages of the IPA space";
/// Entries of a table, as the length of a step.
const TABLE_ENTRIES: usize = 512;

/// How a changed backing reaches the tables that map the page.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Change {
    /// The new frame replaces the old one in each entry that maps it.
    #[default]
    Direct,
    /// The entries are unmapped, and guests fault again: a baseline.
    Unmap,
}

/// How an address space follows changes of its backing. The default is the best; others are for comparison.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BackingPolicy {
    /// How faults detect changes.
    pub tracker: TrackerMode,
    /// How changes reach the tables.
    pub change: Change,
}

/// The part of a VM's memory that doesn't depend on the lock of its mode.
#[derive(Debug)]
pub(crate) struct Space {
    vm: VmId,
    /// The memory system that it belongs to, with its frames and epochs.
    system: &'static MemorySystem,
    stage2: Stage2,
    slots: Published<SlotArray>,
    tracker: Tracker,
    change: Change,
    /// Held while slots or logs are changed, shared while the pages of a log are worked on. No fault takes it.
    control: Control,
    rings: Once<DirtyRings>,
}

impl Space {
    pub(crate) fn vm(&self) -> VmId {
        self.vm
    }

    #[inline]
    pub(crate) fn stage2(&self) -> &Stage2 {
        &self.stage2
    }

    /// The tracker of ranges that are being changed (rule 8).
    #[inline]
    pub(crate) fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    pub(crate) fn change(&self) -> Change {
        self.change
    }

    /// The lock for changes of slots and logs, and for work that relies on them.
    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    #[inline]
    pub(crate) fn slots<'g>(&self, guard: &'g Guard) -> &'g SlotArray {
        static NONE: SlotArray = SlotArray::new();
        self.published_slots(guard).unwrap_or(&NONE)
    }

    /// The current slots; none before the first slot.
    #[inline(always)]
    pub(crate) fn published_slots<'g>(&self, guard: &'g Guard) -> Option<&'g SlotArray> {
        self.slots.load(guard)
    }
}

/// One VM's memory.
#[derive(Debug)]
pub struct AddressSpace<L> {
    space: Arc<Space>,
    lock: Arc<L>,
}

/// Guest memory can't be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotBacked {
    /// Slots of memory don't cover all of the range, or a slot's memory is read-only for everybody.
    NoSlot {
        /// The first address that isn't backed.
        ipa: Ipa,
    },
    /// There is no frame left for a write.
    OutOfFrames {
        /// The first address without a frame.
        ipa: Ipa,
    },
}

impl fmt::Display for NotBacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSlot { ipa } => write!(f, "guest address {ipa} is not backed by memory"),
            Self::OutOfFrames { ipa } => write!(f, "no memory is left for guest address {ipa}"),
        }
    }
}

impl core::error::Error for NotBacked {}

impl<L: MmuLock> AddressSpace<L> {
    /// An empty address space, whose tables have 4 KiB pages. Its root comes from the pool.
    ///
    /// # Panics
    /// The layout's pages have another size.
    pub fn new<T>(cpu: &CpuMemory<T>, vm: VmId, layout: Layout) -> Result<Self, OutOfFrames> {
        Self::with_backing(cpu, vm, layout, BackingPolicy::default())
    }

    /// As [`Self::new`], with another policy for changes of backing.
    pub fn with_backing<T>(
        cpu: &CpuMemory<T>,
        vm: VmId,
        layout: Layout,
        backing: BackingPolicy,
    ) -> Result<Self, OutOfFrames> {
        let tracker = Tracker::new(backing.tracker).ok_or(OutOfFrames)?;
        let root = cpu
            .pool()
            .allocate_root(layout.root_tables(), vm)
            .ok_or(OutOfFrames)?;
        prepare_tables(root, layout.root_tables());
        cpu.system().trust_domains().begin(vm);
        cpu.system().note_layout(&layout);
        let bytes = layout.root_tables() as u64 * PAGE_SIZE;
        // SAFETY: the pool has just given so much out, zeroed and aligned to its size; it is reached as all frames are (`Tables`),
        // by which alone this space's tree is worked on.
        let root = unsafe { TableFrame::new(root, bytes) };
        Ok(Self {
            space: Arc::new(Space {
                vm,
                system: cpu.system(),
                stage2: Stage2::new(root, layout),
                slots: Published::new(),
                tracker,
                change: backing.change,
                control: Control::default(),
                rings: Once::new(),
            }),
            lock: Arc::default(),
        })
    }

    /// Gives `vcpus` vCPUs a dirty ring each, for slots that are logged by ring.
    ///
    /// # Errors
    /// A ring can't have this number of entries, or there is no memory for the rings.
    pub fn make_rings(&mut self, vcpus: usize, entries: usize) -> Result<(), RingError> {
        let rings = DirtyRings::new(vcpus, entries)?;
        self.space.rings.call_once(|| rings);
        Ok(())
    }

    pub(crate) fn rings(&self) -> &DirtyRings {
        static NONE: DirtyRings = DirtyRings::none();
        self.space.rings.get().unwrap_or(&NONE)
    }

    /// Gives the VM a VMID that is valid on the calling CPU, and returns the values for VTTBR_EL2 and VTCR_EL2 there. A CPU
    /// calls this before it runs the VM and serves its faults.
    ///
    /// # Panics
    /// The CPU belongs to another memory system than the VM. This is checked here, as faults don't.
    pub fn activate<T: Tlb>(&self, cpu: &CpuMemory<T>) -> (Vttbr, u64) {
        self.space.system.check(cpu);
        cpu.activate(self.stage2().vmid());
        (self.stage2().vttbr(), self.stage2().layout().vtcr())
    }

    /// Enters the epoch, outside of faults.
    ///
    /// # Panics
    /// The CPU belongs to another memory system: its epoch would protect nothing here.
    pub(crate) fn pin<T>(&self, cpu: &CpuMemory<T>) -> Guard {
        self.space.system.check(cpu);
        cpu.pin()
    }

    /// The memory system that it belongs to.
    pub(crate) fn system(&self) -> &'static MemorySystem {
        self.space.system
    }

    /// The VM that it belongs to.
    pub fn vm(&self) -> VmId {
        self.space.vm
    }

    /// The tables.
    #[inline]
    pub fn stage2(&self) -> &Stage2 {
        &self.space.stage2
    }

    #[inline]
    pub(crate) fn space(&self) -> &Arc<Space> {
        &self.space
    }

    #[inline]
    pub(crate) fn lock(&self) -> &L {
        &self.lock
    }

    /// The lock for changes of slots and logs, and for work that relies on them.
    pub(crate) fn control(&self) -> &Control {
        self.space.control()
    }

    #[inline]
    pub(crate) fn slots<'g>(&self, guard: &'g Guard) -> &'g SlotArray {
        self.space.slots(guard)
    }

    /// Publishes new slots; no later fault sees the old ones (rule 8).
    pub(crate) fn replace_slots(&self, slots: Box<SlotArray>, guard: &Guard) {
        self.space.slots.replace(Some(slots), guard);
    }

    /// The mapping of a slot's object.
    pub(crate) fn mapping(&self, slot: &Arc<Slot>) -> Mapping {
        Mapping {
            space: self.space.clone(),
            lock: self.lock.clone(),
            slot: slot.clone(),
        }
    }

    /// The current leaf for `ipa`, with its level.
    pub fn lookup<T: Tlb>(&self, cpu: &CpuMemory<T>, ipa: Ipa) -> Option<(Leaf, Level)> {
        let guard = self.pin(cpu);
        let (tables, epoch) = (cpu.tables(self.vm()), cpu.retirement(self.vm(), &guard));
        self.stage2().lookup(&cpu.worker(&tables, &epoch), ipa)
    }

    /// Destroys the address space. Returns when every frame of the VM is back in the pool. Exceptions are tables that other
    /// CPUs' epochs still hold, which are counted as pending until then, and frames that other VMs share. No vCPU of this VM
    /// runs or will run. Waits for a CPU that is changing the backing of a shared object.
    pub fn destroy<T: Tlb + Caches>(self, cpu: &CpuMemory<T>) {
        self.detach(cpu);
        let Self { mut space, .. } = self;
        let Space {
            vm, stage2, slots, ..
        } = loop {
            // Whoever found the space in an object's mappings has left the epoch soon.
            match Arc::try_unwrap(space) {
                Ok(space) => break space,
                Err(shared) => space = shared,
            }
            cpu.wait_for_epoch();
        };
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
        drop(slots);
        cpu.pool().reclaim_released();
    }

    /// Removes all slots from their objects' mappings: nobody changes this VM's tables from now on.
    fn detach<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>) {
        let guard = self.pin(cpu);
        for slot in self.slots(&guard).iter() {
            Mapping::leave(slot, &guard);
        }
        drop(guard);
        cpu.wait_for_epoch();
    }
}
