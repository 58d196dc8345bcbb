//! Ends a guest: stops its vCPUs, frees its memory, and keeps its counters.

use crate::cpu_pool::CpuPool;
use crate::error::RunError;
use crate::guest::counters::Snapshot;
use crate::guest::host::Host;
use crate::guest::patience::Patience;
use crate::guest::plan::GuestPlan;
use crate::machine::{Device, Machine};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use memory::frames::{Counts, MAX_VMS, VmCounts};
use memory::{AddressSpace, CpuMemory, MmuLock, VmId, Watermarks};
use records::record::CounterMap;
use stage2::{Features, PAGE_SIZE};
use vm::{StopReason, Vm};

/// How long CPUs may take to leave a stopped guest, and how often CPU 0 checks whether they have.
const PATIENCE_NS: u64 = 30_000_000_000;
const LOOKS: u32 = 60;

/// The final state of a guest that has ended.
#[derive(Debug)]
pub struct FinalState {
    /// The architecture features that its tables used.
    pub stage2: Features,
    /// All counters.
    pub counters: CounterMap,
    /// The VM's frames after it was destroyed.
    pub frames: VmCounts,
    /// The machine's frames after it was destroyed.
    pub machine_frames: Counts,
}

/// A VM's limit while it lasts: with a limit, cold pages are compressed.
pub(super) struct Limit<'l, M: Machine> {
    memory: &'l CpuMemory<M::Hardware>,
    vm: VmId,
}

impl<'l, M: Machine> Limit<'l, M> {
    /// The limit of this guest, if it has one.
    pub(super) fn set(host: &Host<'l, M>, plan: &GuestPlan<'_>) -> Option<Self> {
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
        let pool = self.memory.pool();
        pool.set_limit(self.vm, None);
        let mut vms = (0..MAX_VMS).filter_map(VmId::new);
        // Others that have a limit go on needing reclaim.
        if vms.all(|vm| pool.limit(vm).is_none()) {
            self.memory.system().set_watermarks(None);
        }
    }
}

/// CPUs that nobody else gets, until this is dropped: a guest's helpers, or those that run it from one start to the next.
pub(crate) struct ReservedCpus<M: Machine> {
    cpu_pool: &'static CpuPool<M>,
    cpus: Range<usize>,
}

impl<M: Machine> ReservedCpus<M> {
    /// Which they are.
    pub(crate) fn cpus(&self) -> Range<usize> {
        self.cpus.clone()
    }

    /// Reserves these idle CPUs.
    pub(crate) fn reserve(host: &Host<'_, M>, cpus: Range<usize>) -> Self {
        let cpu_pool = host.cpu_pool;
        cpu_pool.reserve(cpus.clone(), true);
        Self { cpu_pool, cpus }
    }
}

impl<M: Machine> Drop for ReservedCpus<M> {
    fn drop(&mut self) {
        self.cpu_pool.reserve(self.cpus.clone(), false);
    }
}

/// Ends a guest, at the latest when this is dropped.
pub(super) struct Ending<'h, M: Machine, L: MmuLock> {
    host: Host<'h, M>,
    id: VmId,
    /// `None` once it has ended.
    vm: Option<Arc<Vm<AddressSpace<L>>>>,
    /// The CPUs that run its vCPUs.
    cpus: Range<usize>,
    helpers: ReservedCpus<M>,
    /// The machine's devices that it has.
    devices: Vec<Device>,
    before: Snapshot,
    /// Goes after the guest.
    _limit: Option<Limit<'h, M>>,
}

impl<'h, M: Machine, L: MmuLock> Ending<'h, M, L> {
    /// For a guest that is about to start.
    pub(super) fn new(
        host: Host<'h, M>,
        plan: &GuestPlan<'_>,
        vm: Arc<Vm<AddressSpace<L>>>,
        cpus: Range<usize>,
        helpers: ReservedCpus<M>,
        limit: Option<Limit<'h, M>>,
    ) -> Self {
        let before = Snapshot::of_guest(&host, &vm, [&cpus, &helpers.cpus]);
        Self {
            host,
            id: plan.vm,
            vm: Some(vm),
            cpus,
            helpers,
            devices: plan.assigned().cloned().collect(),
            before,
            _limit: limit,
        }
    }

