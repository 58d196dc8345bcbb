//! Whatever a guest can do to its interrupt controller, its timers, its devices and its vCPUs, at random and on all vCPUs at
//! once, on a machine like QEMU's virt. In the end the first vCPU tidies up, and all must work as on the first day.
//!
//! Interrupts stay masked: they are acknowledged where it pleases, or never.

use crate::calls::Random;
use crate::interrupts::{self, CALL, write_register};
use crate::wrong;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use guest_runtime::{
    MAX_VCPUS, Tree, affinity, entry_point, expect_exception, index, println, read_register,
    start_vcpu,
};
use smccc::Hvc;
use smccc::psci::{AffinityState, LowestAffinityLevel, affinity_info};

pub const UART: u64 = 0x0900_0000;
pub const RTC: u64 = 0x0901_0000;
pub const FRAME: u64 = 0x1_0000;
/// From the distributor to the ITS, if there is one.
pub const ITS: u64 = 0x8_0000;
const GITS_CTLR: u64 = 0;
const GITS_CBASER: u64 = 0x80;
const GITS_CWRITER: u64 = 0x88;
const GITS_BASER0: u64 = 0x100;
const GITS_TRANSLATER: u64 = 0x1_0040;
const VALID: u64 = 1 << 63;
/// How long anything may take that is to happen.
const PATIENCE_SECONDS: u64 = 20;

static WANTED: AtomicBool = AtomicBool::new(false);
static ENOUGH: AtomicBool = AtomicBool::new(false);
static VCPUS: AtomicU64 = AtomicU64::new(0);
static V3: AtomicBool = AtomicBool::new(false);
static SEED: AtomicU64 = AtomicU64::new(0);
/// What alone is done ([`attack`]); 0: everything.
static ONLY: AtomicU64 = AtomicU64::new(0);
/// What each vCPU is about.
static STATES: [AtomicU8; MAX_VCPUS] = [const { AtomicU8::new(0) }; MAX_VCPUS];
const WAITS: u8 = 1;
const ACTS: u8 = 2;

/// Whether all vCPUs are wanted for this probe.
pub fn is_wanted() -> bool {
    WANTED.load(Ordering::Acquire)
}

/// A number of the command line: `name=number`.
pub fn argument(arguments: &str, name: &str, usual: u64) -> u64 {
    let mut words = arguments.split(' ');
    let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.map_or(usual, |value| match value.parse() {
        Ok(number) => number,
        Err(_) => wrong(format_args!("{name}={value} is no number")),
    })
}

/// Finds the machine, and the command line's seed.
pub fn find(tree: Tree, arguments: &str) {
    V3.store(interrupts::find(tree), Ordering::Relaxed);
    VCPUS.store(tree.vcpus() as u64, Ordering::Relaxed);
    let seed = argument(arguments, "seed", 1);
    SEED.store(seed, Ordering::Relaxed);
    println!("seed={seed}");
}

pub fn vcpus() -> usize {
    VCPUS.load(Ordering::Relaxed) as usize
}

/// The seed of what is done at random.
pub fn seed() -> u64 {
    SEED.load(Ordering::Relaxed)
}

/// All frames with registers, and those that follow the last.
fn frame(bits: u64) -> u64 {
    let distributor = interrupts::distributor();
    let vcpus = vcpus() as u64;
    match bits % 8 {
        0 if V3.load(Ordering::Relaxed) => distributor + ITS + (bits >> 8 & 1) * FRAME,
        0 | 1 => distributor,
        2 => distributor + FRAME,
        3 => UART,
        4 => RTC,
        _ if V3.load(Ordering::Relaxed) => {
            interrupts::redistributors() + bits / 8 % (2 * vcpus + 1) * FRAME
        }
        _ => distributor,
    }
}

/// An offset in a frame: mostly one that has a register.
pub fn offset(bits: u64) -> u64 {
    let some = bits >> 8;
    match bits % 8 {
        0..4 => some % 0x400 * 4,
        4 => 0x6000 + some % 0x100 * 4,
        5 => some % 0x20 * 4,
        6 => some % 0x1000,
        _ => some % FRAME,
    }
}

