//! Several CPUs that merge pages together, under every interleaving with each other, with writes to these pages, and with their
//! withdrawal: on the real address space, with its real frames.
//!
//! Bounds: two or three pages, each of an object of its own, so that two scanners never look at the same page by turns that the
//! bounds of a batch decide; mapped once each, in a tree of two levels with four entries each; two or three CPUs, each a thread,
//! beside a main thread that waits; at most so many preemptions per execution as the first argument of `explore` says.

use std::sync::Arc;

use memory::{CpuMemory, MergePolicy, Object, Owner, PageMerging, SlotConfig, SlotId};
use model::checked::memory::{
    POOL, Space, cpu_with, nothing_is_left, nothing_is_left_so_far, vm_id,
};
use model::checked::overtaking::{self, OVERTAKING, Overtaking};
use model::checked::{alone, every_execution, page};
use stage2::{Features, Layout, Level, PAGE_SIZE};

type Cpu = CpuMemory<Overtaking>;

/// A VM whose pages are merged. The scanners and the map have the objects beside this.
struct World {
    space: Space,
    objects: Vec<Arc<Object>>,
    merging: PageMerging,
}

/// How many have an object that is mapped, and that nobody uses at the moment.
const OWNERS: usize = 2;

fn cpu(number: usize) -> Cpu {
    cpu_with(number, OVERTAKING)
}

fn world(cpu: &Cpu, pages: usize) -> World {
    let vm = vm_id(0);
    let layout = Layout::small(Level::L2, Features::armv8_0(32, 48));
    let space = Space::new(cpu, vm, layout).unwrap();
    let merging = PageMerging::new(MergePolicy {
        scanners: 2,
        ..MergePolicy::default()
    });
    let object = |number: usize| {
        let object = Object::anonymous(cpu, Owner::Vm(vm), PAGE_SIZE, Level::L3).unwrap();
        merging.add(&object).unwrap();
        let config = SlotConfig {
            id: SlotId(number as u32),
            start: page(number as u64),
            offset: 0,
            bytes: PAGE_SIZE,
            object: object.clone(),
            read_only: false,
            write_faults: false,
        };
        space.map_object(cpu, config).unwrap();
        object
    };
    let objects = (0..pages).map(object).collect();
    World {
        space,
        objects,
        merging,
    }
}

fn write_page(world: &World, cpu: &Cpu, number: u64) {
    overtaking::write(&world.space, cpu, 0, page(number));
}

fn write_first(world: &World, cpu: &Cpu) {
    write_page(world, cpu, 0);
}

fn write_second(world: &World, cpu: &Cpu) {
    write_page(world, cpu, 1);
}

/// Looks at pages until this scan of all of them has none left.
fn scan(world: &World, cpu: &Cpu) {
    world.merging.step(cpu);
}

/// Withdraws the first page: afterwards no scanner uses its object.
fn withdraw_first(world: &World, _: &Cpu) {
    let first = &world.objects[0];
    world.merging.remove(first);
    assert_eq!(Arc::strong_count(first), OWNERS, "a scanner still uses it");
}

/// As [`withdraw_first`]; then the VM loses the page, too.
fn remove_first(world: &World, cpu: &Cpu) {
    withdraw_first(world, cpu);
    world.space.remove_slot(cpu, SlotId(0)).unwrap();
}

/// All pages hold the same, and a scan has been there.
fn equal(world: &World, cpu: &Cpu) {
    for number in 0..world.objects.len() as u64 {
        write_page(world, cpu, number);
    }
    scan(world, cpu);
}

/// As equal, and the next scan has begun: the first page is a candidate.
fn begun(world: &World, cpu: &Cpu) {
    equal(world, cpu);
    assert_eq!(world.merging.scan(cpu, 1), 1);
}

/// As begun, and the last page has come since: the parts of the next scan are others than those of this one.
fn extended(world: &World, cpu: &Cpu) {
    equal(world, cpu);
    let last = world.objects.last().expect("there are pages");
    world.merging.remove(last);
    assert_eq!(world.merging.scan(cpu, 1), 1);
    world.merging.add(last).unwrap();
}

type Act = fn(&World, &Cpu);

/// Tries every execution, with at most so many preemptions, in which `prepare` runs on CPU 0, then each of `race` at once
/// with the others, on CPU 1, 2 and so on. In the end the pages that are still mapped hold `words`, and `check` is called. One
/// test at a time, as all share the pool.
fn explore<const N: usize, const PAGES: usize>(
    preemptions: usize,
    prepare: Act,
    race: [Act; N],
    words: [Option<u64>; PAGES],
    check: fn(&World),
) {
    let _alone = alone();
    let race = race.map(|act| move |world: &World, number| act(world, &cpu(number)));
    every_execution(preemptions, race, move |run| {
        let own = cpu(0);
        let world = Arc::new(world(&own, PAGES));
        prepare(&world, &own);
        run(&world);
        check(&world);
        for (number, word) in (0..).zip(words) {
            if let Some(word) = word {
                let found = overtaking::in_memory(&world.space, &own, page(number));
                assert_eq!(found, word, "page {number}");
            }
        }
        let world = Arc::into_inner(world).expect("the threads have ended");
        drop(world.objects);
        world.space.destroy(&own);
        own.wait_for_epoch();
        nothing_is_left_so_far(1);
    });
    nothing_is_left(1);
}

/// Whichever scanner comes first, the second of two equal pages meets the first.
fn are_merged(world: &World) {
    assert_eq!(
        POOL.shared_frames(),
        1,
        "equal pages have missed each other"
    );
    let merged = world.merging.statistics();
    assert!(merged.full_scans >= 2, "{merged:?}");
    assert_eq!(merged.pages_skipped, 0);
}

#[test]
fn rule_8_equal_pages_that_two_scanners_look_at_at_once_are_merged() {
    explore(2, equal, [scan, scan], [Some(1), Some(1)], are_merged);
}

#[test]
fn rule_8_two_scanners_want_the_same_page_for_theirs() {
    let words = [Some(1), Some(1), Some(1)];
    explore(2, begun, [scan, scan], words, |_| {
        assert_eq!(POOL.shared_frames(), 1, "at least one of them got it");
    });
}

/// A scanner that looks for the last pages of a scan while another one begins the next takes none of these.
#[test]
fn rule_8_a_scan_that_ends_with_more_pages_than_it_began_with_is_followed_by_others() {
    explore(2, extended, [scan, scan], [Some(1); 3], |world| {
        let cpu = cpu(3);
        let before = world.merging.statistics().full_scans;
        for _ in 0..3 {
            scan(world, &cpu);
        }
        let after = world.merging.statistics().full_scans;
        assert!(after >= before + 2, "{before} scans, then {after}");
    });
}

#[test]
fn rule_8_a_page_is_written_while_two_scanners_merge_others_with_it() {
    explore(
        1,
        begun,
        [scan, scan, write_first],
        [Some(2), Some(1), Some(1)],
        |_| {},
    );
    explore(
        1,
        equal,
        [scan, scan, write_second],
        [Some(1), Some(2)],
        |_| {},
    );
}

#[test]
fn rule_8_an_object_that_is_withdrawn_is_used_by_no_scanner() {
    explore(2, equal, [scan, withdraw_first], [Some(1), Some(1)], |_| {});
    explore(1, begun, [scan, scan, withdraw_first], [Some(1); 3], |_| {});
}

#[test]
fn rule_10_a_page_is_unmapped_while_two_scanners_merge_others_with_it() {
    explore(
        1,
        begun,
        [scan, scan, remove_first],
        [None, Some(1), Some(1)],
        |_| {},
    );
}
