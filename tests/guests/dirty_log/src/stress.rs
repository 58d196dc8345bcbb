//! A vCPU's part in the stress run: reads and writes at random, each checked against what must be there.
//!
//! The pages of the test memory are dealt out one by one, so that vCPUs share words of bitmaps and tables. Each page has one
//! writer; all read it. Its writer puts the same value into its first word and, with release, into its last one: whoever
//! reads the last one first sees no older value in the first.

use abi::{INCONSISTENT, count_of, counted};
use core::sync::atomic::{AtomicU64, Ordering};
use guest_runtime::report;

use crate::accesses::Choice;

const PAGE_BYTES: u64 = 4096;
const LAST_WORD: u64 = PAGE_BYTES - 8;
/// One in so many accesses is followed by one to the memory that VMs have in common.
const COMMON: u64 = 8;
/// Accesses of a step for each page that the vCPU writes.
const ACCESSES_PER_PAGE: u64 = 4;
/// The most accesses of a step, so that a step in memory of gigabytes ends soon, too.
const MOST_ACCESSES: u64 = 8192;

/// What a vCPU writes and what it knows of it.
#[derive(Debug)]
pub struct Stress {
    /// Where the test memory begins.
    pub memory: u64,
    /// The vCPU, and how many there are.
    pub index: u64,
    /// vCPUs.
    pub vcpus: u64,
    /// How many pages each vCPU writes.
    pub share: u64,
    /// How often this vCPU has written each of its pages.
    pub journal: *mut u32,
    /// How often it has added to the memory that VMs have in common.
    pub added: *mut u64,
}

impl Stress {
    /// Does one step. Returns how often it wrote and read. `common` says where the memory begins that VMs have in common, and how
    /// many pages it has.
    ///
    /// # Safety
    /// Test memory of `share` pages for each vCPU begins at `memory`; all vCPUs access it only in this way, and the common memory
    /// too. The journal has a word for each page of the share, and is this vCPU's alone, as is the word `added`.
    pub unsafe fn step(&mut self, choice: &mut Choice, common: (u64, u64)) -> [u64; 2] {
        let mut done = [0; 2];
        for _ in 0..(self.share * ACCESSES_PER_PAGE).min(MOST_ACCESSES) {
            match choice.below(4) {
                0 => {
                    // SAFETY: as promised by the caller, the page exists.
                    unsafe { self.read_any(choice.below(self.share * self.vcpus)) };
                    done[1] += 1;
                }
                turn => {
                    let written = turn != 1;
                    // SAFETY: as promised by the caller, the page is of the vCPU's share.
                    unsafe { self.access_own(choice.below(self.share), written) };
                    done[usize::from(!written)] += 1;
                }
            }
            if common.1 != 0 && choice.below(COMMON) == 0 {
                // SAFETY: as promised by the caller, the page exists.
                unsafe { self.add(common.0 + choice.below(common.1) * PAGE_BYTES) };
            }
        }
        done
    }

    /// Checks one of the vCPU's own pages, and writes it.
    ///
    /// # Safety
    /// It is one of the share.
    unsafe fn access_own(&self, own: u64, write: bool) {
        let page = own * self.vcpus + self.index;
        // SAFETY: the journal has a word for it, and the page exists.
        let (journal, [first, last]) =
            unsafe { (self.journal.add(own as usize), self.words_of(page)) };
        // SAFETY: the journal is this vCPU's alone.
        let count = u64::from(unsafe { journal.read_volatile() });
        for word in [first, last] {
            let found = word.load(Ordering::Relaxed);
            if found != counted(count, page) {
                report(INCONSISTENT, page, found);
            }
        }
        if write {
            // SAFETY: as above.
            unsafe { journal.write_volatile(count as u32 + 1) };
            first.store(counted(count + 1, page), Ordering::Relaxed);
            last.store(counted(count + 1, page), Ordering::Release);
        }
    }

    /// Adds 1 to a word, to which other VMs' vCPUs add too, and counts that first.
    ///
    /// # Safety
    /// It exists.
    unsafe fn add(&mut self, word: u64) {
        // SAFETY: as promised by the caller, and all VMs access these words as atomics.
        unsafe {
            self.added.write_volatile(self.added.read_volatile() + 1);
            AtomicU64::from_ptr(word as *mut u64).fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Checks any vCPU's page.
    ///
    /// # Safety
    /// It exists.
    unsafe fn read_any(&self, page: u64) {
        // SAFETY: as promised by the caller.
        let [first, last] = unsafe { self.words_of(page) };
        let last = last.load(Ordering::Acquire);
        let first = first.load(Ordering::Relaxed);
        for found in [last, first] {
            if found != counted(count_of(found), page) {
                report(INCONSISTENT, page, found);
            }
        }
        if first < last {
            report(INCONSISTENT, page, first);
        }
    }

    /// The words of a page that are written.
    ///
    /// # Safety
    /// It exists.
    unsafe fn words_of(&self, page: u64) -> [&AtomicU64; 2] {
        let start = self.memory + page * PAGE_BYTES;
        // SAFETY: the page exists, and all vCPUs access these words as atomics.
        [start, start + LAST_WORD]
            .map(|address| unsafe { AtomicU64::from_ptr(address as *mut u64) })
    }
}
