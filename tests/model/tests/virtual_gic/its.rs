//! The ITS and its LPIs (rule V17).

mod against_maps;
mod saved;

use crate::world::{D, GICD, RAM, SGI, Tables, World, config};
use vgic::{Frame, VgicConfig, Width};

const GITS: u64 = GICD + 0x8_0000;
const QUEUE: u64 = RAM;
const QUEUE_COMMANDS: u64 = 128;
const PROPERTIES: u64 = RAM + 0x1_0000;
const PENDING: u64 = RAM + 0x2_0000;
const DEVICES: u64 = RAM + 0x4_0000;
const COLLECTIONS: u64 = RAM + 0x5_0000;
const VALID: u64 = 1 << 63;
const FIRST: u32 = 8192;
/// Registers.
const ITS: Frame = Frame::Its;
const CTLR: u64 = 0;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const CREADR: u64 = 0x90;
const BASER: u64 = 0x100;

pub fn its_config(vcpus: usize) -> VgicConfig<'static> {
    VgicConfig {
        its: Some(GITS),
        ..config(vcpus)
    }
}

/// A guest whose ITS is on, with collection n on vCPU n, and LPIs of priority 0xa0.
struct Its {
    world: World,
    writer: u64,
}

impl Its {
    fn new(vcpus: usize, registers: usize) -> Self {
        let mut its = Self::off(vcpus, registers);
        for vcpu in 0..vcpus {
            its.world.write(vcpu, Frame::Redistributor(vcpu), 0, 1);
        }
        its.write(0, CTLR, 1);
        for vcpu in 0..vcpus as u64 {
            its.map_collection(vcpu, Some(vcpu));
        }
        its
    }

    /// The same, with all tables named and nothing switched on.
    fn off(vcpus: usize, registers: usize) -> Self {
        let mut world = World::asleep_with(&its_config(vcpus), registers);
        world.tables = Tables(vec![0; 0x10_0000]);
        world.tables.write(PROPERTIES, &[0xa1; 8192]);
        for vcpu in 0..vcpus {
            world.load(vcpu);
            world.cpus[vcpu].hw.open(0xf8, true, true);
            let frame = Frame::Redistributor(vcpu);
            world.write(vcpu, frame, SGI + 0x80, u64::from(u32::MAX));
            world.write_sized(vcpu, frame, 0x70, Width::Double, PROPERTIES | 13);
            let pending = PENDING + vcpu as u64 * 0x1_0000;
            world.write_sized(vcpu, frame, 0x78, Width::Double, pending | 1 << 62);
        }
        world.write(0, D, 0, 3);
        let mut its = Self { world, writer: 0 };
        its.write(0, BASER, VALID | DEVICES | 7);
        its.write(0, BASER + 8, VALID | COLLECTIONS);
        its.write(0, CBASER, VALID | QUEUE);
        its.world.settle();
        its
    }

    /// Writes a register. Returns how often it took until all commands were executed.
    fn write(&mut self, vcpu: usize, offset: u64, value: u64) -> usize {
        let size = match offset {
            CTLR => Width::Word,
            _ => Width::Double,
        };
        let before = self.world.rounds;
        self.world.write_sized(vcpu, ITS, offset, size, value);
        self.world.settle();
        1 + self.world.rounds - before
    }

    fn read(&mut self, offset: u64) -> u64 {
        self.world.read_sized(0, ITS, offset, Width::Double)
    }

    /// Puts a command into the queue.
    fn put(&mut self, words: [u64; 4]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.world.tables.write(QUEUE + self.writer * 32, &bytes);
        self.writer = (self.writer + 1) % QUEUE_COMMANDS;
    }

    /// Has a vCPU say how far the queue is written.
    fn ring(&mut self, vcpu: usize) -> usize {
        let times = self.write(vcpu, CWRITER, self.writer * 32);
        self.world.settle();
        assert_eq!(self.read(CREADR), self.writer * 32);
        times
    }

    fn command(&mut self, words: [u64; 4]) -> usize {
        self.put(words);
        self.ring(0)
    }

    fn map_device(&mut self, device: u64, event_bits: Option<u64>) -> usize {
        let valid = if event_bits.is_some() { VALID } else { 0 };
        let size = event_bits.unwrap_or(1) - 1;
        self.command([8 | device << 32, size, valid | RAM, 0])
    }

