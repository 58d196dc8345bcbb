//! A machine's CPU 0 and its VMs, step by step, on real memory: what each guest reads and writes goes through the tables,
//! with as many faults as that takes.

use memory::frames::{Counts, FramePool, arena, read_bytes, write_bytes};
use memory::{
    Access, AddressSpace, BackingPolicy, CpuCounters, CpuMemory, Fault, FaultKind, FaultOutcome,
    MemorySystem, Object, Owner, Parallel, SlotConfig, SlotId, VmId,
};
use stage2::{Features, Ipa, Layout, Leaf, Level, NoTlb, PAGE_SIZE, Pa};
use std::sync::Arc;

/// Where VMs have their memory.
pub const START: Ipa = Ipa::new(0x4000_0000);
/// Their one slot.
pub const SLOT: SlotId = SlotId(0);
/// Pages of a block of 2 MiB.
pub const BLOCK: u64 = 512;
/// Pages of a block of 1 GiB. Only what tests write of it takes memory.
pub const GIB: u64 = BLOCK * BLOCK;
/// The word of a page that guests use: not the first, so that a page isn't known by its beginning.
const WORD: u64 = 8;

/// A VM's memory.
pub type Space = AddressSpace<Parallel>;

/// CPU 0 of a machine with a pool of its own.
#[derive(Debug)]
pub struct Vms {
    /// The CPU.
    pub cpu: CpuMemory<NoTlb>,
    /// What it counts.
    pub counters: &'static CpuCounters,
    /// The machine's frames.
    pub pool: &'static FramePool,
}

impl Vms {
    /// A machine of one CPU with so many frames.
    pub fn new(frames: usize) -> Self {
        Self::with_cpus(frames, 1)
    }

    /// A machine of so many CPUs, of which the others are the test's to make.
    pub fn with_cpus(frames: usize, cpus: usize) -> Self {
        let pool: &FramePool = Box::leak(Box::new(FramePool::new()));
        // SAFETY: the arena is leaked, and added once.
        unsafe { pool.add(arena::leak(frames)) };
        let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(pool, cpus, 8).unwrap()));
        let counters = Box::leak(Box::default());
        Self {
            cpu: CpuMemory::new(system, 0, NoTlb, counters),
            counters,
            pool,
        }
    }

    /// A VM without memory.
    pub fn space(&self, vm: usize, backing: BackingPolicy) -> Space {
        let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
        let vm = VmId::new(vm).unwrap();
        Space::with_backing(&self.cpu, vm, layout, backing).unwrap()
    }

    /// Memory of a VM, in pieces of the span of `piece`.
    pub fn anonymous(&self, vm: VmId, pages: u64, piece: Level) -> Arc<Object> {
        Object::anonymous(&self.cpu, Owner::Vm(vm), pages * PAGE_SIZE, piece).unwrap()
    }

    /// Maps all of an object as a VM's memory.
    pub fn map(&self, space: &Space, object: Arc<Object>) {
        space.map_object(&self.cpu, slot(object)).unwrap();
    }

    /// What the guest's access to a page leads to, and how many faults it takes.
    pub fn access(&self, space: &Space, page: u64, access: Access) -> (Leaf, Level, u32) {
        let ipa = START.offset(page * PAGE_SIZE);
        let mut faults = 0;
        loop {
            let kind = match space.lookup(&self.cpu, ipa) {
                Some((leaf, level)) if access.allowed_by(leaf) => return (leaf, level, faults),
                Some(_) => FaultKind::Permission,
                None => FaultKind::Translation,
            };
            faults += 1;
            let outcome = self.fault(space, ipa, access, kind);
            assert!(
                matches!(outcome, FaultOutcome::Resolved | FaultOutcome::Retry),
                "{outcome:?}"
            );
            self.cpu.refill();
        }
    }

    /// Has one fault served.
    pub fn fault(&self, space: &Space, ipa: Ipa, access: Access, kind: FaultKind) -> FaultOutcome {
        let fault = Fault {
            vcpu: 0,
            ipa,
            va: None,
            access,
            kind,
        };
        space.fault(&self.cpu, &fault)
    }

    /// The guest writes a word to a page. How many faults that takes.
    pub fn write(&self, space: &Space, page: u64, word: u64) -> u32 {
        let (leaf, level, faults) = self.access(space, page, Access::Write);
        let at = frame(leaf, level, page).offset(WORD);
        // SAFETY: the leaf maps memory of the arena, which backs the guest.
        unsafe { write_bytes(at, &word.to_ne_bytes()) };
        faults
    }

    /// The guest reads that word.
    pub fn read(&self, space: &Space, page: u64) -> u64 {
        let (leaf, level, _) = self.access(space, page, Access::Read);
        let mut word = [0; 8];
        // SAFETY: as for a write.
        unsafe { read_bytes(frame(leaf, level, page).offset(WORD), &mut word) };
        u64::from_ne_bytes(word)
    }

    /// The frames that back guests, of all owners.
    pub fn guest(&self) -> u64 {
        self.counts().guest
    }

    /// Where all frames are; they add up.
    pub fn counts(&self) -> Counts {
        let counts = self.pool.counts();
        counts.check().unwrap();
        counts
    }

    /// Checks that no VM has left anything.
    pub fn check_nothing_is_left(&self) {
        self.cpu.wait_for_epoch();
        let counts = self.counts();
        assert_eq!((counts.guest, counts.table), (0, 0), "{counts}");
        assert_eq!(self.pool.shared_frames(), 0);
    }
}

/// The frame of a page that a leaf maps.
pub fn frame(leaf: Leaf, level: Level, page: u64) -> Pa {
    let pages = match level {
        Level::L3 => 1,
        Level::L2 => BLOCK,
        Level::L1 | Level::L0 => GIB,
    };
    leaf.pa().offset(page % pages * PAGE_SIZE)
}

/// All of an object as a VM's memory.
pub fn slot(object: Arc<Object>) -> SlotConfig {
    SlotConfig {
        id: SLOT,
        start: START,
        offset: 0,
        bytes: object.bytes(),
        object,
        read_only: false,
        write_faults: false,
    }
}
