//! Page merging, and moving pages from frame to frame, under every interleaving with what else happens to those pages: on the
//! real address space, with its real frames. Each page holds what its guest has written there, and no other page's writes, in the end.
//!
//! A guest's write is a step of its thread ([`overtaking`]).
//!
//! Bounds: two pages of one object, which is mapped once, in a tree of two levels with four entries each; two or three CPUs,
//! each a thread, beside a main thread that waits; at most so many preemptions per execution as the first argument of
//! `explore` says. One of them scans, as only one can at a time.

use std::sync::Arc;

use memory::{
    Access, CpuMemory, LogPolicy, MergePolicy, Object, Owner, PageMerging, SlotConfig, SlotId,
};
use model::checked::memory::{
    POOL, Space, cpu_with, nothing_is_left, nothing_is_left_so_far, vm_id,
};
use model::checked::overtaking::{self, OVERTAKING, Overtaking};
use model::checked::{alone, every_execution, page};
use stage2::{Features, Layout, Level, PAGE_SIZE};

const SLOT: SlotId = SlotId(0);
const PAGES: u64 = 2;

type Cpu = CpuMemory<Overtaking>;

/// A VM, and the scanner that merges its pages.
struct World {
    space: Space,
    object: Arc<Object>,
    merging: PageMerging,
}

fn cpu(number: usize) -> Cpu {
    cpu_with(number, OVERTAKING)
}

fn world(cpu: &Cpu) -> World {
    let vm = vm_id(0);
    let layout = Layout::small(Level::L2, Features::armv8_0(32, 48));
    let space = Space::new(cpu, vm, layout).unwrap();
    let object = Object::anonymous(cpu, Owner::Vm(vm), PAGES * PAGE_SIZE, Level::L3).unwrap();
    let merging = PageMerging::new(MergePolicy::default());
    merging.add(&object).unwrap();
    let config = SlotConfig {
        id: SLOT,
        start: page(0),
        offset: 0,
        bytes: object.bytes(),
        object: object.clone(),
        read_only: false,
        write_faults: false,
    };
    space.map_object(cpu, config).unwrap();
    World {
        space,
        object,
        merging,
    }
}

/// The guest writes to a page, faulting until it may.
fn write_page(world: &World, cpu: &Cpu, number: u64) {
    overtaking::write(&world.space, cpu, 0, page(number));
}

fn fault(world: &World, cpu: &Cpu, number: u64, access: Access) {
    overtaking::fault(&world.space, cpu, 0, page(number), access);
}

fn write_first(world: &World, cpu: &Cpu) {
    write_page(world, cpu, 0);
}

fn write_second(world: &World, cpu: &Cpu) {
    write_page(world, cpu, 1);
}

fn read_first(world: &World, cpu: &Cpu) {
    fault(world, cpu, 0, Access::Read);
}

/// The hypervisor writes to the second page, as a device would.
fn write_second_from_outside(world: &World, cpu: &Cpu) {
    let word = 2u64.to_le_bytes();
    world.space.write_guest(cpu, page(1), &word).unwrap();
}

/// Writes to the first page and looks for the mark that this leaves in the log.
fn write_first_and_harvest(world: &World, cpu: &Cpu) {
    write_page(world, cpu, 0);
    let mut bitmap = [0];
    world
        .space
        .get_and_clear_dirty_log(cpu, SLOT, 0, &mut bitmap)
        .unwrap();
    assert_eq!(bitmap[0] & 1, 1, "a write isn't in the log");
}

/// Looks at both pages once.
fn scan(world: &World, cpu: &Cpu) {
    world.merging.step(cpu);
}

/// Moves what the first page holds to another frame, if nobody else is at it.
fn move_first(world: &World, cpu: &Cpu) {
    world.object.migrate(cpu, 0);
}

fn in_memory(world: &World, cpu: &Cpu, number: u64) -> u64 {
    overtaking::in_memory(&world.space, cpu, page(number))
}

/// Both pages hold what was written once.
fn written(world: &World, cpu: &Cpu) {
    write_first(world, cpu);
    write_second(world, cpu);
}

/// Both pages hold the same, and the scanner knows.
fn equal(world: &World, cpu: &Cpu) {
    written(world, cpu);
    scan(world, cpu);
}

/// As equal, but no vCPU has touched them.
fn untouched(world: &World, cpu: &Cpu) {
    for number in 0..PAGES {
        let word = 1u64.to_le_bytes();
        world.space.write_guest(cpu, page(number), &word).unwrap();
    }
    scan(world, cpu);
}

