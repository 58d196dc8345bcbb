//! What a guest may ask of its memory: to give some up, and to have some populated ahead. Rightly, wrongly, and while others
//! use it.

use crate::calls::Random;
use crate::wrong;
use abi::{BALLOON, INVALID_PARAMETERS, NOT_BACKED, PREFAULT, SUCCESS};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use guest_runtime::{Tree, call, println, start_vcpu};

/// Where the guest's RAM begins.
const RAM: u64 = 0x4000_0000;
/// Memory that nothing else of the program uses: behind the image, before the device tree.
pub(crate) const START: u64 = RAM + (8 << 20);
const BYTES: u64 = 4 << 20;
const PAGE: u64 = 4096;
const PAGES: u64 = BYTES / PAGE;
const BLOCK: u64 = 2 << 20;
/// The end of the address space that guests get.
const TOP: u64 = 1 << 40;
/// Calls of the first vCPU while the others use the memory.
const CALLS: u32 = 3000;
/// The word of a page that nobody writes.
const UNTOUCHED: u64 = PAGE / 2;

/// A call, with what x3 holds.
type Asked = (u32, u64);

const READ: Asked = (PREFAULT, 0);
const WRITE: Asked = (PREFAULT, 1);
const GIVE_UP: Asked = (BALLOON, 0);

/// Every wrong call, which changes nothing, and some right ones.
pub fn probe(tree: Tree) {
    let ram_end = RAM + tree.memory_at(RAM);
    fill(0..PAGES, 1);
    for asked in [READ, WRITE, GIVE_UP] {
        refuse(asked, ram_end);
    }
    for access in [2, 1 << 32, u64::MAX] {
        expect((PREFAULT, access), START, PAGE, INVALID_PARAMETERS);
    }
    check(0..PAGES, 1);
    for asked in [READ, WRITE] {
        all_of(asked, START, BYTES);
        all_of(asked, RAM, ram_end - RAM);
        check(0..PAGES, 1);
    }
    give_up();
    println!("giving up and populating memory: done");
}

/// Every range that is none, or isn't all the guest's.
fn refuse(asked: Asked, ram_end: u64) {
    for (start, bytes) in [
        (START, 0),
        (START + 1, PAGE),
        (START, PAGE - 1),
        (START + 8, PAGE),
        (START, PAGE + 8),
        (START, u64::MAX),
        (START, (u64::MAX - START + 1) & !(PAGE - 1)),
        (PAGE.wrapping_neg(), PAGE),
        (PAGE.wrapping_neg(), 2 * PAGE),
        (0, 1 << 63),
        (START, TOP),
        (TOP - PAGE, 2 * PAGE),
        (TOP, PAGE),
    ] {
        expect(asked, start, bytes, INVALID_PARAMETERS);
    }
    for (start, bytes) in [
        (0, PAGE),
        (0x1000, PAGE),
        (0x7000_0000, PAGE),
        (ram_end, PAGE),
        (ram_end - PAGE, 2 * PAGE),
        (RAM - PAGE, 2 * PAGE),
        (START, ram_end - START + PAGE),
        (START, TOP - START),
        (0, TOP),
    ] {
        expect(asked, start, bytes, NOT_BACKED);
    }
}

/// What is given up holds zeros, what is next to it holds what it held, and it can be used again.
fn give_up() {
    for page in (0..PAGES).step_by(3) {
        all_of(GIVE_UP, START + page * PAGE, PAGE);
    }
    for page in 0..PAGES {
        check(page..page + 1, u64::from(page % 3 != 0));
    }
    fill(0..PAGES, 2);
    check(0..PAGES, 2);
    all_of(GIVE_UP, START, BYTES);
    check(0..PAGES, 0);
    // A second time, when there is nothing to give.
    all_of(GIVE_UP, START, BYTES);
    all_of(WRITE, START, BYTES);
    check(0..PAGES, 0);
    fill(0..PAGES, 3);
    check(0..PAGES, 3);
}

fn expect((function, argument): Asked, start: u64, bytes: u64, error: u64) {
    let [status, done, ..] = call(function, [start, bytes, argument]);
    if (status, done) != (error, 0) {
        wrong(format_args!(
            "call {function:#x} for {start:#x} with {bytes:#x}, {argument}: {status:#x}, {done:#x}"
        ));
    }
}

