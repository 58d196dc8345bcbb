//! The load of a Linux guest whose memory is logged: on each CPU a process that writes to random places of its memory as fast as
//! it can. When a line is typed all of them stop, and check that what they wrote is still there.
//!
//! A program for Linux without a library: `load LINE` prints LINE when all of them write. It uses a quarter of the machine's
//! memory.

#![no_std]
#![no_main]

mod kernel;

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use kernel::{MOST_CPUS, Sharing};

const PAGE: usize = 4096;
/// Each page has stamps at regular distances.
const STAMPS: usize = 8;
/// Writes between two looks whether to stop.
const AT_ONCE: u64 = 4096;
/// What part of the machine's memory is written.
const PART: u64 = 4;

/// What all processes share.
struct Shared {
    /// How many have written to all of their memory once.
    ready: AtomicU32,
    /// Whether they are to stop.
    over: AtomicU32,
    /// How often they have written.
    writes: AtomicU64,
}

/// A line of text, cut if it is too long.
struct Line {
    bytes: [u8; 160],
    length: usize,
}

impl Line {
    /// Prints a line as a whole, so that none of another process comes in between.
    fn print(text: fmt::Arguments<'_>) {
        let mut line = Self {
            bytes: [0; 160],
            length: 0,
        };
        // A line that is cut is printed all the same.
        let _ = writeln!(line, "{text}");
        let bytes = &line.bytes[..line.length];
        kernel::print(core::str::from_utf8(bytes).unwrap_or("\n"));
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.length..];
        let count = text.len().min(room.len());
        room[..count].copy_from_slice(&text.as_bytes()[..count]);
        self.length += count;
        Ok(())
    }
}

/// Runs the load; gives the exit status.
fn run(line: &str) -> u8 {
    let set = kernel::cpus();
    let cpus = || (0..MOST_CPUS).filter(|cpu| set[cpu / 64] & 1 << (cpu % 64) != 0);
    let count = cpus().count().max(1);
    let pages = (kernel::memory() / PART) as usize / PAGE / count;
    let Some(shared) = kernel::map(PAGE, Sharing::Shared) else {
        return failed("no memory to share");
    };
    // SAFETY: the memory is large enough and zeros, and stays; all of it is atomic.
    let shared: &'static Shared = unsafe { shared.cast().as_ref() };
    for (number, cpu) in cpus().enumerate() {
        match kernel::fork() {
            Some(true) => {
                kernel::stay_on(cpu);
                kernel::exit(write(shared, number as u64, pages.max(1)));
            }
            Some(false) => {}
            None => return failed("no process"),
        }
    }
    while (shared.ready.load(Ordering::Acquire) as usize) < count {
        kernel::rest();
    }
    Line::print(format_args!("{line}"));
    kernel::wait_for_input();
    shared.over.store(1, Ordering::Release);
    let well = (0..count).filter(|_| kernel::wait()).count();
    let writes = shared.writes.load(Ordering::Acquire);
    let mib = (pages * count * PAGE) >> 20;
    if well < count {
        return failed("not all that was written is there");
    }
    Line::print(format_args!(
        "load: {count} processes wrote {writes} times to {mib} MiB, and all of it is there"
    ));
    0
}

fn failed(why: &str) -> u8 {
    Line::print(format_args!("load: {why}"));
    1
}

/// Writes until it is to stop, and checks what it has written; gives the exit status.
fn write(shared: &Shared, number: u64, pages: usize) -> u8 {
    let count = pages * STAMPS;
    let (stamps, times) = (
        kernel::map(pages * PAGE, Sharing::Private),
        kernel::map(count * size_of::<u32>(), Sharing::Private),
    );
    let (Some(stamps), Some(times)) = (stamps, times) else {
        // Nobody waits for this one for ever.
        shared.ready.fetch_add(1, Ordering::Release);
        return failed("no memory to write to");
    };
    let stamp = |index: usize| {
        // SAFETY: a word of this process's memory, which is zeros at first, stays, and is used in no other way.
        unsafe {
            stamps
                .byte_add(index * (PAGE / STAMPS))
                .cast::<AtomicU64>()
                .as_ref()
        }
    };
    let time = |index: usize| {
        // SAFETY: as above.
        unsafe { times.cast::<AtomicU32>().add(index).as_ref() }
    };
    let mark = |index: usize| {
        let next = time(index).load(Ordering::Relaxed).wrapping_add(1);
        time(index).store(next, Ordering::Relaxed);
        stamp(index).store(value(number, index, next), Ordering::Relaxed);
    };
    (0..count).for_each(mark);
    shared.ready.fetch_add(1, Ordering::Release);
    let (mut random, mut writes) = (number + 1, 0);
    while shared.over.load(Ordering::Acquire) == 0 {
        for _ in 0..AT_ONCE {
            // xorshift64.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            mark(((random >> 11) % count as u64) as usize);
        }
        writes += AT_ONCE;
    }
    shared.writes.fetch_add(writes, Ordering::Release);
    for index in 0..count {
        let expected = value(number, index, time(index).load(Ordering::Relaxed));
        let found = stamp(index).load(Ordering::Relaxed);
        if found != expected {
            let page = index / STAMPS;
            Line::print(format_args!(
                "load: page {page} of process {number} holds {found:#x}, not {expected:#x}"
            ));
            return 1;
        }
    }
    0
}

/// What a process writes to a place the next time.
fn value(number: u64, index: usize, time: u32) -> u64 {
    let mixed = number << 56 ^ (index as u64) << 24 ^ u64::from(time);
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    kernel::exit(101)
}
