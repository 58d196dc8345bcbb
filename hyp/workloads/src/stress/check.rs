//! The checks between rounds, while all vCPUs wait: copies equal their originals, and memory matches its writers' journals.

use super::Stress;
use super::act::OWN_WORD;
use crate::harness::error::WorkloadError;
use crate::harness::policy::Words;
use crate::harness::service::Journals;
use abi::counted;
use alloc::string::ToString;
use alloc::vec;
use control::Machine;
use control::guest::RunningGuest;
use control::options::{Options, TEST_MEMORY};
use memory::MmuLock;
use stage2::{Ipa, PAGE_SIZE};

/// The rounds of restoring blocks at the end.
const ROUNDS: usize = 3;

impl<M: Machine, L: MmuLock + 'static> Stress<'_, M, L> {
    /// Finishes the migration of each logged slot, compares the copies, and lets some slots continue.
    pub(super) fn check_round(&mut self) -> Result<(), WorkloadError> {
        self.check_journals()?;
        self.check_common()?;
        for vcpu in 0..self.options.vcpus {
            self.take_ring(vcpu)?;
        }
        self.log_one_at_least()?;
        for index in 0..self.targets.len() {
            if self.targets[index].log.is_none() {
                continue;
            }
            let words = 0..self.targets[index].slot.words();
            self.harvest(index, words.clone())?;
            let copied = self.targets[index].copy(self.guest, words)?;
            self.count("copied", copied);
            self.check_copy(index)?;
            if self.random.bool() {
                self.disable(index)?;
            }
        }
        Ok(())
    }

    /// Begins a migration if none has ended yet and none goes on. On a slow machine one round is all, and it may have disabled
    /// every log that it enabled.
    fn log_one_at_least(&mut self) -> Result<(), WorkloadError> {
        let is_logged = self.targets.iter().any(|target| target.log.is_some());
        if is_logged || self.done.contains_key("migrated") {
            return Ok(());
        }
        let index = self.random.usize(..self.targets.len());
        self.enable(index)
    }

    fn check_copy(&mut self, index: usize) -> Result<(), WorkloadError> {
        let target = &self.targets[index];
        if let (Some(page), Some(policy)) = (target.first_difference(self.guest)?, target.log) {
            return Err(WorkloadError::Lost {
                vm: self.guest.vm.space.vm(),
                slot: target.slot.id,
                page,
                policy: Words(&policy).to_string(),
                seed: self.options.seed,
            });
        }
        let pages = target.slot.pages;
        self.count("compared", pages);
        self.count("migrated", 1);
        Ok(())
    }

    fn check_journals(&self) -> Result<(), WorkloadError> {
        let memory = TestMemory {
            guest: self.guest,
            options: self.options,
            written: &self.written,
        };
        memory.check(self.bench.journals())
    }

    /// Disables all logging; then all blocks must be restored.
    pub(super) fn end_logging(&mut self) -> Result<(), WorkloadError> {
        for index in 0..self.targets.len() {
            if self.targets[index].log.is_some() {
                self.disable(index)?;
            }
        }
        let mut left = 0;
        for _ in 0..ROUNDS {
            left = self.restore_all()?;
            if left == 0 {
                return Ok(());
            }
        }
        Err(WorkloadError::NotRestored { left })
    }

    fn restore_all(&mut self) -> Result<u64, WorkloadError> {
        let (own, space) = (&self.guest.own.memory, &self.guest.vm.space);
        let (mut blocks, mut left) = (0, 0);
        for target in &self.targets {
            let mut next = Some(target.slot.range().start);
            while let Some(from) = next {
                let restored = space.restore_blocks(own, target.slot.id, from)?;
                blocks += restored.collapsed.blocks;
                left += restored.collapsed.left;
                next = restored.next;
            }
        }
        self.count("restored", blocks);
        Ok(left)
    }
}

/// The test memory of a VM whose vCPUs wait.
pub(super) struct TestMemory<'m, M: Machine, L: MmuLock> {
    pub(super) guest: &'m RunningGuest<'m, M, L>,
    pub(super) options: &'m Options,
    /// The last word that the harness has written to each page.
    pub(super) written: &'m [u64],
}

impl<M: Machine, L: MmuLock> TestMemory<'_, M, L> {
    /// Compares it with the vCPUs' journals, if there are any yet, and with the harness's own writes.
    pub(super) fn check(&self, journals: Option<Journals>) -> Result<(), WorkloadError> {
        let Some(journals) = journals else {
            return Ok(());
        };
        let vcpus = self.options.vcpus as u64;
        let share = self.options.bytes.0 / PAGE_SIZE;
        let mut journal = vec![0; (share * 4) as usize];
        for vcpu in 0..self.options.vcpus {
            let (own, space) = (&self.guest.own.memory, &self.guest.vm.space);
            space.read_guest(own, journals.of(vcpu), &mut journal)?;
            for (own_page, count) in journal.chunks_exact(4).enumerate() {
                let count = count
                    .iter()
                    .rev()
                    .fold(0, |count, byte| count << 8 | u64::from(*byte));
                let page = own_page as u64 * vcpus + vcpu as u64;
                let expected = counted(count, page);
                for word in [0, PAGE_SIZE - 8] {
                    self.check_word(page, word, expected)?;
                }
            }
        }
        for (page, word) in self.written.iter().enumerate() {
            self.check_word(page as u64, OWN_WORD, *word)?;
        }
        Ok(())
    }

    fn check_word(&self, page: u64, offset: u64, expected: u64) -> Result<(), WorkloadError> {
        let (own, space) = (&self.guest.own.memory, &self.guest.vm.space);
        let mut word = [0; 8];
        let at = Ipa::new(TEST_MEMORY).offset(page * PAGE_SIZE + offset);
        space.read_guest(own, at, &mut word)?;
        let found = u64::from_le_bytes(word);
        if found == expected {
            return Ok(());
        }
        Err(WorkloadError::Inconsistent {
            page,
            found,
            expected: Some(expected),
            seed: self.options.seed,
        })
    }
}
