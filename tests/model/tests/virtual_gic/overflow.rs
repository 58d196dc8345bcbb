//! More interrupts than list registers (rules V11 and V12).

use crate::world::{D, World};
use model::interrupts::CpuInterface;
use proptest::prelude::*;
use vgic::{VirtualInterface, hcr};

fn ready(registers: usize, intids: std::ops::Range<u32>) -> World {
    let mut world = World::ready(1, registers);
    for intid in intids {
        world.set_edge(intid, true);
        world.enable(0, intid);
        world.set_priority(0, intid, 0xa0);
    }
    world
}

#[test]
fn all_are_taken_however_few_list_registers_there_are() {
    for registers in [1, 2, 4, 16] {
        let mut world = ready(registers, 32..72);
        (32..72).for_each(|intid| world.pulse(intid));
        let mut taken: Vec<u32> = std::iter::from_fn(|| world.take(0)).collect();
        taken.sort_unstable();
        assert_eq!(
            taken,
            (32..72).collect::<Vec<_>>(),
            "{registers} list registers"
        );
        let exits = world.kicks;
        assert!(exits < 60, "{exits} kicks");
    }
}

#[test]
fn the_most_urgent_comes_first_though_it_comes_last() {
    for registers in [1, 2, 4] {
        let mut world = ready(registers, 32..48);
        for (index, intid) in (32..48).enumerate() {
            world.set_priority(0, intid, 0xf0 - 8 * index as u8);
            world.pulse(intid);
            world.settle();
        }
        let taken: Vec<u32> = std::iter::from_fn(|| world.take(0)).collect();
        // The mask hides the least urgent one.
        assert_eq!(taken, (32..48).rev().collect::<Vec<_>>());
    }
}

#[test]
fn nested_handlers_end_what_is_outside_in_order() {
    for registers in [1, 2, 4] {
        let mut world = ready(registers, 32..48);
        // Each preempts the one before.
        for (index, intid) in (32..48).enumerate() {
            world.set_priority(0, intid, 0xe8 - 8 * index as u8);
            world.pulse(intid);
            assert_eq!(world.acknowledge(0), Some(intid));
        }
        for intid in (32..48).rev() {
            let active: Vec<u32> = (32..48).filter(|intid| world.active(0, *intid)).collect();
            assert_eq!(
                active,
                (32..=intid).collect::<Vec<_>>(),
                "{registers}: {intid} runs"
            );
            world.end(0, intid);
        }
        assert!((32..48).all(|intid| !world.active(0, intid)));
        assert_eq!(world.take(0), None);
    }
}

/// bao#398: a maintenance interrupt that comes again at once. The world checks that none does.
#[test]
fn active_list_registers_cause_no_storm() {
    let mut world = ready(2, 32..40);
    for (intid, priority) in [(32, 0xe0), (33, 0xc0), (34, 0xa0)] {
        world.set_priority(0, intid, priority);
        world.pulse(intid);
        assert_eq!(world.acknowledge(0), Some(intid));
    }
    // Masked by what runs.
    for intid in 35..40 {
        world.set_priority(0, intid, 0xe8);
        world.pulse(intid);
    }
    assert_eq!(world.acknowledge(0), None);
    assert!(!world.cpus[0].hw.wants_maintenance());
    [34, 33, 32]
        .into_iter()
        .for_each(|intid| world.end(0, intid));
    assert_eq!(std::iter::from_fn(|| world.take(0)).count(), 5);
}

#[test]
fn a_group_that_the_guest_has_off_keeps_no_list_register_from_the_other() {
    let mut world = ready(2, 32..40);
    for intid in 32..38 {
        world.set_priority(0, intid, 0x20);
    }
    // Those are of group 0.
    world.write(0, D, 0x84, 0xc0);
    world.cpus[0].hw.open(0xf8, false, true);
    (32..38).for_each(|intid| world.pulse(intid));
    world.settle();
    world.pulse(38);
    world.pulse(39);
    assert_eq!(world.take(0), Some(38));
    assert_eq!(world.take(0), Some(39));
    assert_eq!(world.take(0), None);
    world.cpus[0].hw.open(0xf8, true, true);
    assert_eq!(std::iter::from_fn(|| world.take(0)).count(), 6);
}

