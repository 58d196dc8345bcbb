//! Commands of the ITS beside events (rule V17).

use crate::world::{
    Act, DISABLED, ENABLED, LPI, OTHER_LPI, SYNC, World, discard, explore_its, int, invalidate,
    map, move_to, nothing,
};
use loom::sync::atomic::Ordering;

fn raise(world: &World) {
    world.raise_lpi(0);
}

fn run(world: &World) {
    world.run(0);
}

fn held_by_0(world: &World) {
    raise(world);
    world.rest();
}

/// Notes how often the LPI was taken when a SYNC is done.
fn rely_on_it(world: &World, vcpu: usize) {
    if world.command(vcpu, SYNC) {
        let count = world.count.load(Ordering::Relaxed);
        world.seen.store(1000 + count, Ordering::Relaxed);
    }
}

fn check(world: &World) {
    let taken = world.finish();
    let relied = world.seen.load(Ordering::Relaxed);
    if relied >= 1000 {
        assert_eq!(taken.len() as u64, relied - 1000, "taken after the SYNC");
    }
    // Whoever has to executes the rest.
    assert!(world.ring(0), "the queue doesn't go on");
}

/// The LPI is another event's by the time that the raise comes to it.
#[test]
fn an_event_that_is_discarded_doesnt_raise_what_its_lpi_is_mapped_to_then() {
    let remap: Act = |world| {
        world.command(1, discard(0));
        world.command(1, map(2, LPI));
    };
    explore_its((2, 2), nothing, [raise, remap], |world| {
        assert_eq!(world.finish(), []);
        world.command(0, int(2));
        assert_eq!(world.finish(), [LPI]);
    });
}

#[test]
fn nothing_of_a_discarded_event_is_taken_once_sync_is_done() {
    let discards: Act = |world| {
        world.command(1, discard(0));
        rely_on_it(world, 1);
    };
    explore_its((2, 2), held_by_0, [discards, run], check);
    explore_its((2, 2), nothing, [raise, discards, run], check);
}

#[test]
fn an_lpi_that_is_raised_and_moved_is_taken_once() {
    let moves: Act = |world| {
        world.command(1, move_to(0, 1));
    };
    let run_1: Act = |world| world.run(1);
    explore_its((2, 2), nothing, [raise, moves, run], |world| {
        world.finish_with(LPI, 1);
    });
    explore_its((3, 2), held_by_0, [moves_by_2, run, run_1], |world| {
        world.finish_with(LPI, 1);
    });
}

fn moves_by_2(world: &World) {
    world.command(2, move_to(0, 1));
}

#[test]
fn an_lpi_that_moves_there_and_back_beside_a_raise_is_taken() {
    let moves: Act = |world| {
        world.command(1, move_to(0, 1));
        world.command(1, move_to(0, 0));
    };
    explore_its((2, 2), nothing, [raise, moves], |world| {
        world.finish_with(LPI, 1);
    });
}

/// One switches the ITS on, with a command in the queue; another has a second one executed.
#[test]
fn whoever_is_busy_executes_what_others_add() {
    let prepare = |world: &World| {
        world.write(0, vgic::Frame::Its, 0, 0);
        assert!(world.command(0, int(0)));
        world.put_command(int(1));
    };
    let on: Act = |world| {
        world.write(0, vgic::Frame::Its, 0, 1);
        world.enter(0);
    };
    let add: Act = |world| {
        assert!(world.ring(1));
    };
    explore_its((2, 2), prepare, [on, add], |world| {
        assert_eq!(world.finish(), [LPI, OTHER_LPI]);
    });
}

#[test]
fn an_lpi_that_is_raised_while_it_is_enabled_is_taken() {
    let prepare = |world: &World| {
        world.set_property(LPI, DISABLED);
        world.command(0, invalidate(0));
        world.set_property(LPI, ENABLED);
    };
    let enable: Act = |world| {
        world.command(1, invalidate(0));
    };
    explore_its((2, 2), prepare, [raise, enable, run], |world| {
        world.finish_with(LPI, 1);
    });
}

#[test]
fn a_disabled_lpi_isnt_taken_once_sync_is_done() {
    let disable: Act = |world| {
        world.set_property(LPI, DISABLED);
        world.command(1, invalidate(0));
        rely_on_it(world, 1);
    };
    explore_its((2, 2), held_by_0, [disable, run], check);
    explore_its((2, 2), nothing, [raise, disable, run], check);
}
