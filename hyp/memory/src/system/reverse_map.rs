//! The reverse map: from a frame to the objects' pages that it backs, and through each object's mappings to the VMs and
//! addresses that map it.
//!
//! Every frame of the pool has a record with the number of pages it backs and the first of them; each page links to the next. A
//! record is locked for the few steps that change its list, and the lock's holder waits for nobody. Each frame has its own
//! lock, so CPUs contend only over the same frame.

use crate::epoch::published::try_box;
use crate::frames::{FramePool, FrameRecord};
use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::ops::Deref;
use core::ptr::{self, NonNull};
use core::sync::atomic::AtomicPtr;
use spin::Mutex;
use stage2::Pa;
use stage2::sync::{AtomicU64, Ordering};

/// How many objects there can be at the same time.
pub const MAX_OBJECTS: usize = 1024;

/// Identifies a memory object. The identifier of a dropped object isn't reused soon, so that a stale one finds nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ObjectId(u32);

impl ObjectId {
    /// No object's.
    pub(crate) const NONE: Self = Self(0);
    /// An identifier consists of the object's place, counted from 1, and above that how many objects have had the place before.
    const PLACE_BITS: u32 = 11;
    const BITS: u32 = 24;

    const fn new(index: usize, generation: u32) -> Self {
        Self(generation << Self::PLACE_BITS | (index as u32 + 1))
    }

    /// The place, counted from 1: 0 for none.
    pub(crate) const fn place(self) -> usize {
        (self.0 & ((1 << Self::PLACE_BITS) - 1)) as usize
    }

    const fn index(self) -> usize {
        self.place().wrapping_sub(1)
    }

    const fn generation(self) -> u32 {
        self.0 >> Self::PLACE_BITS
    }
}

const _: () = assert!(MAX_OBJECTS < 1 << ObjectId::PLACE_BITS);

/// An object can't be registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotRegistered {
    /// There are as many as there can be.
    TooMany,
    /// There is no heap for one more.
    OutOfHeap,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {}", self.place())
    }
}

/// A page of an object.
#[derive(Debug)]
pub(crate) struct Page {
    /// Its backing: see [`Object`](crate::Object).
    pub(crate) word: AtomicU64,
    /// The next page that the same frame backs. Written and read with the frame's record locked.
    next: AtomicU64,
}

/// All pages of an object.
#[derive(Debug)]
pub(crate) struct Pages(Box<[Page]>);

impl Pages {
    /// `count` pages without backing; `None` without heap.
    pub(crate) fn new(count: usize) -> Option<Box<Self>> {
        let mut pages = Vec::new();
        pages.try_reserve_exact(count).ok()?;
        pages.resize_with(count, || Page {
            word: AtomicU64::new(0),
            next: AtomicU64::new(Sharer::NONE),
        });
        try_box(Self(pages.into_boxed_slice()))
    }
}

impl Deref for Pages {
    type Target = [Page];

    #[inline]
    fn deref(&self) -> &[Page] {
        &self.0
    }
}

/// A page that a frame backs, by its object and its number there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sharer {
    pub(crate) object: ObjectId,
    pub(crate) page: u64,
}

impl Sharer {
    const NONE: u64 = 0;
    const PAGE_BITS: u32 = u64::BITS - ObjectId::BITS;

    const fn encode(self) -> u64 {
        (self.object.0 as u64) << Self::PAGE_BITS | self.page
    }

    const fn decode(word: u64) -> Option<Self> {
        if word == Self::NONE {
            return None;
        }
        Some(Self {
            object: ObjectId((word >> Self::PAGE_BITS) as u32),
            page: word & ((1 << Self::PAGE_BITS) - 1),
        })
    }
}

/// Set in the state of a record that is locked; the rest is the number of pages that the frame backs.
const LOCKED: u64 = 1 << 63;

/// A frame's record, locked.
struct Locked<'r>(&'r FrameRecord);

impl<'r> Locked<'r> {
    fn new(record: &'r FrameRecord) -> Self {
        loop {
            let state = record.state.load(Ordering::Relaxed);
            // Acquire: pairs with the release of whoever had it last.
            if state & LOCKED == 0
                && record
                    .state
                    .compare_exchange_weak(
                        state,
                        state | LOCKED,
                        Ordering::Acquire,
                        Ordering::Relaxed,
                    )
                    .is_ok()
            {
                return Self(record);
            }
            stage2::sync::relax();
        }
    }

    fn count(&self) -> u64 {
        self.0.state.load(Ordering::Relaxed) & !LOCKED
    }

    fn set_count(&self, count: u64) {
        self.0.state.store(count | LOCKED, Ordering::Relaxed);
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.state.store(self.count(), Ordering::Release);
    }
}

/// The registered value: an object, whose type belongs to a higher module ([`Object`](crate::Object)).
pub(crate) type Registered = dyn Any + Send + Sync;

/// All objects, and the links from frames to them.
pub(crate) struct ReverseMap {
    pool: &'static FramePool,
    pages: [AtomicPtr<Pages>; MAX_OBJECTS],
    objects: Mutex<Vec<Place>>,
}

/// A place for an object.
struct Place {
    /// How many objects have been there before.
    generation: u32,
    object: Option<Weak<Registered>>,
}

