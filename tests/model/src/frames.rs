//! Where tables live: frames on the host's heap that are counted, run out when a test wants them to, and wait for an epoch.
//! Any number of threads may use them at once.
//!
//! A frame's address is made up, high in the physical address space, so that descriptors need all of their address bits. A
//! slot per address holds the pointer, so no pointer is ever made of an integer; and looking one up takes no lock, as that
//! would order accesses which only the tables themselves may order (Miri sees it when they don't). Or it is the frame's own
//! address, as on a machine whose memory is mapped one to one: for a checker that reads tables by their addresses.

use std::alloc::{self, Layout as Allocation};
use std::collections::HashMap;
use std::ptr::{self, NonNull, with_exposed_provenance_mut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, Ordering};

use stage2::{Descriptor, Entry, Epoch, Layout, Level, Pa, TableFrame, TableMemory, Unlinked};

use crate::locked;

/// Most frames at a time that have made-up addresses.
const SLOTS: usize = if cfg!(any(miri, loom)) { 64 } else { 4096 };

/// What allocations may still succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Supply {
    /// All.
    #[default]
    Unlimited,
    /// So many more; what is given back doesn't count.
    Left(usize),
    /// So many at a time: what is given back can be had again.
    Pool(usize),
    /// So many more, then one fails, then all succeed again.
    FailsAfter(usize),
}

impl Supply {
    /// Whether the next allocation succeeds.
    pub fn take(&mut self) -> bool {
        match self {
            Self::Unlimited => true,
            Self::Left(0) | Self::Pool(0) => false,
            Self::Left(left) | Self::Pool(left) => {
                *left -= 1;
                true
            }
            Self::FailsAfter(0) => {
                *self = Self::Unlimited;
                false
            }
            Self::FailsAfter(more) => {
                *more -= 1;
                true
            }
        }
    }

    /// A frame that no walker has seen comes back.
    pub fn give_back(&mut self) {
        if let Self::Pool(left) = self {
            *left += 1;
        }
    }
}

/// What addresses frames have.
#[derive(Debug)]
enum Addresses {
    /// Their own.
    Own,
    /// Made-up ones.
    MadeUp {
        base: Pa,
        slots: Vec<AtomicPtr<Entry>>,
        taken: Mutex<Vec<bool>>,
    },
}

/// Table frames of one layout.
#[derive(Debug)]
pub struct Frames {
    layout: Layout,
    addresses: Addresses,
    /// How many frames begin at each address.
    runs: Mutex<HashMap<u64, usize>>,
    supply: Mutex<Supply>,
}

impl Frames {
    /// For tables of this layout, with made-up addresses.
    pub fn new(layout: Layout) -> Self {
        let vacant = || AtomicPtr::new(ptr::null_mut());
        Self {
            addresses: Addresses::MadeUp {
                base: Pa::new(3 << (layout.pa_bits() - 2)),
                slots: (0..SLOTS).map(|_| vacant()).collect(),
                taken: Mutex::new(vec![false; SLOTS]),
            },
            ..Self::at_their_addresses(layout)
        }
    }

    /// For tables of this layout, with the addresses that they have on the host.
    pub fn at_their_addresses(layout: Layout) -> Self {
        Self {
            layout,
            addresses: Addresses::Own,
            runs: Mutex::default(),
            supply: Mutex::default(),
        }
    }

    /// Where a run of tables lies: aligned to its size. Model checking's entries are larger than a word.
    fn allocation(&self, tables: usize) -> Allocation {
        let size = tables * self.layout.table_size() as usize;
        Allocation::from_size_align(size, size.next_power_of_two()).expect("a small layout")
    }

    /// Frames that are allocated now.
    pub fn live(&self) -> usize {
        locked(&self.runs).values().sum()
    }

    /// Lets `count` more allocations succeed.
    pub fn limit(&self, count: usize) {
        self.set_supply(Supply::Left(count));
    }

    /// Says which allocations succeed from now on.
    pub fn set_supply(&self, supply: Supply) {
        *locked(&self.supply) = supply;
    }

    fn slot(&self, base: Pa, pa: Pa) -> usize {
        let slot = pa.get().checked_sub(base.get());
        let slot = slot.expect("an address of a table") / self.layout.table_size();
        usize::try_from(slot).expect("an address of a table")
    }

