//! SGIs of a GICv2, beside their delivery (rule V8): each source's is taken.

use crate::world::{Act, World, explore_on, nothing};
use loom::sync::atomic::Ordering;
use vgic::Version;

/// As GICC_IAR has it, of either sender.
const OF_1: u32 = 3 | 1 << 10;
const OF_2: u32 = 3 | 2 << 10;

fn send_from_1(world: &World) {
    world.send_v2(1, 0, 3);
}

fn send_from_2(world: &World) {
    world.send_v2(2, 0, 3);
}

fn run(world: &World) {
    world.run(0);
}

fn run_twice(world: &World) {
    world.run(0);
    world.run(0);
}

fn sees_all(world: &World) {
    let seen = world.seen.load(Ordering::Relaxed);
    assert_eq!(seen, 2, "seen of what was written");
}

#[test]
fn the_same_sgi_of_two_sources_is_taken_once_of_each() {
    let race: [Act; 3] = [send_from_1, send_from_2, run];
    explore_on(Version::V2, (3, 2), nothing, race, |world| {
        assert_eq!(world.finish(), [OF_1, OF_2]);
        sees_all(world);
    });
}

/// The source of the second may be taken before its sender has rung the door.
#[test]
fn the_handler_of_the_second_source_sees_what_was_written() {
    let race: [Act; 3] = [send_from_1, send_from_2, run_twice];
    explore_on(Version::V2, (3, 2), nothing, race, |world| {
        assert_eq!(world.finish(), [OF_1, OF_2]);
        sees_all(world);
    });
}

#[test]
fn one_that_is_sent_again_is_taken_afterwards() {
    let prepare = |world: &World| {
        send_from_1(world);
        world.rest();
    };
    let race: [Act; 2] = [send_from_1, run_twice];
    explore_on(Version::V2, (2, 2), prepare, race, |world| {
        let taken = world.finish();
        assert!((1..=2).contains(&taken.len()), "taken: {taken:?}");
        assert!(taken.iter().all(|taken| *taken == OF_1));
        sees_all(world);
    });
}

#[test]
fn one_beside_the_handler_of_another_waits_for_its_end() {
    let prepare = |world: &World| {
        send_from_1(world);
        world.rest();
        assert_eq!(world.acknowledge(0), Some(3));
    };
    let handler: Act = |world| {
        world.interrupts(0);
        world.end(0, 3);
        world.interrupts(0);
    };
    let race: [Act; 2] = [send_from_2, handler];
    explore_on(Version::V2, (3, 2), prepare, race, |world| {
        assert_eq!(world.finish(), [OF_1, OF_2]);
        sees_all(world);
    });
}

#[test]
fn a_put_loses_no_source() {
    let prepare = |world: &World| {
        send_from_1(world);
        world.rest();
    };
    let reload: Act = |world| {
        world.put(0);
        world.load(0);
        world.run(0);
    };
    let race: [Act; 2] = [send_from_2, reload];
    explore_on(Version::V2, (3, 2), prepare, race, |world| {
        assert_eq!(world.finish(), [OF_1, OF_2]);
        sees_all(world);
    });
}