impl ReverseMap {
    /// None yet.
    pub(crate) fn new(pool: &'static FramePool) -> Self {
        Self {
            pool,
            pages: [const { AtomicPtr::new(ptr::null_mut()) }; MAX_OBJECTS],
            objects: Mutex::new(Vec::new()),
        }
    }

    /// Registers an object. `None` if there are too many.
    ///
    /// # Safety
    /// `pages` stay where they are until [`Self::unregister`], and until no record lists any of them.
    pub(crate) unsafe fn register(
        &self,
        pages: NonNull<Pages>,
        object: Weak<Registered>,
    ) -> Result<ObjectId, NotRegistered> {
        let mut objects = self.objects.lock();
        let index = match objects.iter().position(|place| place.object.is_none()) {
            Some(free) => free,
            None if objects.len() < MAX_OBJECTS => {
                let reserved = objects.try_reserve(1);
                reserved.map_err(|_| NotRegistered::OutOfHeap)?;
                objects.push(Place {
                    generation: 0,
                    object: None,
                });
                objects.len() - 1
            }
            None => return Err(NotRegistered::TooMany),
        };
        let place = &mut objects[index];
        place.object = Some(object);
        // Release: whoever finds the object's name in a record finds its pages.
        self.pages[index].store(pages.as_ptr(), Ordering::Release);
        Ok(ObjectId::new(index, place.generation))
    }

    /// Removes an object from the map.
    pub(crate) fn unregister(&self, id: ObjectId) {
        if let Some(place) = self.objects.lock().get_mut(id.index()) {
            self.pages[id.index()].store(ptr::null_mut(), Ordering::Relaxed);
            let generations = 1 << (ObjectId::BITS - ObjectId::PLACE_BITS);
            *place = Place {
                generation: (place.generation + 1) % generations,
                object: None,
            };
        }
    }

    /// The object with this identifier, unless its last owner is dropping it. Takes a lock: not for a fault.
    pub(crate) fn get(&self, id: ObjectId) -> Option<Arc<Registered>> {
        let objects = self.objects.lock();
        let place = objects.get(id.index())?;
        let object = place.object.as_ref()?;
        (place.generation == id.generation()).then(|| object.upgrade())?
    }

    /// The object at the next place after that of another, which may be gone. Takes a lock: not for a fault.
    pub(crate) fn after(&self, id: ObjectId) -> Option<Arc<Registered>> {
        let objects = self.objects.lock();
        let mut later = objects.iter().skip(id.place());
        later.find_map(|place| place.object.as_ref()?.upgrade())
    }

    /// The link of a page that is listed in a locked record.
    fn next(&self, sharer: Sharer, _: &Locked<'_>) -> &AtomicU64 {
        let pages = self.pages[sharer.object.index()].load(Ordering::Acquire);
        // SAFETY: the record lists the page, or is about to: its object can't end before it has locked the record and taken
        // it out, and the pages stay as long as the object.
        let pages = unsafe { &*pages };
        &pages[sharer.page as usize].next
    }

    /// Notes that a new frame, which no other CPU knows, backs one page.
    pub(crate) fn own(&self, pa: Pa, page: Sharer) {
        if let Some(record) = self.pool.record(pa) {
            let locked = Locked::new(record);
            self.next(page, &locked)
                .store(Sharer::NONE, Ordering::Relaxed);
            record.first.store(page.encode(), Ordering::Relaxed);
            locked.set_count(1);
        }
    }

    /// Notes that a frame backs one more page, and returns how many now.
    pub(crate) fn share(&self, pa: Pa, page: Sharer) -> u64 {
        let Some(record) = self.pool.record(pa) else {
            return 1;
        };
        let locked = Locked::new(record);
        let first = record.first.load(Ordering::Relaxed);
        self.next(page, &locked).store(first, Ordering::Relaxed);
        record.first.store(page.encode(), Ordering::Relaxed);
        locked.set_count(locked.count() + 1);
        locked.count()
    }

    /// Notes that a frame backs one page less, and returns how many are left. If none, the frame is the caller's.
    pub(crate) fn unshare(&self, pa: Pa, page: Sharer) -> u64 {
        let Some(record) = self.pool.record(pa) else {
            return 1;
        };
        let locked = Locked::new(record);
        let mut link = &record.first;
        while let Some(listed) = Sharer::decode(link.load(Ordering::Relaxed)) {
            let next = self.next(listed, &locked);
            if listed == page {
                link.store(next.load(Ordering::Relaxed), Ordering::Relaxed);
                locked.set_count(locked.count() - 1);
                return locked.count();
            }
            link = next;
        }
        debug_assert!(false, "{page:?} isn't backed by {pa}");
        locked.count()
    }

    /// How many pages a frame backs. For the claim holder of one of them, 1 stays 1.
    pub(crate) fn count(&self, pa: Pa) -> u64 {
        let record = self.pool.record(pa);
        record.map_or(0, |record| Locked::new(record).count())
    }

    /// Calls `each` with every page that a frame backs, with the frame's record locked.
    pub(crate) fn sharers(&self, pa: Pa, mut each: impl FnMut(Sharer)) {
        let Some(record) = self.pool.record(pa) else {
            return;
        };
        let locked = Locked::new(record);
        let mut link = &record.first;
        while let Some(listed) = Sharer::decode(link.load(Ordering::Relaxed)) {
            each(listed);
            link = self.next(listed, &locked);
        }
    }
}

impl fmt::Debug for ReverseMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReverseMap").finish_non_exhaustive()
    }
}
