//! The largest block that may map the pages of an object.
//!
//! Pages may share a block only while none of them is treated apart, and so this is announced first (rule 13): in the word of
//! the page's 2 MiB region and, before that, in the gigabyte's word where memory was allocated by the gigabyte. A region's word
//! never promises more than its own 2 MiB. One word holds all that a 1 GiB block needs: whether its memory is still one run of
//! frames, and how many of its regions contain shared pages.
//!
//! Both words change by single exchanges; in a gigabyte's word "apart" is final. A CPU that withdraws a block publishes this,
//! full barrier (of the tracker), then walks the entries; a fault locks its entry, full barrier, then reads the words again
//! (rule 8). Either the fault sees the withdrawal, or the walk finds the fault's block.

use super::word::{APART, IN_GIGABYTE, READ_ONLY, READ_ONLY_REGION};
use super::{Backing, Claims, Look, Object};
use crate::frames::FrameSize;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;
use stage2::sync::{AtomicU64, Ordering};
use stage2::{Level, Pa};

/// Pages of a region, the smallest block.
const PAGES_IN_REGION: u64 = FrameSize::Block2M.frames() as u64;
/// Pages of the largest block.
const PAGES_IN_GIB: u64 = FrameSize::Block1G.frames() as u64;

/// The words that say how large a block may map the pages of an object.
pub(super) struct Extents {
    /// For each 2 MiB.
    regions: Box<[AtomicU64]>,
    /// For each 1 GiB, if the object is allocated in such pieces.
    gigabytes: Box<[AtomicU64]>,
}

impl Extents {
    /// For `pages` pages, in whole pieces of the span of `piece`, each of which blocks may map. `None` without heap.
    pub(super) fn new(pages: u64, piece: Level) -> Option<Self> {
        let (region, gigabytes) = match piece {
            Level::L0 | Level::L1 => (IN_GIGABYTE, pages / PAGES_IN_GIB),
            Level::L2 => (0, 0),
            Level::L3 => (APART, 0),
        };
        Some(Self {
            regions: words_of(pages.div_ceil(PAGES_IN_REGION), region)?,
            gigabytes: words_of(gigabytes, 0)?,
        })
    }

    #[inline]
    pub(super) fn region(&self, page: u64) -> &AtomicU64 {
        &self.regions[(page / PAGES_IN_REGION) as usize]
    }

    #[inline]
    fn gigabyte(&self, page: u64) -> Option<&AtomicU64> {
        self.gigabytes.get((page / PAGES_IN_GIB) as usize)
    }
}

impl Object {
    /// Whether one block may map the gigabyte of a page: it is one run of frames, and if `writes`, also all its own. Must be
    /// checked again with the entry locked. Acquire: pairs with the release of the withdrawal.
    pub(crate) fn allows_gigabyte(&self, page: u64, writes: bool) -> bool {
        let word = self.extents.gigabyte(page);
        word.is_some_and(|word| {
            let word = word.load(Ordering::Acquire);
            word == 0 || (!writes && word & APART == 0)
        })
    }

    /// The largest block that may map a page as it was found, for writing if `writes`. The caller has checked that its region
    /// allows that.
    #[inline]
    pub(crate) fn largest_block(&self, page: u64, look: Look, writes: bool) -> Level {
        if look.may_be_gigabyte() && self.allows_gigabyte(page, writes) {
            Level::L1
        } else {
            look.extent().level
        }
    }

    /// The level of the piece around a page that is one run of the object's own frames, or is vacant and shall be allocated as
    /// one.
    pub(crate) fn piece_at(&self, page: u64) -> Level {
        let look = self.look(page);
        if look.extent().read_only {
            return Level::L3;
        }
        self.largest_block(page, look, true)
    }

    /// The number of pages, from a page on, that are listed as one: those of the block that may map it for writing.
    pub(crate) fn pages_at_once(&self, page: u64) -> u64 {
        let block = FrameSize::of_level(self.piece_at(page)).frames() as u64;
        (page | (block - 1)) + 1 - page
    }

    /// The run of the object's own frames that backs a block of `level` from a page on.
    pub(crate) fn run_at(&self, page: u64, level: Level) -> Option<Pa> {
        match self.look(page).backing() {
            Backing::Owned(pa) if self.piece_at(page) <= level => Some(pa),
            _ => None,
        }
    }