    fn map_collection(&mut self, collection: u64, vcpu: Option<u64>) -> usize {
        let valid = if vcpu.is_some() { VALID } else { 0 };
        let vcpu = vcpu.unwrap_or(0);
        self.command([9, 0, valid | vcpu << 16 | collection, 0])
    }

    fn map(&mut self, device: u64, event: u64, lpi: u64, collection: u64) {
        self.command([0xa | device << 32, lpi << 32 | event, collection, 0]);
    }

    fn with_event(&mut self, command: u64, device: u64, event: u64, collection: u64) {
        self.command([command | device << 32, event, collection, 0]);
    }

    fn int(&mut self, device: u64, event: u64) {
        self.with_event(3, device, event, 0);
    }

    fn raise(&mut self, device: u32, event: u32) {
        let (kicked, kicks) = (&mut self.world.kicked, &mut self.world.kicks);
        self.world.vgic.raise_lpi(device, event, |cpu| {
            kicked[cpu] = true;
            *kicks += 1;
        });
    }

    fn set_property(&mut self, lpi: u32, property: u8) {
        let at = PROPERTIES + u64::from(lpi - FIRST);
        self.world.tables.write(at, &[property]);
    }

    fn take(&mut self, vcpu: usize) -> Option<u32> {
        self.world.take(vcpu)
    }
}

/// What Linux 6.12 looks at before anything else.
#[test]
fn guests_find_an_its() {
    let mut its = Its::off(2, 4);
    assert_eq!(
        its.world.vgic.locate(GITS + 0x1_0040),
        Some((ITS, 0x1_0040))
    );
    assert_eq!(
        its.world
            .vgic
            .locate(GITS + 0x2_0000)
            .map(|(frame, _)| frame),
        Some(Frame::Redistributor(0))
    );
    assert_eq!(its.world.read(0, ITS, 0xffe8) & 0xf0, 0x30);
    assert_eq!(its.world.read(0, ITS, CTLR), 1 << 31, "quiescent");
    let kind = its.read(8);
    assert_eq!(kind & 1, 1, "physical LPIs");
    assert_eq!(
        (kind >> 8 & 0x1f, kind >> 13 & 0x1f),
        (12, 11),
        "event and device bits"
    );
    assert_eq!((kind >> 32 & 0xf, kind >> 36 & 1), (9, 1), "collections");
    assert_eq!(kind >> 19 & 1, 0, "vCPUs by number");
    assert_eq!(its.read(BASER) >> 56 & 7, 1);
    assert_eq!(its.read(BASER + 8) >> 56 & 7, 4);
    assert_eq!(its.read(BASER) >> 48 & 0x1f, 7);
    assert_eq!(its.read(BASER) & (VALID | 0xffff_f000), VALID | DEVICES);
    assert_eq!(its.read(BASER + 16), 0);
    // Of three sizes of pages, Linux takes the one that is read back.
    its.write(0, BASER, VALID | DEVICES | 2 << 8 | 3);
    assert_eq!(its.read(BASER) >> 8 & 3, 0);
    let kind = its.world.read(0, D, 4);
    assert_eq!((kind >> 17 & 1, kind >> 19 & 0x1f), (1, 13));
    let frame = Frame::Redistributor(1);
    assert_eq!(its.world.read(0, frame, 8) & 1, 1);
    assert_eq!(its.world.read(0, frame, 0), 2, "EnableLPIs can be cleared");
    its.world.write(0, frame, 0, 1);
    assert_eq!(its.world.read(0, frame, 0) & 3, 3);
    let properties = its.world.read_sized(0, frame, 0x70, Width::Double);
    assert_eq!(properties, PROPERTIES | 13);
    let pending = its.world.read_sized(0, frame, 0x78, Width::Double);
    assert_eq!(pending, PENDING + 0x1_0000, "PTZ reads as 0");
}

#[test]
fn a_gic_without_an_its_has_no_lpis() {
    let mut world = World::ready(1, 4);
    assert_eq!(world.read(0, D, 4) >> 17 & 1, 0);
    assert_eq!(world.read(0, Frame::Redistributor(0), 8) & 1, 0);
    world.write(0, Frame::Redistributor(0), 0, 1);
    assert_eq!(world.read(0, Frame::Redistributor(0), 0), 0);
    assert_eq!(world.vgic.locate(GITS), None);
    world.write(0, ITS, CTLR, 1);
    assert_eq!(world.read(0, ITS, CTLR), 0);
    world.vgic.raise_lpi(0, 0, |_| {});
}

