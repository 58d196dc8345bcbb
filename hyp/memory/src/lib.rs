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
//! Physical memory is reached at its own address: at EL2 it is mapped so, and on a host the pool's arena gives the
//! addresses.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod cpu;
mod dirty_log;
mod fault;
pub mod frames;
mod gate;
mod harvest;
mod locks;
mod logging;
mod policy;
mod published;
mod reclaim;
mod restore;
mod ring;
mod slots;
mod space;
#[cfg(feature = "watch")]
pub mod watch;

pub use cpu::{Caches, CpuCounters, CpuMemory, FaultCounters, MemorySystem};
pub use dirty_log::{BYTES_PER_WORD, PAGES_PER_WORD};
pub use fault::{Fault, FaultKind, FaultOutcome};
pub use frames::VmId;
pub use locks::{MmuLock, Mutexed, Parallel, RwLocked};
pub use logging::{LogError, SplitAhead};
pub use policy::{Ahead, Granularity, LogPolicy, Splitting, Tracking};
pub use restore::Restored;
pub use ring::{DirtyPages, RING_ENTRIES, RingError};
pub use slots::{Slot, SlotError, SlotId};
pub use space::{AddressSpace, NotBacked, UNLINKED_AT_ONCE};
pub use stage2::Access;
