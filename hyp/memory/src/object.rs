//! Memory objects: the backing of guest memory, page by page.
//!
//! Slots map parts of objects into VMs; several slots, of several VMs, may map one object. Each page has one word that holds
//! its current backing ([`Backing`]). Faults only read it. To change it, a CPU first *claims* the page ([`Object::claim`]). A
//! claim never waits. While it lasts, only its holder changes the page's backing, the target of its entries, and whether they
//! may be made writable.
//!
//! Other words say how large a block may map a page ([`extent`]). Before one of several pages is treated apart, block mappings
//! are forbidden for all of them ([`Object::lower`]).
//!
//! Any number of CPUs work on an object at once. Orderings: words are stored with release and read with acquire, so a CPU that
//! sees a frame in a word sees the frame's contents (rule 11).

mod claim;
pub(crate) mod claim_batch;
mod extent;
mod image;
pub(crate) mod mappings;
mod registry;
mod word;

pub(crate) use self::claim::{Claim, Claims};
pub(crate) use self::extent::region_of;
pub(crate) use self::word::{Backing, Look};

use self::extent::Extents;
use self::word::{CLAIMED, LISTED, OWNED, STATE};
use crate::frames::{FramePool, FrameSize, GRANULE, Owner, Purpose};
use crate::object::mappings::Mappings;
use crate::system::MemorySystem;
use crate::system::cpu::{Caches, CpuMemory};
use crate::system::reverse_map::{NotRegistered, ObjectId, Page, Pages, Sharer};
use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;
use stage2::sync::{Ordering, relax};
use stage2::{Level, PAGE_SIZE, Pa};

/// The kind of an object, which decides how a fork of a VM treats it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// One VM's memory. A fork shares it copy-on-write.
    Private,
    /// Memory that VMs share deliberately. A fork shares it too.
    Shared,
    /// One read-only copy for any number of VMs.
    Image,
    /// A device's registers, or other memory that isn't the pool's.
    Device,
}

/// The backing of guest memory. Slots map it into VMs ([`AddressSpace::map_object`](crate::AddressSpace::map_object)).
///
/// Its frames return to the pool with its last reference. That may be dropped only after an epoch in which no VM could reach
/// it; removing slots and destroying address spaces do so.
pub struct Object {
    id: ObjectId,
    kind: Kind,
    account: Owner,
    piece: Level,
    pages: NonNull<Pages>,
    extents: Extents,
    mappings: Mappings,
    system: &'static MemorySystem,
}

// SAFETY: `pages` is owned as a box would be; all in it is atomic.
unsafe impl Send for Object {}
// SAFETY: as above.
unsafe impl Sync for Object {}

/// An object can't be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectError {
    /// It has no page.
    Empty,
    /// Its size, or its address if it is a device, isn't a multiple of the piece size.
    Unaligned {
        /// The piece size in bytes.
        piece: u64,
    },
    /// An image doesn't lie within the memory that shall contain it.
    ImageBeyondEnd,
    /// An image overlaps another one of the same memory.
    ImagesOverlap,
    /// There are as many objects as there can be.
    TooMany,
    /// There are not enough frames for its memory, or not enough heap for its description.
    OutOfMemory {
        /// The bytes that were requested.
        bytes: u64,
    },
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the memory object is empty"),
            Self::Unaligned { piece } => {
                write!(
                    f,
                    "the object's size must be a multiple of {piece:#x} bytes"
                )
            }
            Self::ImageBeyondEnd => f.write_str("the image doesn't lie within the memory"),
            Self::ImagesOverlap => f.write_str("the image overlaps another one"),
            Self::TooMany => f.write_str("there are too many memory objects"),
            Self::OutOfMemory { bytes } => write!(
                f,
                "not enough memory for an object of {} MiB",
                bytes.div_ceil(1 << 20)
            ),
        }
    }
}

impl core::error::Error for ObjectError {}

