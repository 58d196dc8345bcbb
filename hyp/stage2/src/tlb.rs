//! What the engine asks of the machine's TLBs.
//!
//! Every method returns only when the invalidation is complete for every CPU in its scope, and starts with the barrier
//! that makes earlier table writes visible to the walkers (DSB ISHST; for local ones DSB NSHST), so a caller needs no
//! barrier of its own. "Combined" entries are those that hold stage 1 and stage 2 together: an invalidation by IPA
//! doesn't touch them (Arm ARM D8.17.5), so each method takes care of them too.

use crate::address::{Granule, Ipa, IpaRange, Level, Vttbr};
use crate::layout::{Bbm, Format, Layout};

/// Whose translations an invalidation is about, and how they are laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Regime {
    /// The root and the VMID.
    pub vttbr: Vttbr,
    /// The granule, which operands carry.
    pub granule: Granule,
    /// VTCR_EL2.DS: operands by range count in 64 KiB.
    pub wide: bool,
    /// Whether a leaf that is to go may be in TLBs at the level of its descriptor only.
    pub level_is_known: bool,
}

impl Regime {
    pub(crate) const fn new(vttbr: Vttbr, layout: &Layout) -> Self {
        let features = layout.features();
        Self {
            vttbr,
            granule: features.granule,
            wide: matches!(layout.format(), Format::Lpa2),
            // Where size changes skip the break, a page's descriptor may be in place while the block that it came from is
            // still in TLBs: a hint would spare that.
            level_is_known: matches!(features.bbm, Bbm::Level0),
        }
    }

    /// The hint to give for a leaf whose descriptor is at `level`.
    #[inline]
    pub(crate) const fn hint(&self, level: Level) -> Option<Level> {
        if self.level_is_known {
            Some(level)
        } else {
            None
        }
    }
}

/// The machine's TLB maintenance for stage 2. Any number of CPUs may call at once, also for the same VM.
/// [`Maintenance`](crate::Maintenance) makes it of the architecture's instructions.
pub trait Tlb {
    /// On every CPU: the entries (stage-2 leaf, then all combined ones of the VMID) that translate the leaf at `ipa`.
    /// `level`, if known, is the leaf's level, for a TTL hint. One IPA within a block reaches the whole block.
    fn invalidate_leaf(&self, vm: Regime, ipa: Ipa, level: Option<Level>);

    /// On every CPU: all entries that translate an address in `range`, cached tables above them too if `tables` is set,
    /// then all combined ones of the VMID. May do more than asked (the whole VMID) where that is cheaper.
    fn invalidate_range(&self, vm: Regime, range: IpaRange, tables: bool);

    /// On every CPU: everything of the VMID, stage 1 and 2 (TLBI VMALLS12E1IS).
    fn invalidate_vmid(&self, vm: Regime);

    /// On every CPU: everything of every VMID (TLBI ALLE1IS), for a VMID rollover.
    fn invalidate_all_vmids(&self);

    /// On this CPU only: what translated a guest's access to `va` and the page at `ipa`. Enough when a permission was
    /// relaxed (rule 3): any other CPU that still holds the old entry faults and does the same.
    /// `va` is the guest's virtual address (all its ASIDs are covered); without one, all combined entries go.
    fn invalidate_local(&self, vm: Regime, ipa: Ipa, level: Option<Level>, va: Option<u64>);

    /// Makes table contents written so far visible to every CPU's table walker (DSB ISHST), before a link to them is
    /// published (rule 11).
    fn publish_tables(&self);
}

/// The TLBs of a machine that has none: for hosts, where no guest runs and every access is to the tables themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTlb;

impl Tlb for NoTlb {
    fn invalidate_leaf(&self, _: Regime, _: Ipa, _: Option<Level>) {}
    fn invalidate_range(&self, _: Regime, _: IpaRange, _: bool) {}
    fn invalidate_vmid(&self, _: Regime) {}
    fn invalidate_all_vmids(&self) {}
    fn invalidate_local(&self, _: Regime, _: Ipa, _: Option<Level>, _: Option<u64>) {}
    fn publish_tables(&self) {}
}
