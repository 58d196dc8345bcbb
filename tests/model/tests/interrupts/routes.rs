//! Interrupts that move beside raises (rules V1, V3, V4, V7).

use crate::world::{Act, EDGE, World, explore, nothing};

fn raise(world: &World) {
    world.raise(EDGE);
}

fn move_it(world: &World) {
    world.route(1, EDGE, 1);
}

fn run_0(world: &World) {
    world.run(0);
}

fn run_1(world: &World) {
    world.run(1);
}

fn held_by_0(world: &World) {
    world.raise(EDGE);
    world.rest();
    assert!(world.cpu(0).hw.holds(EDGE).is_some());
}

#[test]
fn a_raise_beside_a_move_is_taken_by_one_of_them() {
    let race: [Act; 3] = [raise, run_0, |world| {
        move_it(world);
        run_1(world);
    }];
    explore((2, 2), nothing, race, |world| world.finish_with(EDGE, 1));
}

#[test]
fn a_raise_beside_a_move_there_and_back_is_taken() {
    let race: [Act; 3] = [raise, run_0, |world| {
        move_it(world);
        world.route(1, EDGE, 0);
    }];
    explore((2, 2), nothing, race, |world| world.finish_with(EDGE, 1));
}

#[test]
fn one_in_a_list_register_moves_or_is_taken() {
    let race: [Act; 2] = [run_0, |world| {
        move_it(world);
        run_1(world);
    }];
    explore((2, 2), held_by_0, race, |world| world.finish_with(EDGE, 1));
    let race: [Act; 3] = [
        run_0,
        |world| {
            move_it(world);
            run_1(world);
        },
        raise,
    ];
    explore((2, 2), held_by_0, race, |world| world.finish_with(EDGE, 2));
}

#[test]
fn one_that_is_active_is_taken_elsewhere_when_it_has_ended() {
    let prepare = |world: &World| {
        held_by_0(world);
        assert_eq!(world.acknowledge(0), Some(EDGE));
    };
    let end: Act = |world| {
        world.interrupts(0);
        world.end(0, EDGE);
        world.interrupts(0);
    };
    explore((2, 2), prepare, [end, move_it, raise], |world| {
        let taken = world.finish();
        assert_eq!(taken, [EDGE, EDGE]);
    });
}

#[test]
fn what_was_raised_while_active_moves_along() {
    let prepare = |world: &World| {
        held_by_0(world);
        assert_eq!(world.acknowledge(0), Some(EDGE));
        world.raise(EDGE);
        world.rest();
    };
    let end: Act = |world| {
        world.interrupts(0);
        world.end(0, EDGE);
        world.interrupts(0);
    };
    let race: [Act; 2] = [end, move_it];
    explore((2, 2), prepare, race, |world| {
        assert_eq!(world.finish(), [EDGE, EDGE]);
    });
}
