//! State that is read and written by hand while list registers of others have it (rule V10).

use crate::world::{Act, EDGE, World, explore};
use loom::sync::atomic::Ordering;

fn active_on_0(world: &World) {
    world.raise(EDGE);
    world.rest();
    assert_eq!(world.acknowledge(0), Some(EDGE));
}

/// vCPU 0 handles one interrupt, vCPU 1 another.
fn active_on_both(world: &World) {
    active_on_0(world);
    world.route(0, 34, 1);
    world.raise(34);
    world.rest();
    assert_eq!(world.acknowledge(1), Some(34));
}

#[test]
fn an_active_one_reads_so_until_its_end() {
    let end: Act = |world| {
        world.interrupts(0);
        // It may be read as inactive from here on.
        world.seen.store(1000, Ordering::Relaxed);
        world.end(0, EDGE);
        world.interrupts(0);
    };
    let read: Act = |world| {
        if world.read_bit(1, 0, 0x300, EDGE) == Some(false) {
            assert_eq!(
                world.seen.load(Ordering::Relaxed),
                1000,
                "it runs, and reads as inactive"
            );
        }
    };
    explore((2, 2), active_on_0, [end, read], |world| {
        assert_eq!(world.finish(), [EDGE]);
        assert_eq!(world.read_bit(0, 0, 0x300, EDGE), Some(false));
    });
}

#[test]
fn two_that_ask_each_other_come_to_an_end() {
    let race: [Act; 2] = [
        |world| {
            let read = world.read_bit(0, 0, 0x300, 34);
            assert_ne!(read, Some(false));
        },
        |world| {
            let read = world.read_bit(1, 0, 0x300, EDGE);
            assert_ne!(read, Some(false));
        },
    ];
    explore((2, 2), active_on_both, race, |world| {
        world.rest();
        // What is asked is answered before it is asked again.
        let read = world.read_bit(0, 0, 0x300, 34).or_else(|| {
            world.rest();
            world.read_bit(0, 0, 0x300, 34)
        });
        assert_eq!(read, Some(true));
        world.rest();
        world.end(0, EDGE);
        world.end(1, 34);
        assert_eq!(world.finish(), [EDGE, 34]);
    });
}

#[test]
fn three_that_write_the_same_leave_it_whole() {
    let race: [Act; 3] = [
        |world| world.write_bit(1, 0x380, EDGE),
        |world| world.write_bit(2, 0x200, EDGE),
        |world| {
            world.interrupts(0);
            world.end(0, EDGE);
            world.run(0);
        },
    ];
    explore((3, 2), active_on_0, race, |world| {
        assert_eq!(world.finish(), [EDGE, EDGE]);
        assert_eq!(world.read_bit(0, 0, 0x300, EDGE), Some(false));
        assert_eq!(world.read_bit(0, 0, 0x200, EDGE), Some(false));
    });
}

#[test]
fn one_that_is_made_active_by_hand_is_taken_when_it_is_so_no_more() {
    let prepare = |world: &World| {
        world.raise(EDGE);
        world.rest();
    };
    let race: [Act; 2] = [
        |world| world.run(0),
        |world| {
            world.write_bit(1, 0x300, EDGE);
            world.write_bit(1, 0x380, EDGE);
        },
    ];
    explore((2, 2), prepare, race, |world| {
        assert_eq!(world.finish(), [EDGE])
    });
}
