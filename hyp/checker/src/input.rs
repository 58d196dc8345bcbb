//! What the checker is told: TLB instructions with their encoded operands, barriers, promises of operations, and the tables.

use core::fmt;

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

/// How the checker reads tables that are linked.
pub trait Memory {
    /// The word at a table's physical address. The table was just linked, or is the root of a tree.
    fn load(&self, address: u64) -> u64;
}

/// A moment in the order of all events.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stamp(pub(crate) u64);

/// What an operation says of TLBs when it returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Promise {
    /// No CPU translates the addresses.
    NoEntry,
    /// No CPU writes to the addresses without a fault or hardware noting it.
    NoWrite,
    /// No CPU takes the addresses for dirty already, where hardware notes writes.
    NoDirty,
    /// No CPU executes from the addresses, at EL0 and EL1.
    NoExecute,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEntry => "rule 3, no entry is left in any TLB",
            Self::NoWrite => "rules 3 and 9, no CPU can write unseen",
            Self::NoDirty => "rule 9, no CPU takes a page for dirty",
            Self::NoExecute => "rule 3, no CPU can execute",
        })
    }
}

/// As what a CPU has a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// In a table that its walker can be in.
    Visible,
    /// In its TLB: stage 2 alone, a leaf or a cached table.
    Stage2,
    /// In its TLB: together with the guest's stage 1.
    Combined,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Visible => "(in a table that its walker can reach)",
            Self::Stage2 => "(as a stage-2 entry)",
            Self::Combined => "(as a combined stage 1 and 2 entry)",
        })
    }
}
