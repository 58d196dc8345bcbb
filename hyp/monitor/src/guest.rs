//! One guest from its image to the last of its frames: its memory, its start on CPUs 1 and up, its end.
//!
//! CPU 0 does all of this, while the other CPUs run the vCPUs; whoever drives the guest meanwhile gets a [`Watch`].

use crate::counters::Snapshot;
use crate::crew::Crew;
use crate::error::RunError;
use crate::guest_tree::GuestDescription;
use crate::image::GuestImage;
use crate::machine::{Machine, OwnCpu};
use crate::options::{self, Backing, Options, TEST_MEMORY};
use crate::record::CounterMap;
use crate::report::Stage2Use;
use crate::steps::{Step, Steps};
use crate::test_memory::TestSlot;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use memory::frames::{Counts, VmCounts};
use memory::{AddressSpace, CpuCounters, MmuLock, SlotError, SlotId, VmId};
use stage2::{Features, Ipa, IpaRange, Layout, PAGE_SIZE};
use vm::{CpuId, Pause, Service, Start, Starvation, StopReason, Vcpu, VcpuId, Vm, VmConfig};

/// Where a guest's RAM begins.
pub const RAM: Ipa = Ipa::new(options::RAM);
/// The slot of RAM.
pub const RAM_SLOT: SlotId = SlotId(0);
/// The slot that a guest doesn't know of.
pub const UNSEEN_SLOT: SlotId = SlotId(u16::MAX as u32);
/// The address space that a guest gets unless it needs a larger one, in bits: Linux KVM's choice too.
const USUAL_IPA_BITS: u32 = 40;
/// The most bits of an address in descriptors that aren't those of FEAT_LPA2.
const NARROW_BITS: u32 = 48;
/// How long CPUs may take to come back from a guest that was stopped.
const PATIENCE_NS: u64 = 10_000_000_000;
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
    pub own: &'h mut OwnCpu<M>,
}

/// A guest to run.
#[derive(Clone, Debug)]
pub struct GuestPlan<'p> {
    /// Its number among the VMs.
    pub vm: VmId,
    /// Its image.
    pub image: GuestImage<'p>,
    /// Its command line.
    pub bootargs: &'p str,
    /// Its vCPUs.
    pub vcpus: usize,
    /// The size of its RAM, a multiple of the backing's.
    pub ram: u64,
    /// What its RAM is made of.
    pub ram_backing: Backing,
    /// The slots of its test memory, if it has any.
    pub test: Vec<TestSlot>,
    /// What its test memory is made of.
    pub test_backing: Backing,
    /// The size of memory that it isn't told of, a multiple of the RAM's backing: it lies at [`Self::unseen_start`].
    pub unseen: u64,
    /// Whether its tables have hardware dirty state.
    pub hardware_dirty: bool,
    /// The entries of each vCPU's dirty ring, if they have any.
    pub ring_entries: Option<usize>,
    /// Whether its vCPUs measure their longest exits.
    pub exit_times: bool,
    /// The size of its address space, if that was asked for.
    pub ipa_bits: Option<u32>,
    /// How long it may take, in seconds.
    pub timeout: u64,
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

/// A guest that runs, seen from CPU 0.
pub struct Watch<'w, M: Machine, L> {
    /// The machine.
    pub machine: &'static M,
    /// CPU 0's own.
    pub own: &'w OwnCpu<M>,
    /// The guest.
    pub vm: &'w Vm<AddressSpace<L>>,
    counters: &'static [CpuCounters],
    deadline_ns: u64,
    timeout: u64,
    /// The last want of memory that was relieved.
    relieved: Cell<Option<Starvation>>,
}