fn logged(world: &World, cpu: &Cpu) {
    equal(world, cpu);
    world
        .space
        .enable_dirty_log(cpu, SLOT, &LogPolicy::default())
        .unwrap();
}

/// Both pages have the same frame.
fn merged(world: &World, cpu: &Cpu) {
    equal(world, cpu);
    scan(world, cpu);
    assert_eq!(POOL.shared_frames(), 1);
}

/// As merged, and the first has been written to what it was, and scanned.
fn parted(world: &World, cpu: &Cpu) {
    merged(world, cpu);
    world.space.write_guest(cpu, page(0), &[1]).unwrap();
    scan(world, cpu);
}

/// The pages hold zeros that were written, and the scanner knows.
fn zeros(world: &World, cpu: &Cpu) {
    world
        .space
        .write_guest(cpu, page(0), &[0; 2 * PAGE_SIZE as usize])
        .unwrap();
    fault(world, cpu, 0, Access::Write);
    scan(world, cpu);
}

type Act = fn(&World, &Cpu);

/// Tries every execution, with at most so many preemptions, in which `prepare` runs on CPU 0, then each of `race` at once
/// with the others, on CPU 1, 2 and so on. In the end the pages hold `words`. One test at a time, as all share the pool.
fn explore<const N: usize>(
    preemptions: usize,
    prepare: Act,
    race: [Act; N],
    words: [u64; PAGES as usize],
) {
    let _alone = alone();
    let race = race.map(|act| move |world: &World, number| act(world, &cpu(number)));
    every_execution(preemptions, race, move |run| {
        let own = cpu(0);
        let world = Arc::new(world(&own));
        prepare(&world, &own);
        run(&world);
        for (number, word) in (0..).zip(words) {
            assert_eq!(in_memory(&world, &own, number), word, "page {number}");
        }
        let world = Arc::into_inner(world).expect("the threads have ended");
        drop(world.object);
        world.space.destroy(&own);
        own.wait_for_epoch();
        nothing_is_left_so_far(1);
    });
    nothing_is_left(1);
}

#[test]
fn rule_8_a_page_that_is_written_while_it_is_merged_keeps_the_write_to_itself() {
    explore(2, equal, [scan, write_first], [2, 1]);
    explore(2, equal, [scan, write_second], [1, 2]);
}

#[test]
fn rule_8_a_page_is_merged_beside_a_fault_that_maps_it() {
    explore(2, untouched, [scan, read_first], [1, 1]);
    explore(2, untouched, [scan, write_first], [2, 1]);
    explore(1, untouched, [scan, read_first, write_second], [1, 2]);
}

#[test]
fn rule_8_a_page_that_the_hypervisor_writes_while_it_is_merged_keeps_the_write_to_itself() {
    explore(2, equal, [scan, write_second_from_outside], [1, 2]);
}

#[test]
fn rule_9_a_write_to_a_page_that_is_being_merged_is_logged() {
    explore(2, logged, [scan, write_first_and_harvest], [2, 1]);
}

#[test]
fn rule_8_a_page_that_joins_others_is_written_beside_a_write_to_one_of_them() {
    explore(2, parted, [scan, write_first], [2, 1]);
    explore(2, parted, [scan, write_second], [1, 2]);
}

#[test]
fn rule_8_a_page_of_zeros_is_written_while_its_frame_is_given_up() {
    explore(2, zeros, [scan, write_first], [1, 0]);
}

#[test]
fn rule_8_merged_pages_are_written_at_once() {
    explore(2, merged, [write_first, write_second], [2, 2]);
}

#[test]
fn rule_8_a_page_that_moves_to_another_frame_takes_every_write_with_it() {
    explore(2, written, [move_first, write_first], [2, 1]);
    explore(2, written, [move_first, read_first], [1, 1]);
    explore(1, written, [move_first, read_first, write_first], [2, 1]);
}

#[test]
fn rule_8_a_shared_frame_that_moves_stays_shared_until_it_is_written() {
    explore(2, merged, [move_first, write_first], [2, 1]);
    explore(2, merged, [move_first, write_second], [1, 2]);
}

#[test]
fn rule_8_a_frame_moves_while_its_page_is_merged() {
    explore(2, equal, [scan, move_first], [1, 1]);
    explore(1, equal, [scan, move_first, write_second], [1, 2]);
}
