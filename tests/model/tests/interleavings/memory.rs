//! The rules about decisions, the dirty log and slots (8 to 10), under every interleaving of two and three CPUs.
//!
//! The address space is the real one, with its real frames and epochs; table entries, bitmap words and what faults decide on
//! (slots and logs) are the model checker's. What isn't (the pool's lock, the epoch's own state) is not reordered by it, but
//! every order of the steps around it is tried. There are no TLBs: `changes.rs` and `tables.rs` have them.
//!
//! Bounds: one page in a tree of two levels with four entries each; two or three CPUs, each a thread, beside a main thread
//! that waits; at most so many preemptions per execution as the first argument of `explore` says. Of what takes the lock of
//! an address space's owner, one at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory::{Access, CpuMemory, Fault, FaultKind, FaultOutcome, LogPolicy, SlotId};
use model::checked::memory::{Space, cpu_with, nothing_is_left, nothing_is_left_so_far, vm_id};
use model::checked::{alone, every_execution};
use stage2::sync::relax;
use stage2::{Features, Ipa, Layout, Level, NoTlb, PAGE_SIZE};

const SLOT: SlotId = SlotId(0);
const PAGE: Ipa = Ipa::new(0);

fn cpu(number: usize) -> CpuMemory<NoTlb> {
    cpu_with(number, NoTlb)
}

/// An address space with one slot of one page.
fn space(cpu: &CpuMemory<NoTlb>) -> Space {
    let space = Space::new(
        cpu,
        vm_id(0),
        Layout::small(Level::L2, Features::armv8_0(32, 48)),
    )
    .unwrap();
    space
        .add_slot(cpu, SLOT, PAGE, PAGE_SIZE, Level::L3, false)
        .unwrap();
    space
}

fn access(space: &Space, cpu: &CpuMemory<NoTlb>, access: Access) {
    access_after(space, cpu, access, FaultKind::Translation);
}

/// Serves an access that ran into what the page's entry was.
fn access_after(space: &Space, cpu: &CpuMemory<NoTlb>, access: Access, kind: FaultKind) {
    let fault = Fault {
        vcpu: 0,
        ipa: PAGE,
        va: None,
        access,
        kind,
    };
    loop {
        match space.fault(cpu, &fault) {
            FaultOutcome::Resolved => return,
            FaultOutcome::Retry => relax(),
            other => panic!("{other:?}"),
        }
    }
}

fn is_writable(space: &Space, cpu: &CpuMemory<NoTlb>) -> bool {
    space
        .lookup(cpu, PAGE)
        .is_some_and(|(leaf, _)| leaf.writable())
}

fn is_marked(space: &Space, cpu: &CpuMemory<NoTlb>) -> bool {
    let mut word = [0];
    space.get_dirty_log(cpu, SLOT, 0, &mut word).unwrap();
    word[0] & 1 != 0
}

type Act = fn(&Space, &CpuMemory<NoTlb>);

/// Tries every execution, with at most so many preemptions, in which `prepare` runs on CPU 0, then each of `race` at once
/// with the others, on CPU 1, 2 and so on, then `check` on CPU 0. One test at a time, as all share the pool.
fn explore<const N: usize>(preemptions: usize, prepare: Act, race: [Act; N], check: Act) {
    let _alone = alone();
    let race = race.map(|act| move |space: &Space, number| act(space, &cpu(number)));
    every_execution(preemptions, race, move |run| {
        let own = cpu(0);
        let space = Arc::new(space(&own));
        prepare(&space, &own);
        run(&space);
        check(&space, &own);
        let space = Arc::into_inner(space).expect("the threads have ended");
        space.destroy(&own);
        own.wait_for_epoch();
        nothing_is_left_so_far(1);
    });
    nothing_is_left(1);
}

fn nothing(_: &Space, _: &CpuMemory<NoTlb>) {}

fn log(space: &Space, cpu: &CpuMemory<NoTlb>) {
    space
        .enable_dirty_log(cpu, SLOT, &LogPolicy::default())
        .unwrap();
}

fn stop_logging(space: &Space, cpu: &CpuMemory<NoTlb>) {
    space.disable_dirty_log(cpu, SLOT).unwrap();
    let mut next = Some(Ipa::new(0));
    while let Some(from) = next {
        next = space.restore_blocks(cpu, SLOT, from).unwrap().next;
    }
}

fn read(space: &Space, cpu: &CpuMemory<NoTlb>) {
    access(space, cpu, Access::Read);
}

fn write(space: &Space, cpu: &CpuMemory<NoTlb>) {
    access(space, cpu, Access::Write);
}

/// A write to what was mapped read-only.
fn write_again(space: &Space, cpu: &CpuMemory<NoTlb>) {
    access_after(space, cpu, Access::Write, FaultKind::Permission);
}

/// Takes what is dirty out of the log.
fn harvest(space: &Space, cpu: &CpuMemory<NoTlb>) {
    let mut taken = [u64::MAX];
    space.clear_dirty_log(cpu, SLOT, 0, &mut taken).unwrap();
}

/// Reads the log, and changes nothing.
fn look(space: &Space, cpu: &CpuMemory<NoTlb>) {
    is_marked(space, cpu);
}

/// A page that is logged and dirty.
fn dirty(space: &Space, cpu: &CpuMemory<NoTlb>) {
    log(space, cpu);
    write(space, cpu);
}

/// A page that is logged, and not dirty.
fn clean(space: &Space, cpu: &CpuMemory<NoTlb>) {
    write(space, cpu);
    log(space, cpu);
}

