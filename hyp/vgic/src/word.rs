//! The word of an interrupt: the only truth about it, but for what its list register holds.
//!
//! Every change is one read-modify-write of the whole word, so that of two that meet one sees the other.

use core::fmt;

/// The first LPI.
pub(crate) const FIRST_LPI: u32 = 8192;
/// The first SPI.
pub(crate) const FIRST_SPI: u32 = 32;
/// The first PPI; SGIs are below.
pub(crate) const FIRST_PPI: u32 = 16;

/// A word's value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

impl Word {
    /// Forwarding is enabled.
    pub(crate) const ENABLED: u64 = 1;
    /// Group 1, else 0.
    pub(crate) const GROUP1: u64 = 1 << 1;
    /// Configured as an edge, else a level.
    pub(crate) const EDGE: u64 = 1 << 2;
    /// Its line is up.
    pub(crate) const LEVEL: u64 = 1 << 3;
    /// Pending by an edge, by hand, or by the physical interrupt behind it.
    pub(crate) const LATCH: u64 = 1 << 4;
    /// Active without a list register. If the guest acknowledged it, OWNER did.
    pub(crate) const ACT: u64 = 1 << 5;
    /// A list register of OWNER holds it.
    pub(crate) const CLAIMED: u64 = 1 << 6;
    /// To OWNER: pending no more (ICPENDR).
    pub(crate) const DROP: u64 = 1 << 7;
    /// To OWNER: active (ISACTIVER).
    pub(crate) const SETA: u64 = 1 << 8;
    /// To OWNER: active no more (ICACTIVER).
    pub(crate) const CLRA: u64 = 1 << 9;
    /// Somebody waits until OWNER has looked at it. Counted in the VM's `unsettled`.
    pub(crate) const SYNC: u64 = 1 << 10;
    /// OWNER's list register was pending when it was last looked at.
    pub(crate) const P: u64 = 1 << 11;
    /// OWNER's list register was active then.
    pub(crate) const A: u64 = 1 << 12;
    /// The physical interrupt behind it is active.
    pub(crate) const HW: u64 = 1 << 13;
    /// An LPI that an event is mapped to.
    pub(crate) const MAPPED: u64 = 1 << 14;
    /// The physical interrupt has to be ended by whoever can: OWNER, or the vCPU of a PPI.
    pub(crate) const DEBT: u64 = 1 << 15;
    /// What OWNER answers.
    pub(crate) const MESSAGES: u64 = Self::DROP | Self::SETA | Self::CLRA | Self::SYNC | Self::DEBT;

    const PRIORITY_SHIFT: u32 = 16;
    const OWNER_SHIFT: u32 = 24;
    const OWNER_MASK: u64 = 0xfff;
    const ROUTE_SHIFT: u32 = 36;
    const ROUTE_MASK: u64 = 0xff_ffff;
    /// Of an LPI's route: its vCPU; above, its generation.
    const LPI_VCPU_BITS: u32 = 10;
    /// An LPI whose collection is mapped to no vCPU.
    const NO_VCPU: u32 = (1 << Self::LPI_VCPU_BITS) - 1;
    /// What makes a deliverable interrupt one that has to be looked at again.
    const PLACE: u64 = Self::ROUTE_MASK << Self::ROUTE_SHIFT
        | 0xff << Self::PRIORITY_SHIFT
        | Self::GROUP1
        | Self::MAPPED;

    pub(crate) const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    pub(crate) const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    pub(crate) const fn without(self, bits: u64) -> Self {
        Self(self.0 & !bits)
    }

    /// With the bits if `set`, else without.
    pub(crate) const fn with_if(self, set: bool, bits: u64) -> Self {
        if set {
            self.with(bits)
        } else {
            self.without(bits)
        }
    }

    pub(crate) const fn priority(self) -> u8 {
        (self.0 >> Self::PRIORITY_SHIFT) as u8
    }

