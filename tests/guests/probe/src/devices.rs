//! Accesses to all registers of the devices of QEMU's virt machine in every way, and what nobody does with a device: it is called,
//! walked as a table, has the stack or the vectors.

use crate::access::{KINDS, Kind, kind};
use crate::calls::Random;
use crate::hostile::{FRAME, ITS, RTC, UART, argument, find, offset, seed, tidy, vcpus};
use crate::interrupts;
use crate::wrong;
use core::arch::asm;
use guest_runtime::{Tree, expect_exception, println, read_register};

/// What no register describes: exclusive accesses, maintenance, translations.
const OTHERS: [Kind; 14] = [
    kind!("stxr w10, x11, [x9]", true),
    kind!("ldxr x10, [x9]\nstxr w11, x10, [x9]", true),
    kind!("ldxp x10, x11, [x9]", false),
    kind!("prfm pldl1keep, [x9]", false),
    kind!("dc civac, x9", false),
    kind!("dc cvac, x9", false),
    kind!("dc ivac, x9", true),
    kind!("dc zva, x9", true),
    kind!("ic ivau, x9", false),
    kind!("at s1e1r, x9", false),
    kind!("at s1e1w, x9", false),
    kind!("at s1e0r, x9", false),
    kind!("ldr w10, [x9], #4", false),
    kind!("ldtr x10, [x9]", false),
];
/// The same of ARMv8.1.
const ATOMICS: [Kind; 4] = [
    kind!(".arch_extension lse\nldadd x10, x11, [x9]", true),
    kind!(".arch_extension lse\nswpal w10, w11, [x9]", true),
    kind!(".arch_extension lse\ncas x10, x11, [x9]", true),
    kind!(".arch_extension lse\nstset x10, [x9]", true),
];

/// Accesses by every kind of instruction to all registers, and beside and across them.
pub fn probe(tree: Tree, arguments: &str) -> ! {
    find(tree, arguments);
    let every = argument(arguments, "every", 64);
    let mut random = Random::new(seed());
    let mut accesses = 0;
    let atomics = match read_register!("id_aa64isar0_el1") >> 20 & 0xf {
        0 => &[][..],
        _ => &ATOMICS[..],
    };
    let its = interrupts::distributor() + ITS;
    let frames = 3 + if interrupts::redistributors() == 0 {
        1
    } else {
        2 * vcpus() as u64 + 3
    };
    for number in 0..frames {
        let base = match number {
            0 => interrupts::distributor(),
            1 => UART,
            2 => RTC,
            3 if interrupts::redistributors() == 0 => interrupts::cpu_interface(),
            3 | 4 => its + (number - 3) * FRAME,
            number => interrupts::redistributors() + (number - 5) * FRAME,
        };
        // Of the rest, and of what isn't aligned, some.
        let all = (0..FRAME).filter(|at| at % 4 == 0 && at % 0x1000 < 0x40);
        for offset in all.chain((0..FRAME / every).map(|_| offset(random.next()))) {
            for kind in KINDS.iter().chain(&OTHERS).chain(atomics) {
                let address = base + offset;
                let mut after = 0;
                let exception = expect_exception(|| after = (kind.execute)(address));
                accesses += 1;
                // A load or store that isn't done changes nothing of its base.
                if exception.is_some() && after != address {
                    wrong(format_args!(
                        "{} at {address:#x}: x9 = {after:#x}",
                        kind.text
                    ));
                }
            }
        }
    }
    execute_devices();
    walk_devices();
    tidy();
    println!("devices: {accesses} accesses, all as it should be");
    guest_runtime::power_off()
}

/// Calls devices.
fn execute_devices() {
    for address in [
        UART,
        RTC,
        interrupts::distributor(),
        interrupts::distributor() + FRAME,
    ] {
        let exception = expect_exception(|| {
            // SAFETY: it can't be executed, so it comes back at once.
            unsafe { asm!("blr {}", in(reg) address, clobber_abi("C")) };
        });
        if exception.is_none() {
            wrong(format_args!("{address:#x} was executed"));
        }
    }
}

/// Has devices walked as tables of the upper half of addresses, by all levels, and with flags that the walker sets.
fn walk_devices() {
    let tcr = read_register!("tcr_el1");
    for table in [
        UART,
        RTC,
        interrupts::distributor(),
        interrupts::distributor() + FRAME,
    ] {
        // 39, 48 and 30 bits of address by TTBR1; what the CPU hasn't of the flags is ignored.
        for size in [25, 16, 34] {
            for flags in [0, 1 << 39, 1 << 39 | 1 << 40] {
                let walks = tcr & !(1 << 23) | size << 16 | 2 << 30 | flags;
                // SAFETY: nothing of the program lies in the upper half.
                unsafe {
                    asm!("msr ttbr1_el1, {}", "msr tcr_el1, {}", "isb", "tlbi vmalle1", "dsb sy", "isb",
                        in(reg) table, in(reg) walks, options(nostack));
                }
                for address in [u64::MAX << (64 - size), u64::MAX - 0xfff, u64::MAX - 7] {
                    for kind in &KINDS {
                        expect_exception(|| {
                            (kind.execute)(address);
                        });
                    }
                }
            }
        }
    }
    // SAFETY: as it was.
    unsafe {
        asm!("msr tcr_el1, {}", "isb", "tlbi vmalle1", "dsb sy", "isb", in(reg) tcr, options(nostack));
    }
}

/// Has its stack in a device: no exception can be taken.
pub fn stack(tree: Tree) -> ! {
    interrupts::find(tree);
    println!("stack: goes");
    // SAFETY: it never comes back.
    unsafe {
        asm!("mov sp, {}", "2: ldr xzr, [sp, #-8]!", "b 2b", in(reg) RTC + 0x800, options(noreturn))
    };
}

/// Has its vectors in a device, and takes an exception.
pub fn vectors(tree: Tree) -> ! {
    interrupts::find(tree);
    println!("vectors: goes");
    // SAFETY: it never comes back.
    unsafe { asm!("msr vbar_el1, {}", "isb", "2: svc #0", "b 2b", in(reg) RTC, options(noreturn)) };
}
