//! Slots: the parts of a guest's physical address space that are backed, with each slot's object and dirty log.
//!
//! The slots of a VM are an immutable sorted array behind an epoch-protected pointer (rule 10): a fault reads it without a
//! lock; a change publishes a new array.

use crate::dirty::bitmap::{DirtyLog, Words};
use crate::dirty::slot_id::SlotId;
use crate::epoch::published::{Published, try_box};
use crate::frames::GRANULE;
use crate::object::{Look, Object, ObjectError};
use crate::system::reverse_map::ObjectId;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use core::ops::Range;
use crossbeam_epoch::Guard;
use spin::Mutex;
use stage2::{Access, Ipa, IpaRange, Level, PAGE_SHIFT, Pa};

/// How many slots a VM may have.
pub const MAX_SLOTS: usize = 512;

/// The configuration of a slot.
#[derive(Clone, Debug)]
pub struct SlotConfig {
    /// Its identifier.
    pub id: SlotId,
    /// Its start address.
    pub start: Ipa,
    /// Its object.
    pub object: Arc<Object>,
    /// Its offset in the object, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether guest writes are refused.
    pub read_only: bool,
    /// Whether a read of an untouched page allocates it as a write does, so that a following write doesn't fault.
    pub write_faults: bool,
}

/// A piece of guest memory.
#[derive(Debug)]
pub struct Slot {
    config: SlotConfig,
    first_page: u64,
    /// The largest block that its position allows.
    largest: Level,
    /// The dirty log, while there is one. Faults decide on it (rule 8).
    log: Published<DirtyLog>,
    /// Memory for the next log, so that enabling it takes no time. No fault takes the lock.
    spare: Mutex<Option<Words>>,
}

impl Slot {
    pub(crate) fn new(config: SlotConfig) -> Self {
        // A block begins at a multiple of its size, in the object as in the guest.
        let skew = config.start.get() ^ config.offset;
        let fits = |level: &Level| skew.is_multiple_of(GRANULE.span(*level));
        let largest = [Level::L1, Level::L2].into_iter().find(fits);
        Self {
            first_page: config.offset >> PAGE_SHIFT,
            largest: largest.unwrap_or(Level::L3),
            config,
            log: Published::new(),
            spare: Mutex::new(None),
        }
    }

    /// Allocates the memory of the next log. False if there isn't enough; then enabling tries again.
    pub(crate) fn prepare_log(&self) -> bool {
        let words = Words::new(self.pages());
        let prepared = words.is_some();
        *self.spare.lock() = words;
        prepared
    }

    /// Takes the memory for a log.
    pub(crate) fn take_spare(&self) -> Option<Words> {
        let spare = self.spare.lock().take();
        spare.or_else(|| Words::new(self.pages()))
    }

