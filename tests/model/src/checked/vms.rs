//! VMs on real address spaces, with TLBs and memory, under the model checker.
//!
//! The address space, its objects, frames and epochs are the real ones; table entries, pages' words, frames' records, trackers
//! and what faults decide on are the model checker's. TLBs keep what they have found until they are told otherwise. Guests
//! write to the memory that their tables and TLBs lead to: each write adds one to what their page holds, so that one that gets
//! lost, or shows where it shouldn't, is found out.

use super::memory::{Space, cpu_with, nothing_is_left, nothing_is_left_so_far, vm_id};
use super::{CPUS, alone, every_execution, locked};
use crate::in_place::InPlace;
use loom::sync::atomic::AtomicU64;
use memory::frames::{read_bytes, write_bytes};
use memory::{
    Access, BackingPolicy, Caches, Change, CpuMemory, Fault, FaultKind, FaultOutcome, LogPolicy,
    Object, Owner, SlotConfig, SlotId, TrackerMode,
};
use stage2::sync::{full_barrier, relax};
use stage2::{
    Counters, Descriptor, Features, Ipa, IpaRange, Layout, Leaf, Level, NoTlb, PAGE_SIZE, Pa,
    Regime, Step, Tlb, Worker,
};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64 as Unmodelled, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Two levels of tables. What a leaf of a level spans is the same in deeper trees.
const LAYOUT: Layout = Layout::small(Level::L2, Features::armv8_0(32, 48));
/// The same, whose entries have hardware dirty state (FEAT_HAFDBS).
const TRACKED: Layout = Layout::small(
    Level::L2,
    Features {
        hardware_access: true,
        hardware_dirty: true,
        ..*LAYOUT.features()
    },
);
/// The VMs' one slot.
pub const SLOT: SlotId = SlotId(0);
/// The page that it begins with.
pub const PAGE: Ipa = Ipa::new(0);

/// Direct changes, and faults that retry for their own page only.
pub const DIRECT: BackingPolicy = BackingPolicy {
    tracker: TrackerMode::Ranges,
    change: Change::Direct,
};
/// The ways to be compared with.
pub const OLD: BackingPolicy = BackingPolicy {
    tracker: TrackerMode::Sequence,
    change: Change::Unmap,
};

