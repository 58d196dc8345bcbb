//! What backs guest memory: frames, slots, faults, the dirty log.
//!
//! This crate decides *what* is mapped; [`stage2`] does it. It carries the rules of the protocol that are about decisions:
//!
//! 8. **Decisions and their grounds.** A fault decides on published state: which slot, whether it is logged. Whoever changes
//!    that publishes, full barrier, then walks the entries; a fault changes or locks its entry, full barrier, then looks
//!    again. One of the two sees the other.
//! 9. **Dirty log.** A fault makes the entry writable first and sets the bit second; a harvest takes the bits first,
//!    write-protects second, and returns after the TLB invalidation.
//! 10. **Slots** are an immutable array behind an epoch-protected pointer; their frames are released after the
//!     invalidation of their range and an epoch.
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
//! Physical memory is reached at its own address: at EL2 it is mapped so, and on a host the pool's arena gives the
//! addresses.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod bytes;
pub mod compressed;
mod copying;
mod cpu;
mod direct;
mod dirty_log;
mod fault;
mod fork;
pub mod frames;
mod gate;
mod harvest;
mod locks;
mod logging;
mod mapping;
mod merge;
mod object;
mod placing;
mod policy;
mod prefault;
mod published;
mod reclaim;
mod restore;
mod reverse;
mod ring;
mod slots;
mod space;
mod tracker;
#[cfg(feature = "watch")]
pub mod watch;

pub use cpu::{Caches, CpuCounters, CpuMemory, FaultCounters, MemorySystem};
pub use dirty_log::{BYTES_PER_WORD, PAGES_PER_WORD};
pub use fault::{Fault, FaultKind, FaultOutcome};
pub use frames::{Owner, VmId};
pub use locks::{MmuLock, Mutexed, Parallel, RwLocked};
pub use logging::{LogError, SplitAhead};
pub use merge::{MergeError, MergePolicy, MergeStatistics, PageMerging};
pub use object::{Object, ObjectError};
pub use policy::{Ahead, Granularity, LogPolicy, Splitting, Tracking};
pub use prefault::{NotPopulated, PrefaultError};
pub use restore::Restored;
pub use reverse::{MAX_OBJECTS, ObjectId};
pub use ring::{DirtyPages, RING_ENTRIES, RingError};
pub use slots::{MAX_SLOTS, Slot, SlotConfig, SlotError, SlotId};
pub use space::{AddressSpace, BackingPolicy, Change, NotBacked, UNLINKED_AT_ONCE};
pub use stage2::Access;
pub use tracker::{Invalidation, Ticket, Tracker, TrackerMode, Verdict};
