//! The operations, each as often as wanted.

use core::arch::asm;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use guest_runtime::{MAX_VCPUS, println, read_register, start_vcpu};

use crate::gic::{self, DISTRIBUTOR_ID, isb};
use crate::its;
use crate::vectors::{self, mask, taken, unmask};
use crate::{nanoseconds, write_register, wrong};

/// Until everything has been done once.
const WARM_UP: u64 = 10;
/// A hypercall that nobody knows.
const UNKNOWN_CALL: u64 = 0x4b00_0000;
/// An interrupt that isn't one: ending it does nothing.
const SPURIOUS: u64 = 1023;
/// UARTPeriphID0.
const UART_ID: u64 = 0xfe0;
/// How long before a timer is due it is set.
const AHEAD_NS: u64 = 20_000;
/// More than any vCPU needs to fall asleep.
const PAUSE_NS: u64 = 20_000;

/// What the other vCPUs do.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
enum Role {
    /// Sleep until they are called.
    Sleep,
    /// Wait awake.
    Spin,
    /// Those with even numbers call the next one.
    Pairs,
}

/// How often each is done.
static TIMES: AtomicU64 = AtomicU64::new(0);
static ROLE: AtomicUsize = AtomicUsize::new(Role::Sleep as usize);
static READY: AtomicUsize = AtomicUsize::new(0);
/// How long the calls of each pair took.
static PAIRS: [AtomicU64; MAX_VCPUS] = [const { AtomicU64::new(0) }; MAX_VCPUS];

/// Measures all.
pub fn costs(times: u64, vcpus: usize, uart: u64) {
    TIMES.store(times, Ordering::Relaxed);
    show("hypercall", measured(hypercall));
    show("vgic", measured(read_gic));
    show("device", measured(|| _ = gic::read(uart, UART_ID)));
    show(
        "eoi",
        measured(|| write_register!("s3_0_c12_c12_1", SPURIOUS)),
    ); // ICC_EOIR1_EL1
    unmask();
    if vcpus < 2 {
        return;
    }
    start_all(vcpus);
    let target = vcpus - 1;
    show("ipi_asleep", measured_apart(|| call(target)));
    take_role(Role::Spin, vcpus);
    show("ipi", measured(|| call(target)));
    if its::set_up(target) {
        show("lpi", measured(|| raise_lpi(target)));
    }
    take_role(Role::Pairs, vcpus);
    let own = pair(0);
    all_are_ready(vcpus / 2 - 1);
    let senders = (2..vcpus - 1).step_by(2);
    let longest = senders.map(|vcpu| PAIRS[vcpu].load(Ordering::Relaxed));
    show("ipi_pairs", longest.fold(own, u64::max));
}

/// What a trace is to have of the interrupt controller.
pub fn gic(times: u64, vcpus: usize) {
    TIMES.store(times, Ordering::Relaxed);
    measured(read_gic);
    unmask();
    if vcpus < 2 {
        return;
    }
    start_all(vcpus);
    take_role(Role::Spin, vcpus);
    let target = vcpus - 1;
    if its::set_up(target) {
        measured(|| raise_lpi(target));
    }
}

fn start_all(vcpus: usize) {
    for vcpu in 1..vcpus {
        if start_vcpu(vcpu).is_err() {
            wrong(format_args!("vCPU {vcpu} doesn't start"));
        }
    }
    all_are_ready(vcpus - 1);
}

/// Takes interrupts of the timer.
pub fn ticks(count: u64) {
    unmask();
    let ahead = ticks_of(AHEAD_NS);
    for _ in 0..count {
        let before = taken(0);
        write_register!("cntv_cval_el0", now() + ahead);
        write_register!("cntv_ctl_el0", 1);
        isb();
        while taken(0) == before {
            spin_loop();
        }
    }
}

/// What every vCPU but the first does.
pub fn secondary(own: usize) -> ! {
    vectors::set_up(own);
    gic::set_up(own);
    unmask();
    READY.fetch_add(1, Ordering::AcqRel);
    // An interrupt that comes after the look ends the wait.
    mask();
    while ROLE.load(Ordering::Acquire) == Role::Sleep as usize {
        // SAFETY: waiting changes nothing.
        unsafe { asm!("wfi", options(nomem, nostack, preserves_flags)) };
        unmask();
        isb();
        mask();
    }
    unmask();
    READY.fetch_add(1, Ordering::AcqRel);
    while ROLE.load(Ordering::Acquire) == Role::Spin as usize {
        spin_loop();
    }
    READY.fetch_add(1, Ordering::AcqRel);
    if own.is_multiple_of(2) && taken(own + 1) != 0 {
        PAIRS[own].store(pair(own), Ordering::Relaxed);
        READY.fetch_add(1, Ordering::AcqRel);
    }
    loop {
        spin_loop();
    }
}

/// Waits until so many vCPUs have said that they are ready.
fn all_are_ready(count: usize) {
    while READY.load(Ordering::Acquire) < count {
        spin_loop();
    }
    READY.fetch_sub(count, Ordering::AcqRel);
}

/// Gives all others another role, once each has seen the one before.
fn take_role(role: Role, vcpus: usize) {
    ROLE.store(role as usize, Ordering::Release);
    // Those that sleep have to wake up for it, and those of a pair to know that there is a second.
    (1..vcpus).for_each(call);
    all_are_ready(vcpus - 1);
}

/// Calls the vCPU next to this one.
fn pair(own: usize) -> u64 {
    measured(|| call(own + 1))
}

/// Interrupts a vCPU, and waits until its handler has run.
fn call(vcpu: usize) {
    let before = taken(vcpu);
    gic::call(gic::target(vcpu));
    while taken(vcpu) == before {
        spin_loop();
    }
}

/// Has the ITS raise the LPI of a vCPU, and waits until its handler has run.
fn raise_lpi(vcpu: usize) {
    let before = taken(vcpu);
    its::raise();
    while taken(vcpu) == before {
        spin_loop();
    }
}

fn read_gic() {
    gic::read(gic::distributor(), DISTRIBUTOR_ID);
}

fn hypercall() {
    // SAFETY: no hypervisor knows the call, and it may change these registers at most.
    unsafe {
        asm!("hvc #0", inout("x0") UNKNOWN_CALL => _, out("x1") _, out("x2") _, out("x3") _,
            options(nostack, preserves_flags));
    }
}

/// How long an operation takes, in nanoseconds.
fn measured(operation: impl Fn()) -> u64 {
    let times = TIMES.load(Ordering::Relaxed);
    (0..WARM_UP).for_each(|_| operation());
    let before = now();
    (0..times).for_each(|_| operation());
    nanoseconds(now() - before, times)
}

/// The same, with pauses in which others fall asleep.
fn measured_apart(operation: impl Fn()) -> u64 {
    let times = TIMES.load(Ordering::Relaxed);
    let mut ticks = 0;
    for _ in 0..times {
        pause();
        let before = now();
        operation();
        ticks += now() - before;
    }
    nanoseconds(ticks, times)
}

fn pause() {
    let until = now() + ticks_of(PAUSE_NS);
    while now() < until {
        spin_loop();
    }
}

fn ticks_of(nanoseconds: u64) -> u64 {
    read_register!("cntfrq_el0") * nanoseconds / 1_000_000_000
}

fn now() -> u64 {
    isb();
    let now = read_register!("cntvct_el0");
    isb();
    now
}

fn show(name: &str, nanoseconds: u64) {
    println!("@micro {name} {nanoseconds}");
}