/// What a CPU does.
pub type Act = fn(&Cpu<'_>);

/// Tries every execution with so many VMs, with at most so many preemptions, in which `prepare` runs on CPU 0, then each of
/// `race` at once with the others, on CPU 1, 2 and so on, then `check` on CPU 0. One test at a time, as all share the pool.
pub fn explore<const N: usize>(
    preemptions: usize,
    vms: usize,
    policy: BackingPolicy,
    prepare: Act,
    race: [Act; N],
    check: Act,
) {
    explore_in(LAYOUT, preemptions, vms, policy, prepare, race, check);
}

/// As [`explore`], with direct changes, for VMs whose CPUs note writes in entries ([`Cpu::note_write`]).
pub fn explore_tracked<const N: usize>(
    preemptions: usize,
    vms: usize,
    prepare: Act,
    race: [Act; N],
    check: Act,
) {
    explore_in(TRACKED, preemptions, vms, DIRECT, prepare, race, check);
}

/// As [`explore`], with this layout of the VMs' trees.
pub fn explore_in<const N: usize>(
    layout: Layout,
    preemptions: usize,
    vms: usize,
    policy: BackingPolicy,
    prepare: Act,
    race: [Act; N],
    check: Act,
) {
    let _alone = alone();
    loom::model(begin_all);
    let race = race.map(|act| move |world: &World, cpu| act(&world.cpu(cpu)));
    every_execution(preemptions, race, move |run| {
        let world = Arc::new(World::new(layout, vms, policy));
        prepare(&world.cpu(0));
        run(&world);
        check(&world.cpu(0));
        end(Arc::into_inner(world).expect("the threads have ended"));
        nothing_is_left_so_far(vms);
    });
    nothing_is_left(vms);
}

/// Has all CPUs register once, and the first object made, so that all executions find things alike.
fn begin_all() {
    let cpus: Vec<_> = (0..CPUS).map(|cpu| cpu_with(cpu, NoTlb)).collect();
    let account = Owner::Vm(vm_id(0));
    Object::anonymous(&cpus[0], account, PAGE_SIZE, Level::L3).unwrap();
}

/// A translation that a TLB may hold: whose, of which tables, of which page.
type Tag = (usize, u64, u64);

/// What the CPUs' TLBs hold.
struct Tlbs {
    held: Mutex<HashMap<Tag, (Leaf, Level)>>,
    /// Stands for `held`, and for the memory that guests and copies use: the model checker tries every order of those who
    /// read it and those who write it.
    contents: AtomicU64,
    invalidations: AtomicUsize,
}

impl Tlbs {
    /// Drops what is to go of one VM's translations, or of all.
    fn invalidate(&self, vm: Option<Regime<'_>>, gone: impl Fn(u64, Level) -> bool) {
        full_barrier();
        let vttbr = vm.map(|vm| vm.vttbr().bits());
        self.contents
            .fetch_add(1, loom::sync::atomic::Ordering::Relaxed);
        self.invalidations.fetch_add(1, Ordering::Relaxed);
        locked(&self.held).retain(|(_, tables, page), (_, level)| {
            vttbr.is_some_and(|vttbr| vttbr != *tables) || !gone(*page, *level)
        });
        full_barrier();
    }

    fn look(&self) {
        full_barrier();
        self.contents.load(loom::sync::atomic::Ordering::Relaxed);
        full_barrier();
    }
}

/// What a leaf of `level` maps together with a page.
fn leaf_at(page: u64, level: Level) -> IpaRange {
    let start = Ipa::new(page).align_down(LAYOUT.span(level));
    start..start.offset(LAYOUT.span(level))
}

/// One CPU's hardware.
pub struct Hardware {
    tlbs: Arc<Tlbs>,
    cpu: usize,
}

impl Tlb for Hardware {
    fn invalidate_leaf(&self, vm: Regime, ipa: Ipa, hint: Option<Level>) {
        self.tlbs.invalidate(Some(vm), |page, level| {
            hint.is_none_or(|hint| hint == level) && leaf_at(page, level).contains(&ipa)
        });
    }

    fn invalidate_range(&self, vm: Regime, range: IpaRange, _: bool) {
        self.tlbs.invalidate(Some(vm), |page, level| {
            let leaf = leaf_at(page, level);
            range.start < leaf.end && leaf.start < range.end
        });
    }

    fn invalidate_vmid(&self, vm: Regime) {
        self.tlbs.invalidate(Some(vm), |_, _| true);
    }

    fn invalidate_all_vmids(&self) {
        self.tlbs.invalidate(None, |_, _| true);
    }

    /// No other CPU notices, so the model checker needn't.
    fn invalidate_local(&self, vm: Regime, ipa: Ipa, _: Option<Level>, _: Option<u64>) {
        let tag = (self.cpu, vm.vttbr().bits(), ipa.get());
        locked(&self.tlbs.held).remove(&tag);
    }

    fn publish_tables(&self) {}
}

impl Caches for Hardware {
    /// Comes after each copy.
    fn clean_for_guest(&self, _: Pa, _: u64) {
        full_barrier();
        self.tlbs
            .contents
            .fetch_add(1, loom::sync::atomic::Ordering::Relaxed);
        full_barrier();
    }

    /// Comes before each copy. Memory is read as it is, so there is nothing to do; and no barrier to be relied on.
    fn clean_for_hypervisor(&self, _: Pa, _: u64) {}
}

/// VMs, and what their guests did.
pub struct World {
    tlbs: Arc<Tlbs>,
    spaces: Vec<Space>,
    object: OnceLock<Arc<Object>>,
    /// What each guest's pages are to hold together.
    written: [Unmodelled; 3],
}

/// A CPU that works for them.
pub struct Cpu<'w> {
    /// All VMs.
    pub world: &'w World,
    number: usize,
    /// Its part of the memory system.
    pub memory: CpuMemory<Hardware>,
}

impl World {
    fn new(layout: Layout, vms: usize, policy: BackingPolicy) -> Self {
        let tlbs = Arc::new(Tlbs {
            held: Mutex::default(),
            contents: AtomicU64::new(0),
            invalidations: AtomicUsize::new(0),
        });
        let mut world = Self {
            tlbs,
            spaces: Vec::new(),
            object: OnceLock::new(),
            written: Default::default(),
        };
        let memory = world.cpu(0).memory;
        world.spaces = (0..vms)
            .map(|vm| Space::with_backing(&memory, vm_id(vm), layout, policy).unwrap())
            .collect();
        world
    }

