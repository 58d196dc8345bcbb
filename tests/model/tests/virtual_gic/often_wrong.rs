//! What the architecture says of a GIC's registers (Arm IHI 0069), where implementers often do otherwise.

use crate::world::{D, SGI, World, config};
use vgic::{Frame, VgicConfig, Width};

const R1: Frame = Frame::Redistributor(1);
/// GICD_CTLR.RWP and GICR_CTLR.RWP.
const RWP: u64 = 1 << 31;
const GICR_RWP: u64 = 1 << 3;

/// GICD_CTLR.RWP covers ICENABLER and group enables that are cleared, GICR_CTLR.RWP covers ICENABLER0. (A change of another
/// vCPU's SGI has it look at everything, and reads as RWP so long.)
#[test]
fn rwp_is_for_nothing_but_what_is_switched_off() {
    let mut world = World::ready(2, 4);
    world.enable(1, 33);
    world.set_level(33, true);
    world.enable(1, 3);
    world.send(0, 1, 3);
    world.settle();
    assert!(world.cpus[0].hw.holds(33).is_some() && world.cpus[1].hw.holds(3).is_some());
    // ISENABLER, ISPENDR, IPRIORITYR, IROUTER, ICFGR of an interrupt that another vCPU holds.
    for (offset, value) in [
        (0x104, 0b10),
        (0x204, 0b10),
        (0x420, 0x4000),
        (0x6000 + 8 * 33, 1),
        (0xc08, 0b1000),
    ] {
        world.write(1, D, offset, value);
        assert_eq!(world.read(1, D, 0) & RWP, 0, "{offset:#x}");
        assert_eq!(world.read(1, R1, 0) & GICR_RWP, 0, "{offset:#x}");
    }
    world.write(0, R1, SGI + 0x180, 1 << 3);
    assert_ne!(world.read(0, R1, 0) & GICR_RWP, 0, "ICENABLER0");
    world.settle();
    assert_eq!(world.read(0, R1, 0) & GICR_RWP, 0);
    assert!(world.cpus[1].hw.holds(3).is_none());
}

#[test]
fn icpendr_lowers_no_line() {
    let mut world = World::ready(2, 4);
    world.enable(0, 33);
    for is_held in [false, true] {
        world.set_level(33, true);
        if is_held {
            world.settle();
        }
        world.write_bit(1, 0x280, 33);
        assert!(world.pending(1, 33));
        assert_eq!(world.acknowledge(0), Some(33));
        world.set_level(33, false);
        world.end(0, 33);
        assert_eq!(world.take(0), None);
    }
}

#[test]
fn ispendr_of_a_level_is_a_latch() {
    let mut world = World::ready(1, 4);
    world.enable(0, 33);
    world.write_bit(0, 0x200, 33);
    // The line comes and goes, the latch stays.
    world.set_level(33, true);
    world.settle();
    world.set_level(33, false);
    world.settle();
    assert!(world.pending(0, 33));
    assert_eq!(world.take(0), Some(33));
    assert!(!world.pending(0, 33));
    assert_eq!(world.take(0), None);
    world.write_bit(0, 0x200, 33);
    world.write_bit(0, 0x280, 33);
    assert_eq!(world.take(0), None);
}

#[test]
fn an_end_needs_neither_enable_nor_route_nor_group() {
    let mut world = World::ready(2, 4);
    world.enable(0, 33);
    world.set_edge(33, true);
    world.pulse(33);
    assert_eq!(world.acknowledge(0), Some(33));
    world.disable(1, 33);
    world.set_route(1, 33, 1);
    world.write(1, D, 0, 0);
    world.settle();
    assert!(world.active(1, 33));
    world.end(0, 33);
    assert!(!world.active(1, 33));
}

/// GICv2: each CPU reads itself there.
#[test]
fn the_targets_of_private_interrupts_are_read_only() {
    let mut world = World::ready_v2(3, 4);
    for vcpu in 0..3 {
        for intid in 0..32 {
            let target = 0x800 + intid;
            world.write_sized(vcpu, D, target, Width::Byte, 0xff);
            let read = world.read_sized(vcpu, D, target, Width::Byte);
            assert_eq!(read, 1 << vcpu, "{intid} of {vcpu}");
        }
        world.write(vcpu, D, 0x800, 0);
        assert_eq!(world.read(vcpu, D, 0x800), 0x0101_0101 << vcpu);
    }
}

