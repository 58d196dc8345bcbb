//! Interrupts on a machine like QEMU's virt, with a GICv3 or a GICv2: of both timers, and of vCPUs to each other.
//!
//! They stay masked, so that they end a WFI and are taken where the probe wants them.

use crate::lpis;
use crate::wrong;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use guest_runtime::{MAX_VCPUS, Tree, console, println, read_register, start_vcpu};

const TICKS: u64 = 20;
const ROUNDS: usize = 200;
/// The interrupts.
pub const CALL: u32 = 3;
const ANSWER: u32 = 4;
pub const VIRTUAL_TIMER: u32 = 27;
const PHYSICAL_TIMER: u32 = 30;
pub const NONE: u32 = 1023;

/// Registers that GICD and a redistributor's second frame have at the same places.
const GROUP0: u64 = 0x80;
const SET_ENABLED0: u64 = 0x100;
const PRIORITY0: u64 = 0x400;
/// GICD_ITARGETSR and GICD_IROUTER.
const TARGETS0: u64 = 0x800;
const ROUTER0: u64 = 0x6000;

static WANTED: AtomicBool = AtomicBool::new(false);
/// The frames: the distributor, and the redistributors or the CPU interface.
static DISTRIBUTOR: AtomicU64 = AtomicU64::new(0);
static REDISTRIBUTORS: AtomicU64 = AtomicU64::new(0);
static CPU_INTERFACE: AtomicU64 = AtomicU64::new(0);
static READY: AtomicUsize = AtomicUsize::new(0);
/// How often each vCPU was called.
static CALLED: [AtomicUsize; MAX_VCPUS] = [const { AtomicUsize::new(0) }; MAX_VCPUS];

macro_rules! write_register {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: a register of the GIC, of a timer or the PMU, whose interrupts are masked, or one that nothing relies on.
        unsafe { core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack, preserves_flags)) };
    }};
}
pub(crate) use write_register;

/// Whether all vCPUs are wanted for this probe.
pub fn are_wanted() -> bool {
    WANTED.load(Ordering::Acquire)
}

/// Finds the GIC and the UART, on which everything is printed from here on. Returns whether the GIC is a GICv3.
pub fn find(tree: Tree) -> bool {
    if let Some(uart) = tree.registers("arm,pl011") {
        // SAFETY: the device tree says that it is there.
        unsafe { console::use_uart(uart) };
    }
    let v3 = tree.registers("arm,gic-v3");
    let Some(gic) = v3.or(tree.registers("arm,cortex-a15-gic")) else {
        wrong(format_args!("there is no GIC"));
    };
    DISTRIBUTOR.store(gic, Ordering::Relaxed);
    match v3 {
        Some(_) => REDISTRIBUTORS.store(gic + 0xa_0000, Ordering::Relaxed),
        None => CPU_INTERFACE.store(gic + 0x1_0000, Ordering::Relaxed),
    }
    v3.is_some()
}

/// Switches the distributor on.
pub fn switch_on(v3: bool) {
    // Group 1, and affinity routing where there is some.
    write(distributor(), 0, if v3 { 0b1_0010 } else { 0b1 });
}

pub fn probe(tree: Tree) {
    let vcpus = begin(tree);
    tick();
    start_others(vcpus);
    let before = now();
    for round in 1..=ROUNDS {
        call_each(round, vcpus);
    }
    println!(
        "{} ticks a call and answer",
        (now() - before) / ROUNDS as u64
    );
    if has_lpis() {
        lpis::probe(distributor() + 0x8_0000, vcpus);
    }
    println!("interrupts: {vcpus} vCPUs, all as it should be");
    guest_runtime::power_off()
}

/// Finds the GIC, and switches it on for the first vCPU. Returns how many there are.
pub fn begin(tree: Tree) -> usize {
    let vcpus = tree.vcpus();
    let v3 = find(tree);
    WANTED.store(true, Ordering::Release);
    look_around(vcpus);
    switch_on(v3);
    set_up(0);
    vcpus
}

