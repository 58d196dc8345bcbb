//! Compressing pages and bringing them back, beside faults, harvests, balloons, other reclaimers and the end of a
//! slot, under every interleaving of two and three CPUs (rules 8 to 10).
//!
//! The address space is the real one, with its real frames, epochs, lists and store; table entries, the words that say
//! what backs a page, the tracker, and logs are the model checker's. What isn't is not reordered by it, but every order
//! of the steps around it is tried. TLBs hold nothing, but an access may be under way by what tables said until an
//! invalidation completes.
//!
//! Bounds: one page, or two that are compressed together, in a tree of two levels with four entries each; two or three CPUs,
//! each a thread, beside a main thread that waits; at most so many preemptions per execution as the first argument of
//! `explore` says. Of what takes the lock of an address space's owner, one at a time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use loom::thread;
use memory::frames::{FramePool, arena, read_bytes, write_bytes};
use memory::{
    Access, AddressSpace, Caches, CpuCounters, CpuMemory, Fault, FaultKind, FaultOutcome,
    LogPolicy, MemorySystem, Parallel, SlotId, StoreCounts, VmId, Watermarks,
};
use stage2::sync::{full_barrier, relax};
use stage2::{Features, Ipa, IpaRange, Layout, Level, PAGE_SIZE, Pa, Regime, Tlb, VmidAllocator};

const CPUS: usize = 4;
const SLOT: SlotId = SlotId(0);
const PAGE: Ipa = Ipa::new(0);
/// The other one, where there are two.
const OTHER: Ipa = Ipa::new(PAGE_SIZE);
/// What the guest's page is full of at first, and what the hypervisor writes there in the end. Words that are all alike
/// are compressed without a compressor, for which the checker's threads have too little stack.
const BEFORE: u64 = 0x1234_5678_1234_5678;
const AFTER: u64 = 0x8765_4321_8765_4321;

static POOL: FramePool = FramePool::new();

fn system() -> &'static MemorySystem {
    static SYSTEM: OnceLock<&MemorySystem> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        // SAFETY: the arena is leaked, and added once.
        unsafe { POOL.add(arena::leak(2048)) };
        let vmids = VmidAllocator::new(CPUS, 8).unwrap();
        // Not by way of a Result: the model checker's threads have little stack.
        let system: &MemorySystem =
            Box::leak(Box::new(MemorySystem::with_vmids(&POOL, CPUS, vmids)));
        // Always.
        system.set_watermarks(Some(Watermarks {
            low: 1 << 40,
            high: 1 << 40,
        }));
        system
    })
}

fn cpu(number: usize) -> CpuMemory<Hardware> {
    CpuMemory::new(
        system(),
        number,
        Hardware,
        Box::leak(Box::new(CpuCounters::default())),
    )
}

/// Invalidations that have completed. Not the model checker's: it is about what happened, not about what a CPU sees of it.
static INVALIDATIONS: AtomicU64 = AtomicU64::new(0);

/// CPUs whose TLBs hold nothing.
struct Hardware;

