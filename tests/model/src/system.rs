//! The machine model: CPUs, table frames, epochs, and the checker that watches all of it.
//!
//! There may be many at a time, in tests that run in parallel; the engine's one watcher finds out by the table's address
//! whose entry it is. What the checker reports is kept until [`System::check`], as a panic in the middle of the engine's
//! work would only hide it behind others.

use crate::cpu::{Cpu, Registers, current, run_on};
use crate::epochs::Epochs;
use crate::frames::Frames;
use crate::schedule::{pause, trace};
use crate::{Served, locked, serve};
use checker::{Checker, Memory, Promise, Stamp, Violation};
use memory::watch::MemoryWatcher;
use stage2::watch::{self, Watcher};
use stage2::{
    Barrier, Counters, Entry, Instructions, Ipa, IpaRange, Layout, Leaf, Level, Maintenance, NoTlb,
    Pa, RegimeRegisters, Request, Stage2, TableFrame, TableMemory, Tlb, TlbPolicy, VmidAllocator,
    VmidHolder, Vttbr, Worker,
};
use std::collections::BTreeMap;
use std::mem;
use std::ptr::{NonNull, with_exposed_provenance};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};

/// The words of table frames, as the checker reads them. What isn't a frame reads as zero, so that a tree that leads
/// nowhere does no harm to the test.
#[derive(Debug)]
pub struct Physical;

impl Memory for Physical {
    fn load(&self, address: u64) -> u64 {
        if shared_by(address).is_none() {
            return 0;
        }
        let word: *const AtomicU64 = with_exposed_provenance(address as usize);
        // SAFETY: the address is in a frame that is registered, so allocated and made of entries, which are such words.
        unsafe { &*word }.load(Ordering::Relaxed)
    }
}

/// Every frame of every machine: its end, and whose it is.
static REGISTRY: Mutex<BTreeMap<u64, (u64, Arc<Shared>)>> = Mutex::new(BTreeMap::new());

/// The bits of VTTBR_EL2 that say where the root is, of roots below 48 bits.
pub(crate) const ROOT: u64 = ((1 << 48) - 1) & !0x3f;

fn shared_by(address: u64) -> Option<Arc<Shared>> {
    let registry = locked(&REGISTRY);
    let (_, (end, shared)) = registry.range(..=address).next_back()?;
    (address < *end).then(|| shared.clone())
}

/// What of a machine its watcher needs.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) checker: Checker<Physical>,
    pub(crate) found: Mutex<Vec<Violation>>,
}

/// Has the engine and the memory above it report to whoever has [registered](register) what they work on.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        watch::install(&Dispatch);
        memory::watch::install(&Dispatch);
    });
}

/// What lies at these addresses is a machine's from now on.
pub(crate) fn register(start: u64, end: u64, shared: &Arc<Shared>) {
    locked(&REGISTRY).insert(start, (end, shared.clone()));
}

/// What begins at an address is nobody's any more.
pub(crate) fn unregister(start: u64) {
    locked(&REGISTRY).remove(&start);
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            checker: Checker::new(Physical),
            found: Mutex::default(),
        }
    }

    pub(crate) fn note(&self, found: Vec<Violation>) {
        for violation in &found {
            trace(current(), || format!("violation: {violation}"));
        }
        locked(&self.found).extend(found);
    }
}

/// The engine's watcher, for all machines.
struct Dispatch;

impl Watcher for Dispatch {
    fn pause(&self) {
        pause();
    }

    fn change(&self, entry: &Entry, level: Level, access: &mut dyn FnMut() -> Option<(u64, u64)>) {
        let address = std::ptr::from_ref(entry).expose_provenance() as u64;
        match shared_by(address) {
            Some(shared) => {
                let cpu = current();
                let found = shared.checker.change(cpu, address, &mut || {
                    let changed = access();
                    if let Some((old, new)) = changed {
                        trace(cpu, || {
                            format!("{address:#x} of {level:?}: {old:#x} to {new:#x}")
                        });
                    }
                    changed
                });
                shared.note(found);
            }
            None => {
                access();
            }
        }
    }

    fn root(&self, root: Pa, layout: &Layout, created: bool) {
        let Some(shared) = shared_by(root.get()) else {
            return;
        };
        if created {
            shared.checker.root_created(root.get(), layout.into());
        } else {
            let found = shared.checker.root_retired(root.get());
            shared.note(found);
        }
    }
}

impl MemoryWatcher for Dispatch {
    fn allocated(&self, frame: Pa) {
        if let Some(shared) = shared_by(frame.get()) {
            shared.checker.table_allocated(current(), frame.get());
        }
    }

    fn freed(&self, frame: Pa) {
        if let Some(shared) = shared_by(frame.get()) {
            let found = shared.checker.table_freed(current(), frame.get());
            shared.note(found);
        }
    }

