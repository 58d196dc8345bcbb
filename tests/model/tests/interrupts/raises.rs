//! Raises beside their delivery (rules V1, V2, V4 to V6, V8, V12).

use crate::world::{EDGE, LEVEL, World, explore, nothing};
use loom::sync::atomic::Ordering;

fn raise(world: &World) {
    world.raise(EDGE);
}

fn run(world: &World) {
    world.run(0);
}

fn run_twice(world: &World) {
    world.run(0);
    world.run(0);
}

#[test]
fn a_raise_is_taken_once_and_its_handler_sees_what_was_written() {
    explore((1, 2), nothing, [raise, run_twice], |world| {
        world.finish_with(EDGE, 1);
    });
}

#[test]
fn two_raises_are_taken_once_or_twice_and_the_last_handler_sees_all() {
    explore((1, 2), nothing, [raise, raise, run], |world| {
        world.finish_with(EDGE, 2);
    });
}

#[test]
fn a_raise_of_one_that_was_ended_and_not_looked_at_is_taken() {
    let prepare = |world: &World| {
        world.raise(EDGE);
        world.rest();
        assert_eq!(world.take(0), Some(EDGE));
        world.cpu(0).taken.clear();
    };
    explore((1, 2), prepare, [raise, run_twice], |world| {
        world.finish_with(EDGE, 1);
    });
}

#[test]
fn raises_of_two_interrupts_beside_a_look_are_both_taken() {
    let race: [crate::world::Act; 3] = [
        raise,
        |world| world.vgic.set_spi_level(LEVEL, true, world.kick()),
        run,
    ];
    explore((1, 2), nothing, race, |world| {
        world.rest();
        let mut taken = world.cpu(0).taken.clone();
        while let Some(intid) = world.acknowledge(0) {
            if intid == LEVEL {
                world.vgic.set_spi_level(LEVEL, false, world.kick());
            }
            world.end(0, intid);
            world.rest();
            taken.push(intid);
        }
        assert!(taken.contains(&EDGE) && taken.contains(&LEVEL), "{taken:?}");
    });
}

#[test]
fn with_one_list_register_both_are_taken() {
    let race: [crate::world::Act; 3] = [raise, |world| world.raise(34), run];
    explore((1, 1), nothing, race, |world| {
        assert_eq!(world.finish(), [EDGE, 34]);
    });
}

#[test]
fn one_that_preempts_with_one_list_register_leaves_the_other_active() {
    let prepare = |world: &World| {
        world.write(0, vgic::Frame::Distributor, 0x420, 0x80_80_80);
        world.write(0, vgic::Frame::Distributor, 0x420, 0x40_80_80);
        world.raise(EDGE);
        world.rest();
        assert_eq!(world.acknowledge(0), Some(EDGE));
    };
    let run: crate::world::Act = |world| {
        world.interrupts(0);
        if let Some(intid) = world.acknowledge(0) {
            world.end(0, intid);
            world.interrupts(0);
        }
        world.end(0, EDGE);
        world.interrupts(0);
    };
    let deactivate: crate::world::Act = |world| {
        world.write_bit(1, 0x380, EDGE);
    };
    explore(
        (2, 1),
        prepare,
        [|world| world.raise(34), run, deactivate],
        |world| {
            assert_eq!(world.finish(), [EDGE, 34]);
            assert_eq!(world.read_bit(0, 0, 0x300, EDGE), Some(false));
            assert_eq!(world.read_bit(0, 0, 0x300, 34), Some(false));
        },
    );
}

#[test]
fn two_sgis_of_two_senders_are_both_taken() {
    let race: [crate::world::Act; 3] = [
        |world| world.send(1, 0, 3),
        |world| world.send(2, 0, 5),
        run,
    ];
    explore((3, 2), nothing, race, |world| {
        assert_eq!(world.finish(), [3, 5]);
        assert_eq!(world.seen.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn the_same_sgi_of_two_senders_is_taken_once_or_twice() {
    let race: [crate::world::Act; 3] = [
        |world| world.send(1, 0, 3),
        |world| world.send(2, 0, 3),
        run,
    ];
    explore((3, 2), nothing, race, |world| world.finish_with(3, 2));
}

#[test]
fn an_sgi_is_pending_until_it_is_taken() {
    let send: crate::world::Act = |world| {
        world.send(1, 0, 3);
        if world.read_bit(1, 0, 0x200, 3) == Some(false) {
            let count = world.count.load(Ordering::Relaxed);
            assert_eq!(count, 1, "it is neither pending nor was it taken");
        }
    };
    explore((2, 2), nothing, [send, run], |world| {
        world.finish_with(3, 1)
    });
}

#[test]
fn a_level_that_rises_in_the_handler_comes_again() {
    let prepare = |world: &World| {
        world.vgic.set_spi_level(LEVEL, true, world.kick());
        world.rest();
        assert_eq!(world.acknowledge(0), Some(LEVEL));
        world.vgic.set_spi_level(LEVEL, false, world.kick());
    };
    let handler: crate::world::Act = |world| {
        world.interrupts(0);
        world.end(0, LEVEL);
        world.interrupts(0);
    };
    let rise: crate::world::Act = |world| world.vgic.set_spi_level(LEVEL, true, world.kick());
    explore((1, 2), prepare, [handler, rise], |world| {
        world.rest();
        assert_eq!(world.acknowledge(0), Some(LEVEL));
    });
}

#[test]
fn a_level_that_falls_before_it_is_taken_comes_at_most_once() {
    let prepare = |world: &World| {
        world.vgic.set_spi_level(LEVEL, true, world.kick());
        world.rest();
    };
    let fall: crate::world::Act = |world| world.vgic.set_spi_level(LEVEL, false, world.kick());
    explore((1, 2), prepare, [run_twice, fall], |world| {
        let taken = world.finish();
        assert!(taken.len() <= 2);
        assert!(world.cpu(0).hw.held().next().is_none());
    });
}

/// A device lowers its line first, then takes its requests.
#[test]
fn of_two_requests_none_is_left_behind() {
    let request: crate::world::Act = |world| {
        world.seen.fetch_add(1, Ordering::Relaxed);
        world.vgic.set_spi_level(LEVEL, true, world.kick());
    };
    fn handle(world: &World) {
        world.interrupts(0);
        if world.cpu(0).hw.acknowledge().is_some() {
            world.vgic.set_spi_level(LEVEL, false, world.kick());
            let requests = world.seen.load(Ordering::Relaxed);
            world.count.fetch_max(requests, Ordering::Relaxed);
            world.end(0, LEVEL);
        }
    }
    explore((1, 2), nothing, [request, request, handle], |world| {
        world.rest();
        while world.cpu(0).hw.is_signalled() {
            handle(world);
            world.rest();
        }
        assert_eq!(world.count.load(Ordering::Relaxed), 2);
    });
}
