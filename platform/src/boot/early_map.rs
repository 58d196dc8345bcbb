//! The first translation tables: an identity map of the image, the device tree and the console, in 2 MiB blocks.
//!
//! They make the caches work, and so the atomic instructions that locks and heap need. The boot CPU builds them by plain stores
//! with the MMU off, and replaces them by those of `address_space` once memory is known. Text is writable here; no input from
//! outside is acted on during that time.

use crate::range::PhysicalRange;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

const BLOCK: u64 = 2 << 20;
const ENTRIES: usize = 512;
/// The root, then at most two tables of two levels for each of image, tree and console.
const TABLES: usize = 13;

const VALID_TABLE: u64 = 0b11;
const VALID_BLOCK: u64 = 0b01;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const ACCESSED: u64 = 1 << 10;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const AP1_RES1: u64 = 1 << 6;
const EXECUTE_NEVER: u64 = 1 << 54;

/// The kind of a mapping.
#[derive(Clone, Copy)]
pub enum Kind {
    /// The image, the tree.
    Memory,
    /// The console's registers.
    Device,
}

impl Kind {
    /// Block attributes. The attribute indices are those of [`crate::el2::set_up::MAIR`].
    const fn attributes(self) -> u64 {
        let common = VALID_BLOCK | ACCESSED | AP1_RES1;
        match self {
            Self::Memory => common | INNER_SHAREABLE | 1 << 2,
            Self::Device => common | EXECUTE_NEVER,
        }
    }
}

#[repr(C, align(4096))]
struct Tables(UnsafeCell<[[u64; ENTRIES]; TABLES]>);

// SAFETY: only the boot CPU uses the tables, before it starts any other.
unsafe impl Sync for Tables {}

static TABLES_MEMORY: Tables = Tables(UnsafeCell::new([[0; ENTRIES]; TABLES]));
static TABLES_USED: AtomicUsize = AtomicUsize::new(1);

/// The root's address, for TTBR0_EL2.
pub fn root() -> u64 {
    (&raw const TABLES_MEMORY) as u64
}

/// Maps the blocks that `range` touches. False if the tables don't suffice, an address has more than 48 bits, or a block
/// is mapped as another kind already.
///
/// # Safety
/// Only for the boot CPU, before others run, one call at a time.
pub unsafe fn map(range: PhysicalRange, kind: Kind) -> bool {
    let range = range.grow_to(BLOCK);
    // SAFETY: the caller is the only one who uses the tables.
    let tables = unsafe { &mut *TABLES_MEMORY.0.get() };
    let mut block = range.start();
    while block < range.end() {
        if block >> 48 != 0 || !map_block(tables, block, kind) {
            return false;
        }
        block += BLOCK;
    }
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::NSHST);
    true
}

fn map_block(tables: &mut [[u64; ENTRIES]; TABLES], block: u64, kind: Kind) -> bool {
    let mut table = 0;
    for shift in [39, 30] {
        let entry = tables[table][index(block, shift)];
        table = if entry == 0 {
            // A load and a store, not an exchange: the MMU is off.
            let next = TABLES_USED.load(Ordering::Relaxed);
            if next == TABLES {
                return false;
            }
            TABLES_USED.store(next + 1, Ordering::Relaxed);
            tables[table][index(block, shift)] =
                (root() + (next * size_of::<[u64; ENTRIES]>()) as u64) | VALID_TABLE;
            next
        } else {
            ((entry & ADDRESS) - root()) as usize / size_of::<[u64; ENTRIES]>()
        };
    }
    let entry = &mut tables[table][index(block, 21)];
    let wanted = block | kind.attributes();
    if *entry == 0 {
        *entry = wanted;
    }
    *entry == wanted
}

const fn index(address: u64, shift: u32) -> usize {
    (address >> shift) as usize % ENTRIES
}
