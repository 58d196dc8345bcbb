//! From the first instruction to Rust, on every vCPU, and the constant stage-1 table.

use crate::{Tree, code};
use core::arch::global_asm;
use core::cell::UnsafeCell;
use smccc::Hvc;
use smccc::psci::error::Error;

/// The most vCPUs that a guest has stacks for.
pub const MAX_VCPUS: usize = 128;
const STACK_BYTES: usize = 8 << 10;
/// Affinity level 0 of MPIDR_EL1 has this many values; level 1 is next to it.
const CLUSTER: usize = 16;
/// The last word of an image.
const MAGIC: u64 = u64::from_le_bytes(*b"PARVGEND");

const GIB_SHIFT: u32 = 30;
/// Entries of a table. Of a level-1 table that is 512 GiB, or 39 bits of address.
pub const TABLE_ENTRIES: usize = 512;
/// Block descriptor: valid, attribute 0, inner shareable, accessed, EL1 only (Arm ARM D8.3).
const BLOCK: u64 = 1 | 0b11 << 8 | 1 << 10 | 1 << 54;
/// Attribute 0: normal memory, write-back.
const MAIR: u64 = 0xff;
/// 39 bits by TTBR0, walks write-back and inner shareable, 4 KiB granule; no walks by TTBR1.
const TCR: u64 = 25 | 0b01 << 8 | 0b01 << 10 | 0b11 << 12 | 1 << 23;
/// The bits that are 1 in ARMv8.0; MMU, data and instruction caches, stack alignment checks.
const SCTLR: u64 = 0x30d0_0800 | 1 | 1 << 2 | 1 << 12 | 1 << 3;

global_asm!(
    include_str!("start.S"),
    magic = const MAGIC,
    boot_main = sym boot_main,
    secondary_main = sym secondary_main,
    report = const abi::REPORT as u64,
    truncated_code = const code::TRUNCATED,
    stacks = sym STACKS,
    stack_bytes = const STACK_BYTES,
    mair = const MAIR,
    tcr = const TCR,
    table = sym TABLE,
    sctlr = const SCTLR,
    frame_bytes = const size_of::<crate::exceptions::Frame>(),
    exception = sym crate::exceptions::exception,
);

/// The identity map: blocks of 1 GiB.
#[repr(align(4096))]
struct Table([u64; TABLE_ENTRIES]);

static TABLE: Table = {
    let mut entries = [BLOCK; TABLE_ENTRIES];
    let mut gib = 0;
    while gib < TABLE_ENTRIES {
        entries[gib] |= (gib as u64) << GIB_SHIFT;
        gib += 1;
    }
    Table(entries)
};

/// The entries of the level-1 table that every vCPU starts with: each of its gigabytes at its own address.
pub fn identity_map() -> &'static [u64; TABLE_ENTRIES] {
    &TABLE.0
}

#[repr(align(16))]
struct Stacks(
    #[expect(dead_code, reason = "only start.S uses it")]
    UnsafeCell<[[u8; STACK_BYTES]; MAX_VCPUS]>,
);

// SAFETY: no Rust code touches it; each vCPU has the stack of its index.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK_BYTES]; MAX_VCPUS]));

unsafe extern "C" {
    fn secondary_start();
}

unsafe extern "Rust" {
    safe fn guest_main(tree: Tree) -> !;
    safe fn guest_secondary(index: usize) -> !;
}

/// Names a guest's entries: `fn(Tree) -> !` for the first vCPU, `fn(usize) -> !` for those that [`start_vcpu`] starts.
#[macro_export]
macro_rules! entry {
    ($main:path, $secondary:path) => {
        // SAFETY: the runtime's own name, defined once by each guest.
        #[unsafe(no_mangle)]
        fn guest_main(tree: $crate::Tree) -> ! {
            $main(tree)
        }

        // SAFETY: as above.
        #[unsafe(no_mangle)]
        fn guest_secondary(index: usize) -> ! {
            $secondary(index)
        }
    };
}

extern "C" fn boot_main(tree: *const u8) -> ! {
    // SAFETY: by the boot protocol x0 holds the tree's address, and nobody changes it.
    guest_main(unsafe { Tree::new(tree) })
}

extern "C" fn secondary_main(index: usize) -> ! {
    guest_secondary(index)
}

/// The affinity of the vCPU with this index, as PSCI takes it.
pub fn affinity(index: usize) -> u64 {
    (((index / CLUSTER) << 8) | (index % CLUSTER)) as u64
}

/// The index of the calling vCPU.
pub fn index() -> usize {
    let mpidr = crate::read_register!("mpidr_el1") as usize;
    (((mpidr >> 8) & 0xff) * CLUSTER + (mpidr & 0xff)) % MAX_VCPUS
}

/// Where vCPUs are started.
pub fn entry_point() -> u64 {
    secondary_start as *const () as u64
}

/// Starts the vCPU with this index.
///
/// # Errors
/// What PSCI answers.
pub fn start_vcpu(index: usize) -> Result<(), Error> {
    smccc::psci::cpu_on::<Hvc>(affinity(index), entry_point(), index as u64)
}
