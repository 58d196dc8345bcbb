//! The harness of a stress run: logs slots at random by random policies, harvests, splits, restores, writes to guest memory
//! itself, and copies what it harvests as a live migration does. After a stop, the copy of a slot has to equal the slot.
//!
//! One thread. vCPUs run all the time but for the stops.

use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use memory::{
    Ahead, BYTES_PER_WORD, CpuMemory, DirtyPages, Granularity, LogPolicy, MmuLock, PAGES_PER_WORD,
    SlotId, Splitting, Tracking,
};
use model::Hardware;
use stage2::PAGE_SIZE;

use super::machine::{Machine, OWN_WORDS, Place, Random};

/// How much of what was done is shown with a lost page.
const LATELY: usize = 40;

/// What the harness knows of a slot.
#[derive(Debug)]
struct Slot {
    place: Place,
    /// By what it is logged.
    policy: Option<LogPolicy>,
    /// The migration's copy.
    copy: Vec<u8>,
}

/// The harness and its CPU.
pub struct Harness<L> {
    machine: Arc<Machine<L>>,
    cpu: CpuMemory<Hardware>,
    random: Random,
    slots: Vec<Slot>,
    /// What was done lately, for whoever has to find out why a page is lost.
    done: Vec<String>,
    written: u64,
    /// Copies that were compared.
    pub compared: u64,
    /// Blocks that came back.
    pub restored: u64,
}

impl<L: MmuLock> Harness<L> {
    /// For a machine whose vCPUs are about to run.
    pub fn new(machine: Arc<Machine<L>>, cpu: CpuMemory<Hardware>, random: Random) -> Self {
        let slots = machine.places.iter().map(|place| Slot {
            place: *place,
            policy: None,
            copy: vec![0; (place.used() * PAGE_SIZE) as usize],
        });
        Self {
            slots: slots.collect(),
            machine,
            cpu,
            random,
            done: Vec::new(),
            written: 0,
            compared: 0,
            restored: 0,
        }
    }

    /// Does so many things, then ends the run and checks all that is left. If it is `alone`, nobody else takes pages apart, and
    /// nothing keeps a block from coming back.
    pub fn run(mut self, steps: u64, alone: bool) -> Self {
        for _ in 0..steps {
            self.step();
        }
        for index in 0..self.slots.len() {
            self.stop_and_copy(index);
        }
        self.machine.stop();
        self.machine.end();
        for index in 0..self.slots.len() {
            self.disable(index);
            if alone {
                self.all_blocks_come_back(index);
            }
        }
        self
    }

    /// The CPU, when all is done.
    pub fn into_cpu(self) -> CpuMemory<Hardware> {
        self.cpu
    }

    fn note(&mut self, what: String) {
        self.done.push(what);
    }

    fn step(&mut self) {
        self.machine.begin_step();
        let index = self.random.below(self.slots.len() as u64) as usize;
        let any = self.random.below(16);
        match (self.slots[index].policy, any) {
            (None, 0..=7) => self.enable(index),
            (None, 8..=11) | (Some(_), 12) => self.restore(index),
            (Some(_), 0..=1) => self.get_then_clear(index),
            (Some(_), 2) => self.clear(index),
            (Some(_), 3..=4) => self.get_and_clear(index),
            (Some(_), 5..=6) => self.split(index),
            (_, 7 | 13) => self.write(index),
            (Some(_), 8) => {
                self.stop_and_copy(index);
                self.disable(index);
            }
            (Some(_), 9) => self.stop_and_copy(index),
            (Some(_), 10) => self.disable(index),
            (Some(_), 11) => {
                // The faults of one log meet the next.
                self.disable(index);
                self.enable(index);
            }
            _ => self.cpu.idle(),
        }
        // Not always, so that rings are full now and then.
        if self.random.one_in(4) {
            self.harvest_rings();
        }
    }

