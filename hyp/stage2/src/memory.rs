//! Memory of tables: where they live, which CPU works on them, and when their frames may be reused.

use crate::address::Pa;
use crate::descriptor::Descriptor;
use crate::entry::{Entry, Unlinked};
use crate::layout::Layout;
use crate::sync;
use crate::tlb::Tlb;
use crate::walk::Step;
use core::ptr::NonNull;
use core::slice;
use core::sync::atomic::{AtomicU64, Ordering};

/// Sole ownership of the frame of one table (or of the run of frames of a root): no entry leads to it yet, or no more.
#[must_use = "dropping a table frame leaks it"]
#[derive(Debug, PartialEq, Eq)]
pub struct TableFrame {
    pa: Pa,
    bytes: u64,
}

impl TableFrame {
    /// Takes ownership of `bytes` of zeroed memory at `pa`: a table ([`Layout::table_size`]), or the tables of a root
    /// ([`Layout::root_bytes`]).
    ///
    /// # Safety
    /// - Nobody else has the memory, nor a `TableFrame` for any of it.
    /// - It is zeroed ([`Entry::vacant`]), aligned to its size, and part of a [`TableMemory`], by which it can be reached.
    /// - That is where the tables come from of every tree that it becomes part of: whoever works on such a tree does so with
    ///   this `TableMemory`, or with another one that reaches the same frames (each CPU has its own).
    pub const unsafe fn new(pa: Pa, bytes: u64) -> Self {
        Self { pa, bytes }
    }

    /// Ownership of a frame that was linked: for a caller that has frozen all of it, or never made it visible.
    pub(crate) const fn from_linked(pa: Pa, layout: &Layout) -> Self {
        Self {
            pa,
            bytes: layout.table_size(),
        }
    }

    /// The (first) frame's address.
    pub const fn pa(&self) -> Pa {
        self.pa
    }

    /// The bytes of memory that this owns.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The frames that tables are made of. Every CPU uses its own.
///
/// One source serves trees of one granule: its frames have the granule's size ([`Layout::table_size`]).
///
/// # Safety
/// [`allocate`](Self::allocate) returns single frames that nobody else uses, zeroed, aligned to their size, at addresses that
/// descriptors can hold ([`Layout::pa_bits`]), and
/// [`entries`](Self::entries) maps the address of each one to memory that stays valid for shared access as
/// [`Layout::table_entries`] [`Entry`] values until the frame is freed. The same holds for the frames of a root, all of whose
/// entries follow each other.
pub unsafe trait TableMemory {
    /// A zeroed frame, or `None` where there are none left. Called in the fault path: no lock, no shared cache line.
    fn allocate(&self) -> Option<TableFrame>;

    /// Takes back a frame that no walker can have seen.
    ///
    /// # Safety
    /// It came from [`allocate`](Self::allocate) of this source, by whichever CPU.
    unsafe fn free(&self, frame: TableFrame);

    /// Where the table at `pa` is reachable.
    fn entries(&self, pa: Pa) -> NonNull<Entry>;
}

/// Deferred reclamation: an epoch that the caller entered before its walk and leaves after it (rule 7). Whoever has a value
/// of such a type is inside: for that long, the references that a [`Worker`] with it gets to tables have to be good.
///
/// # Safety
/// A frame that [`retire`](Self::retire) gets stays as it is, as what it is, and is neither freed nor used for anything else
/// until nobody is inside any more who was when it came: all other values, on all CPUs, of all epochs that a tree is
/// worked on with are gone; and so is the one that it was given to, with the operation that did so, and all that this or an
/// earlier operation with it has handed out.
pub unsafe trait Epoch {
    /// Frees the frame once every CPU that is inside an epoch now has left it (rule 7).
    fn retire(&self, unlinked: Unlinked);
}

/// The CPU that works on the tables: its frames, its TLB instructions, its stay in the epoch, its counters.
#[derive(Debug)]
pub struct Worker<'w, M, T, E> {
    /// Source of table frames.
    pub memory: &'w M,
    /// TLB maintenance.
    pub tlb: &'w T,
    /// The epoch that this CPU is in: tables that it sees stay valid for `'w`.
    pub epoch: &'w E,
    /// What this CPU did.
    pub counters: &'w Counters,
}

