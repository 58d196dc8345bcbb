//! What a hypervisor costs a guest, operation by operation: calls, accesses to the interrupt controller, interrupts.
//!
//! The same program runs under Parvisor, under Linux's KVM, and on the machine itself. It expects QEMU's `virt` with a GICv3,
//! of whatever hypervisor, and finds it in the device tree. The command line names what is done:
//!
//! | word | what |
//! |---|---|
//! | `costs=N` | every operation N times; a line `@micro NAME NANOSECONDS` for each |
//! | `gic=N` | N reads of a register of the interrupt controller and N LPIs, without a line in between, for those who trace exits |
//! | `ticks=N` | N interrupts of its timer, for those who count exits |
//!
//! Ends by `@micro end`, or by a line that says what is wrong, and turns itself off.

#![no_std]
#![no_main]

mod gic;
mod its;
mod loops;
mod vectors;

use core::fmt::Arguments;
use guest_runtime::{Tree, console, power_off, println, read_register};

guest_runtime::entry!(main, loops::secondary);

const NANOSECONDS: u128 = 1_000_000_000;

fn main(tree: Tree) -> ! {
    // By the machine's own clock, where a guest sees that: on simulated time the machine started at 0.
    let began = read_register!("cntpct_el0");
    let Some(uart) = tree.registers("arm,pl011") else {
        power_off();
    };
    // SAFETY: the device tree says that it is there.
    unsafe { console::use_uart(uart) };
    gic::find(tree);
    vectors::set_up(0);
    gic::set_up(0);
    let word = tree.bootargs().trim();
    let number = |name| word.strip_prefix(name)?.parse().ok();
    if let Some(times) = number("costs=") {
        println!("@micro start {}", nanoseconds(began, 1));
        loops::costs(times, tree.vcpus(), uart);
    } else if let Some(times) = number("gic=") {
        loops::gic(times, tree.vcpus());
    } else if let Some(count) = number("ticks=") {
        loops::ticks(count);
    } else {
        wrong(format_args!("what is {word:?}?"));
    }
    println!("@micro end");
    power_off()
}

/// Ticks of the counter as nanoseconds each, of so many.
fn nanoseconds(ticks: u64, count: u64) -> u64 {
    let frequency = u128::from(read_register!("cntfrq_el0")).max(1);
    (u128::from(ticks) * NANOSECONDS / frequency / u128::from(count.max(1))) as u64
}

/// Says what is wrong, and ends it all.
fn wrong(what: Arguments<'_>) -> ! {
    println!("@micro wrong: {what}");
    power_off()
}