    fn any_policy(&mut self) -> LogPolicy {
        let hardware = self
            .machine
            .space
            .stage2()
            .layout()
            .features()
            .hardware_dirty;
        let by_hardware = hardware && self.random.one_in(2);
        let initially_set = self.random.one_in(2);
        LogPolicy {
            tracking: match by_hardware {
                true => Tracking::Hardware,
                false => Tracking::WriteProtect,
            },
            splitting: match self.random.below(3) {
                0 => Splitting::None,
                1 => Splitting::AtFault,
                _ => Splitting::Eager(self.any_ahead()),
            },
            granularity: match self.random.one_in(3) {
                true => Granularity::Block2M,
                false => Granularity::Page,
            },
            initially_set,
            ring: !by_hardware && !initially_set && self.random.one_in(2),
        }
    }

    fn any_ahead(&mut self) -> Ahead {
        Ahead {
            chunk: [1, 2 << 20, 4 << 20, u64::MAX][self.random.below(4) as usize],
            reserve: [0, 16, u64::MAX][self.random.below(3) as usize],
        }
    }

    fn enable(&mut self, index: usize) {
        let policy = self.any_policy();
        let id = self.slots[index].place.id;
        self.note(format!("enable {id} {policy:?}"));
        (self.machine.space)
            .enable_dirty_log(&self.cpu, id, &policy)
            .expect("it isn't logged");
        let slot = &mut self.slots[index];
        slot.policy = Some(policy);
        if policy.initially_set {
            slot.copy.fill(u8::MAX);
        } else {
            for index in 0..slot.place.used() {
                copy_page(&self.machine, &self.cpu, slot, index * slot.place.apart);
            }
        }
    }

    fn disable(&mut self, index: usize) {
        let id = self.slots[index].place.id;
        self.note(format!("disable {id}"));
        let disabled = self.machine.space.disable_dirty_log(&self.cpu, id);
        let was = self.slots[index].policy.take();
        assert_eq!(disabled.is_ok(), was.is_some(), "{disabled:?}");
    }

    /// A part of a slot, as words of its bitmap.
    fn any_words(&mut self, index: usize) -> (u64, usize) {
        let words = self.slots[index].place.pages.div_ceil(PAGES_PER_WORD);
        let first = self.random.below(words);
        let count = match self.random.below(3) {
            0 => 1,
            1 => 1 + self.random.below(words - first),
            _ => words - first,
        };
        (first, count as usize)
    }

    fn get_then_clear(&mut self, index: usize) {
        let id = self.slots[index].place.id;
        let (first, count) = self.any_words(index);
        let space = &self.machine.space;
        let mut bitmap = vec![0; count];
        space
            .get_dirty_log(&self.cpu, id, first * PAGES_PER_WORD, &mut bitmap)
            .expect("it is logged");
        // Some of it, aligned as it likes, and more than there was.
        let from = self.random.below(count as u64) as usize;
        let mut part = bitmap.split_off(from);
        for word in &mut part {
            *word &= self.random.next() | self.random.next();
            *word |= if self.random.one_in(8) { u64::MAX } else { 0 };
        }
        let first = first + from as u64;
        self.machine
            .space
            .clear_dirty_log(&self.cpu, id, first * PAGES_PER_WORD, &mut part)
            .expect("it is logged");
        self.note(format!("get, clear {id} from word {first}: {part:x?}"));
        self.copy_named(index, first, &part);
    }

    /// Whatever is in the log of a part, without a look at it.
    fn clear(&mut self, index: usize) {
        let id = self.slots[index].place.id;
        let (first, count) = self.any_words(index);
        let mut bitmap = vec![u64::MAX; count];
        self.machine
            .space
            .clear_dirty_log(&self.cpu, id, first * PAGES_PER_WORD, &mut bitmap)
            .expect("it is logged");
        self.note(format!("clear {id} from word {first}: {bitmap:x?}"));
        self.copy_named(index, first, &bitmap);
    }

