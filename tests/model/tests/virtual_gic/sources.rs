//! SGIs of a GICv2, which have sources (rule V8).

use crate::world::{D, World};
use proptest::collection::vec;
use proptest::prelude::*;
use vgic::{Frame, Width};

const SGIR: u64 = 0xf00;
const CLEAR_PENDING: u64 = 0xf10;
const SET_PENDING: u64 = 0xf20;

fn send(world: &mut World, from: usize, to: usize, sgi: u32) {
    world.write(from, D, SGIR, 1 << (16 + to) | u64::from(sgi));
}

/// The guest reads GICC_IAR: the SGI with its source.
fn acknowledge(world: &mut World, vcpu: usize) -> Option<(u32, u8)> {
    let intid = world.acknowledge(vcpu)?;
    let register = world.cpus[vcpu].hw.holds(intid).unwrap();
    assert!(register.active() && !register.pending());
    Some((intid, register.source()))
}

fn take(world: &mut World, vcpu: usize) -> Option<(u32, u8)> {
    let taken = acknowledge(world, vcpu)?;
    world.end(vcpu, taken.0);
    Some(taken)
}

/// As vCPU 0 reads ISPENDR0 and ISACTIVER0.
fn is_pending(world: &mut World, sgi: u32) -> bool {
    world.read(0, D, 0x200) >> sgi & 1 != 0
}

fn is_active(world: &mut World, sgi: u32) -> bool {
    world.read(0, D, 0x300) >> sgi & 1 != 0
}

fn take_all(world: &mut World, vcpu: usize) -> Vec<(u32, u8)> {
    core::iter::from_fn(|| take(world, vcpu)).collect()
}

#[test]
fn the_filter_says_who_gets_an_sgi() {
    let mut world = World::ready_v2(3, 4);
    // The value, who gets it. NSATT is ignored, and so are CPUs that there aren't.
    let rows: [(u64, &[usize]); 6] = [
        (0b101 << 16, &[0, 2]),
        (1 << 15 | 0xfa << 16, &[1]),
        (1 << 24 | 0xff << 16, &[0, 2]),
        (2 << 24 | 0xff << 16, &[1]),
        (3 << 24 | 0xff << 16, &[]),
        (0, &[]),
    ];
    for (value, targets) in rows {
        world.write(1, D, SGIR, value | 9);
        for vcpu in 0..3 {
            let expected = targets.contains(&vcpu).then_some((9, 1));
            assert_eq!(take(&mut world, vcpu), expected, "{value:#x} at {vcpu}");
            assert_eq!(take(&mut world, vcpu), None);
        }
    }
    assert_eq!(world.read(1, D, SGIR), 0);
}

#[test]
fn an_sgi_of_several_sources_is_taken_once_of_each() {
    for registers in [1, 2, 4] {
        let mut world = World::ready_v2(4, registers);
        for from in [3, 1, 2, 0, 1] {
            send(&mut world, from, 0, 5);
        }
        assert_eq!(acknowledge(&mut world, 0), Some((5, 0)));
        // While it runs: of the same source, and of another that is pending.
        send(&mut world, 0, 0, 5);
        send(&mut world, 2, 0, 5);
        assert_eq!(world.acknowledge(0), None, "one runs already");
        world.end(0, 5);
        assert_eq!(take_all(&mut world, 0), [(5, 0), (5, 1), (5, 2), (5, 3)]);
        assert!(!is_active(&mut world, 5) && !is_pending(&mut world, 5));
    }
}