/// kvm-unit-tests' its-trigger.
#[test]
fn an_event_is_taken_where_its_collection_is() {
    let mut its = Its::new(4, 4);
    its.map_device(2, Some(8));
    its.map_device(7, Some(8));
    its.map(2, 20, 8195, 3);
    its.map(7, 255, 8196, 2);
    its.int(2, 20);
    assert_eq!(its.take(3), Some(8195));
    its.int(7, 255);
    assert_eq!(its.take(2), Some(8196));
    // Disabled in the table only: the ITS hasn't been told.
    its.set_property(8195, 0xa0);
    its.int(2, 20);
    assert_eq!(its.take(3), Some(8195));
    its.with_event(0xd, 0, 0, 3);
    its.command([0xd, 0, 3, 0]);
    its.int(2, 20);
    assert_eq!(its.take(3), None);
    its.set_property(8195, 0xa1);
    assert_eq!(its.take(3), None);
    its.command([0xd, 0, 3, 0]);
    assert_eq!(its.take(3), Some(8195));
    // An event that isn't mapped, and a device that there isn't.
    its.int(2, 21);
    its.int(3, 20);
    its.map_device(2, None);
    its.int(2, 20);
    assert!((0..4).all(|vcpu| its.take(vcpu).is_none()));
}

#[test]
fn an_lpi_that_moves_while_it_is_pending_is_taken_where_it_goes() {
    let mut its = Its::new(2, 4);
    its.map_device(2, Some(3));
    its.map(2, 1, 8192, 0);
    its.raise(2, 1);
    its.world.settle();
    assert!(its.world.cpus[0].hw.holds(8192).is_some());
    its.with_event(1, 2, 1, 1);
    assert_eq!(its.take(0), None);
    assert_eq!(its.take(1), Some(8192));
    // The same by its collection, and with all of a vCPU.
    its.raise(2, 1);
    its.map_collection(1, Some(0));
    assert_eq!((its.take(1), its.take(0)), (None, Some(8192)));
    its.raise(2, 1);
    its.command([0xe, 0, 0, 1 << 16]);
    assert_eq!((its.take(0), its.take(1)), (None, Some(8192)));
}

#[test]
fn what_is_discarded_or_cleared_is_pending_no_more() {
    let mut its = Its::new(2, 4);
    its.map_device(2, Some(3));
    for command in [4, 0xf] {
        its.map(2, 1, 8192, 1);
        its.raise(2, 1);
        its.world.settle();
        its.with_event(command, 2, 1, 0);
        assert_eq!(its.take(1), None);
        its.with_event(3, 2, 1, 0);
        assert_eq!(its.take(1).is_some(), command == 4);
    }
    its.map(2, 1, 8192, 0);
    assert_eq!(
        (its.take(0), its.take(1)),
        (None, None),
        "nothing of it is left"
    );
    its.raise(2, 1);
    assert_eq!(its.take(0), Some(8192));
}

#[test]
fn a_write_of_the_translater_is_an_event_of_device_0() {
    let mut its = Its::new(2, 4);
    its.map_device(0, Some(3));
    its.map(0, 5, 8200, 0);
    its.map(0, 6, 8201, 1);
    its.world.write(0, ITS, 0x1_0040, 5);
    its.world.write_sized(0, ITS, 0x1_0040, Width::Half, 6);
    assert_eq!((its.take(0), its.take(1)), (Some(8200), Some(8201)));
    its.write(0, CTLR, 0);
    its.world.write(0, ITS, 0x1_0040, 5);
    assert_eq!(its.take(0), None, "the ITS is off");
}

#[test]
fn lpis_go_by_their_priorities_with_few_list_registers() {
    for has_active_lpis in [false, true] {
        let mut its = Its::new(1, 2);
        its.world.cpus[0].hw.has_active_lpis = has_active_lpis;
        its.map_device(2, Some(6));
        for event in 0..40 {
            let priority = 0xf0 - (event as u8 % 10) * 0x10;
            its.set_property(FIRST + event, priority | 1);
            its.map(2, event.into(), u64::from(FIRST + event), 0);
        }
        (0..40).for_each(|event| its.raise(2, event));
        let taken: Vec<u32> = std::iter::from_fn(|| its.take(0)).collect();
        assert_eq!(taken.len(), 40);
        let priority = |lpi: &u32| (lpi - FIRST) % 10;
        assert!(
            taken.is_sorted_by_key(|lpi| 10 - priority(lpi)),
            "{taken:?}"
        );
    }
}

