//! Checks the harvested pages and the contents of guest memory against the writes that the guest reports.

use super::Harness;
use crate::harness::error::WorkloadError;
use crate::harness::service::journal_bytes;
use crate::harness::test_memory::zeros;
use crate::harness::verify;
use alloc::vec::Vec;
use control::Machine;
use control::RunError;
use control::guest::RunningGuest;
use control::options::TEST_MEMORY;
use memory::MmuLock;
use records::words::{Backing, Enable, Granularity, Harvest};
use stage2::{Ipa, PAGE_SIZE};
use vm::VcpuId;

/// Pages of a block of 2 MiB.
const PAGES_IN_BLOCK: u64 = Backing::Block2M.bytes() / PAGE_SIZE;

impl<M: Machine, L: MmuLock> Harness<'_, M, L> {
    /// Collects the pages in the vCPUs' journals.
    pub(super) fn read_journals(&mut self) -> Result<(), WorkloadError> {
        self.written.fill(0);
        let Some(journals) = self.bench.journals() else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        let length = journal_bytes(self.share) as usize;
        bytes
            .try_reserve_exact(length)
            .map_err(|_| RunError::Heap)?;
        bytes.resize(length, 0);
        for (vcpu, arrival) in self.bench.steps().arrivals().enumerate() {
            let RunningGuest { own, vm, .. } = self.guest;
            vm.space
                .read_guest(&own.memory, journals.of(vcpu), &mut bytes)?;
            let mut journal = zeros(length / size_of::<u64>()).ok_or(RunError::Heap)?;
            for (word, bytes) in journal.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = little_endian(bytes);
            }
            let first = self.share * vcpu as u64;
            verify::merge(&mut self.written, first, self.share, &journal).map_err(|error| {
                WorkloadError::Journal {
                    vcpu: VcpuId(vcpu),
                    error,
                }
            })?;
            check_count(vcpu, arrival.written, self.expected_count(&journal))?;
            let expected = self.share.saturating_sub(arrival.written);
            if !self.options.random && arrival.read != expected {
                return Err(WorkloadError::WrongReads {
                    vcpu: VcpuId(vcpu),
                    counted: arrival.read,
                    expected,
                });
            }
        }
        Ok(())
    }

    /// How many pages a vCPU with this journal has written. Where every page is written once, that is the whole share, whatever
    /// the journal says.
    fn expected_count(&self, journal: &[u64]) -> u64 {
        match (self.options.write_percent, self.options.random) {
            (100, false) => self.share,
            _ => verify::count(journal),
        }
    }

    /// Checks the harvest: it must equal the written pages, in the unit of logging; or all pages, the first time, if the log
    /// was initially set.
    pub(super) fn check_log(
        &mut self,
        iteration: u64,
        by: &'static str,
    ) -> Result<(), WorkloadError> {
        self.harvested.fill(0);
        for part in &self.parts[..] {
            // A log has no bits beyond its slot.
            let pages = part.pages.end - part.pages.start;
            let _ = verify::merge(
                &mut self.harvested,
                part.first_page,
                pages,
                &part.log.lock(),
            );
        }
        if self.options.harvest == Harvest::Ring {
            for (all, rings) in self.harvested.iter_mut().zip(&mut self.from_rings) {
                *all |= core::mem::take(rings);
            }
        }
        let mut expected = self.written.clone();
        if self.options.enable == Enable::AllSet && iteration == 1 {
            verify::add(&mut expected, 0, self.pages);
        } else if self.options.granularity == Granularity::Block2M
            && self.options.backing != Backing::Page4K
        {
            verify::widen(&mut expected, PAGES_IN_BLOCK);
        }
        verify::compare(&expected, &self.harvested).map_err(|mismatch| WorkloadError::Harvest {
            iteration,
            by,
            mismatch,
        })
    }

    /// Notes that the journals' pages were written in this iteration, and checks that guest memory holds what was written.
    pub(super) fn written_in(&mut self, iteration: u64) -> Result<(), WorkloadError> {
        // The pattern has as many bits.
        self.contents.write(iteration as u16, 0, &self.written);
        verify::pages(&self.written).try_for_each(|page| self.check_page(iteration, page))
    }

    pub(super) fn check_contents(&self, iteration: u64) -> Result<(), WorkloadError> {
        (0..self.contents.pages()).try_for_each(|page| self.check_page(iteration, page))
    }

    fn check_page(&self, iteration: u64, page: u64) -> Result<(), WorkloadError> {
        let RunningGuest { own, vm, .. } = self.guest;
        let mut word = [0; 8];
        vm.space.read_guest(
            &own.memory,
            Ipa::new(TEST_MEMORY).offset(page * PAGE_SIZE),
            &mut word,
        )?;
        let checked = self.contents.check(page, u64::from_le_bytes(word));
        checked.map_err(|error| WorkloadError::Content { iteration, error })
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |word, byte| word << 8 | u64::from(*byte))
}

pub(super) fn check_count(vcpu: usize, counted: u64, expected: u64) -> Result<(), WorkloadError> {
    if counted == expected {
        Ok(())
    } else {
        Err(WorkloadError::WrongCount {
            vcpu: VcpuId(vcpu),
            counted,
            expected,
        })
    }
}
