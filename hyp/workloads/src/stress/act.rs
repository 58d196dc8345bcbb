//! The harness's random actions while the vCPUs run.

use super::Stress;
use crate::harness::error::WorkloadError;
use crate::harness::test_memory::zeros;
use crate::harness::verify;
use control::Machine;
use control::RunError;
use control::guest::RunningGuest;
use core::ops::Range;
use memory::{
    Access, Ahead, Granularity, LogPolicy, MmuLock, NotPopulated, PrefaultError, Splitting,
    Tracking,
};
use stage2::{IpaRange, PAGE_SIZE};
use vm::VcpuId;

/// The offset in a page of the word that the harness writes; the guest leaves it alone.
pub(super) const OWN_WORD: u64 = PAGE_SIZE / 2;

/// An action of the harness.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    /// Pauses the VM for a moment.
    Pause,
    /// Makes, checks or ends a fork.
    Fork,
    /// Runs a fork beside the VM.
    Twin,
    /// Changes slots that the guest isn't told of.
    Slots,
    /// Populates a part of a slot.
    Populate,
    /// Merges some pages.
    Merge,
    /// Compresses some pages.
    Compress,
    /// Compacts fragmented pages into blocks.
    Gather,
    /// Writes a word.
    Write,
    /// Changes a slot's dirty log.
    Log,
}

impl Act {
    /// How often each is done in a deal.
    pub(super) const COUNTS: &[(Self, usize)] = &[
        (Self::Pause, 1),
        (Self::Fork, 2),
        (Self::Twin, 1),
        (Self::Slots, 2),
        (Self::Populate, 1),
        (Self::Merge, 1),
        (Self::Compress, 1),
        (Self::Gather, 1),
        (Self::Write, 2),
        (Self::Log, 20),
    ];
}

impl<M: Machine, L: MmuLock + 'static> Stress<'_, M, L> {
    /// Performs one action.
    pub(super) fn act(&mut self) -> Result<(), WorkloadError> {
        match self.acts.deal(&mut self.random) {
            Act::Pause => self.pause()?,
            Act::Fork => self.fork()?,
            // It takes as long as a round, and one is enough when the time is over.
            Act::Twin if self.is_late() && self.done.contains_key("twins") => {}
            Act::Twin => self.run_twin()?,
            Act::Slots => self.change_slots()?,
            Act::Populate => self.populate()?,
            Act::Merge => self.merge(),
            Act::Compress => self.compress()?,
            Act::Gather => self.gather(),
            Act::Write => self.write()?,
            Act::Log => self.log()?,
        }
        Ok(())
    }

    /// Performs one action on the dirty log of one slot.
    fn log(&mut self) -> Result<(), WorkloadError> {
        let index = self.random.usize(..self.targets.len());
        match (self.targets[index].log, self.random.u32(..15)) {
            (None, 0..7) => self.enable(index),
            (None, _) => self.restore(index),
            (Some(_), 0..4) => self.get_then_clear(index),
            (Some(_), 4..7) => self.get_and_clear(index),
            (Some(_), 7) => self.clear_blindly(index),
            (Some(_), 8..11) => self.copy(index),
            (Some(_), 11) => self.split(index),
            (Some(policy), 12) if policy.tracking == Tracking::WriteProtect => self.restore(index),
            (Some(_), 13) => {
                let vcpu = self.random.usize(..self.options.vcpus);
                self.take_ring(vcpu)
            }
            (Some(_), 14) if self.random.u32(..8) == 0 => self.disable(index),
            (Some(_), _) => Ok(()),
        }
    }

    fn any_policy(&mut self) -> LogPolicy {
        let ahead = self.ahead();
        let ring = self.rings.deal(&mut self.random);
        let hardware = !ring && self.has_dirty_state && self.random.bool();
        let initially_set = !ring && self.random.bool();
        LogPolicy {
            tracking: match hardware {
                true => Tracking::Hardware,
                false => Tracking::WriteProtect,
            },
            splitting: match self.random.u32(..3) {
                0 => Splitting::None,
                1 => Splitting::AtFault,
                _ => Splitting::Eager(ahead),
            },
            granularity: match self.random.u32(..3) {
                0 => Granularity::Block2M,
                _ => Granularity::Page,
            },
            initially_set,
            ring,
        }
    }