#[test]
fn an_lpi_that_is_raised_in_its_handler_comes_again() {
    for has_active_lpis in [false, true] {
        let mut its = Its::new(1, 2);
        its.world.cpus[0].hw.has_active_lpis = has_active_lpis;
        its.map_device(2, Some(6));
        its.map(2, 0, 8192, 0);
        its.raise(2, 0);
        assert_eq!(its.world.acknowledge(0), Some(8192));
        its.raise(2, 0);
        its.raise(2, 0);
        assert_eq!(its.world.acknowledge(0), None, "of its own priority");
        its.world.put(0);
        its.world.load(0);
        its.world.end(0, 8192);
        assert_eq!(its.take(0), Some(8192));
        assert_eq!(its.take(0), None);
    }
}

#[test]
fn the_guest_says_which_lpis_are_pending_and_may_switch_them_off() {
    let mut its = Its::off(2, 4);
    its.write(0, CTLR, 1);
    its.map_collection(0, Some(0));
    its.map_collection(1, Some(1));
    its.map_device(2, Some(6));
    its.map(2, 0, 8192, 0);
    its.map(2, 1, 8193, 1);
    its.raise(2, 1);
    assert_eq!(its.take(1), None, "its redistributor has no LPIs");
    let table = PENDING + 0x10_0000 - 0x8_0000;
    let frame = Frame::Redistributor(0);
    its.world.tables.write(table + 1024, &[0b111]);
    its.world.write_sized(0, frame, 0x78, Width::Double, table);
    its.world.write(0, frame, 0, 1);
    assert_eq!((its.take(0), its.take(0)), (Some(8192), None));
    its.map(2, 2, 8194, 0);
    assert_eq!(its.take(0), Some(8194), "pending before it was mapped");
    its.world.write(0, Frame::Redistributor(1), 0, 1);
    assert_eq!(its.take(1), Some(8193));
    its.raise(2, 1);
    its.world.settle();
    its.world.write(0, Frame::Redistributor(1), 0, 0);
    assert_eq!(its.world.read(0, Frame::Redistributor(1), 0) & 9, 8, "RWP");
    its.world.settle();
    assert_eq!(its.world.read(0, Frame::Redistributor(1), 0) & 9, 0);
    assert_eq!(its.take(1), None);
    its.world.write(1, Frame::Redistributor(1), 0, 1);
    assert_eq!(its.take(1), Some(8193));
}

#[test]
fn a_sync_waits_until_list_registers_have_been_looked_at() {
    let mut its = Its::new(2, 4);
    its.map_device(2, Some(3));
    its.map(2, 1, 8192, 1);
    its.raise(2, 1);
    its.world.settle();
    its.put([0xf | 2 << 32, 1, 0, 0]);
    its.put([5, 0, 0, 0]);
    let value = its.writer * 32;
    its.world.write_sized(0, ITS, CWRITER, Width::Double, value);
    for _ in 0..2 {
        its.world.enter(0);
        assert!(
            its.world.has_commands(0),
            "vCPU 1 has it in a list register"
        );
        assert_eq!(its.read(CREADR), value - 32);
    }
    its.world.enter(1);
    its.world.enter(0);
    assert!(!its.world.has_commands(0));
    assert_eq!(its.read(CREADR), value);
    assert!(its.world.cpus[1].hw.holds(8192).is_none());
}

/// Of two that are at it: a handler, and what it has interrupted; or two vCPUs.
#[test]
fn the_queue_may_be_written_while_commands_that_were_written_before_wait() {
    let mut its = Its::new(2, 4);
    its.map_device(2, Some(3));
    its.map(2, 1, 8192, 1);
    its.raise(2, 1);
    its.world.settle();
    its.put([0xf | 2 << 32, 1, 0, 0]);
    its.put([5, 0, 0, 0]);
    let first = its.writer * 32;
    its.world.write_sized(0, ITS, CWRITER, Width::Double, first);
    its.put([5, 0, 0, 0]);
    let second = its.writer * 32;
    its.world
        .write_sized(0, ITS, CWRITER, Width::Double, second);
    assert_eq!((its.read(CREADR), its.read(CWRITER)), (first - 32, second));
    its.world.settle();
    assert_eq!(its.read(CREADR), second);
    // Once around, each of these values is written again, and is one like any other.
    its.map(2, 1, 8192, 1);
    for _ in 0..2 * QUEUE_COMMANDS {
        its.int(2, 1);
        assert_eq!(its.take(1), Some(8192));
    }
}