/// IHI 0069 leaves it open what becomes of an interrupt whose ICFGR changes while it is enabled. It must be one that works
/// afterwards.
#[test]
fn an_interrupt_that_is_configured_while_it_is_enabled_works_afterwards() {
    for taken in [false, true] {
        let mut world = World::ready(2, 4);
        world.enable(0, 33);
        world.set_level(33, true);
        world.settle();
        if taken {
            assert_eq!(world.acknowledge(0), Some(33));
        }
        for edge in [true, false, true] {
            world.set_edge(33, edge);
            world.settle();
        }
        world.set_level(33, false);
        match taken {
            true => world.end(0, 33),
            // It may be pending still, once.
            false => _ = world.take(0),
        }
        assert_eq!(world.take(0), None);
        world.pulse(33);
        assert_eq!(world.take(0), Some(33));
        world.set_edge(33, false);
        world.set_level(33, true);
        assert_eq!(world.take(0), Some(33));
        world.set_level(33, false);
        assert_eq!(world.take(0), None);
    }
}

/// Linux once synchronised ELRSR of an entry that never was.
#[test]
fn a_vcpu_that_is_put_without_an_entry_loses_nothing() {
    let mut world = World::ready(1, 2);
    for intid in [33, 34, 35] {
        world.enable(0, intid);
        world.set_edge(intid, true);
        world.pulse(intid);
    }
    for _ in 0..3 {
        world.put(0);
        world.load(0);
    }
    let mut taken: Vec<_> = std::iter::from_fn(|| world.take(0)).collect();
    taken.sort_unstable();
    assert_eq!(taken, [33, 34, 35]);
}

/// More than a door has bits for, so that some share one.
#[test]
fn of_the_most_spis_each_is_told_of() {
    let config = VgicConfig {
        spis: 960,
        ..config(2)
    };
    let mut world = World::asleep_with(&config, 2);
    (0..2).for_each(|vcpu| world.load(vcpu));
    world.write(0, D, 0, 3);
    world.cpus[1].hw.open(0xf8, true, true);
    assert_eq!(world.read(0, D, 4) & 31, 30);
    let intids = [32, 95, 96, 543, 544, 545, 607, 608, 990, 991];
    for intid in intids {
        world.set_edge(intid, true);
        world.set_route(0, intid, 1);
        world.enable(0, intid);
    }
    for _ in 0..2 {
        intids.iter().for_each(|intid| world.pulse(*intid));
        let mut taken: Vec<_> = std::iter::from_fn(|| world.take(1)).collect();
        taken.sort_unstable();
        assert_eq!(taken, intids);
    }
    world.write(0, D, 0x100 + 4 * 31, 0xffff_ffff);
    assert_eq!(world.read(0, D, 0x100 + 4 * 31), 0, "no interrupts");
}

/// A vCPU that is sent SGIs without end takes them, and gets at everything else.
#[test]
fn a_flood_of_sgis_leaves_room_for_others() {
    let mut world = World::ready(4, 1);
    for sgi in 0..16 {
        world.enable(0, sgi);
    }
    world.enable(0, 33);
    world.set_edge(33, true);
    (0..16).for_each(|sgi| world.set_priority(0, sgi, 0x80));
    for round in 0..64 {
        for from in 1..4 {
            (0..16).for_each(|sgi| world.send(from, 0, sgi));
        }
        if round == 32 {
            world.set_priority(0, 33, 0x40);
            world.pulse(33);
        }
        let taken = world.take(0).expect("one of the flood");
        assert_eq!(taken == 33, round == 32, "{taken}");
    }
    (0..16).for_each(|sgi| world.send(1, 0, sgi));
    let mut left: Vec<_> = std::iter::from_fn(|| world.take(0)).collect();
    left.sort_unstable();
    left.dedup();
    assert_eq!(left, (0..16).collect::<Vec<u32>>());
}

/// A list register whose interrupt the guest has ended holds nothing for it: raised again, it comes where it is routed by now,
/// and nowhere while its group is off.
#[test]
fn an_edge_that_is_raised_again_goes_where_it_may() {
    let mut world = World::ready(2, 4);
    world.set_edge(33, true);
    world.enable(0, 33);
    let again = |world: &mut World| {
        world.pulse(33);
        assert_eq!(world.take(0), Some(33));
        // Nobody has looked at the end.
        assert!(!world.cpus[0].hw.wants_maintenance());
    };
    again(&mut world);
    world.pulse(33);
    assert_eq!(world.take(0), Some(33), "where it was");
    again(&mut world);
    world.write(1, D, 0x6000 + 8 * 33, 1);
    world.pulse(33);
    assert_eq!(world.acknowledge(0), None);
    assert_eq!(world.take(1), Some(33));
    world.write(1, D, 0x6000 + 8 * 33, 0);
    world.settle();
    again(&mut world);
    world.write(1, D, 0, 1);
    world.pulse(33);
    assert_eq!(world.acknowledge(0), None);
    world.write(1, D, 0, 3);
    assert_eq!(world.take(0), Some(33));
}
