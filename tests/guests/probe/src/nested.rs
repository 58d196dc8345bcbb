//! More active interrupts than any CPU has list registers, ended in every way; and a wait for what the mask lets through. On a
//! machine like QEMU's virt.

use crate::interrupts::{self, NONE, VIRTUAL_TIMER, read, write, write_register};
use crate::wrong;
use guest_runtime::{Tree, println, read_register};

/// SPIs that no device has, each more urgent than the one before.
const FIRST: u32 = 40;
const COUNT: u32 = 10;
const ALL: u32 = ((1 << COUNT) - 1) << (FIRST - 32);
/// Those with odd numbers.
const ODD: u32 = 0xaaaa_aaaa;

/// Offsets in the distributor, of the word with SPIs 0 to 31.
const ENABLE: u64 = 0x104;
const PEND: u64 = 0x204;
const ACTIVE: u64 = 0x304;

pub fn probe(tree: Tree) -> ! {
    let v3 = interrupts::find(tree);
    interrupts::switch_on(v3);
    interrupts::set_up(0);
    let distributor = interrupts::distributor();
    for intid in FIRST..FIRST + COUNT {
        interrupts::enable_shared(intid - 32);
    }
    for word in 0..COUNT.div_ceil(4) {
        let priorities = [0, 1, 2, 3].map(|byte| 0xb0 - 0x10 * (4 * word + byte).min(COUNT) as u8);
        let place = 0x400 + u64::from(FIRST + 4 * word);
        write(distributor, place, u32::from_le_bytes(priorities));
    }
    // Edges.
    for word in 0..2 {
        write(distributor, 0xc08 + 4 * word, 0xaaaa_aaaa);
    }
    if v3 {
        write(distributor, 0x84, ALL); // IGROUPR1
    }
    write(distributor, ENABLE, ALL);
    for round in 0..20 {
        nest();
        for intid in (FIRST..FIRST + COUNT).rev() {
            are_active(FIRST..intid + 1, "before an end");
            interrupts::end(intid);
        }
        nothing_is_left();
        all_at_once(round);
        split(v3);
    }
    masked(v3);
    println!("nested: {COUNT} at once, all as it should be");
    guest_runtime::power_off()
}

/// Each interrupts the handler of the one before.
fn nest() {
    for intid in FIRST..FIRST + COUNT {
        write(interrupts::distributor(), PEND, 1 << (intid - 32));
        takes(intid);
    }
    // All are active, and none comes twice.
    let left = interrupts::take();
    if left != NONE {
        wrong(format_args!(
            "interrupt {left} preempts the most urgent one"
        ));
    }
}

/// All are raised, and taken one after the other.
fn all_at_once(round: u32) {
    write(interrupts::distributor(), PEND, ALL & ODD);
    write(interrupts::distributor(), PEND, ALL & !ODD);
    for intid in (FIRST..FIRST + COUNT).rev() {
        takes(intid);
        if intid % 3 == round % 3 {
            // Raised again while it is active.
            write(interrupts::distributor(), PEND, 1 << (intid - 32));
            interrupts::end(intid);
            takes(intid);
        }
        interrupts::end(intid);
    }
    nothing_is_left();
}

/// Priorities are dropped in order, then the interrupts are deactivated, with a GICv3 in another.
fn split(v3: bool) {
    let is_split = |on: bool| match v3 {
        true => write_register!("s3_0_c12_c12_4", u64::from(on) << 1), // ICC_CTLR_EL1
        false => write(interrupts::cpu_interface(), 0, 1 | u32::from(on) << 9),
    };
    is_split(true);
    nest();
    (FIRST..FIRST + COUNT).rev().for_each(interrupts::end);
    are_active(FIRST..FIRST + COUNT, "after all priorities were dropped");
    let mut left = ALL;
    let mut deactivates = |intid: u32| {
        match v3 {
            true => write_register!("s3_0_c12_c11_1", u64::from(intid)), // ICC_DIR_EL1
            false => write(interrupts::cpu_interface(), 0x1000, intid),
        }
        left &= !(1 << (intid - 32));
        let active = read(interrupts::distributor(), ACTIVE);
        if active != left {
            wrong(format_args!("{active:#x} is active, not {left:#x}"));
        }
    };
    let all = (FIRST..FIRST + COUNT).rev();
    match v3 {
        true => {
            let is_odd = |intid: &u32| ODD >> (intid - 32) & 1 != 0;
            all.clone().rev().filter(is_odd).for_each(&mut deactivates);
            let is_even = |intid: &u32| !is_odd(intid);
            all.filter(is_even).for_each(&mut deactivates);
        }
        // Of those outside of list registers it only counts how many: the most urgent ones.
        false => all.for_each(&mut deactivates),
    }
    is_split(false);
    nothing_is_left();
}

/// A WFI sleeps while all that is pending is masked.
fn masked(v3: bool) {
    const MOST_WAKES: u32 = 100;
    let distributor = interrupts::distributor();
    let mask = |priority: u32| match v3 {
        true => write_register!("s3_0_c4_c6_0", priority.into()), // ICC_PMR_EL1
        false => write(interrupts::cpu_interface(), 4, priority),
    };
    let private = match v3 {
        true => interrupts::redistributors() + 0x1_0000,
        false => distributor,
    };
    // The timer's, of PPIs 24 to 27.
    write(private, 0x418, 0x10a0_a0a0);
    mask(0x18);
    write(distributor, PEND, ALL);
    let period = read_register!("cntfrq_el0") / 50;
    let due = read_register!("cntvct_el0") + period;
    write_register!("cntv_cval_el0", due);
    write_register!("cntv_ctl_el0", 1);
    let mut wakes = 0;
    let taken = loop {
        // SAFETY: waiting changes nothing.
        unsafe { core::arch::asm!("wfi", options(nomem, nostack, preserves_flags)) };
        wakes += 1;
        let taken = interrupts::take();
        if taken != NONE || wakes > MOST_WAKES {
            break taken;
        }
    };
    if taken != VIRTUAL_TIMER || read_register!("cntvct_el0") < due {
        wrong(format_args!(
            "{taken} after {wakes} waits with all but the timer masked"
        ));
    }
    write_register!("cntv_ctl_el0", 0);
    interrupts::end(taken);
    mask(0xf0);
    for intid in (FIRST..FIRST + COUNT).rev() {
        takes(intid);
        interrupts::end(intid);
    }
    nothing_is_left();
}

fn takes(intid: u32) {
    let taken = interrupts::take();
    if taken != intid {
        wrong(format_args!("interrupt {taken} instead of {intid}"));
    }
}

fn are_active(intids: core::ops::Range<u32>, when: &str) {
    let expected = intids.fold(0, |all, intid| all | 1 << (intid - 32));
    let active = read(interrupts::distributor(), ACTIVE);
    if active != expected {
        wrong(format_args!(
            "{active:#x} is active {when}, not {expected:#x}"
        ));
    }
}

fn nothing_is_left() {
    are_active(FIRST..FIRST, "in the end");
    let left = interrupts::take();
    if left != NONE {
        wrong(format_args!("interrupt {left} is left"));
    }
}
