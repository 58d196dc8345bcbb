//! Loops whose time on a machine with many CPUs is known beforehand, to test a clock by: the command line names the loop and
//! how often each CPU goes round it. All CPUs do at the same time; how long that took comes out on the serial port.
//!
//! Unlike the other guests this one runs on QEMU's `virt` itself, at EL1: nothing between it and the clock.

#![no_std]
#![no_main]

mod serial;

use core::arch::asm;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use guest_runtime::{Tree, power_off, read_register, rest, start_vcpu};

guest_runtime::entry!(main, secondary);

/// Rounds of work within the lock. Long beside taking it: a CPU that comes late on the host takes a lock that is free by then
/// at a simulated time at which it wasn't, and this is rare if the lock is hardly ever free.
const LOCKED_ROUNDS: u64 = 60;
/// Rounds of work until all CPUs are at about the same time, some turns of the simulated clock: while the emulator starts them,
/// none waits for another, and on a busy host one may be far ahead.
const TOGETHER_ROUNDS: u64 = 200;
const NANOSECONDS: u64 = 1_000_000_000;

/// What each CPU does again and again.
#[derive(Clone, Copy)]
enum Loop {
    /// Adds in its registers.
    Private,
    /// The same under one lock that all take.
    Locked,
    /// Adds to one counter that all add to.
    Counter,
    /// Invalidates the TLBs of all CPUs.
    Broadcast,
    /// Invalidates its own TLB.
    Local,
}

/// A word on a cache line of its own.
#[repr(align(64))]
struct Apart<T>(T);

static CHOSEN: Apart<AtomicUsize> = Apart(AtomicUsize::new(0));
static ROUNDS: Apart<AtomicU64> = Apart(AtomicU64::new(0));
static READY: Apart<AtomicUsize> = Apart(AtomicUsize::new(0));
static MAY_BEGIN: Apart<AtomicBool> = Apart(AtomicBool::new(false));
static DONE: Apart<AtomicUsize> = Apart(AtomicUsize::new(0));
static LOCK: Apart<AtomicBool> = Apart(AtomicBool::new(false));
static COUNTER: Apart<AtomicU64> = Apart(AtomicU64::new(0));

const LOOPS: [(&str, Loop); 5] = [
    ("private", Loop::Private),
    ("locked", Loop::Locked),
    ("counter", Loop::Counter),
    ("broadcast", Loop::Broadcast),
    ("local", Loop::Local),
];

fn main(tree: Tree) -> ! {
    let mut words = tree.bootargs().split_whitespace();
    let name = words.next().unwrap_or("");
    let chosen = LOOPS.iter().position(|(known, _)| *known == name);
    let rounds = words.next().and_then(|word| word.parse().ok());
    let (Some(chosen), Some(rounds)) = (chosen, rounds) else {
        serial::print(format_args!("expected a loop and a number"));
        power_off();
    };
    CHOSEN.0.store(chosen, Ordering::Relaxed);
    ROUNDS.0.store(rounds, Ordering::Relaxed);
    let cpus = tree.vcpus();
    for cpu in 1..cpus {
        if start_vcpu(cpu).is_err() {
            serial::print(format_args!("CPU {cpu} can't be started"));
            power_off();
        }
    }
    while READY.0.load(Ordering::Acquire) != cpus - 1 {
        spin_loop();
    }
    work(TOGETHER_ROUNDS);
    let began = now();
    MAY_BEGIN.0.store(true, Ordering::Release);
    go_round();
    while DONE.0.load(Ordering::Acquire) != cpus {
        spin_loop();
    }
    let ended = now();
    let nanoseconds = (ended - began) * NANOSECONDS / read_register!("cntfrq_el0");
    serial::print(format_args!("{name} {cpus} {nanoseconds}"));
    power_off()
}

fn secondary(_: usize) -> ! {
    READY.0.fetch_add(1, Ordering::AcqRel);
    while !MAY_BEGIN.0.load(Ordering::Acquire) {
        spin_loop();
    }
    go_round();
    rest()
}

/// What is measured, on one CPU.
fn go_round() {
    let rounds = ROUNDS.0.load(Ordering::Relaxed);
    match LOOPS[CHOSEN.0.load(Ordering::Relaxed)].1 {
        Loop::Private => work(rounds),
        Loop::Locked => (0..rounds).for_each(|_| locked()),
        Loop::Counter => (0..rounds).for_each(|_| count()),
        Loop::Broadcast => (0..rounds).for_each(|_| invalidate_everywhere()),
        Loop::Local => (0..rounds).for_each(|_| invalidate_locally()),
    }
    DONE.0.fetch_add(1, Ordering::AcqRel);
}

/// 52 instructions for each round: 50 additions, and two that count.
fn work(rounds: u64) {
    // SAFETY: additions to a register.
    unsafe {
        asm!(
            "2:",
            ".rept 50",
            "add {sum}, {sum}, #1",
            ".endr",
            "subs {rounds}, {rounds}, #1",
            "b.ne 2b",
            sum = inout(reg) 0_u64 => _,
            rounds = inout(reg) rounds => _,
            options(nomem, nostack),
        );
    }
}

/// Some work under the lock.
fn locked() {
    while LOCK.0.swap(true, Ordering::Acquire) {
        while LOCK.0.load(Ordering::Relaxed) {
            spin_loop();
        }
    }
    work(LOCKED_ROUNDS);
    LOCK.0.store(false, Ordering::Release);
}

/// Adds to the counter by one instruction (FEAT_LSE), which no other CPU can make repeat itself.
fn count() {
    // SAFETY: the counter is a word that lives for ever.
    unsafe {
        asm!(
            ".arch_extension lse",
            "stadd {one}, [{counter}]",
            one = in(reg) 1_u64,
            counter = in(reg) COUNTER.0.as_ptr(),
            options(nostack, preserves_flags),
        );
    }
}

fn invalidate_everywhere() {
    // SAFETY: the tables don't change.
    unsafe {
        asm!(
            "tlbi vmalle1is",
            "dsb ish",
            options(nostack, preserves_flags)
        )
    };
}

fn invalidate_locally() {
    // SAFETY: as above.
    unsafe { asm!("tlbi vmalle1", "dsb nsh", options(nostack, preserves_flags)) };
}

fn now() -> u64 {
    // SAFETY: a barrier changes nothing.
    unsafe { asm!("isb", options(nomem, nostack, preserves_flags)) };
    read_register!("cntvct_el0")
}
