//! What backs guest memory changes beside guests that use it, under every interleaving: copy-on-write beside faults, beside
//! another copy of the same frame, beside dirty logging; forks; slots that go and move. Rules 3, 8, 9 and 10.
//!
//! The address space, its objects, frames and epochs are the real ones; table entries, pages' words, frames' records, trackers
//! and what faults decide on are the model checker's. TLBs keep what they have found until they are told otherwise. Guests
//! write to the memory that their tables and TLBs lead to: each write adds one to what their page holds, so that one that gets
//! lost, or shows where it shouldn't, is found out.
//!
//! Bounds: one page in trees of two levels with four entries each; up to three VMs; two or three CPUs, each a thread, beside a
//! main thread that waits; at most so many preemptions per execution as the first argument of `explore` says. Of what takes
//! the lock of an address space's owner, one at a time.
#![cfg(loom)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64 as Unmodelled, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use loom::sync::atomic::AtomicU64;
use loom::thread;
use memory::frames::{FramePool, arena, read_bytes, write_bytes};
use memory::{
    Access, AddressSpace, BackingPolicy, Caches, Change, CpuCounters, CpuMemory, Fault, FaultKind,
    FaultOutcome, LogPolicy, MemorySystem, Object, Owner, Parallel, SlotConfig, SlotId,
    TrackerMode, VmId,
};
use stage2::sync::{full_barrier, relax};
use stage2::{Features, Ipa, IpaRange, Layout, Leaf, Level, NoTlb, PAGE_SIZE, Pa, Regime, Tlb};

const CPUS: usize = 4;
/// Of so many executions one is followed by a look at what is left of it and those before.
const CHECKED: usize = 64;
const SLOT: SlotId = SlotId(0);
const PAGE: Ipa = Ipa::new(0);
/// Where slots move to.
const ELSEWHERE: Ipa = Ipa::new(2 * PAGE_SIZE);

static POOL: FramePool = FramePool::new();

fn system() -> &'static MemorySystem {
    static SYSTEM: OnceLock<MemorySystem> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        // SAFETY: the arena is leaked, and added once.
        unsafe { POOL.add(arena::leak(2048)) };
        MemorySystem::new(&POOL, CPUS, 2, 8)
    })
}