impl Object {
    /// A VM's own memory, allocated at first touch in pieces of the span of `piece`, and charged to `account`. Without a run of
    /// frames for a piece, smaller ones are used.
    pub fn anonymous<T: Caches>(
        cpu: &CpuMemory<T>,
        account: Owner,
        bytes: u64,
        piece: Level,
    ) -> Result<Arc<Self>, ObjectError> {
        Self::new(cpu, Kind::Private, account, bytes, piece)
    }

    /// As [`Self::anonymous`], but shared by VMs, including forks.
    pub fn shared<T: Caches>(
        cpu: &CpuMemory<T>,
        bytes: u64,
        piece: Level,
    ) -> Result<Arc<Self>, ObjectError> {
        Self::new(cpu, Kind::Shared, Owner::Shared, bytes, piece)
    }

    /// Memory whose zeroed frames are all allocated in advance, in pieces of the span of `piece`.
    pub fn preallocated<T: Caches>(
        cpu: &CpuMemory<T>,
        account: Owner,
        bytes: u64,
        piece: Level,
    ) -> Result<Arc<Self>, ObjectError> {
        let object = Self::new(cpu, Kind::Private, account, bytes, piece)?;
        object.preallocate(cpu)?;
        Ok(object)
    }

    /// Gives all vacant pages zeroed frames, in pieces as large as blocks may map. Nobody uses the object yet.
    pub(crate) fn preallocate<T: Caches>(&self, cpu: &CpuMemory<T>) -> Result<(), ObjectError> {
        let bytes = self.bytes();
        let mut page = 0;
        while page < self.pages() {
            let piece = self.piece_at(page);
            if self.look(page).backing() == Backing::Vacant {
                let pa = self.allocate_piece(cpu, page, piece);
                let pa = pa.ok_or(ObjectError::OutOfMemory { bytes })?;
                self.publish(page, Backing::Owned(pa));
            }
            page += FrameSize::of_level(piece).frames() as u64;
        }
        Ok(())
    }

    /// A read-only copy of `bytes`, filled up with zeros to whole pages.
    pub fn image<T: Caches>(cpu: &CpuMemory<T>, bytes: &[u8]) -> Result<Arc<Self>, ObjectError> {
        let size = (bytes.len() as u64).next_multiple_of(PAGE_SIZE);
        let object = Self::new(cpu, Kind::Image, Owner::Shared, size, Level::L3)?;
        for (page, content) in bytes.chunks(PAGE_SIZE as usize).enumerate() {
            let page = page as u64;
            let pa = object.allocate_piece(cpu, page, Level::L3);
            let pa = pa.ok_or(ObjectError::OutOfMemory { bytes: size })?;
            // SAFETY: the frame is the object's, which nobody else has yet.
            unsafe { crate::frames::write_bytes(pa, content) };
            cpu.hardware().clean_for_guest(pa, PAGE_SIZE);
            object.publish(page, Backing::Owned(pa));
        }
        Ok(object)
    }

    /// A device: the memory at `range` of the physical address space, not the pool's. Guests get it with the memory type
    /// Device-nGnRE, uncached.
    ///
    /// # Safety
    /// Nothing that a guest does there harms anybody else, and the pool has none of it.
    pub unsafe fn device<T: Caches>(
        cpu: &CpuMemory<T>,
        range: Range<Pa>,
    ) -> Result<Arc<Self>, ObjectError> {
        let bytes = range.end.get().saturating_sub(range.start.get());
        if !range.start.is_aligned(PAGE_SIZE) {
            return Err(ObjectError::Unaligned { piece: PAGE_SIZE });
        }
        let object = Self::new(cpu, Kind::Device, Owner::Shared, bytes, Level::L3)?;
        for page in 0..object.pages() {
            let pa = range.start.offset(page * PAGE_SIZE);
            object.publish(page, Backing::Device(pa));
        }
        Ok(object)
    }

