//! Physical interrupts that stand behind virtual ones (rule V13).

use crate::world::{D, World};

const TIMER: u32 = 27;
const DEVICE: u32 = 40;

fn physical(world: &World, vcpu: usize) -> Vec<u32> {
    world.cpus[vcpu].hw.physical.iter().copied().collect()
}

#[test]
fn the_guests_end_of_a_timer_ends_the_physical_one_without_an_exit() {
    let mut world = World::ready(2, 4);
    world.enable(1, TIMER);
    let kicks = world.kicks;
    for _ in 0..3 {
        world.take_physical(1, TIMER);
        assert_eq!(world.acknowledge(1), Some(TIMER));
        assert_eq!(physical(&world, 1), [28]);
        world.end(1, TIMER);
        assert_eq!(physical(&world, 1), []);
        assert!(!world.cpus[1].hw.wants_maintenance());
    }
    assert_eq!(world.cpus[1].hw.deactivated, []);
    assert_eq!(world.kicks, kicks);
}

/// bao#371: an interrupt that is disabled while it is active keeps its physical one for ever.
#[test]
fn disabling_an_active_timer_orphans_nothing() {
    let mut world = World::ready(1, 4);
    world.enable(0, TIMER);
    world.take_physical(0, TIMER);
    assert_eq!(world.acknowledge(0), Some(TIMER));
    world.disable(0, TIMER);
    world.end(0, TIMER);
    assert_eq!(physical(&world, 0), []);
    // Pending when it is disabled: it waits, physically active, and comes when it is enabled.
    world.enable(0, TIMER);
    world.take_physical(0, TIMER);
    world.disable(0, TIMER);
    assert_eq!(world.acknowledge(0), None);
    assert_eq!(physical(&world, 0), [28]);
    assert!(world.pending(0, TIMER));
    world.enable(0, TIMER);
    assert_eq!(world.take(0), Some(TIMER));
    assert_eq!(physical(&world, 0), []);
}

#[test]
fn clearing_one_by_hand_ends_the_physical_one() {
    for enabled in [false, true] {
        let mut world = World::ready(1, 4);
        if enabled {
            world.enable(0, TIMER);
        }
        world.take_physical(0, TIMER);
        world.settle();
        world.write_bit(0, 0x280, TIMER);
        assert_eq!(world.cpus[0].hw.deactivated, [28]);
        assert_eq!(world.take(0), None);
    }
    let mut world = World::ready(1, 4);
    world.enable(0, TIMER);
    world.take_physical(0, TIMER);
    assert_eq!(world.acknowledge(0), Some(TIMER));
    world.write_bit(0, 0x380, TIMER);
    assert_eq!(world.cpus[0].hw.deactivated, [28]);
    assert!(!world.active(0, TIMER));
}

#[test]
fn another_vcpu_leaves_the_end_to_the_cpu_that_has_the_interrupt() {
    let mut world = World::ready(2, 4);
    world.take_physical(1, TIMER);
    world.settle();
    // A disabled one of another vCPU.
    let (frame, bit) = (vgic::Frame::Redistributor(1), 1 << TIMER);
    world.write(0, frame, 0x1_0280, bit);
    assert_eq!(world.cpus[0].hw.deactivated, []);
    world.settle();
    assert_eq!(world.cpus[1].hw.deactivated, [28]);
    assert_eq!(physical(&world, 1), []);
    // One in its list register.
    world.enable(1, TIMER);
    world.take_physical(1, TIMER);
    world.settle();
    world.write(0, frame, 0x1_0280, bit);
    world.settle();
    assert_eq!(world.cpus[1].hw.deactivated, [28, 28]);
    assert_eq!(world.take(1), None);
}

#[test]
fn a_latch_cleared_under_a_claim_leaves_its_debt_to_the_owner() {
    let mut world = World::ready(2, 4);
    world.enable(0, DEVICE);
    world.set_edge(DEVICE, true);
    world.take_physical(0, DEVICE);
    assert_eq!(world.take(0), Some(DEVICE));
    // Its list register isn't looked at yet; the interrupt fires again, on another CPU, and is cleared there.
    world.cpus[1].hw.physical.insert(99);
    let (vgic, kicked) = (&world.vgic, &mut world.kicked);
    vgic.forward_spi(DEVICE, |cpu| kicked[cpu] = true);
    world.write_bit(1, 0x280, DEVICE);
    world.settle();
    assert_eq!(world.cpus[0].hw.deactivated, [99]);
    assert_eq!(world.take(0), None);
    assert_eq!(world.take(1), None);
}

