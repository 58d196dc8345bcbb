//! Guests that write past the data caches, as those with their MMU off do where stage 2 can't force write-back: what
//! the hypervisor copies, compares, reads or writes in part is what they have written, not what its caches hold of
//! before.
//!
//! The arena is what the caches hold. What a guest writes past them is kept beside it, until the line is cleaned and
//! invalidated: then it is seen; or lost, if the hypervisor has changed the line in the meantime, which is written
//! back.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use memory::frames::{FramePool, arena, read_bytes};
use memory::{
    Access, AddressSpace, Caches, Compacted, CpuMemory, Fault, FaultKind, FaultOutcome,
    MemorySystem, MergePolicy, Object, Owner, PageMerging, Parallel, SlotConfig, SlotId, VmId,
    Watermarks,
};
use stage2::{Features, Ipa, IpaRange, Layout, Level, PAGE_SIZE, Pa, Regime, Tlb};

const START: Ipa = Ipa::new(0x4000_0000);
const SLOT: SlotId = SlotId(0);
const LINE: u64 = 64;
const BLOCK: u64 = 512;

type Space = AddressSpace<Parallel>;
type Contents = [u8; PAGE_SIZE as usize];

/// What was done, in order, and to which page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    Invalidated,
    CleanedForGuest(Pa),
    CleanedForFetches(Pa),
    CleanedForHypervisor(Pa),
}

/// Words that were written past a line, and what the caches held of the line then.
#[derive(Debug)]
struct Line {
    cached: [u8; LINE as usize],
    words: BTreeMap<u64, u64>,
}

#[derive(Debug, Default)]
struct Memory {
    lines: BTreeMap<u64, Line>,
    events: Vec<Event>,
    /// What pages held when they were cleaned last.
    cleaned: BTreeMap<Pa, Contents>,
}

fn bytes_at<const N: usize>(pa: Pa) -> [u8; N] {
    let mut bytes = [0; N];
    // SAFETY: the memory is an arena's, of one thread.
    unsafe { read_bytes(pa, &mut bytes) };
    bytes
}

impl Memory {
    fn write_past(&mut self, pa: Pa, word: u64) {
        let line = pa.get() / LINE * LINE;
        let cached = bytes_at(Pa::new(line));
        let words = BTreeMap::new();
        let line = self.lines.entry(line).or_insert(Line { cached, words });
        line.words.insert(pa.get(), word);
    }

