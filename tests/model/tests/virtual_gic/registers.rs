//! Registers as guests probe and program them.

use crate::world::{D, GICD, GICR, SGI, World, affinity, config};
use vgic::{Forwarded, Frame, SgiRegister, Version, Vgic, VgicConfig, VgicError, Width};

const R0: Frame = Frame::Redistributor(0);

#[test]
fn frames_are_found_by_address() {
    let world = World::asleep(3, 4);
    let at = |ipa| world.vgic.locate(ipa);
    assert_eq!(at(GICD), Some((D, 0)));
    assert_eq!(at(GICD + 0xffff), Some((D, 0xffff)));
    assert_eq!(at(GICD + 0x1_0000), None);
    assert_eq!(at(GICD - 1), None);
    assert_eq!(at(GICR), Some((R0, 0)));
    assert_eq!(at(GICR + 0x2_0104), Some((Frame::Redistributor(1), 0x104)));
    assert_eq!(
        at(GICR + 0x5_ffff),
        Some((Frame::Redistributor(2), 0x1_ffff))
    );
    assert_eq!(at(GICR + 0x6_0000), None);
    assert_eq!(at(u64::MAX), None);
}

#[test]
fn a_gic_that_cant_be_is_refused() {
    let refused = |config: VgicConfig<'_>| Vgic::new(&config).err();
    let good = config(2);
    assert_eq!(refused(good), None);
    assert_eq!(
        refused(VgicConfig { vcpus: 0, ..good }),
        Some(VgicError::Vcpus(0))
    );
    assert_eq!(
        refused(VgicConfig { vcpus: 513, ..good }),
        Some(VgicError::Vcpus(513))
    );
    let v2 = VgicConfig {
        version: Version::V2,
        vcpus: 9,
        ..good
    };
    assert_eq!(refused(v2), Some(VgicError::Vcpus(9)));
    for spis in [0, 31, 33, 992] {
        assert_eq!(
            refused(VgicConfig { spis, ..good }),
            Some(VgicError::Spis(spis))
        );
    }
    let same = VgicConfig {
        affinity: &|_| 7,
        ..good
    };
    assert_eq!(refused(same), Some(VgicError::Affinity(7)));
    let four_levels = VgicConfig {
        affinity: &|vcpu| 1 << 24 | vcpu as u32,
        ..good
    };
    assert_eq!(refused(four_levels), Some(VgicError::Affinity(1 << 24)));
    assert_eq!(
        refused(VgicConfig {
            priority_bits: 9,
            ..good
        }),
        Some(VgicError::PriorityBits(9))
    );
    for virtual_id in [3, 96] {
        let forwarded = [Forwarded {
            virtual_id,
            physical_id: 40,
        }];
        let config = VgicConfig {
            forwarded: &forwarded,
            ..good
        };
        assert_eq!(refused(config), Some(VgicError::Forwarded(virtual_id)));
    }
    let overlapping = VgicConfig {
        redistributors: GICD,
        ..good
    };
    assert_eq!(refused(overlapping), Some(VgicError::Frames));
    let unaligned = VgicConfig {
        distributor: GICD + 0x1000,
        ..good
    };
    assert_eq!(refused(unaligned), Some(VgicError::Frames));
    let beyond = VgicConfig {
        redistributors: u64::MAX - 0xffff,
        ..good
    };
    assert_eq!(refused(beyond), Some(VgicError::Frames));
}

