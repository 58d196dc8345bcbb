//! Random sequences against a GIC that is one plain list of interrupts.
//!
//! Each step is complete before the next: kicks are taken, list registers looked at. So the two have to agree in all that a guest
//! can see, but for the order of what is equally urgent.

use std::collections::BTreeMap;

use crate::world::World;
use proptest::collection::vec;
use proptest::prelude::*;

const VCPUS: usize = 3;
/// Of each kind some: SGIs, PPIs, SPIs.
const INTIDS: [u32; 9] = [0, 1, 15, 20, 21, 33, 34, 65, 95];
const FIRST_SHARED: u32 = 32;

#[derive(Clone, Copy, Debug)]
struct Interrupt {
    enabled: bool,
    group1: bool,
    edge: bool,
    level: bool,
    latch: bool,
    active: bool,
    priority: u8,
    route: usize,
}

impl Interrupt {
    fn pending(self) -> bool {
        self.latch || !self.edge && self.level
    }
}

#[derive(Clone, Debug)]
struct Interface {
    mask: u8,
    enabled: [bool; 2],
    /// What was acknowledged and not ended.
    running: Vec<(u32, u8)>,
    /// What was ended and not deactivated, with EOImode 1.
    dropped: Vec<u32>,
}

struct Reference {
    groups: [bool; 2],
    /// By vCPU (0 for shared ones) and INTID.
    interrupts: BTreeMap<(usize, u32), Interrupt>,
    interfaces: Vec<Interface>,
}

impl Reference {
    fn new() -> Self {
        let interrupt = |intid| Interrupt {
            enabled: false,
            group1: true,
            edge: intid < 16,
            level: false,
            latch: false,
            active: false,
            priority: 0,
            route: 0,
        };
        let keys = (0..VCPUS).flat_map(|vcpu| INTIDS.map(|intid| key(vcpu, intid)));
        let interface = Interface {
            mask: 0xf8,
            enabled: [true; 2],
            running: Vec::new(),
            dropped: Vec::new(),
        };
        Self {
            groups: [true; 2],
            interrupts: keys.map(|key| (key, interrupt(key.1))).collect(),
            interfaces: vec![interface; VCPUS],
        }
    }

    fn of(&mut self, vcpu: usize, intid: u32) -> &mut Interrupt {
        self.interrupts.get_mut(&key(vcpu, intid)).unwrap()
    }

    /// What a vCPU may acknowledge: the most urgent ones.
    fn signalled(&self, vcpu: usize) -> Vec<u32> {
        let interface = &self.interfaces[vcpu];
        let running = interface
            .running
            .last()
            .map_or(0x100, |(_, priority)| u32::from(*priority));
        let candidates = || {
            self.interrupts.iter().filter(|((of, intid), interrupt)| {
                let here = if *intid < FIRST_SHARED {
                    *of == vcpu
                } else {
                    interrupt.route == vcpu
                };
                let group = usize::from(interrupt.group1);
                here && interrupt.enabled
                    && interrupt.pending()
                    && !interrupt.active
                    && self.groups[group]
                    && interface.enabled[group]
                    && interrupt.priority < interface.mask
                    && u32::from(interrupt.priority) < running
            })
        };
        let best = candidates().map(|(_, interrupt)| interrupt.priority).min();
        candidates()
            .filter(|(_, interrupt)| Some(interrupt.priority) == best)
            .map(|((_, intid), _)| *intid)
            .collect()
    }

    /// Whether a vCPU has acknowledged it and has still to deactivate it.
    fn is_handled(&self, of: usize, intid: u32) -> bool {
        let handles = |interface: &Interface| {
            interface
                .running
                .iter()
                .any(|(running, _)| *running == intid)
                || interface.dropped.contains(&intid)
        };
        if intid < FIRST_SHARED {
            handles(&self.interfaces[of])
        } else {
            self.interfaces.iter().any(handles)
        }
    }
}

