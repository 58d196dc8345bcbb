//! VMs of a corner, and what they hold and have logged, in plain collections beside them.

use super::corner::{BLOCK, Corner, Operator, Second};
use memory::frames::MAX_VMS;
use memory::{
    Access, DirtyPages, FaultOutcome, LogError, Object, Owner, SlotConfig, SlotId, SplitAhead, VmId,
};
use model::watched::{Contents, Space, Watched, WatchedCpu};
use stage2::{Ipa, OutOfFrames, PAGE_SIZE};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The slot that is moved, logged and so on.
pub const SLOT: SlotId = SlotId(0);
/// The other one of its VM, where there are two.
const OTHER: SlotId = SlotId(1);
/// Where the second mapping of the same memory begins, and with which of its pages.
const SECOND_AT: Ipa = Ipa::new(0x1_0020_3000);
const SECOND_FIRST: u64 = 3;

/// The CPUs: two of the first VM, one of the others, one that never runs a guest.
pub const CPUS: usize = 4;
const OF_FIRST: [usize; 2] = [0, 1];
const OF_OTHERS: [usize; 1] = [2];
const OUTSIDE: usize = 3;

/// A slot as it should be.
#[derive(Clone, Debug)]
pub struct Placed {
    pub vm: usize,
    pub id: SlotId,
    pub start: Ipa,
    /// Its first page of the memory, and how many.
    pub first: u64,
    pub pages: u64,
    /// The memory, by its number among the contents.
    pub memory: usize,
    /// Not shared on purpose.
    pub private: bool,
}

impl Placed {
    pub fn at(&self, page: u64) -> Ipa {
        self.start.offset(page * PAGE_SIZE)
    }

    /// Pages that are looked at: at the edges of what may be mapped or logged as one, and some between.
    pub fn probes(&self) -> Vec<u64> {
        let n = self.pages;
        let edges = [
            0, 1, 2, 62, 63, 64, 65, 300, 510, 511, 512, 513, 600, 1000, 1022, 1023, 1024,
        ];
        let far = [5 * BLOCK + 3, 300 * BLOCK + 7, n / 2, n - 2, n - 1];
        let all: BTreeSet<u64> = edges
            .into_iter()
            .chain(far)
            .filter(|page| *page < n)
            .collect();
        all.into_iter().collect()
    }
}

/// What should be in the log of the first slot.
#[derive(Debug, Default)]
struct Reference {
    /// Pages that were written since they were last reported.
    written: BTreeSet<u64>,
    /// Nothing else may be reported but these.
    may_be: Option<BTreeSet<u64>>,
    /// What was written once may be reported several times, as its pages come and go: with rings.
    again: bool,
}

/// The VMs.
pub struct Scene<'m> {
    pub machine: &'m Watched,
    pub corner: Corner,
    pub spaces: BTreeMap<usize, Space>,
    pub slots: Vec<Placed>,
    /// What each memory holds: the seeds of its pages that aren't zeros.
    pub contents: Vec<BTreeMap<u64, u64>>,
    log: Option<Reference>,
    /// Whether frames are missing at the moment.
    pub starved: bool,
    seeds: u64,
    /// How often something was done.
    pub round: u64,
}

/// What a page holds whose seed this is.
pub fn page_of(seed: u64) -> Contents {
    let mut page = [0; PAGE_SIZE as usize];
    if seed != 0 {
        for (index, word) in page.chunks_exact_mut(8).enumerate() {
            // Compressible, but no two words of the beginning alike.
            let word_seed = seed << 32 | (index as u64).min(16);
            word.copy_from_slice(&word_seed.to_ne_bytes());
        }
    }
    page
}

