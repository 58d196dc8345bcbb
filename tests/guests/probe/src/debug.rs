//! Watchpoints are taken by the vCPU that has set them, also after it has slept, and by no other; a vCPU that starts again has none.

use crate::interrupts::{self, write_register};
use crate::smp::TwoLives;
use crate::wrong;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_runtime::{Tree, expect_exception, println, read_register};
use smccc::Hvc;

/// ESR_EL1.EC of a watchpoint at EL1.
const WATCHPOINT: u64 = 0x35;
/// MDSCR_EL1.MDE and KDE.
const ON: u64 = 1 << 15 | 1 << 13;
/// DBGWCR0_EL1: loads and stores of these eight bytes at EL1.
const CONTROL: u64 = 0xff << 5 | 0b11 << 3 | 0b01 << 1 | 1;

static WATCHED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

pub static LIVES: TwoLives = TwoLives::new(check);

/// Checks it on two vCPUs, the second in two lives.
pub fn probe(tree: Tree) {
    interrupts::begin(tree);
    let watchpoints = 1 + (read_register!("id_aa64dfr0_el1") >> 20 & 0xf);
    write_register!("dbgwcr0_el1", CONTROL);
    if read_register!("dbgwcr0_el1") == 0 {
        println!("debug: hidden");
        guest_runtime::power_off()
    }
    write_register!("dbgwcr0_el1", 0);
    LIVES.run();
    println!("debug: {watchpoints} watchpoints, all as it should be");
    guest_runtime::power_off()
}

fn check(own: usize) {
    let left = [
        read_register!("mdscr_el1"),
        read_register!("dbgwvr0_el1"),
        read_register!("dbgwcr0_el1"),
        read_register!("oslsr_el1") & 0b10,
    ];
    if left != [0; 4] {
        wrong(format_args!("vCPU {own} starts with {left:x?}"));
    }
    let address = &raw const WATCHED[own] as u64;
    write_register!("dbgwvr0_el1", address);
    write_register!("dbgwcr0_el1", CONTROL);
    expect(own, own, "before they are on", false);
    write_register!("mdscr_el1", ON);
    for _ in 0..3 {
        expect(own, own, "its own", true);
        expect(own, 1 - own, "the other's", false);
        let _ = smccc::psci::version::<Hvc>();
        interrupts::sleep();
    }
    write_register!("oslar_el1", 1);
    expect(own, own, "while the OS lock is locked", false);
    if read_register!("mdscr_el1") != ON {
        wrong(format_args!("the OS lock hides MDSCR_EL1"));
    }
    write_register!("oslar_el1", 0);
    expect(own, own, "after that", true);
    // The second life finds nothing of it.
}

/// Accesses the watched variable of vCPU `other` on vCPU `own`.
fn expect(own: usize, other: usize, when: &str, is_expected: bool) {
    let exception = expect_exception(|| {
        // SAFETY: PSTATE.D: debug exceptions aren't masked, and this one is expected.
        unsafe { asm!("msr daifclr, #8", "isb", options(nostack, preserves_flags)) };
        WATCHED[other].load(Ordering::Relaxed);
        // SAFETY: as before.
        unsafe { asm!("msr daifset, #8", "isb", options(nostack, preserves_flags)) };
    });
    let class = exception.map(|taken| taken.class());
    if class != is_expected.then_some(WATCHPOINT) {
        wrong(format_args!(
            "vCPU {own}, {when}: watchpoint expected: {is_expected}, {exception:x?}"
        ));
    }
}