/// What Linux 6.12, FreeBSD and Zephyr look at before anything else.
#[test]
fn guests_find_a_gicv3() {
    let mut world = World::new(18, 4);
    assert_eq!(world.read(0, D, 0xffe8) >> 4 & 15, 3);
    assert_eq!(world.read(0, R0, 0xffe8) >> 4 & 15, 3);
    // ARE, DS; no group is on, nothing pends.
    assert_eq!(world.read(0, D, 0), 1 << 6 | 1 << 4);
    let kind = world.read(0, D, 4);
    assert_eq!(kind & 31, 2, "32 private and 64 shared interrupts");
    assert_eq!(kind >> 19 & 31, 9);
    assert_eq!(kind >> 25 & 3, 1, "No1N, no RSS");
    assert_eq!(kind >> 16 & 3, 0, "no message-based interrupts, no LPIs");
    assert_eq!(world.read(0, D, 0xc), 0);
    assert_ne!(world.read(0, D, 8), 0);
    for vcpu in 0..18 {
        let frame = Frame::Redistributor(vcpu);
        let kind = world.read_sized(3, frame, 8, Width::Double);
        assert_eq!(kind >> 32, u64::from(affinity(vcpu)));
        assert_eq!(kind >> 8 & 0xffff, vcpu as u64);
        assert_eq!(kind >> 4 & 1 != 0, vcpu == 17, "Last");
        assert_eq!(kind & 0xf, 0);
        assert_eq!(
            world.read(3, frame, 8) | world.read(3, frame, 0xc) << 32,
            kind
        );
        // It sleeps until it is woken.
        assert_eq!(world.read(0, frame, 0x14), 6);
        world.write(0, frame, 0x14, 0);
        assert_eq!(world.read(0, frame, 0x14), 0);
        world.write(0, frame, 0x14, 2);
        assert_eq!(world.read(0, frame, 0x14), 6);
        assert_eq!(world.read(0, frame, 0), 0);
    }
    world.write(0, D, 0, 0xffff_ffff);
    world.settle();
    assert_eq!(world.read(0, D, 0), 1 << 6 | 1 << 4 | 3);
}

#[test]
fn attributes_read_as_they_were_written() {
    let mut world = World::new(2, 4);
    for (frame, base, first) in [(D, 0, 32), (R0, SGI, 0)] {
        let word = first / 32 * 4;
        world.write(0, frame, base + 0x80 + word, 0x8000_ff01);
        assert_eq!(world.read(1, frame, base + 0x80 + word), 0x8000_ff01);
        world.write(0, frame, base + 0x100 + word, 0x0f00_00f0);
        world.write(0, frame, base + 0x180 + word, 0x0100_0010);
        assert_eq!(world.read(0, frame, base + 0x100 + word), 0x0e00_00e0);
        assert_eq!(world.read(0, frame, base + 0x180 + word), 0x0e00_00e0);
        world.write(0, frame, base + 0x400 + first, 0xa7a0_ff08);
        // Five bits.
        assert_eq!(world.read(0, frame, base + 0x400 + first), 0xa0a0_f808);
        world.write_sized(0, frame, base + 0x401 + first, Width::Byte, 0x1ff);
        assert_eq!(
            world.read_sized(0, frame, base + 0x401 + first, Width::Byte),
            0xf8
        );
        assert_eq!(world.read(0, frame, base + 0x400 + first), 0xa0a0_f808);
    }
    // SGIs stay edges; of two bits, the lower is 0.
    world.write(0, R0, SGI + 0xc00, 0);
    assert_eq!(world.read(0, R0, SGI + 0xc00), 0xaaaa_aaaa);
    for (frame, offset) in [(R0, SGI + 0xc04), (D, 0xc08), (D, 0xc0c)] {
        world.write(0, frame, offset, 0xc000_0009);
        assert_eq!(world.read(0, frame, offset), 0x8000_0008);
    }
    // The other vCPU's are its own.
    assert_eq!(world.read(0, Frame::Redistributor(1), SGI + 0x100), 0);
    assert_eq!(world.read(0, Frame::Redistributor(1), SGI + 0x400), 0);
}

#[test]
fn a_route_is_written_whole_or_in_halves() {
    let mut world = World::new(18, 4);
    let route = 0x6000 + 8 * 50;
    world.write_sized(0, D, route, Width::Double, 0x7_80ff_0101);
    // No 1-of-N, no Aff3.
    assert_eq!(world.read_sized(0, D, route, Width::Double), 0xff_0101);
    world.write(0, D, route + 4, 0xff);
    assert_eq!(world.read(0, D, route + 4), 0);
    assert_eq!(world.read(0, D, route), 0xff_0101);
    world.write(0, D, route, 0x101);
    assert_eq!(world.read_sized(0, D, route, Width::Double), 0x101);
    // Private interrupts have none.
    world.write_sized(0, D, 0x6000 + 8 * 20, Width::Double, 1);
    assert_eq!(world.read_sized(0, D, 0x6000 + 8 * 20, Width::Double), 0);
}

