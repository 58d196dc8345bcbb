//! Random commands and events against an ITS that is a few maps.

use std::collections::BTreeMap;

use super::{CTLR, ITS, Its};
use proptest::collection::vec;
use proptest::prelude::*;
use vgic::{Frame, Width};

const VCPUS: usize = 3;
const LPIS: [u32; 5] = [8192, 8193, 8255, 8256, 16383];

#[derive(Clone, Copy, Debug, Default)]
struct Lpi {
    mapped: bool,
    pending: bool,
    property: u8,
    vcpu: Option<usize>,
}

/// An ITS that is a few maps.
#[derive(Default)]
struct Reference {
    devices: BTreeMap<u32, u32>,
    collections: BTreeMap<u32, usize>,
    events: BTreeMap<(u32, u32), (u32, u32)>,
    lpis: BTreeMap<u32, Lpi>,
    properties: BTreeMap<u32, u8>,
    forwards: [bool; VCPUS],
    running: [Vec<(u32, u8)>; VCPUS],
}

impl Reference {
    fn property(&self, lpi: u32) -> u8 {
        self.properties.get(&lpi).copied().unwrap_or(0xa1)
    }

    fn lpi(&mut self, event: (u32, u32)) -> Option<&mut Lpi> {
        let (lpi, _) = self.events.get(&event)?;
        self.lpis.get_mut(lpi)
    }

    fn discard(&mut self, event: (u32, u32)) {
        if let Some((lpi, _)) = self.events.remove(&event) {
            let lpi = self.lpis.get_mut(&lpi).unwrap();
            (lpi.mapped, lpi.pending) = (false, false);
        }
    }

