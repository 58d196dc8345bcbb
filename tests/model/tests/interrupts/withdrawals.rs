//! Interrupts that are disabled, cleared or ended by another vCPU (rules V9, V10, V13).

use crate::world::{Act, Cpu, DEVICE, EDGE, World, explore, nothing};
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

fn held_by_0(world: &World) {
    world.raise(EDGE);
    world.rest();
}

/// Looks once whether a write is over; if it is, nobody takes the interrupt any more.
fn rely_on_it(world: &World, vcpu: usize) {
    if world.is_written(vcpu) {
        let count = world.count.load(Ordering::Relaxed);
        world.seen.store(1000 + count, Ordering::Relaxed);
    }
}

fn check(world: &World) {
    let taken = world.finish();
    let relied = world.seen.load(Ordering::Relaxed);
    if relied >= 1000 {
        assert_eq!(
            taken.len() as u64,
            relied - 1000,
            "taken after RWP had read 0"
        );
    }
}

fn disable(world: &World, vcpu: usize) {
    world.write_bit(vcpu, 0x180, EDGE);
    rely_on_it(world, vcpu);
}

#[test]
fn a_disabled_interrupt_isnt_taken_once_rwp_reads_0() {
    explore(
        (2, 2),
        held_by_0,
        [run_twice, |world| disable(world, 1)],
        check,
    );
    explore(
        (2, 2),
        nothing,
        [raise, run_twice, |world| disable(world, 1)],
        check,
    );
}

#[test]
fn the_second_of_two_that_disable_may_rely_on_it_too() {
    let race: [Act; 3] = [
        run,
        |world| world.write_bit(1, 0x180, EDGE),
        |world| disable(world, 2),
    ];
    explore((3, 2), held_by_0, race, check);
}

#[test]
fn nothing_of_a_group_is_taken_once_it_is_off() {
    let off: Act = |world| {
        world.write(1, vgic::Frame::Distributor, 0, 1);
        world.enter(1);
        rely_on_it(world, 1);
    };
    explore((2, 2), held_by_0, [run_twice, off], check);
    explore((2, 2), nothing, [raise, run, off], check);
}

#[test]
fn what_is_raised_while_disabled_is_taken_when_it_is_enabled() {
    let toggle: Act = |world| {
        world.write_bit(1, 0x180, EDGE);
        world.write_bit(1, 0x100, EDGE);
    };
    explore((2, 2), nothing, [raise, run, toggle], |world| {
        world.finish_with(EDGE, 1)
    });
}

#[test]
fn what_is_raised_after_it_was_cleared_is_taken() {
    let clear: Act = |world| {
        world.write_bit(1, 0x280, EDGE);
        world.raise(EDGE);
    };
    explore((2, 2), held_by_0, [run, clear], |world| {
        world.finish_with(EDGE, 2)
    });
}

#[test]
fn what_was_cleared_is_taken_at_most_once() {
    let clear: Act = |world| world.write_bit(1, 0x280, EDGE);
    explore((2, 2), held_by_0, [run_twice, clear], |world| {
        assert!(world.finish().len() <= 1);
        assert_eq!(world.read_bit(0, 0, 0x200, EDGE), Some(false));
    });
    explore((2, 2), nothing, [raise, run, clear], |world| {
        assert!(world.finish().len() <= 1);
    });
}

/// The physical interrupt of a device is taken on another CPU.
/// The physical interrupt behind DEVICE gets active, and is about to be forwarded. Before a race: it is CPU 0's own.
fn take_physical(world: &World) {
    world.cpu(0).hw.physical.insert(99);
}

fn forward(world: &World) {
    world.vgic.forward_spi(DEVICE, world.kick());
}

fn forwarded(world: &World) {
    take_physical(world);
    forward(world);
    world.rest();
}

fn nothing_physical(world: &World) {
    world.rest();
    while world.take(0).is_some() {
        world.rest();
    }
    let active = |vcpu: usize| world.cpu(vcpu).hw.physical.clone();
    let ended = |vcpu: usize| world.cpu(vcpu).hw.deactivated.len();
    assert!(
        active(0).is_empty() || ended(1) == 1,
        "a physical interrupt stays active"
    );
}

#[test]
fn a_physical_interrupt_that_is_cleared_is_ended() {
    let clear: Act = |world| world.write_bit(1, 0x280, DEVICE);
    explore((2, 2), take_physical, [forward, run, clear], |world| {
        nothing_physical(world);
        let Cpu { hw, .. } = &*world.cpu(1);
        assert!(hw.deactivated.len() <= 1);
    });
    let ended_lately = |world: &World| {
        forwarded(world);
        assert_eq!(world.take(0), Some(DEVICE));
        take_physical(world);
    };
    explore(
        (2, 2),
        ended_lately,
        [forward, run, clear],
        nothing_physical,
    );
}

#[test]
fn a_physical_interrupt_that_is_deactivated_by_hand_is_ended() {
    let active = |world: &World| {
        forwarded(world);
        assert_eq!(world.acknowledge(0), Some(DEVICE));
    };
    let deactivate: Act = |world| world.write_bit(1, 0x380, DEVICE);
    let end: Act = |world| {
        world.interrupts(0);
        world.end(0, DEVICE);
        world.interrupts(0);
    };
    explore((2, 2), active, [end, deactivate], nothing_physical);
}

#[test]
fn a_physical_interrupt_that_is_disabled_and_enabled_is_taken() {
    let toggle: Act = |world| {
        world.write_bit(1, 0x180, DEVICE);
        world.write_bit(1, 0x100, DEVICE);
    };
    explore((2, 2), take_physical, [forward, run, toggle], |world| {
        nothing_physical(world);
        assert_eq!(world.cpu(0).taken, [DEVICE]);
    });
}
