//! A store for compressed pages of guest memory, in frames of the pool.
//!
//! A page whose words are all equal is encoded in its handle and takes no room. Any other is compressed (LZ4's block format)
//! and put in a slot of the smallest size class that fits. Slots are packed in spans of one to four frames, which need not be
//! adjacent, so a span can be had as long as there are frames at all. An empty span frees its frames.
//!
//! Any CPU may use the store at any time, but not inside a fault's epoch. Each size class has a lock, held while a slot is
//! found and not while data is compressed or copied. A handle belongs to whoever stored the page; the page stays until the
//! handle is dropped. The store isn't compacted: a span keeps its frames until its last page is gone.

use crate::frames::{FramePool, FrameSize, Owner, Purpose};
use alloc::vec::Vec;
use core::fmt;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU64, Ordering};
use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};
use spin::Mutex;
use stage2::{PAGE_SIZE, Pa};

/// A page's bytes.
const PAGE: usize = PAGE_SIZE as usize;
/// The step between slot sizes.
const STEP: usize = 128;
/// The number of size classes.
const CLASSES: usize = 24;
/// Pages that compress to more than the largest slot aren't worth storing.
const LARGEST: usize = CLASSES * STEP;
/// The most frames of a span.
const MOST_FRAMES: usize = 4;
/// The most slots of a span: one word says which are free.
const MOST_SLOTS: usize = u64::BITS as usize;
/// Bytes at the beginning of a slot that hold the length of the data.
const HEADER: usize = 2;

/// The layout of a class: its slots and spans.
#[derive(Clone, Copy, Debug)]
struct Shape {
    bytes: usize,
    frames: usize,
    slots: usize,
}

const SHAPES: [Shape; CLASSES] = {
    let mut shapes = [Shape::of(0); CLASSES];
    let mut class = 1;
    while class < CLASSES {
        shapes[class] = Shape::of(class);
        class += 1;
    }
    shapes
};

impl Shape {
    /// Chooses the span length that wastes least.
    const fn of(class: usize) -> Self {
        let bytes = (class + 1) * STEP;
        let mut best = Self {
            bytes,
            frames: 1,
            slots: PAGE / bytes,
        };
        let mut frames = 2;
        while frames <= MOST_FRAMES {
            let slots = frames * PAGE / bytes;
            if slots <= MOST_SLOTS && slots * best.frames > best.slots * frames {
                best = Self {
                    bytes,
                    frames,
                    slots,
                };
            }
            frames += 1;
        }
        best
    }

    /// The bitmap of a span whose slots are all free.
    const fn all_free(self) -> u64 {
        u64::MAX >> (MOST_SLOTS - self.slots)
    }
}

/// Identifies a page in the store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Handle(u64);

impl Handle {
    /// The most bits of a handle.
    pub const BITS: u32 = 48;
    /// Marks a page whose words are all equal; half a word is in the lowest bits.
    const FILLED: u64 = 1 << 47;
    const CLASS: u32 = 40;
    const SLOT: u32 = 32;

    fn new(class: usize, span: u32, slot: u32) -> Self {
        Self((class as u64) << Self::CLASS | u64::from(slot) << Self::SLOT | u64::from(span))
    }

    /// The handle that [`Self::bits`] was called on.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// As a number of [`Self::BITS`] bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Bytes of the pool's frames that the page takes, to be charged to an owner.
    pub fn bytes(self) -> u64 {
        match self.filling() {
            Some(_) => 0,
            None => SHAPES[self.class()].bytes as u64,
        }
    }

    /// The half word that fills the page.
    fn filling(self) -> Option<u32> {
        (self.0 & Self::FILLED != 0).then_some(self.0 as u32)
    }

    fn class(self) -> usize {
        (self.0 >> Self::CLASS) as usize
    }

    fn slot(self) -> u32 {
        (self.0 >> Self::SLOT) as u8 as u32
    }

    fn span(self) -> usize {
        self.0 as u32 as usize
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:#x})", self.0)
    }
}

/// The store refuses a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// There are no frames, or no heap, for it.
    NoRoom,
    /// It isn't small enough in compressed form.
    Incompressible,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoom => "there is no memory for a compressed page",
            Self::Incompressible => "the page can't be compressed to three quarters",
        })
    }
}

impl core::error::Error for Refused {}

/// The contents of a store. Each number is exact, but the three may be of different moments.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StoreCounts {
    /// Pages in it.
    pub pages: u64,
    /// Those among them that take no room, as their words are all equal.
    pub filled: u64,
    /// Bytes of the slots that the others take.
    pub bytes: u64,
}

/// The store.
pub struct Store {
    pool: &'static FramePool,
    classes: [Mutex<Class>; CLASSES],
    pages: AtomicU64,
    filled: AtomicU64,
    bytes: AtomicU64,
}