    /// The CPUs that are reserved as its helpers.
    pub(super) fn helpers(&self) -> Range<usize> {
        self.helpers.cpus()
    }

    /// Stops the guest if it hasn't ended by itself, and frees its memory. The caller holds no reference to its VM any more.
    ///
    /// # Errors
    /// Its CPUs don't come back, or frames are missing.
    pub(super) fn end(&mut self) -> Result<FinalState, RunError> {
        let vm = self.vm.take().ok_or(RunError::Stuck)?;
        self.stop(&vm)?;
        self.devices.iter().for_each(|device| {
            for interrupt in device.interrupts.iter().flatten() {
                self.host.machine.mask(interrupt);
            }
        });
        self.devices.clear();
        let cpus = [&self.cpus, &self.helpers.cpus];
        let counters = Snapshot::of_guest(&self.host, &vm, cpus).since(&self.before);
        self.destroy(vm, counters)
    }

    /// Ends the VM if it hasn't ended, and waits until its CPUs have left it.
    fn stop(&self, vm: &Vm<AddressSpace<L>>) -> Result<(), RunError> {
        let Host {
            machine, cpu_pool, ..
        } = self.host;
        let patience = Patience::new(machine.now_ns(), PATIENCE_NS, LOOKS);
        vm.stop(StopReason::Requested, |cpu| machine.kick(cpu));
        while !cpu_pool.are_idle(self.cpus.clone()) {
            if patience.is_over(machine.now_ns()) {
                return Err(RunError::Stuck);
            }
            machine.wait(patience.next_ns());
        }
        Ok(())
    }

    fn destroy(
        &self,
        vm: Arc<Vm<AddressSpace<L>>>,
        counters: CounterMap,
    ) -> Result<FinalState, RunError> {
        // No CPU has the job any more, so nobody has the VM.
        let vm = Arc::into_inner(vm).ok_or(RunError::Stuck)?;
        let stage2 = *vm.space.stage2().layout().features();
        vm.space.destroy(&self.host.own.memory);
        let (frames, machine_frames, is_alone) = self.settled();
        if !frames.is_zero() {
            return Err(RunError::Leak(frames));
        }
        if is_alone {
            // Where others still run, frames are on their way.
            machine_frames.check()?;
        }
        Ok(FinalState {
            stage2,
            counters,
            frames,
            machine_frames,
        })
    }

    /// The frames of the VM and of the machine, once the epoch has released the VM's and the machine's add up; and whether no
    /// other guest ran when they were counted. Gives up after a while: a CPU in its housekeeping may hold some frames.
    fn settled(&self) -> (VmCounts, Counts, bool) {
        let Host {
            machine,
            cpu_pool,
            own,
            ..
        } = self.host;
        let (memory, pool) = (&own.memory, own.memory.pool());
        let patience = Patience::new(machine.now_ns(), PATIENCE_NS, LOOKS);
        loop {
            memory.idle();
            // Before the count: a guest that ends during it may have frames on their way.
            let is_alone = cpu_pool.is_idle();
            let (frames, all) = (pool.counts_of(self.id), pool.counts());
            let is_settled = frames.is_zero() && (all.check().is_ok() || !is_alone);
            if is_settled || patience.is_over(machine.now_ns()) {
                return (frames, all, is_alone);
            }
        }
    }
}

impl<M: Machine, L: MmuLock> Drop for Ending<'_, M, L> {
    fn drop(&mut self) {
        if self.vm.is_some()
            && let Err(error) = self.end()
        {
            log::error!("{}: {error}", self.id);
        }
    }
}
