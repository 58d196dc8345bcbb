//! Guests that do whatever they like: nothing panics, and what isn't theirs stays as it is.

use crate::world::{D, World};
use proptest::prelude::*;
use vgic::{Frame, SgiRegister, Width};

const SIZES: [Width; 4] = [Width::Byte, Width::Half, Width::Word, Width::Double];

#[test]
fn every_register_takes_every_access() {
    let mut world = World::ready(2, 4);
    for frame in [
        D,
        Frame::Redistributor(0),
        Frame::Redistributor(1),
        Frame::Redistributor(9),
    ] {
        for offset in (0..0x2_0000).chain([u64::MAX, u64::MAX - 7, 1 << 32]) {
            // All but the ID registers, which there are many of.
            if offset > 0x1200
                && !(0x6000..0x6200).contains(&(offset & 0xffff))
                && offset % 509 != 0
            {
                continue;
            }
            for size in SIZES {
                for value in [0, u64::MAX] {
                    world.write_sized(0, frame, offset, size, value);
                    world.settle();
                    let value = world.read_sized(1, frame, offset, size);
                    let bits = size.bytes() * 8;
                    assert!(
                        bits == 64 || value >> bits == 0,
                        "{frame:?} + {offset:#x}: {value:#x}"
                    );
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write(usize, usize, u64, usize, u64),
    Read(usize, usize, u64, usize),
    Sgi(usize, u8, u64),
    Level(u32, bool),
    Pulse(u32),
    Acknowledge(usize),
    End(usize, u32),
    Dir(usize, u32),
    Control(usize, u64),
    Maintenance(usize),
    PutAndLoad(usize),
    Physical(usize, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let vcpu = || 0_usize..3;
    let offset = || {
        prop_oneof![
            (0_u64..0x400).prop_map(|word| word * 4),
            (0_u64..0x400).prop_map(|word| 0x1_0000 + word * 4),
            (0_u64..0x100).prop_map(|word| 0x6000 + word * 4),
            0_u64..0x2_0000,
        ]
    };
    let intid = || prop_oneof![0_u32..100, any::<u32>()];
    prop_oneof![
        6 => (vcpu(), 0_usize..4, offset(), 0_usize..4, any::<u64>()).prop_map(|(vcpu, frame, offset, size, value)| Step::Write(vcpu, frame, offset, size, value)),
        2 => (vcpu(), 0_usize..4, offset(), 0_usize..4).prop_map(|(vcpu, frame, offset, size)| Step::Read(vcpu, frame, offset, size)),
        2 => (vcpu(), any::<u8>(), any::<u64>()).prop_map(|(vcpu, register, value)| Step::Sgi(vcpu, register, value)),
        2 => (intid(), any::<bool>()).prop_map(|(intid, level)| Step::Level(intid, level)),
        1 => intid().prop_map(Step::Pulse),
        3 => vcpu().prop_map(Step::Acknowledge),
        2 => (vcpu(), intid()).prop_map(|(vcpu, intid)| Step::End(vcpu, intid)),
        1 => (vcpu(), intid()).prop_map(|(vcpu, intid)| Step::Dir(vcpu, intid)),
        1 => (vcpu(), any::<u64>()).prop_map(|(vcpu, control)| Step::Control(vcpu, control)),
        1 => vcpu().prop_map(Step::Maintenance),
        1 => vcpu().prop_map(Step::PutAndLoad),
        1 => (vcpu(), prop_oneof![Just(27), Just(40)]).prop_map(|(vcpu, intid)| Step::Physical(vcpu, intid)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn nothing_that_a_guest_does_breaks_it(registers in 1_usize..6, steps in proptest::collection::vec(step(), 1..150)) {
        let mut world = World::ready(3, registers);
        let frame = |number| match number {
            0 | 1 => D,
            number => Frame::Redistributor(number - 1),
        };
        for step in steps {
            match step {
                Step::Write(vcpu, to, offset, size, value) => {
                    world.write_sized(vcpu, frame(to), offset, SIZES[size], value);
                }
                Step::Read(vcpu, from, offset, size) => {
                    world.read_sized(vcpu, frame(from), offset, SIZES[size]);
                }
                Step::Sgi(vcpu, register, value) => {
                    let registers = [SgiRegister::Sgi1, SgiRegister::Asgi1, SgiRegister::Sgi0];
                    world.send_value(vcpu, registers[register as usize % 3], value);
                }
                Step::Level(intid, level) => world.set_level(intid, level),
                Step::Pulse(intid) => world.pulse(intid),
                Step::Acknowledge(vcpu) => {
                    world.acknowledge(vcpu);
                }
                Step::End(vcpu, intid) => world.end(vcpu, intid),
                Step::Dir(vcpu, intid) => {
                    if world.cpus[vcpu].hw.write_dir(intid) {
                        world.with(vcpu, |own, vgic, hw, kick| own.deactivate(vgic, hw, intid, kick));
                    }
                }
                Step::Control(vcpu, control) => {
                    use vgic::VirtualInterface;
                    world.cpus[vcpu].hw.write_vmcr(control & 0xff00_021f);
                }
                Step::Maintenance(vcpu) => world.with(vcpu, |own, vgic, hw, kick| own.maintenance(vgic, hw, kick)),
                Step::PutAndLoad(vcpu) => {
                    world.put(vcpu);
                    world.load(vcpu);
                }
                Step::Physical(vcpu, intid) => {
                    let physical = if intid == 27 { 28 } else { 99 };
                    if !world.cpus.iter().any(|cpu| cpu.hw.physical.contains(&physical)) {
                        world.take_physical(vcpu, intid);
                    }
                }
            }
            world.settle();
        }
        // Nobody waits for anything in the end, and whoever is put leaves nothing behind.
        prop_assert_eq!(world.read(0, D, 0) & 1 << 31, 0);
        (0..3).for_each(|vcpu| world.put(vcpu));
    }
}