    fn clean_and_invalidate(&mut self, pa: Pa, bytes: u64) {
        let (first, end) = (pa.get() / LINE * LINE, pa.get() + bytes);
        let cleaned: Vec<u64> = self
            .lines
            .range(first..end)
            .map(|(line, _)| *line)
            .collect();
        for start in cleaned {
            let line = self.lines.remove(&start).unwrap();
            if bytes_at(Pa::new(start)) != line.cached {
                // It was written back, over what was there.
                continue;
            }
            for (pa, word) in line.words {
                // SAFETY: as for reading.
                unsafe { memory::frames::write_bytes(Pa::new(pa), &word.to_le_bytes()) };
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Hardware(Rc<RefCell<Memory>>);

impl Hardware {
    fn note(&self, event: Event) {
        self.0.borrow_mut().events.push(event);
    }

    fn note_cleaned(&self, pa: Pa, bytes: u64, event: impl Fn(Pa) -> Event) {
        for offset in (0..bytes).step_by(PAGE_SIZE as usize) {
            let pa = pa.offset(offset);
            self.note(event(pa));
            if pa.is_aligned(PAGE_SIZE) {
                self.0.borrow_mut().cleaned.insert(pa, bytes_at(pa));
            }
        }
    }
}

impl Tlb for Hardware {
    fn invalidate_leaf(&self, _: Regime, _: Ipa, _: Option<Level>) {
        self.note(Event::Invalidated);
    }
    fn invalidate_range(&self, _: Regime, _: IpaRange, _: bool) {
        self.note(Event::Invalidated);
    }
    fn invalidate_vmid(&self, _: Regime) {
        self.note(Event::Invalidated);
    }
    fn invalidate_all_vmids(&self) {
        self.note(Event::Invalidated);
    }
    fn invalidate_local(&self, _: Regime, _: Ipa, _: Option<Level>, _: Option<u64>) {}
    fn publish_tables(&self) {}
}

impl Caches for Hardware {
    fn clean_for_guest(&self, pa: Pa, bytes: u64) {
        self.0.borrow_mut().clean_and_invalidate(pa, bytes);
        self.note_cleaned(pa, bytes, Event::CleanedForGuest);
    }

    fn clean_for_fetches(&self, pa: Pa, bytes: u64) {
        self.note_cleaned(pa, bytes, Event::CleanedForFetches);
    }

    fn clean_for_hypervisor(&self, pa: Pa, bytes: u64) {
        self.note(Event::CleanedForHypervisor(pa));
        self.0.borrow_mut().clean_and_invalidate(pa, bytes);
    }
}

struct Machine {
    cpu: CpuMemory<Hardware>,
    layout: Layout,
}

impl Machine {
    fn new(fwb: bool) -> Self {
        let pool = Box::leak(Box::new(FramePool::new()));
        // SAFETY: the arena is leaked, and added once.
        unsafe { pool.add(arena::leak(4096)) };
        let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(pool, 1, 8).unwrap()));
        let features = Features {
            fwb,
            ..Features::armv8_0(40, 48)
        };
        Self {
            cpu: CpuMemory::new(system, 0, Hardware::default(), Box::leak(Box::default())),
            layout: Layout::new(features).unwrap(),
        }
    }

    /// A VM with so many pages, or none, all of which its guest can write.
    fn vm(&self, number: usize, pages: u64, piece: Level) -> (Space, Option<Arc<Object>>) {
        let vm = VmId::new(number).unwrap();
        let space = Space::new(&self.cpu, vm, self.layout).unwrap();
        if pages == 0 {
            return (space, None);
        }
        let bytes = pages * PAGE_SIZE;
        let object = Object::anonymous(&self.cpu, Owner::Vm(vm), bytes, piece).unwrap();
        self.map(&space, object.clone(), false);
        for page in 0..pages {
            self.write(&space, page, 1 + page);
        }
        (space, Some(object))
    }

    fn map(&self, space: &Space, object: Arc<Object>, read_only: bool) {
        let config = SlotConfig {
            id: SLOT,
            start: START,
            offset: 0,
            bytes: object.bytes(),
            object,
            read_only,
            write_faults: false,
        };
        space.map_object(&self.cpu, config).unwrap();
    }

    /// Compresses all pages that can be.
    fn compress(&self) {
        let system = self.cpu.system();
        let always = Watermarks {
            low: 1 << 40,
            high: 1 << 40,
        };
        system.set_watermarks(Some(always));
        for _ in 0..8 {
            self.cpu.relieve();
        }
        system.set_watermarks(None);
        self.cpu.wait_for_epoch();
    }

    /// These pages, as a guest has them now but for their first words, were cleaned since this was asked last: so that all
    /// of its accesses, and its instruction fetches, find what the hypervisor has written.
    fn expect_cleaned(&self, space: &Space, pages: &[u64], what: &str) {
        let fwb = self.layout.features().fwb;
        let frames: Vec<Pa> = (pages.iter())
            .map(|page| self.frame(space, *page, Access::Read))
            .collect();
        let events = self.take_events();
        for (page, frame) in pages.iter().zip(frames) {
            let is_cleaned = |event: &Event| match event {
                Event::CleanedForGuest(cleaned) => *cleaned == frame,
                Event::CleanedForFetches(cleaned) => fwb && *cleaned == frame,
                _ => false,
            };
            let is_cleaned = events.iter().any(is_cleaned);
            assert!(is_cleaned, "{what}, page {page}; FWB: {fwb}");
            let then = self.memory().borrow().cleaned[&frame];
            let now: Contents = bytes_at(frame);
            assert!(
                then[8..] == now[8..],
                "{what}, page {page}: cleaned too early"
            );
        }
    }

    /// Where a page is that a guest accesses.
    fn frame(&self, space: &Space, page: u64, access: Access) -> Pa {
        let ipa = START.offset(page * PAGE_SIZE);
        loop {
            let kind = match space.lookup(&self.cpu, ipa) {
                Some((leaf, Level::L3)) if access.allowed_by(leaf) => return leaf.pa(),
                Some((leaf, _)) if access.allowed_by(leaf) => {
                    return leaf.pa().offset(page % BLOCK * PAGE_SIZE);
                }
                Some(_) => FaultKind::Permission,
                None => FaultKind::Translation,
            };
            let fault = Fault {
                vcpu: 0,
                ipa,
                va: None,
                access,
                kind,
            };
            let outcome = space.fault(&self.cpu, &fault);
            assert!(matches!(
                outcome,
                FaultOutcome::Resolved | FaultOutcome::Retry
            ));
            self.cpu.refill();
        }
    }

    fn memory(&self) -> &RefCell<Memory> {
        &self.cpu.hardware().0
    }

    /// The guest writes the first word of a page through the caches.
    fn write(&self, space: &Space, page: u64, word: u64) {
        self.write_at(space, page, 0, word);
    }

    fn write_at(&self, space: &Space, page: u64, offset: u64, word: u64) {
        let at = self.frame(space, page, Access::Write).offset(offset);
        // SAFETY: the frame is the arena's, and backs the guest.
        unsafe { memory::frames::write_bytes(at, &word.to_le_bytes()) };
    }

    /// The guest writes a word of a page past them.
    fn write_past(&self, space: &Space, page: u64, offset: u64, word: u64) {
        let frame = self.frame(space, page, Access::Write);
        self.memory()
            .borrow_mut()
            .write_past(frame.offset(offset), word);
    }

    /// What a guest finds that reads a word of a page past the caches.
    fn read_past(&self, space: &Space, page: u64, offset: u64) -> u64 {
        let frame = self.frame(space, page, Access::Read);
        let mut memory = self.memory().borrow_mut();
        memory.clean_and_invalidate(frame, PAGE_SIZE);
        u64::from_le_bytes(bytes_at(frame.offset(offset)))
    }

    /// What was done since the last call.
    fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.memory().borrow_mut().events)
    }
}