    fn get_and_clear(&mut self, index: usize) {
        let id = self.slots[index].place.id;
        let (first, count) = self.any_words(index);
        let mut bitmap = vec![0; count];
        self.machine
            .space
            .get_and_clear_dirty_log(&self.cpu, id, first * PAGES_PER_WORD, &mut bitmap)
            .expect("it is logged");
        self.note(format!("get-and-clear {id} from word {first}: {bitmap:x?}"));
        self.copy_named(index, first, &bitmap);
    }

    fn copy_named(&mut self, index: usize, first: u64, bitmap: &[u64]) {
        let slot = &mut self.slots[index];
        for (word, bits) in (first..).zip(bitmap) {
            for bit in (0..PAGES_PER_WORD).filter(|bit| bits & 1 << bit != 0) {
                copy_page(&self.machine, &self.cpu, slot, word * PAGES_PER_WORD + bit);
            }
        }
    }

    fn harvest_rings(&mut self) {
        let none = DirtyPages {
            slot: SlotId(0),
            first: 0,
            count: 0,
        };
        for vcpu in 0..self.machine.vcpus {
            let mut room = vec![none; 1 + self.random.below(100) as usize];
            let count = (self.machine.space).harvest_ring(&self.cpu, vcpu, &mut room);
            for pages in &room[..count] {
                let index = (self.slots.iter())
                    .position(|slot| slot.place.id == pages.slot)
                    .expect("a slot of this VM");
                let slot = &mut self.slots[index];
                for page in pages.first..(pages.first + pages.count).min(slot.place.pages) {
                    copy_page(&self.machine, &self.cpu, slot, page);
                }
            }
            if count > 0 {
                self.done.push(format!("ring {vcpu}: {:?}", &room[..count]));
            }
        }
    }

    fn split(&mut self, index: usize) {
        let place = self.slots[index].place;
        let ahead = self.any_ahead();
        let from = place.page(self.random.below(place.pages));
        let bytes = self.random.below(4) * BYTES_PER_WORD * 8;
        self.note(format!("split {} at {from}, {bytes:#x} bytes", place.id));
        self.machine
            .space
            .split_blocks(&self.cpu, place.id, from, bytes, ahead)
            .expect("it is logged");
    }

    /// One step, or all of them.
    fn restore(&mut self, index: usize) {
        let place = self.slots[index].place;
        let mut next = Some(place.page(self.random.below(place.pages)));
        while let Some(from) = next {
            self.note(format!("restore {} from {from}", place.id));
            match self.machine.space.restore_blocks(&self.cpu, place.id, from) {
                Ok(restored) => {
                    self.restored += restored.collapsed.blocks;
                    next = restored.next.filter(|_| self.random.one_in(2));
                }
                Err(error) => {
                    let policy = self.slots[index].policy;
                    let tracked = policy.is_some_and(|by| by.tracking == Tracking::Hardware);
                    assert!(tracked, "{error}");
                    next = None;
                }
            }
        }
    }

    /// As an emulated device does.
    fn write(&mut self, index: usize) {
        let place = self.slots[index].place;
        let page = self.random.below(place.used()) * place.apart;
        let word = self.random.below(OWN_WORDS as u64) as usize;
        self.written += 1;
        self.note(format!("write {} page {page}", place.id));
        let own = self.machine.vcpus;
        let ipa = place.page(page).offset((own * OWN_WORDS + word) as u64 * 8);
        self.machine
            .space
            .write_guest(&self.cpu, ipa, &self.written.to_le_bytes())
            .expect("it is backed");
        let note = self.machine.in_journal(index, page) + word;
        self.machine.journals[own][note].store(self.written, Ordering::Relaxed);
    }