    fn cpu(&self, number: usize) -> Cpu<'_> {
        let hardware = Hardware {
            tlbs: self.tlbs.clone(),
            cpu: number,
        };
        Cpu {
            world: self,
            number,
            memory: cpu_with(number, hardware),
        }
    }

    /// What a guest's pages are to hold together: how often it wrote.
    pub fn expected(&self, vm: usize) -> u64 {
        self.written[vm].load(Ordering::Relaxed)
    }
}

impl Cpu<'_> {
    /// A VM's memory.
    pub fn space(&self, vm: usize) -> &Space {
        &self.world.spaces[vm]
    }

    /// What this CPU translates a guest's page by: what its TLB holds, or the tables.
    pub fn translate(&self, vm: usize, ipa: Ipa) -> Option<(Leaf, Level)> {
        let (space, tlbs) = (self.space(vm), &self.world.tlbs);
        let tag = (self.number, space.stage2().vttbr().bits(), ipa.get());
        loop {
            tlbs.look();
            if let Some(held) = locked(&tlbs.held).get(&tag) {
                return Some(*held);
            }
            // A walk that an invalidation overtakes begins again, as if it had never been.
            let began = tlbs.invalidations.load(Ordering::Relaxed);
            let found = space.lookup(&self.memory, ipa);
            if tlbs.invalidations.load(Ordering::Relaxed) == began {
                locked(&tlbs.held).insert(tag, found?);
                return found;
            }
        }
    }

    /// The frame that a guest's access gets to, faulting until it does. `None` where no slot is.
    pub fn access(&self, vm: usize, ipa: Ipa, access: Access) -> Option<Pa> {
        loop {
            let kind = match self.translate(vm, ipa) {
                Some((leaf, level)) if access.allowed_by(leaf) => {
                    let within = ipa.offset_in(LAYOUT.span(level));
                    return Some(leaf.pa().offset(within));
                }
                Some(_) => FaultKind::Permission,
                None => FaultKind::Translation,
            };
            let fault = Fault {
                vcpu: 0,
                ipa,
                va: None,
                access,
                kind,
            };
            let outcome = self.space(vm).fault(&self.memory, &fault);
            // Whoever waits for the epoch sees what was done in it. The model checker doesn't see its way out.
            full_barrier();
            match outcome {
                FaultOutcome::Resolved => {}
                FaultOutcome::Retry => relax(),
                FaultOutcome::NoSlot => return None,
                other => panic!("{other:?}"),
            }
        }
    }

    /// The guest adds one to what its page holds, in one step with the look at the TLB or table that allows it: an
    /// invalidation completes only when the accesses have that it makes impossible. Whether it had a slot.
    pub fn write_at(&self, vm: usize, ipa: Ipa) -> bool {
        let Some(frame) = self.access(vm, ipa, Access::Write) else {
            return false;
        };
        let value = value(frame) + 1;
        // SAFETY: the frame is the arena's, and only this thread of the model checker runs.
        unsafe { write_bytes(frame, &value.to_ne_bytes()) };
        self.world.written[vm].fetch_add(1, Ordering::Relaxed);
        true
    }

    /// As [`Self::write_at`], at [`PAGE`].
    pub fn write(&self, vm: usize) {
        assert!(self.write_at(vm, PAGE), "there is a slot");
    }

    /// The guest writes to a page whose writes hardware tracks, while no other CPU runs: its CPU notes that in the
    /// entry, without a fault.
    pub fn note_write(&self, vm: usize, ipa: Ipa) {
        let worker = Worker {
            memory: &InPlace,
            tlb: &NoTlb,
            epoch: &InPlace,
            counters: &Counters::default(),
        };
        let range = ipa..ipa.offset(PAGE_SIZE);
        let stage2 = self.space(vm).stage2();
        let walked = stage2.walk(&worker, range, |context| match context.descriptor {
            Descriptor::Table(_) => Step::Descend,
            Descriptor::Leaf(leaf) if leaf.hardware_dirty() => {
                let exchanged = context.exchange(Some(leaf.with_write()));
                exchanged.expect("no other CPU runs");
                Step::Continue
            }
            other => panic!("{other:?} isn't tracked"),
        });
        walked.expect("a page");
    }

    /// What the guest finds at `ipa`. `None` where no slot is.
    pub fn read_at(&self, vm: usize, ipa: Ipa) -> Option<u64> {
        self.access(vm, ipa, Access::Read).map(value)
    }

    /// As [`Self::read_at`], at [`PAGE`].
    pub fn read(&self, vm: usize) -> u64 {
        self.read_at(vm, PAGE).expect("there is a slot")
    }

    /// The guest reads again and again: it never sees its page go back.
    pub fn watch(&self, vm: usize) {
        let first = self.read(vm);
        let second = self.read(vm);
        assert!(
            first <= second,
            "rule 8: VM {vm} read {second} after {first}"
        );
    }

    /// What every guest's page holds, beside what it wrote.
    pub fn check_all(&self) {
        for vm in 0..self.world.spaces.len() {
            if let Some(found) = self.read_at(vm, PAGE) {
                assert_eq!(
                    found,
                    self.world.expected(vm),
                    "what the page of VM {vm} holds"
                );
            }
        }
    }

    /// Maps all of an object as a VM's memory, from [`PAGE`] on.
    pub fn map(&self, vm: usize, object: Arc<Object>) {
        let config = SlotConfig {
            id: SLOT,
            start: PAGE,
            offset: 0,
            bytes: object.bytes(),
            object,
            read_only: false,
            write_faults: false,
        };
        self.space(vm).map_object(&self.memory, config).unwrap();
    }

    /// Maps an object as VM 0's memory, for a test that works on it by itself.
    pub fn map_known(&self, object: Arc<Object>) {
        self.map(0, object.clone());
        assert!(self.world.object.set(object).is_ok(), "there is one");
    }

    /// That object.
    pub fn object(&self) -> &Object {
        self.world.object.get().expect("one was mapped")
    }

    /// A page of memory for a VM, which nobody has touched.
    pub fn map_untouched(&self, vm: usize) {
        let account = Owner::Vm(vm_id(vm));
        let object = Object::anonymous(&self.memory, account, PAGE_SIZE, Level::L3);
        self.map(vm, object.unwrap());
    }

    /// Another VM with the same memory, its guest stopped.
    pub fn fork(&self, from: usize, to: usize) {
        let expected = self.world.expected(from);
        self.fork_running(from, to);
        self.world.written[to].store(expected, Ordering::Relaxed);
    }

    /// As [`Self::fork`], while the guest may be running.
    pub fn fork_running(&self, from: usize, to: usize) {
        let child = self.space(to);
        self.space(from).fork(&self.memory, child).unwrap();
    }

    /// Logs what a guest writes.
    pub fn log(&self, vm: usize) {
        let policy = LogPolicy::default();
        self.space(vm)
            .enable_dirty_log(&self.memory, SLOT, &policy)
            .unwrap();
    }

    /// Takes what is dirty, and returns what the page held after that; if it was dirty.
    pub fn harvest(&self, vm: usize) -> Option<u64> {
        let mut dirty = [0];
        self.space(vm)
            .get_and_clear_dirty_log(&self.memory, SLOT, 0, &mut dirty)
            .unwrap();
        let mut bytes = [0; 8];
        (dirty[0] & 1 != 0).then(|| {
            self.world.tlbs.look();
            self.space(vm)
                .read_guest(&self.memory, PAGE, &mut bytes)
                .unwrap();
            u64::from_ne_bytes(bytes)
        })
    }
}

