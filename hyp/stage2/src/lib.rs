//! Arm stage-2 page tables **without a lock**.
//!
//! # The protocol
//! Faults, write protection, splits, collapses and unmaps of one tree all run at the same time; two of them are serialised
//! only by an entry that both want. These numbered rules make this safe; comments refer to them:
//!
//! 1. **Observe, then compare-exchange.** Every change of a live entry is an exchange from the value that the change was
//!    decided on. A failed exchange means: look again.
//! 2. **Break-before-make.** Where the architecture demands it, a change goes old → *locked*, TLB invalidation complete,
//!    *locked* → new by exchange. A locked entry is a value, [`Unflushed`] and then [`Broken`], which can't be forgotten.
//! 3. **No break where none is needed.** Permissions change by one exchange. Relaxing needs only the local invalidation of the
//!    CPU that faulted; tightening a broadcast one before anybody relies on it, at the end of the range. Whoever finds an
//!    entry already tightened owes the invalidation too. A software bit says what a fault may make writable.
//! 4. **Meeting a locked entry.** A fault looks a bounded number of times, then lets the guest fault again. It holds
//!    no entry itself meanwhile.
//! 5. **Unlinking a table.** Its parent entry is broken; then every entry below is *frozen* by swap; then the parent's new
//!    value is made and the frames go to the epoch. A walker that meets *frozen*, or loses an exchange to it, restarts at the
//!    root. The CPU whose exchange removed a leaf owns its access and dirty state and its hold on memory. One exception: a leaf
//!    that was locked to be replaced by something that maps the same (`Entry::lock_to_change`) belongs to the CPU that freezes
//!    it, which finds it in the locked word.
//! 6. **Installing a table** is one exchange of a fully built table; the loser gives its frame back.
//! 7. **Epochs.** Every walk runs inside an epoch ([`Worker::epoch`]); an [`Unlinked`] table is freed after it.
//! 11. **Contents before links.** The target of a link is visible to all CPUs and walkers before the link is.
//! 12. **The regime of an invalidation.** VTTBR_EL2 and VTCR_EL2 change hands together ([`RegimeRegisters`]); the VMID
//!    is read after the barrier that orders the change of the tables, and a new one is visible before its guest can
//!    walk.
//!
//! Rules 8 to 10 and 14 are for the crate that decides what to map; the engine supports them:
//!
//! 8. **Decisions and their grounds.** A fault decides on published state: the page's backing, whether its writes are
//!    logged. A change of that state publishes, full barrier, then walks the entries; a fault changes or locks its entry, full
//!    barrier, then looks again. One of the two sees the other. Therefore [`Stage2::fault`] hands out a vacant entry locked
//!    ([`Resolution::Vacant`]), and [`Stage2::map`] asks whether its grounds still hold.
//! 9. **Dirty log.** A fault makes the entry writable first and sets the bit second; a harvest takes the bits first,
//!    write-protects second ([`Stage2::write_protect`]), and returns after the TLB invalidation. Several CPUs may harvest at
//!    once, each its own pages: a bit is taken by one of them, which alone may rely on its page. Where hardware tracks writes,
//!    no leaf lies in two CPUs' pages: one of them would clean the other's.
//! 10. **Regions** of guest memory (slots) are an immutable array behind an epoch-protected pointer; their frames are released
//!     after the invalidation of their range and an epoch.
//! 14. **A late mark is waited for.** A CPU that moves, merges, shares or unmaps a page takes hardware's dirty state from
//!     its entry, and passes it to the log after its invalidation. It publishes its range before it takes an entry; a
//!     harvest reads the entries, full barrier, then waits until all ranges have ended that are active there by then. So a
//!     harvest made with the vCPUs stopped has every write, though idle CPUs go on.
//!
//! # Operations
//! All are methods of [`Stage2`] by `&self`, on any CPU at any time, beside each other and themselves; only [`destroy`] takes
//! the whole. None of them takes a lock, and a fault never waits for long.
//!
//! | operation | when it returns | what it never does | frames it takes |
//! |---|---|---|---|
//! | [`fault`] | this CPU's TLB holds no entry that denies what the tables allow; other CPUs may, until they fault too | give a right that the entry doesn't say it may have | a table for each level that is missing; for a split one for each level |
//! | [`relax`] | as `fault` | as `fault` | none |
//! | [`map`] | nothing that a TLB held has changed | touch what is mapped already | as a fault, for each table |
//! | [`unmap`] | no TLB holds anything of what was mapped | fail | none |
//! | [`unmap_leaves`] | as `unmap` | as `unmap`; unlink a table | none |
//! | [`replace`] | no TLB holds anything of what was replaced | map what isn't mapped; touch a block; fail | none |
//! | [`protect`], [`protect_mapped`] | no TLB holds a right that was taken away, whoever took it | map, unmap, split | none |
//! | [`write_protect`] | no TLB holds a writable entry for a leaf that was named, whoever tightened it | as `protect` | none |
//! | [`track_writes`] | no TLB lets a write to a leaf that was named go unnoticed | map, unmap, split | none |
//! | [`harvest_dirty`] | no TLB holds a writable entry for a leaf that was reported | touch what isn't dirty | none |
//! | [`age`] | TLBs may hold what was accessed | invalidate; take a right away | none |
//! | [`test_age`], [`find_dirty`], [`lookup`], [`clean_caches`] | nothing has changed | change anything | none |
//! | [`split`] | no TLB holds an entry for a block that was replaced | change what a page maps or allows | a table for each block; for blocks of more levels all of their tables, or one by one where there are too few |
//! | [`collapse`] | no TLB holds an entry for what was replaced | merge what isn't complete, contiguous and alike | none |
//! | [`invalidate`] | no TLB holds anything of the range that the tables don't say | change anything | none |
//! | [`walk`] | as its visitor does | | none |
//! | [`destroy`] | no TLB holds anything of the VM; [`Teardown::step`] then takes bounded time | wait for anybody | none |
//!
//! An operation that runs out of frames keeps what it has done, returns how far it came, and continues from there when it is
//! called again. Tables taken out of the tree are free only once the [`Epoch`] says so. A range that isn't whole pages of the
//! IPA space is refused before anything is done ([`BadAddress`]), even by operations that never fail otherwise.
//!
//! [`fault`]: Stage2::fault
//! [`relax`]: Stage2::relax
//! [`map`]: Stage2::map
//! [`unmap`]: Stage2::unmap
//! [`unmap_leaves`]: Stage2::unmap_leaves
//! [`replace`]: Stage2::replace
//! [`protect`]: Stage2::protect
//! [`protect_mapped`]: Stage2::protect_mapped
//! [`write_protect`]: Stage2::write_protect
//! [`track_writes`]: Stage2::track_writes
//! [`harvest_dirty`]: Stage2::harvest_dirty
//! [`find_dirty`]: Stage2::find_dirty
//! [`age`]: Stage2::age
//! [`test_age`]: Stage2::test_age
//! [`lookup`]: Stage2::lookup
//! [`clean_caches`]: Stage2::clean_caches
//! [`split`]: Stage2::split
//! [`collapse`]: Stage2::collapse
//! [`invalidate`]: Stage2::invalidate
//! [`walk`]: Stage2::walk
//! [`destroy`]: Stage2::destroy
//!
//! # Requirements
//! [`TableMemory`] provides the tables' frames, [`Epoch`] says when they may be reused, [`Tlb`] invalidates; a [`Worker`] is
//! the three of them on one CPU, with its [`Counters`]. [`Maintenance`] makes a [`Tlb`] from the architecture's
//! [`Instructions`]. A [`Layout`] is computed from the [`Features`] to use: granule, address sizes, FEAT_LPA2, FEAT_S2FWB,
//! FEAT_XNX, FEAT_BBM, FEAT_HAFDBS, contiguous groups. [`IdRegisters`] says which features a CPU has. [`VmidAllocator`] shares
//! the VMIDs among any number of VMs. EL2 must map the memory of tables as normal, inner-shareable, write-back cacheable, as
//! the walks that VTCR_EL2 sets up ([`Layout::vtcr`]) read it: exchanges and exclusives work on no other memory, and a walker
//! sees their stores only so.
//!
//! Inside, [`Descriptor`] and [`Leaf`] know the bits, [`Entry`] the verbs, [`Stage2`] the operations. All of it runs on a
//! host, under tests, Miri and the loom model checker. The crate is `no_std`.
//!
//! | feature | what it adds |
//! |---|---|
//! | `vmids` (on by default) | [`VmidAllocator`], which needs a global allocator. Without it a VM has a VMID of the caller's choice ([`VmidHolder::fixed`]), and the crate neither allocates nor depends on any other |
//! | `instructions` | `CpuInstructions`: the architecture's TLB invalidations and barriers, for EL2 (`aarch64` only) |
//! | `watch` | reports every change of a shared entry to a watcher, for tests and debug builds |
//! | `loom` | runs on the atomics of the loom model checker where the compiler is given `--cfg loom` |
//!
//! # What safe code can't do
//! With any calls and any addresses, in debug and release builds, the engine itself reads and writes nothing but its tables.
//! Ranges and addresses that it can't translate are errors ([`BadAddress`], [`Resolution::NotInSpace`]). What it can't check
//! is a contract that a caller signs by `unsafe`: the ownership of a [`TableFrame`], how a [`TableMemory`] finds it, when an
//! [`Epoch`] frees it, and that all CPUs have the instructions that [`Atomics`] promises.
//!
//! A *guest's* reach is another matter: the code that runs a guest on a tree (that puts the root in VTTBR_EL2) vouches for the
//! mapped memory, for the [`Tlb`] and for the [`Instructions`].
//!
//! Memory without an owner doesn't become a table:
//! ```compile_fail,E0133
//! let root = stage2::TableFrame::new(stage2::Pa::new(0x1000), 4096);
//! ```
//! An epoch that frees at once has to say that it may:
//! ```compile_fail,E0200
//! struct AtOnce;
//! impl stage2::Epoch for AtOnce {
//!     fn retire(&self, unlinked: stage2::Unlinked) {
//!         drop(unlinked.into_frame());
//!     }
//! }
//! ```
//! A frame goes back only to where it came from:
//! ```compile_fail,E0133
//! fn mix_up<M: stage2::TableMemory>(one: &M, other: &M) {
//!     one.free(other.allocate().unwrap());
//! }
//! ```
//! Neither a visitor nor the holder of a broken entry can link a table:
//! ```compile_fail,E0308
//! fn visit(context: &stage2::VisitContext<'_>) {
//!     let _ = context.exchange(Some(stage2::Descriptor::Table(stage2::Pa::new(0x1000))));
//! }
//! ```
//! ```compile_fail,E0308
//! fn make(broken: stage2::Broken<'_>) {
//!     let _ = broken.make_leaf(Some(stage2::Descriptor::Table(stage2::Pa::new(0x1000))));
//! }
//! ```
//! ```compile_fail,E0624
//! fn make(broken: stage2::Broken<'_>) {
//!     let _ = broken.make(stage2::Descriptor::Table(stage2::Pa::new(0x1000)));
//! }
//! ```
//! A visitor can't change another entry than its own, or from a value observed elsewhere:
//! ```compile_fail,E0616
//! fn visit(context: &stage2::VisitContext<'_>) {
//!     let _ = context.entry;
//! }
//! ```
//! ```compile_fail,E0507
//! fn visit(context: &stage2::VisitContext<'_>) {
//!     let mut copy = *context;
//!     copy.level = stage2::Level::L3;
//! }
//! ```
//! Instructions that some CPU may lack must be promised by `unsafe`:
//! ```compile_fail,E0133
//! let mut features = stage2::Features::armv8_0(40, 48);
//! features.atomics = stage2::Atomics::everywhere();
//! ```
//!
//! # Examples
//! `examples/bare-metal` is a hypervisor for one guest, as small as it can be, that boots at EL2. All but the machine, on a
//! host, is `examples/host.rs`:
//!
//! ```
#![doc = include_str!("../examples/host.rs")]
//! ```

