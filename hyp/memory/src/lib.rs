//! What backs guest memory: memory objects, slots, faults, changes of backing, the dirty log.
//!
//! This crate decides *what* is mapped; [`stage2`] does it, and numbers the rules of the protocol. Rules 8 to 10 and 14, which
//! are about decisions, are kept here: in [`Tracker`], the dirty log and the slots.
//!
//! # What backs a page
//! A stage-2 table is a second mapping: the pages are somebody else's. Here that is an [`Object`], which slots
//! ([`AddressSpace::map_object`]) map into any number of VMs; the reverse map leads from a frame back to all of them. Each page
//! of an object has one word that says what backs it. Whoever changes that, *claims* the page, and whoever meets a claimed page
//! goes away and comes back: page by page, everything that changes backing runs at once, on any number of CPUs, and beside
//! every fault:
//!
//! | who changes it | to what |
//! |---|---|
//! | a first touch | a frame, or a run of them; a read of small pages: the frame of zeros |
//! | a write to a shared page (copy-on-write) | a copy, or the same frame for the last one that has it |
//! | [`AddressSpace::fork`]; [`Object::with_image`] | from its own to shared |
//! | merging ([`PageMerging`]) | from its own to one that equal pages share, or that of zeros |
//! | compaction ([`Object::compact_region`], [`Object::migrate`], [`CpuMemory::clear_run`]), by idle CPUs ([`CpuMemory::gather`]) and [`AddressSpace::restore_blocks`] | a copy in another place |
//! | slots that go or move ([`AddressSpace::remove_slot`], [`AddressSpace::move_slot`]) | as it was, somewhere else |
//!
//! The change is carried straight to the entries: in each table that maps the page the new frame takes the place of the old one
//! ([`Stage2::replace`](stage2::Stage2::replace)), if that is still there, so a write to a shared page costs one exit and one
//! fault. Each VM has a [`Tracker`] of the ranges that are being changed in it at this moment. A fault takes a ticket there,
//! looks for its backing, locks its entry and asks whether *its own* page was or is among them; no other fault ever retries.
//! [`BackingPolicy`] has the usual ways beside these, to be compared with: unmap and fault again, one count for the whole VM.
//!
//! # Dirty logging
//! A [`LogPolicy`] says, slot by slot, how writes are noticed ([`Tracking`]: write protection, or the CPU's own notes), what
//! becomes of blocks ([`Splitting`]: unmapped at their first write, split then, or split ahead), how much is logged as one
//! ([`Granularity`]), whether everything counts as dirty at first, and whether vCPUs report in rings of their own. Logging is
//! switched by [`AddressSpace::enable_dirty_log`] and [`AddressSpace::disable_dirty_log`]; [`AddressSpace::get_dirty_log`]
//! copies, [`AddressSpace::clear_dirty_log`] takes, [`AddressSpace::harvest_ring`] empties a ring, and
//! [`AddressSpace::restore_blocks`] brings blocks back. vCPUs may be running through all of it; only harvests and switches
//! of one VM exclude each other, by a lock that no fault takes. What the hypervisor itself writes into guest memory
//! ([`AddressSpace::write_guest`]) is logged too.
//!
//! # Memory that is short
//! With [watermarks](MemorySystem::set_watermarks), cold pages are put away when frames run out, or when a VM comes to its
//! [limit](frames::FramePool::set_limit): two lists for each owner, second chances by access flag, compressed with LZ4, brought
//! back by the fault that needs them. Idle CPUs do it ahead of need ([`CpuMemory::relieve`]), woken when memory gets short
//! ([`IdleCpus`]), and a fault that has run out does a small batch itself. A guest gives memory back by [`AddressSpace::balloon`]. Without room for anything, the fault says so
//! ([`FaultOutcome::OutOfFrames`]), and all memory is as it was.
//!
//! Physical memory is reached at its own address: at EL2 it is mapped so, and on a host the pool's arena gives the
//! addresses.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod change;
mod compact;
mod dirty;
mod epoch;
mod fault;
pub mod frames;
#[cfg(all(test, not(loom), not(miri)))]
mod heap_tests;
mod logging;
mod merge;
mod object;
mod reclaim;
mod space;
mod system;
mod tracker;
#[cfg(feature = "watch")]
pub mod watch;

pub use compact::compaction::{Cleared, Compacted};
pub use dirty::bitmap::{BYTES_PER_WORD, PAGES_PER_WORD};
pub use dirty::policy::{Ahead, Granularity, LogPolicy, Splitting, Tracking};
pub use dirty::ring::{DirtyPages, RING_ENTRIES, RingError};
pub use dirty::slot_id::SlotId;
pub use epoch::heap_reserve;
pub use fault::prefault::{NotPopulated, PrefaultError};
pub use fault::{Fault, FaultKind, FaultOutcome};
pub use frames::compressed_store::StoreCounts;
pub use frames::watermarks::{IdleCpus, Watermarks};
pub use frames::{Owner, VmId};
pub use logging::restore_blocks::Restored;
pub use logging::switch::{LogError, SplitAhead};
pub use merge::{MergeError, MergePolicy, MergeStatistics, PageMerging};
pub use object::{Object, ObjectError};
pub use reclaim::balloon::BalloonError;
pub use space::mmu_lock::{MmuLock, Mutexed, Parallel, RwLocked};
pub use space::slot::{MAX_SLOTS, Slot, SlotConfig, SlotError};
pub use space::{AddressSpace, BackingPolicy, Change, NotBacked, UNLINKED_AT_ONCE};
pub use stage2::Access;
pub use system::MemorySystem;
pub use system::counters::{Count, CpuCounters, FaultCounters, ReclaimCounters};
pub use system::cpu::{Caches, CpuMemory};
pub use system::reverse_map::{MAX_OBJECTS, ObjectId};
pub use tracker::{Invalidation, Ticket, Tracker, TrackerMode, Verdict};