    pub(crate) const fn with_priority(self, priority: u8) -> Self {
        let cleared = self.0 & !(0xff << Self::PRIORITY_SHIFT);
        Self(cleared | (priority as u64) << Self::PRIORITY_SHIFT)
    }

    /// The vCPU whose list register holds it, or that acknowledged it last.
    pub(crate) const fn owner(self) -> usize {
        (self.0 >> Self::OWNER_SHIFT & Self::OWNER_MASK) as usize
    }

    pub(crate) const fn with_owner(self, vcpu: usize) -> Self {
        let cleared = self.0 & !(Self::OWNER_MASK << Self::OWNER_SHIFT);
        Self(cleared | (vcpu as u64 & Self::OWNER_MASK) << Self::OWNER_SHIFT)
    }

    /// An SPI's target: its affinity, or with GICv2 the set of its CPUs.
    pub(crate) const fn route(self) -> u32 {
        (self.0 >> Self::ROUTE_SHIFT & Self::ROUTE_MASK) as u32
    }

    pub(crate) const fn with_route(self, route: u32) -> Self {
        let cleared = self.0 & !(Self::ROUTE_MASK << Self::ROUTE_SHIFT);
        Self(cleared | (route as u64 & Self::ROUTE_MASK) << Self::ROUTE_SHIFT)
    }

    /// The vCPU that a mapped LPI goes to.
    pub(crate) const fn lpi_vcpu(self) -> Option<usize> {
        let vcpu = self.route() & Self::NO_VCPU;
        if self.has(Self::MAPPED) && vcpu != Self::NO_VCPU {
            Some(vcpu as usize)
        } else {
            None
        }
    }

    pub(crate) const fn with_lpi_vcpu(self, vcpu: Option<usize>) -> Self {
        let vcpu = match vcpu {
            Some(vcpu) => vcpu as u32 & Self::NO_VCPU,
            None => Self::NO_VCPU,
        };
        self.with_route(self.route() & !Self::NO_VCPU | vcpu)
    }

    /// How often an LPI's mapping has ended, modulo 2^14.
    pub(crate) const fn lpi_generation(self) -> u32 {
        self.route() >> Self::LPI_VCPU_BITS
    }

    pub(crate) const fn with_next_lpi_generation(self) -> Self {
        // What carries over is cut off.
        self.with_route(self.route() + (1 << Self::LPI_VCPU_BITS))
    }

    /// Whether a list register of this vCPU holds it.
    pub(crate) const fn is_claimed_by(self, vcpu: usize) -> bool {
        self.has(Self::CLAIMED) && self.owner() == vcpu
    }

    /// Pending outside a list register.
    pub(crate) const fn is_pending(self) -> bool {
        self.has(Self::LATCH) || self.0 & (Self::EDGE | Self::LEVEL) == Self::LEVEL
    }

    /// Whether a list register may take it, if its group is on.
    pub(crate) const fn is_deliverable(self) -> bool {
        self.0 & (Self::ENABLED | Self::ACT | Self::CLAIMED) == Self::ENABLED && self.is_pending()
    }

    /// Whether whoever it is routed to has to be told of a change from `old`, neither list register nor vCPU holding it.
    pub(crate) const fn became_deliverable(self, old: Self) -> bool {
        self.is_deliverable() && (!old.is_deliverable() || (self.0 ^ old.0) & Self::PLACE != 0)
    }

    /// Whether nothing is left of a raise.
    pub(crate) const fn is_traceless(self) -> bool {
        !self.has(Self::LATCH | Self::ACT | Self::CLAIMED)
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 16] = [
            "enabled", "group1", "edge", "level", "latch", "act", "claimed", "drop", "seta",
            "clra", "sync", "p", "a", "hw", "mapped", "debt",
        ];
        let set = NAMES
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.0 >> bit & 1 != 0);
        f.debug_set().entries(set.map(|(_, name)| name)).finish()?;
        write!(
            f,
            " owner {} route {:#x} priority {:#x}",
            self.owner(),
            self.route(),
            self.priority()
        )
    }
}
