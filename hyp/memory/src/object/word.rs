//! The encoding of an object's words: a page's backing, and whether a block may map a 2 MiB region or a gigabyte.

use crate::frames::compressed_store::Handle;
use stage2::{Level, PAGE_SIZE, Pa};

/// The backing of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Backing {
    /// None yet: the page reads as zero.
    Vacant,
    /// None yet, but the page was read: the frame of zeros may be mapped.
    Zero,
    /// A frame of its own, which may be written.
    Owned(Pa),
    /// A frame that other pages share, or have shared: a write must copy it.
    Shared(Pa),
    /// Memory that isn't the pool's.
    Device(Pa),
    /// Compressed: in the store, without a frame.
    Compressed(Handle),
}

/// Set in the word of a page that is claimed.
pub(super) const CLAIMED: u64 = 1 << 3;
/// Set in the word of a page that is on a page list of reclaim and has a frame of its own.
pub(super) const LISTED: u64 = 1 << 4;
pub(super) const STATE: u64 = 0b111;
pub(super) const OWNED: u64 = 2;
/// The position of a handle.
const HANDLE: u32 = u64::BITS - Handle::BITS;
const ADDRESS: u64 = !(PAGE_SIZE - 1);

impl Backing {
    pub(super) const fn encode(self) -> u64 {
        match self {
            Self::Vacant => 0,
            Self::Zero => 1,
            Self::Owned(pa) => OWNED | pa.get(),
            Self::Shared(pa) => 3 | pa.get(),
            Self::Device(pa) => 4 | pa.get(),
            Self::Compressed(handle) => 5 | handle.bits() << HANDLE,
        }
    }

    #[inline]
    pub(super) const fn decode(word: u64) -> Self {
        let pa = Pa::new(word & ADDRESS);
        match word & STATE {
            0 => Self::Vacant,
            1 => Self::Zero,
            OWNED => Self::Owned(pa),
            3 => Self::Shared(pa),
            4 => Self::Device(pa),
            _ => Self::Compressed(Handle::from_bits(word >> HANDLE)),
        }
    }
}

/// Set in the word of a region whose pages are treated apart, and of a gigabyte whose regions are: no longer one run of frames.
pub(super) const APART: u64 = 1;
/// Set in the word of a region with shared pages: a block may map it read-only.
pub(super) const READ_ONLY: u64 = 1 << 1;
/// Set in the word of a region of a 1 GiB piece. A block may map more than the region if the gigabyte's word allows it.
pub(super) const IN_GIGABYTE: u64 = 1 << 2;
/// The unit in a gigabyte's word that counts its [`READ_ONLY`] regions.
pub(super) const READ_ONLY_REGION: u64 = 1 << 1;

/// The largest block that may map a page, as far as its 2 MiB region decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    /// The level of the block: 2 or 3.
    pub(crate) level: Level,
    /// Only for reading.
    pub(crate) read_only: bool,
}

impl Extent {
    #[inline]
    const fn decode(word: u64) -> Self {
        Self {
            level: if word & APART == 0 {
                Level::L2
            } else {
                Level::L3
            },
            read_only: word & READ_ONLY != 0,
        }
    }
}

/// The state of a page as a fault found it, on which it decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Look {
    pub(super) word: u64,
    pub(super) region: u64,
}

impl Look {
    /// Whether the page is claimed.
    #[inline]
    pub(crate) const fn is_claimed(self) -> bool {
        self.word & CLAIMED != 0
    }

    /// The page's backing.
    #[inline]
    pub(crate) const fn backing(self) -> Backing {
        Backing::decode(self.word)
    }

    /// The largest block that may map it, as far as its region decides.
    #[inline]
    pub(crate) const fn extent(self) -> Extent {
        Extent::decode(self.region)
    }

    /// Whether a block may map more than its region, if the gigabyte's word agrees.
    #[inline]
    pub(super) const fn may_be_gigabyte(self) -> bool {
        self.region & (IN_GIGABYTE | APART) == IN_GIGABYTE
    }
}
