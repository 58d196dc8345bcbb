//! VMs on real memory, step by step, on CPUs whose TLBs the checker knows: every access of a guest goes through whatever its CPU
//! may have, and the checker names the rule that is broken.
//!
//! Where a CPU has several ways to translate an address they have to agree, and an access takes the one that is furthest
//! from what the tables say. What the checker finds is kept until [`Watched::check`], as a panic in the middle of the engine's
//! work would only hide it behind others.

use crate::cpu::{Cpu, Registers, run_on};
use crate::guest::Taken;
use crate::locked;
use crate::system::{ROOT, Shared, install, register, unregister};
use checker::{Kind, Promise, Stamp, Translation};
use memory::frames::{FramePool, FrameSize, MAX_VMS, Purpose, read_bytes, write_bytes};
use memory::{
    Access, AddressSpace, BackingPolicy, Caches, CpuMemory, Fault, FaultKind, FaultOutcome,
    MemorySystem, NotPopulated, Object, Owner, Parallel, SlotConfig, SlotId, VmId,
};
use stage2::{
    Features, Instructions, Ipa, IpaRange, Layout, Level, Maintenance, OutOfFrames, PAGE_SIZE, Pa,
    RegimeRegisters, TlbPolicy,
};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// A VM's memory.
pub type Space = AddressSpace<Parallel>;
/// What a page holds.
pub type Contents = [u8; PAGE_SIZE as usize];

/// Faults that an access may take before something must be wrong.
const PATIENCE: usize = 64;

impl Caches for Cpu<'_> {
    fn clean_for_guest(&self, _: Pa, _: u64) {}
}

/// One CPU of it.
pub type WatchedCpu = CpuMemory<Maintenance<Cpu<'static>>>;

/// What the CPUs of a machine have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Equipment {
    /// What tables may make use of.
    pub features: Features,
    /// Which TLB instructions there are.
    pub policy: TlbPolicy,
}

/// The machine.
#[derive(Debug)]
pub struct Watched {
    equipment: Equipment,
    shared: Arc<Shared>,
    memory: Vec<Range<Pa>>,
    /// Its frames.
    pub pool: &'static FramePool,
    cpus: Vec<WatchedCpu>,
    /// Frames that were taken so that there are few, and a VM that has others for the same reason.
    hog: RefCell<Vec<Pa>>,
    greedy: RefCell<Option<Space>>,
}

impl Watched {
    /// With so many CPUs and this memory, which is nobody else's as long as the machine is used, and stays mapped for ever.
    pub fn new(cpus: usize, memory: &[Range<Pa>], equipment: Equipment) -> Self {
        install();
        let shared = Arc::new(Shared::new());
        for range in memory {
            register(range.start.get(), range.end.get(), &shared);
        }
        let pool: &FramePool = Box::leak(Box::new(FramePool::new()));
        for range in memory {
            // SAFETY: as the caller promised.
            unsafe { pool.add(range.clone()) };
        }
        let bits = if equipment.features.wide_vmids { 16 } else { 8 };
        let system = MemorySystem::new(pool, cpus, bits).expect("few CPUs");
        let system: &MemorySystem = Box::leak(Box::new(system));
        // For ever, as the CPUs are.
        let leaked: &'static Arc<Shared> = Box::leak(Box::new(shared.clone()));
        let registers: &[Registers] = Vec::leak((0..cpus).map(|_| Registers::default()).collect());
        let cpus = (0..cpus).map(|number| {
            let cpu = Cpu {
                checker: &leaked.checker,
                registers: &registers[number],
                number,
            };
            RegimeRegisters::NONE.load(&cpu);
            let hardware = Maintenance::new(cpu, equipment.policy);
            run_on(number, || {
                CpuMemory::new(system, number, hardware, Box::leak(Box::default()))
            })
        });
        Self {
            equipment,
            cpus: cpus.collect(),
            shared,
            memory: memory.to_vec(),
            pool,
            hog: RefCell::default(),
            greedy: RefCell::default(),
        }
    }

    /// Runs `work` on a CPU.
    pub fn on<R>(&self, cpu: usize, work: impl FnOnce(&WatchedCpu) -> R) -> R {
        run_on(cpu, || work(&self.cpus[cpu]))
    }

