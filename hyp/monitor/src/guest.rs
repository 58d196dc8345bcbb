//! One guest from its image to the last of its frames: its memory, its start on CPUs that are idle, its end.
//!
//! CPU 0 does all of this, while the other CPUs run the vCPUs; whoever drives the guest meanwhile gets a [`Watch`]. Guests that
//! are to run at the same time are run one within the drive of another.

mod plan;
mod watch;

pub use plan::{GuestPlan, RAM, RAM_SLOT, UNSEEN_SLOT};
use plan::{level, whole};
pub use watch::{Beside, Watch};

use crate::crew::Crew;
use crate::error::RunError;
use crate::guest_tree::GuestDescription;
use crate::machine::{Machine, OwnCpu};
use crate::options::{Options, TEST_MEMORY};
use crate::patience::Patience;
use crate::report::Stage2Use;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::Range;
use memory::frames::{Counts, VmCounts};
use memory::{
    AddressSpace, CpuCounters, CpuMemory, MmuLock, Object, Owner, SlotError, VmId, Watermarks,
};
use records::record::CounterMap;
use records::size::Size;
use stage2::{Features, Layout, PAGE_SIZE};
use vm::{CpuId, Pause, Service, Start, StopReason, Vcpu, VcpuId, Vm, VmConfig};

/// How long CPUs may take to come back from a guest that was stopped, and how often CPU 0 looks whether they have.
const PATIENCE_NS: u64 = 30_000_000_000;
const LOOKS: u32 = 60;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// The machine, as CPU 0 works with it.
pub struct Host<'h, M: Machine> {
    /// The machine.
    pub machine: &'static M,
    /// The CPUs that run vCPUs.
    pub crew: &'static Crew<M>,
    /// What each CPU counts.
    pub counters: &'static [CpuCounters],
    /// CPU 0's own.
    pub own: &'h OwnCpu<M>,
}

/// What remains to be said of a guest that has ended.
#[derive(Debug)]
pub struct Remains {
    /// What its tables used of the architecture.
    pub stage2: Features,
    /// All that was counted.
    pub counters: CounterMap,
    /// The VM's frames after it was destroyed.
    pub frames: VmCounts,
    /// The machine's frames after it was destroyed.
    pub machine_frames: Counts,
}

/// A VM's limit, while there is one: cold pages are put away.
struct Limit<'l, M: Machine> {
    memory: &'l CpuMemory<M::Hardware>,
    vm: VmId,
}

impl<'l, M: Machine> Limit<'l, M> {
    /// That of this guest, if it has one.
    fn set(host: &'l Host<'_, M>, plan: &GuestPlan<'_>) -> Option<Self> {
        let (memory, vm) = (&host.own.memory, plan.vm);
        let frames = plan.limit? / PAGE_SIZE;
        memory.pool().set_limit(vm, Some(frames));
        let watermarks = Watermarks::of(memory.pool().counts().total);
        memory.system().set_watermarks(Some(watermarks));
        Some(Self { memory, vm })
    }
}

impl<M: Machine> Drop for Limit<'_, M> {
    fn drop(&mut self) {
        self.memory.system().set_watermarks(None);
        self.memory.pool().set_limit(self.vm, None);
    }
}

/// A VM that has its memory.
struct Made<L> {
    vm: Vm<AddressSpace<L>>,
    filled_ns: u64,
}