#[test]
fn sources_are_set_and_cleared_by_hand() {
    let mut world = World::ready_v2(3, 4);
    send(&mut world, 1, 0, 6);
    send(&mut world, 2, 0, 6);
    world.settle();
    for base in [SET_PENDING, CLEAR_PENDING] {
        assert_eq!(world.read(0, D, base + 4), 0b110 << 16);
        assert_eq!(world.read_sized(0, D, base + 6, Width::Byte), 0b110);
        assert_eq!(world.read(1, D, base + 4), 0, "another's");
    }
    assert!(is_pending(&mut world, 6));
    // The one that a list register holds, then one that waits, then both.
    for (cleared, left) in [(0b010, 0b100), (0b100, 0b010), (0b111, 0)] {
        world.write_sized(0, D, CLEAR_PENDING + 6, Width::Byte, cleared);
        assert_eq!(world.read(0, D, SET_PENDING + 4), left << 16);
        assert_eq!(is_pending(&mut world, 6), left != 0);
        world.write(0, D, SET_PENDING + 4, 0b110 << 16);
        world.settle();
    }
    assert_eq!(acknowledge(&mut world, 0), Some((6, 1)));
    world.write(0, D, CLEAR_PENDING + 4, 0b111 << 16);
    assert!(is_active(&mut world, 6) && !is_pending(&mut world, 6));
    world.end(0, 6);
    assert_eq!(take(&mut world, 0), None);
    // The set and clear registers of other interrupts aren't for SGIs.
    world.write(0, D, 0x200, 1 << 6);
    assert_eq!(take(&mut world, 0), None);
}

#[test]
fn one_that_gives_way_keeps_its_source() {
    let mut world = World::ready_v2(4, 1);
    for (sgi, priority) in [(1, 0x80), (2, 0x40)] {
        world.write_sized(0, D, 0x400 + sgi, Width::Byte, priority);
    }
    send(&mut world, 3, 0, 1);
    send(&mut world, 2, 0, 1);
    assert_eq!(acknowledge(&mut world, 0), Some((1, 2)));
    send(&mut world, 1, 0, 2);
    assert_eq!(take(&mut world, 0), Some((2, 1)));
    // An access, after which the list register that is free is used.
    world.write(0, D, CLEAR_PENDING, 0);
    let back = world.cpus[0].hw.holds(1).unwrap();
    assert!(back.active() && back.source() == 2);
    world.end(0, 1);
    assert_eq!(take_all(&mut world, 0), [(1, 3)]);
}

#[test]
fn sources_are_saved_forked_and_reset() {
    let mut world = World::ready_v2(3, 4);
    for from in [2, 1, 0] {
        send(&mut world, from, 0, 9);
    }
    send(&mut world, 2, 1, 3);
    assert_eq!(acknowledge(&mut world, 0), Some((9, 0)));
    world.put(1);
    // Sent to one that doesn't run.
    send(&mut world, 0, 1, 3);
    world.put(0);
    world.put(2);

    let mut fork = World::asleep_v2(3, 2);
    fork.vgic = world.vgic.snapshot().unwrap();
    let mut saved = World::asleep_v2(3, 2);
    for vcpu in 0..3 {
        for offset in (0..0x1000).step_by(4) {
            if !(0x180..0x200).contains(&offset) {
                let value = world.vgic.save(vcpu, D, offset, Width::Word);
                let vgic = &saved.vgic;
                vgic.restore(vcpu, D, offset, Width::Word, value);
            }
        }
        let interface = world.cpus[vcpu].own.save_interface();
        let own = &mut saved.cpus[vcpu].own;
        own.restore_interface(&saved.vgic, interface);
        fork.cpus[vcpu].own = world.cpus[vcpu].own.clone();
    }
    for world in [&mut world, &mut fork, &mut saved] {
        (0..3).for_each(|vcpu| world.load(vcpu));
        let running = world.cpus[0].hw.holds(9).unwrap();
        assert!(running.active() && running.source() == 0);
        world.end(0, 9);
        assert_eq!(take_all(world, 0), [(9, 1), (9, 2)]);
        assert_eq!(take_all(world, 1), [(3, 0), (3, 2)]);
        send(world, 1, 2, 4);
        (0..3).for_each(|vcpu| world.put(vcpu));
        world.vgic.reset();
        world.cpus.iter_mut().for_each(|cpu| cpu.own.reset());
        (0..3).for_each(|vcpu| world.load(vcpu));
        assert_eq!(world.read(2, D, SET_PENDING + 4), 0);
    }
    assert_eq!(
        world.read(0, Frame::Redistributor(0), SET_PENDING),
        0,
        "a GICv2 has none"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Send(usize, u32),
    Acknowledge,
    End,
    Settle,
    Reload,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_usize..4, 0_u32..3).prop_map(|(from, sgi)| Step::Send(from, sgi)),
        3 => Just(Step::Acknowledge),
        3 => Just(Step::End),
        1 => Just(Step::Settle),
        1 => Just(Step::Reload),
    ]
}