impl<'m> Scene<'m> {
    /// The VMs of a corner, some of whose pages were written, read, or left alone.
    pub fn new(machine: &'m Watched, corner: &Corner) -> Self {
        let mut scene = Self {
            machine,
            corner: corner.clone(),
            spaces: BTreeMap::new(),
            slots: Vec::new(),
            contents: Vec::new(),
            log: None,
            starved: false,
            seeds: 0,
            round: 0,
        };
        scene.add_vm(0).unwrap();
        let shared = corner.second == Second::SharedObject;
        let object = match shared {
            true => machine.on(0, |cpu| {
                let bytes = corner.pages() * PAGE_SIZE;
                Object::shared(cpu, bytes, corner.piece).unwrap()
            }),
            false => machine.anonymous(0, corner.pages(), corner.piece),
        };
        let (start, first, pages) = corner.place();
        scene.contents.push(BTreeMap::new());
        let placed = Placed {
            vm: 0,
            id: SLOT,
            start,
            first,
            pages,
            memory: 0,
            private: !shared,
        };
        scene.map(placed.clone(), object.clone());
        scene.write_some();
        let elsewhere = Placed {
            start: SECOND_AT,
            first: SECOND_FIRST,
            pages: corner.pages() - SECOND_FIRST - 1,
            ..placed
        };
        match corner.second {
            Second::Nobody => {}
            Second::Fork => scene.fork(1),
            Second::SharedObject => {
                scene.add_vm(1).unwrap();
                scene.map(Placed { vm: 1, ..elsewhere }, object);
            }
            Second::SameVm => scene.map(
                Placed {
                    id: OTHER,
                    ..elsewhere
                },
                object,
            ),
        }
        scene.use_some();
        scene.enable_log();
        scene.use_some();
        scene
    }

    fn add_vm(&mut self, vm: usize) -> Result<(), OutOfFrames> {
        let mut space = self.machine.space(vm, self.corner.backing())?;
        space.make_rings(CPUS, 64).unwrap();
        self.spaces.insert(vm, space);
        Ok(())
    }

    /// Maps a memory.
    pub fn map(&mut self, placed: Placed, object: Arc<Object>) {
        let config = SlotConfig {
            id: placed.id,
            start: placed.start,
            offset: placed.first * PAGE_SIZE,
            bytes: placed.pages * PAGE_SIZE,
            object,
            read_only: false,
            write_faults: false,
        };
        let space = &self.spaces[&placed.vm];
        (self.machine)
            .on(0, |cpu| space.map_object(cpu, config))
            .unwrap();
        self.slots.push(placed);
    }

    /// Forks the first VM, if there are frames for that.
    pub fn fork(&mut self, vm: usize) {
        if let Err(error) = self.add_vm(vm) {
            assert!(self.starved, "{error}");
            return;
        }
        let (parent, child) = (&self.spaces[&0], &self.spaces[&vm]);
        if let Err(error) = self.on(|cpu| parent.fork(cpu, child)) {
            assert!(self.starved, "{error}");
            self.end(vm);
            return;
        }
        let mut copies = BTreeMap::new();
        for slot in self.slots.clone().iter().filter(|slot| slot.vm == 0) {
            let memory = if slot.private {
                *copies.entry(slot.memory).or_insert_with(|| {
                    self.contents.push(self.contents[slot.memory].clone());
                    self.contents.len() - 1
                })
            } else {
                slot.memory
            };
            self.slots.push(Placed {
                vm,
                memory,
                ..slot.clone()
            });
        }
    }

    /// Ends a VM.
    pub fn end(&mut self, vm: usize) {
        (0..CPUS).for_each(|cpu| self.machine.leave(cpu));
        let space = self.spaces.remove(&vm).expect("it is there");
        self.on(|cpu| space.destroy(cpu));
        self.slots.retain(|slot| slot.vm != vm);
        if vm == 0 {
            self.log = None;
        }
        self.enter();
    }

    /// The first VM runs on one of the CPUs that operations are done on.
    pub fn enter(&self) {
        if let Some(space) = self.spaces.get(&0) {
            self.machine.enter(OF_FIRST[0], space);
        }
    }

    /// The CPU that operates.
    pub fn operator(&self) -> usize {
        match self.corner.cpu {
            Operator::Inside => OF_FIRST[0],
            Operator::Outside => OUTSIDE,
        }
    }

    /// Does something on it.
    pub fn on<R>(&self, work: impl FnOnce(&WatchedCpu) -> R) -> R {
        self.machine.on(self.operator(), work)
    }

