//! Saving and restoring an ITS.

use super::{BASER, CBASER, CREADR, CTLR, CWRITER, FIRST, ITS, Its, PROPERTIES, VALID, its_config};
use crate::world::{D, SGI, Tables, World};
use proptest::collection::vec;
use proptest::prelude::*;
use vgic::{Frame, ItsEntry, Vgic, Width};

const VCPUS: usize = 2;
const DEVICES: u64 = 3;
const EVENTS: u64 = 8;
const LPIS: u64 = 12;
/// Those of the ITS, CBASER before what says how far its queue is.
const REGISTERS: [u64; 6] = [CBASER, CREADR, CWRITER, BASER, BASER + 8, CTLR];

/// Copies all by registers and entries. The tables are the same.
fn restored(its: &mut Its) -> Its {
    (0..VCPUS).for_each(|vcpu| its.world.put(vcpu));
    let mut other = Its {
        world: World::asleep_with(&its_config(VCPUS), 4),
        writer: its.writer,
    };
    other.world.tables = Tables(its.world.tables.0.clone());
    let (from, to) = (&its.world.vgic, &other.world.vgic);
    let copy = |frame, offset, size| {
        let value = from.save(0, frame, offset, size);
        to.restore(0, frame, offset, size, value);
    };
    copy(D, 0, Width::Word);
    for vcpu in 0..VCPUS {
        let frame = Frame::Redistributor(vcpu);
        for offset in [0x70, 0x78] {
            copy(frame, offset, Width::Double);
        }
        copy(frame, 0, Width::Word);
        copy(frame, SGI + 0x80, Width::Word);
    }
    for offset in REGISTERS {
        let size = if offset == CTLR {
            Width::Word
        } else {
            Width::Double
        };
        copy(ITS, offset, size);
    }
    for entry in from.its_entries() {
        assert!(to.restore_its_entry(entry), "{entry:?}");
    }
    for (cpu, parent) in other.world.cpus.iter_mut().zip(&its.world.cpus) {
        let interface = parent.own.save_interface();
        cpu.own.restore_interface(&other.world.vgic, interface);
    }
    other
}

fn entries(vgic: &Vgic) -> Vec<ItsEntry> {
    let mut entries: Vec<ItsEntry> = vgic.its_entries().collect();
    // Where an event is in the table depends on what was there before.
    entries.sort_by_key(|entry| format!("{entry:?}"));
    entries
}

/// What the guests take, after each event was raised.
fn taken(its: &mut Its) -> Vec<(usize, u32)> {
    (0..VCPUS).for_each(|vcpu| its.world.load(vcpu));
    its.world.settle();
    let mut taken = Vec::new();
    for device in 0..DEVICES as u32 {
        for event in 0..EVENTS as u32 {
            its.raise(device, event);
            its.world.settle();
        }
    }
    for vcpu in 0..VCPUS {
        while let Some(lpi) = its.take(vcpu) {
            taken.push((vcpu, lpi));
        }
    }
    taken
}

fn act(its: &mut Its, (what, device, event, lpi, small): (u8, u64, u64, u64, u64)) {
    let collection = small % 3;
    match what {
        0 => _ = its.map_device(device, (small != 0).then_some(small)),
        1 => _ = its.map_collection(collection, (small > 2).then_some(small % 2)),
        2 | 3 => its.map(device, event, u64::from(FIRST) + lpi, collection),
        4 => its.with_event(0xf, device, event, 0),
        5 => its.with_event(1, device, event, collection),
        6 => _ = its.command([0xe, 0, (small % 2) << 16, (small / 2 % 2) << 16]),
        7 => its.int(device, event),
        8 => its.with_event(4, device, event, 0),
        _ => {
            its.set_property(FIRST + lpi as u32, (small as u8) << 5 | (what & 1));
            its.with_event(0xc, device, event, 0);
        }
    }
}

