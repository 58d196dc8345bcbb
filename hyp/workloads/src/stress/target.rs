//! A slot under stress: whether and how it is logged, and its pages that are still to be copied.
//!
//! The copy lies in memory that the guest isn't told of, so that it is neither logged nor mapped. Used by CPU 0 only.

use crate::harness::error::WorkloadError;
use crate::harness::test_memory::bitmap;
use crate::harness::verify;
use alloc::vec::Vec;
use control::Machine;
use control::guest::RunningGuest;
use control::guest::TestSlot;
use memory::{LogPolicy, MmuLock};
use stage2::{Ipa, PAGE_SIZE};

/// A page's bytes.
pub(super) type Page = [u8; PAGE_SIZE as usize];

/// A slot under stress.
#[derive(Debug)]
pub(super) struct Target {
    /// The slot.
    pub(super) slot: TestSlot,
    /// Its log policy, while it is logged.
    pub(super) log: Option<LogPolicy>,
    /// Pages that were harvested as dirty and aren't copied yet.
    pub(super) owed: Vec<u64>,
    /// The start of the copy of the test memory.
    copies: Ipa,
}

impl Target {
    /// A slot that isn't logged. `None` without heap.
    pub(super) fn new(slot: TestSlot, copies: Ipa) -> Option<Self> {
        Some(Self {
            slot,
            log: None,
            owed: bitmap(slot.pages)?,
            copies,
        })
    }

    /// Begins the slot's migration: with all pages dirty, or with none if the log itself reports all.
    pub(super) fn begin(&mut self, policy: LogPolicy) {
        self.owed.fill(0);
        if !policy.initially_set {
            verify::add(&mut self.owed, 0, self.slot.pages);
        }
        self.log = Some(policy);
    }

    /// Adds pages that the log has reported; the bitmap begins at word `first_word`.
    pub(super) fn owe(&mut self, first_word: usize, bitmap: &[u64]) {
        for (owed, taken) in self.owed[first_word..].iter_mut().zip(bitmap) {
            *owed |= taken;
        }
    }

    /// The address of a page.
    pub(super) fn page(&self, page: u64) -> Ipa {
        self.slot.range().start.offset(page * PAGE_SIZE)
    }

    /// The address of its copy.
    fn copy_of(&self, page: u64) -> Ipa {
        self.copies
            .offset((self.slot.first_page + page) * PAGE_SIZE)
    }

    /// Copies the outstanding pages in some words of the bitmap. Returns how many they were.
    pub(super) fn copy<M: Machine, L: MmuLock>(
        &mut self,
        guest: &RunningGuest<'_, M, L>,
        words: core::ops::Range<usize>,
    ) -> Result<u64, WorkloadError> {
        let mut copied = 0;
        for index in words {
            let owed = core::mem::take(&mut self.owed[index]);
            for page in verify::pages(&[owed]) {
                let page = index as u64 * u64::from(u64::BITS) + page;
                let mut bytes: Page = [0; PAGE_SIZE as usize];
                let (own, space) = (&guest.own.memory, &guest.vm.space);
                space.read_guest(own, self.page(page), &mut bytes)?;
                space.write_guest(own, self.copy_of(page), &bytes)?;
                copied += 1;
            }
        }
        Ok(copied)
    }

    /// The first page whose copy differs, if any.
    pub(super) fn first_difference<M: Machine, L: MmuLock>(
        &self,
        guest: &RunningGuest<'_, M, L>,
    ) -> Result<Option<u64>, WorkloadError> {
        let (own, space) = (&guest.own.memory, &guest.vm.space);
        let mut bytes: [Page; 2] = [[0; PAGE_SIZE as usize]; 2];
        for page in 0..self.slot.pages {
            space.read_guest(own, self.page(page), &mut bytes[0])?;
            space.read_guest(own, self.copy_of(page), &mut bytes[1])?;
            if bytes[0] != bytes[1] {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }
}