    fn ahead(&mut self) -> Ahead {
        let chunk = self.options.split_chunk.0;
        Ahead {
            chunk: chunk >> self.random.u32(..6),
            reserve: match self.random.u32(..4) {
                // More than there is.
                0 => u64::MAX,
                _ => 0,
            },
        }
    }

    pub(super) fn enable(&mut self, index: usize) -> Result<(), WorkloadError> {
        let policy = self.any_policy();
        let (own, space) = (&self.guest.own.memory, &self.guest.vm.space);
        let target = &mut self.targets[index];
        let split = space.enable_dirty_log(own, target.slot.id, &policy)?;
        target.begin(policy);
        self.count("enabled", 1);
        self.count("split_ahead", split.blocks);
        Ok(())
    }

    pub(super) fn disable(&mut self, index: usize) -> Result<(), WorkloadError> {
        let (own, space) = (&self.guest.own.memory, &self.guest.vm.space);
        let target = &mut self.targets[index];
        space.disable_dirty_log(own, target.slot.id)?;
        target.log = None;
        self.count("disabled", 1);
        Ok(())
    }

    /// A random range of words of a slot's bitmap.
    fn any_words(&mut self, index: usize) -> Range<usize> {
        let words = self.targets[index].slot.words();
        if self.random.u32(..4) == 0 {
            return 0..words;
        }
        let start = self.random.usize(..words);
        start..self.random.usize(start + 1..=words)
    }

    fn get_then_clear(&mut self, index: usize) -> Result<(), WorkloadError> {
        let words = self.any_words(index);
        let (own, space) = (&self.guest.own.memory, &self.guest.vm.space);
        let mut log = zeros(words.len()).ok_or(RunError::Heap)?;
        let slot = self.targets[index].slot.id;
        let first = words.start as u64 * u64::from(u64::BITS);
        space.get_dirty_log(own, slot, first, &mut log)?;
        if self.random.bool() {
            // Only some of them.
            log.iter_mut().for_each(|word| *word &= self.random.u64(..));
        }
        let split = space.clear_dirty_log(own, slot, first, &mut log)?;
        self.harvested(index, words.start, &log, split.blocks);
        Ok(())
    }

    fn get_and_clear(&mut self, index: usize) -> Result<(), WorkloadError> {
        let words = self.any_words(index);
        self.harvest(index, words)
    }

    /// Harvests all dirty pages in some words.
    pub(super) fn harvest(
        &mut self,
        index: usize,
        words: Range<usize>,
    ) -> Result<(), WorkloadError> {
        let (own, space) = (&self.guest.own.memory, &self.guest.vm.space);
        let mut log = zeros(words.len()).ok_or(RunError::Heap)?;
        let slot = self.targets[index].slot.id;
        let first = words.start as u64 * u64::from(u64::BITS);
        let split = space.get_and_clear_dirty_log(own, slot, first, &mut log)?;
        self.harvested(index, words.start, &log, split.blocks);
        Ok(())
    }

    /// Clears pages whose dirty state is unknown.
    fn clear_blindly(&mut self, index: usize) -> Result<(), WorkloadError> {
        let words = self.any_words(index);
        let (own, space) = (&self.guest.own.memory, &self.guest.vm.space);
        let mut log = zeros(words.len()).ok_or(RunError::Heap)?;
        log.fill_with(|| self.random.u64(..));
        let slot = self.targets[index].slot.id;
        let first = words.start as u64 * u64::from(u64::BITS);
        let split = space.clear_dirty_log(own, slot, first, &mut log)?;
        self.harvested(index, words.start, &log, split.blocks);
        Ok(())
    }

    fn harvested(&mut self, index: usize, first_word: usize, log: &[u64], split: u64) {
        self.targets[index].owe(first_word, log);
        self.count("harvests", 1);
        self.count("harvested", verify::count(log));
        self.count("split_ahead", split);
    }

    fn copy(&mut self, index: usize) -> Result<(), WorkloadError> {
        let words = self.any_words(index);
        let copied = self.targets[index].copy(self.guest, words)?;
        self.count("copied", copied);
        Ok(())
    }

