//! The guest of the dirty-log benchmark: every vCPU writes to its share of the test memory as the harness tells it to, and
//! notes in its journal which pages it wrote. And that of the stress run, and of the runs in which what backs its memory
//! changes.
//!
//! The device tree tells how large the journals must be, before the harness tells the rest. Shares and journals are each
//! touched by their own vCPU only, and by the harness while all vCPUs wait.

#![no_std]
#![no_main]

mod accesses;
mod backing;
mod stress;

use abi::{BENCH_HELLO, BENCH_NEXT, BENCH_PARAMS, SUCCESS, params, step};
use accesses::{Choice, Share};
use backing::Part;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_runtime::{MAX_VCPUS, Tree, call, println, report, start_vcpu};
use stress::Stress;

guest_runtime::entry!(main, run);

/// Where the test memory begins.
const TEST_MEMORY: u64 = 0x8000_0000;
const PAGE_BYTES: u64 = 4096;
const FAILURE: u64 = 16;

unsafe extern "C" {
    /// The end of the image, where the journals begin. Only its address counts.
    #[link_name = "__image_end"]
    static JOURNALS: UnsafeCell<u64>;
}

/// What vCPU 0 has been told, for all vCPUs. Written before the others start.
struct Plan {
    base: AtomicU64,
    bytes_per_vcpu: AtomicU64,
    journal_bytes: AtomicU64,
    write_percent: AtomicU64,
    kind: AtomicU64,
    seed: AtomicU64,
    vcpus: AtomicU64,
}

static PLAN: Plan = Plan {
    base: AtomicU64::new(0),
    bytes_per_vcpu: AtomicU64::new(0),
    journal_bytes: AtomicU64::new(0),
    write_percent: AtomicU64::new(0),
    kind: AtomicU64::new(0),
    seed: AtomicU64::new(0),
    vcpus: AtomicU64::new(0),
};

fn main(tree: Tree) -> ! {
    let vcpus = announce(tree);
    for index in 1..vcpus {
        if let Err(error) = start_vcpu(index) {
            println!("vCPU {index} can't be started: {error}");
            report(FAILURE, index as u64, 0);
        }
    }
    run(0)
}

/// Tells the harness where the journals are, learns what to do, and returns the number of vCPUs.
fn announce(tree: Tree) -> usize {
    let pages = (tree.memory_at(TEST_MEMORY) / PAGE_BYTES).div_ceil(tree.vcpus().max(1) as u64);
    let [params, write_percent, kind, seed] = call(BENCH_PARAMS, [0; 3]);
    let (bits_per_page, more_words) = match kind & params::STRESS {
        0 => (1, 0),
        _ => (u64::from(u32::BITS), 1),
    };
    let journal_words = (pages * bits_per_page).div_ceil(u64::BITS.into()) + more_words;
    let journal_bytes = journal_words * 8;
    let [hello, vcpus, bytes_per_vcpu, base] = call(BENCH_HELLO, [journals(), journal_bytes, 0]);
    if hello != SUCCESS || params != SUCCESS || vcpus > MAX_VCPUS as u64 {
        println!("not the benchmark's hypervisor: {hello:#x}, {params:#x}, {vcpus} vCPUs");
        report(FAILURE, hello, params);
    }
    PLAN.base.store(base, Ordering::Relaxed);
    PLAN.bytes_per_vcpu.store(bytes_per_vcpu, Ordering::Relaxed);
    PLAN.journal_bytes.store(journal_bytes, Ordering::Relaxed);
    PLAN.write_percent.store(write_percent, Ordering::Relaxed);
    PLAN.kind.store(kind, Ordering::Relaxed);
    PLAN.seed.store(seed, Ordering::Relaxed);
    PLAN.vcpus.store(vcpus, Ordering::Relaxed);
    vcpus as usize
}

/// What every vCPU does to the end.
fn run(index: usize) -> ! {
    let bytes = PLAN.bytes_per_vcpu.load(Ordering::Relaxed);
    let base = PLAN.base.load(Ordering::Relaxed);
    let first = base + index as u64 * bytes;
    let journal_bytes = PLAN.journal_bytes.load(Ordering::Relaxed);
    let journal = journals() + index as u64 * journal_bytes;
    let pages = bytes / PAGE_BYTES;
    // SAFETY: the harness gave this vCPU this part of the test memory, and accepted that its journal be here; both are
    // mapped, and no other vCPU has them.
    let mut share = unsafe {
        Share::new(
            first as *mut u64,
            journal as *mut u64,
            pages,
            index as u64 * pages,
        )
    };
    let mut stress = Stress {
        memory: base,
        index: index as u64,
        vcpus: PLAN.vcpus.load(Ordering::Relaxed),
        share: pages,
        journal: journal as *mut u32,
        added: (journal + journal_bytes - 8) as *mut u64,
    };
    let seed = PLAN.seed.load(Ordering::Relaxed);
    let mut choice = Choice::new(
        PLAN.write_percent.load(Ordering::Relaxed),
        PLAN.kind.load(Ordering::Relaxed) & params::RANDOM != 0,
        seed,
        index,
    );
    let mut done = [0; 2];
    loop {
        let [code, iteration, from, count] = call(BENCH_NEXT, [done[0], done[1], 0]);
        let part = Part::of_share(base, index as u64 * pages, pages, from, count);
        done = match code {
            step::POPULATE => share.write_all(0),
            step::DIRTY if choice.is_all() => share.write_all(iteration),
            step::DIRTY => share.access(iteration, &mut choice),
            // SAFETY: the harness gives every vCPU this step or none.
            step::STRESS => unsafe { stress.step(&mut choice, (from, count)) },
            // SAFETY: the part lies in the share, which is this vCPU's alone.
            step::WRITE..=step::POPULATE_AHEAD => unsafe { part.step(code, iteration, seed) },
            step::STOP if index == 0 => guest_runtime::power_off(),
            step::STOP => guest_runtime::turn_off(),
            unknown => report(FAILURE, unknown, iteration),
        };
    }
}

/// The address of the journals.
fn journals() -> u64 {
    (&raw const JOURNALS) as u64
}