impl GuestPlan<'_> {
    fn memory(&self) -> Vec<IpaRange> {
        let test = Ipa::new(TEST_MEMORY);
        let mut memory = Vec::from([RAM..RAM.offset(self.ram)]);
        memory.extend((!self.test.is_empty()).then(|| test..self.test_end()));
        memory
    }

    fn test_end(&self) -> Ipa {
        let last = self.test.last().map(|slot| slot.range().end);
        last.unwrap_or(Ipa::new(TEST_MEMORY))
    }

    /// Where the memory begins that it isn't told of: behind all else.
    pub fn unseen_start(&self) -> Ipa {
        let end = self.test_end().max(RAM.offset(self.ram));
        Ipa::new(end.get().next_multiple_of(self.ram_backing.bytes()))
    }

    /// The layout of its tables, of what a machine can have. Larger descriptors' addresses only where its own address space needs
    /// them, dirty state where it is wanted; and contiguous groups not yet, as nothing here makes use of them.
    fn layout(&self, possible: &Features) -> Result<Layout, RunError> {
        let end = self.unseen_start().get() + self.unseen;
        let needed = u64::BITS - end.saturating_sub(1).leading_zeros();
        let usual = USUAL_IPA_BITS.max(needed).min(possible.ipa_bits);
        let ipa_bits = self.ipa_bits.unwrap_or(usual);
        Ok(Layout::new(Features {
            ipa_bits,
            lpa2: possible.lpa2 && ipa_bits > NARROW_BITS,
            hardware_dirty: possible.hardware_dirty && self.hardware_dirty,
            contiguous: false,
            ..*possible
        })?)
    }
}