    fn write_protects(&self, vttbr: Vttbr, ranges: &[IpaRange], work: &mut dyn FnMut()) {
        let root = vttbr.bits() & ROOT;
        let Some(shared) = shared_by(root) else {
            return work();
        };
        let since = shared.checker.now();
        work();
        for range in ranges {
            let range = range.start.get()..range.end.get();
            let found = (shared.checker).promised(root, Promise::NoWrite, range, since);
            shared.note(found);
        }
    }
}

/// Frames that the checker hears about.
#[derive(Debug)]
pub struct WatchedFrames {
    frames: Frames,
    shared: Arc<Shared>,
    bytes: u64,
}

impl WatchedFrames {
    fn register(&self, pa: Pa, tables: usize) {
        let end = pa.get() + tables as u64 * self.bytes;
        register(pa.get(), end, &self.shared);
        self.shared.checker.table_allocated(current(), pa.get());
    }

    fn unregister(&self, pa: Pa) {
        let found = self.shared.checker.table_freed(current(), pa.get());
        self.shared.note(found);
        unregister(pa.get());
    }

    fn release(&self, frame: &TableFrame) {
        self.unregister(frame.pa());
        self.frames.release(frame);
    }

    /// Frames that are allocated now.
    pub fn live(&self) -> usize {
        self.frames.live()
    }

    /// Lets `count` more allocations succeed.
    pub fn limit(&self, count: usize) {
        self.frames.limit(count);
    }
}

// SAFETY: `Frames` is as the trait demands, and this adds nothing to it.
unsafe impl TableMemory for WatchedFrames {
    fn allocate(&self) -> Option<TableFrame> {
        let frame = self.frames.allocate()?;
        self.register(frame.pa(), 1);
        Some(frame)
    }

    unsafe fn free(&self, frame: TableFrame) {
        self.unregister(frame.pa());
        // SAFETY: `allocate` took it from there.
        unsafe { self.frames.free(frame) };
    }

    fn entries(&self, pa: Pa) -> NonNull<Entry> {
        self.frames.entries(pa)
    }
}

/// What an operation of the engine runs with on a CPU of this machine.
pub type OnCpu<'w> = Worker<'w, WatchedFrames, Maintenance<Cpu<'w>>, EpochsHere>;

/// The machine's epochs, as the engine sees them.
#[derive(Debug)]
pub struct EpochsHere(Epochs);

// SAFETY: as `Epochs`, whose clock a CPU enters for each operation (`System::on`).
unsafe impl stage2::Epoch for EpochsHere {
    fn retire(&self, unlinked: stage2::Unlinked) {
        self.0.retire(unlinked);
    }
}

/// A machine with one VM, which every CPU has loaded.
#[derive(Debug)]
pub struct System {
    pub(crate) shared: Arc<Shared>,
    frames: WatchedFrames,
    epochs: EpochsHere,
    registers: Vec<Registers>,
    policy: TlbPolicy,
    stage2: Option<Stage2>,
}

impl System {
    /// With `cpus` CPUs, whose TLB instructions `policy` chooses from, and an empty translation of the given layout.
    pub fn new(layout: Layout, cpus: usize, policy: TlbPolicy) -> Self {
        install();
        let shared = Arc::new(Shared::new());
        let frames = WatchedFrames {
            frames: Frames::at_their_addresses(layout),
            shared: shared.clone(),
            bytes: layout.table_size(),
        };
        let root = frames.frames.allocate_run(layout.root_tables());
        frames.register(root.pa(), layout.root_tables());
        let stage2 = Stage2::new(root, layout);
        let system = Self {
            shared,
            frames,
            epochs: EpochsHere(Epochs::default()),
            registers: (0..cpus).map(|_| Registers::default()).collect(),
            policy,
            stage2: Some(stage2),
        };
        let bits = if layout.features().wide_vmids { 16 } else { 8 };
        let vmids = VmidAllocator::new(cpus, bits).expect("few CPUs");
        // Where VMIDs are wide, the VM's takes more than 8 bits.
        for _ in 0..if bits == 16 { 1 << 8 } else { 0 } {
            vmids.activate(0, &VmidHolder::new(), &NoTlb);
        }
        for cpu in 0..cpus {
            vmids.activate(cpu, system.stage2().vmid(), &system.tlb(cpu));
            system.load(cpu, RegimeRegisters::NONE);
            system.enter(cpu);
        }
        system
    }

    /// The VM's translation.
    pub fn stage2(&self) -> &Stage2 {
        self.stage2.as_ref().expect("it is there until the end")
    }

    /// The root's address, by which the checker knows the tree.
    pub fn root(&self) -> u64 {
        self.stage2().vttbr().bits() & ROOT
    }