/// Does so many things of all kinds on each vCPU, or of one kind only. With `off=1` it powers off while the others go on.
pub fn probe(tree: Tree, arguments: &str) -> ! {
    find(tree, arguments);
    let acts = argument(arguments, "acts", 5000);
    ONLY.store(argument(arguments, "only", 0), Ordering::Relaxed);
    WANTED.store(true, Ordering::Release);
    let mut random = Random::new(seed());
    extremes_of_timers();
    interrupts::switch_on(V3.load(Ordering::Relaxed));
    for _ in 0..acts {
        let other = 1 + random.next() as usize % (vcpus() - 1).max(1);
        if random.next().is_multiple_of(64) && other < vcpus() {
            // It may be on already.
            let _ = start_vcpu(other);
        }
        act(&mut random);
    }
    if argument(arguments, "off", 0) == 1 {
        // The UART may loop back.
        interrupts::write(UART, 0x30, 0x301);
        println!("\nhostile: {acts} acts, and off");
        guest_runtime::power_off();
    }
    ENOUGH.store(true, Ordering::Release);
    for (vcpu, about) in STATES.iter().enumerate().take(vcpus()).skip(1) {
        until("a vCPU to stop", || {
            let state = affinity_info::<Hvc>(affinity(vcpu), LowestAffinityLevel::All);
            state == Ok(AffinityState::Off)
                || state == Ok(AffinityState::On) && about.load(Ordering::Acquire) == WAITS
        });
    }
    tidy();
    check();
    println!(
        "hostile: {acts} acts by each of {} vCPUs, all as it should be",
        vcpus()
    );
    guest_runtime::power_off()
}

/// What every vCPU but the first does, until it goes off.
pub fn secondary(own: usize) -> ! {
    STATES[own].store(ACTS, Ordering::Release);
    let start = read_register!("cntvct_el0");
    let mut random = Random::new(seed() ^ start << 8 ^ own as u64);
    while !ENOUGH.load(Ordering::Acquire) {
        match random.next() % 512 {
            0 => guest_runtime::turn_off(),
            1..4 => wait(own, &mut random),
            4 => suspend(own, &mut random),
            _ => act(&mut random),
        }
    }
    guest_runtime::turn_off()
}

/// Waits, often for a timer.
fn wait(own: usize, random: &mut Random) {
    if !random.next().is_multiple_of(4) {
        let soon = read_register!("cntvct_el0") + random.next() % 4096;
        write_register!("cntv_cval_el0", soon);
        write_register!("cntv_ctl_el0", 1);
    }
    STATES[own].store(WAITS, Ordering::Release);
    // SAFETY: waiting changes nothing.
    unsafe { asm!("wfi", options(nomem, nostack, preserves_flags)) };
    STATES[own].store(ACTS, Ordering::Release);
}

/// Powers down, or stands by, until something comes.
fn suspend(own: usize, random: &mut Random) {
    let bits = random.next();
    let mut arguments = [0; 17];
    arguments[0] = (bits & 1) << 16;
    arguments[1] = entry_point();
    arguments[2] = own as u64;
    let function = if bits & 2 == 0 {
        0xc400_0001
    } else {
        0xc400_000e
    };
    if function == 0xc400_000e {
        arguments[0] = entry_point();
        arguments[1] = own as u64;
    }
    STATES[own].store(WAITS, Ordering::Release);
    smccc::hvc64(function, arguments);
    STATES[own].store(ACTS, Ordering::Release);
}

fn act(random: &mut Random) {
    let only = ONLY.load(Ordering::Relaxed);
    if only != 0 {
        return attack(only, random);
    }
    let bits = random.next();
    match bits % 16 {
        0..6 => access(random),
        6 | 7 => send(random),
        8 | 9 => {
            let taken = interrupts::take();
            if bits >> 8 & 3 != 0 && taken & 0x3ff < 1020 {
                interrupts::end(taken);
            }
        }
        10 => {
            interrupts::end((bits >> 8) as u32 & if bits >> 40 & 1 == 0 { 0x7f } else { u32::MAX })
        }
        11 | 12 if V3.load(Ordering::Relaxed) => control(random),
        13 => time(random),
        14 => call(random),
        15 if bits >> 8 & 1 == 0 && V3.load(Ordering::Relaxed) => command(random),
        _ => storm(random),
    }
}

