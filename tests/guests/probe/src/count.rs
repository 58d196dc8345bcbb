//! Counts interrupts under load: of every SGI, tick and interrupt of a device that was asked for, one is taken, on a machine like
//! QEMU's virt.
//!
//! Each vCPU sends SGIs to the next, and ticks. The first one also has interrupts raised by the clock, by the UART, which loops
//! back, and by hand, on whichever vCPU it routes them to, and moves, disables and enables them on the way. The next of a kind is
//! asked for when the one before was taken, which may be active still.

use crate::calls::Random;
use crate::hostile::{argument, patience, until};
use crate::interrupts::{self, NONE, VIRTUAL_TIMER, write_register};
use crate::wrong;
use core::fmt::Arguments;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use guest_runtime::{Tree, affinity, println, read_register, start_vcpu};

const UART: u64 = 0x0900_0000;
const RTC: u64 = 0x0901_0000;
/// The INTIDs of UART, clock, and of what is raised by hand.
const DEVICES: [u32; 3] = [33, 34, 35];
/// The second of the clock's alarm, which no other comes near.
const ALARM: u32 = 1 << 31;
/// SGIs have numbers: one for each sender.
const MOST_VCPUS: usize = 16;

static WANTED: AtomicBool = AtomicBool::new(false);
static V3: AtomicBool = AtomicBool::new(false);
static VCPUS: AtomicUsize = AtomicUsize::new(0);
static WANTED_EACH: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicUsize = AtomicUsize::new(0);
static LEFT: AtomicUsize = AtomicUsize::new(0);

/// Interrupts of one kind.
struct Count {
    asked: AtomicU64,
    taken: AtomicU64,
}

impl Count {
    const fn new() -> Self {
        Self {
            asked: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        }
    }

    /// Asks for the next, if the one before was taken, and there aren't `most`.
    fn ask(&self, most: u64) -> bool {
        let asked = self.asked.load(Ordering::Relaxed);
        let is_next = asked < most && self.taken.load(Ordering::Acquire) == asked;
        if is_next {
            self.asked.store(asked + 1, Ordering::Release);
        }
        is_next
    }