#[test]
fn a_timer_moves_with_its_vcpu() {
    let mut world = World::ready(2, 4);
    world.enable(0, TIMER);
    world.take_physical(0, TIMER);
    assert_eq!(world.acknowledge(0), Some(TIMER));
    world.put(0);
    assert_eq!(
        physical(&world, 0),
        [],
        "another vCPU's timer isn't active here"
    );
    world.load(0);
    assert_eq!(physical(&world, 0), [28]);
    world.settle();
    world.end(0, TIMER);
    world.settle();
    assert_eq!(physical(&world, 0), []);
    assert_eq!(world.take(0), None);
}

#[test]
fn a_timer_that_was_set_anew_before_it_was_taken_raises_nothing() {
    let mut world = World::ready(1, 1);
    world.take_physical(0, TIMER);
    world.cpus[0].hw.lines.insert(28, false);
    world.enable(0, TIMER);
    assert_eq!(world.take(0), None);
    assert_eq!(world.cpus[0].hw.deactivated, [28]);
    // The line of a disabled one reads as it is.
    world.disable(0, TIMER);
    assert!(!world.pending(0, TIMER));
    world.cpus[0].hw.lines.insert(28, true);
    assert!(world.pending(0, TIMER));
}

#[test]
fn a_device_whose_line_has_fallen_before_it_was_taken_raises_nothing() {
    let mut world = World::ready(1, 1);
    world.cpus[0].hw.lines.insert(99, false);
    world.vgic.forward_physical(99, |_| {});
    world.enable(0, DEVICE);
    assert_eq!(world.take(0), None);
    assert_eq!(world.cpus[0].hw.deactivated, [99]);
    world.cpus[0].hw.lines.insert(99, true);
    let kicked = &mut world.kicked;
    (world.vgic).forward_physical(99, |cpu| kicked[cpu] = true);
    assert_eq!(world.take(0), Some(DEVICE));
    // It isn't this VM's.
    let kicked = &mut world.kicked;
    (world.vgic).forward_physical(98, |cpu| kicked[cpu] = true);
    assert_eq!(world.take(0), None);
}

#[test]
fn one_raised_by_hand_has_nothing_physical() {
    let mut world = World::ready(1, 4);
    world.enable(0, TIMER);
    world.write_bit(0, 0x200, TIMER);
    world.settle();
    let register = world.cpus[0].hw.holds(TIMER).unwrap();
    assert_eq!(register.physical(), None);
    assert_eq!(world.acknowledge(0), Some(TIMER));
    // The physical one comes while it is active, and is delivered after.
    world.take_physical(0, TIMER);
    assert_eq!(world.acknowledge(0), None);
    world.end(0, TIMER);
    assert_eq!(world.take(0), Some(TIMER));
    assert_eq!(physical(&world, 0), []);
    // By hand while the physical one is active: again after its end.
    world.take_physical(0, TIMER);
    assert_eq!(world.acknowledge(0), Some(TIMER));
    world.write_bit(0, 0x200, TIMER);
    world.settle();
    world.end(0, TIMER);
    assert_eq!(world.take(0), Some(TIMER));
    assert_eq!(world.take(0), None);
    assert_eq!(physical(&world, 0), []);
}

#[test]
fn one_evicted_while_active_is_ended_by_count() {
    let mut world = World::ready(1, 1);
    world.enable(0, TIMER);
    world.set_priority(0, TIMER, 0xa0);
    world.take_physical(0, TIMER);
    assert_eq!(world.acknowledge(0), Some(TIMER));
    world.enable(0, 33);
    world.set_edge(33, true);
    world.pulse(33);
    assert_eq!(world.acknowledge(0), Some(33));
    world.pulse(34);
    world.end(0, 33);
    world.settle();
    world.end(0, TIMER);
    world.settle();
    assert_eq!(physical(&world, 0), []);
    assert!(!world.active(0, TIMER));
}

#[test]
fn a_devices_interrupt_follows_its_route() {
    let mut world = World::ready(2, 4);
    world.enable(0, DEVICE);
    world.set_edge(DEVICE, true);
    world.set_route(0, DEVICE, 1);
    world.take_physical(0, DEVICE);
    assert_eq!(world.acknowledge(0), None);
    let register = world.cpus[1].hw.holds(DEVICE).unwrap();
    assert_eq!(register.physical(), Some(99));
    assert_eq!(world.take(1), Some(DEVICE));
    world.write(0, D, 0x184, 1 << (DEVICE - 32));
}
