//! What the engine needs of the machine's TLBs.
//!
//! Every method returns only when the invalidation is complete for every CPU in its scope, and starts with the barrier
//! that makes earlier table writes visible to the walkers (DSB ISHST; for local ones DSB NSHST), so a caller needs no
//! barrier of its own. "Combined" entries are those that hold stage 1 and stage 2 together: an invalidation by IPA
//! doesn't touch them (Arm ARM D8.17.5), so each method takes care of them too.

use crate::address::{Ipa, IpaRange, Level, Vttbr};

/// The machine's TLB maintenance for stage 2. Any number of CPUs may call at once, also for the same VM.
pub trait Tlb {
    /// On every CPU: the entries (stage-2 leaf, then all combined ones of the VMID) that translate the leaf at `ipa`.
    /// `level` is the leaf's level, for a TTL hint. One IPA within a block reaches the whole block.
    fn invalidate_leaf(&self, vm: Vttbr, ipa: Ipa, level: Level);

    /// On every CPU: all entries that translate an address in `range`, cached tables above them too if `tables` is set,
    /// then all combined ones of the VMID. May do more than asked (the whole VMID) where that is cheaper.
    fn invalidate_range(&self, vm: Vttbr, range: IpaRange, tables: bool);

    /// On every CPU: everything of the VMID, stage 1 and 2 (TLBI VMALLS12E1IS).
    fn invalidate_vmid(&self, vm: Vttbr);

    /// On every CPU: everything of every VMID (TLBI ALLE1IS), for a VMID rollover.
    fn invalidate_all_vmids(&self);

    /// On this CPU only: what translated a guest's access to `va` and the page at `ipa`. Enough when a permission was
    /// relaxed (rule 3): any other CPU that still holds the old entry faults and does the same.
    /// `va` is the guest's virtual address (all its ASIDs are covered); without one, all combined entries go.
    fn invalidate_local(&self, vm: Vttbr, ipa: Ipa, level: Level, va: Option<u64>);

    /// Makes table contents written so far visible to every CPU's table walker (DSB ISHST), before a link to them is
    /// published (rule 11).
    fn publish_tables(&self);
}