    fn new<T: Caches>(
        cpu: &CpuMemory<T>,
        kind: Kind,
        account: Owner,
        bytes: u64,
        piece: Level,
    ) -> Result<Arc<Self>, ObjectError> {
        let span = GRANULE.span(piece);
        if bytes == 0 {
            return Err(ObjectError::Empty);
        }
        if !bytes.is_multiple_of(span) {
            return Err(ObjectError::Unaligned { piece: span });
        }
        let out_of_memory = ObjectError::OutOfMemory { bytes };
        let pages = usize::try_from(bytes / PAGE_SIZE).map_err(|_| out_of_memory)?;
        let words = Pages::new(pages).ok_or(out_of_memory)?;
        let extents = Extents::new(pages as u64, piece).ok_or(out_of_memory)?;
        let system = cpu.system();
        // Reading what nobody has written maps it.
        cpu.prepare_zeros().ok_or(out_of_memory)?;
        let pages = NonNull::from(Box::leak(words));
        // The model checker doesn't see that whoever finds the object by its name comes later.
        #[cfg(loom)]
        stage2::sync::full_barrier();
        let mut registered = Err(NotRegistered::TooMany);
        let object = Arc::new_cyclic(|object: &Weak<Self>| {
            // SAFETY: the pages stay where they are until the object, which owns them, has taken them out again.
            registered = unsafe { system.objects().register(pages, object.clone()) };
            Self {
                id: registered.unwrap_or(ObjectId::NONE),
                kind,
                account,
                piece,
                pages,
                extents,
                mappings: Mappings::new(),
                system,
            }
        });
        match registered {
            Ok(_) => Ok(object),
            Err(NotRegistered::TooMany) => Err(ObjectError::TooMany),
            Err(NotRegistered::OutOfHeap) => Err(out_of_memory),
        }
    }

