//! Physical frames: allocation, and accounting of every frame to its owner and purpose.
//!
//! - [`FramePool`] holds the free frames, behind a lock that no fault takes.
//! - [`FrameCache`] holds a few zeroed frames for one CPU. A fault that needs a table or a page takes one without a lock and
//!   without writing a cache line that another CPU uses.
//! - [`FramePool::release_deferred`] and [`FramePool::release_guest`] take back tables and pages that the epoch has released.
//!   They may run inside any CPU's fault and so take no lock either. [`FramePool::reclaim_released`] returns these frames to
//!   the pool, in idle time.
//! - [`FrameRecord`] says of each frame which pages of guest memory it backs.
//!
//! Every frame is counted in exactly one place at any time; [`Counts`] adds the places up. A frame of guest memory is charged
//! to an [`Owner`], which may change while the frame is in use, and a VM may have a [limit](FramePool::set_limit).
//!
//! Physical memory is identity-mapped at EL2. On a host the addresses are those of an `arena`, a leaked allocation.

#[cfg(any(test, feature = "arena"))]
pub mod arena;
mod cache;
pub(crate) mod compressed_store;
mod counts;
mod limits;
mod physical;
mod pool;
mod record;
mod released;
pub(crate) mod tables;
pub(crate) mod watermarks;

pub use cache::FrameCache;
pub use counts::{Counts, Unbalanced, VmCounts};
pub(crate) use physical::{checksum_of_zeros, checksum_page, same_pages};
pub use physical::{copy_page, read_bytes, write_bytes, zero};
pub(crate) use physical::{page_at, page_at_mut};
pub use pool::{FramePool, MAX_RUN, MOST_PENDING};
pub use record::FrameRecord;

use core::fmt;
use stage2::{Level, PAGE_SIZE};

/// Bits of a page's number that one level of tables resolves. The model checker's trees have four entries in a table
/// ([`Layout::small`](stage2::Layout::small)), and so its blocks have four pages: no more could be explored.
const STRIDE: u32 = if cfg!(loom) { 2 } else { 9 };

/// The granule of every VM's tables: frames are handed out by its pages.
pub(crate) const GRANULE: Pieces = Pieces;

/// What leaves of each level map.
#[derive(Clone, Copy)]
pub(crate) struct Pieces;

impl Pieces {
    /// Bytes that one leaf of `level` maps.
    #[inline]
    pub(crate) const fn span(self, level: Level) -> u64 {
        PAGE_SIZE << (STRIDE * (Level::L3 as u32 - level as u32))
    }
}

/// How many VMs there can be at the same time.
pub const MAX_VMS: usize = 16;

/// The number of a VM, unique among those that exist at the same time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VmId(u8);

impl VmId {
    /// The VM of this number, or `None` from [`MAX_VMS`] on.
    pub const fn new(number: usize) -> Option<Self> {
        if number < MAX_VMS {
            Some(Self(number as u8))
        } else {
            None
        }
    }

    /// Its number, below [`MAX_VMS`].
    #[inline]
    pub const fn number(self) -> usize {
        self.0 as usize % MAX_VMS
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VM {}", self.0)
    }
}

/// The owner that frames are charged to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The hypervisor itself.
    Hypervisor,
    /// A VM.
    Vm(VmId),
    /// No single VM: guest memory that several VMs use, or may come to use.
    Shared,
}

/// The greatest number of owners at the same time.
pub(crate) const OWNERS: usize = MAX_VMS + 2;

impl Owner {
    /// All that there can be.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let vms = (0..MAX_VMS).filter_map(VmId::new).map(Self::Vm);
        [Self::Hypervisor, Self::Shared].into_iter().chain(vms)
    }

    /// Its place in an array by owner.
    #[inline]
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Hypervisor => MAX_VMS,
            Self::Shared => MAX_VMS + 1,
            Self::Vm(vm) => vm.number(),
        }
    }
}

/// The use of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Translation tables.
    Table,
    /// Memory of a guest.
    Guest,
    /// The hypervisor's heap.
    Heap,
    /// Guest memory in compressed form.
    Compressed,
}

/// The sizes in which guest memory is backed. Frames of each size are aligned to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameSize {
    /// 4 KiB.
    Page4K,
    /// 2 MiB.
    Block2M,
    /// 1 GiB.
    Block1G,
}

impl FrameSize {
    /// The size of a leaf of `level`; for level 0, which has no leaves, the largest size.
    pub const fn of_level(level: Level) -> Self {
        match level {
            Level::L3 => Self::Page4K,
            Level::L2 => Self::Block2M,
            Level::L1 | Level::L0 => Self::Block1G,
        }
    }

    /// Its size in 4 KiB frames.
    pub const fn frames(self) -> usize {
        match self {
            Self::Page4K => 1,
            Self::Block2M => 1 << STRIDE,
            Self::Block1G => 1 << (2 * STRIDE),
        }
    }

    /// Its size in bytes.
    pub const fn bytes(self) -> u64 {
        self.frames() as u64 * PAGE_SIZE
    }
}
