//! LPIs beside their delivery, and vCPUs that come and go (rules V1, V2, V14, V17).

use crate::world::{Act, Cpu, LPI, OTHER_LPI, World, explore_its, nothing};
use vgic::Frame;

fn raise(world: &World) {
    world.raise_lpi(0);
}

fn run(world: &World) {
    world.run(0);
}

fn run_twice(world: &World) {
    world.run(0);
    world.run(0);
}

#[test]
fn an_lpi_is_taken_once_and_its_handler_sees_what_was_written() {
    explore_its((1, 2), nothing, [raise, run_twice], |world| {
        world.finish_with(LPI, 1);
    });
}

#[test]
fn two_raises_of_an_lpi_are_taken_once_or_twice_and_the_last_handler_sees_all() {
    explore_its((1, 2), nothing, [raise, raise, run], |world| {
        world.finish_with(LPI, 2);
    });
}

#[test]
fn two_lpis_beside_a_look_are_both_taken() {
    let race: [Act; 3] = [raise, |world| world.raise_lpi(1), run];
    explore_its((1, 2), nothing, race, |world| {
        assert_eq!(world.finish(), [LPI, OTHER_LPI]);
    });
}

#[test]
fn with_one_list_register_both_lpis_are_taken() {
    let race: [Act; 3] = [raise, |world| world.raise_lpi(1), run];
    explore_its((1, 1), nothing, race, |world| {
        assert_eq!(world.finish(), [LPI, OTHER_LPI]);
    });
}

#[test]
fn an_lpi_beside_a_load_is_taken() {
    let prepare = |world: &World| world.put(0);
    let load: Act = |world| {
        world.load(0);
        world.run(0);
    };
    explore_its((1, 2), prepare, [raise, load], |world| {
        world.finish_with(LPI, 1);
    });
}

#[test]
fn an_lpi_beside_a_put_is_taken_when_it_is_loaded() {
    let put: Act = |world| {
        world.run(0);
        world.put(0);
    };
    explore_its((1, 2), nothing, [raise, put], |world| {
        assert!(world.cpu(0).own.is_put(&world.vgic));
        world.load(0);
        world.finish_with(LPI, 1);
    });
}

#[test]
fn an_lpi_that_a_list_register_holds_survives_a_power_cycle_beside_another_raise() {
    let prepare = |world: &World| {
        raise(world);
        world.rest();
    };
    let cycle: Act = |world| {
        world.put(0);
        {
            let Cpu { own, hw, .. } = &mut *world.cpu(0);
            own.reset();
            hw.open(0xf8, true, true);
        }
        world.load(0);
        world.cpu(0).hw.open(0xf8, true, true);
    };
    explore_its((1, 2), prepare, [raise, cycle], |world| {
        world.finish_with(LPI, 2);
    });
}

#[test]
fn an_lpi_beside_a_sleep_wakes_it() {
    let sleep: Act = |world| {
        let sleeps = {
            let Cpu { own, hw, .. } = &mut *world.cpu(0);
            own.may_sleep(&world.vgic, hw, world.kick()) && own.block(&world.vgic, hw, world.kick())
        };
        if !sleeps {
            world.run(0);
        }
    };
    explore_its((1, 2), nothing, [raise, sleep], |world| {
        if world.cpu(0).own.is_asleep(&world.vgic) {
            assert!(world.is_kicked(0), "it sleeps for ever");
            world.load(0);
        }
        world.finish_with(LPI, 1);
    });
}

fn forward(world: &World, by: usize, forwards: u64) {
    world.write(by, Frame::Redistributor(0), 0, forwards);
    world.enter(by);
}

/// EnableLPIs, by another vCPU.
#[test]
fn an_lpi_beside_the_switch_of_its_redistributor_is_taken() {
    let prepare = |world: &World| {
        forward(world, 0, 0);
        world.rest();
    };
    let race: [Act; 3] = [raise, |world| forward(world, 1, 1), run];
    explore_its((2, 2), prepare, race, |world| world.finish_with(LPI, 1));
}

#[test]
fn no_lpi_is_taken_once_its_redistributor_is_off() {
    let off: Act = |world| {
        forward(world, 1, 0);
        let control = world.read(1, Frame::Redistributor(0), 0);
        if control == Some(2) {
            let count = world.count.load(loom::sync::atomic::Ordering::Relaxed);
            world
                .seen
                .store(1000 + count, loom::sync::atomic::Ordering::Relaxed);
        }
    };
    explore_its((2, 2), nothing, [raise, off, run], |world| {
        let seen = world.seen.load(loom::sync::atomic::Ordering::Relaxed);
        let taken = world.finish().len() as u64;
        assert!(
            seen < 1000 || taken == seen - 1000,
            "taken after RWP had read 0"
        );
        forward(world, 0, 1);
        world.finish();
        assert_eq!(world.cpu(0).taken, [LPI]);
    });
}
