//! Guest memory: memory objects, slots, faults, changes of backing, the dirty log.
//!
//! This crate decides *what* is mapped; [`stage2`] maps it, and numbers the rules of the protocol. Rules 8 to 10 and 14, which
//! are about decisions, are kept here: in [`Tracker`], the dirty log and the slots.
//!
//! # The backing of a page
//! Pages belong to an [`Object`], and stage-2 tables only map them. Slots ([`AddressSpace::map_object`]) map objects into any
//! number of VMs; the reverse map leads from a frame back to all of them. Each page of an object has one word that holds its
//! backing. To change the backing, a CPU first *claims* the page; any other CPU that needs a claimed page retries later. So
//! changes of different pages' backing run at once, on any number of CPUs, and beside every fault:
//!
//! | cause of the change | new backing |
//! |---|---|
//! | a first touch | a frame, or a run of them; a read of small pages: the frame of zeros |
//! | a write to a shared page (copy-on-write) | a copy, or the same frame for its last sharer |
//! | [`AddressSpace::fork`]; [`Object::with_images`] | from its own to shared |
//! | merging ([`PageMerging`]) | from its own to one that equal pages share, or the frame of zeros |
//! | compaction ([`Object::compact_region`], [`Object::migrate`], [`CpuMemory::clear_run`]), by idle CPUs ([`CpuMemory::gather`]) and [`AddressSpace::restore_blocks`] | a copy in another place |
//! | removing or moving a slot ([`AddressSpace::remove_slot`], [`AddressSpace::move_slot`]) | unchanged, at another address |
//!
//! A change is written straight to the entries: in each table that maps the page the new frame replaces the old one
//! ([`Stage2::replace`](stage2::Stage2::replace)), if the old one is still there. So a write to a shared page costs one exit
//! and one fault. Each VM has a [`Tracker`] of the ranges that are being changed at this moment. A fault takes a ticket there,
//! looks up its backing, locks its entry and asks whether *its own* page was or is among those ranges; no other fault ever
//! retries. [`BackingPolicy`] also offers the usual methods as a baseline: unmap and fault again, one count for the whole VM.
//!
//! # Dirty logging
//! A [`LogPolicy`] is chosen slot by slot. It says how writes are noticed ([`Tracking`]: write protection, or hardware dirty
//! state), how blocks are handled ([`Splitting`]: unmapped at their first write, split then, or split ahead), the unit of
//! logging ([`Granularity`]), whether everything counts as dirty at first, and whether vCPUs report in rings of their own.
//! [`AddressSpace::enable_dirty_log`] and [`AddressSpace::disable_dirty_log`] switch logging; [`AddressSpace::get_dirty_log`]
//! copies the log, [`AddressSpace::clear_dirty_log`] takes it, [`AddressSpace::harvest_ring`] empties a ring, and
//! [`AddressSpace::restore_blocks`] restores blocks. vCPUs may be running all the time; only harvests and switches of one VM
//! exclude each other, by a lock that no fault takes. The hypervisor's own writes to guest memory
//! ([`AddressSpace::write_guest`]) are logged too.
//!
//! # Reclaim
//! With [watermarks](MemorySystem::set_watermarks), cold pages are compressed when frames run out, or when a VM reaches its
//! [limit](frames::FramePool::set_limit). Two lists for each owner find cold pages, with second chances by access flag. Pages
//! are compressed with LZ4, and decompressed by the fault that needs them. Idle CPUs reclaim ahead of need
//! ([`CpuMemory::relieve`]), woken when memory gets short ([`IdleCpus`]); a fault that has run out compresses a small batch
//! itself. A guest gives memory back by [`AddressSpace::balloon`]. If nothing can be freed, the fault says so
//! ([`FaultOutcome::OutOfFrames`]), and all memory is as it was.
//!
//! Physical memory is identity-mapped at EL2; on a host the pool's arena provides the addresses.

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