    /// A run of empty tables, aligned to its size in pages.
    pub(crate) fn allocate_run(&self, tables: usize) -> TableFrame {
        // SAFETY: the layout's size isn't zero.
        let start = unsafe { alloc::alloc(self.allocation(tables)) }.cast::<Entry>();
        assert!(!start.is_null());
        for index in 0..tables * self.layout.table_entries() {
            // SAFETY: the allocation has room for so many entries.
            unsafe { start.add(index).write(Entry::vacant()) };
        }
        let pa = self.place(start, tables);
        locked(&self.runs).insert(pa.get(), tables);
        let bytes = tables as u64 * self.layout.table_size();
        // SAFETY: the entries were just made, and are nobody else's until `release`. `entries` finds them.
        unsafe { TableFrame::new(pa, bytes) }
    }

    /// Gives a run its address.
    fn place(&self, start: *mut Entry, tables: usize) -> Pa {
        let Addresses::MadeUp { base, slots, taken } = &self.addresses else {
            return Pa::new(start.expose_provenance() as u64);
        };
        let mut taken = locked(taken);
        let mut slot = 0;
        while taken[slot..slot + tables].contains(&true) {
            slot += tables;
        }
        taken[slot..slot + tables].fill(true);
        slots[slot].store(start, Ordering::Relaxed);
        base.offset(slot as u64 * self.layout.table_size())
    }

    /// How many tables a frame holds.
    fn tables(&self, frame: &TableFrame) -> usize {
        (frame.bytes() / self.layout.table_size()) as usize
    }

    fn entries_of(&self, frame: &TableFrame) -> &[Entry] {
        let count = self.tables(frame) * self.layout.table_entries();
        // SAFETY: a frame that somebody owns is live.
        unsafe { std::slice::from_raw_parts(self.entries(frame.pa()).as_ptr(), count) }
    }

    /// Ends a run for good.
    pub(crate) fn release(&self, frame: &TableFrame) {
        let tables = locked(&self.runs).remove(&frame.pa().get());
        assert_eq!(
            tables,
            Some(self.tables(frame)),
            "{frame:?} was freed twice, or never allocated"
        );
        let start = self.entries(frame.pa()).as_ptr();
        if let Addresses::MadeUp { base, slots, .. } = &self.addresses {
            slots[self.slot(*base, frame.pa())].store(ptr::null_mut(), Ordering::Relaxed);
        }
        for index in 0..self.tables(frame) * self.layout.table_entries() {
            // SAFETY: `allocate_run` wrote that many entries there; the run was just found to be live, and is no more.
            unsafe { start.add(index).drop_in_place() };
        }
        // SAFETY: as above, with the same layout.
        unsafe { alloc::dealloc(start.cast(), self.allocation(self.tables(frame))) };
        if let Addresses::MadeUp { base, taken, .. } = &self.addresses {
            let slot = self.slot(*base, frame.pa());
            locked(taken)[slot..slot + self.tables(frame)].fill(false);
        }
    }
}

// SAFETY: the tables are live and empty until `release`.
unsafe impl TableMemory for Frames {
    fn allocate(&self) -> Option<TableFrame> {
        let granted = locked(&self.supply).take();
        granted.then(|| self.allocate_run(1))
    }

    unsafe fn free(&self, frame: TableFrame) {
        let last = &self.entries_of(&frame)[self.layout.table_entries() - 1];
        let found = last.observe(Level::L3, self.layout.format());
        let frozen = found.descriptor() == Descriptor::Frozen;
        assert!(
            !frozen,
            "rule 7: {frame:?} was linked, and must go through the epoch"
        );
        self.release(&frame);
        locked(&self.supply).give_back();
    }

    fn entries(&self, pa: Pa) -> NonNull<Entry> {
        let start = match &self.addresses {
            Addresses::Own => with_exposed_provenance_mut(pa.get() as usize),
            // Ordered by what the caller has the address from.
            Addresses::MadeUp { base, slots, .. } => {
                slots[self.slot(*base, pa)].load(Ordering::Relaxed)
            }
        };
        NonNull::new(start).expect("a table that was freed is still in use")
    }
}

/// The epoch: keeps what was retired until a test lets it pass.
#[derive(Debug, Default)]
pub struct Retired(Mutex<Vec<TableFrame>>);

impl Retired {
    /// Frames that wait.
    pub fn pending(&self) -> usize {
        locked(&self.0).len()
    }

    /// All of them, which wait no more.
    pub(crate) fn take(&self) -> Vec<TableFrame> {
        std::mem::take(&mut locked(&self.0))
    }
}

// SAFETY: they are kept until `take`, which is for when no operation is under way.
unsafe impl Epoch for Retired {
    fn retire(&self, unlinked: Unlinked) {
        locked(&self.0).push(unlinked.into_frame());
    }
}
