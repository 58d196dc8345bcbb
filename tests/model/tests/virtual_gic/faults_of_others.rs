//! Faults that other virtual GICs had.

use crate::world::{D, SGI, World, affinity};
use vgic::{Frame, Width};

/// bao#394: another vCPU's GICR write lands on vCPU 0.
#[test]
fn a_write_of_another_redistributor_lands_there() {
    let mut world = World::ready(3, 4);
    let frame = Frame::Redistributor(2);
    world.write(1, frame, SGI + 0x100, 1 << 20 | 1 << 3);
    world.settle();
    assert_eq!(world.read(1, frame, SGI + 0x100), 1 << 20 | 1 << 3);
    for vcpu in 0..2 {
        assert_eq!(world.read(1, Frame::Redistributor(vcpu), SGI + 0x100), 0);
    }
    world.write(1, frame, SGI + 0x200, 1 << 20 | 1 << 3);
    assert_eq!(world.take(0), None);
    assert_eq!(world.take(1), None);
    let mut taken = [world.take(2), world.take(2)];
    taken.sort_unstable();
    assert_eq!(taken, [Some(3), Some(20)]);
}

/// bao#394: IROUTER in two halves loses one.
#[test]
fn a_route_written_in_halves_keeps_both() {
    let mut world = World::ready(18, 4);
    let route = 0x6000 + 8 * 33;
    world.enable(0, 33);
    world.set_edge(33, true);
    for upper_first in [false, true] {
        let halves = [(route, affinity(17)), (route + 4, 0)];
        let halves = if upper_first {
            [halves[1], halves[0]]
        } else {
            halves
        };
        for (offset, value) in halves {
            world.write(0, D, offset, value.into());
        }
        world.pulse(33);
        assert_eq!(world.take(17), Some(33));
        world.write_sized(0, D, route, Width::Double, 0);
    }
}

/// cheribsd#2692: the end of an interrupt that was disabled meanwhile is dropped.
#[test]
fn a_disabled_interrupt_can_be_ended() {
    let mut world = World::ready(2, 4);
    world.enable(0, 33);
    world.set_level(33, true);
    assert_eq!(world.acknowledge(0), Some(33));
    world.disable(1, 33);
    assert!(world.active(1, 33), "one that was taken stays active");
    world.end(0, 33);
    assert!(!world.active(1, 33));
    assert_eq!(world.take(0), None);
    world.enable(1, 33);
    assert_eq!(world.take(0), Some(33));
}

/// libvmm#257: it stays pending after its list register was loaded, and comes twice.
#[test]
fn one_raise_is_one_acknowledgement() {
    let mut world = World::ready(1, 4);
    world.enable(0, 33);
    world.set_edge(33, true);
    world.pulse(33);
    assert_eq!(world.take(0), Some(33));
    assert_eq!(world.take(0), None);
    assert!(!world.pending(0, 33));
    world.put(0);
    world.load(0);
    assert_eq!(world.take(0), None);
}

/// libvmm#56: what is raised while it is disabled is lost.
#[test]
fn a_raise_while_disabled_comes_later() {
    let mut world = World::ready(1, 4);
    for (intid, edge) in [(33, true), (34, false)] {
        world.set_edge(intid, edge);
        if edge {
            world.pulse(intid);
        } else {
            world.set_level(intid, true);
        }
        assert_eq!(world.take(0), None);
        world.enable(0, intid);
        assert_eq!(world.take(0), Some(intid));
        world.set_level(intid, false);
    }
    assert_eq!(world.take(0), None);
}

/// seL4_projects_libs#28: the same interrupt is queued twice. The modelled interface checks each write.
#[test]
fn an_interrupt_is_in_one_list_register() {
    let mut world = World::ready(2, 4);
    world.enable(0, 33);
    world.set_edge(33, true);
    for _ in 0..3 {
        world.pulse(33);
        world.settle();
    }
    assert_eq!(world.acknowledge(0), Some(33));
    for _ in 0..3 {
        world.pulse(33);
        world.settle();
    }
    assert_eq!(world.cpus[0].hw.held().count(), 1);
    world.end(0, 33);
    assert_eq!(world.take(0), Some(33), "raised again while it was active");
    assert_eq!(world.take(0), None);
}

/// arcbox#350: a device's level is taken for an edge.
#[test]
fn a_level_comes_again_until_it_is_down() {
    let mut world = World::ready(1, 4);
    world.enable(0, 33);
    world.set_level(33, true);
    assert_eq!(world.take(0), Some(33));
    assert_eq!(world.acknowledge(0), Some(33));
    world.set_level(33, false);
    world.end(0, 33);
    assert_eq!(world.take(0), None);
    // A fall before it is taken takes it back.
    world.set_level(33, true);
    world.settle();
    world.set_level(33, false);
    assert_eq!(world.take(0), None);
}

