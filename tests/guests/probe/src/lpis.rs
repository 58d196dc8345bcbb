//! LPIs: by commands of the ITS, and by writes to its translater, to each vCPU.

use crate::interrupts::{NONE, expect_answer, read, take_and_end, wait, write};
use crate::wrong;
use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use guest_runtime::println;

pub const FIRST: u32 = 8192;
const ROUNDS: usize = 50;
/// The most vCPUs with tables.
const VCPUS: usize = 4;
const QUEUE_COMMANDS: usize = 128;
const PAGE: usize = 4096;
const VALID: u64 = 1 << 63;
/// Registers of the ITS, from where it is.
const CTLR: u64 = 0;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const CREADR: u64 = 0x90;
const BASER0: u64 = 0x100;
const TRANSLATER: u64 = 0x1_0040;
/// Registers of a redistributor.
const PROPBASER: u64 = 0x70;
const PENDBASER: u64 = 0x78;
const PENDING_ZERO: u64 = 1 << 62;
/// An enabled LPI, and a disabled one.
const ENABLED: u8 = 0xa1;
const DISABLED: u8 = 0xa0;

/// In memory that isn't used for anything else.
#[repr(C, align(65536))]
struct Tables {
    pending: [[AtomicU8; 0x1_0000]; VCPUS],
    properties: [AtomicU8; 0x2000],
    queue: [[AtomicU64; 4]; QUEUE_COMMANDS],
    devices: [AtomicU8; PAGE],
    collections: [AtomicU8; PAGE],
    events: [AtomicU8; PAGE],
}

static TABLES: Tables = Tables {
    pending: [const { [const { AtomicU8::new(0) }; 0x1_0000] }; VCPUS],
    properties: [const { AtomicU8::new(0) }; 0x2000],
    queue: [const { [const { AtomicU64::new(0) }; 4] }; QUEUE_COMMANDS],
    devices: [const { AtomicU8::new(0) }; PAGE],
    collections: [const { AtomicU8::new(0) }; PAGE],
    events: [const { AtomicU8::new(0) }; PAGE],
};
/// How often each vCPU has taken an LPI.
static TAKEN: [AtomicUsize; VCPUS] = [const { AtomicUsize::new(0) }; VCPUS];

/// What a vCPU does before it takes LPIs.
pub fn set_up(redistributor: u64, vcpu: usize) {
    let Some(pending) = TABLES.pending.get(vcpu) else {
        wrong(format_args!("too many vCPUs for LPIs"));
    };
    TABLES
        .properties
        .iter()
        .take(64)
        .for_each(|property| property.store(ENABLED, Ordering::Relaxed));
    write_double(redistributor, PROPBASER, address(&TABLES.properties) | 13);
    write_double(redistributor, PENDBASER, address(pending) | PENDING_ZERO);
    write(redistributor, 0, 1);
    if read(redistributor, 0) & 1 == 0 {
        wrong(format_args!("vCPU {vcpu}: LPIs stay off"));
    }
}

/// A vCPU has taken one, which has to be its own.
pub fn note(vcpu: usize, lpi: u32) {
    if lpi != FIRST + vcpu as u32 {
        wrong(format_args!("vCPU {vcpu} has taken LPI {lpi}"));
    }
    if let Some(taken) = TAKEN.get(vcpu) {
        taken.fetch_add(1, Ordering::AcqRel);
    }
}

struct Its {
    address: u64,
    writer: usize,
}

impl Its {
    /// Executes commands.
    fn execute(&mut self, commands: &[[u64; 4]]) {
        for command in commands {
            for (place, word) in TABLES.queue[self.writer].iter().zip(command) {
                place.store(*word, Ordering::Relaxed);
            }
            self.writer = (self.writer + 1) % QUEUE_COMMANDS;
        }
        // SAFETY: a barrier: the commands are written when the ITS is told of them.
        unsafe { core::arch::asm!("dsb ishst", options(nostack, preserves_flags)) };
        write_double(self.address, CWRITER, self.writer as u64 * 32);
        let before = crate::interrupts::now();
        while read(self.address, CREADR) != self.writer as u32 * 32 {
            if crate::interrupts::now() - before > 1 << 32 {
                wrong(format_args!("the command queue doesn't go on"));
            }
        }
    }
}

