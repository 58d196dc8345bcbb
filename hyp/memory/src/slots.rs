//! Slots: which pieces of a guest's physical address space are backed, by what, and whether writes to them are logged.
//!
//! The slots of a VM are an immutable sorted array behind an epoch-protected pointer (rule 10): a fault reads it without
//! a lock; a change publishes a new array.

use crate::dirty_log::{DirtyLog, Words};
use crate::frames::GRANULE;
use crate::published::Published;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use crossbeam_epoch::Guard;
use spin::Mutex;
use stage2::{Ipa, IpaRange, Level, PAGE_SHIFT, PAGE_SIZE, Pa};

/// Names a slot of a VM.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SlotId(pub u32);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.0)
    }
}

/// Memory behind a slot: equal, naturally aligned pieces.
#[derive(Debug)]
pub(crate) struct Backing {
    pub(crate) piece: Level,
    pub(crate) pieces: Vec<Pa>,
}

/// A piece of guest memory.
#[derive(Debug)]
pub struct Slot {
    id: SlotId,
    start: Ipa,
    backing: Backing,
    read_only: bool,
    /// None while writes aren't logged. What a fault decides on (rule 8).
    log: Published<DirtyLog>,
    /// Memory for the next log, so that enabling it takes no time. No fault takes the lock.
    spare: Mutex<Option<Words>>,
}

impl Slot {
    pub(crate) fn new(id: SlotId, start: Ipa, backing: Backing, read_only: bool) -> Self {
        Self {
            id,
            start,
            backing,
            read_only,
            log: Published::new(None),
            spare: Mutex::new(None),
        }
    }

    /// Prepares the memory of the next log. False where there isn't enough; then enabling tries again.
    pub(crate) fn prepare_log(&self) -> bool {
        let words = Words::new(self.pages());
        let prepared = words.is_some();
        *self.spare.lock() = words;
        prepared
    }

    /// The memory for a log.
    pub(crate) fn take_spare(&self) -> Option<Words> {
        let spare = self.spare.lock().take();
        spare.or_else(|| Words::new(self.pages()))
    }

    /// Its name.
    pub fn id(&self) -> SlotId {
        self.id
    }

    /// The addresses that it covers.
    pub fn range(&self) -> IpaRange {
        self.start
            ..self
                .start
                .offset(self.backing.pieces.len() as u64 * GRANULE.span(self.backing.piece))
    }

    /// Its size in pages.
    pub fn pages(&self) -> u64 {
        (self.backing.pieces.len() as u64) << (GRANULE.shift(self.backing.piece) - PAGE_SHIFT)
    }

    /// Whether guest writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The largest block that maps it.
    pub(crate) fn largest(&self) -> Level {
        self.backing.piece
    }

    pub(crate) fn backing(&self) -> &Backing {
        &self.backing
    }

    /// What backs the page at `ipa`, which lies in the slot.
    #[inline]
    pub(crate) fn frame_of(&self, ipa: Ipa) -> Pa {
        let offset = ipa.get() - self.start.get();
        let shift = GRANULE.shift(self.backing.piece);
        let piece = self.backing.pieces[(offset >> shift) as usize];
        piece.offset(offset & ((1 << shift) - 1) & !(PAGE_SIZE - 1))
    }

    /// The number within the slot of the page at `ipa`, which lies in it.
    #[inline]
    pub(crate) fn page_of(&self, ipa: Ipa) -> u64 {
        (ipa.get() - self.start.get()) >> PAGE_SHIFT
    }

    /// The log, while logging is enabled.
    #[inline]
    pub(crate) fn log<'g>(&self, guard: &'g Guard) -> Option<&'g DirtyLog> {
        self.log.load(guard)
    }

    /// Publishes a log, or none, so that whoever walks the entries afterwards is seen by faults or sees them (rule 8).
    /// Whether there was one.
    pub(crate) fn replace_log(&self, log: Option<DirtyLog>, guard: &Guard) -> bool {
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
    /// The start or the size isn't a multiple of the backing's piece size.
    Unaligned {
        /// The piece size in bytes.
        piece: u64,
    },
    /// It has no page.
    Empty,
    /// It ends beyond the VM's IPA space.
    BeyondIpaSpace {
        /// The IPA space's size in bits.
        bits: u32,
    },
    /// There are not enough frames for its memory, or not enough heap for its description.
    OutOfMemory {
        /// The bytes that were to be had.
        bytes: u64,
    },
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(id) => write!(f, "{id} exists already"),
            Self::Overlaps(id) => write!(f, "the addresses overlap {id}"),
            Self::Unknown(id) => write!(f, "there is no {id}"),
            Self::Unaligned { piece } => write!(
                f,
                "start and size must be multiples of the backing's {piece:#x} bytes"
            ),
            Self::Empty => f.write_str("the slot is empty"),
            Self::BeyondIpaSpace { bits } => {
                write!(f, "the slot ends beyond the VM's {bits}-bit address space")
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
        let after = self.0.partition_point(|slot| slot.start <= ipa);
        let slot = self.0.get(after.checked_sub(1)?)?;
        (ipa < slot.range().end).then_some(slot)
    }

    pub(crate) fn get(&self, id: SlotId) -> Result<&Arc<Slot>, SlotError> {
        self.0
            .iter()
            .find(|slot| slot.id == id)
            .ok_or(SlotError::Unknown(id))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.0.iter()
    }

    /// Whether a slot could be added.
    pub(crate) fn check(&self, id: SlotId, range: &IpaRange) -> Result<(), SlotError> {
        for slot in &self.0 {
            if slot.id == id {
                return Err(SlotError::Exists(id));
            }
            let other = slot.range();
            if range.start < other.end && other.start < range.end {
                return Err(SlotError::Overlaps(slot.id));
            }
        }
        Ok(())
    }

    /// This array and one slot more; `None` without heap.
    pub(crate) fn with(&self, slot: Arc<Slot>) -> Option<Self> {
        let mut all = Vec::new();
        all.try_reserve_exact(self.0.len() + 1).ok()?;
        let at = self.0.partition_point(|other| other.start < slot.start);
        all.extend_from_slice(&self.0[..at]);
        all.push(slot);
        all.extend_from_slice(&self.0[at..]);
        Some(Self(all))
    }
}