/// Has all CPUs register once, and the first object made, so that all executions find things alike.
fn begin_all() {
    let cpus: Vec<_> = (0..CPUS)
        .map(|cpu| {
            let counters = Box::leak(Box::new(CpuCounters::default()));
            CpuMemory::new(system(), cpu, NoTlb, counters)
        })
        .collect();
    let account = Owner::Vm(vm_id(0));
    Object::anonymous(&cpus[0], account, PAGE_SIZE, Level::L3).unwrap();
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A translation that a TLB may hold: whose, of which tables, of which page.
type Tag = (usize, u64, u64);

/// What the CPUs' TLBs hold.
struct Tlbs {
    held: Mutex<HashMap<Tag, Leaf>>,
    /// Stands for `held`, and for the memory that guests and copies use: the model checker tries every order of those who
    /// read it and those who write it.
    contents: AtomicU64,
    invalidations: AtomicUsize,
}

impl Tlbs {
    fn invalidate(&self, gone: impl Fn(&Tag) -> bool) {
        full_barrier();
        self.contents
            .fetch_add(1, loom::sync::atomic::Ordering::Relaxed);
        self.invalidations.fetch_add(1, Ordering::Relaxed);
        locked(&self.held).retain(|tag, _| !gone(tag));
        full_barrier();
    }

    fn look(&self) {
        full_barrier();
        self.contents.load(loom::sync::atomic::Ordering::Relaxed);
        full_barrier();
    }
}

/// One CPU's hardware.
struct Hardware {
    tlbs: Arc<Tlbs>,
    cpu: usize,
}

impl Tlb for Hardware {
    fn invalidate_leaf(&self, vm: Regime, ipa: Ipa, _: Option<Level>) {
        self.invalidate_range(vm, ipa..ipa.offset(PAGE_SIZE), false);
    }

    fn invalidate_range(&self, vm: Regime, range: IpaRange, _: bool) {
        self.tlbs.invalidate(|(_, tables, page)| {
            *tables == vm.vttbr.bits() && range.contains(&Ipa::new(*page))
        });
    }

    fn invalidate_vmid(&self, vm: Regime) {
        self.tlbs
            .invalidate(|(_, tables, _)| *tables == vm.vttbr.bits());
    }

    fn invalidate_all_vmids(&self) {
        self.tlbs.invalidate(|_| true);
    }

    /// No other CPU notices, so the model checker needn't.
    fn invalidate_local(&self, vm: Regime, ipa: Ipa, _: Option<Level>, _: Option<u64>) {
        let tag = (self.cpu, vm.vttbr.bits(), ipa.get());
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
}

type Space = AddressSpace<Parallel>;

/// VMs, and what their guests did.
struct World {
    tlbs: Arc<Tlbs>,
    spaces: Vec<Space>,
    /// What each guest's page is to hold.
    written: [Unmodelled; 3],
}

/// A CPU that works for them.
struct Cpu<'w> {
    world: &'w World,
    number: usize,
    memory: CpuMemory<Hardware>,
}

impl World {
    fn new(vms: usize, policy: BackingPolicy) -> Self {
        let tlbs = Arc::new(Tlbs {
            held: Mutex::default(),
            contents: AtomicU64::new(0),
            invalidations: AtomicUsize::new(0),
        });
        let mut world = Self {
            tlbs,
            spaces: Vec::new(),
            written: Default::default(),
        };
        let layout = Layout::small(Level::L2, Features::armv8_0(32, 48));
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
        let counters = Box::leak(Box::new(CpuCounters::default()));
        Cpu {
            world: self,
            number,
            memory: CpuMemory::new(system(), number, hardware, counters),
        }
    }

    fn expected(&self, vm: usize) -> u64 {
        self.written[vm].load(Ordering::Relaxed)
    }
}

fn vm_id(vm: usize) -> VmId {
    VmId::new(vm).unwrap()
}

impl Cpu<'_> {
    fn space(&self, vm: usize) -> &Space {
        &self.world.spaces[vm]
    }

    /// What this CPU translates a guest's page by: what its TLB holds, or the tables.
    fn translate(&self, vm: usize, ipa: Ipa) -> Option<Leaf> {
        let (space, tlbs) = (self.space(vm), &self.world.tlbs);
        let tag = (self.number, space.stage2().vttbr().bits(), ipa.get());
        loop {
            tlbs.look();
            if let Some(leaf) = locked(&tlbs.held).get(&tag) {
                return Some(*leaf);
            }
            // A walk that an invalidation overtakes begins again, as if it had never been.
            let began = tlbs.invalidations.load(Ordering::Relaxed);
            let found = space.lookup(&self.memory, ipa);
            if tlbs.invalidations.load(Ordering::Relaxed) == began {
                let (leaf, _) = found?;
                locked(&tlbs.held).insert(tag, leaf);
                return Some(leaf);
            }
        }
    }

    /// The frame that a guest's access gets to, faulting until it does. `None` where no slot is.
    fn access(&self, vm: usize, ipa: Ipa, access: Access) -> Option<Pa> {
        loop {
            let kind = match self.translate(vm, ipa) {
                Some(leaf) if access.allowed_by(leaf) => return Some(leaf.pa()),
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
    fn write_at(&self, vm: usize, ipa: Ipa) -> bool {
        let Some(frame) = self.access(vm, ipa, Access::Write) else {
            return false;
        };
        let value = value(frame) + 1;
        // SAFETY: the frame is the arena's, and only this thread of the model checker runs.
        unsafe { write_bytes(frame, &value.to_ne_bytes()) };
        self.world.written[vm].fetch_add(1, Ordering::Relaxed);
        true
    }

    fn write(&self, vm: usize) {
        assert!(self.write_at(vm, PAGE), "there is a slot");
    }

    fn read_at(&self, vm: usize, ipa: Ipa) -> Option<u64> {
        self.access(vm, ipa, Access::Read).map(value)
    }

    fn read(&self, vm: usize) -> u64 {
        self.read_at(vm, PAGE).expect("there is a slot")
    }

    /// The guest reads again and again: it never sees its page go back.
    fn watch(&self, vm: usize) {
        let first = self.read(vm);
        let second = self.read(vm);
        assert!(
            first <= second,
            "rule 8: VM {vm} read {second} after {first}"
        );
    }

    /// What every guest's page holds, beside what it wrote.
    fn check_all(&self) {
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

    fn map(&self, vm: usize, object: Arc<Object>) {
        let config = SlotConfig {
            id: SLOT,
            start: PAGE,
            object,
            offset: 0,
            bytes: PAGE_SIZE,
            read_only: false,
            write_faults: false,
        };
        self.space(vm).map_object(&self.memory, config).unwrap();
    }

    /// A page of memory for a VM, which nobody has touched.
    fn map_untouched(&self, vm: usize) {
        let account = Owner::Vm(vm_id(vm));
        let object = Object::anonymous(&self.memory, account, PAGE_SIZE, Level::L3);
        self.map(vm, object.unwrap());
    }

    /// Another VM with the same memory, its guest stopped.
    fn fork(&self, from: usize, to: usize) {
        let expected = self.world.expected(from);
        self.fork_running(from, to);
        self.world.written[to].store(expected, Ordering::Relaxed);
    }

    fn fork_running(&self, from: usize, to: usize) {
        let child = self.space(to);
        self.space(from).fork(&self.memory, child).unwrap();
    }

    fn log(&self, vm: usize) {
        let policy = LogPolicy::default();
        self.space(vm)
            .enable_dirty_log(&self.memory, SLOT, &policy)
            .unwrap();
    }

    /// Takes what is dirty, and returns what the page held after that; if it was dirty.
    fn harvest(&self, vm: usize) -> Option<u64> {
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

type Act = fn(&Cpu<'_>);

/// Tries every execution with so many VMs, with at most so many preemptions, in which `prepare` runs on CPU 0, then each of
/// `race` at once with the others, on CPU 1, 2 and so on, then `check` on CPU 0. One test at a time, as all share the pool.
fn explore<const N: usize>(
    preemptions: usize,
    vms: usize,
    policy: BackingPolicy,
    prepare: Act,
    race: [Act; N],
    check: Act,
) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = locked(&ONE);
    loom::model(begin_all);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    let (executions, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let count = executions.clone();
    builder.check(move || {
        let number = count.fetch_add(1, Ordering::Relaxed);
        let world = Arc::new(World::new(vms, policy));
        prepare(&world.cpu(0));
        let threads = race.into_iter().enumerate().map(|(index, act)| {
            let world = world.clone();
            thread::spawn(move || act(&world.cpu(index + 1)))
        });
        for thread in threads.collect::<Vec<_>>() {
            thread
                .join()
                .expect("the model checker reports panics itself");
        }
        check(&world.cpu(0));
        let world = Arc::into_inner(world).expect("the threads have ended");
        end(world);
        // What leaks stays away, and adding up all CPUs that there ever were takes longer and longer.
        if number.is_multiple_of(CHECKED) {
            nothing_is_left(vms);
        }
    });
    nothing_is_left(vms);
    let name = std::thread::current();
    let name = name.name().unwrap_or_default();
    println!(
        "{name}: {N} CPUs, {preemptions} preemptions, {} executions in {:.1?}",
        executions.load(Ordering::Relaxed),
        began.elapsed()
    );
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

/// Every frame has come back, and every charge is undone.
fn nothing_is_left(vms: usize) {
    for vm in 0..vms {
        let counts = POOL.counts_of(vm_id(vm));
        assert!(counts.is_zero(), "VM {vm} has {counts:?} left");
    }
    assert_eq!(POOL.shared_frames(), 0, "shared frames leaked");
}

const DIRECT: BackingPolicy = BackingPolicy {
    tracker: TrackerMode::Ranges,
    change: Change::Direct,
};
/// The ways to be compared with.
const OLD: BackingPolicy = BackingPolicy {
    tracker: TrackerMode::Sequence,
    change: Change::Unmap,
};

fn untouched(cpu: &Cpu<'_>) {
    cpu.map_untouched(0);
}

/// A page that VM 0 has written, and has no entry for.
fn written(cpu: &Cpu<'_>) {
    untouched(cpu);
    cpu.write(0);
}

/// Two VMs that share a page, of which the first has an entry, in CPU 0's TLB too.
fn forked(cpu: &Cpu<'_>) {
    written(cpu);
    cpu.fork(0, 1);
}

/// As [`forked`], each with an entry.
fn forked_and_read(cpu: &Cpu<'_>) {
    forked(cpu);
    cpu.read(0);
    cpu.read(1);
}

/// Three VMs that share a page.
fn forked_twice(cpu: &Cpu<'_>) {
    forked(cpu);
    cpu.fork(1, 2);
}

fn all_is_there(cpu: &Cpu<'_>) {
    cpu.check_all();
}

#[test]
fn rule_8_a_first_write_beside_another_one_takes_one_frame() {
    for policy in [DIRECT, OLD] {
        explore(
            3,
            1,
            policy,
            untouched,
            [|cpu| cpu.write(0), |cpu| cpu.write(0)],
            all_is_there,
        );
    }
}

#[test]
fn rule_8_a_page_of_zeros_that_is_read_and_written_at_once_is_never_seen_to_go_back() {
    for policy in [DIRECT, OLD] {
        explore(
            3,
            1,
            policy,
            untouched,
            [|cpu| cpu.write(0), |cpu| cpu.watch(0)],
            all_is_there,
        );
    }
}

/// Its reader finds the shared frame, and must not map it any more when the copy is there.
#[test]
fn rule_8_a_copy_beside_a_fault_of_the_same_vm() {
    for policy in [DIRECT, OLD] {
        explore(
            3,
            2,
            policy,
            forked,
            [|cpu| cpu.write(1), |cpu| cpu.watch(1)],
            all_is_there,
        );
    }
}

#[test]
fn rule_8_a_copy_beside_two_faults_of_the_same_vm() {
    explore(
        2,
        2,
        DIRECT,
        forked,
        [|cpu| cpu.write(1), |cpu| cpu.watch(1), |cpu| cpu.write(1)],
        all_is_there,
    );
}

/// Both copy, and then the frame is nobody's; or the second one finds that it is the last.
#[test]
fn rule_8_two_vms_that_copy_the_same_frame_at_once() {
    for policy in [DIRECT, OLD] {
        explore(
            3,
            2,
            policy,
            forked_and_read,
            [|cpu| cpu.write(0), |cpu| cpu.write(1)],
            all_is_there,
        );
    }
}

#[test]
fn rule_8_three_vms_that_copy_the_same_frame_at_once() {
    explore(
        1,
        3,
        DIRECT,
        forked_twice,
        [|cpu| cpu.write(0), |cpu| cpu.write(1), |cpu| cpu.write(2)],
        all_is_there,
    );
}

#[test]
fn rule_3_what_one_vm_writes_is_never_seen_in_the_other() {
    explore(
        5,
        2,
        DIRECT,
        forked_and_read,
        [|cpu| cpu.write(0), |cpu| assert_eq!(cpu.read(1), 1)],
        all_is_there,
    );
}

/// Harvested, in one execution: the largest value that was copied.
static COPIED: Unmodelled = Unmodelled::new(0);

fn forked_and_logged(cpu: &Cpu<'_>) {
    COPIED.store(0, Ordering::Relaxed);
    forked(cpu);
    cpu.log(0);
}

fn harvest(cpu: &Cpu<'_>) {
    if let Some(copied) = cpu.harvest(0) {
        COPIED.fetch_max(copied, Ordering::Relaxed);
    }
}

/// What was written since the fork is in a copy that a harvest has led to, or still in the log.
fn nothing_goes_unlogged(cpu: &Cpu<'_>) {
    harvest(cpu);
    assert_eq!(
        COPIED.load(Ordering::Relaxed),
        cpu.world.expected(0),
        "rule 9: a write is in no copy"
    );
    cpu.check_all();
}

#[test]
fn rule_9_a_copy_on_write_beside_a_harvest_is_logged() {
    for policy in [DIRECT, OLD] {
        explore(
            5,
            2,
            policy,
            forked_and_logged,
            [|cpu| cpu.write(0), harvest],
            nothing_goes_unlogged,
        );
    }
}

#[test]
fn rule_9_a_copy_on_write_and_a_second_write_beside_a_harvest_are_logged() {
    explore(
        2,
        2,
        DIRECT,
        forked_and_logged,
        [|cpu| cpu.write(0), harvest, |cpu| cpu.write(0)],
        nothing_goes_unlogged,
    );
}

/// What the child got, whenever that was, stays.
fn the_fork_is_of_one_moment(cpu: &Cpu<'_>) {
    let (parent, child) = (cpu.read(0), cpu.read(1));
    assert_eq!(parent, cpu.world.expected(0), "a write is lost");
    assert!((1..=parent).contains(&child));
    cpu.write(0);
    assert_eq!(
        cpu.read(1),
        child,
        "rule 3: the child sees its parent's write"
    );
    cpu.write(1);
    assert_eq!(
        cpu.read(0),
        parent + 1,
        "rule 3: the parent sees its child's"
    );
}

#[test]
fn rule_3_a_fork_beside_a_write_is_of_one_moment() {
    explore(
        4,
        2,
        DIRECT,
        written,
        [|cpu| cpu.fork_running(0, 1), |cpu| cpu.write(0)],
        the_fork_is_of_one_moment,
    );
}

#[test]
fn rule_3_a_fork_beside_two_writers_is_of_one_moment() {
    explore(
        2,
        2,
        DIRECT,
        written,
        [
            |cpu| cpu.fork_running(0, 1),
            |cpu| cpu.write(0),
            |cpu| cpu.write(0),
        ],
        the_fork_is_of_one_moment,
    );
}

/// Of what is shared already, beside its copy.
#[test]
fn rule_3_a_fork_beside_a_copy_is_of_one_moment() {
    explore(
        2,
        3,
        DIRECT,
        forked_and_read,
        [|cpu| cpu.fork_running(0, 2), |cpu| cpu.write(0)],
        |cpu| {
            let (parent, other, child) = (cpu.read(0), cpu.read(1), cpu.read(2));
            assert_eq!((parent, other), (2, 1));
            assert!((1..=2).contains(&child));
            cpu.write(0);
            assert_eq!((cpu.read(1), cpu.read(2)), (1, child));
        },
    );
}

/// After the removal no write can reach the memory, whatever a fault had found before.
#[test]
fn rule_10_a_slot_goes_beside_a_write_that_copies() {
    for policy in [DIRECT, OLD] {
        explore(
            2,
            2,
            policy,
            forked_and_read,
            [
                |cpu| {
                    cpu.space(0).remove_slot(&cpu.memory, SLOT).unwrap();
                    assert_eq!(cpu.translate(0, PAGE), None, "rule 10: it is still there");
                    let frames = POOL.counts_of(vm_id(0)).guest;
                    assert_eq!(frames, 0, "rule 10: its memory is still there");
                },
                |cpu| {
                    cpu.write_at(0, PAGE);
                },
            ],
            |cpu| {
                assert_eq!(cpu.read_at(0, PAGE), None);
                cpu.check_all();
            },
        );
    }
}

#[test]
fn rule_10_a_slot_goes_beside_a_copy_in_the_other_vm_that_shares_it() {
    explore(
        2,
        2,
        DIRECT,
        forked_and_read,
        [
            |cpu| cpu.space(0).remove_slot(&cpu.memory, SLOT).unwrap(),
            |cpu| cpu.write(1),
        ],
        all_is_there,
    );
}

/// The copy is put into a table that the slot is about to leave, or where it has gone.
#[test]
fn rule_10_a_slot_moves_beside_a_write_that_copies() {
    explore(
        2,
        2,
        DIRECT,
        forked_and_read,
        [
            |cpu| {
                cpu.space(0)
                    .move_slot(&cpu.memory, SLOT, ELSEWHERE)
                    .unwrap();
                assert_eq!(cpu.translate(0, PAGE), None, "rule 10: it is still there");
            },
            |cpu| {
                let there = cpu.write_at(0, PAGE) || cpu.write_at(0, ELSEWHERE);
                assert!(there, "it was nowhere");
            },
        ],
        |cpu| {
            assert_eq!(cpu.read_at(0, PAGE), None);
            assert_eq!(cpu.read_at(0, ELSEWHERE), Some(cpu.world.expected(0)));
            assert_eq!(cpu.read(1), 1);
        },
    );
}

/// What a guest gives up while it writes there holds zeros and what was written after that; nothing of it is lost to others.
#[test]
fn rule_8_a_page_is_given_up_beside_a_write_and_what_shares_it_stays() {
    for (prepare, preemptions) in [(written as Act, 3), (forked_and_read, 2)] {
        explore(
            preemptions,
            2,
            DIRECT,
            prepare,
            [
                |cpu| {
                    let page = PAGE..PAGE.offset(PAGE_SIZE);
                    while cpu.space(0).balloon(&cpu.memory, page.clone()) == Ok(0) {
                        relax();
                    }
                },
                |cpu| cpu.write(0),
            ],
            |cpu| {
                let found = cpu.read(0);
                assert!(found <= 1, "rule 8: it still holds {found}");
                if let Some(found) = cpu.read_at(1, PAGE) {
                    assert_eq!(found, 1, "what the other VM has");
                }
                cpu.write(0);
                assert_eq!(cpu.read(0), found + 1);
            },
        );
    }
}

/// One object in two VMs: what one writes, the other sees, also at the first touch.
#[test]
fn rule_8_vms_that_share_memory_on_purpose_touch_it_at_once() {
    explore(
        4,
        2,
        DIRECT,
        |cpu| {
            let object = Object::shared(&cpu.memory, PAGE_SIZE, Level::L3).unwrap();
            cpu.map(0, object.clone());
            cpu.map(1, object);
        },
        [|cpu| cpu.write(0), |cpu| cpu.write(1)],
        |cpu| assert_eq!((cpu.read(0), cpu.read(1)), (2, 2)),
    );
}