    /// The number of pages from `first` on, which the caller has claimed, that are untouched and are allocated as one piece.
    /// They stay untouched during the claim, as only the first page's claim allocates them. `None` if something is allocated,
    /// or no such piece begins here.
    pub(crate) fn untouched(&self, first: u64) -> Option<u64> {
        let piece = self.piece_at(first);
        let begins = piece < Level::L3 && self.first_of_piece(first, piece) == first;
        let is_vacant = self.look(first).backing() == Backing::Vacant;
        (begins && is_vacant).then(|| FrameSize::of_level(piece).frames() as u64)
    }

    /// Withdraws blocks from a page. Must be called, with the page claimed, before the page is treated apart from its
    /// neighbours. The rest of a 1 GiB block becomes 2 MiB blocks.
    pub(crate) fn lower(&self, page: u64) {
        self.lower_gigabyte(page);
        // AcqRel: a fault that sees the page's new word has to see this.
        let region = self.extents.region(page);
        region.fetch_or(APART, Ordering::AcqRel);
    }

    /// Withdraws the 1 GiB block of a page: its regions are separate pieces from now on.
    pub(super) fn lower_gigabyte(&self, page: u64) {
        if let Some(gigabyte) = self.extents.gigabyte(page)
            // Many pages of it are treated apart one after the other. Acquire: as if this one had taken it back.
            && gigabyte.load(Ordering::Acquire) & APART == 0
        {
            gigabyte.fetch_or(APART, Ordering::AcqRel);
        }
    }

    /// Notes that some pages of a region are shared, so that blocks map it, and its gigabyte, read-only. They are claimed, or
    /// the object is new.
    pub(crate) fn note_shared(&self, page: u64) {
        let region = self.extents.region(page);
        if region.load(Ordering::Relaxed) & READ_ONLY != 0 {
            return;
        }
        if let Some(gigabyte) = self.extents.gigabyte(page) {
            gigabyte.fetch_add(READ_ONLY_REGION, Ordering::AcqRel);
        }
        region.fetch_or(READ_ONLY, Ordering::AcqRel);
    }

    /// Notes that all pages of a region, which are claimed, are its own again. If they are still one run of frames, blocks may
    /// map the region as before; and its gigabyte, if the same holds for all of its regions.
    pub(crate) fn note_own(&self, claims: &Claims<'_>) {
        let page = claims.pages().start;
        let before = (self.extents.region(page)).fetch_and(!READ_ONLY, Ordering::AcqRel);
        if before & READ_ONLY != 0
            && let Some(gigabyte) = self.extents.gigabyte(page)
        {
            gigabyte.fetch_sub(READ_ONLY_REGION, Ordering::AcqRel);
        }
    }

    /// Notes that all pages of a region, which are claimed, are its own and one run of frames: blocks may map it from now on.
    pub(crate) fn note_run(&self, claims: &Claims<'_>) {
        self.note_own(claims);
        let region = self.extents.region(claims.pages().start);
        region.fetch_and(!APART, Ordering::AcqRel);
    }

    /// Copies a region's extent from an object, where the region is claimed, whose frames this one shares; nobody uses this one
    /// yet.
    pub(crate) fn take_extent(&self, page: u64, of: &Self) {
        if of.look(page).extent().level == Level::L3 {
            self.lower(page);
        } else if !of.allows_gigabyte(page, false) {
            self.lower_gigabyte(page);
        }
    }

    /// Allocates a piece in smaller ones, as there is no run of frames for it. Its first page is claimed.
    pub(crate) fn allocate_smaller(&self, first: u64, piece: Level) {
        match piece {
            Level::L1 => self.lower_gigabyte(first),
            _ => self.lower(first),
        }
    }

    /// The first page of the piece that a page belongs to.
    pub(crate) fn first_of_piece(&self, page: u64, piece: Level) -> u64 {
        page & !(FrameSize::of_level(piece).frames() as u64 - 1)
    }
}

/// The pages of a page's region, whether or not the object has all of them.
pub(crate) fn region_of(page: u64) -> Range<u64> {
    let first = page & !(PAGES_IN_REGION - 1);
    first..first + PAGES_IN_REGION
}

/// Words that all hold `value`; `None` without heap.
fn words_of(count: u64, value: u64) -> Option<Box<[AtomicU64]>> {
    let count = usize::try_from(count).ok()?;
    let mut words = Vec::new();
    words.try_reserve_exact(count).ok()?;
    words.resize_with(count, || AtomicU64::new(value));
    Some(words.into_boxed_slice())
}
