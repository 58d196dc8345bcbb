//! The engine's own TLB maintenance, by CPUs that run a VM and CPUs that don't, under the model checker: which VMID it
//! is for.
//!
//! There is one VM, with one page. TLB entries are tagged by VMID, and an invalidation reaches those of the VMID in its
//! CPU's VTTBR_EL2, all of them: which instructions it is made of is another suite's matter. Barriers are the model
//! checker's. A walk finds any value of an entry that no barrier and no invalidation *of its VMID* has made old, as
//! hardware's does.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicUsize, Ordering as Unmodelled};
use std::sync::{Arc, Mutex};

use super::{CpuTables, SHALLOW, Tables, backing_of, every_execution, locked, page, pages};
use loom::sync::atomic::{AtomicU64, Ordering};
use stage2::sync::full_barrier;
use stage2::{
    Attributes, Barrier, Counters, Epoch, Instructions, Leaf, Level, Maintenance, Mapping, NoTlb,
    Permissions, RegimeRegisters, Stage2, TableMemory, TlbPolicy, Tlbi, Unlinked, Vmid,
    VmidAllocator, Worker,
};

/// Most CPUs.
const CPUS: usize = 3;
/// VMIDs that come up: that of a VM which has none yet, and the first one.
const VMIDS: usize = 2;

/// The TLBs of all CPUs, for the VM's one page.
#[derive(Default)]
struct Tlbs {
    held: Mutex<Vec<(Vmid, Leaf)>>,
    /// By VMID, for the model checker: invalidations release, walks acquire.
    order: [AtomicU64; VMIDS],
    /// By VMID: invalidations so far.
    invalidations: [AtomicUsize; VMIDS],
}

impl Tlbs {
    fn invalidate(&self, vmid: Vmid) {
        let number = usize::from(vmid.0);
        self.order[number].fetch_add(1, Ordering::Release);
        self.invalidations[number].fetch_add(1, Unmodelled::Relaxed);
        locked(&self.held).retain(|(held, _)| *held != vmid);
    }

    /// Keeps what `walk` finds. A walk that an invalidation overtakes begins again, as if it had never been.
    fn fill(&self, vmid: Vmid, walk: impl Fn() -> Option<Leaf>) {
        let number = usize::from(vmid.0);
        loop {
            self.order[number].fetch_add(0, Ordering::Acquire);
            let began = self.invalidations[number].load(Unmodelled::Relaxed);
            let found = walk();
            if self.invalidations[number].load(Unmodelled::Relaxed) == began {
                locked(&self.held).extend(found.map(|leaf| (vmid, leaf)));
                return;
            }
        }
    }
}

/// A machine with a VM that hasn't run yet.
pub struct World {
    stage2: ManuallyDrop<Stage2>,
    tables: Tables,
    vmids: VmidAllocator,
    tlbs: Tlbs,
}

/// One of its CPUs.
pub struct Cpu<'w> {
    world: &'w World,
    number: usize,
    vttbr: Cell<u64>,
    vtcr: Cell<u64>,
}

/// What a CPU does.
pub type Act = fn(&Cpu<'_>);

/// Tries every execution, with at most so many preemptions, of `race`, on CPU 1, 2 and so on, with a VM whose page is
/// writable; then `check` on CPU 0.
pub fn explore<const N: usize>(preemptions: usize, race: [Act; N], check: Act) {
    let race = race.map(|act| move |world: &World, cpu| act(&world.cpu(cpu)));
    every_execution(preemptions, race, move |run| {
        let world = Arc::new(World::new());
        run(&world);
        check(&world.cpu(0));
        Arc::into_inner(world)
            .expect("the threads have ended")
            .end();
    });
}

impl World {
    fn new() -> Self {
        let tables = Tables::new(SHALLOW);
        let root = tables.allocate_root();
        let world = Self {
            stage2: ManuallyDrop::new(Stage2::new(root, SHALLOW)),
            tables,
            vmids: VmidAllocator::new(CPUS, 8).unwrap(),
            tlbs: Tlbs::default(),
        };
        let mapping = Mapping {
            pa: backing_of(page(0)),
            attributes: Attributes::memory(Permissions::RAM),
            largest: Level::L3,
        };
        let mapped =
            (world.cpu(0)).work(|stage2, worker| stage2.map(worker, pages(0..1), mapping, || true));
        mapped.expect("frames don't run out here");
        world
    }

    fn cpu(&self, number: usize) -> Cpu<'_> {
        let RegimeRegisters { vttbr, vtcr } = RegimeRegisters::NONE;
        Cpu {
            world: self,
            number,
            vttbr: Cell::new(vttbr),
            vtcr: Cell::new(vtcr),
        }
    }

    fn end(mut self) {
        // SAFETY: nobody uses it any more.
        let stage2 = unsafe { ManuallyDrop::take(&mut self.stage2) };
        self.cpu(0)
            .work(|_, worker| stage2.destroy(worker).finish(worker, |_, _, _| {}));
        self.tables.assert_all_freed();
    }
}

