//! Arm stage-2 page tables **without a lock**.
//!
//! # The protocol
//! Faults, write protection, splits, merges and unmaps of one tree all run at the same time; what serialises two of them
//! is the one entry that both want. The numbered rules that make this safe, and that comments here refer to:
//!
//! 1. **Observe, then compare-exchange.** Every change of a live entry is an exchange from the value that the change was
//!    decided on. A failed exchange means: look again.
//! 2. **Break-before-make.** What the architecture demands it for goes old → *locked*, TLB invalidation complete,
//!    *locked* → new by exchange. A locked entry is a value, [`Unflushed`] and then [`Broken`], which can't be forgotten.
//! 3. **No break where none is needed.** Permissions change by one exchange. Relaxing needs only the local invalidation of the
//!    CPU that faulted; tightening a broadcast one before anybody relies on it, at the end of the range. Whoever finds an
//!    entry already tightened owes the invalidation too. A software bit says what a fault may make writable.
//! 4. **Meeting a locked entry.** A fault looks a bounded number of times, then lets the guest fault again. It holds
//!    no entry itself meanwhile.
//! 5. **Unlinking a table.** Its parent entry is broken; then every entry below is *frozen* by swap; then the parent's new
//!    value is made and the frames go to the epoch. Whoever meets *frozen*, or loses an exchange to it, starts at the root.
//! 6. **Installing a table** is one exchange of a fully built table; the loser gives its frame back.
//! 7. **Epochs.** Every walk runs inside an epoch ([`Worker::epoch`]); an [`Unlinked`] table is freed after it.
//! 11. **Contents before links.** What a link leads to is visible to all CPUs and walkers before the link is.
//!
//! Rules 8 to 10 (decisions and their grounds, the dirty log, slots) belong to whoever decides what to map. For them
//! [`Stage2::fault`] hands out the locked entry, so that its caller can look again before it makes it.
//!
//! # Parts
//! [`Descriptor`] and [`Leaf`] know the bits; [`Entry`] the verbs; [`Stage2`] the operations. The machine comes in through
//! [`Tlb`], [`TableMemory`] and [`Epoch`], so all of it runs on a host, under tests, Miri and the loom model checker.

#![no_std]

extern crate alloc;

mod address;
mod change;
mod collapse;
mod descriptor;
mod entry;
mod fault;
mod memory;
mod root;
mod stage2;
pub mod sync;
mod tlb;
mod vmid;
mod walk;

pub use address::{
    Ipa, IpaRange, Level, PAGE_SHIFT, PAGE_SIZE, Pa, STRIDE, TABLE_ENTRIES, Vmid, Vttbr,
};
pub use collapse::Collapsed;
pub use descriptor::{Descriptor, Leaf, Permissions};
pub use entry::{Broken, Entry, Lost, Observed, Unflushed, Unlinked};
pub use fault::{Access, Request, Resolution};
pub use memory::{Counter, Counters, Epoch, TableFrame, TableMemory, Worker};
pub use root::{BadIpaSize, RootShape};
pub use stage2::{OutOfFrames, Stage2};
pub use tlb::Tlb;
pub use vmid::{VmidAllocator, VmidHolder};
pub use walk::{Step, VisitContext};
