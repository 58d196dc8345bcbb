//! The performance monitors count what the vCPU that has set them does, and nothing that the hypervisor does for it; their overflow
//! is an interrupt, and nothing of one life of a vCPU is there in its next.

use crate::interrupts::{self, NONE, write_register};
use crate::smp::TwoLives;
use crate::wrong;
use core::arch::asm;
use guest_runtime::{Tree, expect_exception, println, read_register};
use smccc::Hvc;

/// The interrupt, a PPI.
const OVERFLOW: u32 = 23;
const UNKNOWN: u64 = 0;
/// PMCR_EL0: E, D, X, DP, LP.
const ENABLE: u64 = 1;
const DISABLE_PROHIBITED: u64 = 1 << 5;
const LONG_EVENTS: u64 = 1 << 7;
const CONTROLS: u64 = ENABLE | 0b11 << 3 | DISABLE_PROHIBITED | LONG_EVENTS;
/// PMUv3p5: 64 bits.
const V3P5: u64 = 6;
/// Events: SW_INCR, INST_RETIRED, CPU_CYCLES.
const SOFTWARE: u64 = 0;
const INSTRUCTIONS: u64 = 8;
const CYCLES: u64 = 0x11;
/// `PMEVTYPER<n>_EL0`.NSH: at EL2 too.
const AT_EL2: u64 = 1 << 27;
const CYCLE_COUNTER: u64 = 1 << 31;

const CALLS: u64 = 200;
const SLEEPS: u64 = 5;
/// Much less than a call takes at EL2.
const MOST_EACH_CALL: u64 = 100;
/// A tenth of a millisecond at 1 GHz.
const MOST_EACH_SLEEP: u64 = 100_000;
const LOOPS: u64 = 10_000;
const SOON: u64 = 5_000;

pub static LIVES: TwoLives = TwoLives::new(check);

fn version() -> u64 {
    read_register!("id_aa64dfr0_el1") >> 8 & 0xf
}

/// Checks it on two vCPUs, the second in two lives; or `exactly`, on one.
pub fn probe(tree: Tree, arguments: &str) {
    interrupts::begin(tree);
    if version() == 0 {
        hidden();
        println!("pmu: hidden");
        guest_runtime::power_off()
    }
    let counted = match arguments {
        // An emulator that counts instructions counts those of all vCPUs as one, so no other is on; and no overflow interrupts it.
        "exactly" => {
            count_own();
            "instructions and cycles"
        }
        _ => {
            LIVES.run();
            "increments and overflows"
        }
    };
    println!("pmu: version {}, {counted}, all as it should be", version());
    guest_runtime::power_off()
}

/// They are undefined.
fn hidden() {
    let attempts: [fn() -> u64; 3] = [
        || read_register!("pmcr_el0"),
        || read_register!("pmccntr_el0"),
        || read_register!("pmevcntr0_el0"),
    ];
    for attempt in attempts {
        let exception = expect_exception(|| {
            core::hint::black_box(attempt());
        });
        if exception.is_none_or(|taken| taken.class() != UNKNOWN) {
            wrong(format_args!("there is no PMU, but: {exception:x?}"));
        }
    }
}

fn check(own: usize) {
    starts_with_nothing(own);
    interrupts::enable_private(own, OVERFLOW);
    keeps_its_controls();
    counts_exactly();
    overflows(own);
    // The second life finds nothing of it.
    write_register!("pmcntenset_el0", CYCLE_COUNTER | 0b111);
    write_register!("pmintenset_el1", CYCLE_COUNTER | 0b111);
    write_register!("pmccfiltr_el0", AT_EL2);
    write_register!("pmuserenr_el0", 0b1111);
    write_register!("pmcr_el0", CONTROLS);
}

fn starts_with_nothing(own: usize) {
    let counters = read_register!("pmcr_el0") >> 11 & 0x1f;
    let left = [
        read_register!("pmcr_el0") & CONTROLS,
        read_register!("pmcntenset_el0"),
        read_register!("pmintenset_el1"),
        read_register!("pmovsset_el0"),
        read_register!("pmccntr_el0"),
        read_register!("pmccfiltr_el0"),
        read_register!("pmselr_el0"),
        read_register!("pmuserenr_el0"),
    ];
    if left != [0; 8] || counters == 0 {
        wrong(format_args!(
            "vCPU {own} starts with {left:x?}, {counters} counters"
        ));
    }
    for counter in 0..counters {
        write_register!("pmselr_el0", counter);
        let (value, kind) = (
            read_register!("pmxevcntr_el0"),
            read_register!("pmxevtyper_el0"),
        );
        if value != 0 || kind != 0 {
            wrong(format_args!(
                "vCPU {own}: counter {counter} starts with {value:#x}, {kind:#x}"
            ));
        }
        // For the next life.
        write_register!("pmxevcntr_el0", 1000 + counter);
        write_register!("pmxevtyper_el0", INSTRUCTIONS);
    }
}

fn keeps_its_controls() {
    for wanted in [0, DISABLE_PROHIBITED, 0] {
        write_register!("pmcr_el0", wanted);
        call_and_sleep();
        let found = read_register!("pmcr_el0") & CONTROLS;
        if found != wanted {
            wrong(format_args!("PMCR_EL0 is {found:#x}, not {wanted:#x}"));
        }
    }
}

fn call_and_sleep() {
    let _ = smccc::psci::version::<Hvc>();
    interrupts::sleep();
}