    /// Its identifier.
    pub fn id(&self) -> SlotId {
        self.config.id
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> &SlotConfig {
        &self.config
    }

    /// The addresses that it covers.
    #[inline]
    pub fn range(&self) -> IpaRange {
        self.config.start..self.config.start.offset(self.config.bytes)
    }

    /// Whether it covers `ipa`.
    #[inline(always)]
    fn covers(&self, ipa: Ipa) -> bool {
        // One comparison: what lies before it is far behind it.
        ipa.get().wrapping_sub(self.config.start.get()) < self.config.bytes
    }

    /// Its size in pages.
    pub fn pages(&self) -> u64 {
        self.config.bytes >> PAGE_SHIFT
    }

    /// Whether guest writes are refused.
    #[inline]
    pub fn read_only(&self) -> bool {
        self.config.read_only
    }

    /// Its object.
    #[inline]
    pub(crate) fn object(&self) -> &Arc<Object> {
        &self.config.object
    }

    /// The object's page at its start.
    #[inline]
    pub(crate) fn first_page(&self) -> u64 {
        self.first_page
    }

    /// The largest block that may map the page at `ipa` as it was found, for writing if `writes`. The caller has checked that
    /// its region allows that.
    #[inline]
    pub(crate) fn largest_block(&self, ipa: Ipa, look: Look, writes: bool) -> Level {
        let largest = self
            .object()
            .largest_block(self.object_page(ipa), look, writes);
        self.fitting(ipa, largest)
    }

    /// The largest block up to `level` that may map the page at `ipa`, given the slot's position.
    #[inline]
    pub(crate) fn fitting(&self, ipa: Ipa, level: Level) -> Level {
        let mut level = level.max(self.largest);
        let range = self.range();
        while level < Level::L3 {
            let start = ipa.align_down(GRANULE.span(level));
            if start >= range.start && range.end.get() - start.get() >= GRANULE.span(level) {
                break;
            }
            level = level.below().unwrap_or(Level::L3);
        }
        level
    }

    /// The run of frames that backs a block of `level` from `start` on, if it lies in the slot and is all the object's own.
    pub(crate) fn run_at(&self, start: Ipa, level: Level) -> Option<Pa> {
        if start < self.range().start || self.fitting(start, level) > level {
            return None;
        }
        self.object().run_at(self.object_page(start), level)
    }

    /// Whether an access maps this untouched page to the frame of zeros.
    pub(crate) fn reads_zeros(&self, access: Access, look: Look) -> bool {
        // What is allocated in large pieces is there sooner that way.
        access != Access::Write && !self.config.write_faults && look.extent().level == Level::L3
    }

    /// The object's page at `ipa`, which lies in the slot.
    #[inline]
    pub(crate) fn object_page(&self, ipa: Ipa) -> u64 {
        self.first_page + self.page_of(ipa)
    }

    /// The addresses of those of `pages`, by their numbers in the slot, that it has.
    pub(crate) fn range_of(&self, pages: &Range<u64>) -> IpaRange {
        let at = |page: u64| (self.config.start).offset(page.min(self.pages()) << PAGE_SHIFT);
        at(pages.start)..at(pages.end)
    }

    /// The slot's page number at `ipa`, which lies in it.
    #[inline]
    pub(crate) fn page_of(&self, ipa: Ipa) -> u64 {
        (ipa.get() - self.config.start.get()) >> PAGE_SHIFT
    }

    /// The slot's page numbers under a leaf of `level` at `ipa`, as far as they lie in it.
    pub(crate) fn pages_of(&self, ipa: Ipa, level: Level) -> Range<u64> {
        let range = self.range();
        let end = ipa.get().saturating_add(GRANULE.span(level));
        let number = |ipa: Ipa| self.page_of(ipa.clamp(range.start, range.end));
        number(ipa)..number(Ipa::new(end))
    }

    /// The log, while logging is enabled.
    #[inline]
    pub(crate) fn log<'g>(&self, guard: &'g Guard) -> Option<&'g DirtyLog> {
        self.log.load(guard)
    }

    /// Publishes a log, or none: a later walk of the entries either sees a fault's entry or is seen by that fault (rule 8).
    /// Returns whether there was one.
    pub(crate) fn replace_log(&self, log: Option<Box<DirtyLog>>, guard: &Guard) -> bool {
        self.log.replace(log, guard)
    }
}

/// All slots of a VM, sorted by address.
#[derive(Debug)]
pub(crate) struct SlotArray(Vec<Arc<Slot>>);

/// A slot can't be added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotError {
    /// The id is taken.
    Exists(SlotId),
    /// It would overlap this one.
    Overlaps(SlotId),
    /// No slot has this id.
    Unknown(SlotId),
    /// The start, the size or the offset isn't a multiple of the page size, or of the piece size of the memory to allocate.
    Unaligned {
        /// The piece size in bytes.
        piece: u64,
    },
    /// It reaches beyond its object.
    BeyondObject(ObjectId),
    /// There are as many slots as there can be.
    TooMany,
    /// Nobody may write to the object, so the slot has to be read-only.
    ReadOnlyObject(ObjectId),
    /// The object can't be made.
    Object(ObjectError),
    /// It has no page.
    Empty,
    /// It ends beyond the VM's IPA space.
    BeyondIpaSpace {
        /// The IPA space's size in bits.
        bits: u32,
    },
    /// The device lies beyond the addresses that this VM's tables can hold.
    BeyondPhysical {
        /// The bits of a physical address in the tables.
        bits: u32,
    },
    /// There are not enough frames for its memory, or not enough heap for its description.
    OutOfMemory {
        /// The bytes that were requested.
        bytes: u64,
    },
}