impl<M: Machine> Host<'_, M> {
    /// Checks that there is a CPU for every vCPU.
    pub fn check_cpus(&self, options: &Options) -> Result<(), RunError> {
        let cpus = self.machine.facts().cpus;
        if options.vcpus < cpus {
            Ok(())
        } else {
            Err(RunError::TooFewCpus {
                vcpus: options.vcpus,
                cpus,
            })
        }
    }

    /// Runs a guest, whose hypercalls `service` answers, under `drive`, which returns when the guest has ended or is to be
    /// stopped. In any case nothing is left of it afterwards.
    pub fn run<L, S, R>(
        &mut self,
        plan: &GuestPlan<'_>,
        service: &Arc<S>,
        drive: impl FnOnce(&Watch<'_, M, L>) -> Result<R, RunError>,
    ) -> (Result<R, RunError>, Option<Remains>)
    where
        L: MmuLock + 'static,
        S: Service + Send + Sync + 'static,
    {
        let before = Snapshot::take(Default::default(), self.counters);
        let vm = match self.create::<L>(plan) {
            Ok(vm) => Arc::new(vm),
            Err(error) => return (Err(error), None),
        };
        let started_ns = self.machine.now_ns();
        let watch = Watch {
            machine: self.machine,
            own: self.own,
            vm: &vm,
            counters: self.counters,
            deadline_ns: started_ns.saturating_add(plan.timeout.saturating_mul(NS_PER_SECOND)),
            timeout: plan.timeout,
            relieved: Cell::new(None),
        };
        let outcome = self
            .start(&vm, service, plan.vcpus)
            .and_then(|()| drive(&watch));
        if !self.stop(&vm) {
            return (Err(RunError::Stuck), None);
        }
        let counters = Snapshot::take(vm.exits(), self.counters).since(&before);
        let remains = self.destroy(vm, plan.vm, counters);
        match remains {
            Ok(remains) => (outcome, Some(remains)),
            Err(error) => (outcome.and(Err(error)), None),
        }
    }

    fn create<L: MmuLock>(&self, plan: &GuestPlan<'_>) -> Result<Vm<AddressSpace<L>>, RunError> {
        let layout = plan.layout(&self.machine.facts().stage2)?;
        log::info!("{}: {}", plan.vm, Stage2Use(layout.features()));
        let mut space = AddressSpace::<L>::new(&self.own.memory, plan.vm, layout)?;
        let rings = plan.ring_entries;
        if let Some(Err(error)) = rings.map(|entries| space.make_rings(plan.vcpus, entries)) {
            space.destroy(&self.own.memory);
            return Err(error.into());
        }
        let start = match self.fill(&space, plan) {
            Ok(start) => start,
            Err(error) => {
                space.destroy(&self.own.memory);
                return Err(error);
            }
        };
        let config = VmConfig {
            vcpus: plan.vcpus,
            ipa_bits: layout.ipa_bits(),
            counter_offset: self.machine.counter(),
            times_faults: plan.exit_times,
        };
        let vm = Vm::new(config, space)?;
        // The VM is new, so its first vCPU is off.
        let _ = vm.turn_on(VcpuId(0), start);
        Ok(vm)
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
            bootargs: plan.bootargs,
        }
        .to_tree()?;
        let tree_bytes = (tree.len() as u64).next_multiple_of(PAGE_SIZE);
        plan.image.check_fits(plan.ram, tree_bytes)?;

        let own = &self.own.memory;
        let test = plan.test_end().get() - TEST_MEMORY;
        let bytes = plan.ram.saturating_add(test).saturating_add(plan.unseen);
        if bytes / PAGE_SIZE > own.pool().counts().free {
            // Before any of it is zeroed in vain.
            return Err(RunError::Slot(SlotError::OutOfMemory { bytes }));
        }
        space.add_slot(
            own,
            RAM_SLOT,
            RAM,
            plan.ram,
            plan.ram_backing.level(),
            false,
        )?;
        for slot in &plan.test {
            let (range, bytes) = (slot.range(), slot.pages * PAGE_SIZE);
            let piece = plan.test_backing.level();
            space.add_slot(own, slot.id, range.start, bytes, piece, false)?;
        }
        if plan.unseen != 0 {
            let (start, piece) = (plan.unseen_start(), plan.ram_backing.level());
            space.add_slot(own, UNSEEN_SLOT, start, plan.unseen, piece, false)?;
        }
        let entry = RAM.offset(plan.image.offset);
        let tree_at = RAM.offset(plan.ram - tree_bytes);
        space.write_guest(own, entry, plan.image.bytes)?;
        space.write_guest(own, tree_at, &tree)?;
        Ok(Start {
            entry: entry.get(),
            context: tree_at.get(),
        })
    }

    fn start<L, S>(
        &self,
        vm: &Arc<Vm<AddressSpace<L>>>,
        service: &Arc<S>,
        vcpus: usize,
    ) -> Result<(), RunError>
    where
        L: MmuLock + 'static,
        S: Service + Send + Sync + 'static,
    {
        let (vm, service) = (vm.clone(), service.clone());
        let job = move |own: &mut OwnCpu<M>| {
            Vcpu::new(VcpuId(own.id.0 - 1)).run(&vm, own.id, &mut own.cpu, &own.memory, &*service);
        };
        if self.crew.post(self.machine, vcpus, Arc::new(job)) {
            Ok(())
        } else {
            Err(RunError::Stuck)
        }
    }

    /// Ends the VM if it hasn't ended, and waits until all CPUs have come back from it. False if they don't.
    fn stop<L>(&self, vm: &Vm<AddressSpace<L>>) -> bool {
        let deadline = self.machine.now_ns().saturating_add(PATIENCE_NS);
        vm.stop(StopReason::Requested, |cpu| self.machine.kick(cpu));
        while !self.crew.is_idle() {
            if self.machine.now_ns() >= deadline {
                return false;
            }
            self.machine.wait(deadline);
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
        let frames = self.settled(id);
        let machine_frames = memory.pool().counts();
        if !frames.is_zero() {
            return Err(RunError::Leak(frames));
        }
        machine_frames.check()?;
        Ok(Remains {
            stage2,
            counters,
            frames,
            machine_frames,
        })
    }

    /// The VM's frames once the epoch has let go of them, or after a while.
    fn settled(&self, id: VmId) -> VmCounts {
        let deadline = self.machine.now_ns().saturating_add(PATIENCE_NS);
        loop {
            self.own.memory.idle();
            let frames = self.own.memory.pool().counts_of(id);
            if frames.is_zero() || self.machine.now_ns() >= deadline {
                return frames;
            }
        }
    }
}

