//! The steps of the runs in which what backs memory changes: a part of a vCPU's share is written or read, and checked against
//! what it must hold, or given up, or populated ahead.
//!
//! Each part is one vCPU's alone. Whatever the hypervisor does to what backs it must not be seen here.

use crate::PAGE_BYTES;
use abi::{BALLOON, INCONSISTENT, PREFAULT, SUCCESS, content, pattern, step};
use guest_runtime::{call, report};

/// What PREFAULT takes for memory that is going to be written.
const FOR_WRITES: u64 = 1;
const PAGE_WORDS: u64 = PAGE_BYTES / size_of::<u64>() as u64;

/// Some pages of a vCPU's share.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Where the test memory begins.
    memory: u64,
    /// The first page, counted from there.
    first: u64,
    pages: u64,
}

impl Part {
    /// So many pages from page `from` of a share on, which begins at page `first_page` of the test memory; what lies beyond the
    /// share isn't part of it.
    pub fn of_share(memory: u64, first_page: u64, share: u64, from: u64, count: u64) -> Self {
        let from = from.min(share);
        Self {
            memory,
            first: first_page + from,
            pages: count.min(share - from),
        }
    }

    /// Does one of the steps from [`step::WRITE`] to [`step::POPULATE_AHEAD`], and returns how many pages were written, and how
    /// many read.
    ///
    /// # Safety
    /// The memory is there, and nobody else uses it.
    pub unsafe fn step(self, code: u64, iteration: u64, seed: u64) -> [u64; 2] {
        match code {
            step::GIVE_UP => return self.call_for_all(BALLOON, 0),
            step::POPULATE_AHEAD => return self.call_for_all(PREFAULT, FOR_WRITES),
            _ => {}
        }
        for page in self.first..self.first + self.pages {
            let start = (self.memory + page * PAGE_BYTES) as *mut u64;
            // SAFETY: as the caller promises.
            unsafe {
                match code {
                    step::WRITE => start.write_volatile(pattern(iteration, page)),
                    step::READ => expect(start, page, pattern(iteration, page)),
                    step::READ_ZEROS => expect(start, page, 0),
                    step::FILL => each_word(start, page, iteration, seed, |word, value| {
                        word.write_volatile(value)
                    }),
                    _ => each_word(start, page, iteration, seed, |word, value| {
                        expect(word, page, value)
                    }),
                }
            }
        }
        match code {
            step::WRITE | step::FILL => [self.pages, 0],
            _ => [0, self.pages],
        }
    }

    /// Makes a call for the range until it has done all of it, and returns how many pages it was.
    fn call_for_all(self, function: u32, argument: u64) -> [u64; 2] {
        let (mut at, mut left) = (
            self.memory + self.first * PAGE_BYTES,
            self.pages * PAGE_BYTES,
        );
        while left != 0 {
            let [status, done, ..] = call(function, [at, left, argument]);
            if status != SUCCESS || done == 0 || done > left {
                report(crate::FAILURE, status, at);
            }
            at += done;
            left -= done;
        }
        [self.pages, 0]
    }
}

/// Calls `each` with every word of a page, and what it holds when it is filled for the `count`th time.
fn each_word(
    start: *mut u64,
    page: u64,
    count: u64,
    seed: u64,
    mut each: impl FnMut(*mut u64, u64),
) {
    let (first, more) = content::words(page, seed, count);
    let mut word = 0;
    while word < PAGE_WORDS {
        let mut value = first;
        for _ in 0..content::PERIOD.min(PAGE_WORDS - word) {
            each(start.wrapping_add(word as usize), value);
            value = value.wrapping_add(more);
            word += 1;
        }
    }
}

/// Checks a word.
///
/// # Safety
/// It is there.
unsafe fn expect(word: *const u64, page: u64, expected: u64) {
    // SAFETY: as the caller promises.
    let found = unsafe { word.read_volatile() };
    if found != expected {
        report(INCONSISTENT, page, found);
    }
}