proptest! {
    #[test]
    fn a_restored_its_is_the_same(steps in vec((0_u8..11, 0..DEVICES, 0..EVENTS, 0..LPIS, 0_u64..5), 0..60)) {
        let mut its = Its::new(VCPUS, 4);
        for device in 0..DEVICES {
            its.map_device(device, Some(3));
        }
        steps.into_iter().for_each(|step| act(&mut its, step));
        let mut other = restored(&mut its);
        prop_assert_eq!(entries(&other.world.vgic), entries(&its.world.vgic));
        for offset in REGISTERS {
            let saved = |its: &Its| its.world.vgic.save(0, ITS, offset, Width::Double);
            prop_assert_eq!(saved(&other), saved(&its));
        }
        prop_assert_eq!(taken(&mut other), taken(&mut its));
    }

    /// As when a stream of a migration has them in the wrong order.
    #[test]
    fn a_queue_that_ends_before_what_is_written_stalls(writer in 128_u64..0x8000, reader in 0_u64..128) {
        let mut its = Its::new(VCPUS, 4);
        let base = its.world.vgic.save(0, ITS, CBASER, Width::Double);
        (0..VCPUS).for_each(|vcpu| its.world.put(vcpu));
        for (offset, value) in [(CTLR, 0), (CBASER, base | 0xff), (CWRITER, writer << 5), (CREADR, reader << 5), (CBASER, base & !0xff), (CTLR, 1)] {
            its.world.vgic.restore(0, ITS, offset, Width::Double, value);
        }
        its.world.load(0);
        // Whoever polls executes.
        let read = its.world.read_sized(0, ITS, CREADR, Width::Double);
        prop_assert_eq!(read & 1, 1, "it has stalled: {:#x}", read);
        its.world.settle();
        prop_assert!(!its.world.cpus[0].own.needs_look(&its.world.vgic));
    }

    /// A stream of a migration is an allegation, too.
    #[test]
    fn whatever_is_restored_does_no_harm(numbers in vec((0_u8..5, any::<[u32; 4]>(), 0_u8..2), 0..20), registers in vec((0_usize..6, any::<u64>()), 0..10)) {
        let mut its = Its::off(VCPUS, 4);
        (0..VCPUS).for_each(|vcpu| its.world.put(vcpu));
        for (register, value) in registers {
            its.world.vgic.restore(0, ITS, REGISTERS[register], Width::Double, value);
        }
        for (what, numbers, small) in numbers {
            let [device, event, lpi, collection] = numbers.map(|number| if small == 0 { number } else { number % 7 });
            let lpi = if small == 0 { lpi } else { FIRST + lpi };
            its.world.vgic.restore_its_entry(match what {
                0 => ItsEntry::Device { device, event_bits: event },
                1 => ItsEntry::Collection { collection, vcpu: event as usize },
                2 => ItsEntry::Event { device, event, lpi, collection, vcpu: (small == 0).then_some(event as usize) },
                3 => ItsEntry::Lpi { lpi, priority: event as u8, enabled: small == 0, pending: true },
                _ => ItsEntry::Replaced { devices: small == 0, collections: event & 1 != 0 },
            });
        }
        taken(&mut its);
    }
}

#[test]
fn commands_that_were_left_are_executed_after_a_restore() {
    let mut its = Its::new(VCPUS, 4);
    its.map_device(1, Some(3));
    its.map(1, 0, u64::from(FIRST), 0);
    for _ in 0..100 {
        its.put([4 | 1 << 32, 0, 0, 0]);
    }
    its.put([3 | 1 << 32, 0, 0, 0]);
    let value = its.writer * 32;
    its.world.write_sized(1, ITS, CWRITER, Width::Double, value);
    assert!(its.world.has_commands(1), "too many for one access");
    let mut other = restored(&mut its);
    (0..VCPUS).for_each(|vcpu| other.world.load(vcpu));
    other.world.settle();
    assert_eq!(other.take(0), Some(FIRST));
    assert_eq!(other.read(CREADR), value);
    assert_eq!(
        other
            .world
            .vgic
            .save(0, Frame::Redistributor(0), 0x70, Width::Double),
        PROPERTIES | 13
    );
    assert_ne!(
        other.world.vgic.save(0, ITS, CBASER, Width::Double) & VALID,
        0
    );
}