/// Many things of one kind.
fn attack(kind: u64, random: &mut Random) {
    let v3 = V3.load(Ordering::Relaxed);
    let distributor = interrupts::distributor();
    let bits = random.next();
    match kind {
        // SGIs to everybody at once, and to oneself.
        1 if v3 => {
            let sgi = (bits & 0xf) << 24;
            for targets in [1 << 40, 0xffff, 1 << index()] {
                write_register!("s3_0_c12_c11_5", sgi | targets);
            }
        }
        1 => {
            for filter in [0, 1 << 24, 2 << 24] {
                let value = filter | 0xff << 16 | bits as u32 & 0xf;
                interrupts::write(distributor, 0xf00, value);
            }
        }
        // Garbage for the ITS.
        2 if v3 => command(random),
        // Lines that stay up, whatever is ended.
        3 => {
            interrupts::write(UART, 0x38, 0x7ff);
            interrupts::write(RTC, 0x10, 1);
            interrupts::write(RTC, 4, interrupts::read(RTC, 0));
            interrupts::write(distributor, 0x104, 0b110);
            interrupts::write(distributor, 0xc08, 0); // ICFGR2: levels
            for _ in 0..8 {
                let taken = interrupts::take();
                if taken & 0x3ff < 1020 {
                    interrupts::end(taken);
                }
            }
        }
        // Interrupts of all kinds that are taken and never ended.
        4 => {
            interrupts::write(distributor, 0x104, u32::MAX); // ISENABLER1
            interrupts::write(distributor, 0x204, bits as u32); // ISPENDR1
            let priorities = 0x400 + (bits >> 32 & 0x1f) * 4; // IPRIORITYR
            interrupts::write(distributor, priorities, (bits >> 40) as u32);
            send(random);
            let taken = interrupts::take();
            let is_ended = bits >> 37 & 0x1f == 0;
            if is_ended && taken & 0x3ff < 1020 {
                interrupts::end(taken);
            }
        }
        // The redistributors of others.
        5 if v3 => {
            let others = bits % (2 * vcpus() as u64) * FRAME;
            let registers = [
                0, 0x14, 0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380, 0x400,
            ];
            let register = registers[(bits >> 8) as usize % registers.len()];
            interrupts::write(
                interrupts::redistributors() + others,
                register,
                (bits >> 16) as u32,
            );
        }
        // Half of a route, of an interrupt that comes meanwhile.
        6 if v3 => {
            let half = distributor + 0x6000 + 8 * (32 + (bits & 3));
            interrupts::write(distributor, 0x204, 0xf);
            let value = match bits >> 8 & 3 {
                0 => u32::MAX,
                _ => (bits >> 16 & 0x8000_0003) as u32,
            };
            interrupts::write(half, bits & 4, value);
        }
        6 => interrupts::write(distributor, 0x820 + (bits & 0xc), (bits >> 8) as u32), // ITARGETSR
        // All that the UART takes, while its interrupt comes and goes.
        7 => {
            for place in 0..64 {
                let letter = b'a' + (bits >> place & 0xf) as u8;
                interrupts::write(UART, 0, letter.into());
                interrupts::write(UART, 0x38, (bits >> place) as u32 & 0x7ff);
            }
            if bits.is_multiple_of(4) {
                interrupts::write(UART, 0, b'\n'.into());
            }
        }
        _ => access(random),
    }
}

/// One access to one register.
fn access(random: &mut Random) {
    let address = frame(random.next()) + offset(random.next());
    let bits = random.next();
    if address == UART && !bits.is_multiple_of(16) {
        // It prints little.
        return;
    }
    let value = match bits >> 8 & 3 {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << (bits >> 58),
        _ => random.next(),
    };
    expect_exception(|| {
        // SAFETY: a register, or nothing; neither does anything to memory.
        unsafe {
            match bits & 7 {
                0 => (address as *mut u8).write_volatile(value as u8),
                1 => asm!("strh {:w}, [{}]", in(reg) value, in(reg) address, options(nostack)),
                2 => asm!("str {}, [{}]", in(reg) value, in(reg) address, options(nostack)),
                3 => asm!("ldr {}, [{}]", out(reg) _, in(reg) address, options(nostack)),
                4 => asm!("ldr {:w}, [{}]", out(reg) _, in(reg) address & !3, options(nostack)),
                _ => asm!("str {:w}, [{}]", in(reg) value, in(reg) address & !3, options(nostack)),
            }
        }
    });
}

