//! What wakes a vCPU that sleeps or is powered down.

use crate::world::{D, SGI, World};
use vgic::Frame;

const TIMER: u32 = 27;

fn is_requested(world: &mut World, vcpu: usize) -> bool {
    world.with(vcpu, |own, vgic, hw, kick| own.is_requested(vgic, hw, kick))
}

fn sleep(world: &mut World, vcpu: usize) {
    let sleeps = world.with(vcpu, |own, vgic, hw, kick| own.block(vgic, hw, kick));
    assert!(sleeps);
    world.kicked[vcpu] = false;
}

/// A CPU interface that is powered down masks nothing.
#[test]
fn what_the_cpu_interface_masks_is_requested() {
    let mut world = World::ready(1, 2);
    assert!(!is_requested(&mut world, 0));
    for intid in 33..38 {
        world.enable(0, intid);
    }
    world.set_level(33, true);
    assert!(is_requested(&mut world, 0));
    world.cpus[0].hw.open(0, false, false);
    assert!(is_requested(&mut world, 0));
    // What is disabled isn't, nor what is active.
    world.disable(0, 33);
    assert!(!is_requested(&mut world, 0));
    world.cpus[0].hw.open(0xf8, true, true);
    world.enable(0, 33);
    assert_eq!(world.acknowledge(0), Some(33));
    assert!(!is_requested(&mut world, 0));
    // All list registers are active: what waits for one is.
    world.set_level(34, true);
    assert_eq!(world.acknowledge(0), None, "it isn't more urgent");
    world.set_priority(0, 34, 0);
    assert!(is_requested(&mut world, 0));
}

/// And stays so when the vCPU is put.
#[test]
fn a_request_outlives_the_list_registers() {
    let mut world = World::ready(1, 1);
    world.cpus[0].hw.open(0, false, false);
    world.enable(0, 33);
    world.enable(0, 34);
    world.set_edge(33, true);
    world.pulse(33);
    world.set_level(34, true);
    for _ in 0..3 {
        assert!(is_requested(&mut world, 0));
        world.put(0);
        world.load(0);
    }
    world.write_bit(0, 0x280, 33);
    assert!(is_requested(&mut world, 0));
    world.set_level(34, false);
    assert!(!is_requested(&mut world, 0));
}

/// A timer counts only while its interrupt would come. Whoever changes that for another vCPU wakes it.
#[test]
fn a_sleeper_is_told_when_its_timer_begins_to_count() {
    let mut world = World::ready(2, 4);
    let frame = Frame::Redistributor(1);
    let awaits = |world: &World| world.cpus[1].own.awaits(&world.vgic, TIMER);
    assert!(!awaits(&world), "it is disabled");
    sleep(&mut world, 1);
    world.write(0, frame, SGI + 0x100, 1 << TIMER);
    assert!(world.kicked[1] && awaits(&world));
    world.load(1);
    // Its group is off; each of two changes that.
    world.write(0, D, 0, 1);
    world.settle();
    assert!(!awaits(&world));
    sleep(&mut world, 1);
    world.write(0, D, 0, 3);
    assert!(world.kicked[1] && awaits(&world));
    world.load(1);
    world.write(0, D, 0, 1);
    world.settle();
    sleep(&mut world, 1);
    world.write(0, frame, SGI + 0x80, !(1 << TIMER));
    assert!(world.kicked[1] && awaits(&world));
    world.load(1);
    // One that has come doesn't come again before its end, whoever ends it.
    world.write(0, D, 0, 3);
    world.settle();
    world.take_physical(1, TIMER);
    assert!(!awaits(&world));
    assert_eq!(world.acknowledge(1), Some(TIMER));
    sleep(&mut world, 1);
    assert!(!awaits(&world));
    world.write(0, frame, SGI + 0x380, 1 << TIMER);
    assert!(world.kicked[1]);
    world.load(1);
    assert!(awaits(&world));
}

/// The maintenance interrupt of what the guest has ended may come after the exit for its WFI, or for its power-down.
fn nothing_sleeps_over_what_is_left(ready: impl Fn() -> World) {
    let mut world = ready();
    assert!(world.cpus[0].hw.wants_maintenance(), "it hasn't come yet");
    let sleeps = world.with(0, |own, vgic, hw, kick| own.may_sleep(vgic, hw, kick));
    assert!(!sleeps, "an interrupt would be signalled");
    assert!(is_requested(&mut ready(), 0));
}

#[test]
fn a_level_that_is_still_up_at_its_end_keeps_from_sleeping() {
    nothing_sleeps_over_what_is_left(|| {
        let mut world = World::ready(1, 4);
        world.enable(0, 33);
        world.set_level(33, true);
        assert_eq!(world.take(0), Some(33));
        world
    });
}

#[test]
fn another_source_of_an_sgi_keeps_from_sleeping() {
    nothing_sleeps_over_what_is_left(|| {
        let mut world = World::ready_v2(3, 4);
        for vcpu in [1, 2] {
            world.write(vcpu, D, 0xf00, 1 << 16 | 3);
        }
        assert_eq!(world.take(0), Some(3));
        world
    });
}

#[test]
fn what_waits_for_a_list_register_keeps_from_sleeping() {
    nothing_sleeps_over_what_is_left(|| {
        let mut world = World::ready(1, 1);
        for intid in [33, 34] {
            world.set_edge(intid, true);
            world.enable(0, intid);
            world.pulse(intid);
        }
        assert!(world.take(0).is_some());
        world
    });
}
