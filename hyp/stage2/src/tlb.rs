//! The engine's interface to the machine's TLBs.
//!
//! Every method starts with the barrier that makes earlier table writes visible to the walkers (DSB ISHST; for local ones DSB
//! NSHST), so a caller needs no barrier of its own, and returns only when the invalidation is complete for every CPU in its
//! scope. "Combined" entries hold stage 1 and stage 2 together. An invalidation by IPA doesn't affect them (Arm ARM D8.17.5),
//! so each method invalidates them too.

use crate::address::{Granule, Ipa, IpaRange, Level, Vttbr};
use crate::features::{Bbm, Format};
use crate::stage2::Stage2;

/// The regime of an invalidation: the VM's tables, VMID and layout.
#[derive(Clone, Copy, Debug)]
pub struct Regime<'s>(&'s Stage2);

impl<'s> Regime<'s> {
    pub(crate) const fn of(stage2: &'s Stage2) -> Self {
        Self(stage2)
    }

    /// The value for VTTBR_EL2, with the current VMID. So an invalidation asks after the barrier that orders the change of the
    /// tables (rule 12): a CPU that gives the VM another VMID meanwhile walks the changed tables under it.
    #[inline]
    pub fn vttbr(&self) -> Vttbr {
        self.0.vttbr()
    }

    /// The value for VTCR_EL2 that belongs to it (rule 12).
    pub fn vtcr(&self) -> u64 {
        self.0.layout().vtcr()
    }

    /// The granule, which operands carry.
    #[inline]
    pub(crate) fn granule(&self) -> Granule {
        self.0.layout().features().granule
    }

    /// The start of the page at `ipa`.
    #[inline]
    pub fn page_of(&self, ipa: Ipa) -> Ipa {
        ipa.align_down(self.0.layout().page_size())
    }

    /// [`Self::hint`] for a page, as a part of operands.
    #[inline]
    pub(crate) fn page_hint(&self) -> u64 {
        self.0.layout().page_hint()
    }

    /// VTCR_EL2.DS: operands by range count in 64 KiB.
    pub(crate) fn wide(&self) -> bool {
        matches!(self.0.layout().format(), Format::Lpa2)
    }

    /// The hint to give for a leaf whose descriptor is at `level`. None where size changes skip the break: a page's
    /// descriptor may be in place there while the block that it came from is still in TLBs, and a hint would spare
    /// that.
    #[inline]
    pub(crate) fn hint(&self, level: Level) -> Option<Level> {
        matches!(self.0.layout().features().bbm, Bbm::Level0).then_some(level)
    }
}

/// The machine's TLB maintenance for stage 2. Any number of CPUs may call at once, also for the same VM.
/// [`Maintenance`](crate::Maintenance) makes it of the architecture's instructions.
pub trait Tlb {
    /// On every CPU: the entries (stage-2 leaf, then all combined ones of the VMID) that translate the leaf at `ipa`.
    /// `level`, if known, is the leaf's level, for a TTL hint. One IPA within a block reaches the whole block.
    fn invalidate_leaf(&self, vm: Regime<'_>, ipa: Ipa, level: Option<Level>);

    /// On every CPU: all entries that translate an address in `range`, cached tables above them too if `tables` is set,
    /// then all combined ones of the VMID. May do more than asked (the whole VMID) where that is cheaper.
    fn invalidate_range(&self, vm: Regime<'_>, range: IpaRange, tables: bool);

    /// On every CPU: everything of the VMID, stage 1 and 2 (TLBI VMALLS12E1IS).
    fn invalidate_vmid(&self, vm: Regime<'_>);

    /// On every CPU: everything of every VMID (TLBI ALLE1IS), for a VMID rollover.
    fn invalidate_all_vmids(&self);

    /// On this CPU only: what translated a guest's access to `va` and the page at `ipa`. Enough when a permission was
    /// relaxed (rule 3): any other CPU that still holds the old entry faults and does the same.
    /// `va` is the guest's virtual address (all its ASIDs are covered); without one, all combined entries go. For the guest's
    /// next access: what was fetched before, the CPU drops at its next exception return, or other context synchronization.
    fn invalidate_local(&self, vm: Regime<'_>, ipa: Ipa, level: Option<Level>, va: Option<u64>);

    /// As [`Self::invalidate_local`], for the page at `ipa`, whichever of its bytes that is.
    #[inline(always)]
    fn invalidate_local_page(&self, vm: Regime<'_>, ipa: Ipa, va: Option<u64>) {
        self.invalidate_local(vm, vm.page_of(ipa), vm.hint(Level::L3), va);
    }

    /// Makes what was written so far visible to every CPU and its table walker before anything that follows (DSB
    /// ISHST): the contents of tables before a link to them is published (rule 11), a VM's new VMID before its guest
    /// can walk (rule 12).
    fn publish_tables(&self);
}

/// The TLBs of a machine that has none: for hosts, where no guest runs and every access is to the tables themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTlb;

impl Tlb for NoTlb {
    fn invalidate_leaf(&self, _: Regime<'_>, _: Ipa, _: Option<Level>) {}
    fn invalidate_range(&self, _: Regime<'_>, _: IpaRange, _: bool) {}
    fn invalidate_vmid(&self, _: Regime<'_>) {}
    fn invalidate_all_vmids(&self) {}
    fn invalidate_local(&self, _: Regime<'_>, _: Ipa, _: Option<Level>, _: Option<u64>) {}
    fn publish_tables(&self) {}
}