impl From<ObjectError> for SlotError {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::OutOfMemory { bytes } => Self::OutOfMemory { bytes },
            error => Self::Object(error),
        }
    }
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(id) => write!(f, "{id} exists already"),
            Self::Overlaps(id) => write!(f, "the addresses overlap {id}"),
            Self::Unknown(id) => write!(f, "there is no {id}"),
            Self::Unaligned { piece } => write!(
                f,
                "start, size and offset must be multiples of the backing's {piece:#x} bytes"
            ),
            Self::BeyondObject(id) => write!(f, "the slot reaches beyond the end of {id}"),
            Self::TooMany => write!(f, "a VM can't have more than {MAX_SLOTS} slots"),
            Self::ReadOnlyObject(id) => write!(f, "{id} is for read-only slots"),
            Self::Object(error) => error.fmt(f),
            Self::Empty => f.write_str("the slot is empty"),
            Self::BeyondIpaSpace { bits } => {
                write!(f, "the slot ends beyond the VM's {bits}-bit address space")
            }
            Self::BeyondPhysical { bits } => {
                write!(
                    f,
                    "the device lies beyond physical addresses of {bits} bits"
                )
            }
            Self::OutOfMemory { bytes } => write!(
                f,
                "not enough memory to back {} MiB",
                bytes.div_ceil(1 << 20)
            ),
        }
    }
}

impl core::error::Error for SlotError {}

impl SlotArray {
    /// No slots.
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    /// The slot that covers `ipa`.
    #[inline]
    pub(crate) fn find(&self, ipa: Ipa) -> Option<&Arc<Slot>> {
        self.0.get(self.index_of(ipa)?)
    }

    fn index_of(&self, ipa: Ipa) -> Option<usize> {
        let after = self.0.partition_point(|slot| slot.config.start <= ipa);
        let index = after.checked_sub(1)?;
        (ipa < self.0.get(index)?.range().end).then_some(index)
    }

    /// As [`find`](Self::find), for callers that mostly look up the same slot: `hint` is its last position.
    #[inline(always)]
    pub(crate) fn find_again(&self, ipa: Ipa, hint: &Cell<usize>) -> Option<&Arc<Slot>> {
        if let Some(slot) = self.find_at(ipa, hint) {
            return Some(slot);
        }
        hint.set(self.index_of(ipa)?);
        self.0.get(hint.get())
    }

    /// The slot that covers `ipa`, if it is at `hint`.
    #[inline(always)]
    pub(crate) fn find_at(&self, ipa: Ipa, hint: &Cell<usize>) -> Option<&Arc<Slot>> {
        self.0.get(hint.get()).filter(|slot| slot.covers(ipa))
    }

    pub(crate) fn get(&self, id: SlotId) -> Result<&Arc<Slot>, SlotError> {
        self.0
            .iter()
            .find(|slot| slot.id() == id)
            .ok_or(SlotError::Unknown(id))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.0.iter()
    }

    /// Whether a slot could be added, replacing the slot `but` if that is given.
    pub(crate) fn check(
        &self,
        id: SlotId,
        range: &IpaRange,
        but: Option<SlotId>,
    ) -> Result<(), SlotError> {
        let others = || self.0.iter().filter(|slot| Some(slot.id()) != but);
        if others().count() >= MAX_SLOTS {
            return Err(SlotError::TooMany);
        }
        for slot in others() {
            if slot.id() == id {
                return Err(SlotError::Exists(id));
            }
            let other = slot.range();
            if range.start < other.end && other.start < range.end {
                return Err(SlotError::Overlaps(slot.id()));
            }
        }
        Ok(())
    }

    /// An array of these, sorted by address; `None` without heap.
    pub(crate) fn of(slots: &[Arc<Slot>]) -> Option<Box<Self>> {
        let mut all = Vec::new();
        all.try_reserve_exact(slots.len()).ok()?;
        all.extend_from_slice(slots);
        try_box(Self(all))
    }

    /// This array without the slot `without`, and with one more slot, where given; `None` without heap.
    pub(crate) fn with(
        &self,
        slot: Option<Arc<Slot>>,
        without: Option<SlotId>,
    ) -> Option<Box<Self>> {
        let mut all = Vec::new();
        all.try_reserve_exact(self.0.len() + 1).ok()?;
        let kept = self.0.iter().filter(|slot| Some(slot.id()) != without);
        all.extend(kept.cloned());
        if let Some(slot) = slot {
            let at =
                all.partition_point(|other: &Arc<Slot>| other.range().start < slot.range().start);
            all.insert(at, slot);
        }
        try_box(Self(all))
    }
}