    /// The CPUs that run a VM.
    pub fn cpus_of(vm: usize) -> &'static [usize] {
        match vm {
            0 => &OF_FIRST,
            _ => &OF_OTHERS,
        }
    }

    /// The first VM's first slot.
    pub fn slot(&self) -> Placed {
        let slot = self
            .slots
            .iter()
            .find(|slot| slot.vm == 0 && slot.id == SLOT);
        slot.expect("the first VM is there").clone()
    }

    pub fn slot_mut(&mut self) -> &mut Placed {
        let mut slots = self.slots.iter_mut();
        slots
            .find(|slot| slot.vm == 0 && slot.id == SLOT)
            .expect("the first VM is there")
    }

    pub fn fresh_seed(&mut self) -> u64 {
        self.seeds += 1;
        self.seeds
    }

    /// What a page of a slot holds now: the seed.
    pub fn hold(&mut self, slot: &Placed, page: u64, seed: u64) {
        self.contents[slot.memory].insert(slot.first + page, seed);
    }

    /// A page of the first slot was written, by its VM or for it.
    pub fn note_written(&mut self, slot: &Placed, page: u64) {
        if let (0, SLOT, Some(log)) = (slot.vm, slot.id, &mut self.log) {
            log.written.insert(page);
            if let Some(may_be) = &mut log.may_be {
                may_be.insert(page);
            }
        }
    }

    /// Guests write to some of the pages, others each time.
    pub fn write_some(&mut self) {
        self.round += 1;
        for slot in self.slots.clone() {
            for (index, page) in slot.probes().into_iter().enumerate() {
                let turn = index as u64 + self.round + slot.vm as u64;
                match turn % 3 {
                    0 => self.guest_writes(&slot, page, index),
                    1 if turn.is_multiple_of(2) => self.guest_reads(&slot, page, index),
                    _ => {}
                }
            }
        }
    }

    /// Guests read and write or, where another CPU operates, read alone: what they share stays shared as it was.
    fn use_some(&mut self) {
        match self.corner.cpu {
            Operator::Inside => self.write_some(),
            Operator::Outside => self.read_all(),
        }
    }

    /// A guest writes to a page, on one of its VM's CPUs.
    pub fn guest_writes(&mut self, slot: &Placed, page: u64, turn: usize) {
        let cpus = Self::cpus_of(slot.vm);
        let cpu = cpus[turn % cpus.len()];
        let seed = self.fresh_seed();
        loop {
            let space = &self.spaces[&slot.vm];
            match (self.machine).write(cpu, space, slot.at(page), &page_of(seed)) {
                Ok(()) => break,
                Err(FaultOutcome::RingFull) => self.harvest_rings(),
                Err(FaultOutcome::OutOfFrames) if self.starved => return,
                Err(other) => panic!("a write to page {page} of {slot:?}: {other:?}"),
            }
        }
        self.hold(slot, page, seed);
        self.note_written(slot, page);
    }

    /// A guest reads a page, and finds what it should.
    pub fn guest_reads(&self, slot: &Placed, page: u64, turn: usize) {
        let cpus = Self::cpus_of(slot.vm);
        let cpu = cpus[turn % cpus.len()];
        let space = &self.spaces[&slot.vm];
        match self.machine.read(cpu, space, slot.at(page)) {
            Ok(found) => self.expect(slot, page, &found, "a guest reads"),
            Err(FaultOutcome::OutOfFrames) if self.starved => {}
            Err(other) => panic!("a read of page {page} of {slot:?}: {other:?}"),
        }
    }

    fn expect(&self, slot: &Placed, page: u64, found: &Contents, what: &str) {
        let memory = &self.contents[slot.memory];
        let seed = memory.get(&(slot.first + page)).copied().unwrap_or(0);
        let word = |page: &Contents| {
            let words = page.chunks_exact(8).map(|word| word.try_into().unwrap());
            words.map(u64::from_ne_bytes).map(|word| word >> 32).max()
        };
        assert!(
            *found == page_of(seed),
            "{what} {:?} and not {seed} at page {page} of {slot:?}",
            word(found)
        );
    }

    /// Looks at everything, and has no guest fault: what the hypervisor reads, all ways that CPUs have, frames.
    pub fn look(&self) {
        self.machine.check();
        self.machine.pool.counts().check().unwrap();
        for slot in &self.slots {
            let space = &self.spaces[&slot.vm];
            for page in slot.probes() {
                let mut found = [0; PAGE_SIZE as usize];
                self.on(|cpu| space.read_guest(cpu, slot.at(page), &mut found))
                    .unwrap();
                self.expect(slot, page, &found, "the hypervisor reads");
                for cpu in Self::cpus_of(slot.vm) {
                    for way in self.machine.ways(*cpu, space, slot.at(page)) {
                        let found = stage2::Pa::new(way.output);
                        let found = self.machine.contents(found.align_down(PAGE_SIZE));
                        let what = format!("CPU {cpu} finds by {way:x?}");
                        self.expect(slot, page, &found, &what);
                    }
                }
            }
            // Neither a page further nor a block.
            let last = slot.at(slot.pages - 1);
            let end = last.offset(PAGE_SIZE);
            self.unmapped(slot.vm, Ipa::new(slot.start.get() - PAGE_SIZE));
            self.unmapped(slot.vm, end);
            let block_end = last.align_down(BLOCK * PAGE_SIZE).offset(BLOCK * PAGE_SIZE);
            self.unmapped(
                slot.vm,
                Ipa::new(block_end.get().max(end.get() + 1) - PAGE_SIZE),
            );
        }
    }

    /// No CPU translates an address, unless a slot is there.
    pub fn unmapped(&self, vm: usize, ipa: Ipa) {
        let covers =
            |slot: &&Placed| slot.vm == vm && (slot.start..slot.at(slot.pages)).contains(&ipa);
        if self.slots.iter().find(covers).is_some() {
            return;
        }
        for cpu in 0..CPUS {
            let ways = self.machine.ways(cpu, &self.spaces[&vm], ipa);
            assert!(
                ways.is_empty(),
                "CPU {cpu} reaches {ipa} of VM {vm}: {ways:x?}"
            );
        }
    }

    /// All guests read everything.
    pub fn read_all(&self) {
        for slot in &self.slots {
            for (index, page) in slot.probes().into_iter().enumerate() {
                self.guest_reads(slot, page, index);
            }
        }
    }

    /// Logs the first slot as the corner says, if it does. The log ended, if there was one.
    pub fn enable_log(&mut self) {
        self.log = None;
        let Some(policy) = self.corner.policy() else {
            return;
        };
        let space = &self.spaces[&0];
        (self.on(|cpu| space.enable_dirty_log(cpu, SLOT, &policy))).unwrap();
        let is_exact = !policy.initially_set
            && policy.granularity == memory::Granularity::Page
            && !self.corner.is_by_hardware();
        self.log = Some(Reference {
            written: BTreeSet::new(),
            may_be: is_exact.then(BTreeSet::new),
            again: policy.ring,
        });
    }

    pub fn is_logged(&self) -> bool {
        self.log.is_some()
    }

    /// The log has ended.
    pub fn forget_log(&mut self) {
        self.log = None;
    }

    fn words(&self) -> Vec<u64> {
        vec![0; self.slot().pages.div_ceil(64) as usize]
    }

    fn harvest_rings(&mut self) {
        let nothing = DirtyPages {
            slot: SLOT,
            first: 0,
            count: 1,
        };
        for vcpu in 0..CPUS {
            let mut pages = [nothing; 16];
            loop {
                let space = &self.spaces[&0];
                let count = self.on(|cpu| space.harvest_ring(cpu, vcpu, &mut pages));
                for reported in &pages[..count] {
                    assert_eq!(reported.slot, SLOT);
                    (reported.first..reported.first + reported.count)
                        .for_each(|page| self.reported(page));
                }
                if count == 0 {
                    break;
                }
            }
        }
    }

    fn reported(&mut self, page: u64) {
        let slot = self.slot();
        assert!(page < slot.pages, "page {page} is beyond {slot:?}");
        let log = self.log.as_mut().expect("it is logged");
        log.written.remove(&page);
        if let Some(may_be) = &mut log.may_be {
            assert!(may_be.contains(&page), "page {page} was not written");
            if !log.again {
                may_be.remove(&page);
            }
        }
    }

    fn report_words(&mut self, first: u64, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            (0..64)
                .filter(|bit| word & 1 << bit != 0)
                .for_each(|bit| self.reported(first + index as u64 * 64 + bit));
        }
    }

    /// Takes all that is dirty: what was written is, and nobody can write unseen any more.
    pub fn harvest(&mut self) {
        if !self.is_logged() {
            return;
        }
        self.harvest_rings();
        let mut words = self.words();
        let space = &self.spaces[&0];
        let taken = self.on(|cpu| space.get_and_clear_dirty_log(cpu, SLOT, 0, &mut words));
        self.split(taken);
        self.report_words(0, &words);
        let log = self.log.as_ref().expect("it is logged");
        assert!(
            log.written.is_empty(),
            "written and not reported: {:?}",
            log.written
        );
        let slot = self.slot();
        for page in slot.probes() {
            for cpu in Self::cpus_of(0) {
                let ways = self.machine.ways(*cpu, &self.spaces[&0], slot.at(page));
                let unseen = ways.iter().find(|way| way.writable && way.accessed);
                assert!(
                    unseen.is_none(),
                    "CPU {cpu} writes to page {page} unseen: {unseen:x?}"
                );
            }
        }
    }

    /// Takes what is dirty word by word, the last ones first, and not all.
    pub fn clear_parts(&mut self) {
        const MOST: usize = 12;
        if !self.is_logged() {
            return;
        }
        self.harvest_rings();
        let mut words = self.words();
        let space = &self.spaces[&0];
        self.on(|cpu| space.get_dirty_log(cpu, SLOT, 0, &mut words))
            .unwrap();
        let dirty = words
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, word)| **word != 0);
        let parts: Vec<(usize, u64)> = dirty.map(|(index, word)| (index, *word)).collect();
        for (index, word) in parts.into_iter().take(MOST) {
            let first = index as u64 * 64;
            let mut taken = [word];
            let space = &self.spaces[&0];
            let cleared = self.on(|cpu| space.clear_dirty_log(cpu, SLOT, first, &mut taken));
            self.split(cleared);
            self.report_words(first, &taken);
        }
    }

    pub fn split(&self, result: Result<SplitAhead, LogError>) {
        match result {
            Ok(split) => assert!(self.starved || !split.ran_out, "{split:?}"),
            Err(error) => panic!("{error}"),
        }
    }

    /// Ends all VMs, one after the other, and checks that nothing is left.
    pub fn finish(mut self) {
        let mut vms: Vec<usize> = self.spaces.keys().copied().collect();
        if self.seeds.is_multiple_of(2) {
            vms.reverse();
        }
        for vm in vms {
            self.end(vm);
            self.look();
            self.write_some();
            self.read_all();
        }
        (0..CPUS).for_each(|cpu| self.machine.on(cpu, |cpu| cpu.wait_for_epoch()));
        self.machine.check();
        let counts = self.machine.pool.counts();
        counts.check().unwrap();
        let left = (
            counts.guest,
            counts.table,
            counts.compressed,
            counts.pending,
        );
        assert_eq!(left, (0, 0, 0, 0), "{counts}");
        assert_eq!(self.machine.pool.shared_frames(), 0);
        for vm in (0..MAX_VMS).filter_map(VmId::new) {
            let counts = self.machine.pool.counts_of(vm);
            assert!(counts.is_zero(), "{vm}: {counts}");
            let compressed = self.machine.pool.compressed_bytes(Owner::Vm(vm));
            assert_eq!(compressed, 0, "{vm}");
        }
    }

    /// Whether a VM may write to a page of its slot at this moment without a fault, on any of its CPUs.
    pub fn may_write(&self, slot: &Placed, page: u64) -> bool {
        let space = &self.spaces[&slot.vm];
        (Self::cpus_of(slot.vm).iter()).any(|cpu| {
            let mut ways = self.machine.ways(*cpu, space, slot.at(page)).into_iter();
            ways.any(|way| way.writable || way.dirty_modifier)
        })
    }

    /// What a guest's write to a page comes to that isn't allowed.
    pub fn refused(&self, slot: &Placed, page: u64) -> Option<FaultOutcome> {
        let space = &self.spaces[&slot.vm];
        let cpu = Self::cpus_of(slot.vm)[0];
        (self.machine)
            .access(cpu, space, slot.at(page), Access::Write)
            .err()
    }
}