/// Sends SGIs to some, all, or nobody.
fn send(random: &mut Random) {
    let bits = random.next();
    if !V3.load(Ordering::Relaxed) {
        return interrupts::write(interrupts::distributor(), 0xf00, bits as u32);
    }
    let few = (bits & 0xf) << 24 | bits >> 8 & 0xf | (bits >> 12 & 1) << 40;
    let value = match bits >> 16 & 7 {
        0 => random.next(),
        1 => few | (bits >> 20 & 15) << 44 | (bits >> 24 & 3) << 16,
        _ => few,
    };
    match bits >> 32 & 7 {
        0 => write_register!("s3_0_c12_c11_7", value), // ICC_SGI0R_EL1
        1 => write_register!("s3_0_c12_c11_6", value), // ICC_ASGI1R_EL1
        _ => write_register!("s3_0_c12_c11_5", value), // ICC_SGI1R_EL1
    }
}

/// Changes the CPU interface of a GICv3.
fn control(random: &mut Random) {
    let bits = random.next();
    let value = bits >> 8;
    match bits % 16 {
        0..3 => write_register!("s3_0_c4_c6_0", value & 0xff), // ICC_PMR_EL1
        // QEMU 10 fails an assertion of its own where reserved bits of these are set.
        3 => write_register!("s3_0_c12_c8_3", value & 7), // ICC_BPR0_EL1
        4 => write_register!("s3_0_c12_c12_3", value & 7), // ICC_BPR1_EL1
        5 => write_register!("s3_0_c12_c12_4", value),    // ICC_CTLR_EL1
        6 => write_register!("s3_0_c12_c12_6", value),    // ICC_IGRPEN0_EL1
        7 | 8 => write_register!("s3_0_c12_c12_7", value), // ICC_IGRPEN1_EL1
        9 => write_register!("s3_0_c12_c9_0", value & 0xffff_ffff), // ICC_AP1R0_EL1
        10 => write_register!("s3_0_c12_c8_4", value & 0xffff_ffff), // ICC_AP0R0_EL1
        11 => write_register!("s3_0_c12_c11_1", value & 0x7f), // ICC_DIR_EL1
        12 => write_register!("s3_0_c12_c8_1", value & 0x7f), // ICC_EOIR0_EL1
        13 => {
            let _ = read_register!("s3_0_c12_c8_0"); // ICC_IAR0_EL1
        }
        14 => {
            // ICC_HPPIR0_EL1, ICC_HPPIR1_EL1, ICC_RPR_EL1
            let _ = (
                read_register!("s3_0_c12_c8_2"),
                read_register!("s3_0_c12_c12_2"),
                read_register!("s3_0_c12_c11_3"),
            );
        }
        _ => write_register!("s3_0_c12_c12_5", value), // ICC_SRE_EL1
    }
}

/// Changes a timer.
fn time(random: &mut Random) {
    let bits = random.next();
    let at = match bits >> 8 & 7 {
        0 => 0,
        1 => u64::MAX,
        2 => i64::MAX as u64,
        3 => bits,
        _ => read_register!("cntvct_el0").wrapping_add((bits >> 16 & 0x1fff).wrapping_sub(64)),
    };
    match bits % 6 {
        0 | 1 => write_register!("cntv_cval_el0", at),
        2 => write_register!("cntp_cval_el0", at),
        3 => write_register!("cntv_tval_el0", at),
        4 => write_register!("cntv_ctl_el0", bits >> 20),
        _ => write_register!("cntp_ctl_el0", bits >> 20),
    }
}

/// Asks PSCI for what it must refuse, or tells anyway.
fn call(random: &mut Random) {
    let bits = random.next();
    let mut arguments = [0; 17];
    arguments[0] = if bits & 16 == 0 {
        bits >> 8 & 3
    } else {
        random.next()
    };
    arguments[1] = match bits >> 5 & 3 {
        0 => UART,
        1 => interrupts::distributor(),
        2 => random.next() | 1,
        _ => entry_point() | 2,
    };
    let function = match bits & 3 {
        0 | 1 => 0xc400_0003, // CPU_ON
        2 => 0xc400_0004,     // AFFINITY_INFO
        _ => 0x8400_000a,     // PSCI_FEATURES
    };
    smccc::hvc64(function, arguments);
}

