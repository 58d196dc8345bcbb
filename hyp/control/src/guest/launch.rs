//! Creates and starts guests: each gets its memory, and idle CPUs.

use crate::board::{BoardDescription, GuestBoard, Places, STOLEN_TIMES};
use crate::error::RunError;
use crate::guest::device_tree::GuestDescription;
use crate::guest::ending::{Ending, Limit, ReservedCpus};
use crate::guest::host::Host;
use crate::guest::plan::{
    FLASH_SLOT, GuestPlan, RAM, RAM_SLOT, STOLEN_TIME_SLOT, UNSEEN_SLOT, level, whole,
};
use crate::guest::running::RunningGuest;
use crate::guest::stage2_use::Stage2Use;
use crate::machine::{DeviceInterrupt, Machine, OwnCpu};
use crate::options::TEST_MEMORY;
use crate::schedule;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use memory::{Access, AddressSpace, MmuLock, NotPopulated, Object, Owner, SlotError};
use records::kernel::FLASH_BYTES;
use records::size::Size;
use stage2::{Ipa, IpaRange, Layout, Level, PAGE_SIZE};
use vm::{CpuId, ForkParts, Pause, Seed, Service, Start, VcpuId, Vm, VmConfig};

/// Where flash memory begins.
const FLASH: Ipa = Ipa::new(0);
/// The kernel's own among the seeds that follow from a VM's; those of its vCPUs have their numbers.
const KERNEL_SEED: u64 = u64::MAX;

/// What a guest finds in its RAM besides its image.
struct Files<'p> {
    tree: Vec<u8>,
    tree_at: Ipa,
    ramdisk: Option<(Ipa, &'p [u8])>,
}

impl<'p> Files<'p> {
    /// Those of a planned guest, which fit into its RAM.
    fn of(plan: &GuestPlan<'p>, seed: Option<Seed>) -> Result<Self, RunError> {
        let affinities: Vec<u64> = (0..plan.vcpus)
            .map(|vcpu| VcpuId(vcpu).affinity())
            .collect();
        let memory = plan.memory();
        if let Some(board) = &plan.board {
            let places = Places::of(&plan.image, board.firmware, board.ramdisk, plan.ram)?;
            let tree = BoardDescription {
                gic: board.version,
                affinities: &affinities,
                memory: &memory,
                ramdisk: places.ramdisk.clone(),
                devices: &board.devices,
                has_clock: board.has_clock,
                has_pmu: board.has_pmu,
                bootargs: plan.bootargs,
                seed: seed.map(|seed| seed.child(KERNEL_SEED)),
            }
            .to_tree()?;
            places.check_tree(&tree)?;
            return Ok(Self {
                tree,
                tree_at: places.tree,
                ramdisk: places.ramdisk.map(|range| range.start).zip(board.ramdisk),
            });
        }
        let tree = GuestDescription {
            memory: &memory,
            affinities: &affinities,
            devices: &plan.devices,
            bootargs: plan.bootargs,
        }
        .to_tree()?;
        let tree_bytes = (tree.len() as u64).next_multiple_of(PAGE_SIZE);
        plan.image.check_fits(plan.ram, tree_bytes)?;
        Ok(Self {
            tree,
            tree_at: RAM.offset(plan.ram - tree_bytes),
            ramdisk: None,
        })
    }
}

