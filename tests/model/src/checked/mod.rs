//! The machine that the model checker runs the engine on.
//!
//! Every shared word of it that decides anything is the checker's: table entries, the CPUs' stays in the epoch, a word for
//! what the TLBs hold. It does whatever the architecture lets a machine do to a protocol that has a hole: TLBs keep
//! translations and links to tables until they are told otherwise, hardware updates entries on its own, and a table's
//! frame is taken away from it as soon as the epoch allows. [`Machine::finish`] then looks whether all fits together.
//!
//! Guests run outside the engine: [`Cpu::read`] and [`Cpu::write`] are what a vCPU does. Operations run inside an epoch:
//! [`Cpu::work`].

mod account;
mod epoch;
mod explore;
mod frames;
mod guest;
pub mod memory;
mod operations;
pub mod overtaking;
pub mod regimes;
mod tlb;
pub mod vms;
mod walker;

use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use account::{Account, Snapshot};
use loom::sync::atomic::{AtomicBool, Ordering};
use stage2::sync::full_barrier;
use stage2::{Counters, Features, Ipa, Layout, Leaf, Level, PAGE_SIZE, Pa, Stage2, Worker};

pub use epoch::{Stay, Stays};
pub use explore::{Act, alone, every_execution, explore, no_more, nothing};
pub use frames::{CpuTables, Tables};
pub use guest::{Policy, Served};
pub use tlb::{CpuTlb, Tlbs};

/// Most CPUs of a machine: the model checker's threads.
pub const CPUS: usize = 4;
/// Entries of a table.
pub const ENTRIES: u64 = 4;
/// What backs guest addresses: far above them, so that the two can't be mixed up.
const BACKING: u64 = 0x40_0000_0000;

/// The `index`-th page.
pub const fn page(index: u64) -> Ipa {
    Ipa::new(index * PAGE_SIZE)
}

/// The pages `first..end`.
pub const fn pages(range: Range<u64>) -> Range<Ipa> {
    page(range.start)..page(range.end)
}

/// The frame behind `ipa`.
pub const fn backing_of(ipa: Ipa) -> Pa {
    Pa::new(BACKING + ipa.get())
}

/// Another frame for `ipa`, for an owner of memory who changes what backs it.
pub const fn other_backing_of(ipa: Ipa) -> Pa {
    Pa::new(2 * BACKING + ipa.get())
}

/// Two levels of tables.
pub const SHALLOW: Layout = Layout::small(Level::L2, Features::armv8_0(32, 48));

/// Three levels of tables.
pub const DEEP: Layout = Layout::small(Level::L1, Features::armv8_0(32, 48));

/// The pages of one table, or of the block in its place.
pub const BLOCK: Range<Ipa> = pages(0..ENTRIES);

/// A machine with one VM.
pub struct Machine {
    stage2: ManuallyDrop<Stage2>,
    tables: Tables,
    tlbs: Tlbs,
    stays: Stays,
    /// Something that the owner of the memory publishes (rule 8).
    flag: AtomicBool,
    account: Mutex<Account>,
}

/// One CPU of a machine.
#[derive(Clone, Copy)]
pub struct Cpu<'m> {
    machine: &'m Machine,
    number: usize,
}

/// What an operation gets to work with.
pub type CpuWorker<'w> = Worker<'w, CpuTables<'w>, CpuTlb<'w>, Stay<'w>>;

impl Machine {
    /// With an empty translation.
    pub fn new(layout: Layout) -> Self {
        let tables = Tables::new(layout);
        let root = tables.allocate_root();
        Self {
            stage2: ManuallyDrop::new(Stage2::new(root, layout)),
            tables,
            tlbs: Tlbs::new(layout),
            stays: Stays::default(),
            flag: AtomicBool::new(false),
            account: Mutex::default(),
        }
    }

    /// One of its CPUs.
    pub fn cpu(&self, number: usize) -> Cpu<'_> {
        let machine = self;
        Cpu { machine, number }
    }

    /// The tables' frames.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The TLBs.
    pub fn tlbs(&self) -> &Tlbs {
        &self.tlbs
    }

    /// Publishes what the owner of the memory has decided, and sees to it that whoever walks later is seen or has seen it
    /// (rule 8).
    pub fn publish(&self) {
        self.flag.store(true, Ordering::Relaxed);
        full_barrier();
    }

    /// Whether it was published.
    pub fn is_published(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// What the tables say about `ipa`, while nothing else runs.
    pub fn lookup(&self, ipa: Ipa) -> Option<(Leaf, Level)> {
        self.cpu(0).lookup(ipa)
    }

    /// Ends the VM and looks whether all fits together: TLBs with tables, what is mapped with what was mapped and removed;
    /// whether dead tables stayed as they were, and every frame came back.
    fn finish(&self) {
        if self.tables.live() > 0 {
            let found = self.snapshot();
            for (ipa, (leaf, level)) in &found.leaves {
                let within = ipa.get() & (self.stage2.layout().span(*level) - 1);
                let pa = leaf.pa().offset(within);
                let backing = [backing_of(*ipa), other_backing_of(*ipa)];
                assert!(backing.contains(&pa), "rule 2: {ipa} leads elsewhere");
            }
            found.assert_groups(self.stage2.layout());
            locked(&self.account).assert_holds(&found);
            self.tlbs.assert_consistent(&found);
            self.cpu(0).destroy();
        }
        locked(&self.account).assert_holds(&Snapshot::default());
        self.tlbs.assert_empty();
        self.tables.assert_all_freed();
    }
}

impl<'m> Cpu<'m> {
    /// Its number.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The machine.
    pub fn machine(&self) -> &'m Machine {
        self.machine
    }

    /// Runs an operation, inside an epoch.
    pub fn work<R>(&self, work: impl FnOnce(&Stage2, &CpuWorker<'_>) -> R) -> R {
        let machine = self.machine;
        let (memory, tlb) = (
            CpuTables::new(&machine.tables, self.number),
            CpuTlb::new(&machine.tlbs, &machine.tables, self.number),
        );
        let counters = Counters::default();
        let epoch = machine.stays.enter(self.number, &machine.tables);
        work(
            &machine.stage2,
            &Worker {
                memory: &memory,
                tlb: &tlb,
                epoch: &epoch,
                counters: &counters,
            },
        )
    }
}

/// Never held across one of the model checker's steps.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
