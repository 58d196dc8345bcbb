//! An attack on walks of this guest's tables that the hypervisor makes: while the first vCPU calls code in a page that
//! may not be executed, or stores to one that stage 2 has read-only, which makes the hypervisor ask where that page is, the
//! second one puts a device's registers in the place of the table that says so, and takes them away again. What such a walk
//! reads there the hypervisor must survive, and the store must not become an undefined instruction.

use crate::wrong;
use abi::{BALLOON, SUCCESS};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use guest_runtime::{
    TABLE_ENTRIES, Tree, call, expect_exception, identity_map, println, read_register, start_vcpu,
};

/// How long the attack takes.
const SECONDS: u64 = 3;
/// The gigabyte of virtual addresses that the attack uses: nothing is there.
const GIB: usize = 400;
/// The entry of the last table by which the page is mapped. In the device that is the register that the walk reads.
const ENTRY: usize = 0;
const PAGE: u64 = 4096;
/// The page of RAM that is stored to: nothing else of the program is there.
const STORED: u64 = crate::memory::START;
/// A table or a page: valid, and not a block.
const TABLE_OR_PAGE: u64 = 0b11;
/// A page of normal memory that is accessed, inner shareable, executable at EL1 (Arm ARM D8.3).
const EXECUTABLE: u64 = TABLE_OR_PAGE | 0b11 << 8 | 1 << 10;
/// What PAR_EL1 holds all the while: a failed translation, of a kind that nothing here makes.
const PAR: u64 = 1 | 0x30 << 1 | 1 << 11;

#[repr(C, align(4096))]
struct Table([AtomicU64; TABLE_ENTRIES]);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; TABLE_ENTRIES])
    }

    fn set(&self, entry: usize, descriptor: u64) {
        self.0[entry].store(descriptor, Ordering::Release);
    }

    /// The descriptor that leads to this table.
    fn descriptor(&self) -> u64 {
        core::ptr::from_ref(self) as u64 | TABLE_OR_PAGE
    }
}

static ROOT: Table = Table::new();
static MIDDLE: Table = Table::new();
static LAST: Table = Table::new();
/// Where the device's registers are; 0 while this isn't what vCPUs are started for.
static DEVICE: AtomicU64 = AtomicU64::new(0);
static IS_OVER: AtomicBool = AtomicBool::new(false);

/// Whether this is what vCPUs are started for.
pub fn is_wanted() -> bool {
    DEVICE.load(Ordering::Acquire) != 0
}

/// What the second vCPU does.
pub fn secondary() -> ! {
    let (table, device) = (LAST.descriptor(), DEVICE.load(Ordering::Acquire));
    while !IS_OVER.load(Ordering::Acquire) {
        MIDDLE.set(0, device | TABLE_OR_PAGE);
        MIDDLE.set(0, table);
    }
    guest_runtime::turn_off()
}

/// What the first vCPU does.
pub fn probe(tree: Tree) {
    let Some(device) = tree.registers("arm,pl031") else {
        wrong(format_args!("the device tree has no clock"));
    };
    DEVICE.store(device, Ordering::Release);
    for (entry, descriptor) in identity_map().iter().enumerate() {
        ROOT.set(entry, *descriptor);
    }
    ROOT.set(GIB, MIDDLE.descriptor());
    MIDDLE.set(0, LAST.descriptor());
    LAST.set(ENTRY, device | EXECUTABLE);
    // SAFETY: all that the program uses is mapped as before.
    unsafe {
        asm!("dsb ish", "msr ttbr0_el1, {}", "isb", "tlbi vmalle1", "dsb nsh", "isb", in(reg) &ROOT, options(nostack));
        asm!("msr par_el1, {}", "isb", in(reg) PAR, options(nostack));
    }
    if let Err(error) = start_vcpu(1) {
        wrong(format_args!("vCPU 1 can't be started: {error}"));
    }
    let calls = call_all_the_while();
    // No table is read while this changes: nobody uses the page.
    LAST.set(ENTRY, STORED | EXECUTABLE);
    let stores = store_all_the_while();
    IS_OVER.store(true, Ordering::Release);
    println!("{calls} calls, {stores} stores: done");
}

/// Calls code that can't be executed; how often.
fn call_all_the_while() -> u64 {
    let end = read_register!("cntvct_el0") + SECONDS * read_register!("cntfrq_el0");
    let (code, mut calls) = (((GIB as u64) << 30) | (ENTRY as u64 * PAGE), 0u64);
    while read_register!("cntvct_el0") < end {
        calls += 1;
        let taken = expect_exception(|| {
            // SAFETY: there is nothing that could be executed, so it comes back at once.
            unsafe { asm!("blr {}", in(reg) code, clobber_abi("C")) };
        });
        let par = read_register!("par_el1");
        if taken.is_none() || par != PAR {
            wrong(format_args!("call {calls}: {taken:x?}, PAR_EL1 {par:#x}"));
        }
    }
    calls
}

/// Gives the page up, reads it, which maps zeros, and stores to it by what the TLB has kept; how often that went well. Where the
/// table is a device meanwhile, the guest's own accesses may abort, but none of them is an undefined instruction.
fn store_all_the_while() -> u64 {
    const UNKNOWN: u64 = 0;
    let end = read_register!("cntvct_el0") + SECONDS * read_register!("cntfrq_el0");
    let (page, mut stores) = (((GIB as u64) << 30) | (ENTRY as u64 * PAGE), 0u64);
    while read_register!("cntvct_el0") < end {
        let [status, ..] = call(BALLOON, [STORED, PAGE, 0]);
        if status != SUCCESS {
            wrong(format_args!("the page can't be given up: {status:#x}"));
        }
        expect_exception(|| {
            // SAFETY: the page is nobody's.
            unsafe { asm!("ldr {}, [{}]", out(reg) _, in(reg) page, options(nostack)) };
        });
        let taken = expect_exception(|| {
            // SAFETY: as above.
            unsafe { asm!("str {0}, [{0}]", in(reg) page, options(nostack)) };
        });
        match taken {
            None => stores += 1,
            Some(taken) if taken.esr >> 26 == UNKNOWN => {
                wrong(format_args!("store {stores}: {taken:x?}"));
            }
            Some(_) => {}
        }
    }
    stores
}