#[test]
fn whatever_the_hypervisor_has_written_is_cleaned_before_a_guest_has_it() {
    for fwb in [false, true] {
        let machine = Machine::new(fwb);
        let (pages, object) = machine.vm(0, 4, Level::L3);
        machine.expect_cleaned(&pages, &[0, 1, 2, 3], "pages that are written first");
        let (blocks, _) = machine.vm(1, 2 * BLOCK, Level::L2);
        let edges = [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK - 1];
        machine.expect_cleaned(&blocks, &edges, "blocks that are written first");

        let (child, _) = machine.vm(2, 0, Level::L3);
        pages.fork(&machine.cpu, &child).unwrap();
        machine.write(&child, 1, 9);
        machine.expect_cleaned(&child, &[1], "a copy");
        assert!(object.unwrap().migrate(&machine.cpu, 2));
        machine.expect_cleaned(&child, &[2], "a page that moves");
        child.destroy(&machine.cpu);
        (0..4).for_each(|page| machine.write(&pages, page, 1 + page));
        machine.compress();
        assert!(machine.cpu.system().compressed().pages >= 4);
        machine.take_events();
        machine.expect_cleaned(&pages, &[0, 1, 2, 3], "pages that come back");

        let (reader, _) = machine.vm(2, 0, Level::L3);
        let image = Object::image(&machine.cpu, &[7; 2 * PAGE_SIZE as usize]).unwrap();
        machine.map(&reader, image, true);
        machine.expect_cleaned(&reader, &[0, 1], "an image");
        let (ahead, _) = machine.vm(3, 0, Level::L3);
        let bytes = BLOCK * PAGE_SIZE;
        let added = ahead.add_slot(&machine.cpu, SLOT, START, bytes, Level::L2, false);
        added.unwrap();
        machine.expect_cleaned(&ahead, &[0, BLOCK - 1], "memory that is there beforehand");
        let across = START.offset(2 * PAGE_SIZE - 16);
        let bytes = [9; PAGE_SIZE as usize + 32];
        ahead.write_guest(&machine.cpu, across, &bytes).unwrap();
        machine.expect_cleaned(&ahead, &[1, 2, 3], "what is copied into a guest");
        for space in [pages, blocks, reader, ahead] {
            space.destroy(&machine.cpu);
        }
    }
}

#[test]
fn the_frame_of_zeros_and_what_takes_its_place_are_cleaned() {
    for fwb in [false, true] {
        let machine = Machine::new(fwb);
        let (space, _) = machine.vm(0, 0, Level::L3);
        let object = Object::shared(&machine.cpu, 2 * PAGE_SIZE, Level::L3).unwrap();
        machine.map(&space, object, false);
        machine.expect_cleaned(&space, &[1], "the frame of zeros");
        machine.write(&space, 1, 5);
        machine.expect_cleaned(&space, &[1], "a page that was read before");
        space.destroy(&machine.cpu);
    }
}

