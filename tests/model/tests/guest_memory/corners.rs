//! The corners of guest memory, walked by a table: how large its pieces are, how its writes are logged, who else maps it, where
//! the slot lies, which CPU operates, what CPUs have, how many frames there are, and what is done, twice.
//!
//! In every corner guests write and read before, between and after what is done, through whatever their CPUs' TLBs may hold; what
//! they find is compared page for page with what they wrote, the dirty log with what should be in it, the frames with none
//! in the end, and the checker has nothing to say. Of the whole product those rows are walked in which every combination of two
//! dimensions' choices occurs; with memory in blocks of 2 MiB, where most happens, every one of three.

mod corner;
mod covering;
mod operations;
mod scene;

use corner::{Corner, GIB, Log, OPERATIONS, OPERATORS, Operation, PLACES, Second};
use covering::covering;
use memory::BackingPolicy;
use memory::frames::arena;
use model::watched::Watched;
use scene::{CPUS, Scene};
use stage2::{Level, Pa};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::panic;

/// Frames beside a gigabyte's.
const FRAMES: usize = 8192;
/// Corners that are printed of those that failed in the same way.
const PRINTED: usize = 5;

thread_local! {
    static WHY: RefCell<String> = RefCell::default();
}

/// Walks one corner.
fn walk(machine: &Watched, corner: &Corner) {
    // If it fails, nothing of it may be torn down.
    let mut scene = ManuallyDrop::new(Scene::new(machine, corner));
    scene.look();
    if let Some(frames) = corner.frames {
        machine.starve(scene.operator(), frames);
        scene.starved = true;
    }
    for (index, operation) in corner.operations.iter().enumerate() {
        scene.perform(*operation);
        scene.look();
        if scene.starved {
            machine.feed();
            (0..CPUS).for_each(|cpu| machine.on(cpu, |cpu| cpu.upkeep()));
            scene.starved = false;
        }
        match index % 2 {
            0 => scene.write_some(),
            _ => scene.read_all(),
        }
        scene.look();
    }
    scene.read_all();
    scene.harvest();
    scene.look();
    ManuallyDrop::into_inner(scene).finish();
}

/// A machine on which nobody has done anything but that of VMIDs of 16 bits the small ones are used up.
fn machine(memory: &[Range<Pa>], corner: &Corner) -> Watched {
    let equipment = corner.equipment();
    let machine = Watched::new(CPUS, memory, equipment);
    if equipment.features.wide_vmids {
        for _ in 0..1 << 8 {
            let space = machine.space(0, BackingPolicy::default()).unwrap();
            machine.on(0, |cpu| {
                space.activate(cpu);
                space.destroy(cpu);
            });
        }
    }
    machine
}

/// Walks all these corners, on `memory` one after the other, and says which failed.
fn walk_all(corners: &[Corner], memory: impl Fn() -> Vec<Range<Pa>>) {
    let mut by_machine: BTreeMap<(usize, bool), Vec<&Corner>> = BTreeMap::new();
    for corner in corners {
        let key = (corner.machine, corner.is_by_hardware());
        by_machine.entry(key).or_default().push(corner);
    }
    panic::set_hook(Box::new(|info| {
        WHY.set(info.to_string().replace('\n', " "))
    }));
    let mut failed: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for alike in by_machine.values() {
        let mut used = None;
        for corner in alike {
            let machine = used.get_or_insert_with(|| ManuallyDrop::new(machine(&memory(), corner)));
            if panic::catch_unwind(panic::AssertUnwindSafe(|| walk(machine, corner))).is_err() {
                let why = WHY.take();
                // Numbers differ from corner to corner.
                let alike = why.replace(|c: char| c.is_ascii_hexdigit(), "");
                failed
                    .entry(alike)
                    .or_default()
                    .push(format!("{corner}: {why}"));
                used = None;
            }
        }
        used.map(ManuallyDrop::into_inner);
    }
    let _ = panic::take_hook();
    for alike in failed.values() {
        println!("{} corners, of which some:", alike.len());
        (alike.iter().take(PRINTED)).for_each(|failure| println!("  {failure}"));
    }
    let count: usize = failed.values().map(Vec::len).sum();
    assert_eq!(count, 0, "so many of {} corners failed", corners.len());
}

/// Corners in which any `strength` choices meet, what is done first being one of them. Something else is done then.
fn corners(strength: usize, piece: Level) -> Vec<Corner> {
    let sizes = [&Corner::SIZES[..], &[OPERATIONS.len()]].concat();
    let corner = |(number, row): (usize, &Vec<usize>)| {
        let (row, first) = row.split_at(Corner::SIZES.len());
        let operations = [first[0], number % OPERATIONS.len()];
        let operations = operations.map(|operation| OPERATIONS[operation]);
        Corner::new(piece, row, operations.to_vec())
    };
    covering(strength, &sizes)
        .iter()
        .enumerate()
        .map(corner)
        .collect()
}

#[test]
fn memory_in_pages() {
    walk_all(&corners(2, Level::L3), || vec![arena::leak(FRAMES)]);
}

#[test]
fn memory_in_blocks() {
    walk_all(&corners(3, Level::L2), || vec![arena::leak(FRAMES)]);
}

/// A gigabyte takes its time, so one row does more: what parts it, brings it together again and gives it to others, in orders
/// that have gone wrong before, and the rest by turns.
#[test]
fn memory_in_gigabytes() {
    use Operation::{
        Compact, EndSecond, Fork, Gather, MoveSlot, Prefault, RestoreBlocks, UnshareRegion,
    };
    const EACH: usize = 6;
    const ORDERS: [[Operation; EACH]; 4] = [
        [EndSecond, Prefault, Gather, RestoreBlocks, Fork, MoveSlot],
        [Prefault, Gather, MoveSlot, Fork, Prefault, EndSecond],
        [
            UnshareRegion,
            Gather,
            MoveSlot,
            RestoreBlocks,
            EndSecond,
            Prefault,
        ],
        [
            MoveSlot,
            RestoreBlocks,
            EndSecond,
            Prefault,
            Compact,
            MoveSlot,
        ],
    ];
    let memory = [arena::leak(GIB as usize), arena::leak(FRAMES)];
    let by_turns = |number: usize| {
        (number * EACH..(number + 1) * EACH)
            .map(|turn| OPERATIONS[turn % OPERATIONS.len()])
            .collect()
    };
    let rows = covering(2, &Corner::SIZES);
    let in_order = |(number, row): (usize, &Vec<usize>)| {
        let operations = match ORDERS.get(number % (2 * ORDERS.len())) {
            Some(order) => order.to_vec(),
            None => by_turns(number),
        };
        Corner::new(Level::L1, row, operations)
    };
    let mut corners: Vec<Corner> = rows.iter().enumerate().map(in_order).collect();
    // Only what isn't logged is gathered: all orders of what a fork shares, wherever it lies.
    for (number, place) in PLACES.into_iter().enumerate() {
        corners.extend(ORDERS.iter().map(|order| Corner {
            log: Log::None,
            second: Second::Fork,
            place,
            cpu: OPERATORS[1],
            frames: None,
            ..Corner::new(Level::L1, &rows[number], order.to_vec())
        }));
    }
    walk_all(&corners, || memory.to_vec());
}
