//! Whatever the vCPUs of a guest do to their virtual GIC, of either architecture and with an ITS, and whatever devices raise
//! meanwhile: nothing panics, no interrupt is in two list registers, no maintenance interrupt storms, nobody waits for ever; and
//! when the guest has tidied up, each interrupt comes as often as it is raised.
//!
//! The world is the one of the tests in `tests/model/tests/virtual_gic`.
#![no_main]

#[path = "../../model/tests/virtual_gic/world.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod world;

use libfuzzer_sys::fuzz_target;
use vgic::{Frame, SgiRegister, Version, VgicConfig, VirtualInterface, Width};
use world::{D, GICD, RAM, SGI, Tables, World, config};

const VCPUS: usize = 3;
const WIDTHS: [Width; 4] = [Width::Byte, Width::Half, Width::Word, Width::Double];
const REGISTERS: [SgiRegister; 3] = [SgiRegister::Sgi1, SgiRegister::Asgi1, SgiRegister::Sgi0];
/// Longer sequences show no more.
const LONGEST: usize = 200;
/// An access that has to be executed again ends after so many times.
const MOST_TIMES: usize = 10_000;

/// What is done, by whom, to what, with which value.
type Step = (u8, u8, u32, u64);

fuzz_target!(|input: (bool, u8, Vec<Step>)| {
    let (v2, registers, steps) = input;
    let registers = 1 + usize::from(registers % 5);
    let mut world = match v2 {
        true => World::ready_v2(VCPUS, registers),
        false => with_its(registers),
    };
    for step in steps.iter().take(LONGEST) {
        act(&mut world, v2, *step);
        world.settle();
    }
    tidy(&mut world, v2);
    check(&mut world, v2);
    (0..VCPUS).for_each(|vcpu| world.put(vcpu));
});

fn with_its(registers: usize) -> World {
    let config = VgicConfig {
        version: Version::V3,
        its: Some(GICD + 0x8_0000),
        ..config(VCPUS)
    };
    let mut world = World::asleep_with(&config, registers);
    world.tables = Tables(vec![0; 0x2_0000]);
    for vcpu in 0..VCPUS {
        world.load(vcpu);
        world.cpus[vcpu].hw.open(0xf8, true, true);
    }
    world.settle();
    world
}

fn frame(number: u32, v2: bool) -> Frame {
    match number % 8 {
        _ if v2 => D,
        0 | 1 => D,
        2 | 3 => Frame::Its,
        other => Frame::Redistributor(other as usize - 4),
    }
}

/// Mostly a place that has a register.
fn offset(number: u32) -> u64 {
    let some = u64::from(number >> 8);
    match number >> 3 & 7 {
        0..3 => some % 0x400 * 4,
        3 | 4 => SGI + some % 0x400 * 4,
        5 => 0x6000 + some % 0x100 * 4,
        6 => some % 0x20 * 4,
        _ => some,
    }
}

fn act(world: &mut World, v2: bool, (what, who, which, value): Step) {
    let vcpu = usize::from(who) % VCPUS;
    let width = WIDTHS[usize::from(who) / 4 % 4];
    match what % 16 {
        0..6 => write(world, vcpu, frame(which, v2), offset(which), width, value),
        6 | 7 => {
            world.read_sized(vcpu, frame(which, v2), offset(which), width);
        }
        8 if v2 => write(world, vcpu, D, 0xf00, Width::Word, value),
        8 => world.send_value(vcpu, REGISTERS[which as usize % 3], value),
        9 => world.set_level(which % 100, value & 1 != 0),
        10 => world.pulse(which % 100),
        11 => {
            world.acknowledge(vcpu);
        }
        12 => world.end(vcpu, which % 100),
        13 => world.deactivate(vcpu, which % 100),
        14 => {
            let hw = &mut world.cpus[vcpu].hw;
            hw.write_vmcr(value & 0xff00_021f);
        }
        _ => match which % 4 {
            0 => {
                world.put(vcpu);
                world.load(vcpu);
            }
            1 => {
                let (virtual_id, physical) = if value & 1 == 0 { (27, 28) } else { (40, 99) };
                let mut cpus = world.cpus.iter();
                if !cpus.any(|cpu| cpu.hw.physical.contains(&physical)) {
                    world.take_physical(vcpu, virtual_id);
                }
            }
            2 => world.with(vcpu, |own, vgic, hw, kick| {
                own.may_sleep(vgic, hw, &mut *kick);
                own.is_requested(vgic, hw, kick);
            }),
            _ if v2 => {}
            // A command or a property.
            _ => {
                let place = RAM + u64::from(which >> 8) % 0x2_0000 / 8 * 8;
                world.tables.write(place, &value.to_le_bytes());
            }
        },
    }
}