/// QEMU 10 signals VGrp0D for as long as group 1 is off, whatever group 0 is: nobody asks for it then.
#[test]
fn the_end_of_a_group_is_asked_for_while_the_other_is_on() {
    let mut world = ready(2, 32..40);
    // Half of them are of group 0.
    world.write(0, D, 0x84, 0xf0);
    world.cpus[0].hw.open(0xf8, true, false);
    (32..40).for_each(|intid| world.pulse(intid));
    world.settle();
    let asked = |world: &World| world.cpus[0].hw.read_hcr() & (hcr::VGRP0DIE | hcr::VGRP1DIE);
    assert_eq!(asked(&world), 0);
    world.cpus[0].hw.open(0xf8, true, true);
    world.settle();
    assert_eq!(asked(&world), hcr::VGRP0DIE | hcr::VGRP1DIE);
    world.cpus[0].hw.open(0xf8, false, true);
    world.settle();
    assert_eq!(asked(&world), 0);
    let group1: Vec<u32> = std::iter::from_fn(|| world.take(0)).collect();
    assert_eq!(group1, [36, 37, 38, 39]);
    world.cpus[0].hw.open(0xf8, true, false);
    assert_eq!(std::iter::from_fn(|| world.take(0)).count(), 4);
}

#[test]
fn deactivation_by_dir_finds_what_is_outside() {
    for can_trap in [true, false] {
        let mut world = ready(1, 32..40);
        world.cpus[0].hw.can_trap = can_trap;
        world.cpus[0].hw.split_deactivation();
        for intid in [32, 33, 34] {
            world.pulse(intid);
            assert_eq!(world.acknowledge(0), Some(intid));
            // The priority drops, and it stays active.
            world.cpus[0].hw.end(intid);
            assert!(world.active(0, intid));
        }
        let order = if can_trap { [33, 34, 32] } else { [32, 33, 34] };
        for intid in order {
            if world.cpus[0].hw.write_dir(intid) {
                world.with(0, |own, vgic, hw, kick| {
                    own.deactivate(vgic, hw, intid, kick)
                });
            }
            world.settle();
            assert!(!world.active(0, intid), "{intid}");
        }
    }
}

/// With EOImode 1 EOIR deactivates nothing, though QEMU 10 counts it.
#[test]
fn a_priority_that_drops_ends_nothing_outside() {
    let mut world = ready(1, 32..40);
    world.cpus[0].hw.split_deactivation();
    for (intid, priority) in [(32, 0xe0), (33, 0xc0), (34, 0xa0)] {
        world.set_priority(0, intid, priority);
        world.pulse(intid);
        assert_eq!(world.acknowledge(0), Some(intid));
    }
    for intid in [34, 33, 32] {
        world.end(0, intid);
        world.settle();
        assert!((32..35).all(|intid| world.active(0, intid)), "{intid}");
    }
    for intid in [33, 32, 34] {
        world.deactivate(0, intid);
        assert!(!world.active(0, intid));
    }
    assert_eq!(world.take(0), None);
}

#[test]
fn a_level_that_stays_up_comes_again_after_each_end() {
    let mut world = World::ready(1, 1);
    for intid in 32..36 {
        world.enable(0, intid);
        world.set_priority(0, intid, 0xa0);
        world.set_level(intid, true);
    }
    for _ in 0..3 {
        let mut taken = Vec::new();
        for _ in 0..20 {
            let intid = world.take(0).expect("lines are up");
            taken.push(intid);
        }
        assert!(taken.len() == 20);
    }
    for intid in 32..36 {
        world.set_level(intid, false);
    }
    assert_eq!(world.take(0), None, "all lines are down");
}