    /// The end of a migration: the guest stops, what is left is copied, and the copy is the slot.
    fn stop_and_copy(&mut self, index: usize) {
        self.machine.stop();
        if self.slots[index].policy.is_some() {
            let (id, pages) = (self.slots[index].place.id, self.slots[index].place.pages);
            // A ring may hold more than one call takes.
            for _ in 0..70 {
                self.harvest_rings();
            }
            let mut bitmap = vec![0; pages.div_ceil(PAGES_PER_WORD) as usize];
            (self.machine.space)
                .get_and_clear_dirty_log(&self.cpu, id, 0, &mut bitmap)
                .expect("it is logged");
            self.note(format!("last harvest of {id}: {bitmap:x?}"));
            self.copy_named(index, 0, &bitmap);
            self.compare(index);
            self.compared += 1;
        }
        self.machine.go_on();
    }

    fn compare(&mut self, index: usize) {
        let place = self.slots[index].place;
        for used in 0..place.used() {
            let number = used * place.apart;
            let slot = &self.slots[index];
            let source = read_page(&self.machine, &self.cpu, slot.place, number);
            let copy = &slot.copy[page_bytes(used)];
            if let Some(byte) = (0..source.len()).find(|byte| source[*byte] != copy[*byte]) {
                let done = mem::take(&mut self.done);
                let from = done.len().saturating_sub(LATELY);
                let lately = done[from..].join("\n");
                let owner = byte / (8 * OWN_WORDS);
                panic!(
                    "rule 9: page {number} of {} is lost, which vCPU {owner} wrote; {:?}; before:\n{lately}",
                    slot.place.id, slot.policy,
                );
            }
            self.compare_journals(index, number, &source);
        }
    }

    /// Whether the guest's memory has what each vCPU wrote last.
    fn compare_journals(&self, index: usize, page: u64, source: &[u8]) {
        let note = self.machine.in_journal(index, page);
        for (vcpu, journal) in self.machine.journals.iter().enumerate() {
            for word in 0..OWN_WORDS {
                let written = journal[note + word].load(Ordering::Relaxed);
                let at = (vcpu * OWN_WORDS + word) * 8;
                assert_eq!(
                    source[at..at + 8],
                    written.to_le_bytes(),
                    "page {page} of slot {index}, by vCPU {vcpu}"
                );
            }
        }
    }

    /// With all vCPUs stopped, nothing keeps a block from coming back.
    fn all_blocks_come_back(&self, index: usize) {
        let place = self.slots[index].place;
        let mut next = Some(place.start);
        while let Some(from) = next {
            let restored = (self.machine.space)
                .restore_blocks(&self.cpu, place.id, from)
                .expect("it isn't logged");
            assert_eq!(restored.collapsed.left, 0, "{} from {from}", place.id);
            next = restored.next;
        }
        for page in (0..place.pages).step_by(place.apart as usize) {
            if let Some((_, level)) = self.machine.space.lookup(&self.cpu, place.page(page)) {
                assert_eq!(level, place.piece, "page {page} of {}", place.id);
            }
        }
    }
}

fn page_bytes(page: u64) -> Range<usize> {
    (page * PAGE_SIZE) as usize..((page + 1) * PAGE_SIZE) as usize
}

/// A page of guest memory, as it is at this moment.
fn read_page<L: MmuLock>(
    machine: &Machine<L>,
    cpu: &CpuMemory<Hardware>,
    place: Place,
    page: u64,
) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_SIZE as usize];
    (machine.space)
        .read_guest(cpu, place.page(page), &mut bytes)
        .expect("it is backed");
    bytes
}

/// Copies a page, if it is one of those that are used.
fn copy_page<L: MmuLock>(
    machine: &Machine<L>,
    cpu: &CpuMemory<Hardware>,
    slot: &mut Slot,
    page: u64,
) {
    if let Some(index) = slot.place.index(page) {
        let bytes = read_page(machine, cpu, slot.place, page);
        slot.copy[page_bytes(index)].copy_from_slice(&bytes);
    }
}