#[test]
fn the_distributor_has_no_private_interrupts_and_none_beyond_its_last() {
    let mut world = World::new(1, 4);
    for base in [0x80, 0x100, 0x200, 0x300, 0x400, 0xc00] {
        let bits = match base {
            0x400 => 8,
            0xc00 => 2,
            _ => 1,
        };
        for intid in [0, 96] {
            world.write(0, D, base + intid * bits / 8, 0xffff_ffff);
            assert_eq!(
                world.read(0, D, base + intid * bits / 8),
                0,
                "{base:#x}, {intid}"
            );
        }
        world.write(0, R0, SGI + base + 32 * bits / 8, 0xffff_ffff);
        assert_eq!(world.read(0, R0, SGI + base + 32 * bits / 8), 0);
    }
}

#[test]
fn sgis_reach_whom_the_register_names() {
    let mut world = World::ready(20, 4);
    for vcpu in 0..20 {
        for sgi in 0..16 {
            world.enable(vcpu, sgi);
        }
    }
    let reached = |world: &mut World| -> Vec<(usize, u32)> {
        let taken = |world: &mut World, vcpu| world.take(vcpu).map(|sgi| (vcpu, sgi));
        (0..20).filter_map(|vcpu| taken(world, vcpu)).collect()
    };
    // A list in one cluster; targets that there aren't.
    world.send_value(5, SgiRegister::Sgi1, 0xfff8 | 3 << 24 | 1 << 16);
    assert_eq!(reached(&mut world), [(19, 3)]);
    world.send_value(5, SgiRegister::Sgi1, 0x8021 | 15 << 24);
    assert_eq!(reached(&mut world), [(0, 15), (5, 15), (15, 15)]);
    // All but itself.
    world.send_value(5, SgiRegister::Sgi1, 1 << 40 | 2 << 24 | 0xffff);
    let others: Vec<_> = (0..20)
        .filter(|vcpu| *vcpu != 5)
        .map(|vcpu| (vcpu, 2))
        .collect();
    assert_eq!(reached(&mut world), others);
    // Other levels of affinity, and ranges, reach nobody.
    for field in [1_u64 << 32, 1 << 48, 1 << 44, 2 << 16, 0xff << 16] {
        world.send_value(0, SgiRegister::Sgi1, 0xffff | field);
        assert_eq!(reached(&mut world), [], "{field:#x}");
    }
    // The other two registers reach group 0 only.
    world.write(0, Frame::Redistributor(1), SGI + 0x80, 0xffff_fffe);
    world.settle();
    for register in [SgiRegister::Sgi0, SgiRegister::Asgi1] {
        world.send_value(0, register, 0b110);
        assert_eq!(reached(&mut world), [(1, 0)]);
    }
}

#[test]
fn pending_and_active_read_alike_on_every_cpu() {
    let mut world = World::ready(2, 4);
    world.enable(0, 33);
    world.set_level(33, true);
    for vcpu in 0..2 {
        assert!(world.pending(vcpu, 33) && !world.active(vcpu, 33));
    }
    assert_eq!(world.acknowledge(0), Some(33));
    for vcpu in 0..2 {
        assert!(
            world.pending(vcpu, 33) && world.active(vcpu, 33),
            "the line is up"
        );
    }
    world.set_level(33, false);
    for vcpu in 0..2 {
        assert!(!world.pending(vcpu, 33) && world.active(vcpu, 33));
    }
    world.end(0, 33);
    for vcpu in 0..2 {
        assert!(!world.pending(vcpu, 33) && !world.active(vcpu, 33));
    }
    // The SGI is in the door, in a list register, is taken.
    world.enable(1, 4);
    world.send(0, 1, 4);
    let pending = |world: &mut World| world.read(0, Frame::Redistributor(1), SGI + 0x200);
    assert_eq!(pending(&mut world), 1 << 4);
    world.settle();
    assert_eq!(pending(&mut world), 1 << 4);
    assert_eq!(world.acknowledge(1), Some(4));
    assert_eq!(pending(&mut world), 0);
    assert_eq!(world.read(0, Frame::Redistributor(1), SGI + 0x300), 1 << 4);
    // Cleared while it is in the door.
    world.send(0, 1, 5);
    world.write(0, Frame::Redistributor(1), SGI + 0x280, 1 << 5);
    world.enable(1, 5);
    world.end(1, 4);
    assert_eq!(world.take(1), None);
}

/// Two vCPUs that read each other's state at once.
#[test]
fn whoever_waits_for_an_answer_answers_others() {
    let mut world = World::ready(2, 4);
    for (vcpu, intid) in [(0, 33), (1, 65)] {
        world.enable(0, intid);
        world.set_route(0, intid, vcpu);
        world.set_level(intid, true);
        assert_eq!(world.acknowledge(vcpu), Some(intid));
    }
    let read = |world: &mut World, vcpu, offset| world.try_read(vcpu, D, offset, Width::Word);
    assert_eq!(read(&mut world, 1, 0x304), None);
    assert_eq!(read(&mut world, 0, 0x308), None);
    assert_eq!(read(&mut world, 1, 0x304), Some(2));
}