/// Takes LPIs on each vCPU, the first of which calls this.
pub fn probe(address: u64, vcpus: usize) {
    let mut its = Its { address, writer: 0 };
    write_double(address, BASER0, self::address(&TABLES.devices) | VALID);
    write_double(
        address,
        BASER0 + 8,
        self::address(&TABLES.collections) | VALID,
    );
    write_double(address, CBASER, self::address(&TABLES.queue) | VALID);
    write(address, CTLR, 1);
    its.execute(&[[8, 4, VALID | self::address(&TABLES.events), 0]]);
    for vcpu in 0..vcpus as u64 {
        let (map, sync) = ([9, 0, VALID | vcpu << 16 | vcpu, 0], [5, 0, vcpu << 16, 0]);
        let event = [0xa, (u64::from(FIRST) + vcpu) << 32 | vcpu, vcpu, 0];
        its.execute(&[map, event, [0xd, 0, vcpu, 0], sync]);
    }
    let before = crate::interrupts::now();
    for round in 1..=ROUNDS {
        for (vcpu, taken) in TAKEN.iter().enumerate().take(vcpus) {
            if round % 2 == 0 {
                its.execute(&[[3, vcpu as u64, 0, 0]]);
            } else {
                write(address, TRANSLATER, vcpu as u32);
            }
            take(vcpu);
            let taken = taken.load(Ordering::Acquire);
            if taken != round {
                wrong(format_args!("vCPU {vcpu}: {taken} LPIs of {round}"));
            }
        }
    }
    let ticks = (crate::interrupts::now() - before) / (ROUNDS * vcpus) as u64;
    println!("{ticks} ticks an LPI and its answer");
    change(&mut its, vcpus);
    println!("LPIs: done");
}

/// Waits until a vCPU has taken its LPI.
fn take(vcpu: usize) {
    if vcpu == 0 {
        note(0, wait());
    } else {
        expect_answer();
    }
}

/// What is moved, disabled, or discarded.
fn change(its: &mut Its, vcpus: usize) {
    let last = vcpus as u64 - 1;
    let (sync, raise) = ([5, 0, 0, 0], [3, 0, 0, 0]);
    let invalidate = [0xc, 0, 0, 0];
    let none = |why: &str| {
        let left = take_and_end();
        if left != NONE {
            wrong(format_args!("interrupt {left}: {why}"));
        }
    };
    // Of vCPU 0, on the last one, which would complain of another's, and back.
    its.execute(&[[1, last, 0, 0], sync, [3, last, 0, 0]]);
    let taken = wait();
    if taken != FIRST + last as u32 {
        wrong(format_args!("LPI {taken} instead of the last vCPU's"));
    }
    its.execute(&[[1, last, last, 0], sync, [3, last, 0, 0]]);
    take(last as usize);
    TABLES.properties[0].store(DISABLED, Ordering::Release);
    its.execute(&[invalidate, sync, raise]);
    none("it is disabled");
    TABLES.properties[0].store(ENABLED, Ordering::Release);
    its.execute(&[invalidate, sync]);
    take(0);
    its.execute(&[raise, [0xf, 0, 0, 0], sync, raise]);
    none("it is discarded");
}

fn address<T>(table: &T) -> u64 {
    core::ptr::from_ref(table) as u64
}

fn write_double(frame: u64, offset: u64, value: u64) {
    // SAFETY: a register of the GIC; the tables that it names are nobody else's.
    unsafe { ((frame + offset) as *mut u64).write_volatile(value) }
}