impl Hardware {
    fn invalidate() {
        full_barrier();
        INVALIDATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

impl Tlb for Hardware {
    fn invalidate_leaf(&self, _: Regime, _: Ipa, _: Option<Level>) {
        Self::invalidate();
    }

    fn invalidate_range(&self, _: Regime, _: IpaRange, _: bool) {
        Self::invalidate();
    }

    fn invalidate_vmid(&self, _: Regime) {
        Self::invalidate();
    }

    fn invalidate_all_vmids(&self) {
        Self::invalidate();
    }

    fn invalidate_local(&self, _: Regime, _: Ipa, _: Option<Level>, _: Option<u64>) {}

    fn publish_tables(&self) {}
}

impl Caches for Hardware {
    fn clean_for_guest(&self, _: Pa, _: u64) {}
}

type Space = AddressSpace<Parallel>;

fn empty_space(cpu: &CpuMemory<Hardware>, vm: usize) -> Space {
    let layout = Layout::small(Level::L2, Features::armv8_0(32, 48));
    Space::new(cpu, VmId::new(vm).unwrap(), layout).unwrap()
}

/// An address space with one slot of so many pages, which hold something.
fn space(cpu: &CpuMemory<Hardware>, pages: u64) -> Arc<Space> {
    let space = empty_space(cpu, 0);
    let added = space.add_slot(cpu, SLOT, PAGE, pages * PAGE_SIZE, Level::L3, false);
    added.unwrap();
    for page in 0..pages {
        fill_page(&space, cpu, PAGE.offset(page * PAGE_SIZE), BEFORE);
    }
    Arc::new(space)
}

/// What a page holds that is full of a word.
fn full_of(word: u64) -> Vec<u8> {
    word.to_ne_bytes().repeat(PAGE_SIZE as usize / 8)
}

/// The hypervisor fills a page with a word.
fn fill_page(space: &Space, cpu: &CpuMemory<Hardware>, page: Ipa, word: u64) {
    space.write_guest(cpu, page, &full_of(word)).unwrap();
}

fn fill(space: &Space, cpu: &CpuMemory<Hardware>, word: u64) {
    fill_page(space, cpu, PAGE, word);
}

fn access(space: &Space, cpu: &CpuMemory<Hardware>, access: Access) {
    access_page(space, cpu, PAGE, access);
}

fn access_page(space: &Space, cpu: &CpuMemory<Hardware>, ipa: Ipa, access: Access) {
    let fault = Fault {
        vcpu: 0,
        ipa,
        va: None,
        access,
        kind: FaultKind::Translation,
    };
    loop {
        match space.fault(cpu, &fault) {
            FaultOutcome::Resolved => return,
            FaultOutcome::Retry => relax(),
            other => panic!("{other:?}"),
        }
    }
}

/// The guest fills a page with a word, as soon as it can: in one step with the look at the tables that allows it. A look
/// that an invalidation overtakes begins again: that completes only when the accesses have that it makes impossible.
fn store(space: &Space, cpu: &CpuMemory<Hardware>, page: Ipa, word: u64) {
    let leaf = loop {
        let began = INVALIDATIONS.load(Ordering::Relaxed);
        match space.lookup(cpu, page) {
            _ if INVALIDATIONS.load(Ordering::Relaxed) != began => {}
            Some((leaf, _)) if leaf.writable() => break leaf,
            _ => access_page(space, cpu, page, Access::Write),
        }
    };
    // SAFETY: the leaf maps memory of the arena.
    unsafe { write_bytes(leaf.pa(), &full_of(word)) };
}

fn is_marked(space: &Space, cpu: &CpuMemory<Hardware>) -> bool {
    marks(space, cpu) & 1 != 0
}

/// The log's bits, one for each page.
fn marks(space: &Space, cpu: &CpuMemory<Hardware>) -> u64 {
    let mut word = [0];
    space.get_dirty_log(cpu, SLOT, 0, &mut word).unwrap();
    word[0]
}

type Act = fn(&Space, &CpuMemory<Hardware>);

/// Pages that were compressed in all executions of a test.
static COMPRESSED: AtomicU64 = AtomicU64::new(0);

/// Tries every execution, with at most so many preemptions, in which `prepare` runs on CPU 0, then each of `race` at
/// once with the others, on CPU 1, 2 and so on, then `check` on CPU 0. One test at a time, as all share the pool.
fn explore<const N: usize>(preemptions: usize, prepare: Act, race: [Act; N], check: Act) {
    explore_pages(1, preemptions, prepare, race, check);
}

/// As [`explore`], with two pages.
fn explore_both<const N: usize>(preemptions: usize, prepare: Act, race: [Act; N], check: Act) {
    explore_pages(2, preemptions, prepare, race, check);
}

fn explore_pages<const N: usize>(
    pages: u64,
    preemptions: usize,
    prepare: Act,
    race: [Act; N],
    check: Act,
) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    let began = Instant::now();
    let before = COMPRESSED.load(Ordering::Relaxed);
    builder.check(move || {
        let own = cpu(0);
        let counters = own.system().reclaim_counters();
        let compressed = counters.compressed.get();
        let space = space(&own, pages);
        prepare(&space, &own);
        let threads = race.into_iter().enumerate().map(|(index, act)| {
            let space = space.clone();
            thread::spawn(move || act(&space, &cpu(index + 1)))
        });
        for thread in threads.collect::<Vec<_>>() {
            thread
                .join()
                .expect("the model checker reports panics itself");
        }
        COMPRESSED.fetch_add(counters.compressed.get() - compressed, Ordering::Relaxed);
        check(&space, &own);
        Arc::into_inner(space)
            .expect("the threads have ended")
            .destroy(&own);
        // Names of pages that are no more leave the lists, so that all executions begin alike.
        own.relieve();
        assert_eq!(own.system().listed_pages(), (0, 0));
        own.wait_for_epoch();
        assert_eq!(own.system().compressed(), StoreCounts::default());
    });
    // Adding up takes the longer the more CPUs there have been.
    assert!(POOL.counts_of(VmId::new(0).unwrap()).is_zero());
    POOL.counts().check().unwrap();
    let compressed = COMPRESSED.load(Ordering::Relaxed) - before;
    println!(
        "{}: {pages} pages, {N} CPUs, {preemptions} preemptions, {compressed} compressed, {:.1?}",
        std::thread::current().name().unwrap_or_default(),
        began.elapsed()
    );
    assert!(compressed > 0);
}

fn read(space: &Space, cpu: &CpuMemory<Hardware>) {
    access(space, cpu, Access::Read);
}

fn write(space: &Space, cpu: &CpuMemory<Hardware>) {
    access(space, cpu, Access::Write);
}

fn reclaim(_: &Space, cpu: &CpuMemory<Hardware>) {
    cpu.relieve();
}

fn balloon(space: &Space, cpu: &CpuMemory<Hardware>) {
    let page = PAGE..PAGE.offset(PAGE_SIZE);
    space.balloon(cpu, page).unwrap();
}

fn log(space: &Space, cpu: &CpuMemory<Hardware>) {
    let policy = LogPolicy::default();
    space.enable_dirty_log(cpu, SLOT, &policy).unwrap();
}

fn harvest(space: &Space, cpu: &CpuMemory<Hardware>) {
    let mut taken = [u64::MAX];
    space.clear_dirty_log(cpu, SLOT, 0, &mut taken).unwrap();
}

/// A page that was compressed.
fn compress(space: &Space, cpu: &CpuMemory<Hardware>) {
    write(space, cpu);
    cpu.relieve();
    assert!(space.lookup(cpu, PAGE).is_none());
    assert_eq!(cpu.system().compressed().pages, 1);
}

fn nothing(_: &Space, _: &CpuMemory<Hardware>) {}

fn found(space: &Space, cpu: &CpuMemory<Hardware>) -> u64 {
    found_in(space, cpu, PAGE)
}

fn found_in(space: &Space, cpu: &CpuMemory<Hardware>, page: Ipa) -> u64 {
    let mut word = [0; 8];
    space.read_guest(cpu, page, &mut word).unwrap();
    u64::from_ne_bytes(word)
}

/// If the page is mapped, it is to what backs it.
fn mapped_to_what_backs_it(space: &Space, cpu: &CpuMemory<Hardware>) {
    fill(space, cpu, AFTER);
    assert_eq!(found(space, cpu), AFTER);
    if let Some((leaf, _)) = space.lookup(cpu, PAGE) {
        let mut word = [0; 8];
        // SAFETY: the leaf maps memory of the arena.
        unsafe { read_bytes(leaf.pa(), &mut word) };
        assert_eq!(u64::from_ne_bytes(word), AFTER, "mapped to another frame");
    }
}

fn as_it_was(space: &Space, cpu: &CpuMemory<Hardware>) {
    assert_eq!(found(space, cpu), BEFORE);
    mapped_to_what_backs_it(space, cpu);
}

fn zero(space: &Space, cpu: &CpuMemory<Hardware>) {
    assert_eq!(found(space, cpu), 0);
    mapped_to_what_backs_it(space, cpu);
}

fn marked_if_writable(space: &Space, cpu: &CpuMemory<Hardware>) {
    let leaf = space.lookup(cpu, PAGE).map(|(leaf, _)| leaf);
    let writable = leaf.is_some_and(|leaf| leaf.writable());
    assert!(!writable || is_marked(space, cpu), "a write goes unnoticed");
    as_it_was(space, cpu);
}

#[test]
fn a_page_that_is_touched_while_it_is_compressed_is_as_it_was() {
    explore(3, nothing, [reclaim, write], as_it_was);
    explore(3, write, [reclaim, read], as_it_was);
}

#[test]
fn a_page_that_is_brought_back_by_two_has_one_frame() {
    explore(3, compress, [write, read], as_it_was);
}

#[test]
fn a_page_that_is_brought_back_and_compressed_again_is_as_it_was() {
    explore(3, compress, [reclaim, write], as_it_was);
    explore(1, compress, [reclaim, write, read], as_it_was);
}

#[test]
fn two_reclaimers_put_a_page_away_once() {
    explore(3, write, [reclaim, reclaim], as_it_was);
    explore(1, write, [reclaim, reclaim, read], as_it_was);
}

#[test]
fn what_the_hypervisor_reads_and_writes_is_as_it_was() {
    let look: Act = |space, cpu| assert_eq!(found(space, cpu), BEFORE);
    explore(3, write, [reclaim, look], as_it_was);
    explore(3, compress, [write, look], as_it_was);
    let change: Act = |space, cpu| fill(space, cpu, AFTER);
    let changed: Act = |space, cpu| assert_eq!(found(space, cpu), AFTER);
    explore(3, write, [reclaim, change], changed);
    explore(2, compress, [write, change], changed);
}

#[test]
fn rule_9_a_harvest_beside_reclaim_and_a_fault_loses_nothing() {
    let logged: Act = |space, cpu| {
        log(space, cpu);
        write(space, cpu);
    };
    explore(3, logged, [reclaim, harvest], marked_if_writable);
    explore(1, logged, [reclaim, harvest, write], marked_if_writable);
    let away: Act = |space, cpu| {
        log(space, cpu);
        compress(space, cpu);
    };
    explore(3, away, [harvest, write], marked_if_writable);
}

#[test]
fn what_is_given_up_is_zero_whoever_is_at_it() {
    explore(3, compress, [balloon, write], zero);
    explore(2, compress, [balloon, read], zero);
    let both: Act = |space, cpu| {
        balloon(space, cpu);
        reclaim(space, cpu);
    };
    explore(2, compress, [both, write], zero);
    explore(1, write, [balloon, reclaim, write], zero);
}

#[test]
fn rule_10_a_slot_that_goes_takes_its_page_along_wherever_that_is() {
    let remove: Act = |space, cpu| space.remove_slot(cpu, SLOT).unwrap();
    let gone: Act = |space, cpu| assert!(space.lookup(cpu, PAGE).is_none());
    explore(2, write, [remove, reclaim], gone);
    let touch: Act = |space, cpu| {
        let fault = Fault {
            vcpu: 0,
            ipa: PAGE,
            va: None,
            access: Access::Write,
            kind: FaultKind::Translation,
        };
        loop {
            match space.fault(cpu, &fault) {
                FaultOutcome::Resolved | FaultOutcome::NoSlot => return,
                FaultOutcome::Retry => relax(),
                other => panic!("{other:?}"),
            }
        }
    };
    explore(2, compress, [remove, touch], gone);
}

fn write_both(space: &Space, cpu: &CpuMemory<Hardware>) {
    access_page(space, cpu, PAGE, Access::Write);
    access_page(space, cpu, OTHER, Access::Write);
}

fn log_and_write_both(space: &Space, cpu: &CpuMemory<Hardware>) {
    log(space, cpu);
    write_both(space, cpu);
}

fn store_other(space: &Space, cpu: &CpuMemory<Hardware>) {
    store(space, cpu, OTHER, AFTER);
}

fn both_as_they_were(space: &Space, cpu: &CpuMemory<Hardware>) {
    assert_eq!(found_in(space, cpu, OTHER), BEFORE);
    as_it_was(space, cpu);
}

fn other_written(space: &Space, cpu: &CpuMemory<Hardware>) {
    assert_eq!(found_in(space, cpu, OTHER), AFTER, "a write is lost");
    as_it_was(space, cpu);
}

#[test]
fn a_write_while_its_page_is_compressed_is_not_lost() {
    let store_first: Act = |space, cpu| store(space, cpu, PAGE, AFTER);
    let written: Act = |space, cpu| assert_eq!(found(space, cpu), AFTER, "a write is lost");
    explore(4, write, [reclaim, store_first], written);
    explore(2, write, [reclaim, store_first, read], written);
}

#[test]
fn of_two_pages_that_go_together_each_is_as_it_was_last() {
    explore_both(3, write_both, [reclaim, store_other], other_written);
    explore_both(2, write_both, [reclaim, store_other, read], other_written);
}

#[test]
fn two_that_put_the_same_pages_away_do_so_once() {
    explore_both(2, write_both, [reclaim, reclaim], both_as_they_were);
    explore_both(
        1,
        write_both,
        [reclaim, reclaim, store_other],
        other_written,
    );
}

#[test]
fn rule_9_pages_that_go_together_beside_a_harvest_and_a_write_lose_no_mark() {
    let marked: Act = |space, cpu| {
        let marks = marks(space, cpu);
        for (page, bit) in [(PAGE, 1), (OTHER, 2)] {
            let leaf = space.lookup(cpu, page).map(|(leaf, _)| leaf);
            let writable = leaf.is_some_and(|leaf| leaf.writable());
            assert!(!writable || marks & bit != 0, "a write goes unnoticed");
        }
    };
    explore_both(2, log_and_write_both, [reclaim, harvest], marked);
    let and_written: Act = |space, cpu| {
        assert!(marks(space, cpu) & 2 != 0, "a write goes unnoticed");
        other_written(space, cpu);
    };
    explore_both(2, log, [reclaim, store_other], and_written);
    let switched_on: Act = |space, cpu| {
        other_written(space, cpu);
    };
    explore_both(1, write_both, [reclaim, log, store_other], switched_on);
}

#[test]
fn a_fork_beside_pages_that_go_together_has_them_as_they_were() {
    static CHILD: Mutex<Option<Space>> = Mutex::new(None);
    let fork: Act = |space, cpu| {
        let child = empty_space(cpu, 1);
        space.fork(cpu, &child).unwrap();
        *CHILD.lock().unwrap() = Some(child);
    };
    let both_have_them: Act = |space, cpu| {
        let child = CHILD.lock().unwrap().take().expect("the fork went well");
        both_as_they_were(&child, cpu);
        both_as_they_were(space, cpu);
        child.destroy(cpu);
    };
    explore_both(1, write_both, [reclaim, fork], both_have_them);
}

#[test]
fn what_is_given_up_together_is_zero_whoever_is_at_it() {
    let balloon_both: Act = |space, cpu| {
        let pages = PAGE..OTHER.offset(PAGE_SIZE);
        assert_eq!(space.balloon(cpu, pages), Ok(2));
    };
    let gone: Act = |space, cpu| {
        assert_eq!(found_in(space, cpu, OTHER), 0);
        zero(space, cpu);
    };
    explore_both(2, write_both, [balloon_both, reclaim], gone);
    let first_gone: Act = |space, cpu| {
        let other = found_in(space, cpu, OTHER);
        assert!(other == 0 || other == AFTER, "{other:#x}");
        zero(space, cpu);
    };
    explore_both(
        1,
        write_both,
        [balloon_both, reclaim, store_other],
        first_gone,
    );
}