fn key(vcpu: usize, intid: u32) -> (usize, u32) {
    (if intid < FIRST_SHARED { vcpu } else { 0 }, intid)
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// By which vCPU, whose interrupt.
    Enable(usize, usize, u32, bool),
    Pend(usize, usize, u32, bool),
    Activate(usize, usize, u32, bool),
    Prioritise(usize, u32, u8),
    Group(usize, u32, bool),
    Edge(u32, bool),
    Route(usize, u32, usize),
    Groups(usize, bool, bool),
    Interface(usize, u8, bool, bool),
    Level(u32, bool),
    Pulse(u32),
    Send(usize, usize, u32),
    Acknowledge(usize),
    End(usize),
    Deactivate(usize, usize),
    Move(usize),
    Read(usize, usize, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let vcpu = || 0..VCPUS;
    let intid = || prop::sample::select(&INTIDS[..]);
    let shared = || prop::sample::select(&INTIDS[5..]);
    let priority = || (0_u8..6).prop_map(|step| step * 0x28);
    prop_oneof![
        4 => (vcpu(), vcpu(), intid(), prop::bool::weighted(0.8)).prop_map(|(by, of, intid, on)| Step::Enable(by, of, intid, on)),
        3 => (vcpu(), vcpu(), intid(), prop::bool::weighted(0.7)).prop_map(|(by, of, intid, on)| Step::Pend(by, of, intid, on)),
        2 => (vcpu(), vcpu(), intid(), any::<bool>()).prop_map(|(by, of, intid, on)| Step::Activate(by, of, intid, on)),
        3 => (vcpu(), intid(), priority()).prop_map(|(of, intid, priority)| Step::Prioritise(of, intid, priority)),
        1 => (vcpu(), intid(), any::<bool>()).prop_map(|(of, intid, group1)| Step::Group(of, intid, group1)),
        1 => (shared(), any::<bool>()).prop_map(|(intid, edge)| Step::Edge(intid, edge)),
        2 => (vcpu(), shared(), vcpu()).prop_map(|(by, intid, to)| Step::Route(by, intid, to)),
        1 => (vcpu(), any::<bool>(), prop::bool::weighted(0.8)).prop_map(|(by, group0, group1)| Step::Groups(by, group0, group1)),
        1 => (vcpu(), prop_oneof![3 => Just(0xf8), 1 => priority()], any::<bool>(), prop::bool::weighted(0.8)).prop_map(|(vcpu, mask, group0, group1)| Step::Interface(vcpu, mask, group0, group1)),
        3 => (shared(), any::<bool>()).prop_map(|(intid, level)| Step::Level(intid, level)),
        2 => shared().prop_map(Step::Pulse),
        3 => (vcpu(), vcpu(), prop::sample::select(&INTIDS[..3])).prop_map(|(from, to, sgi)| Step::Send(from, to, sgi)),
        8 => vcpu().prop_map(Step::Acknowledge),
        5 => vcpu().prop_map(Step::End),
        4 => (vcpu(), 0_usize..8).prop_map(|(vcpu, which)| Step::Deactivate(vcpu, which)),
        1 => vcpu().prop_map(Step::Move),
        3 => (vcpu(), vcpu(), intid()).prop_map(|(by, of, intid)| Step::Read(by, of, intid)),
    ]
}

/// The vCPU by whose registers a step is done: its own frame has its private interrupts.
struct Pair {
    world: World,
    reference: Reference,
    split: bool,
}

impl Pair {
    fn new(registers: usize, split: bool) -> Self {
        let mut world = World::ready(VCPUS, registers);
        for cpu in &mut world.cpus {
            if split {
                cpu.hw.split_deactivation();
            }
        }
        Self {
            world,
            reference: Reference::new(),
            split,
        }
    }

    fn write_bit(&mut self, by: usize, of: usize, base: u64, intid: u32) {
        self.world.write_bit_of(by, of, base, intid);
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let Self {
            world, reference, ..
        } = self;
        match step {
            Step::Enable(by, of, intid, on) => {
                reference.of(of, intid).enabled = on;
                self.write_bit(by, of, if on { 0x100 } else { 0x180 }, intid);
            }
            Step::Pend(by, of, intid, on) => {
                reference.of(of, intid).latch = on;
                self.write_bit(by, of, if on { 0x200 } else { 0x280 }, intid);
            }
            Step::Activate(by, of, intid, on) => {
                // A guest that deactivates what it is about to end gets what it deserves.
                if !reference.is_handled(of, intid) {
                    reference.of(of, intid).active = on;
                    self.write_bit(by, of, if on { 0x300 } else { 0x380 }, intid);
                }
            }
            Step::Prioritise(of, intid, priority) => {
                // The count of ends outside goes by the priority.
                if !reference.is_handled(of, intid) {
                    reference.of(of, intid).priority = priority;
                    world.set_priority(of, intid, priority);
                }
            }
            Step::Group(of, intid, group1) => {
                reference.of(of, intid).group1 = group1;
                let (frame, offset) = World::place(of, 0x80, intid);
                let old = world.read(of, frame, offset);
                let bit = 1 << (intid % 32);
                world.write(
                    of,
                    frame,
                    offset,
                    if group1 { old | bit } else { old & !bit },
                );
            }
            Step::Edge(intid, edge) => {
                reference.of(0, intid).edge = edge;
                world.set_edge(intid, edge);
            }
            Step::Route(by, intid, to) => {
                reference.of(0, intid).route = to;
                world.set_route(by, intid, to);
            }
            Step::Groups(by, group0, group1) => {
                reference.groups = [group0, group1];
                world.write(
                    by,
                    vgic::Frame::Distributor,
                    0,
                    u64::from(group0) | u64::from(group1) << 1,
                );
            }
            Step::Interface(vcpu, mask, group0, group1) => {
                let interface = &mut reference.interfaces[vcpu];
                (interface.mask, interface.enabled) = (mask, [group0, group1]);
                world.cpus[vcpu].hw.open(mask, group0, group1);
            }
            Step::Level(intid, level) => {
                let of = reference.of(0, intid);
                // An edge is pending from the rise of its line on.
                of.latch |= of.edge && level && !of.level;
                of.level = level;
                world.set_level(intid, level);
            }
            Step::Pulse(intid) => {
                reference.of(0, intid).latch = true;
                world.pulse(intid);
            }
            Step::Send(from, to, sgi) => {
                reference.of(to, sgi).latch = true;
                world.send(from, to, sgi);
            }
            Step::Acknowledge(vcpu) => {
                let allowed = reference.signalled(vcpu);
                let taken = world.acknowledge(vcpu);
                prop_assert_eq!(
                    taken.is_some(),
                    !allowed.is_empty(),
                    "{:?} of {:?}",
                    taken,
                    allowed
                );
                if let Some(intid) = taken {
                    prop_assert!(allowed.contains(&intid), "{} of {:?}", intid, allowed);
                    let interrupt = reference.of(vcpu, intid);
                    (interrupt.latch, interrupt.active) = (false, true);
                    let priority = interrupt.priority;
                    reference.interfaces[vcpu].running.push((intid, priority));
                }
            }
            Step::End(vcpu) => {
                if let Some((intid, _)) = reference.interfaces[vcpu].running.pop() {
                    world.end(vcpu, intid);
                    if self.split {
                        reference.interfaces[vcpu].dropped.push(intid);
                    } else {
                        reference.of(vcpu, intid).active = false;
                    }
                }
            }
            Step::Deactivate(vcpu, which) => {
                let dropped = &mut reference.interfaces[vcpu].dropped;
                if which < dropped.len() {
                    let intid = dropped.remove(which);
                    reference.of(vcpu, intid).active = false;
                    world.deactivate(vcpu, intid);
                }
            }
            Step::Move(vcpu) => {
                world.put(vcpu);
                world.load(vcpu);
            }
            Step::Read(by, of, intid) => {
                let expected = *reference.of(of, intid);
                let pending = world.read_bit_of(by, of, 0x200, intid);
                prop_assert_eq!(pending, expected.pending(), "pending {} of {}", intid, of);
                let active = world.read_bit_of(by, of, 0x300, intid);
                prop_assert_eq!(active, expected.active, "active {} of {}", intid, of);
                let enabled = world.read_bit_of(by, of, 0x100, intid);
                prop_assert_eq!(enabled, expected.enabled);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_guest_sees_what_a_gic_shows(registers in 1_usize..5, split: bool, steps in vec(step(), 1..200)) {
        let mut pair = Pair::new(registers, split);
        for step in steps {
            pair.step(step)?;
            pair.world.settle();
        }
        for vcpu in 0..VCPUS {
            for intid in INTIDS {
                pair.step(Step::Read((vcpu + 1) % VCPUS, vcpu, intid))?;
            }
        }
    }
}
