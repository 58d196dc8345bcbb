//! The policy of a dirty log: how writes to a slot are noticed. It decides most of what logging costs a guest.

use stage2::{Level, OnBlock};

/// The options of a dirty log, chosen when logging is enabled for a slot and constant until it is disabled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogPolicy {
    /// How a write is noticed.
    pub tracking: Tracking,
    /// How blocks are handled.
    pub splitting: Splitting,
    /// The unit of logging.
    pub granularity: Granularity,
    /// The log begins with all pages dirty, and nothing is write-protected before a part of it is first cleared.
    pub initially_set: bool,
    /// vCPUs report their writes in their rings ([`AddressSpace::make_rings`](crate::AddressSpace::make_rings)). The bitmap has
    /// the rest: writes not made by a vCPU, and reports that found the ring full.
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
    /// Write protection: clean pages are read-only, and the first write faults.
    WriteProtect,
    /// Hardware dirty state: the CPU notes the write in the entry (FEAT_HAFDBS), without an exit. For VMs whose layout has it.
    Hardware,
}

/// The handling of blocks that are larger than the unit of logging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Splitting {
    /// A write fault unmaps the block and maps the one page: what Linux KVM does without eager splitting.
    None,
    /// A write fault splits the block; its other pages stay mapped, read-only.
    AtFault,
    /// Blocks are split ahead of any fault: when logging is enabled or, if the log is initially set, when a part of it is first
    /// cleared. Blocks for which frames don't suffice are split at their first write.
    Eager(Ahead),
}

/// How blocks are split ahead of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ahead {
    /// Bytes of guest memory that are split before the lock (in modes that have one) and the epoch are left for others.
    pub chunk: u64,
    /// Frames that are left free for others.
    pub reserve: u64,
}

/// The unit of logging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granularity {
    /// A page of 4 KiB.
    Page,
    /// A block of 2 MiB, where such blocks map the memory: they aren't split further, and one write makes the whole block
    /// dirty.
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

    /// What a write fault does to a larger block.
    #[inline]
    pub(crate) const fn on_block(&self) -> OnBlock {
        match self.splitting {
            Splitting::None => OnBlock::Isolate,
            Splitting::AtFault | Splitting::Eager(_) => OnBlock::Split,
        }
    }

    /// Whether hardware notes writes.
    #[inline]
    pub(crate) const fn by_hardware(&self) -> bool {
        matches!(self.tracking, Tracking::Hardware)
    }
}