/// Calls until all of a range is done, and checks that each call does something, but not too much.
fn all_of((function, argument): Asked, mut start: u64, mut bytes: u64) {
    while bytes != 0 {
        let [status, done, ..] = call(function, [start, bytes, argument]);
        let is_some = done != 0 && done.is_multiple_of(PAGE) && done <= bytes.min(BLOCK);
        if status != SUCCESS || !is_some {
            wrong(format_args!(
                "call {function:#x} for {start:#x} with {bytes:#x}: {status:#x}, {done:#x}"
            ));
        }
        start += done;
        bytes -= done;
    }
}

/// A word of the memory.
fn word(page: u64, offset: u64) -> &'static AtomicU64 {
    let address = START + page % PAGES * PAGE + offset % PAGE;
    // SAFETY: it is the guest's memory, and used by nothing but these words.
    unsafe { &*core::ptr::with_exposed_provenance(address as usize) }
}

/// Writes the first and the last word of pages: `round`, or zeros for round 0.
fn fill(pages: core::ops::Range<u64>, round: u64) {
    for page in pages {
        for offset in [0, PAGE - 8] {
            word(page, offset).store(value(page, round), Ordering::Relaxed);
        }
    }
}

fn check(pages: core::ops::Range<u64>, round: u64) {
    for page in pages {
        for offset in [0, PAGE - 8] {
            let found = word(page, offset).load(Ordering::Relaxed);
            if found != value(page, round) {
                wrong(format_args!(
                    "page {page} of round {round} holds {found:#x}"
                ));
            }
        }
    }
}

const fn value(page: u64, round: u64) -> u64 {
    if round == 0 { 0 } else { round << 32 | page }
}

static IS_RACING: AtomicBool = AtomicBool::new(false);
static IS_OVER: AtomicBool = AtomicBool::new(false);
/// vCPUs that use the memory, or will.
static RACING: AtomicUsize = AtomicUsize::new(0);

/// Whether this is what vCPUs are started for.
pub fn is_racing() -> bool {
    IS_RACING.load(Ordering::Acquire)
}

/// The first vCPU gives up and populates memory that the others read and write. Each of their words holds what its writer has
/// written last, or zeros; never anything else.
pub fn race(tree: Tree) {
    IS_RACING.store(true, Ordering::Release);
    let vcpus = tree.vcpus();
    RACING.store(vcpus - 1, Ordering::Release);
    for vcpu in 1..vcpus {
        if let Err(error) = start_vcpu(vcpu) {
            wrong(format_args!("vCPU {vcpu} can't be started: {error}"));
        }
    }
    let mut random = Random::new(1);
    for _ in 0..CALLS {
        let page = random.next() % PAGES;
        let pages = 1 + random.next() % 64.min(PAGES - page);
        let asked = match random.next() % 4 {
            0 => READ,
            1 => WRITE,
            _ => GIVE_UP,
        };
        all_of(asked, START + page * PAGE, pages * PAGE);
    }
    IS_OVER.store(true, Ordering::Release);
    while RACING.load(Ordering::Acquire) != 0 {
        core::hint::spin_loop();
    }
    all_of(GIVE_UP, START, BYTES);
    check(0..PAGES, 0);
    fill(0..PAGES, 4);
    check(0..PAGES, 4);
    println!("{vcpus} vCPUs: done");
}

/// What the other vCPUs do.
pub fn racer(index: usize) -> ! {
    let own = index as u64;
    let mut random = Random::new(own + 1);
    let mut count = 0;
    while !IS_OVER.load(Ordering::Acquire) {
        count += 1;
        let page = random.next() % PAGES;
        let other = random.next() % 16;
        let written = tag(own, page, count);
        word(page, own * 8).store(written, Ordering::Relaxed);
        let found = word(page, own * 8).load(Ordering::Relaxed);
        let its = word(page, other * 8).load(Ordering::Relaxed);
        let untouched = word(page, UNTOUCHED).load(Ordering::Relaxed);
        let is_its = its == 0 || its & !COUNT == tag(other, page, 0);
        if found != 0 && found != written || !is_its || untouched != 0 {
            wrong(format_args!(
                "page {page}, vCPU {own}: {found:#x} for {written:#x}, {its:#x} of {other}, {untouched:#x}"
            ));
        }
    }
    RACING.fetch_sub(1, Ordering::AcqRel);
    guest_runtime::turn_off()
}

/// How often a writer has written, of a word that it tags with its number and the page's.
const COUNT: u64 = (1 << 40) - 1;

const fn tag(writer: u64, page: u64, count: u64) -> u64 {
    (writer + 1) << 56 | page << 40 | count & COUNT
}
