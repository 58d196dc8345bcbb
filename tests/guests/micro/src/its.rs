//! The ITS, as far as one LPI of one device needs it: its first event.

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_runtime::read_register;

use crate::gic::{self, barrier, distributor, isb, redistributor};
use crate::wrong;

/// From the distributor on a `virt` machine.
const ITS: u64 = 0x8_0000;
/// Registers (IHI 0069, 12.19, 12.11, 12.9).
const CONTROL: u64 = 0;
const QUEUE: u64 = 0x80;
const WRITER: u64 = 0x88;
const READER: u64 = 0x90;
const TABLES: u64 = 0x100;
const PROPERTIES: u64 = 0x70;
const PENDING: u64 = 0x78;
const TYPE: u64 = 4;
/// GICD_TYPER.LPIS.
const HAS_LPIS: u32 = 1 << 17;
const ENABLED: u32 = 1;
const VALID: u64 = 1 << 63;
/// GITS_BASER: pages of 64 KiB, of which there is one.
const PAGE_64K: u64 = 2 << 8;
/// GITS_BASER.Type: of devices, of collections.
const DEVICES: u64 = 1;
const COLLECTIONS: u64 = 4;
/// GICR_PENDBASER.PTZ: nothing is pending.
const NOTHING: u64 = 1 << 62;
/// GICR_PROPBASER.IDbits: as few as there can be with LPIs.
const INTID_BITS: u64 = 14;
/// Priority 0xa0, enabled.
const PROPERTY: u8 = 0xa1;

/// Commands.
const INT: u64 = 0x03;
const MAP_DEVICE: u64 = 0x08;
const MAP_COLLECTION: u64 = 0x09;
const MAP_EVENT: u64 = 0x0a;
const INVALIDATE: u64 = 0x0c;
const COMMAND_BYTES: u64 = 32;
const QUEUE_BYTES: u64 = 4 << 10;
/// The only device, event and collection are 0. Its events have so many bits, less one.
const EVENT_BITS: u64 = 1;
const LPI: u64 = 8192;

/// Memory that the ITS and a redistributor have.
#[repr(C, align(65536))]
struct Memory {
    devices: [u8; 64 << 10],
    collections: [u8; 64 << 10],
    pending: [u8; 64 << 10],
    queue: UnsafeCell<[[u64; 4]; (QUEUE_BYTES / COMMAND_BYTES) as usize]>,
    properties: UnsafeCell<[u8; 8 << 10]>,
    events: [u8; 256],
}

// SAFETY: the first vCPU alone writes it, by volatile writes.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory {
    devices: [0; _],
    collections: [0; _],
    pending: [0; _],
    queue: UnsafeCell::new([[0; 4]; _]),
    properties: UnsafeCell::new([0; _]),
    events: [0; _],
};
/// The offset of the next command.
static NEXT: AtomicU64 = AtomicU64::new(0);

fn address<T>(memory: &T) -> u64 {
    (&raw const *memory) as u64
}

/// Maps an event to an LPI of a vCPU. Returns whether there is an ITS. For the first vCPU.
pub fn set_up(vcpu: usize) -> bool {
    if gic::read(distributor(), TYPE) & HAS_LPIS == 0 {
        return false;
    }
    // SAFETY: no LPI is forwarded yet.
    unsafe {
        MEMORY
            .properties
            .get()
            .cast::<u8>()
            .write_volatile(PROPERTY)
    };
    let frame = redistributor(vcpu);
    gic::write_wide(
        frame,
        PROPERTIES,
        address(&MEMORY.properties) | (INTID_BITS - 1),
    );
    gic::write_wide(frame, PENDING, address(&MEMORY.pending) | NOTHING);
    barrier();
    gic::write(frame, CONTROL, ENABLED);
    let its = distributor() + ITS;
    for table in (TABLES..TABLES + 64).step_by(8) {
        let memory = match gic::read_wide(its, table) >> 56 & 7 {
            DEVICES => address(&MEMORY.devices),
            COLLECTIONS => address(&MEMORY.collections),
            _ => continue,
        };
        gic::write_wide(its, table, VALID | memory | PAGE_64K);
    }
    gic::write_wide(its, QUEUE, VALID | address(&MEMORY.queue));
    gic::write(its, CONTROL, ENABLED);
    let target = (vcpu as u64) << 16;
    command([MAP_DEVICE, EVENT_BITS, VALID | address(&MEMORY.events), 0]);
    command([MAP_COLLECTION, 0, VALID | target, 0]);
    command([MAP_EVENT, LPI << 32, 0, 0]);
    command([INVALIDATE, 0, 0, 0]);
    true
}

/// Raises the LPI, by a command.
#[inline(always)]
pub fn raise() {
    post([INT, 0, 0, 0]);
}

/// Has a command executed.
fn command(words: [u64; 4]) {
    post(words);
    let its = distributor() + ITS;
    let began = read_register!("cntvct_el0");
    while gic::read_wide(its, READER) != NEXT.load(Ordering::Relaxed) {
        if read_register!("cntvct_el0") - began > read_register!("cntfrq_el0") {
            wrong(format_args!(
                "the ITS doesn't execute command {:#x}",
                words[0]
            ));
        }
        spin_loop();
    }
}

/// Writes a command, and that there is one.
#[inline(always)]
fn post(words: [u64; 4]) {
    let offset = NEXT.load(Ordering::Relaxed);
    let next = (offset + COMMAND_BYTES) % QUEUE_BYTES;
    let queue = MEMORY.queue.get().cast::<[u64; 4]>();
    // SAFETY: inside of the queue; what was there was executed.
    unsafe { queue.byte_add(offset as usize).write_volatile(words) };
    NEXT.store(next, Ordering::Relaxed);
    barrier();
    gic::write_wide(distributor() + ITS, WRITER, next);
    isb();
}