#[test]
fn saved_registers_make_the_same_gic() {
    let mut world = World::ready(2, 4);
    for intid in [33, 34, 60] {
        world.enable(0, intid);
        world.set_priority(0, intid, intid as u8 * 2);
    }
    world.set_edge(34, true);
    world.set_route(0, 34, 1);
    world.enable(1, 7);
    world.pulse(34);
    world.pulse(60);
    world.send(0, 1, 7);
    world.write_bit(0, 0x200, 33);
    assert_eq!(world.acknowledge(0), Some(33));
    (0..2).for_each(|vcpu| world.put(vcpu));
    let mut other = World::asleep(2, 4);
    let words: Vec<u64> = (0..0x1_0000)
        .step_by(4)
        .filter(|offset| !(0x180..0x200).contains(offset))
        .collect();
    for (frame, base) in [
        (D, 0),
        (R0, 0),
        (R0, SGI),
        (Frame::Redistributor(1), 0),
        (Frame::Redistributor(1), SGI),
    ] {
        for offset in &words {
            let value = world.vgic.save(0, frame, base + offset, Width::Word);
            other
                .vgic
                .restore(0, frame, base + offset, Width::Word, value);
        }
    }
    for vcpu in 0..2 {
        let interface = world.cpus[vcpu].own.save_interface();
        other.cpus[vcpu]
            .own
            .restore_interface(&other.vgic, interface);
        other.load(vcpu);
        world.load(vcpu);
    }
    for world in [&mut world, &mut other] {
        assert!(world.active(0, 33));
        assert_eq!(
            world.acknowledge(0),
            None,
            "33 runs, and is more urgent than 60"
        );
        world.end(0, 33);
        assert_eq!(world.take(0), Some(60));
        assert_eq!(world.take(0), None);
        assert_eq!(world.take(1), Some(7));
        assert_eq!(world.take(1), Some(34));
        assert_eq!(world.take(1), None);
    }
}

#[test]
fn a_fork_goes_on_as_its_parent() {
    let mut world = World::ready(2, 4);
    world.enable(0, 33);
    world.enable(0, 34);
    world.enable(1, 3);
    world.set_edge(34, true);
    world.set_level(33, true);
    assert_eq!(world.acknowledge(0), Some(33));
    world.pulse(34);
    world.send(0, 1, 3);
    (0..2).for_each(|vcpu| world.put(vcpu));
    let mut fork = World::asleep(2, 2);
    fork.vgic = world.vgic.snapshot().unwrap();
    for vcpu in 0..2 {
        fork.cpus[vcpu].own = world.cpus[vcpu].own.clone();
        fork.load(vcpu);
        world.load(vcpu);
    }
    for world in [&mut world, &mut fork] {
        assert_eq!(world.take(1), Some(3));
        assert_eq!(world.acknowledge(0), None);
        world.set_level(33, false);
        world.end(0, 33);
        assert_eq!(world.take(0), Some(34));
        assert_eq!(world.take(0), None);
    }
}

#[test]
fn a_reset_forgets_everything() {
    let mut world = World::ready(2, 4);
    world.enable(0, 33);
    world.set_level(33, true);
    world.settle();
    (0..2).for_each(|vcpu| world.put(vcpu));
    // Nobody has looked at this yet.
    world.set_edge(34, true);
    world.enable(1, 34);
    world.pulse(34);
    world.vgic.reset();
    world.cpus.iter_mut().for_each(|cpu| cpu.own.reset());
    (0..2).for_each(|vcpu| world.load(vcpu));
    assert_eq!(world.read(0, D, 0), 1 << 6 | 1 << 4);
    assert!(!world.pending(0, 33) && world.read(0, D, 0x104) == 0);
    assert!(world.cpus[0].hw.held().next().is_none());
    world.cpus[0].hw.open(0xf8, true, true);
    world.set_edge(34, true);
    world.enable(0, 34);
    world.write_bit(0, 0x80, 34);
    world.write(0, D, 0, 3);
    world.pulse(34);
    assert_eq!(world.acknowledge(0), Some(34));
}