/// What every vCPU but the first does.
pub fn secondary(own: usize) -> ! {
    set_up(own);
    loop {
        match wait() {
            CALL => {
                CALLED[own].fetch_add(1, Ordering::AcqRel);
                send(ANSWER, 0);
            }
            lpi @ lpis::FIRST.. => {
                lpis::note(own, lpi);
                send(ANSWER, 0);
            }
            other => wrong(format_args!(
                "vCPU {own}: interrupt {other} instead of a call"
            )),
        }
    }
}

/// The distributor.
pub fn distributor() -> u64 {
    DISTRIBUTOR.load(Ordering::Relaxed)
}

/// The redistributors; 0 with a GICv2.
pub fn redistributors() -> u64 {
    REDISTRIBUTORS.load(Ordering::Relaxed)
}

/// The CPU interface of a GICv2; else 0.
pub fn cpu_interface() -> u64 {
    CPU_INTERFACE.load(Ordering::Relaxed)
}

fn look_around(vcpus: usize) {
    let gic = DISTRIBUTOR.load(Ordering::Relaxed);
    let lines = read(gic, 4) & 0x1f;
    if lines == 0 {
        wrong(format_args!("no SPIs"));
    }
    let redistributors = REDISTRIBUTORS.load(Ordering::Relaxed);
    for vcpu in 0..if redistributors == 0 { 0 } else { vcpus } {
        let frame = redistributors + vcpu as u64 * 0x2_0000;
        let (low, high) = (read(frame, 8), read(frame, 0xc));
        let is_last = low & 1 << 4 != 0;
        if u64::from(high) != guest_runtime::affinity(vcpu) || is_last != (vcpu + 1 == vcpus) {
            wrong(format_args!(
                "redistributor {vcpu}: TYPER {high:#x}, {low:#x}"
            ));
        }
        // Wakes it.
        write(frame, 0x14, 0);
        if read(frame, 0x14) & 1 << 2 != 0 {
            wrong(format_args!("redistributor {vcpu} sleeps"));
        }
    }
}

/// Switches on what this vCPU takes.
pub fn set_up(vcpu: usize) {
    let private = private_frame(vcpu);
    if redistributors() != 0 {
        if has_lpis() {
            lpis::set_up(redistributors() + vcpu as u64 * 0x2_0000, vcpu);
        }
        write(private, GROUP0, u32::MAX);
    }
    for word in 0..8 {
        write(private, PRIORITY0 + 4 * word, 0xa0a0_a0a0);
    }
    let enabled = [CALL, ANSWER, VIRTUAL_TIMER, PHYSICAL_TIMER];
    let enabled = enabled.iter().fold(0, |all, one| all | 1 << one);
    write(private, SET_ENABLED0, enabled);
    match CPU_INTERFACE.load(Ordering::Relaxed) {
        0 => {
            let sre = read_register!("s3_0_c12_c12_5");
            if sre & 1 == 0 {
                wrong(format_args!("ICC_SRE_EL1 is {sre:#x}"));
            }
            write_register!("s3_0_c4_c6_0", 0xf0); // ICC_PMR_EL1
            write_register!("s3_0_c12_c12_7", 1); // ICC_IGRPEN1_EL1
        }
        interface => {
            write(interface, 4, 0xf0); // GICC_PMR
            write(interface, 0, 1); // GICC_CTLR
        }
    }
    READY.fetch_add(1, Ordering::AcqRel);
}

/// The frame with the registers of a vCPU's SGIs and PPIs, which of a GICv2 is each vCPU's own.
pub fn private_frame(vcpu: usize) -> u64 {
    match redistributors() {
        0 => distributor(),
        redistributors => redistributors + vcpu as u64 * 0x2_0000 + 0x1_0000,
    }
}

