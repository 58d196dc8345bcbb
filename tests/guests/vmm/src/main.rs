//! The smallest user of Linux's KVM: runs the guest that measures operations, on CPUs of its own, so that KVM's costs are
//! measured beside Parvisor's with the same guest.
//!
//! A program for Linux on arm64 without any library, so that nothing has to be fetched to build it.
//!
//! | called as | what it does |
//! |---|---|
//! | `vmm IMAGE TREE VCPUS CPU MIB` | runs the image with this device tree and RAM, vCPU 0 on CPU `CPU`; then prints KVM's counters, a line `@kvm NAME COUNT` each |
//! | the same, `INITRD ADDRESS` | with this file at this address, in decimal digits |
//! | the first program of a system | prints the counter's value in nanoseconds, as `@micro init NANOSECONDS`, sleeps so many seconds as `IDLE` in its environment says, and switches off |

#![no_std]
#![no_main]

mod kvm;
mod linux;

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};
use core::panic::PanicInfo;

use linux::{File, fail, line, power_off, sleep};

global_asm!(
    ".global _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "b {main}",
    main = sym main,
);

/// KVM's counters (debugfs).
const COUNTERS: [(&str, &CStr); 7] = [
    ("exits", c"/sys/kernel/debug/kvm/exits"),
    ("hypercall", c"/sys/kernel/debug/kvm/hvc_exit_stat"),
    ("wait_for_event", c"/sys/kernel/debug/kvm/wfe_exit_stat"),
    ("wait_for_interrupt", c"/sys/kernel/debug/kvm/wfi_exit_stat"),
    ("device_user", c"/sys/kernel/debug/kvm/mmio_exit_user"),
    ("device_kernel", c"/sys/kernel/debug/kvm/mmio_exit_kernel"),
    ("signal", c"/sys/kernel/debug/kvm/signal_exits"),
];

/// `start`: the number of arguments, and the arguments.
extern "C" fn main(start: *const usize) -> ! {
    // SAFETY: as Linux starts programs.
    let arguments =
        unsafe { core::slice::from_raw_parts(start.add(1).cast::<*const c_char>(), start.read()) };
    let text = |index: usize| {
        // SAFETY: as above.
        arguments
            .get(index)
            .map(|text| unsafe { CStr::from_ptr(*text) })
    };
    let number = |index| text(index)?.to_str().ok()?.parse().ok();
    match (text(1), text(2), number(3), number(4), number(5)) {
        (None, ..) => {
            // SAFETY: the environment is behind the arguments, both end with a null.
            let environment = unsafe { start.add(2 + arguments.len()).cast::<*const c_char>() };
            tell_time();
            // SAFETY: as above.
            sleep(unsafe { idle_seconds(environment) });
            power_off()
        }
        (Some(image), Some(tree), Some(vcpus), Some(cpu), Some(mebibytes)) => {
            let initrd = text(6).zip(number(7));
            let machine = kvm::Machine {
                image,
                tree,
                initrd: initrd.map(|(file, address)| (file, address as u64)),
                ram_bytes: (mebibytes as u64) << 20,
            };
            kvm::run(&machine, vcpus, cpu, tell_counters)
        }
        _ => fail(format_args!(
            "expected IMAGE TREE VCPUS CPU MIB [INITRD ADDRESS]"
        )),
    }
}

/// The number that `IDLE` has.
///
/// # Safety
/// These are pointers to strings, and a null.
unsafe fn idle_seconds(mut environment: *const *const c_char) -> u64 {
    loop {
        // SAFETY: the caller's promise.
        let text = unsafe { environment.read() };
        if text.is_null() {
            return 0;
        }
        // SAFETY: as above.
        let text = unsafe { CStr::from_ptr(text) };
        let value = text
            .to_str()
            .ok()
            .and_then(|text| text.strip_prefix("IDLE="));
        if let Some(seconds) = value.and_then(|value| value.parse().ok()) {
            return seconds;
        }
        // SAFETY: a null is behind it at the latest.
        environment = unsafe { environment.add(1) };
    }
}

fn tell_counters() {
    for (name, path) in COUNTERS {
        let mut text = [0; 32];
        let length = File::open(path, false).map_or(0, |file| file.read(&mut text));
        let value = text
            .get(..length)
            .and_then(|text| str::from_utf8(text).ok());
        line(format_args!("@kvm {name} {}", value.unwrap_or("?").trim()));
    }
}

fn tell_time() {
    let (now, frequency): (u64, u64);
    // SAFETY: the counter, which Linux lets programs read.
    unsafe {
        asm!("isb", "mrs {}, cntvct_el0", "mrs {}, cntfrq_el0", out(reg) now, out(reg) frequency,
            options(nomem, nostack, preserves_flags));
    }
    let nanoseconds = u128::from(now) * 1_000_000_000 / u128::from(frequency.max(1));
    line(format_args!("@micro init {nanoseconds}"));
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fail(format_args!("{info}"))
}