    fn take(&self, what: &str, intid: u32) {
        // Once it is taken the next may be asked for.
        let asked = self.asked.load(Ordering::Acquire);
        let taken = self.taken.load(Ordering::Relaxed) + 1;
        let is_counted = taken == asked
            && (self.taken)
                .compare_exchange(asked - 1, asked, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
        if !is_counted {
            fail(format_args!(
                "{what} {intid} came {taken} times and was asked for {asked} times"
            ));
        }
    }

    fn is_done(&self, most: u64) -> bool {
        self.taken.load(Ordering::Acquire) == most
    }
}

/// By sender.
static SGIS: [Count; MOST_VCPUS] = [const { Count::new() }; MOST_VCPUS];
static TICKS: [Count; MOST_VCPUS] = [const { Count::new() }; MOST_VCPUS];
static RAISED: [Count; DEVICES.len()] = [const { Count::new() }; DEVICES.len()];

/// Whether all vCPUs are wanted for this probe.
pub fn is_wanted() -> bool {
    WANTED.load(Ordering::Acquire)
}

/// Says what is wrong, on a UART that doesn't loop back any more.
fn fail(what: Arguments<'_>) -> ! {
    quiet();
    wrong(what)
}

/// Has the UART send what it is given, and nothing raise interrupts.
fn quiet() {
    // CR, IMSC
    interrupts::write(UART, 0x30, 0x301);
    interrupts::write(UART, 0x38, 0);
}

/// Counts `each` interrupts of each kind.
pub fn probe(tree: Tree, arguments: &str) -> ! {
    let v3 = interrupts::find(tree);
    let vcpus = tree.vcpus().min(MOST_VCPUS);
    let each = argument(arguments, "each", 1000);
    let mut random = Random::new(argument(arguments, "seed", 1));
    V3.store(v3, Ordering::Relaxed);
    VCPUS.store(vcpus, Ordering::Relaxed);
    WANTED_EACH.store(each, Ordering::Relaxed);
    WANTED.store(true, Ordering::Release);
    set_up_devices(v3);
    for vcpu in 1..vcpus {
        if start_vcpu(vcpu).is_err() {
            fail(format_args!("vCPU {vcpu} doesn't start"));
        }
    }
    let mut raise = |random: &mut Random| raise_some(random, each);
    run(0, &mut random, &mut raise);
    quiet();
    let (sgis, ticks) = (each * vcpus as u64, each * vcpus as u64);
    let raised = each * DEVICES.len() as u64;
    println!("count: {sgis} SGIs, {ticks} ticks, {raised} of devices, none lost and none twice");
    guest_runtime::power_off()
}

/// What every vCPU but the first does.
pub fn secondary(own: usize) -> ! {
    let mut random = Random::new(own as u64 + 100);
    run(own, &mut random, &mut |_| true);
    guest_runtime::turn_off()
}

/// Takes interrupts until all have come. `more` asks for others, and says when all of these have come.
fn run(own: usize, random: &mut Random, more: &mut dyn FnMut(&mut Random) -> bool) {
    let each = WANTED_EACH.load(Ordering::Relaxed);
    let vcpus = VCPUS.load(Ordering::Relaxed);
    set_up(own);
    let mut is_over = false;
    let mut end = patience();
    while DONE.load(Ordering::Acquire) != vcpus {
        let taken = interrupts::take();
        if taken & 0x3ff < NONE {
            handle(own, taken, random, each);
            end = patience();
        } else if read_register!("cntvct_el0") > end && !is_over {
            lost(own);
        }
        if SGIS[own].ask(each) {
            interrupts::send(own as u32, (own + 1) % vcpus);
        }
        let all = more(random);
        let is_done = all && SGIS[own].is_done(each) && TICKS[own].is_done(each);
        if is_done && !is_over {
            is_over = true;
            DONE.fetch_add(1, Ordering::AcqRel);
        }
        if random.next().is_multiple_of(4) && !TICKS[own].is_done(each) {
            // The next tick ends it at the latest.
            // SAFETY: waiting changes nothing.
            unsafe { core::arch::asm!("wfi", options(nomem, nostack, preserves_flags)) };
        }
    }
    let soon = read_register!("cntvct_el0") + read_register!("cntfrq_el0") / 1000;
    while read_register!("cntvct_el0") < soon {
        let left = interrupts::take();
        if left & 0x3ff != NONE {
            fail(format_args!("vCPU {own}: interrupt {left} comes after all"));
        }
    }
    LEFT.fetch_add(1, Ordering::AcqRel);
    until("all vCPUs", || LEFT.load(Ordering::Acquire) == vcpus);
}

/// Says which interrupts have been waited for in vain.
fn lost(own: usize) -> ! {
    quiet();
    for (what, counts) in [
        ("SGI", &SGIS[..]),
        ("tick", &TICKS[..]),
        ("device", &RAISED[..]),
    ] {
        for (number, count) in counts.iter().enumerate() {
            let (asked, taken) = (
                count.asked.load(Ordering::Acquire),
                count.taken.load(Ordering::Acquire),
            );
            if asked != taken {
                println!("{what} {number}: asked for {asked} times, taken {taken} times");
            }
        }
    }
    fail(format_args!("vCPU {own} waited in vain"))
}

fn handle(own: usize, taken: u32, random: &mut Random, each: u64) {
    match taken & 0x3ff {
        VIRTUAL_TIMER => {
            let early = read_register!("cntvct_el0") < read_register!("cntv_cval_el0");
            if early || read_register!("cntv_ctl_el0") & 1 == 0 {
                fail(format_args!("vCPU {own}: a tick that isn't due"));
            }
            TICKS[own].take("the tick of vCPU", own as u32);
            tick(own, random, each);
        }
        sender @ 0..16 => SGIS[sender as usize].take("SGI", sender),
        device => {
            let Some(number) = DEVICES.iter().position(|known| *known == device) else {
                fail(format_args!("vCPU {own}: interrupt {device}"));
            };
            // What lowers the line: ICR of the clock, what the UART has got.
            match number {
                0 => _ = interrupts::read(UART, 0),
                1 => interrupts::write(RTC, 0x1c, 1),
                _ => {}
            }
            RAISED[number].take("the device's", device);
        }
    }
    interrupts::end(taken);
}

/// The next tick.
fn tick(own: usize, random: &mut Random, each: u64) {
    if TICKS[own].ask(each) {
        let soon = read_register!("cntvct_el0") + random.next() % 2048;
        write_register!("cntv_cval_el0", soon);
        write_register!("cntv_ctl_el0", 1);
    } else {
        write_register!("cntv_ctl_el0", 0);
    }
}

fn set_up(own: usize) {
    interrupts::set_up(own);
    let private = interrupts::private_frame(own);
    interrupts::write(private, 0x100, 0xffff | 1 << VIRTUAL_TIMER); // ISENABLER0
    let mut random = Random::new(own as u64);
    tick(own, &mut random, WANTED_EACH.load(Ordering::Relaxed));
}

fn set_up_devices(v3: bool) {
    let distributor = interrupts::distributor();
    interrupts::switch_on(v3);
    if v3 {
        interrupts::write(distributor, 0x84, u32::MAX); // IGROUPR1
    }
    interrupts::write(distributor, 0x420, 0xa0a0_a0a0); // IPRIORITYR
    interrupts::write(distributor, 0xc08, 2 << (2 * 3)); // ICFGR2: 35 is an edge
    DEVICES.iter().for_each(|device| route(*device, 0));
    interrupts::write(distributor, 0x104, 0b1110); // ISENABLER1
    // UART: CR with LBE, FIFOs, IMSC of the timeout. RTC: IMSC.
    interrupts::write(UART, 0x30, 0x381);
    interrupts::write(UART, 0x2c, 0x70);
    interrupts::write(UART, 0x44, 0x7ff);
    interrupts::write(UART, 0x38, 1 << 6);
    // MR, ICR
    interrupts::write(RTC, 4, ALARM);
    interrupts::write(RTC, 0x1c, 1);
    interrupts::write(RTC, 0x10, 1);
}

/// Has devices raise their interrupts, and changes what it may on their way.
fn raise_some(random: &mut Random, each: u64) -> bool {
    let distributor = interrupts::distributor();
    let vcpus = VCPUS.load(Ordering::Relaxed);
    for (number, device) in DEVICES.iter().enumerate() {
        let bits = random.next();
        if RAISED[number].ask(each) {
            route(*device, (bits >> 8) as usize % vcpus);
            match number {
                0 => interrupts::write(UART, 0, b'x'.into()),
                // LR: the count is that of the alarm now.
                1 => interrupts::write(RTC, 8, ALARM),
                _ => interrupts::write(distributor, 0x204, 1 << (device - 32)), // ISPENDR1
            }
            match bits & 7 {
                0 => route(*device, (bits >> 16) as usize % vcpus),
                1 => {
                    interrupts::write(distributor, 0x184, 1 << (device - 32)); // ICENABLER1
                    interrupts::write(distributor, 0x104, 1 << (device - 32));
                }
                _ => {}
            }
        }
    }
    RAISED.iter().all(|count| count.is_done(each))
}

fn route(device: u32, vcpu: usize) {
    let distributor = interrupts::distributor();
    if V3.load(Ordering::Relaxed) {
        // By halves.
        let register = 0x6000 + 8 * u64::from(device);
        interrupts::write(distributor, register, affinity(vcpu) as u32);
        interrupts::write(distributor, register + 4, 0);
    } else {
        let target = (distributor + 0x800 + u64::from(device)) as *mut u8;
        // SAFETY: a register of the GIC, which does nothing to memory.
        unsafe { target.write_volatile(1 << vcpu) };
    }
}