/// Has this vCPU take one of its own interrupts.
pub fn enable_private(vcpu: usize, interrupt: u32) {
    let frame = private_frame(vcpu);
    write(frame, PRIORITY0 + u64::from(interrupt & !3), 0xa0a0_a0a0);
    write(frame, SET_ENABLED0, 1 << interrupt);
}

/// Takes some ticks of either timer.
pub fn tick() {
    let period = read_register!("cntfrq_el0") / 1000;
    for _ in 0..TICKS {
        let before = now();
        write_register!("cntv_tval_el0", period);
        write_register!("cntv_ctl_el0", 1);
        expect(VIRTUAL_TIMER, before, period, || {
            write_register!("cntv_ctl_el0", 0);
        });
        let before = now();
        write_register!("cntp_tval_el0", period);
        write_register!("cntp_ctl_el0", 1);
        expect(PHYSICAL_TIMER, before, period, || {
            write_register!("cntp_ctl_el0", 0);
        });
    }
    let left = take();
    if left != NONE {
        wrong(format_args!("interrupt {left} is left"));
    }
    println!("timers: done");
}

/// Sleeps for a tick of the virtual timer.
pub fn sleep() {
    let (before, period) = (now(), read_register!("cntfrq_el0") / 1000);
    write_register!("cntv_tval_el0", period);
    write_register!("cntv_ctl_el0", 1);
    expect(VIRTUAL_TIMER, before, period, || {
        write_register!("cntv_ctl_el0", 0);
    });
}

/// As [`probe`], again and again for so long that the guest is forked meanwhile. No time is missing then.
pub fn while_forked(tree: Tree) {
    const SECONDS: u64 = 3;
    let vcpus = begin(tree);
    start_others(vcpus);
    let frequency = read_register!("cntfrq_el0");
    let end = now() + SECONDS * frequency;
    let (mut rounds, mut most) = (0, 0);
    while now() < end {
        let before = now();
        sleep();
        rounds += 1;
        call_each(rounds, vcpus);
        most = most.max(now() - before);
    }
    println!("forked: {rounds} rounds, {vcpus} vCPUs, all as it should be");
    println!("the longest took {} ms", most * 1000 / frequency);
    guest_runtime::power_off()
}

fn start_others(vcpus: usize) {
    for vcpu in 1..vcpus {
        if start_vcpu(vcpu).is_err() {
            wrong(format_args!("vCPU {vcpu} doesn't start"));
        }
    }
    while READY.load(Ordering::Acquire) != vcpus {
        core::hint::spin_loop();
    }
}

/// Calls each vCPU, for the `round`th time.
fn call_each(round: usize, vcpus: usize) {
    for (vcpu, called) in CALLED.iter().enumerate().take(vcpus).skip(1) {
        send(CALL, vcpu);
        match wait() {
            ANSWER => {}
            other => wrong(format_args!("interrupt {other} instead of an answer")),
        }
        let called = called.load(Ordering::Acquire);
        if called != round {
            wrong(format_args!(
                "vCPU {vcpu} was called {called} times of {round}"
            ));
        }
    }
}

fn expect(timer: u32, before: u64, period: u64, off: impl FnOnce()) {
    let taken = wait_for(timer);
    let waited = now() - before;
    // A host that is busy makes it late, but not by a second.
    if waited < period || waited > period + read_register!("cntfrq_el0") {
        wrong(format_args!(
            "timer {timer} came after {waited} of {period} ticks"
        ));
    }
    off();
    end(taken);
}

/// Whether there are LPIs (GICD_TYPER), and an ITS where QEMU's machine has it.
fn has_lpis() -> bool {
    let v3 = REDISTRIBUTORS.load(Ordering::Relaxed) != 0;
    v3 && read(DISTRIBUTOR.load(Ordering::Relaxed), 4) >> 17 & 1 != 0
}

/// Waits until another vCPU has answered.
pub fn expect_answer() {
    match wait() {
        ANSWER => {}
        other => wrong(format_args!("interrupt {other} instead of an answer")),
    }
}

