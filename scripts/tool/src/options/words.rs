//! The words that options have for what a run can be: those of the hypervisor, which are also those of the records.

use std::fmt;

use clap::ValueEnum;

use crate::size::{Size, mib};

/// The word that stands for a value in options and records.
fn word(value: &impl ValueEnum) -> String {
    let possible = value.to_possible_value();
    possible.map_or_else(String::new, |possible| possible.get_name().to_string())
}

macro_rules! shown_as_word {
    ($($type:ty),*) => {
        $(impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&word(self))
            }
        })*
    };
}

shown_as_word!(
    Mode,
    Backing,
    Split,
    Tracking,
    Granularity,
    Harvest,
    Enable,
    Clear,
    Restore,
    Changing,
    Tracker,
    Change,
    MergeTarget
);

/// How stage-2 operations exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Mode {
    /// No lock at all.
    Parallel,
    /// Faults share a lock, everything else excludes them.
    Rwlock,
    /// One lock for everything.
    Mutex,
}

impl Mode {
    /// The modes that are compared unless the user chooses.
    pub const COMPARED: [Mode; 3] = [Mode::Mutex, Mode::Rwlock, Mode::Parallel];
}

/// The size of the pages that guest memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Backing {
    /// Pages of 4 KiB.
    #[value(name = "4K")]
    Page4K,
    /// Blocks of 2 MiB.
    #[value(name = "2M")]
    Block2M,
    /// Blocks of 1 GiB.
    #[value(name = "1G")]
    Block1G,
}

impl Backing {
    /// The size of one page or block.
    pub fn size(self) -> Size {
        match self {
            Self::Page4K => Size(4096),
            Self::Block2M => mib(2),
            Self::Block1G => mib(1024),
        }
    }
}

/// What a write fault on a logged block does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Split {
    /// The whole block is split.
    Fault,
    /// The block is unmapped and the one page mapped.
    None,
    /// Blocks are split ahead of the faults.
    Eager,
}

/// What makes a write known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Tracking {
    /// The first write to a page faults.
    #[value(name = "writeprotect")]
    WriteProtect,
    /// The CPU marks the page.
    Hardware,
}

/// The size of what is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Granularity {
    /// Pages.
    #[value(name = "4K")]
    Page4K,
    /// Whole blocks, which aren't split.
    #[value(name = "2M")]
    Block2M,
}

/// What the log is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Harvest {
    /// A bitmap of the slot.
    Bitmap,
    /// A ring for each vCPU.
    Ring,
}

/// What enabling the log does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Enable {
    /// Write-protect everything.
    Protect,
    /// Write-protect everything, splitting it first if it is to be split, while the vCPUs access their memory.
    Overlapped,
    /// Call everything dirty, and write-protect when it is first cleared.
    #[value(name = "all_set", alias = "all-set")]
    AllSet,
}

/// How the log is cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Clear {
    /// Apart from getting it.
    Manual,
    /// Together with getting it.
    #[value(name = "with_get", alias = "with-get")]
    WithGet,
}

/// What disabling the log does about blocks that it has split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Restore {
    /// Puts them together before it returns.
    #[value(name = "at_once", alias = "at-once")]
    AtOnce,
    /// Puts them together afterwards, while the guest runs.
    Background,
    /// Leaves them.
    Never,
}

/// What changes what backs memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Changing {
    /// CPUs invalidate ranges next to those that vCPUs fault in.
    Invalidate,
    /// A VM is forked, and the fork reads and writes every page.
    Cow,
    /// Equal pages of two VMs are merged.
    Merge,
    /// Memory is populated ahead of its first access.
    Prefault,
    /// A VM has less memory than it uses.
    Reclaim,
}

/// Which faults an invalidation makes try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Tracker {
    /// Those in its range.
    Ranges,
    /// Those in its VM, as in KVM on arm64.
    Sequence,
}

/// How a page that is mapped gets another frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Change {
    /// Its entries are given it.
    Direct,
    /// It is unmapped, and faults map it again.
    Unmap,
}

/// Memory whose equal pages are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum MergeTarget {
    /// The benchmark's test memory.
    Test,
    /// All else that the guest has.
    Ram,
}