#[test]
fn what_is_compressed_comes_back_as_it_was_written_past_the_caches() {
    let machine = Machine::new(false);
    let (space, _object) = machine.vm(0, 4, Level::L3);
    machine.write_past(&space, 2, 8, 77);
    machine.compress();
    assert_eq!(machine.cpu.system().compressed().pages, 4);
    assert_eq!(machine.read_past(&space, 2, 8), 77);
    assert_eq!(machine.read_past(&space, 2, 0), 3);
    space.destroy(&machine.cpu);
}

#[test]
fn a_page_that_moves_takes_along_what_was_written_past_the_caches() {
    let machine = Machine::new(false);
    let (space, object) = machine.vm(0, 4, Level::L3);
    machine.write_past(&space, 2, 8, 77);
    let from = machine.frame(&space, 2, Access::Read);
    machine.take_events();
    assert!(object.as_ref().unwrap().migrate(&machine.cpu, 2));
    let events = machine.take_events();
    let to = machine.frame(&space, 2, Access::Read);
    assert_ne!(from, to);
    // Nobody can write it any more; it is read as it is in memory, written, seen by guests; and the other one is
    // forgotten.
    assert_eq!(
        events,
        [
            Event::Invalidated,
            Event::CleanedForHypervisor(from),
            Event::CleanedForGuest(to),
            Event::Invalidated
        ]
    );
    assert_eq!(machine.read_past(&space, 2, 8), 77);
    assert_eq!(machine.read_past(&space, 2, 0), 3);
    space.destroy(&machine.cpu);
}

#[test]
fn a_region_and_a_run_that_are_moved_take_along_what_was_written_past_the_caches() {
    let machine = Machine::new(false);
    let (space, object) = machine.vm(0, BLOCK, Level::L3);
    for page in [0, 255, 511] {
        machine.write_past(&space, page, 4088, 1000 + page);
    }
    let compacted = object.as_ref().unwrap().compact_region(&machine.cpu, 0);
    assert_eq!(compacted, Compacted::Moved);
    for page in [0, 255, 511] {
        assert_eq!(machine.read_past(&space, page, 4088), 1000 + page);
    }
    machine.write_past(&space, 7, 16, 99);
    let run = machine.frame(&space, 0, Access::Read);
    object.as_ref().unwrap().migrate(&machine.cpu, 0);
    machine.cpu.clear_run(run, BLOCK as usize);
    assert_eq!(machine.read_past(&space, 7, 16), 99);
    space.destroy(&machine.cpu);
}

#[test]
fn a_copy_of_a_shared_page_has_what_was_written_past_the_caches() {
    let machine = Machine::new(false);
    let (parent, _object) = machine.vm(0, 2, Level::L3);
    let (child, _) = machine.vm(1, 0, Level::L3);
    machine.write_past(&parent, 1, 24, 55);
    parent.fork(&machine.cpu, &child).unwrap();
    let shared = machine.frame(&child, 1, Access::Read);
    machine.take_events();
    machine.write(&child, 1, 9);
    let events = machine.take_events();
    let at = |event| events.iter().position(|happened| *happened == event);
    let copy = machine.frame(&child, 1, Access::Read);
    let cleaned = at(Event::CleanedForHypervisor(shared)).expect("the source is cleaned");
    assert!(cleaned < at(Event::CleanedForGuest(copy)).expect("and the copy"));
    assert_eq!(machine.read_past(&child, 1, 24), 55);
    assert_eq!(machine.read_past(&parent, 1, 24), 55);
    assert_eq!(
        (
            machine.read_past(&child, 1, 0),
            machine.read_past(&parent, 1, 0)
        ),
        (9, 2)
    );
    child.destroy(&machine.cpu);
    parent.destroy(&machine.cpu);
}

fn merge_all(machine: &Machine, objects: &[&Arc<Object>]) {
    let merging = PageMerging::new(MergePolicy::default());
    for object in objects {
        merging.add(object).unwrap();
    }
    for _ in 0..8 {
        merging.scan(&machine.cpu, 1000);
    }
}