#[test]
fn commands_that_wait_are_executed_by_whoever_polls_and_after_a_pause() {
    let mut its = Its::new(2, 4);
    its.map_device(2, Some(3));
    let begin = |its: &mut Its| {
        its.map(2, 1, 8192, 1);
        its.raise(2, 1);
        its.world.settle();
        its.put([0xf | 2 << 32, 1, 0, 0]);
        its.put([5, 0, 0, 0]);
        let value = its.writer * 32;
        its.world.write_sized(0, ITS, CWRITER, Width::Double, value);
        value
    };
    let value = begin(&mut its);
    its.world.enter(1);
    let polled = its.world.read_sized(1, ITS, CREADR, Width::Double);
    assert_eq!(polled, value);
    its.world.settle();
    assert!(!its.world.has_commands(0));
    begin(&mut its);
    (0..2).for_each(|vcpu| its.world.put(vcpu));
    let copy = its.world.vgic.snapshot().unwrap();
    assert!(its.world.cpus[0].own.has_commands(&copy));
    (0..2).for_each(|vcpu| its.world.load(vcpu));
    its.world.settle();
    assert!(!its.world.has_commands(0));
    its.ring(0);
}

/// A guest that fills all there is: a million commands, and the table is as large as it was made.
#[test]
fn as_many_events_are_mapped_as_there_are_lpis() {
    let mut its = Its::new(1, 4);
    its.map_device(1, Some(13));
    let mut most = 1;
    for lpi in 0..8192_u64 {
        its.put([0xa | 1 << 32, (u64::from(FIRST) + lpi) << 32 | lpi, 0, 0]);
        if lpi % 100 == 99 {
            most = most.max(its.ring(0));
        }
    }
    most = most.max(its.ring(0));
    assert!((2..5).contains(&most), "some commands at an access: {most}");
    // No second event for an LPI, no LPI beyond the last, no event beyond the device's.
    its.map_device(2, Some(2));
    its.map(2, 0, 8192, 0);
    its.map(2, 1, 16384, 0);
    its.map(2, 2, 8191, 0);
    its.map(2, 4, 8192, 0);
    its.raise(2, 0);
    its.raise(2, 1);
    its.raise(2, 4);
    assert_eq!(its.take(0), None);
    for event in [0, 77, 8191] {
        its.raise(1, event);
        assert_eq!(its.take(0), Some(FIRST + event));
    }
    assert!(its.command([0xd, 0, 0, 0]) > 100, "INVALL reads 8192 bytes");
    assert!(its.map_device(1, None) > 100);
    its.raise(1, 77);
    assert_eq!(its.take(0), None);
    its.map(2, 0, 8192, 0);
    its.raise(2, 0);
    assert_eq!(its.take(0), Some(8192));
}

#[test]
fn commands_that_arent_there_stall_the_queue() {
    let mut its = Its::new(1, 4);
    its.write(0, CTLR, 0);
    its.write(0, CBASER, VALID | 0x9_0000_0000);
    its.write(0, CTLR, 1);
    its.write(0, CWRITER, 64);
    assert_eq!(its.read(CREADR), 1, "stalled");
    its.write(0, CWRITER, 65);
    assert_eq!(its.read(CREADR), 1, "still not there");
    its.write(0, CBASER, VALID | QUEUE);
    assert_eq!(its.read(CREADR), 1, "ignored while it is on");
    its.write(0, CTLR, 0);
    its.write(0, CBASER, VALID | QUEUE);
    assert_eq!((its.read(CREADR), its.read(CWRITER)), (0, 0));
    its.write(0, CTLR, 1);
    its.write(0, CWRITER, QUEUE_COMMANDS * 32);
    assert_eq!(its.read(CWRITER), 0, "beyond the end");
    // What isn't known is left out.
    its.writer = 0;
    for command in [0, 2, 0x23, 0xff] {
        its.put([command, u64::MAX, u64::MAX, u64::MAX]);
    }
    its.ring(0);
}