/// A page that logging has left read-only.
fn left_read_only(space: &Space, cpu: &CpuMemory<NoTlb>) {
    dirty(space, cpu);
    harvest(space, cpu);
    stop_logging(space, cpu);
}

fn what_is_writable_is_marked(space: &Space, cpu: &CpuMemory<NoTlb>) {
    assert!(
        !is_writable(space, cpu) || is_marked(space, cpu),
        "a writable page isn't in the log"
    );
}

fn writable(space: &Space, cpu: &CpuMemory<NoTlb>) {
    assert!(is_writable(space, cpu));
}

#[test]
fn rule_8_a_page_mapped_while_logging_is_enabled_is_logged() {
    explore(5, nothing, [log, write], what_is_writable_is_marked);
}

#[test]
fn rule_8_a_page_mapped_by_two_while_logging_is_enabled_is_logged() {
    explore(2, nothing, [log, write, write], what_is_writable_is_marked);
    explore(2, nothing, [log, write, read], what_is_writable_is_marked);
}

#[test]
fn rule_8_a_page_relaxed_while_logging_is_enabled_is_logged() {
    explore(5, left_read_only, [log, write], what_is_writable_is_marked);
}

#[test]
fn rule_8_a_page_relaxed_by_two_while_logging_is_enabled_is_logged() {
    explore(
        3,
        left_read_only,
        [log, write, write],
        what_is_writable_is_marked,
    );
}

#[test]
fn rule_8_a_fault_while_logging_is_disabled_goes_on() {
    explore(4, log, [stop_logging, write], writable);
    explore(4, dirty, [stop_logging, write], writable);
}

#[test]
fn rule_8_two_faults_while_logging_is_disabled_go_on() {
    explore(2, log, [stop_logging, write, read], writable);
}

#[test]
fn rule_8_logging_that_stops_and_starts_again_beside_a_fault() {
    let restart: Act = |space, cpu| {
        stop_logging(space, cpu);
        log(space, cpu);
    };
    explore(4, log, [restart, write], what_is_writable_is_marked);
    explore(4, dirty, [restart, write], what_is_writable_is_marked);
}

#[test]
fn rule_8_a_page_relaxed_while_another_log_begins_is_in_that_one() {
    let harvested: Act = |space, cpu| {
        dirty(space, cpu);
        harvest(space, cpu);
    };
    let restart: Act = |space, cpu| {
        stop_logging(space, cpu);
        log(space, cpu);
    };
    explore(
        4,
        harvested,
        [restart, write_again],
        what_is_writable_is_marked,
    );
}

#[test]
fn rule_9_a_harvest_beside_a_write_fault_loses_nothing() {
    explore(5, log, [harvest, write], what_is_writable_is_marked);
    explore(5, dirty, [harvest, write], what_is_writable_is_marked);
    explore(4, clean, [harvest, write_again], what_is_writable_is_marked);
}

#[test]
fn rule_9_a_harvest_beside_two_faults_loses_nothing() {
    explore(
        3,
        dirty,
        [harvest, write_again, write],
        what_is_writable_is_marked,
    );
    explore(2, dirty, [harvest, write, look], what_is_writable_is_marked);
}

#[test]
fn rule_9_what_was_written_is_harvested_or_still_in_the_log() {
    /// Harvested pages, in one execution.
    static HARVESTED: AtomicU64 = AtomicU64::new(0);
    let begin: Act = |space, cpu| {
        HARVESTED.store(0, Ordering::Relaxed);
        log(space, cpu);
    };
    let harvest: Act = |space, cpu| {
        let mut taken = [u64::MAX];
        space.clear_dirty_log(cpu, SLOT, 0, &mut taken).unwrap();
        HARVESTED.fetch_or(taken[0], Ordering::Relaxed);
    };
    let check: Act = |space, cpu| {
        let harvested = HARVESTED.load(Ordering::Relaxed) & 1 != 0;
        assert!(harvested || is_marked(space, cpu), "the write is nowhere");
    };
    explore(5, begin, [harvest, write], check);
    explore(2, begin, [harvest, write, read], check);
}

/// A slot behind the one that is there.
fn add_slot(space: &Space, cpu: &CpuMemory<NoTlb>) {
    let start = PAGE.offset(PAGE_SIZE);
    space
        .add_slot(cpu, SlotId(1), start, PAGE_SIZE, Level::L3, false)
        .unwrap();
}

/// In both slots.
fn fault_in_both(space: &Space, cpu: &CpuMemory<NoTlb>) {
    write(space, cpu);
    let beside = Fault {
        vcpu: 0,
        ipa: PAGE.offset(PAGE_SIZE),
        va: None,
        access: Access::Write,
        kind: FaultKind::Translation,
    };
    let outcome = space.fault(cpu, &beside);
    let mapped = space.lookup(cpu, beside.ipa).is_some();
    match outcome {
        FaultOutcome::Resolved => assert!(mapped),
        // Another one may map it in between.
        FaultOutcome::NoSlot | FaultOutcome::Retry => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn rule_10_a_fault_beside_a_new_slot_sees_the_old_slots_or_the_new_ones() {
    explore(5, nothing, [add_slot, fault_in_both], writable);
}

#[test]
fn rule_10_two_faults_beside_a_new_slot_see_the_old_slots_or_the_new_ones() {
    explore(
        2,
        nothing,
        [add_slot, fault_in_both, fault_in_both],
        writable,
    );
    explore(2, nothing, [add_slot, write, read], writable);
}