    /// A VM without memory, made on CPU 0.
    ///
    /// # Errors
    /// There is no frame for its root.
    pub fn space(&self, vm: usize, backing: BackingPolicy) -> Result<Space, OutOfFrames> {
        let layout = Layout::new(self.equipment.features).unwrap();
        let vm = VmId::new(vm).unwrap();
        self.on(0, |cpu| Space::with_backing(cpu, vm, layout, backing))
    }

    /// Memory of a VM, in pieces of the span of `piece`.
    pub fn anonymous(&self, vm: usize, pages: u64, piece: Level) -> Arc<Object> {
        let account = Owner::Vm(VmId::new(vm).unwrap());
        let bytes = pages * PAGE_SIZE;
        self.on(0, |cpu| {
            Object::anonymous(cpu, account, bytes, piece).unwrap()
        })
    }

    /// Has a CPU enter a VM's guest, whose registers it loads if it hasn't got them.
    pub fn enter(&self, cpu: usize, space: &Space) {
        let (vttbr, vtcr) = self.on(cpu, |memory| space.activate(memory));
        let vttbr = vttbr.bits();
        self.load(cpu, RegimeRegisters { vttbr, vtcr });
        self.shared.note(self.shared.checker.enter(cpu));
    }

    /// Has a CPU run nothing, as the world switch does: VTCR_EL2 stays.
    pub fn leave(&self, cpu: usize) {
        let instructions = self.cpus[cpu].hardware().instructions();
        let vtcr = instructions.vtcr();
        self.load(cpu, RegimeRegisters { vttbr: 0, vtcr });
    }

    fn load(&self, cpu: usize, registers: RegimeRegisters) {
        let instructions = self.cpus[cpu].hardware().instructions();
        if RegimeRegisters::of(instructions) != registers {
            registers.load(instructions);
        }
    }

    fn root(space: &Space) -> u64 {
        space.stage2().vttbr().bits() & ROOT
    }

    /// All ways in which a CPU may translate an address, those first that are furthest from what the tables say.
    pub fn ways(&self, cpu: usize, space: &Space, ipa: Ipa) -> Vec<Translation> {
        let root = Self::root(space);
        let mut ways = (self.shared.checker).translations(root, cpu, ipa.get());
        ways.sort_by_key(|way| (way.kind == Kind::Visible, way.entry.is_some()));
        ways
    }

    /// What a guest's access on a CPU leads to, without a fault being served; `None` if it faults.
    fn try_access(&self, cpu: usize, space: &Space, ipa: Ipa, access: Access) -> Option<Pa> {
        self.enter(cpu, space);
        for _ in 0..PATIENCE {
            let mut looks_again = false;
            for way in self.ways(cpu, space, ipa) {
                match self.shared.take(&self.equipment.features, way, access) {
                    Taken::Through(output) => return Some(Pa::new(output).align_down(PAGE_SIZE)),
                    Taken::Changed => looks_again |= way.entry.is_some(),
                    Taken::Refused => {}
                }
            }
            if !looks_again {
                return None;
            }
        }
        panic!("hardware never gets through to {ipa}");
    }

    /// One access of a guest on a CPU, with as many faults as that takes; or how the fault ended that it can't get past.
    ///
    /// # Errors
    /// The outcome of the fault that ends it.
    pub fn access(
        &self,
        cpu: usize,
        space: &Space,
        ipa: Ipa,
        access: Access,
    ) -> Result<Pa, FaultOutcome> {
        for _ in 0..PATIENCE {
            if let Some(pa) = self.try_access(cpu, space, ipa, access) {
                return Ok(pa);
            }
            let outcome = self.on(cpu, |memory| {
                let kind = match space.lookup(memory, ipa) {
                    None => FaultKind::Translation,
                    Some((leaf, _)) if !leaf.accessed() => FaultKind::AccessFlag,
                    Some(_) => FaultKind::Permission,
                };
                let fault = Fault {
                    vcpu: cpu,
                    ipa,
                    va: None,
                    access,
                    kind,
                };
                let outcome = space.fault(memory, &fault);
                if memory.needs_upkeep() {
                    memory.upkeep();
                }
                outcome
            });
            match outcome {
                FaultOutcome::Resolved | FaultOutcome::RingLow | FaultOutcome::Retry => {}
                other => return Err(other),
            }
        }
        panic!("the guest on CPU {cpu} never gets through to {ipa} with {access:?}");
    }