/// One of them is shared, by a fork: it is compared as it is in memory, too.
#[test]
fn pages_that_are_equal_only_in_the_caches_are_not_merged() {
    for (is_forked, comes_last) in [(true, false), (true, true), (false, false), (false, true)] {
        // In the first word, or the last.
        let offset = if comes_last { PAGE_SIZE - 8 } else { 0 };
        let machine = Machine::new(false);
        let (parent, object) = machine.vm(0, 1, Level::L3);
        let (child, _) = machine.vm(1, 0, Level::L3);
        let (other, others) = machine.vm(2, 1, Level::L3);
        (machine.cpu.system()).trust(other.vm(), parent.vm());
        machine.write_past(&parent, 0, offset, 1234);
        if is_forked {
            parent.fork(&machine.cpu, &child).unwrap();
        }
        let mut both = [object.as_ref().unwrap(), others.as_ref().unwrap()];
        if comes_last {
            both.reverse();
        }
        merge_all(&machine, &both);
        assert_eq!(machine.read_past(&parent, 0, offset), 1234);
        assert_eq!(
            machine.read_past(&other, 0, offset),
            u64::from(offset == 0),
            "it has got another page's contents"
        );
        // They are, as soon as they are equal.
        machine.write_at(&other, 0, offset, 1234);
        merge_all(&machine, &both);
        let frames = [&parent, &other].map(|space| machine.frame(space, 0, Access::Read));
        assert_eq!(frames[0], frames[1]);
        for space in [child, parent, other] {
            space.destroy(&machine.cpu);
        }
    }
}

#[test]
fn a_page_of_zeros_only_in_the_caches_keeps_what_was_written_past_them() {
    let machine = Machine::new(false);
    let (space, object) = machine.vm(0, 2, Level::L3);
    (0..2).for_each(|page| machine.write(&space, page, 0));
    machine.write_past(&space, 1, 8, 77);
    merge_all(&machine, &[object.as_ref().unwrap()]);
    let frames = [0, 1].map(|page| machine.frame(&space, page, Access::Read));
    assert_ne!(frames[0], frames[1], "only the first one is zeros");
    assert_eq!(machine.read_past(&space, 1, 8), 77);
    space.destroy(&machine.cpu);
}

#[test]
fn the_hypervisor_reads_what_was_written_past_the_caches_and_loses_none_of_it() {
    let machine = Machine::new(false);
    let (space, _object) = machine.vm(0, 2, Level::L3);
    machine.write_past(&space, 1, 8, 42);
    let mut word = [0; 8];
    let at = START.offset(PAGE_SIZE);
    space
        .read_guest(&machine.cpu, at.offset(8), &mut word)
        .unwrap();
    assert_eq!(u64::from_le_bytes(word), 42);
    // To the last line of all that is read in one.
    let last = PAGE_SIZE - 8;
    machine.write_past(&space, 0, last, 45);
    machine.write_past(&space, 1, last, 46);
    let mut all = [0; PAGE_SIZE as usize + 8];
    let before = Ipa::new(at.get() - 8);
    space.read_guest(&machine.cpu, before, &mut all).unwrap();
    assert_eq!(all[..8], 45u64.to_le_bytes());
    assert_eq!(all[PAGE_SIZE as usize..], 46u64.to_le_bytes());
    // The rest of a line that is written in part.
    machine.write_past(&space, 1, 16, 43);
    space
        .write_guest(&machine.cpu, at.offset(24), &44u64.to_le_bytes())
        .unwrap();
    assert_eq!(machine.read_past(&space, 1, 16), 43);
    assert_eq!(machine.read_past(&space, 1, 24), 44);
    assert_eq!(machine.read_past(&space, 1, 8), 42);
    space.destroy(&machine.cpu);
}

#[test]
fn where_stage_2_forces_write_back_nothing_is_cleaned_to_be_read() {
    let machine = Machine::new(true);
    let (parent, object) = machine.vm(0, BLOCK, Level::L3);
    let (child, _) = machine.vm(1, 0, Level::L3);
    let object = object.unwrap();
    assert!(object.migrate(&machine.cpu, 3));
    assert_eq!(object.compact_region(&machine.cpu, 0), Compacted::Moved);
    parent.fork(&machine.cpu, &child).unwrap();
    machine.write(&child, 5, 1);
    // Of equal pages.
    machine.write(&parent, 8, 7);
    machine.write(&parent, 9, 7);
    merge_all(&machine, &[&object]);
    assert_eq!(
        machine.frame(&parent, 8, Access::Read),
        machine.frame(&parent, 9, Access::Read)
    );
    let mut word = [0; 8];
    parent.read_guest(&machine.cpu, START, &mut word).unwrap();
    parent.write_guest(&machine.cpu, START, &word).unwrap();
    let zeros = 1;
    let events = machine.take_events();
    let past = |event: &&Event| {
        matches!(
            event,
            Event::CleanedForHypervisor(_) | Event::CleanedForGuest(_)
        )
    };
    assert_eq!(
        events.iter().filter(past).count(),
        zeros,
        "only the frame of zeros is"
    );
    drop(object);
    child.destroy(&machine.cpu);
    parent.destroy(&machine.cpu);
}