impl<M: Machine> Host<'_, M> {
    /// Checks that there is a CPU for every vCPU and for whatever else runs beside them.
    pub fn check_cpus(&self, options: &Options) -> Result<(), RunError> {
        let cpus = self.machine.facts().cpus;
        let needed = options.busy_cpus().saturating_add(1);
        if needed <= cpus {
            Ok(())
        } else {
            Err(RunError::TooFewCpus {
                vcpus: options.vcpus,
                needed,
                cpus,
                merging: options.merging,
            })
        }
    }

    /// Runs a guest, whose hypercalls `service` answers, under `drive`, which returns when the guest has ended or is to be
    /// stopped. In any case nothing is left of it afterwards.
    pub fn run<L, S, R>(
        &self,
        plan: &GuestPlan<'_>,
        service: &Arc<S>,
        drive: impl FnOnce(&Watch<'_, M, L>) -> Result<R, RunError>,
    ) -> (Result<R, RunError>, Option<Remains>)
    where
        L: MmuLock + 'static,
        S: Service + Send + Sync + 'static,
    {
        self.run_with(plan, service, || self.create(plan), drive)
    }

    /// As [`Self::run`], with a fork of a guest that is paused: its vCPUs go on where that one's are, and its memory is that
    /// one's, until either writes it. The plan says what number it has, its limit and its time; of its memory it says what
    /// that one's did. The pause ends when the fork is made.
    pub fn run_fork<L, S, K, R>(
        &self,
        paused: Pause<'_, AddressSpace<L>, K>,
        plan: &GuestPlan<'_>,
        service: &Arc<S>,
        drive: impl FnOnce(&Watch<'_, M, L>) -> Result<R, RunError>,
    ) -> (Result<R, RunError>, Option<Remains>)
    where
        L: MmuLock + 'static,
        S: Service + Send + Sync + 'static,
        K: FnMut(CpuId),
    {
        self.run_with(plan, service, || self.fork(paused, plan), drive)
    }

    /// Runs a guest that `make` makes.
    fn run_with<L, S, R>(
        &self,
        plan: &GuestPlan<'_>,
        service: &Arc<S>,
        make: impl FnOnce() -> Result<Made<L>, RunError>,
        drive: impl FnOnce(&Watch<'_, M, L>) -> Result<R, RunError>,
    ) -> (Result<R, RunError>, Option<Remains>)
    where
        L: MmuLock + 'static,
        S: Service + Send + Sync + 'static,
    {
        let Some(cpus) = self.crew.find_idle(plan.vcpus) else {
            return (Err(RunError::Stuck), None);
        };
        let limit = Limit::set(self, plan);
        let Made { vm, filled_ns } = match make() {
            Ok(made) => made,
            Err(error) => return (Err(error), None),
        };
        let vm = Arc::new(vm);
        let started_ns = self.machine.now_ns();
        let watch = Watch {
            machine: self.machine,
            own: self.own,
            vm: &vm,
            test_slots: &plan.test,
            cpus: cpus.clone(),
            exit_times: plan.exit_times,
            filled_ns,
            crew: self.crew,
            counters: self.counters,
            patience: Patience::new(
                started_ns,
                plan.timeout.saturating_mul(NS_PER_SECOND),
                watch::LOOKS,
            ),
            renewals: Cell::new(0),
            seen: Cell::new(0),
            timeout: plan.timeout,
            relieved: Cell::new(None),
        };
        let before = watch.snapshot();
        self.start(&vm, service, cpus.clone());
        let outcome = drive(&watch);
        if !self.stop(&vm, cpus) {
            return (Err(RunError::Stuck), None);
        }
        let counters = watch.snapshot().since(&before);
        let remains = self.destroy(vm, plan.vm, counters);
        drop(limit);
        match remains {
            Ok(remains) => (outcome, Some(remains)),
            Err(error) => (outcome.and(Err(error)), None),
        }
    }

    /// A VM with the memory that the plan says, whose first vCPU is about to start.
    fn create<L: MmuLock>(&self, plan: &GuestPlan<'_>) -> Result<Made<L>, RunError> {
        let layout = plan.layout(&self.machine.facts().stage2)?;
        let own = &self.own.memory;
        let space = self.space::<L>(plan, layout)?;
        let before_ns = self.machine.now_ns();
        let start = match self.fill(&space, plan) {
            Ok(start) => start,
            Err(error) => {
                space.destroy(own);
                return Err(error);
            }
        };
        let filled_ns = self.machine.now_ns() - before_ns;
        let config = VmConfig {
            vcpus: plan.vcpus,
            ipa_bits: layout.ipa_bits(),
            counter_offset: self.machine.counter(),
            times_faults: plan.exit_times,
        };
        let vm = Vm::new(config, space).map_err(|(error, space)| {
            space.destroy(own);
            error
        })?;
        // The VM is new, so its first vCPU is off.
        let _ = vm.turn_on(VcpuId(0), start);
        Ok(Made { vm, filled_ns })
    }

    /// A VM with the memory and the vCPUs of one that is paused.
    fn fork<L: MmuLock, K: FnMut(CpuId)>(
        &self,
        paused: Pause<'_, AddressSpace<L>, K>,
        plan: &GuestPlan<'_>,
    ) -> Result<Made<L>, RunError> {
        let parent = &paused.vm().space;
        let own = &self.own.memory;
        let space = self.space::<L>(plan, *parent.stage2().layout())?;
        let before_ns = self.machine.now_ns();
        if let Err(error) = parent.fork(own, &space) {
            space.destroy(own);
            return Err(error.into());
        }
        let vm = paused.fork(space).map_err(|space| {
            space.destroy(own);
            RunError::Heap
        })?;
        let filled_ns = self.machine.now_ns() - before_ns;
        Ok(Made { vm, filled_ns })
    }

    /// An address space without memory.
    fn space<L: MmuLock>(
        &self,
        plan: &GuestPlan<'_>,
        layout: Layout,
    ) -> Result<AddressSpace<L>, RunError> {
        log::info!("{}: {}", plan.vm, Stage2Use(layout.features()));
        let own = &self.own.memory;
        let mut space = AddressSpace::<L>::with_backing(own, plan.vm, layout, plan.policy)?;
        let rings = plan.ring_entries;
        match rings.map(|entries| space.make_rings(plan.vcpus, entries)) {
            Some(Err(error)) => {
                space.destroy(own);
                Err(error.into())
            }
            Some(Ok(())) | None => Ok(space),
        }
    }

    /// Gives the guest its memory and puts the image and the device tree there.
    fn fill<L: MmuLock>(
        &self,
        space: &AddressSpace<L>,
        plan: &GuestPlan<'_>,
    ) -> Result<Start, RunError> {
        let affinities: Vec<u64> = (0..plan.vcpus)
            .map(|vcpu| VcpuId(vcpu).affinity())
            .collect();
        let memory = plan.memory();
        let tree = GuestDescription {
            memory: &memory,
            affinities: &affinities,
            device: plan.device.as_ref(),
            bootargs: plan.bootargs,
        }
        .to_tree()?;
        let tree_bytes = (tree.len() as u64).next_multiple_of(PAGE_SIZE);
        plan.image.check_fits(plan.ram, tree_bytes)?;

        let own = &self.own.memory;
        let test = plan.test_end().get() - TEST_MEMORY;
        let test = if plan.lazy { 0 } else { test };
        let bytes = plan.ram.saturating_add(test).saturating_add(plan.unseen);
        if bytes / PAGE_SIZE > own.pool().counts().free {
            // Before any of it is zeroed in vain.
            let free = own.pool().counts().free * PAGE_SIZE;
            return Err(RunError::TooLittleMemory {
                wanted: Size(bytes),
                free: Size(free),
            });
        }
        for slot in plan.device_slots() {
            space.map_object(own, slot)?;
        }
        let entry = RAM.offset(plan.image.offset);
        let piece = level(plan.ram_backing);
        match &plan.kernel {
            None => {
                space.add_slot(own, RAM_SLOT, RAM, plan.ram, piece, false)?;
                space.write_guest(own, entry, plan.image.bytes)?;
            }
            Some(kernel) => {
                let (account, at) = (Owner::Vm(plan.vm), plan.image.offset);
                let ram = Object::with_image(own, account, plan.ram, piece, kernel, at);
                let ram = ram.map_err(SlotError::from)?;
                space.map_object(own, whole(RAM_SLOT, RAM, ram))?;
            }
        }
        for slot in &plan.test {
            let (range, bytes) = (slot.range(), slot.pages * PAGE_SIZE);
            let piece = level(plan.test_backing);
            if !plan.lazy {
                space.add_slot(own, slot.id, range.start, bytes, piece, false)?;
                continue;
            }
            let object = Object::anonymous(own, Owner::Vm(plan.vm), bytes, piece);
            let object = object.map_err(SlotError::from)?;
            space.map_object(own, whole(slot.id, range.start, object))?;
        }
        if plan.unseen != 0 {
            let (start, piece) = (plan.unseen_start(), level(plan.ram_backing));
            space.add_slot(own, UNSEEN_SLOT, start, plan.unseen, piece, false)?;
        }
        let tree_at = RAM.offset(plan.ram - tree_bytes);
        space.write_guest(own, tree_at, &tree)?;
        Ok(Start {
            entry: entry.get(),
            context: tree_at.get(),
        })
    }

    fn start<L, S>(&self, vm: &Arc<Vm<AddressSpace<L>>>, service: &Arc<S>, cpus: Range<usize>)
    where
        L: MmuLock + 'static,
        S: Service + Send + Sync + 'static,
    {
        let (vm, service, first) = (vm.clone(), service.clone(), cpus.start);
        let job = move |own: &mut OwnCpu<M>| {
            let vcpu = VcpuId(own.id.0 - first);
            Vcpu::new(vcpu).run(&vm, own.id, &mut own.cpu, &own.memory, &*service);
        };
        self.crew.post(self.machine, cpus, Arc::new(job));
    }

    /// Ends the VM if it hasn't ended, and waits until its CPUs have come back from it. False if they don't.
    fn stop<L>(&self, vm: &Vm<AddressSpace<L>>, cpus: Range<usize>) -> bool {
        let patience = Patience::new(self.machine.now_ns(), PATIENCE_NS, LOOKS);
        vm.stop(StopReason::Requested, |cpu| self.machine.kick(cpu));
        while !self.crew.are_idle(cpus.clone()) {
            if patience.is_over(self.machine.now_ns()) {
                return false;
            }
            self.machine.wait(patience.next_ns());
        }
        true
    }

    fn destroy<L: MmuLock>(
        &self,
        vm: Arc<Vm<AddressSpace<L>>>,
        id: VmId,
        counters: CounterMap,
    ) -> Result<Remains, RunError> {
        let memory = &self.own.memory;
        // No CPU has the job any more, so nobody has the VM.
        let vm = Arc::into_inner(vm).ok_or(RunError::Stuck)?;
        let stage2 = *vm.space.stage2().layout().features();
        vm.space.destroy(memory);
        let (frames, machine_frames) = self.settled(id);
        if !frames.is_zero() {
            return Err(RunError::Leak(frames));
        }
        if self.crew.is_idle() {
            // Where others still run, frames are on their way.
            machine_frames.check()?;
        }
        Ok(Remains {
            stage2,
            counters,
            frames,
            machine_frames,
        })
    }

    /// The VM's frames and the machine's, once the epoch has let go of the VM's and the machine's add up, or after a while: a
    /// CPU that does its housekeeping may have some in hand.
    fn settled(&self, id: VmId) -> (VmCounts, Counts) {
        let (memory, pool) = (&self.own.memory, self.own.memory.pool());
        let patience = Patience::new(self.machine.now_ns(), PATIENCE_NS, LOOKS);
        loop {
            memory.idle();
            let (frames, all) = (pool.counts_of(id), pool.counts());
            let is_settled = frames.is_zero() && (all.check().is_ok() || !self.crew.is_idle());
            if is_settled || patience.is_over(self.machine.now_ns()) {
                return (frames, all);
            }
        }
    }
}