/// Of what is counted by hand nothing is lost, and counters are as wide as the version says.
fn counts_exactly() {
    let start: u64 = 0xffff_fff0;
    let wide = version() >= V3P5;
    write_register!("pmevtyper0_el0", SOFTWARE);
    write_register!("pmevcntr0_el0", start);
    write_register!("pmovsclr_el0", u64::from(u32::MAX));
    write_register!("pmcntenset_el0", 1);
    write_register!("pmcr_el0", ENABLE | if wide { LONG_EVENTS } else { 0 });
    for count in 1..=2 * SLEEPS * 4 {
        write_register!("pmswinc_el0", 1);
        if count % 4 == 0 {
            call_and_sleep();
        }
        let expected = match wide {
            true => start + count,
            false => u64::from((start + count) as u32),
        };
        let found = read_register!("pmevcntr0_el0");
        let overflowed = read_register!("pmovsset_el0") & 1 != 0;
        let is_over = start + count > u32::MAX.into() && !wide;
        if (found, overflowed) != (expected, is_over) {
            wrong(format_args!(
                "after {count} increments: {found:#x}, overflow: {overflowed}"
            ));
        }
    }
    write_register!("pmcr_el0", 0);
    write_register!("pmcntenclr_el0", 1);
    write_register!("pmovsclr_el0", 1);
}

/// The counters of instructions and cycles, and the cycle counter, all to count at EL2 too.
fn begin_counting() {
    write_register!("pmevtyper1_el0", INSTRUCTIONS | AT_EL2);
    write_register!("pmevtyper2_el0", CYCLES | AT_EL2);
    write_register!("pmccfiltr_el0", AT_EL2);
    write_register!("pmevcntr1_el0", 0);
    write_register!("pmevcntr2_el0", 0);
    write_register!("pmccntr_el0", 0);
    write_register!("pmcntenset_el0", CYCLE_COUNTER | 0b110);
    write_register!("pmcr_el0", ENABLE);
}

/// Instructions, and cycles by either counter.
fn end_counting() -> [u64; 3] {
    write_register!("pmcr_el0", 0);
    [
        read_register!("pmevcntr1_el0"),
        read_register!("pmevcntr2_el0"),
        read_register!("pmccntr_el0"),
    ]
}

/// What the vCPU executes is counted, and not what the hypervisor does for it.
fn count_own() {
    begin_counting();
    spin(LOOPS);
    let own = end_counting();
    if own[1] == 0 || own[2] == 0 {
        wrong(format_args!("{LOOPS} loops: {own:?}"));
    }
    // Two instructions each.
    if !(2 * LOOPS..3 * LOOPS).contains(&own[0]) {
        wrong(format_args!("{LOOPS} loops: {own:?}"));
    }
    begin_counting();
    for _ in 0..CALLS {
        let _ = smccc::psci::version::<Hvc>();
    }
    let counted = end_counting();
    let fits = |count: u64| (CALLS..CALLS * MOST_EACH_CALL).contains(&count);
    if !counted.iter().all(|count| fits(*count)) {
        wrong(format_args!("{CALLS} calls: {counted:?}"));
    }
    begin_counting();
    for _ in 0..SLEEPS {
        interrupts::sleep();
    }
    let counted = end_counting();
    // Each is a millisecond, in which an emulator counts what its other CPUs do while this one is at EL1.
    let most = SLEEPS * MOST_EACH_SLEEP;
    if counted.iter().any(|count| *count == 0 || *count > most) {
        wrong(format_args!("{SLEEPS} sleeps: {counted:?}"));
    }
}

/// Loops of two instructions.
fn spin(loops: u64) {
    // SAFETY: it changes nothing but its own register.
    unsafe {
        asm!("2: subs {0}, {0}, #1", "b.ne 2b", inout(reg) loops => _, options(nomem, nostack))
    };
}

/// Each overflow is one interrupt, a level; it ends a wait.
fn overflows(own: usize) {
    write_register!("pmevtyper2_el0", CYCLES);
    write_register!("pmcntenset_el0", 0b100);
    write_register!("pmintenset_el1", 0b100);
    write_register!("pmcr_el0", ENABLE);
    for _ in 0..3 {
        write_register!("pmevcntr2_el0", u64::from(u32::MAX) - SOON);
        let mut taken = NONE;
        while taken == NONE {
            spin(SOON);
            taken = interrupts::take();
        }
        is_overflow(own, taken, 0b100);
    }
    write_register!("pmcntenclr_el0", 0b100);
    write_register!("pmintenset_el1", CYCLE_COUNTER);
    for _ in 0..3 {
        write_register!("pmovsset_el0", CYCLE_COUNTER);
        is_overflow(own, interrupts::wait_for(OVERFLOW), CYCLE_COUNTER);
    }
    write_register!("pmintenclr_el1", CYCLE_COUNTER | 0b100);
    write_register!("pmcr_el0", 0);
}

fn is_overflow(own: usize, taken: u32, counter: u64) {
    let overflowed = read_register!("pmovsset_el0");
    if taken != OVERFLOW || overflowed & counter == 0 {
        wrong(format_args!(
            "vCPU {own}: interrupt {taken}, overflows {overflowed:#x}"
        ));
    }
    // It comes again while there is an overflow, also to one that has slept.
    interrupts::end(taken);
    interrupts::wait_for(OVERFLOW);
    write_register!("pmovsclr_el0", counter);
    interrupts::end(taken);
    let left = interrupts::take();
    if left != NONE {
        wrong(format_args!("vCPU {own}: interrupt {left} is left"));
    }
}