fn write(world: &mut World, vcpu: usize, frame: Frame, offset: u64, width: Width, value: u64) {
    for _ in 0..MOST_TIMES {
        let is_done = world.try_write(vcpu, frame, offset, width, value);
        world.settle();
        if is_done {
            return;
        }
    }
    panic!("a write of {frame:?} + {offset:#x} never ends");
}

/// The guest disables, clears and deactivates everything, on each vCPU.
fn tidy(world: &mut World, v2: bool) {
    for spi in 32..96 {
        world.set_level(spi, false);
    }
    write(world, 0, D, 0, Width::Word, 0);
    if !v2 {
        write(world, 0, Frame::Its, 0, Width::Word, 0);
    }
    for vcpu in 0..VCPUS {
        let frames = [(D, 0), (Frame::Redistributor(vcpu), SGI)];
        for (frame, base) in frames.into_iter().take(if v2 { 1 } else { 2 }) {
            for register in [0x180, 0x280, 0x380] {
                for word in 0..3 {
                    let offset = base + register + 4 * word;
                    write(world, vcpu, frame, offset, Width::Word, u64::MAX);
                }
            }
            for word in 0..4 {
                // ICFGR of SPIs; CPENDSGIR of a GICv2.
                write(world, vcpu, D, 0xc08 + 4 * word, Width::Word, 0);
                write(world, vcpu, D, 0xf10 + 4 * word, Width::Word, u64::MAX);
            }
        }
        if !v2 {
            write(world, vcpu, Frame::Redistributor(vcpu), 0, Width::Word, 0);
        }
        let hw = &mut world.cpus[vcpu].hw;
        hw.write_active_priorities(Default::default());
        hw.write_vmcr(0);
        hw.open(0xf8, true, true);
    }
    world.settle();
}

/// Nothing is left, and each interrupt that is raised comes once, to each vCPU.
fn check(world: &mut World, v2: bool) {
    assert_eq!(world.read(0, D, 0) >> 31, 0, "a write is pending for ever");
    write(world, 0, D, 0, Width::Word, 3);
    for vcpu in 0..VCPUS {
        assert_eq!(world.take(vcpu), None, "something is left for {vcpu}");
    }
    for vcpu in 0..VCPUS {
        for intid in [33, 40] {
            match v2 {
                true => write(
                    world,
                    0,
                    D,
                    0x800 + u64::from(intid),
                    Width::Byte,
                    1 << vcpu,
                ),
                false => world.set_route(0, intid, vcpu),
            }
            world.set_priority(0, intid, 0xa0);
            world.enable(0, intid);
            world.set_level(intid, true);
            assert_eq!(world.acknowledge(vcpu), Some(intid));
            world.set_level(intid, false);
            world.end(vcpu, intid);
            assert_eq!(world.take(vcpu), None);
            world.disable(0, intid);
        }
    }
    if !v2 {
        for vcpu in 0..VCPUS {
            world.write_bit(vcpu, 0x100, 5);
            world.set_priority(vcpu, 5, 0xa0);
            let frame = Frame::Redistributor(vcpu);
            write(world, vcpu, frame, SGI + 0x80, Width::Word, 1 << 5);
            world.send((vcpu + 1) % VCPUS, vcpu, 5);
            assert_eq!(world.take(vcpu), Some(5));
            assert_eq!(world.take(vcpu), None);
        }
    }
}