    fn signalled(&self, vcpu: usize) -> Vec<u32> {
        let running = self.running[vcpu].last();
        let running = running.map_or(0xf8, |(_, priority)| *priority);
        let candidates = || {
            self.lpis.iter().filter(|(_, lpi)| {
                self.forwards[vcpu]
                    && lpi.mapped
                    && lpi.vcpu == Some(vcpu)
                    && lpi.pending
                    && lpi.property & 1 != 0
                    && lpi.property & 0xf8 < running
            })
        };
        let best = candidates().map(|(_, lpi)| lpi.property & 0xf8).min();
        let best = candidates().filter(|(_, lpi)| Some(lpi.property & 0xf8) == best);
        best.map(|(intid, _)| *intid).collect()
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Device(u32, Option<u32>),
    Collection(u32, Option<usize>),
    Map(u32, u32, u32, u32),
    Discard(u32, u32),
    Move(u32, u32, u32),
    MoveAll(usize, usize),
    Raise(u32, u32, bool),
    Clear(u32, u32),
    Property(u32, u8),
    Invalidate(u32, u32),
    InvalidateAll(u32),
    Forward(usize, usize, bool),
    Acknowledge(usize),
    End(usize),
    Reload(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let vcpu = || 0..VCPUS;
    let device = || 0_u32..3;
    let event = || 0_u32..4;
    let collection = || 0_u32..3;
    let lpi = || prop::sample::select(&LPIS[..]);
    let property = || {
        (0_u8..6, prop::bool::weighted(0.8))
            .prop_map(|(priority, on)| (priority * 0x28) | u8::from(on))
    };
    prop_oneof![
        3 => (device(), prop::option::weighted(0.8, 1_u32..3)).prop_map(|(device, bits)| Step::Device(device, bits)),
        2 => (collection(), prop::option::weighted(0.9, vcpu())).prop_map(|(collection, vcpu)| Step::Collection(collection, vcpu)),
        6 => (device(), event(), lpi(), collection()).prop_map(|(device, event, lpi, collection)| Step::Map(device, event, lpi, collection)),
        2 => (device(), event()).prop_map(|(device, event)| Step::Discard(device, event)),
        2 => (device(), event(), collection()).prop_map(|(device, event, collection)| Step::Move(device, event, collection)),
        1 => (vcpu(), vcpu()).prop_map(|(from, to)| Step::MoveAll(from, to)),
        8 => (device(), event(), any::<bool>()).prop_map(|(device, event, command)| Step::Raise(device, event, command)),
        1 => (device(), event()).prop_map(|(device, event)| Step::Clear(device, event)),
        2 => (lpi(), property()).prop_map(|(lpi, property)| Step::Property(lpi, property)),
        2 => (device(), event()).prop_map(|(device, event)| Step::Invalidate(device, event)),
        1 => collection().prop_map(Step::InvalidateAll),
        1 => (vcpu(), vcpu(), prop::bool::weighted(0.8)).prop_map(|(by, of, on)| Step::Forward(by, of, on)),
        6 => vcpu().prop_map(Step::Acknowledge),
        4 => vcpu().prop_map(Step::End),
        1 => vcpu().prop_map(Step::Reload),
    ]
}

struct Pair {
    its: Its,
    reference: Reference,
}

impl Pair {
    fn new(registers: usize, has_active_lpis: bool) -> Self {
        let mut its = Its::off(VCPUS, registers);
        for cpu in &mut its.world.cpus {
            cpu.hw.has_active_lpis = has_active_lpis;
        }
        its.write(0, CTLR, 1);
        let reference = Reference {
            lpis: LPIS.map(|lpi| (lpi, Lpi::default())).into(),
            ..Reference::default()
        };
        Self { its, reference }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let Self { its, reference } = self;
        match step {
            Step::Device(device, bits) => {
                its.map_device(device.into(), bits.map(u64::from));
                for event in 0..4 {
                    reference.discard((device, event));
                }
                reference.devices.insert(device, bits.unwrap_or(0));
            }
            Step::Collection(collection, vcpu) => {
                its.map_collection(collection.into(), vcpu.map(|vcpu| vcpu as u64));
                match vcpu {
                    Some(vcpu) => reference.collections.insert(collection, vcpu),
                    None => reference.collections.remove(&collection),
                };
                for (lpi, of) in reference.events.values() {
                    if *of == collection {
                        reference.lpis.get_mut(lpi).unwrap().vcpu = vcpu;
                    }
                }
            }
            Step::Map(device, event, lpi, collection) => {
                its.map(device.into(), event.into(), lpi.into(), collection.into());
                let bits = reference.devices.get(&device).copied().unwrap_or(0);
                let property = reference.property(lpi);
                let vcpu = reference.collections.get(&collection).copied();
                let mapped = reference.lpis.get_mut(&lpi).unwrap();
                let fits = bits != 0 && event >> bits == 0 && !mapped.mapped;
                if fits && !reference.events.contains_key(&(device, event)) {
                    *mapped = Lpi {
                        mapped: true,
                        property,
                        vcpu,
                        ..*mapped
                    };
                    reference.events.insert((device, event), (lpi, collection));
                }
            }
            Step::Discard(device, event) => {
                its.with_event(0xf, device.into(), event.into(), 0);
                reference.discard((device, event));
            }
            Step::Move(device, event, collection) => {
                its.with_event(1, device.into(), event.into(), collection.into());
                let vcpu = reference.collections.get(&collection).copied();
                if let Some(mapping) = reference.events.get_mut(&(device, event)) {
                    mapping.1 = collection;
                    reference.lpi((device, event)).unwrap().vcpu = vcpu;
                }
            }
            Step::MoveAll(from, to) => {
                its.command([0xe, 0, (from as u64) << 16, (to as u64) << 16]);
                for lpi in reference.lpis.values_mut() {
                    if lpi.mapped && lpi.vcpu == Some(from) {
                        lpi.vcpu = Some(to);
                    }
                }
            }
            Step::Raise(device, event, command) => {
                if command {
                    its.int(device.into(), event.into());
                } else {
                    its.raise(device, event);
                }
                if let Some(lpi) = reference.lpi((device, event)) {
                    lpi.pending = true;
                }
            }
            Step::Clear(device, event) => {
                its.with_event(4, device.into(), event.into(), 0);
                if let Some(lpi) = reference.lpi((device, event)) {
                    lpi.pending = false;
                }
            }
            Step::Property(lpi, property) => {
                its.set_property(lpi, property);
                reference.properties.insert(lpi, property);
            }
            Step::Invalidate(device, event) => {
                its.with_event(0xc, device.into(), event.into(), 0);
                if let Some((lpi, _)) = reference.events.get(&(device, event)).copied() {
                    reference.lpi((device, event)).unwrap().property = reference.property(lpi);
                }
            }
            Step::InvalidateAll(collection) => {
                its.command([0xd, 0, collection.into(), 0]);
                for (lpi, of) in reference.events.clone().into_values() {
                    if of == collection {
                        let property = reference.property(lpi);
                        reference.lpis.get_mut(&lpi).unwrap().property = property;
                    }
                }
            }
            Step::Forward(by, of, forwards) => {
                its.world
                    .write(by, Frame::Redistributor(of), 0, forwards.into());
                reference.forwards[of] = forwards;
            }
            Step::Acknowledge(vcpu) => {
                let allowed = reference.signalled(vcpu);
                let taken = its.world.acknowledge(vcpu);
                prop_assert_eq!(
                    taken.is_some(),
                    !allowed.is_empty(),
                    "{:?} of {:?}",
                    taken,
                    allowed
                );
                if let Some(lpi) = taken {
                    prop_assert!(allowed.contains(&lpi), "{} of {:?}", lpi, allowed);
                    let taken = reference.lpis.get_mut(&lpi).unwrap();
                    taken.pending = false;
                    let priority = taken.property & 0xf8;
                    reference.running[vcpu].push((lpi, priority));
                }
            }
            Step::End(vcpu) => {
                if let Some((lpi, _)) = reference.running[vcpu].pop() {
                    its.world.end(vcpu, lpi);
                }
            }
            Step::Reload(vcpu) => {
                its.world.put(vcpu);
                its.world.load(vcpu);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn an_its_does_what_its_maps_say(registers in 1_usize..4, steps in vec(step(), 1..200)) {
        let mut pair = Pair::new(registers, false);
        for step in steps {
            pair.step(step)?;
            pair.its.world.settle();
        }
    }

    /// Nothing that is in the queue, and no access, does harm.
    #[test]
    fn a_guest_may_fill_the_queue_with_garbage(commands in vec((0_u64..0x14, any::<[u64; 4]>(), any::<[u8; 4]>()), 1..60), accesses in vec((0_u64..0x120, 0_usize..4, any::<u64>()), 0..20)) {
        let mut its = Its::new(2, 2);
        its.map_device(1, Some(4));
        for (command, words, small) in commands {
            let mut words = words;
            for (word, small) in words.iter_mut().zip(small) {
                if small & 3 != 0 {
                    *word = u64::from(small >> 2) | *word & (0x8003_0003_0000_2003);
                }
            }
            words[0] = words[0] & !0xff | command;
            its.command(words);
        }
        for (offset, size, value) in accesses {
            let size = [Width::Byte, Width::Half, Width::Word, Width::Double][size];
            for _ in 0..10_000 {
                if its.world.try_write(1, ITS, offset & !(size.bytes() - 1), size, value) {
                    break;
                }
                its.world.settle();
            }
            its.world.read_sized(0, ITS, offset, size);
        }
        its.world.settle();
    }
}