impl Store {
    /// An empty store, whose frames come from `pool`.
    pub fn new(pool: &'static FramePool) -> Self {
        Self {
            pool,
            classes: [const { Mutex::new(Class::new()) }; CLASSES],
            pages: AtomicU64::new(0),
            filled: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Takes a page in. Uses some 14 KiB of stack.
    pub fn put(&self, page: &[u8; PAGE]) -> Result<Handle, Refused> {
        let handle = match filling(page) {
            Some(half) => Handle(Handle::FILLED | u64::from(half)),
            None => self.put_compressed(page)?,
        };
        self.count(handle, 1);
        Ok(handle)
    }

    /// Not inlined, as it takes so much stack.
    #[inline(never)]
    fn put_compressed(&self, page: &[u8; PAGE]) -> Result<Handle, Refused> {
        let mut packed = [0; HEADER + get_maximum_output_size(PAGE)];
        let length =
            compress_into(page, &mut packed[HEADER..]).map_err(|_| Refused::Incompressible)?;
        let length = HEADER + length;
        if length > LARGEST {
            return Err(Refused::Incompressible);
        }
        packed[..HEADER].copy_from_slice(&(length as u16).to_le_bytes());
        self.put_packed(&packed[..length])
    }

    /// Stores compressed data, with its header, in a slot.
    fn put_packed(&self, packed: &[u8]) -> Result<Handle, Refused> {
        let class = (packed.len() - 1) / STEP;
        let (handle, place) = {
            let mut spans = self.classes[class].lock();
            let (span, slot) = spans.take(class, self.pool).ok_or(Refused::NoRoom)?;
            let place = spans.place(class, span, slot);
            (Handle::new(class, span as u32, slot), place)
        };
        let mut from = packed;
        for (pa, part) in place.pieces() {
            let (now, later) = from.split_at(part.min(from.len()));
            // SAFETY: the slot was free, and is this page's from now on. The pool's memory is mapped.
            unsafe {
                let to = with_exposed_provenance_mut::<u8>(pa.get() as usize);
                to.copy_from_nonoverlapping(now.as_ptr(), now.len());
            }
            from = later;
        }
        Ok(handle)
    }

    /// Stores another copy of a page that is in the store.
    pub fn copy(&self, handle: Handle) -> Result<Handle, Refused> {
        let copy = match handle.filling() {
            Some(_) => handle,
            None => {
                let packed = self.packed(handle);
                self.put_packed(&packed[..length_of(&packed)])?
            }
        };
        self.count(copy, 1);
        Ok(copy)
    }

    /// Reads the page of a handle that came from [`Self::put`] and wasn't dropped.
    pub fn get(&self, handle: Handle, page: &mut [u8; PAGE]) {
        if let Some(half) = handle.filling() {
            for bytes in page.chunks_exact_mut(size_of_val(&half)) {
                bytes.copy_from_slice(&half.to_ne_bytes());
            }
            return;
        }
        self.get_compressed(handle, page);
    }

    #[inline(never)]
    fn get_compressed(&self, handle: Handle, page: &mut [u8; PAGE]) {
        let packed = self.packed(handle);
        let unpacked = decompress_into(&packed[HEADER..length_of(&packed)], page);
        assert_eq!(unpacked.ok(), Some(PAGE), "a stored page is damaged");
    }

    /// The contents of a slot.
    fn packed(&self, handle: Handle) -> [u8; LARGEST] {
        let class = handle.class();
        let place = self.classes[class]
            .lock()
            .place(class, handle.span(), handle.slot());
        let mut packed = [0; LARGEST];
        let mut at = 0;
        for (pa, part) in place.pieces() {
            // SAFETY: the slot is this page's until the handle is dropped, and nobody writes it. What `put` left
            // untouched of it has no meaning, but is there.
            unsafe {
                let from = with_exposed_provenance::<u8>(pa.get() as usize);
                from.copy_to_nonoverlapping(packed[at..at + part].as_mut_ptr(), part);
            }
            at += part;
        }
        packed
    }

    /// Removes a page. Its handle isn't used any more.
    pub fn drop(&self, handle: Handle) {
        if handle.filling().is_none() {
            let class = handle.class();
            let mut spans = self.classes[class].lock();
            spans.give_back(class, handle.span(), handle.slot(), self.pool);
        }
        self.count(handle, -1);
    }

    /// The store's contents in numbers.
    pub fn counts(&self) -> StoreCounts {
        StoreCounts {
            pages: self.pages.load(Ordering::Relaxed),
            filled: self.filled.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    fn count(&self, handle: Handle, pages: i64) {
        let add = |counter: &AtomicU64, by: i64| {
            counter.fetch_add(by as u64, Ordering::Relaxed);
        };
        add(&self.pages, pages);
        match handle.filling() {
            Some(_) => add(&self.filled, pages),
            None => add(&self.bytes, pages * handle.bytes() as i64),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

/// The length of compressed data, with its header.
fn length_of(packed: &[u8; LARGEST]) -> usize {
    usize::from(u16::from_le_bytes([packed[0], packed[1]]))
}

/// The half word that fills the page, if there is one.
fn filling(page: &[u8; PAGE]) -> Option<u32> {
    let mut halves = page
        .as_chunks()
        .0
        .iter()
        .map(|half| u32::from_ne_bytes(*half));
    let first = halves.next()?;
    halves.all(|half| half == first).then_some(first)
}

/// The spans of one class.
struct Class {
    spans: Vec<Span>,
    /// Spans that have some slots free and some in use. Has capacity for as many as `spans` can hold, so that it needs no heap.
    partial: Vec<u32>,
    /// The first of the spans without frames, which are chained.
    vacant: Option<u32>,
}

/// Frames with slots of one size.
struct Span {
    frames: [Pa; MOST_FRAMES],
    /// A bitmap of the free slots.
    free: u64,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    /// Without frames. Holds the next such span.
    Vacant(Option<u32>),
    /// Partially used: its index among those spans.
    Partial(u32),
    Full,
}

/// The location of a slot's bytes: in one frame, or at the end of one and the beginning of another.
#[derive(Clone, Copy)]
struct Place {
    first: (Pa, usize),
    rest: (Pa, usize),
}

impl Place {
    fn pieces(self) -> impl Iterator<Item = (Pa, usize)> {
        let pieces = [self.first, self.rest].into_iter();
        pieces.filter(|(_, part)| *part > 0)
    }
}

impl Class {
    const fn new() -> Self {
        Self {
            spans: Vec::new(),
            partial: Vec::new(),
            vacant: None,
        }
    }

    /// The location of a slot.
    fn place(&self, class: usize, span: usize, slot: u32) -> Place {
        let bytes = SHAPES[class].bytes;
        let start = slot as usize * bytes;
        let (frame, offset) = (start / PAGE, start % PAGE);
        let frames = &self.spans[span].frames;
        let part = bytes.min(PAGE - offset);
        Place {
            first: (frames[frame].offset(offset as u64), part),
            // A slot that ends with its frame has nothing of another one.
            rest: (frames[(frame + 1) % MOST_FRAMES], bytes - part),
        }
    }

    /// Allocates a slot: its span and its number.
    fn take(&mut self, class: usize, pool: &FramePool) -> Option<(usize, u32)> {
        let index = match self.partial.last() {
            Some(span) => *span as usize,
            None => self.begin_span(class, pool)?,
        };
        let span = &mut self.spans[index];
        let slot = span.free.trailing_zeros();
        span.free &= span.free - 1;
        if span.free == 0 {
            span.state = State::Full;
            // It was the last one among the partial ones.
            self.partial.pop();
        }
        Some((index, slot))
    }

    /// Makes a span with all slots free, which becomes the last of the partial ones.
    fn begin_span(&mut self, class: usize, pool: &FramePool) -> Option<usize> {
        let index = match self.vacant {
            Some(vacant) => vacant,
            None => self.spans.len().try_into().ok()?,
        };
        if index as usize == self.spans.len() {
            self.spans.try_reserve(1).ok()?;
            self.partial
                .try_reserve(self.spans.capacity() - self.partial.len())
                .ok()?;
        }
        let shape = SHAPES[class];
        let span = Span {
            frames: take_frames(shape.frames, pool)?,
            free: shape.all_free(),
            state: State::Partial(self.partial.len() as u32),
        };
        match self.spans.get_mut(index as usize) {
            Some(vacant) => {
                if let State::Vacant(next) = vacant.state {
                    self.vacant = next;
                }
                *vacant = span;
            }
            None => self.spans.push(span),
        }
        self.partial.push(index);
        Some(index as usize)
    }

    fn give_back(&mut self, class: usize, index: usize, slot: u32, pool: &FramePool) {
        let span = &mut self.spans[index];
        debug_assert!(span.free & 1 << slot == 0, "a page is dropped twice");
        span.free |= 1 << slot;
        if matches!(span.state, State::Full) {
            // There is room for all spans.
            span.state = State::Partial(self.partial.len() as u32);
            self.partial.push(index as u32);
        }
        if span.free == SHAPES[class].all_free() {
            self.end_span(class, index, pool);
        }
    }

    /// Frees the frames of a span without pages.
    fn end_span(&mut self, class: usize, index: usize, pool: &FramePool) {
        let span = &mut self.spans[index];
        give_frames_back(&span.frames[..SHAPES[class].frames], pool);
        if let State::Partial(place) = span.state {
            self.partial.swap_remove(place as usize);
            if let Some(moved) = self.partial.get(place as usize) {
                self.spans[*moved as usize].state = State::Partial(place);
            }
        }
        self.spans[index].state = State::Vacant(self.vacant.replace(index as u32));
    }
}

fn take_frames(count: usize, pool: &FramePool) -> Option<[Pa; MOST_FRAMES]> {
    let mut frames = [Pa::new(0); MOST_FRAMES];
    for taken in 0..count {
        match pool.allocate(FrameSize::Page4K, Owner::Hypervisor, Purpose::Compressed) {
            Some(pa) => frames[taken] = pa,
            None => {
                give_frames_back(&frames[..taken], pool);
                return None;
            }
        }
    }
    Some(frames)
}

fn give_frames_back(frames: &[Pa], pool: &FramePool) {
    for pa in frames {
        pool.free(
            *pa,
            FrameSize::Page4K,
            Owner::Hypervisor,
            Purpose::Compressed,
        );
    }
}

#[cfg(test)]
mod tests;