/// What is signalled now, which is ended.
pub fn take_and_end() -> u32 {
    let taken = take();
    if taken != NONE {
        end(taken);
    }
    taken
}

pub fn now() -> u64 {
    read_register!("cntvct_el0")
}

/// Waits for an interrupt, and ends it. An SGI is told by its number.
pub fn wait() -> u32 {
    let taken = wait_taken();
    end(taken);
    match taken {
        lpis::FIRST.. => taken,
        _ => taken & 0x3ff,
    }
}

/// Has the first vCPU take a device's interrupt, a level. Returns its number.
pub fn enable_shared(spi: u32) -> u32 {
    let gic = DISTRIBUTOR.load(Ordering::Relaxed);
    let interrupt = 32 + spi;
    let (word, bit) = (u64::from(interrupt / 32) * 4, 1 << (interrupt % 32));
    let byte = u64::from(interrupt & !3);
    write(gic, PRIORITY0 + byte, 0xa0a0_a0a0);
    match REDISTRIBUTORS.load(Ordering::Relaxed) {
        0 => write(gic, TARGETS0 + byte, 0x0101_0101),
        _ => {
            write(gic, GROUP0 + word, bit);
            write(gic, ROUTER0 + 8 * u64::from(interrupt), 0);
        }
    }
    write(gic, SET_ENABLED0 + word, bit);
    interrupt
}

/// Waits for this interrupt.
pub fn wait_for(interrupt: u32) -> u32 {
    let taken = wait_taken();
    if taken & 0x3ff != interrupt {
        wrong(format_args!("interrupt {taken} instead of {interrupt}"));
    }
    taken
}

pub fn wait_taken() -> u32 {
    loop {
        // SAFETY: waiting changes nothing.
        unsafe { core::arch::asm!("wfi", options(nomem, nostack, preserves_flags)) };
        let taken = take();
        if taken & 0x3ff != NONE {
            return taken;
        }
    }
}

pub fn take() -> u32 {
    let taken = match CPU_INTERFACE.load(Ordering::Relaxed) {
        0 => read_register!("s3_0_c12_c12_0") as u32, // ICC_IAR1_EL1
        interface => read(interface, 0xc),
    };
    // SAFETY: a barrier: what the sender wrote is read after this.
    unsafe { core::arch::asm!("dsb sy", options(nostack, preserves_flags)) };
    taken
}

pub fn end(taken: u32) {
    match CPU_INTERFACE.load(Ordering::Relaxed) {
        0 => write_register!("s3_0_c12_c12_1", u64::from(taken)), // ICC_EOIR1_EL1
        interface => write(interface, 0x10, taken),
    }
}

pub fn send(interrupt: u32, vcpu: usize) {
    // SAFETY: a barrier: what was written before is seen by the target.
    unsafe { core::arch::asm!("dsb ish", options(nostack, preserves_flags)) };
    let interrupt = u64::from(interrupt);
    match REDISTRIBUTORS.load(Ordering::Relaxed) {
        0 => {
            let value = interrupt | 1 << (16 + vcpu);
            write(DISTRIBUTOR.load(Ordering::Relaxed), 0xf00, value as u32);
        }
        _ => {
            let affinity = guest_runtime::affinity(vcpu);
            let value = interrupt << 24 | (affinity >> 8 & 0xff) << 16 | 1 << (affinity & 0xf);
            write_register!("s3_0_c12_c11_5", value); // ICC_SGI1R_EL1
        }
    }
}

pub fn read(frame: u64, offset: u64) -> u32 {
    // SAFETY: a register of the GIC.
    unsafe { ((frame + offset) as *const u32).read_volatile() }
}

pub fn write(frame: u64, offset: u64, value: u32) {
    // SAFETY: as above; the GIC does nothing to memory.
    unsafe { ((frame + offset) as *mut u32).write_volatile(value) }
}