#![no_std]

#[cfg(any(feature = "vmids", test))]
extern crate alloc;

mod address;
mod bounds;
mod break_batch;
mod collapse;
mod contiguous;
mod descriptor;
mod entry;
mod fault;
mod features;
mod hardware_dirty;
mod id_registers;
#[cfg(all(feature = "instructions", target_arch = "aarch64"))]
mod instructions;
mod layout;
mod leaf_filter;
mod maintenance;
mod map;
mod memory;
mod permissions;
mod replace;
mod split;
mod stage2;
#[doc(hidden)]
pub mod sync;
mod teardown;
mod tlb;
mod tlbi_operand;
mod transition;
mod unmap;
mod vmid;
#[cfg(feature = "vmids")]
mod vmid_allocator;
mod walk;
#[cfg(feature = "watch")]
pub mod watch;

pub use address::{Granule, Ipa, IpaRange, Level, PAGE_SHIFT, PAGE_SIZE, Pa, Vmid, Vttbr};
pub use bounds::BadAddress;
pub use collapse::Collapsed;
pub use descriptor::{Attributes, Descriptor, Execute, Leaf, MemoryType, Permissions};
pub use entry::{Broken, Entry, Lost, Observed, POISON, Unflushed, Unlinked};
pub use fault::{Access, OnBlock, Request, Resolution};
pub use features::{Atomics, Bbm, Features, Format};
pub use id_registers::{GranuleSupport, IdRegisters};
#[cfg(all(feature = "instructions", target_arch = "aarch64"))]
pub use instructions::CpuInstructions;
pub use layout::{BadLayout, Layout};
pub use leaf_filter::{All, Wanted};
pub use maintenance::{Barrier, Instructions, Maintenance, RegimeRegisters, TlbPolicy, Tlbi};
pub use map::{MapFailed, MapStopped, Mapped, Mapping};
pub use memory::{Counter, Counters, Epoch, TableFrame, TableMemory, Worker};
pub use replace::Replaced;
pub use split::{Split, SplitFailed, SplitStopped};
pub use stage2::{OutOfFrames, Stage2};
pub use teardown::Teardown;
pub use tlb::{NoTlb, Regime, Tlb};
pub use transition::Transition;
pub use vmid::VmidHolder;
#[cfg(feature = "vmids")]
pub use vmid_allocator::{TooFewVmids, VmidAllocator};
pub use walk::{Step, VisitContext};

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::ProptestConfig;

    /// How often a property is tried: less often under Miri, which is slow and has no files to note failures in.
    pub fn cases() -> ProptestConfig {
        if cfg!(miri) {
            ProptestConfig {
                cases: 4,
                failure_persistence: None,
                ..ProptestConfig::default()
            }
        } else {
            ProptestConfig::default()
        }
    }
}