/// The files that a guest with a board shares with others, with the offsets in its RAM at which they begin: only those that begin
/// at pages.
struct SharedImages<'p> {
    kernel: Option<(&'p Object, u64)>,
    ramdisk: Option<(&'p Object, u64)>,
}

impl<'p> SharedImages<'p> {
    fn of(plan: &'p GuestPlan<'_>, files: &Files<'_>) -> Self {
        let begins = |(_, at): &(&Object, u64)| at.is_multiple_of(PAGE_SIZE);
        let kernel = plan.kernel.as_deref();
        let ramdisk_at = files.ramdisk.map(|(at, _)| at.get() - RAM.get());
        Self {
            kernel: kernel.map(|one| (one, plan.image.offset)).filter(begins),
            ramdisk: plan.ramdisk.as_deref().zip(ramdisk_at).filter(begins),
        }
    }
}

/// Maps a range of a VM's memory for writes, unless the VM is stopped meanwhile.
fn populate<M: Machine, L: MmuLock>(own: &OwnCpu<M>, vm: &Vm<AddressSpace<L>>, range: IpaRange) {
    /// Before it is looked whether the VM is stopped.
    const AT_ONCE: u64 = 16 << 20;
    let mut at = range.start;
    while at < range.end && vm.stop_reason().is_none() {
        let end = range.end.min(at.offset(AT_ONCE));
        let populated = vm.space.prefault(&own.memory, 0, at..end, Access::Write);
        at = match populated {
            Ok(()) => end,
            Err(error) if error.reason == NotPopulated::Busy => error.done_to,
            Err(error) => {
                // Its guest gets the rest at first touch, or waits for it.
                log::warn!("prefault: {error}");
                return;
            }
        };
    }
}

/// A new VM with its memory.
struct NewVm<L> {
    vm: Vm<AddressSpace<L>>,
    filled_ns: u64,
}

impl<'h, M: Machine> Host<'h, M> {
    /// Starts a guest whose hypercalls `service` handles.
    ///
    /// # Errors
    /// It can't be made, or there are too few idle CPUs. Nothing is left of it then.
    pub fn launch<L, S>(
        &self,
        plan: &GuestPlan<'_>,
        service: &Arc<S>,
    ) -> Result<RunningGuest<'h, M, L>, RunError>
    where
        L: MmuLock + 'static,
        S: Service + Send + Sync + 'static,
    {
        self.launch_with(plan, service, || self.create(plan))
    }

    /// Starts a fork of a paused guest. The fork starts from the parent's vCPU state and shares its memory copy-on-write. Its
    /// plan gives its own number, limit, timeout, and board, if the parent has one (`GuestBoard::fork`); the memory in the plan
    /// must equal the parent's. The pause ends when the fork is made.
    ///
    /// # Errors
    /// As for [`Self::launch`].
    pub fn launch_fork<L, S, K>(
        &self,
        paused: Pause<'_, AddressSpace<L>, K>,
        plan: &GuestPlan<'_>,
        service: &Arc<S>,
    ) -> Result<RunningGuest<'h, M, L>, RunError>
    where
        L: MmuLock + 'static,
        S: Service + Send + Sync + 'static,
        K: FnMut(CpuId),
    {
        self.launch_with(plan, service, || self.fork(paused, plan))
    }

    /// Starts the guest that `make` returns.
    fn launch_with<L, S>(
        &self,
        plan: &GuestPlan<'_>,
        service: &Arc<S>,
        make: impl FnOnce() -> Result<NewVm<L>, RunError>,
    ) -> Result<RunningGuest<'h, M, L>, RunError>
    where
        L: MmuLock + 'static,
        S: Service + Send + Sync + 'static,
    {
        let all = match &plan.cpus {
            Some(cpus) => cpus.clone(),
            None => {
                let found = (self.cpu_pool).find_idle(plan.vcpus + plan.helpers);
                found.ok_or(RunError::Stuck)?
            }
        };
        let cpus = all.start..all.start + plan.vcpus;
        let limit = Limit::set(self, plan);
        let NewVm { vm, filled_ns } = make()?;
        let vm = Arc::new(vm);
        let helpers = ReservedCpus::reserve(self, cpus.end..all.end);
        let ending = Ending::new(*self, plan, vm.clone(), cpus.clone(), helpers, limit);
        let guest = RunningGuest::new(*self, plan, vm, cpus.clone(), filled_ns, ending);
        let interrupts = plan.board.iter().flat_map(GuestBoard::interrupts);
        let interrupts: Vec<DeviceInterrupt> = interrupts.collect();
        for interrupt in &interrupts {
            self.machine.forward(interrupt, CpuId(cpus.start));
        }
        let ahead = plan.prefault.then(|| RAM..RAM.offset(plan.ram));
        self.start(&guest.vm, service, cpus, interrupts, ahead);
        Ok(guest)
    }

    /// A VM with the planned memory, whose first vCPU is about to start.
    fn create<L: MmuLock>(&self, plan: &GuestPlan<'_>) -> Result<NewVm<L>, RunError> {
        let offered = plan.offered(self.machine.facts())?;
        let layout = plan.layout(&self.machine.facts().stage2)?;
        let own = &self.own.memory;
        let space = self.space::<L>(plan, layout)?;
        let before_ns = self.machine.now_ns();
        let seed = self.machine.seed();
        let start = match self.fill(&space, plan, seed) {
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
        let devices = plan.board.as_ref().map(GuestBoard::devices);
        let mut vm = Vm::with_devices(config, devices, space).map_err(|(error, space)| {
            space.destroy(own);
            error
        })?;
        if let Err(error) = vm.offer_features(offered) {
            vm.space.destroy(own);
            return Err(error.into());
        }
        if let Some(seed) = seed {
            vm.set_seed(seed);
        }
        if plan.board.is_some() {
            vm.tell_stolen_time(STOLEN_TIMES);
        }
        // The VM is new, so its first vCPU is off.
        let _ = vm.turn_on(VcpuId(0), start);
        Ok(NewVm { vm, filled_ns })
    }

    /// A VM with the memory and the vCPUs of a paused one.
    fn fork<L: MmuLock, K: FnMut(CpuId)>(
        &self,
        paused: Pause<'_, AddressSpace<L>, K>,
        plan: &GuestPlan<'_>,
    ) -> Result<NewVm<L>, RunError> {
        let before_ns = self.machine.now_ns();
        let vm = self.fork_of(&paused, plan);
        // Whether there is a fork or not, time goes on for the parent.
        paused.resume(self.machine.moment());
        let filled_ns = self.machine.now_ns() - before_ns;
        Ok(NewVm { vm: vm?, filled_ns })
    }

    fn fork_of<L: MmuLock, K: FnMut(CpuId)>(
        &self,
        paused: &Pause<'_, AddressSpace<L>, K>,
        plan: &GuestPlan<'_>,
    ) -> Result<Vm<AddressSpace<L>>, RunError> {
        let parent = &paused.vm().space;
        let own = &self.own.memory;
        let space = self.space::<L>(plan, *parent.stage2().layout())?;
        if let Err(error) = parent.fork(own, &space) {
            space.destroy(own);
            return Err(error.into());
        }
        let devices = plan.board.as_ref().map(GuestBoard::devices);
        let vm = paused.fork(ForkParts { space, devices }, self.machine.moment());
        vm.map_err(|(error, space)| {
            space.destroy(own);
            error.into()
        })
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
        seed: Option<Seed>,
    ) -> Result<Start, RunError> {
        let files = Files::of(plan, seed)?;

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
        let shared = SharedImages::of(plan, &files);
        match &plan.kernel {
            _ if plan.board.is_some() => {
                // It gets each piece when it first touches it, as it may never use them all.
                let account = Owner::Vm(plan.vm);
                let ram = match [shared.kernel, shared.ramdisk] {
                    [Some(kernel), Some(ramdisk)] => {
                        Object::with_images(own, account, plan.ram, piece, &[kernel, ramdisk])
                    }
                    [Some(one), None] | [None, Some(one)] => {
                        Object::with_images(own, account, plan.ram, piece, &[one])
                    }
                    [None, None] => Object::anonymous(own, account, plan.ram, piece),
                };
                let ram = ram.map_err(SlotError::from)?;
                space.map_object(own, whole(RAM_SLOT, RAM, ram))?;
                if shared.kernel.is_none() {
                    space.write_guest(own, entry, plan.image.bytes)?;
                }
            }
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
        if plan.board.is_some() {
            let pages = STOLEN_TIMES.pages(plan.vcpus);
            let bytes = pages.end.get() - pages.start.get();
            space.add_slot(own, STOLEN_TIME_SLOT, pages.start, bytes, Level::L3, true)?;
        }
        let firmware = plan.board.as_ref().and_then(|board| board.firmware);
        if let Some(firmware) = firmware {
            // Only what firmware touches of it takes memory.
            let flash = Object::anonymous(own, Owner::Vm(plan.vm), FLASH_BYTES, Level::L3);
            let flash = flash.map_err(SlotError::from)?;
            space.map_object(own, whole(FLASH_SLOT, FLASH, flash))?;
            space.write_guest(own, FLASH, firmware)?;
        }
        if let Some((at, bytes)) = files.ramdisk.filter(|_| shared.ramdisk.is_none()) {
            space.write_guest(own, at, bytes)?;
        }
        space.write_guest(own, files.tree_at, &files.tree)?;
        Ok(Start {
            entry: firmware.map_or(entry, |_| FLASH).get(),
            context: files.tree_at.get(),
        })
    }

    /// Starts the vCPUs. The first one's CPU takes the interrupts of devices, and before it starts the guest it maps what is to be
    /// mapped `ahead`: so CPU 0 has time for others.
    fn start<L, S>(
        &self,
        vm: &Arc<Vm<AddressSpace<L>>>,
        service: &Arc<S>,
        cpus: Range<usize>,
        interrupts: Vec<DeviceInterrupt>,
        ahead: Option<IpaRange>,
    ) where
        L: MmuLock + 'static,
        S: Service + Send + Sync + 'static,
    {
        let (vm, service, first) = (vm.clone(), service.clone(), cpus.start);
        let machine = self.machine;
        let job = move |own: &mut OwnCpu<M>| {
            let vcpu = VcpuId(own.id.0 - first);
            let interrupts = if vcpu.0 == 0 { &interrupts[..] } else { &[] };
            if let Some(range) = ahead.clone().filter(|_| vcpu.0 == 0) {
                populate(own, &vm, range);
            }
            schedule::run_vcpu(machine, own, &vm, vcpu, &*service, interrupts);
        };
        self.cpu_pool.post(self.machine, cpus, Arc::new(job));
    }
}