/// Linux: ICENABLER leaves the list register of another running vCPU as it is.
#[test]
fn a_disabled_interrupt_leaves_the_list_register_of_another_vcpu() {
    let mut world = World::ready(2, 4);
    world.enable(1, 33);
    world.set_level(33, true);
    world.settle();
    assert!(world.cpus[0].hw.holds(33).is_some());
    world.disable(1, 33);
    assert_ne!(world.read(1, D, 0) & 1 << 31, 0, "RWP: it isn't over");
    assert_ne!(world.read(1, Frame::Redistributor(1), 0) & 8, 0);
    world.settle();
    assert_eq!(world.read(1, D, 0) & 1 << 31, 0);
    assert!(world.cpus[0].hw.holds(33).is_none());
}

#[test]
fn a_group_that_is_switched_off_leaves_all_list_registers() {
    let mut world = World::ready(2, 4);
    world.enable(1, 33);
    world.set_level(33, true);
    world.settle();
    world.write(1, D, 0, 1);
    assert_ne!(world.read(1, D, 0) & 1 << 31, 0);
    world.settle();
    assert_eq!(world.read(1, D, 0) & 1 << 31, 0);
    assert!(world.cpus[0].hw.holds(33).is_none());
    world.write(1, D, 0, 3);
    assert_eq!(world.take(0), Some(33));
}

/// Linux: what ICPENDR cleared is there again when the list register is folded.
#[test]
fn what_was_cleared_stays_cleared() {
    let mut world = World::ready(2, 4);
    world.enable(0, 33);
    world.set_edge(33, true);
    world.pulse(33);
    world.settle();
    world.write_bit(1, 0x280, 33);
    world.settle();
    assert_eq!(world.take(0), None);
    assert!(!world.pending(1, 33));
}

/// Linux: PMR as it was at the last exit decides whether a vCPU sleeps.
#[test]
fn a_wait_asks_the_mask_of_now() {
    let mut world = World::ready(1, 4);
    world.enable(0, 33);
    world.set_priority(0, 33, 0x80);
    let may_sleep = |world: &mut World| {
        let asked = world.with(0, |own, vgic, hw, kick| own.may_sleep(vgic, hw, kick));
        assert_eq!(asked, !world.cpus[0].hw.is_signalled());
        asked
    };
    assert!(may_sleep(&mut world));
    world.set_level(33, true);
    assert!(!may_sleep(&mut world));
    world.cpus[0].hw.open(0x80, true, true);
    assert!(may_sleep(&mut world));
    world.cpus[0].hw.open(0x88, true, false);
    assert!(may_sleep(&mut world));
    world.cpus[0].hw.open(0x88, false, true);
    assert!(!may_sleep(&mut world));
    // What runs is more urgent.
    assert_eq!(world.acknowledge(0), Some(33));
    assert!(may_sleep(&mut world));
    world.enable(0, 34);
    world.set_priority(0, 34, 0x80);
    world.set_level(34, true);
    assert!(may_sleep(&mut world));
    world.set_priority(0, 34, 0x78);
    assert!(!may_sleep(&mut world));
}

/// Linux: EOIcount is walked from the wrong end. See also `overflow`.
#[test]
fn the_count_of_ends_deactivates_the_most_urgent() {
    let mut world = World::ready(1, 1);
    for (intid, priority) in [(34, 0xe0), (33, 0xc0), (35, 0xa0)] {
        world.enable(0, intid);
        world.set_edge(intid, true);
        world.set_priority(0, intid, priority);
        world.pulse(intid);
        assert_eq!(world.acknowledge(0), Some(intid));
    }
    // 35 is in the list register, the others are outside.
    world.end(0, 35);
    world.end(0, 33);
    world.settle();
    assert!(!world.active(0, 33) && !world.active(0, 35) && world.active(0, 34));
}

/// A message is only for whoever holds the interrupt: a raise on the way to another vCPU isn't lost.
#[test]
fn an_interrupt_that_moves_is_taken_where_it_goes() {
    for taken in [false, true] {
        let mut world = World::ready(3, 4);
        world.enable(0, 33);
        world.set_edge(33, true);
        world.pulse(33);
        if taken {
            assert_eq!(world.acknowledge(0), Some(33));
            world.pulse(33);
        } else {
            world.settle();
        }
        world.set_route(2, 33, 1);
        world.settle();
        if taken {
            assert_eq!(world.acknowledge(1), None, "it is active still");
            world.end(0, 33);
        }
        assert_eq!(world.take(0), None);
        assert_eq!(world.take(1), Some(33));
        assert_eq!(world.take(1), None);
    }
}