/// What an ITS may take for its commands and tables. Nothing else is there.
#[repr(C, align(65536))]
struct Queue([AtomicU64; QUEUE_WORDS]);
const QUEUE_WORDS: usize = 512;
static QUEUE: Queue = Queue([const { AtomicU64::new(0) }; QUEUE_WORDS]);

/// Has the ITS execute commands that mean something, and such that mean nothing, from memory that is there or isn't.
fn command(random: &mut Random) {
    let its = interrupts::distributor() + ITS;
    let bits = random.next();
    let own = QUEUE.0.as_ptr() as u64;
    let base = match bits >> 8 & 7 {
        0 => random.next() & 0xffff_ffff_f000,
        1 => interrupts::distributor(),
        _ => own,
    };
    let write = |register: u64, value: u64| {
        expect_exception(|| {
            // SAFETY: a register, or nothing.
            unsafe { ((its + register) as *mut u64).write_volatile(value) };
        });
    };
    match bits % 8 {
        0 => write(GITS_CTLR, bits >> 16 & 1),
        1 => write(GITS_CBASER, base | VALID | bits >> 16 & 0xff),
        2 => write(
            GITS_BASER0 + (bits >> 16 & 7) * 8,
            base | VALID | bits >> 20 & 0xff,
        ),
        3 => write(GITS_TRANSLATER, bits >> 16 & 0xf),
        4 | 5 => write(GITS_CWRITER, bits >> 16 & 0xfe0),
        _ => {
            // Any command with a small device, event, LPI and collection.
            let at = (bits >> 16) as usize % (QUEUE_WORDS / 4) * 4;
            let few = |mask: u64, random: &mut Random| match random.next() {
                rare if rare.is_multiple_of(16) => rare,
                other => other & mask,
            };
            let words = [
                (bits >> 32 & 0xf) | few(3, random) << 32,
                few(7, random) | (8192 + few(7, random)) << 32,
                few(3, random) | few(3, random) << 16 | bits & VALID | (own * (bits >> 62 & 1)),
                0,
            ];
            for (place, word) in QUEUE.0[at..at + 4].iter().zip(words) {
                place.store(word, Ordering::Relaxed);
            }
        }
    }
}

/// Raises and lowers the lines of devices, and everything by hand.
fn storm(random: &mut Random) {
    let bits = random.next();
    let distributor = interrupts::distributor();
    for _ in 0..1 + (bits & 7) {
        match bits >> 4 & 7 {
            0 => interrupts::write(UART, 0x38, (bits >> 8) as u32 & 0x7ff), // IMSC
            1 => interrupts::write(UART, 0x44, u32::MAX),                   // ICR
            2 => {
                // RTC: IMSC, MR, ICR
                interrupts::write(RTC, 0x10, (bits >> 8) as u32 & 1);
                interrupts::write(RTC, 4, interrupts::read(RTC, 0));
                interrupts::write(RTC, 0x1c, (bits >> 9) as u32 & 1);
            }
            3 => interrupts::write(distributor, 0x204, 0b110), // ISPENDR1
            4 => interrupts::write(distributor, 0x284, u32::MAX), // ICPENDR1
            5 => interrupts::write(distributor, 0x104 + (bits >> 8 & 1) * 0x80, u32::MAX),
            6 => interrupts::write(distributor, 0x304 + (bits >> 8 & 1) * 0x80, 0b110),
            _ => interrupts::write(distributor, 0, (bits >> 8) as u32),
        }
    }
}

/// Both timers at all extremes, and a wait for each, which the other ends.
fn extremes_of_timers() {
    let v3 = V3.load(Ordering::Relaxed);
    let now = || read_register!("cntvct_el0");
    let soon = read_register!("cntfrq_el0") / 10_000;
    interrupts::switch_on(v3);
    interrupts::set_up(0);
    for at in [
        0,
        1,
        i64::MAX as u64,
        u64::MAX - 1,
        u64::MAX,
        now(),
        now() + soon,
    ] {
        for control in 0..8 {
            write_register!("cntv_cval_el0", at);
            write_register!("cntv_ctl_el0", control);
            write_register!("cntp_tval_el0", soon);
            write_register!("cntp_ctl_el0", 1);
            // SAFETY: waiting changes nothing; one of the two ends it.
            unsafe { asm!("wfi", options(nomem, nostack, preserves_flags)) };
            write_register!("cntp_ctl_el0", 0);
            write_register!("cntv_ctl_el0", 0);
            for _ in 0..3 {
                let taken = interrupts::take();
                if taken & 0x3ff < 1020 {
                    interrupts::end(taken);
                }
            }
        }
    }
}

