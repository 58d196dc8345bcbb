//! A vCPU's accesses to its share. Short loops, because what they cost counts as the benchmark's time.

use abi::pattern;
use core::ptr;

const PAGE_WORDS: usize = 4096 / size_of::<u64>();
/// Pages per word of a journal.
const PAGES: u64 = u64::BITS as u64;

/// A vCPU's part of the test memory and its journal.
#[derive(Debug)]
pub struct Share {
    start: *mut u64,
    journal: *mut u64,
    pages: u64,
    first_page: u64,
}

impl Share {
    /// `pages` pages at `start`, the first of which is page `first_page` of the test memory.
    ///
    /// # Safety
    /// This memory and that of the journal, a bit per page in whole words, belong to the caller for as long as the value
    /// lives.
    pub unsafe fn new(start: *mut u64, journal: *mut u64, pages: u64, first_page: u64) -> Self {
        Self {
            start,
            journal,
            pages,
            first_page,
        }
    }

    /// Writes to every page in order, and returns how many there are, and that nothing was read.
    pub fn write_all(&mut self, iteration: u64) -> [u64; 2] {
        self.clear_journal();
        let mut word = self.start;
        let mut value = pattern(iteration, self.first_page);
        let mut page = 0;
        while page < self.pages {
            let end = self.pages.min(page + PAGES);
            let at = page / PAGES;
            let mut bits = 0;
            while page < end {
                // SAFETY: the page lies in the share.
                unsafe { word.write_volatile(value) };
                bits |= 1 << (page % PAGES);
                word = word.wrapping_add(PAGE_WORDS);
                value += 1;
                page += 1;
            }
            // SAFETY: the journal has a bit for every page.
            unsafe { self.journal.add(at as usize).write_volatile(bits) };
        }
        [self.pages, 0]
    }

    /// Makes as many accesses as there are pages, and returns how many pages were written, and how many of the accesses read.
    pub fn access(&mut self, iteration: u64, choice: &mut Choice) -> [u64; 2] {
        self.clear_journal();
        let (mut written, mut read) = (0, 0);
        for turn in 0..self.pages {
            let page = choice.page(turn, self.pages);
            let word = self.start.wrapping_add(page as usize * PAGE_WORDS);
            if !choice.is_write() {
                // SAFETY: the page lies in the share.
                unsafe { word.read_volatile() };
                read += 1;
                continue;
            }
            // SAFETY: the page lies in the share, and the journal has a bit for it.
            unsafe {
                word.write_volatile(pattern(iteration, self.first_page + page));
                let note = self.journal.add((page / PAGES) as usize);
                let (bits, bit) = (note.read_volatile(), 1 << (page % PAGES));
                note.write_volatile(bits | bit);
                written += u64::from(bits & bit == 0);
            }
        }
        [written, read]
    }

    fn clear_journal(&mut self) {
        // SAFETY: the journal has a bit for every page, in whole words.
        unsafe { ptr::write_bytes(self.journal, 0, self.pages.div_ceil(PAGES) as usize) };
    }
}

/// Which page is next, and whether it is written: a pseudo-random sequence of its own for each vCPU (xorshift64).
#[derive(Debug)]
pub struct Choice {
    write_percent: u64,
    is_random: bool,
    state: u64,
}

impl Choice {
    /// A sequence that depends on the seed and the vCPU.
    pub fn new(write_percent: u64, is_random: bool, seed: u64, index: usize) -> Self {
        // Any state but 0 will do; the odd factor keeps neighbours apart.
        let state = (seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1);
        Self {
            write_percent,
            is_random,
            state,
        }
    }

    /// Whether every page is written, in order.
    pub fn is_all(&self) -> bool {
        self.write_percent >= 100 && !self.is_random
    }

    fn page(&mut self, turn: u64, pages: u64) -> u64 {
        if self.is_random {
            self.below(pages)
        } else {
            turn
        }
    }

    fn is_write(&mut self) -> bool {
        match self.write_percent {
            0 => false,
            100.. => true,
            percent => self.below(100) < percent,
        }
    }

    /// A number below `bound`, which has at most 32 bits.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        ((self.state >> 32) * bound) >> 32
    }
}
