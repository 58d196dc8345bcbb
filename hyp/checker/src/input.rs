//! The TLB events that are reported to the checker: instructions with their encoded operands.

/// A TLB maintenance instruction (Arm ARM C5.5), with its operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tlbi {
    /// IPAS2E1IS: stage 2 by IPA, every level, inner shareable.
    Ipas2e1is(u64),
    /// IPAS2LE1IS: stage 2 by IPA, last level only, inner shareable.
    Ipas2le1is(u64),
    /// RIPAS2E1IS: stage 2 by range of IPAs, every level, inner shareable.
    Ripas2e1is(u64),
    /// RIPAS2LE1IS: stage 2 by range of IPAs, last level only, inner shareable.
    Ripas2le1is(u64),
    /// IPAS2E1: stage 2 by IPA, every level, this CPU.
    Ipas2e1(u64),
    /// IPAS2LE1: stage 2 by IPA, last level only, this CPU.
    Ipas2le1(u64),
    /// VMALLE1IS: stage 1 and combined entries of the VMID, inner shareable.
    Vmalle1is,
    /// VMALLE1: stage 1 and combined entries of the VMID, this CPU.
    Vmalle1,
    /// VAAE1: stage 1 and combined entries of one virtual address, all ASIDs, this CPU.
    Vaae1(u64),
    /// VMALLS12E1IS: everything of the VMID, inner shareable.
    Vmalls12e1is,
    /// VMALLS12E1: everything of the VMID, this CPU.
    Vmalls12e1,
    /// ALLE1IS: everything of every VMID, inner shareable.
    Alle1is,
    /// VAE2IS: EL2's own stage 1 by address, inner shareable. Does nothing to stage 2.
    Vae2is(u64),
    /// ALLE2IS: EL2's own stage 1, inner shareable. Does nothing to stage 2.
    Alle2is,
}

impl Tlbi {
    /// Whether it acts on the issuing CPU only.
    pub(crate) const fn is_local(self) -> bool {
        matches!(
            self,
            Self::Ipas2e1(_)
                | Self::Ipas2le1(_)
                | Self::Vmalle1
                | Self::Vaae1(_)
                | Self::Vmalls12e1
        )
    }
}

/// A barrier (Arm ARM B2.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Barrier {
    /// DSB ISHST: earlier stores are visible to every walker. Completes no TLB invalidation.
    DsbIshst,
    /// DSB ISH: earlier stores are visible to every walker, earlier invalidations are complete.
    DsbIsh,
    /// DSB NSHST: earlier stores are visible to this CPU's walker.
    DsbNshst,
    /// DSB NSH: earlier stores are visible to this CPU's walker, earlier local invalidations are complete.
    DsbNsh,
    /// ISB: what was written to system registers is in effect.
    Isb,
}