/// What a frame's first word is.
fn value(frame: Pa) -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: the frame is the arena's, and only this thread of the model checker runs.
    unsafe { read_bytes(frame, &mut bytes) };
    u64::from_ne_bytes(bytes)
}

/// Destroys all VMs.
fn end(mut world: World) {
    let spaces = std::mem::take(&mut world.spaces);
    let cpu = world.cpu(0);
    for space in spaces {
        space.destroy(&cpu.memory);
    }
    cpu.memory.wait_for_epoch();
}

/// VM 0 has a page that nobody has touched.
pub fn untouched(cpu: &Cpu<'_>) {
    cpu.map_untouched(0);
}

/// A page that VM 0 has written, and has no entry for.
pub fn written(cpu: &Cpu<'_>) {
    untouched(cpu);
    cpu.write(0);
}

/// Two VMs that share a page, of which the first has an entry, in CPU 0's TLB too.
pub fn forked(cpu: &Cpu<'_>) {
    written(cpu);
    cpu.fork(0, 1);
}

/// As [`forked`], each with an entry.
pub fn forked_and_read(cpu: &Cpu<'_>) {
    forked(cpu);
    cpu.read(0);
    cpu.read(1);
}

/// Three VMs that share a page.
pub fn forked_twice(cpu: &Cpu<'_>) {
    forked(cpu);
    cpu.fork(1, 2);
}

/// Every guest's page holds what it wrote.
pub fn all_is_there(cpu: &Cpu<'_>) {
    cpu.check_all();
}