    /// Its identifier in the reverse map.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.pages() * PAGE_SIZE
    }

    /// Its size in pages.
    pub fn pages(&self) -> u64 {
        self.all().len() as u64
    }

    /// The span of its allocation pieces.
    pub(crate) fn piece(&self) -> Level {
        self.piece
    }

    /// The owner that its own frames are charged to.
    pub(crate) fn account(&self) -> Owner {
        self.account
    }

    pub(crate) fn system(&self) -> &'static MemorySystem {
        self.system
    }

    /// Whether no VM may write to it.
    pub(crate) fn is_image(&self) -> bool {
        self.kind == Kind::Image
    }

    /// Whether it is a device.
    pub(crate) fn is_device(&self) -> bool {
        self.kind == Kind::Device
    }

    /// Whether a fork gets its own copy of it.
    pub(crate) fn is_private(&self) -> bool {
        self.kind == Kind::Private
    }

    /// The slots that map it.
    pub(crate) fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    fn all(&self) -> &Pages {
        // SAFETY: the object owns its pages until it is dropped.
        unsafe { self.pages.as_ref() }
    }

    #[inline]
    fn page(&self, page: u64) -> &Page {
        &self.all()[page as usize]
    }

    /// A page's identifier in the reverse map.
    pub(crate) fn sharer(&self, page: u64) -> Sharer {
        Sharer {
            object: self.id,
            page,
        }
    }

    /// The current state of a page.
    #[inline]
    pub(crate) fn look(&self, page: u64) -> Look {
        Look {
            // A page is the same on a list.
            word: self.page(page).word.load(Ordering::Acquire) & !LISTED,
            region: self.extents.region(page).load(Ordering::Acquire),
        }
    }

    /// Notes that a page, which has a frame of its own, is on a list from now on. False if it already is, or has no such frame,
    /// or is claimed.
    pub(crate) fn enlist(&self, page: u64) -> bool {
        let word = self.page(page).word.load(Ordering::Relaxed);
        word & (STATE | CLAIMED | LISTED) == OWNED
            && (self.page(page).word)
                .compare_exchange(word, word | LISTED, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Whether this page exists and is listed. A list may hold pages of an object that is gone, and whose identifier another
    /// one has now.
    pub(crate) fn is_listed(&self, page: u64) -> bool {
        let page = self.all().get(page as usize);
        page.is_some_and(|page| page.word.load(Ordering::Relaxed) & LISTED != 0)
    }

    /// Notes that a page isn't listed any more.
    pub(crate) fn unlist(&self, page: u64) {
        loop {
            match self.claim(page) {
                Some(claim) => return claim.unlist(),
                None => relax(),
            }
        }
    }

    /// Notes that an untouched page is read: from now on it may be mapped to the frame of zeros. False if another CPU was
    /// first.
    pub(crate) fn note_read(&self, page: u64) -> bool {
        let noted = self.page(page).word.compare_exchange(
            Backing::Vacant.encode(),
            Backing::Zero.encode(),
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        noted.is_ok()
    }

    /// Publishes the backing of a vacant page, of a new object or of a piece that is being allocated. Another CPU may already
    /// have found the page through its frame's record and claimed it; it releases the claim, as the page is still vacant.
    pub(crate) fn publish(&self, page: u64, backing: Backing) {
        let (vacant, backing) = (Backing::Vacant.encode(), backing.encode());
        let word = &self.page(page).word;
        // Release: as for the end of a claim.
        while word
            .compare_exchange(vacant, backing, Ordering::Release, Ordering::Relaxed)
            .is_err()
        {
            relax();
        }
    }

    /// Backs a vacant piece with zeroed frames. Its first page is the caller's (new, or claimed). Publishes all of its pages
    /// but the first, and returns the first one's backing. `None` without a run of frames for it.
    pub(crate) fn allocate_piece<T: Caches>(
        &self,
        cpu: &CpuMemory<T>,
        first: u64,
        piece: Level,
    ) -> Option<Pa> {
        let size = FrameSize::of_level(piece);
        let start = self.pool().allocate(size, self.account, Purpose::Guest)?;
        if piece < Level::L3 {
            cpu.note_taken(self.account);
        }
        // SAFETY: the frames have just come from the pool, whose memory is mapped.
        unsafe { crate::frames::zero(start, size.bytes()) };
        cpu.hardware().clean_for_guest(start, size.bytes());
        for index in 0..size.frames() as u64 {
            let pa = start.offset(index * PAGE_SIZE);
            self.system.objects().own(pa, self.sharer(first + index));
            if index != 0 {
                self.publish(first + index, Backing::Owned(pa));
            }
        }
        Some(start)
    }

    pub(crate) fn pool(&self) -> &'static FramePool {
        self.system.pool()
    }

    /// Frees the backing of the pages from `first` on, as far as they are one piece; returns how many pages. No VM reaches them
    /// any more, and no CPU is looking at them.
    fn release_piece(&self, first: u64) -> u64 {
        match self.look(first).backing() {
            Backing::Vacant | Backing::Zero | Backing::Device(_) => {}
            Backing::Compressed(handle) => self.discard(handle),
            Backing::Shared(pa) => self.release_shared(first, pa),
            Backing::Owned(pa) => {
                let size = FrameSize::of_level(self.piece_at(first));
                self.release_own(first, pa, size);
                return size.frames() as u64;
            }
        }
        1
    }

    fn release_shared(&self, page: u64, pa: Pa) {
        if self.system.objects().unshare(pa, self.sharer(page)) == 0 {
            self.pool().guest_leaving(Owner::Shared, 1);
            // SAFETY: the frame was this page's alone, no VM maps the object any more, and an epoch has passed since.
            unsafe { self.pool().release_guest(pa) };
        }
    }

    /// Frees a run of the object's own frames.
    fn release_own(&self, first: u64, pa: Pa, size: FrameSize) {
        for index in 0..size.frames() as u64 {
            let frame = pa.offset(index * PAGE_SIZE);
            (self.system.objects()).unshare(frame, self.sharer(first + index));
        }
        self.pool().guest_leaving(self.account, size.frames());
        // SAFETY: all of the run was of this object, no VM maps that any more, and an epoch has passed since.
        unsafe { self.pool().release_guest_piece(pa, size) };
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // The model checker doesn't see that whatever another owner did came before it let go.
        #[cfg(loom)]
        stage2::sync::full_barrier();
        let mut page = 0;
        while page < self.pages() {
            page += self.release_piece(page);
        }
        self.system.objects().unregister(self.id);
        // SAFETY: the pages came from a box, and neither this object nor the reverse map leads to them any more.
        drop(unsafe { Box::from_raw(self.pages.as_ptr()) });
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}