    /// The checker.
    pub fn checker(&self) -> &Checker<Physical> {
        &self.shared.checker
    }

    /// The table frames.
    pub fn frames(&self) -> &WatchedFrames {
        &self.frames
    }

    /// Frames that wait for an epoch.
    pub fn pending(&self) -> usize {
        self.epochs.0.pending()
    }

    /// How many CPUs there are.
    pub fn cpus(&self) -> usize {
        self.registers.len()
    }

    fn tlb(&self, cpu: usize) -> Maintenance<Cpu<'_>> {
        let cpu = Cpu {
            checker: &self.shared.checker,
            registers: &self.registers[cpu],
            number: cpu,
        };
        Maintenance::new(cpu, self.policy)
    }

    /// Has `cpu` leave the VM, if it runs that, with other registers: another VM's, or none.
    pub fn load(&self, cpu: usize, registers: RegimeRegisters) {
        registers.load(self.tlb(cpu).instructions());
    }

    /// Has `cpu` leave the VM as the world switch does: VTCR_EL2 stays.
    pub fn put(&self, cpu: usize) {
        let tlb = self.tlb(cpu);
        tlb.instructions().set_vttbr(0);
        tlb.instructions().barrier(Barrier::Isb);
    }

    /// Has `cpu` enter the VM's guest, whose registers it loads if it hasn't got them.
    pub(crate) fn enter(&self, cpu: usize) {
        let regime = self.stage2().regime();
        let registers = RegimeRegisters {
            vttbr: regime.vttbr().bits(),
            vtcr: regime.vtcr(),
        };
        if RegimeRegisters::of(self.tlb(cpu).instructions()) != registers {
            self.load(cpu, registers);
        }
        self.shared.note(self.shared.checker.enter(cpu));
    }

    /// Runs `work` on a CPU, inside an epoch.
    pub fn on<R>(&self, cpu: usize, work: impl FnOnce(&OnCpu<'_>) -> R) -> R {
        run_on(cpu, || {
            let registers = RegimeRegisters::of(self.tlb(cpu).instructions());
            let guard = self.epochs.0.enter();
            let counters = Counters::default();
            let result = work(&Worker {
                memory: &self.frames,
                tlb: &self.tlb(cpu),
                epoch: &self.epochs,
                counters: &counters,
            });
            for frame in self.epochs.0.leave(guard) {
                self.frames.release(&frame);
            }
            let left = RegimeRegisters::of(self.tlb(cpu).instructions());
            assert_eq!(
                left, registers,
                "rule 12: CPU {cpu} has other registers than before"
            );
            result
        })
    }

    /// Serves one fault, as the owner of the memory does.
    pub fn fault(&self, cpu: usize, request: &Request) -> Served {
        self.on(cpu, |worker| {
            let resolution = self.stage2().fault(worker, request);
            serve(self.stage2(), request, resolution)
        })
    }

    /// What the tables say about `ipa`.
    pub fn lookup(&self, ipa: Ipa) -> Option<(Leaf, Level)> {
        self.on(current(), |worker| self.stage2().lookup(worker, ipa))
    }

    /// This moment, for [`Self::promised`].
    pub fn now(&self) -> Stamp {
        self.shared.checker.now()
    }

    /// An operation on `range` that began at `since` has returned and promises this.
    pub fn promised(&self, promise: Promise, range: IpaRange, since: Stamp) {
        let range = range.start.get()..range.end.get();
        let found = self
            .shared
            .checker
            .promised(self.root(), promise, range, since);
        self.shared.note(found);
    }

    /// What the checker has reported since this was last asked.
    pub fn take_violations(&self) -> Vec<Violation> {
        mem::take(&mut locked(&self.shared.found))
    }

    /// Panics if the checker has reported anything.
    pub fn check(&self) {
        let found = self.take_violations();
        if let Some(first) = found.first() {
            panic!("{first}\n({} violations in all)", found.len());
        }
    }

    /// Destroys the VM, and checks all that is to be checked.
    pub fn destroy(mut self) {
        self.check();
        let root = self.root();
        for cpu in 0..self.cpus() {
            self.put(cpu);
        }
        if let Some(stage2) = self.stage2.take() {
            self.on(0, |worker| {
                stage2.destroy(worker).finish(worker, |_, _, _| {});
            });
        }
        // Whoever was inside has left with it.
        self.on(0, |_| {});
        self.shared.note(self.shared.checker.root_finished(root));
        self.check();
        assert_eq!(self.frames.live(), 0, "table frames leaked");
    }

    /// The engine's TLB maintenance on a CPU, for operations that a test puts together itself.
    pub fn maintenance(&self, cpu: usize) -> impl Tlb + '_ {
        self.tlb(cpu)
    }
}