    /// A guest writes all of a page.
    ///
    /// # Errors
    /// As for [`Self::access`].
    pub fn write(
        &self,
        cpu: usize,
        space: &Space,
        ipa: Ipa,
        contents: &Contents,
    ) -> Result<(), FaultOutcome> {
        let page = self.access(cpu, space, ipa, Access::Write)?;
        // SAFETY: what tables and TLBs lead to is memory of the machine, be it the right one or not.
        unsafe { write_bytes(page, contents) };
        Ok(())
    }

    /// A guest reads all of a page.
    ///
    /// # Errors
    /// As for [`Self::access`].
    pub fn read(&self, cpu: usize, space: &Space, ipa: Ipa) -> Result<Contents, FaultOutcome> {
        let page = self.access(cpu, space, ipa, Access::Read)?;
        Ok(self.contents(page))
    }

    /// What a page of the machine's memory holds.
    pub fn contents(&self, page: Pa) -> Contents {
        let inside = |range: &Range<Pa>| range.contains(&page);
        assert!(self.memory.iter().any(inside), "{page} is no memory");
        let mut contents = [0; PAGE_SIZE as usize];
        // SAFETY: the page is memory of the machine, which stays mapped; nobody writes it, as there is one thread.
        unsafe { read_bytes(page, &mut contents) };
        contents
    }

    /// This moment, for [`Self::promised`].
    pub fn now(&self) -> Stamp {
        self.shared.checker.now()
    }

    /// An operation on a range that began at `since` has returned and promises this.
    pub fn promised(&self, space: &Space, promise: Promise, range: IpaRange, since: Stamp) {
        let range = range.start.get()..range.end.get();
        let root = Self::root(space);
        let found = (self.shared.checker).promised(root, promise, range, since);
        self.shared.note(found);
    }

    /// Leaves a CPU `count` frames in its cache, and the pool none, until [`Self::feed`].
    pub fn starve(&self, cpu: usize, count: usize) {
        const GREEDY: usize = MAX_VMS - 1;
        const MOST: u64 = 1024;
        self.feed();
        let space = self.space(GREEDY, BackingPolicy::default()).unwrap();
        let object = self.anonymous(GREEDY, MOST, Level::L3);
        let all = Ipa::new(0)..Ipa::new(object.bytes());
        self.on(cpu, |memory| {
            space.map_object(memory, slot(object)).unwrap();
            let page = || (self.pool).allocate(FrameSize::Page4K, Owner::Hypervisor, Purpose::Heap);
            self.hog.borrow_mut().extend(std::iter::from_fn(page));
            // What is in the cache.
            let populated = space.prefault(memory, 0, all, Access::Write);
            assert_eq!(populated.unwrap_err().reason, NotPopulated::OutOfFrames);
            for _ in 0..count {
                let pa = self.hog.borrow_mut().pop().expect("the pool had frames");
                self.give_back(pa);
            }
            memory.refill();
        });
        self.greedy.replace(Some(space));
    }

    fn give_back(&self, pa: Pa) {
        (self.pool).free(pa, FrameSize::Page4K, Owner::Hypervisor, Purpose::Heap);
    }

    /// There are frames again.
    pub fn feed(&self) {
        self.hog
            .borrow_mut()
            .drain(..)
            .for_each(|pa| self.give_back(pa));
        if let Some(greedy) = self.greedy.take() {
            self.on(0, |cpu| greedy.destroy(cpu));
        }
    }

    /// Panics if the checker has found anything.
    pub fn check(&self) {
        let found = std::mem::take(&mut *locked(&self.shared.found));
        if let Some(first) = found.first() {
            panic!("{first} ({} violations in all)", found.len());
        }
    }
}

fn slot(object: Arc<Object>) -> SlotConfig {
    SlotConfig {
        id: SlotId(0),
        start: Ipa::new(0),
        offset: 0,
        bytes: object.bytes(),
        object,
        read_only: false,
        write_faults: false,
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for range in &self.memory {
            unregister(range.start.get());
        }
    }
}