proptest! {
    /// Interrupts are taken, nested and ended at random: no more and no less than were raised.
    #[test]
    fn nothing_is_lost_or_doubled(registers in 1_usize..5, steps in proptest::collection::vec((0_u8..4, 0_u32..10, 0_u8..28), 1..120)) {
        let mut world = ready(registers, 32..42);
        let mut pending = [false; 10];
        let mut active = [false; 10];
        let mut running = Vec::new();
        for (what, which, priority) in steps {
            let intid = 32 + which;
            match what {
                0 => {
                    world.pulse(intid);
                    pending[which as usize] = true;
                }
                1 if !active[which as usize] => world.set_priority(0, intid, priority * 8),
                2 => {
                    if let Some(taken) = world.acknowledge(0) {
                        let index = (taken - 32) as usize;
                        prop_assert!(pending[index] && !active[index], "{} wasn't raised", taken);
                        pending[index] = false;
                        active[index] = true;
                        running.push(taken);
                    }
                }
                _ => {
                    if let Some(intid) = running.pop() {
                        world.end(0, intid);
                        active[(intid - 32) as usize] = false;
                    }
                }
            }
        }
        while let Some(intid) = running.pop() {
            world.end(0, intid);
        }
        let mut left: Vec<u32> = std::iter::from_fn(|| world.take(0)).collect();
        left.sort_unstable();
        let expected: Vec<u32> = (0..10).filter(|which| pending[*which as usize]).map(|which| which + 32).collect();
        prop_assert_eq!(left, expected);
    }
}

/// The guest ends the one that it has acknowledged last, whatever priorities they have been given since.
#[test]
fn nested_handlers_end_in_order_though_their_priorities_change() {
    for registers in [1, 2, 4] {
        let mut world = ready(registers, 32..48);
        for (index, intid) in (32..48).enumerate() {
            world.set_priority(0, intid, 0xe8 - 8 * index as u8);
            world.pulse(intid);
            // One that is in a list register already is acknowledged at the priority that it had there.
            let seen = world.cpus[0].hw.acknowledge();
            assert_eq!(seen.or_else(|| world.acknowledge(0)), Some(intid));
            world.set_priority(0, intid, 8 * index as u8);
        }
        for intid in (32..48).rev() {
            let active: Vec<u32> = (32..48).filter(|intid| world.active(0, *intid)).collect();
            assert_eq!(active, (32..=intid).collect::<Vec<_>>());
            world.cpus[0].hw.end(intid);
            world.settle();
        }
    }
}

/// What is active without having been acknowledged is ended by DIR also after a sleep, and by no end of another.
#[test]
fn what_is_active_by_hand_is_deactivated_after_a_sleep() {
    let mut world = ready(4, 32..34);
    world.pulse(33);
    world.settle();
    world.write_bit(0, 0x300, 33);
    world.settle();
    world.put(0);
    world.load(0);
    world.pulse(32);
    world.put(0);
    world.load(0);
    assert_eq!(world.acknowledge(0), Some(32));
    world.put(0);
    world.load(0);
    world.cpus[0].hw.end(32);
    world.settle();
    assert!(world.active(0, 33) && !world.active(0, 32));
    // Nor by the end of one that isn't active, which is counted.
    world.put(0);
    world.pulse(32);
    world.cpus[0].hw = CpuInterface::new(1);
    world.load(0);
    assert_eq!(world.acknowledge(0), Some(32));
    world.cpus[0].hw.end(40);
    world.settle();
    assert!(world.active(0, 33));
    world.write_bit(0, 0x380, 32);
    world.settle();
    world.cpus[0].hw.split_deactivation();
    world.put(0);
    world.load(0);
    world.deactivate(0, 33);
    world.settle();
    assert!(!world.active(0, 33));
}