impl<'w, M: TableMemory, T: Tlb, E: Epoch> Worker<'w, M, T, E> {
    /// The table at `pa`, which lasts as long as this CPU's stay in the epoch.
    #[inline]
    pub(crate) fn table(&self, layout: &Layout, pa: Pa) -> &'w [Entry] {
        table_entries(self.memory, layout, pa)
    }

    /// What has to be done before an entry is looked at again, as `step` says.
    #[cold]
    pub(crate) fn before(&self, step: Step) {
        match step {
            Step::Wait => {
                self.counters.met_locked.add(1);
                sync::relax();
            }
            Step::Restart => {
                self.counters.restarts.add(1);
                sync::relax();
            }
            _ => {}
        }
    }

    /// Builds a table that nobody can reach yet. `None` without a frame.
    #[inline]
    pub(crate) fn build_table(
        &self,
        layout: &Layout,
        mut entry: impl FnMut(usize) -> Descriptor,
    ) -> Option<TableFrame> {
        let frame = self.memory.allocate()?;
        for (index, slot) in self.table(layout, frame.pa()).iter().enumerate() {
            slot.store_unshared(entry(index), layout.format());
        }
        Some(frame)
    }
}

/// The entries of a table that is linked, or owned.
#[inline]
pub(crate) fn table_entries<'t, M: TableMemory>(
    memory: &'t M,
    layout: &Layout,
    pa: Pa,
) -> &'t [Entry] {
    // SAFETY: `pa` was read from a table descriptor, or belongs to a `TableFrame`; its frame is freed only after an
    // epoch that this CPU is in has passed, and `TableMemory` promises that the memory is valid until then.
    unsafe { slice::from_raw_parts(memory.entries(pa).as_ptr(), layout.table_entries()) }
}

/// The entries of a table that is linked and has `N` of them, which is how many the layout says.
#[inline(always)]
pub(crate) fn table_of<'t, const N: usize, M: TableMemory>(
    memory: &'t M,
    layout: &Layout,
    pa: Pa,
) -> &'t [Entry; N] {
    debug_assert!(layout.table_entries() == N);
    // SAFETY: as for `table_entries`; a table has as many entries as the layout says.
    unsafe { memory.entries(pa).cast::<[Entry; N]>().as_ref() }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What one CPU's operations did, counted. One writer (that CPU), any readers: plain loads and stores on a line
        /// of its own, so that counting costs no shared cache line.
        #[derive(Debug, Default)]
        #[repr(align(64))]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// Calls `each` with every counter's name and value.
            pub fn for_each(&self, mut each: impl FnMut(&'static str, u64)) {
                $(each(stringify!($name), self.$name.get());)*
                each("tlbi_local", self.tlbi_local());
            }
        }
    };
}

counters! {
    /// Tables linked into the tree.
    tables_linked,
    /// Tables taken out of the tree and handed to the epoch.
    tables_unlinked,
    /// Blocks split into a table.
    splits,
    /// Tables merged into a block.
    collapses,
    /// Contiguous groups taken apart.
    groups_dissolved,
    /// Entries made writable by a single exchange.
    relaxed,
    /// Access flags that a fault set.
    accessed,
    /// Leaves mapped by [`map`](crate::Stage2::map).
    mapped,
    /// Pages that other memory was put behind by [`replace`](crate::Stage2::replace).
    replaced,
    /// Writable entries made read-only.
    write_protected,
    /// Exchanges that found the entry changed.
    lost_exchanges,
    /// Entries met locked by another CPU.
    met_locked,
    /// Walks that met a frozen table and started again at the root.
    restarts,
    /// Broadcast TLB invalidations.
    tlbi_broadcast,
    /// Faults on entries that allowed the access already: this CPU's TLB was behind.
    spurious,
}

impl Counters {
    /// TLB invalidations of one CPU: one for each entry that was made writable, and for each that was already.
    pub fn tlbi_local(&self) -> u64 {
        self.relaxed.get().wrapping_add(self.spurious.get())
    }
}

/// A count with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning CPU calls this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0
            .store(self.0.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    /// The count so far; a reader on another CPU may be a moment behind.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