proptest! {
    #[test]
    fn each_source_is_taken_as_often_as_it_was_sent(registers in 1_usize..4, steps in vec(step(), 0..60)) {
        let mut world = World::ready_v2(4, registers);
        // How often each was sent since it was taken last.
        let mut sent = [[0_u32; 4]; 3];
        let mut running = Vec::new();
        let taken = |sent: &mut [[u32; 4]; 3], (sgi, source): (u32, u8)| {
            let sent = &mut sent[sgi as usize][usize::from(source)];
            prop_assert!(*sent > 0, "{sgi} of {source} was taken too often");
            *sent -= 1;
            Ok(())
        };
        for step in steps {
            match step {
                Step::Send(from, sgi) => {
                    send(&mut world, from, 0, sgi);
                    sent[sgi as usize][from] += 1;
                }
                Step::Acknowledge => {
                    if let Some(one) = acknowledge(&mut world, 0) {
                        taken(&mut sent, one)?;
                        // Earlier ones were the same.
                        sent[one.0 as usize][usize::from(one.1)] = 0;
                        running.push(one.0);
                    }
                }
                Step::End => {
                    world.settle();
                    if let Some(sgi) = running.pop() {
                        world.end(0, sgi);
                    }
                }
                Step::Settle => world.settle(),
                Step::Reload => {
                    world.put(0);
                    world.load(0);
                }
            }
        }
        while let Some(sgi) = running.pop() {
            world.settle();
            world.end(0, sgi);
        }
        while let Some(one) = take(&mut world, 0) {
            taken(&mut sent, one)?;
            sent[one.0 as usize][usize::from(one.1)] = 0;
        }
        prop_assert_eq!(sent, [[0; 4]; 3], "sent and not taken");
    }
}

/// Rule V18.
#[test]
fn an_spi_goes_to_the_lowest_of_its_targets() {
    const TARGETS: u64 = 0x800 + 40;
    let mut world = World::ready_v2(3, 4);
    world.write(0, D, 0x104, 1 << 8);
    let target = |world: &mut World, targets| {
        world.write_sized(2, D, TARGETS, Width::Byte, targets);
    };
    // By byte: the neighbours stay as they are.
    world.write(0, D, TARGETS, 0x0101_0101);
    target(&mut world, 0b1111_0110);
    assert_eq!(
        world.read(0, D, TARGETS),
        0x0101_0106,
        "CPUs that there aren't"
    );
    world.pulse(40);
    let taken = [0, 1, 2].map(|vcpu| world.take(vcpu));
    assert_eq!(taken, [None, Some(40), None], "and to no other");
    target(&mut world, 0b100);
    world.pulse(40);
    assert_eq!(
        [0, 1, 2].map(|vcpu| world.take(vcpu)),
        [None, None, Some(40)]
    );
    // Without a target it is pending, and nobody is told.
    target(&mut world, 0);
    world.settle();
    let kicks = world.kicks;
    world.pulse(40);
    assert_eq!(world.kicks, kicks);
    assert_eq!([0, 1, 2].map(|vcpu| world.take(vcpu)), [None; 3]);
    assert_eq!(world.read(0, D, 0x204) >> 8 & 1, 1);
    target(&mut world, 0b110);
    assert_eq!(
        [0, 1, 2].map(|vcpu| world.take(vcpu)),
        [None, Some(40), None]
    );
    // While it is in a list register of the lowest, a lower one is added.
    world.pulse(40);
    world.settle();
    target(&mut world, 0b111);
    assert_eq!(
        [1, 2, 0].map(|vcpu| world.take(vcpu)),
        [None, None, Some(40)]
    );
}