/// When it has been waited for long enough.
pub fn patience() -> u64 {
    read_register!("cntvct_el0") + PATIENCE_SECONDS * read_register!("cntfrq_el0")
}

/// Waits until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = patience();
    while !holds() {
        if read_register!("cntvct_el0") > end {
            wrong(format_args!("waited in vain for {what}"));
        }
    }
}

/// As after reset, whatever was done.
pub fn tidy() {
    let v3 = V3.load(Ordering::Relaxed);
    // UART: CR, LCR_H, IMSC, ICR. RTC: IMSC, ICR.
    for (offset, value) in [(0x30, 0x301), (0x2c, 0x70), (0x38, 0), (0x44, 0x7ff)] {
        interrupts::write(UART, offset, value);
    }
    interrupts::write(RTC, 0x10, 0);
    interrupts::write(RTC, 0x1c, 1);
    for _ in 0..32 {
        // What loops back is taken out.
        interrupts::read(UART, 0);
    }
    write_register!("cntv_ctl_el0", 0);
    write_register!("cntp_ctl_el0", 0);
    let distributor = interrupts::distributor();
    interrupts::write(distributor, 0, if v3 { 0b1_0000 } else { 0 });
    clear(distributor);
    if v3 {
        expect_exception(|| interrupts::write(distributor + ITS, GITS_CTLR, 0));
    }
    if !v3 {
        interrupts::write(distributor, 0x80, 0); // IGROUPR0
        for sgis in 0..4 {
            interrupts::write(distributor, 0xf10 + 4 * sgis, u32::MAX); // CPENDSGIR
        }
        let interface = interrupts::cpu_interface();
        interrupts::write(interface, 0xd0, 0); // APR0
        return interrupts::write(interface, 8, 0); // BPR
    }
    for vcpu in 0..vcpus() as u64 {
        let redistributor = interrupts::redistributors() + vcpu * 2 * FRAME;
        interrupts::write(redistributor, 0, 0); // GICR_CTLR
        clear(redistributor + FRAME);
    }
    write_register!("s3_0_c12_c12_4", 0); // ICC_CTLR_EL1
    write_register!("s3_0_c12_c8_3", 0); // ICC_BPR0_EL1
    write_register!("s3_0_c12_c12_3", 0); // ICC_BPR1_EL1
    write_register!("s3_0_c12_c12_6", 0); // ICC_IGRPEN0_EL1
    write_register!("s3_0_c12_c9_0", 0); // ICC_AP1R0_EL1
    write_register!("s3_0_c12_c8_4", 0); // ICC_AP0R0_EL1
    until("GICD_CTLR.RWP", || {
        interrupts::read(distributor, 0) & 1 << 31 == 0
    });
}

/// Disables, clears and deactivates what a frame has.
fn clear(frame: u64) {
    for register in [0x180, 0x280, 0x380] {
        for word in 0..3 {
            interrupts::write(frame, register + 4 * word, u32::MAX);
        }
    }
    for word in 0..6 {
        interrupts::write(frame, 0xc00 + 4 * word, 0); // ICFGR
    }
}

/// Nothing is left, and all works.
fn check() {
    if index() != 0 {
        wrong(format_args!("vCPU {} checks", index()));
    }
    let distributor = interrupts::distributor();
    for (register, what) in [(0x100, "enabled"), (0x200, "pending"), (0x300, "active")] {
        for word in 0..3 {
            let found = interrupts::read(distributor, register + 4 * word);
            // SGIs of a GICv2 are always enabled.
            let is_right = found == 0 || (word, register, found) == (0, 0x100, 0xffff);
            if !is_right {
                wrong(format_args!("{what} is {found:#x} of the word {word}"));
            }
        }
    }
    interrupts::switch_on(V3.load(Ordering::Relaxed));
    interrupts::set_up(0);
    interrupts::tick();
    for _ in 0..10 {
        interrupts::send(CALL, 0);
        let taken = interrupts::wait();
        if taken != CALL {
            wrong(format_args!("interrupt {taken} instead of an SGI"));
        }
    }
}