/// Frees at once: what is unlinked here is a dead tree, which nobody walks.
struct AtOnce<'w>(CpuTables<'w>);

// SAFETY: by the end, when all that is retired is, nobody else is inside, and nothing is looked at any more.
unsafe impl Epoch for AtOnce<'_> {
    fn retire(&self, unlinked: Unlinked) {
        // SAFETY: all tables of the tree came from there.
        unsafe { self.0.free(unlinked.into_frame()) };
    }
}

impl Cpu<'_> {
    fn work<R>(
        &self,
        work: impl FnOnce(&Stage2, &Worker<'_, CpuTables<'_>, Maintenance<&Self>, AtOnce<'_>>) -> R,
    ) -> R {
        let memory = CpuTables::new(&self.world.tables, self.number);
        let policy = TlbPolicy {
            range: false,
            level_hint: false,
            most_instructions: 4,
        };
        work(
            &self.world.stage2,
            &Worker {
                memory: &memory,
                tlb: &Maintenance::new(self, policy),
                epoch: &AtOnce(memory),
                counters: &Counters::default(),
            },
        )
    }

    /// Takes the right to write to the page away, from outside the VM.
    pub fn protect(&self) {
        self.work(|stage2, worker| {
            stage2
                .write_protect(worker, pages(0..1), |_, _| true, |_, _| {})
                .expect("a page");
        });
    }

    /// Starts the VM's first vCPU, which translates the page.
    pub fn start(&self) {
        self.work(|stage2, worker| {
            let vmids = &self.world.vmids;
            vmids.activate(self.number, stage2.vmid(), worker.tlb);
            let regime = stage2.regime();
            let (vttbr, vtcr) = (regime.vttbr().bits(), regime.vtcr());
            RegimeRegisters { vttbr, vtcr }.load(&self);
            let counters = Counters::default();
            let hardware = Worker {
                memory: worker.memory,
                tlb: &NoTlb,
                epoch: worker.epoch,
                counters: &counters,
            };
            self.world.tlbs.fill(self.vmid(), || {
                let found = stage2.lookup(&hardware, page(0));
                found.map(|(leaf, _)| leaf)
            });
        });
    }

    /// Checks, while nothing else runs, that no TLB lets the guest write to the page.
    pub fn assert_protected(&self) {
        for (vmid, leaf) in locked(&self.world.tlbs.held).iter() {
            assert!(
                !leaf.writable(),
                "rule 12: a TLB has {leaf:?} under {vmid:?} although the page is protected"
            );
        }
    }

    fn vmid(&self) -> Vmid {
        Vmid((self.vttbr.get() >> 48) as u16)
    }
}

impl Instructions for &Cpu<'_> {
    fn tlbi(&self, _: Tlbi) {
        self.world.tlbs.invalidate(self.vmid());
    }

    fn barrier(&self, barrier: Barrier) {
        if barrier != Barrier::Isb {
            full_barrier();
        }
    }

    fn vttbr(&self) -> u64 {
        self.vttbr.get()
    }

    fn set_vttbr(&self, value: u64) {
        self.vttbr.set(value);
    }

    fn vtcr(&self) -> u64 {
        self.vtcr.get()
    }

    fn set_vtcr(&self, value: u64) {
        self.vtcr.set(value);
    }
}
