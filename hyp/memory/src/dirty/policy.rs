//! The policy of a dirty log: how writes to a slot are noticed. It decides most of what logging costs a guest.

use stage2::{Level, OnBlock};

/// Everything that is chosen when logging is enabled for a slot. Constant while it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogPolicy {
    /// How a write is noticed.
    pub tracking: Tracking,
    /// What becomes of blocks.
    pub splitting: Splitting,
    /// How much memory is logged as one.
    pub granularity: Granularity,
    /// The log begins with all pages dirty, and nothing is write-protected before a part of it is first cleared.
    pub initially_set: bool,
    /// What vCPUs write is reported in their rings ([`AddressSpace::make_rings`](crate::AddressSpace::make_rings)); the
    /// bitmap has the rest: what no vCPU wrote, and what found its ring full.
    pub ring: bool,
}

impl Default for LogPolicy {
    /// Write protection at enabling, page by page, with blocks split at their first write.
    fn default() -> Self {
        Self {
            tracking: Tracking::WriteProtect,
            splitting: Splitting::AtFault,
            granularity: Granularity::Page,
            initially_set: false,
            ring: false,
        }
    }
}

/// How a write is noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tracking {
    /// What isn't dirty is read-only: the first write faults.
    WriteProtect,
    /// The CPU notes it in the entry (FEAT_HAFDBS): no exit at all. For VMs whose layout has hardware dirty state.
    Hardware,
}

/// What becomes of blocks that are larger than what is logged as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Splitting {
    /// A write fault unmaps the block and maps the one page: what Linux KVM does without eager splitting.
    None,
    /// A write fault splits the block; its other pages stay mapped, read-only.
    AtFault,
    /// They are split ahead of any fault: when logging is enabled or, with a log that is initially set, when a part of it is
    /// first cleared. What frames don't suffice for is split at its first write.
    Eager(Ahead),
}

/// How blocks are split ahead of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ahead {
    /// How many bytes of guest memory are split before others are let through: the lock of the modes that have one is
    /// released, and the epoch left.
    pub chunk: u64,
    /// How many frames are to be left free for everybody else.
    pub reserve: u64,
}

/// How much memory is logged as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granularity {
    /// A page of 4 KiB.
    Page,
    /// A block of 2 MiB, where memory is mapped by such: nothing is split below, and one write makes all of it dirty.
    Block2M,
}

impl LogPolicy {
    /// The level of the largest leaf that is logged as one.
    #[inline]
    pub(crate) const fn largest_written(&self) -> Level {
        match self.granularity {
            Granularity::Page => Level::L3,
            Granularity::Block2M => Level::L2,
        }
    }

    /// What a write fault does to a larger one.
    #[inline]
    pub(crate) const fn on_block(&self) -> OnBlock {
        match self.splitting {
            Splitting::None => OnBlock::Isolate,
            Splitting::AtFault | Splitting::Eager(_) => OnBlock::Split,
        }
    }

    /// Whether the CPU notes writes.
    #[inline]
    pub(crate) const fn by_hardware(&self) -> bool {
        matches!(self.tracking, Tracking::Hardware)
    }
}
