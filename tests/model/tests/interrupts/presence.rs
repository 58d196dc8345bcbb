//! A vCPU that comes and goes beside raises (rules V14 and V15).

use crate::world::{Act, Cpu, EDGE, World, explore, nothing};

fn raise(world: &World) {
    world.raise(EDGE);
}

/// Whether the vCPU sleeps.
fn block(world: &World) -> bool {
    let Cpu { own, hw, .. } = &mut *world.cpu(0);
    own.may_sleep(&world.vgic, hw, world.kick()) && own.block(&world.vgic, hw, world.kick())
}

#[test]
fn a_raise_beside_a_load_is_taken() {
    let prepare = |world: &World| world.put(0);
    let load: Act = |world| {
        world.load(0);
        world.run(0);
    };
    explore((1, 2), prepare, [raise, load], |world| {
        world.finish_with(EDGE, 1)
    });
    explore((1, 2), prepare, [raise, raise, load], |world| {
        world.finish_with(EDGE, 2)
    });
}

#[test]
fn a_raise_beside_a_put_is_taken_when_it_is_loaded() {
    let put: Act = |world| {
        world.run(0);
        world.put(0);
    };
    explore((1, 2), nothing, [raise, put], |world| {
        assert!(world.cpu(0).own.is_put(&world.vgic));
        world.load(0);
        world.finish_with(EDGE, 1);
    });
}

#[test]
fn what_a_list_register_holds_survives_a_put_beside_another_raise() {
    let prepare = |world: &World| {
        world.raise(EDGE);
        world.rest();
    };
    let put: Act = |world| {
        world.take(0);
        world.put(0);
        world.load(0);
    };
    explore((1, 2), prepare, [raise, put], |world| {
        world.finish_with(EDGE, 2)
    });
}

#[test]
fn a_raise_beside_a_sleep_wakes_it() {
    let sleep: Act = |world| {
        if !block(world) {
            world.run(0);
        }
    };
    explore((1, 2), nothing, [raise, sleep], |world| {
        assert!(!world.cpu(0).own.is_put(&world.vgic));
        // Whoever is woken is loaded.
        if world.cpu(0).own.is_asleep(&world.vgic) {
            assert!(world.is_kicked(0), "it sleeps for ever");
            world.load(0);
        }
        world.finish_with(EDGE, 1);
    });
}

/// Whoever else runs on its CPU takes the kick.
#[test]
fn a_raise_beside_a_sleep_whose_kick_was_taken_isnt_lost() {
    let sleep: Act = |world| {
        let sleeps = {
            let Cpu { own, hw, .. } = &mut *world.cpu(0);
            own.may_sleep(&world.vgic, hw, world.kick()) && {
                world.take_kick(0);
                own.block(&world.vgic, hw, world.kick())
            }
        };
        if !sleeps {
            world.enter(0);
            world.take(0);
        }
    };
    explore((1, 2), nothing, [raise, sleep], |world| {
        if world.cpu(0).own.is_asleep(&world.vgic) {
            assert!(world.is_kicked(0), "it sleeps for ever");
            world.load(0);
        }
        world.finish_with(EDGE, 1);
    });
}

#[test]
fn an_sgi_beside_a_sleep_wakes_it() {
    let sleep: Act = |world| {
        if !block(world) {
            world.run(0);
        }
    };
    explore(
        (2, 2),
        nothing,
        [|world| world.send(1, 0, 2), sleep],
        |world| {
            if world.cpu(0).own.is_asleep(&world.vgic) {
                assert!(world.is_kicked(0), "it sleeps for ever");
                world.load(0);
            }
            world.finish_with(2, 1);
        },
    );
}

#[test]
fn a_disable_beside_a_put_comes_to_an_end() {
    let prepare = |world: &World| {
        world.raise(EDGE);
        world.rest();
    };
    let disable: Act = |world| world.write_bit(1, 0x180, EDGE);
    explore((2, 2), prepare, [disable, |world| world.put(0)], |world| {
        assert!(world.is_written(1), "a vCPU that is off is waited for");
        world.load(0);
        assert_eq!(world.finish(), []);
        world.write_bit(1, 0x100, EDGE);
        assert_eq!(world.finish(), [EDGE]);
    });
}

#[test]
fn a_route_beside_a_put_moves_what_was_held() {
    let prepare = |world: &World| {
        world.raise(EDGE);
        world.rest();
    };
    let move_it: Act = |world| world.route(1, EDGE, 1);
    explore((2, 2), prepare, [move_it, |world| world.put(0)], |world| {
        world.finish_with(EDGE, 1);
        assert_eq!(world.cpu(1).taken, [EDGE]);
    });
}