impl<M: Machine, L: MmuLock> Watch<'_, M, L> {
    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(self.vm.exits(), self.counters)
    }

    /// Posts a step for all vCPUs and wakes them.
    pub fn post(&self, steps: &Steps, step: Step) {
        steps.post(step);
        for vcpu in self.vm.vcpus() {
            if let Some(cpu) = self.vm.cpu_of(vcpu) {
                self.machine.kick(cpu);
            }
        }
    }

    /// Waits until all vCPUs are done with their step; calls `meanwhile` at first and whenever this CPU is kicked.
    ///
    /// # Errors
    /// As for [`Self::wait_until`].
    pub fn wait_for_step(
        &self,
        steps: &Steps,
        mut meanwhile: impl FnMut(),
    ) -> Result<(), RunError> {
        let done = || {
            meanwhile();
            steps.all_arrived()
        };
        self.wait_until(done).map_err(|error| match error {
            RunError::TimedOut { seconds } => RunError::StepTimedOut {
                seconds,
                arrived: steps.arrived(),
                vcpus: steps.seats(),
            },
            other => other,
        })
    }

    /// Waits until `done`, which becomes true before this CPU is kicked.
    ///
    /// # Errors
    /// The guest has ended before, or its time is up.
    pub fn wait_until(&self, mut done: impl FnMut() -> bool) -> Result<(), RunError> {
        loop {
            if done() {
                return Ok(());
            }
            self.check()?;
            self.machine.wait(self.deadline_ns);
        }
    }

    /// Pauses the guest, and returns when all its vCPUs are out of it.
    ///
    /// # Errors
    /// As for [`Self::check`].
    pub fn pause(
        &self,
    ) -> Result<Pause<'_, AddressSpace<L>, impl FnMut(CpuId) + use<'_, M, L>>, RunError> {
        let pause = self.vm.pause(|cpu| self.machine.kick(cpu));
        while !pause.is_complete() {
            self.check()?;
            self.machine.wait(self.deadline_ns);
        }
        Ok(pause)
    }

    /// Checks that the guest goes on.
    ///
    /// # Errors
    /// It has ended, it is paused because no memory is left, or its time is up.
    pub fn check(&self) -> Result<(), RunError> {
        if let Some(starvation) = self.vm.starvation() {
            self.relieve(starvation)?;
        }
        if let Some(reason) = self.vm.stop_reason() {
            return Err(RunError::Ended(reason));
        }
        if self.machine.now_ns() >= self.deadline_ns {
            return Err(RunError::TimedOut {
                seconds: self.timeout,
            });
        }
        Ok(())
    }

    /// Lets a guest go on that was paused for want of memory, if there is some by now.
    ///
    /// # Errors
    /// There is none, or what there is wasn't enough for the same access before.
    fn relieve(&self, starvation: Starvation) -> Result<(), RunError> {
        let vm = self.vm.space.vm();
        self.machine
            .write_line(format_args!("{vm} is paused: {starvation}"));
        self.own.memory.idle();
        let is_first = self.relieved.replace(Some(starvation)) != Some(starvation);
        if !is_first || self.own.memory.pool().counts().free == 0 {
            return Err(RunError::Ended(starvation.into()));
        }
        self.machine
            .write_line(format_args!("{vm} goes on, as memory was freed"));
        self.vm.feed(|cpu| self.machine.kick(cpu));
        Ok(())
    }

    /// Waits until the guest has ended by itself.
    ///
    /// # Errors
    /// Its time is up.
    pub fn wait_for_end(&self) -> Result<StopReason, RunError> {
        match self.wait_until(|| false) {
            Err(RunError::Ended(reason)) => Ok(reason),
            Err(error) => Err(error),
            Ok(()) => Ok(StopReason::Requested),
        }
    }
}
