//! What is done to the VMs of a corner.

use super::corner::{AHEAD, BLOCK, Operation};
use super::scene::{Placed, SLOT, Scene, page_of};
use checker::Promise;
use memory::FaultOutcome;
use memory::{Access, BalloonError, MergePolicy, NotBacked, NotPopulated, PageMerging, Watermarks};
use stage2::{Ipa, Level, PAGE_SIZE, Pa};

impl Scene<'_> {
    /// Does one thing, on the CPU that operates.
    pub fn perform(&mut self, operation: Operation) {
        self.enter();
        if !self.spaces.contains_key(&0) {
            return;
        }
        match operation {
            Operation::Write => self.write_some(),
            Operation::WriteGuest => self.write_by_hypervisor(),
            Operation::Fork => {
                if !self.spaces.contains_key(&2) {
                    self.fork(2);
                }
            }
            Operation::EndSecond => {
                if let Some(vm) = self.spaces.keys().copied().find(|vm| *vm != 0) {
                    self.end(vm);
                }
            }
            Operation::MoveSlot => self.move_slot(),
            Operation::RemoveSlot => self.remove_slot(),
            Operation::Invalidate => self.invalidate(),
            Operation::SwitchLog => self.switch_log(),
            Operation::ClearParts => self.clear_parts(),
            Operation::Harvest => self.harvest(),
            Operation::SplitAhead => self.split_ahead(),
            Operation::RestoreBlocks => self.restore_blocks(),
            Operation::Gather => self.gather(),
            Operation::Compact => self.compact(),
            // A scan of a gigabyte takes too long.
            Operation::Merge if self.corner.piece == Level::L1 => {}
            Operation::Merge => self.merge(),
            Operation::Reclaim => self.reclaim(),
            Operation::Balloon => self.balloon(),
            Operation::Prefault => self.prefault(&self.slot()),
            Operation::UnshareRegion => self.unshare_region(),
            Operation::ReadOnly => self.read_only(),
        }
    }

    /// The hypervisor writes three pages in the middle and the last one.
    fn write_by_hypervisor(&mut self) {
        let slot = self.slot();
        for (first, count) in [(slot.pages / 2, 3), (slot.pages - 1, 1), (511, 2)] {
            let seeds: Vec<u64> = (0..count).map(|_| self.fresh_seed()).collect();
            let bytes: Vec<u8> = seeds.iter().flat_map(|seed| page_of(*seed)).collect();
            let space = &self.spaces[&0];
            let written = self.on(|cpu| space.write_guest(cpu, slot.at(first), &bytes));
            let done = match written {
                Ok(()) => count,
                Err(NotBacked::OutOfFrames { ipa }) if self.starved => {
                    (ipa.get() - slot.at(first).get()) / PAGE_SIZE
                }
                Err(error) => panic!("{error}"),
            };
            for (page, seed) in (first..first + done).zip(seeds) {
                self.hold(&slot, page, seed);
                self.note_written(&slot, page);
            }
        }
    }

    /// The first slot moves by as much as keeps blocks possible, and by a page more every other time.
    fn move_slot(&mut self) {
        let slot = self.slot();
        let by = 0x20_0000_0000 + self.round % 2 * PAGE_SIZE;
        let to = match slot.start.get() < by {
            true => slot.start.offset(by),
            false => Ipa::new(slot.start.get() % 0x20_0000_0000),
        };
        let since = self.machine.now();
        let space = &self.spaces[&0];
        self.on(|cpu| space.move_slot(cpu, SLOT, to)).unwrap();
        let left = slot.start..slot.at(slot.pages);
        self.machine.promised(space, Promise::NoEntry, left, since);
        self.slot_mut().start = to;
        (slot.probes().iter()).for_each(|page| self.unmapped(0, slot.at(*page)));
        self.forget_log();
        self.look();
        self.enable_log();
    }

    /// The first slot goes, and the memory comes back elsewhere, a page less of it.
    fn remove_slot(&mut self) {
        let slot = self.slot();
        let space = &self.spaces[&0];
        let object = self.on(|cpu| space.object_of(cpu, SLOT)).unwrap();
        let since = self.machine.now();
        self.on(|cpu| space.remove_slot(cpu, SLOT)).unwrap();
        let left = slot.start..slot.at(slot.pages);
        self.machine.promised(space, Promise::NoEntry, left, since);
        self.slots.retain(|other| other.vm != 0 || other.id != SLOT);
        self.forget_log();
        (slot.probes().iter()).for_each(|page| self.unmapped(0, slot.at(*page)));
        self.look();
        let mut again = slot;
        again.start = again.start.offset(BLOCK * PAGE_SIZE);
        again.pages -= 1;
        self.map(again, object);
        self.enable_log();
    }

    fn invalidate(&mut self) {
        let slot = self.slot();
        let range = slot.at(3)..slot.at(slot.pages / 2 + 1);
        let since = self.machine.now();
        let space = &self.spaces[&0];
        self.on(|cpu| space.invalidate(cpu, range.clone()));
        self.machine.promised(space, Promise::NoEntry, range, since);
    }

    fn switch_log(&mut self) {
        let space = &self.spaces[&0];
        if self.is_logged() {
            self.harvest();
            let space = &self.spaces[&0];
            self.on(|cpu| space.disable_dirty_log(cpu, SLOT)).unwrap();
            self.forget_log();
            self.write_some();
            self.enable_log();
        } else {
            let policy = memory::LogPolicy::default();
            self.split(self.on(|cpu| space.enable_dirty_log(cpu, SLOT, &policy)));
            let slot = self.slot();
            let writable = |page: &&u64| self.may_write(&slot, **page);
            let probes = slot.probes();
            assert_eq!(probes.iter().find(writable), None, "it is logged");
            self.on(|cpu| space.disable_dirty_log(cpu, SLOT)).unwrap();
        }
    }

    fn split_ahead(&mut self) {
        if !self.is_logged() {
            return;
        }
        let slot = self.slot();
        let space = &self.spaces[&0];
        let bytes = slot.pages * PAGE_SIZE / 2;
        let split = self.on(|cpu| space.split_blocks(cpu, SLOT, slot.at(1), bytes, AHEAD));
        if self.corner.piece > Level::L1 {
            self.split(split);
        }
    }

    fn restore_blocks(&mut self) {
        let mut next = Some(self.slot().start);
        while let Some(from) = next {
            let space = &self.spaces[&0];
            match self.on(|cpu| space.restore_blocks(cpu, SLOT, from)) {
                Ok(restored) => next = restored.next,
                Err(error) => {
                    assert!(self.corner.is_by_hardware(), "{error}");
                    return;
                }
            }
            self.on(|cpu| cpu.upkeep());
        }
    }

    fn gather(&mut self) {
        const CALLS: usize = 24;
        for _ in 0..CALLS {
            self.on(|cpu| {
                cpu.gather();
                cpu.upkeep();
            });
        }
    }

    /// Pages move one by one and by regions, of every memory, and runs of frames are cleared.
    fn compact(&mut self) {
        for slot in self.slots.clone() {
            let space = &self.spaces[&slot.vm];
            let object = self.on(|cpu| space.object_of(cpu, slot.id)).unwrap();
            for page in [0, 5, BLOCK - 1, BLOCK, object.pages() - 1] {
                self.on(|cpu| object.migrate(cpu, page));
            }
            for region in [0, object.pages() / BLOCK / 2, object.pages() / BLOCK - 1] {
                self.on(|cpu| object.compact_region(cpu, region * BLOCK));
            }
        }
        let mut next = Some(Pa::new(0));
        for _ in 0..8 {
            let Some(from) = next else { break };
            next = self.on(|cpu| cpu.clear_run(from, 64).next);
        }
    }

    /// Equal pages come to share a frame.
    fn merge(&mut self) {
        const SCANS: u64 = 3;
        let seed = self.fresh_seed();
        for slot in self.slots.clone() {
            for (index, page) in [7, 8, BLOCK + 9].into_iter().enumerate() {
                let cpus = Self::cpus_of(slot.vm);
                let space = &self.spaces[&slot.vm];
                let cpu = cpus[index % cpus.len()];
                match (self.machine).write(cpu, space, slot.at(page), &page_of(seed)) {
                    Ok(()) => {
                        self.hold(&slot, page, seed);
                        self.note_written(&slot, page);
                    }
                    Err(FaultOutcome::OutOfFrames) if self.starved => {}
                    Err(FaultOutcome::RingFull) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
        let merging = PageMerging::new(MergePolicy {
            pages_of_block: 1,
            pages_to_scan: 4096,
            ..MergePolicy::default()
        });
        for space in self.spaces.values() {
            self.on(|cpu| merging.add_vm(cpu, space)).unwrap();
        }
        while merging.statistics().full_scans < SCANS {
            self.on(|cpu| merging.step(cpu));
        }
    }

    /// As if memory were short.
    fn reclaim(&mut self) {
        const STEPS: usize = 6;
        let always = Watermarks {
            low: 1 << 40,
            high: 1 << 40,
        };
        self.on(|cpu| {
            cpu.system().set_watermarks(Some(always));
            for _ in 0..STEPS {
                cpu.relieve();
            }
            cpu.system().set_watermarks(None);
        });
    }

    fn balloon(&mut self) {
        let slot = self.slot();
        for (first, end) in [(1, 4), (BLOCK - 1, BLOCK + 2), (slot.pages - 2, slot.pages)] {
            let range = slot.at(first)..slot.at(end);
            let space = &self.spaces[&0];
            let given = self.on(|cpu| space.balloon(cpu, range));
            if slot.private {
                given.unwrap();
            } else {
                let ipa = slot.at(first);
                assert_eq!(given, Err(BalloonError::NotOwn { ipa }));
                continue;
            }
            for page in first..end {
                self.contents[slot.memory].remove(&(slot.first + page));
                self.note_written(&slot, page);
            }
        }
    }

    /// Every VM writes the same region, the first VM last: where it was forked, it is left with the frames of all.
    fn unshare_region(&mut self) {
        (self.slots.clone().iter().rev()).for_each(|slot| self.prefault(slot));
    }

    /// All of a region of a slot's memory, and some pages on either side.
    fn prefault(&mut self, slot: &Placed) {
        let region = (slot.first + slot.pages / 2) / BLOCK * BLOCK - slot.first;
        let (first, end) = (region - 9, region + BLOCK + 9);
        let access = Access::Write;
        let range = slot.at(first)..slot.at(end);
        let space = &self.spaces[&slot.vm];
        let operator = self.operator();
        let populated = self.on(|cpu| space.prefault(cpu, operator, range, access));
        let done = match populated {
            Ok(()) => end,
            Err(error) => {
                let expected = match error.reason {
                    NotPopulated::OutOfFrames => self.starved,
                    NotPopulated::RingFull => true,
                    _ => false,
                };
                assert!(expected, "{error}");
                first + (error.done_to.get() - slot.at(first).get()) / PAGE_SIZE
            }
        };
        (first..done).for_each(|page| self.note_written(slot, page));
    }

    /// Nothing may be written for a while.
    fn read_only(&mut self) {
        let slot = self.slot();
        let space = &self.spaces[&0];
        self.on(|cpu| space.set_read_only(cpu, SLOT, true)).unwrap();
        self.forget_log();
        self.look();
        for page in slot.probes() {
            assert_eq!(self.refused(&slot, page), Some(FaultOutcome::NotPermitted));
            self.guest_reads(&slot, page, 0);
            assert!(!self.may_write(&slot, page), "page {page} of {slot:?}");
        }
        let space = &self.spaces[&0];
        self.on(|cpu| space.set_read_only(cpu, SLOT, false))
            .unwrap();
        self.enable_log();
    }
}