    fn split(&mut self, index: usize) -> Result<(), WorkloadError> {
        let (words, ahead) = (self.any_words(index), self.ahead());
        let (own, space) = (&self.guest.own.memory, &self.guest.vm.space);
        let target = &self.targets[index];
        let from = target.page(words.start as u64 * u64::from(u64::BITS));
        let bytes = words.len() as u64 * memory::BYTES_PER_WORD;
        let split = space.split_blocks(own, target.slot.id, from, bytes, ahead)?;
        self.count("split_ahead", split.blocks);
        Ok(())
    }

    fn restore(&mut self, index: usize) -> Result<(), WorkloadError> {
        let words = self.any_words(index);
        let (own, space) = (&self.guest.own.memory, &self.guest.vm.space);
        let target = &self.targets[index];
        let from = target.page(words.start as u64 * u64::from(u64::BITS));
        let restored = space.restore_blocks(own, target.slot.id, from)?;
        self.count("restored", restored.collapsed.blocks);
        Ok(())
    }

    /// Pre-faults a part of a slot.
    fn populate(&mut self) -> Result<(), WorkloadError> {
        let index = self.random.usize(..self.targets.len());
        let target = &self.targets[index];
        let first = self.random.u64(..target.slot.pages);
        let end = self.random.u64(first + 1..=target.slot.pages);
        let access = match self.random.bool() {
            true => Access::Read,
            false => Access::Write,
        };
        populate(self.guest, target.page(first)..target.page(end), access)?;
        self.count("populated", end - first);
        Ok(())
    }

    /// Writes into guest memory, as a device would.
    fn write(&mut self) -> Result<(), WorkloadError> {
        let index = self.random.usize(..self.targets.len());
        let (own, space) = (&self.guest.own.memory, &self.guest.vm.space);
        let target = &self.targets[index];
        let page = self.random.u64(..target.slot.pages);
        let word = self.random.u64(..);
        let at = target.page(page).offset(OWN_WORD);
        space.write_guest(own, at, &word.to_le_bytes())?;
        self.written[(target.slot.first_page + page) as usize] = word;
        self.count("own_writes", 1);
        Ok(())
    }

    /// Harvests the rings that are nearly full, and wakes their vCPUs.
    pub(super) fn serve_rings(&mut self) -> Result<(), WorkloadError> {
        let mut outcome = Ok(());
        let bench = self.bench;
        bench.low_rings().take(|vcpu| {
            if let Err(error) = self.take_ring(vcpu) {
                outcome = Err(error);
            }
            if let Some(cpu) = self.guest.vm.cpu_of(VcpuId(vcpu)) {
                self.guest.machine.kick(cpu);
            }
        });
        outcome
    }

    /// Takes all that is in a vCPU's ring.
    pub(super) fn take_ring(&mut self, vcpu: usize) -> Result<(), WorkloadError> {
        loop {
            let (own, space) = (&self.guest.own.memory, &self.guest.vm.space);
            let taken = space.harvest_ring(own, vcpu, &mut self.ring_buffer);
            for pages in &self.ring_buffer[..taken] {
                let target = self.targets.iter_mut();
                // What its last log has left is for nobody, but does no harm.
                for target in target.filter(|target| target.slot.id == pages.slot) {
                    let count = pages.count.min(target.slot.pages - pages.first);
                    verify::add(&mut target.owed, pages.first, count);
                }
            }
            self.count("from_rings", taken as u64);
            if taken < self.ring_buffer.len() {
                return Ok(());
            }
        }
    }
}

/// Pre-faults a range for no vCPU in particular; pages populated for writing are marked in the bitmaps.
pub(super) fn populate<M: Machine, L: MmuLock>(
    guest: &RunningGuest<'_, M, L>,
    range: IpaRange,
    access: Access,
) -> Result<(), WorkloadError> {
    let no_vcpu = usize::MAX;
    match guest
        .vm
        .space
        .prefault(&guest.own.memory, no_vcpu, range, access)
    {
        Err(PrefaultError {
            reason: NotPopulated::OutOfFrames | NotPopulated::Busy,
            ..
        })
        | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