#[test]
fn the_queue_wraps() {
    let mut its = Its::new(1, 4);
    its.map_device(2, Some(3));
    its.map(2, 1, 8192, 0);
    for _ in 0..300 {
        its.int(2, 1);
        assert_eq!(its.take(0), Some(8192));
    }
}

#[test]
fn an_lpi_that_became_pending_while_it_was_unmapped_is_taken_once_it_is_mapped_again() {
    let mut its = Its::off(1, 4);
    its.write(0, CTLR, 1);
    its.map_collection(0, Some(0));
    its.map_device(2, Some(6));
    its.map(2, 0, 8192, 0);
    its.with_event(0xf, 2, 0, 0);
    let table = PENDING + 0x10_0000 - 0x8_0000;
    let frame = Frame::Redistributor(0);
    its.world.tables.write(table + 1024, &[1]);
    its.world.write_sized(0, frame, 0x78, Width::Double, table);
    its.world.write(0, frame, 0, 1);
    assert_eq!(its.take(0), None);
    its.map(2, 0, 8192, 0);
    assert_eq!(its.take(0), Some(8192));
}

#[test]
fn a_table_that_is_replaced_has_nothing_in_it() {
    let mut its = Its::new(1, 4);
    its.map_device(2, Some(3));
    its.map(2, 1, 8192, 0);
    let off = its.world.read(0, ITS, CTLR);
    assert_eq!(off, 1);
    its.write(0, BASER, VALID | DEVICES);
    its.raise(2, 1);
    assert_eq!(its.take(0), Some(8192), "ignored while it is on");
    its.write(0, CTLR, 0);
    let table = its.world.read_sized(0, ITS, BASER, Width::Double);
    its.write(0, BASER, table);
    its.write(0, CTLR, 1);
    its.raise(2, 1);
    assert_eq!(its.take(0), Some(8192), "it is the same table");
    const OTHER: u64 = 1 << 12;
    its.write(0, CTLR, 0);
    its.write(0, BASER, VALID | DEVICES | OTHER);
    its.write(0, CTLR, 1);
    its.raise(2, 1);
    assert_eq!(its.take(0), None);
    its.map(2, 1, 8192, 0);
    its.raise(2, 1);
    assert_eq!(its.take(0), None, "the device isn't mapped");
    its.map_device(2, Some(3));
    its.map(2, 1, 8192, 0);
    its.write(0, CTLR, 0);
    // The second time there is nothing to forget, and the write ends all the same.
    its.write(0, BASER + 8, VALID | COLLECTIONS | OTHER);
    its.write(0, BASER + 8, VALID | COLLECTIONS | (2 * OTHER));
    its.write(0, CTLR, 1);
    its.raise(2, 1);
    assert_eq!(its.take(0), None, "its collection is nowhere");
    its.map_collection(0, Some(0));
    assert_eq!(its.take(0), Some(8192));
    // Devices that the guest's table has no room for.
    its.map_device(512, Some(3));
    its.map(512, 1, 8193, 0);
    its.raise(512, 1);
    assert_eq!(its.take(0), None);
}

#[test]
fn a_copy_of_the_gic_has_its_lpis() {
    let mut its = Its::new(2, 4);
    its.map_device(2, Some(3));
    its.map(2, 1, 8192, 1);
    its.map(2, 2, 8193, 0);
    its.raise(2, 1);
    its.world.settle();
    (0..2).for_each(|vcpu| its.world.put(vcpu));
    let mut copy = Its {
        world: World::asleep_with(&its_config(2), 4),
        writer: its.writer,
    };
    copy.world.tables = Tables(its.world.tables.0.clone());
    copy.world.vgic = its.world.vgic.snapshot().unwrap();
    for (cpu, parent) in copy.world.cpus.iter_mut().zip(&its.world.cpus) {
        cpu.own = parent.own.clone();
    }
    its.world.vgic.reset();
    (0..2).for_each(|vcpu| copy.world.load(vcpu));
    assert_eq!(copy.take(1), Some(8192));
    copy.int(2, 2);
    assert_eq!(copy.take(0), Some(8193));
    (0..2).for_each(|vcpu| its.world.load(vcpu));
    assert_eq!((its.take(0), its.take(1)), (None, None));
    its.raise(2, 1);
    assert_eq!(its.take(1), None);
}
