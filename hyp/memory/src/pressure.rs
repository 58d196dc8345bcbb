//! Reclaim: cold pages are [put away](crate::away) when frames run out, and when a VM has more than its limit.
//!
//! Pages are found by a hand that goes around over all objects, and are then on the [lists](crate::ageing) until they
//! go, or turn out to have become something else. Whether a page was accessed is what its entries' access flags say, of
//! all VMs that map it; where hardware doesn't set them, the next access faults. A block is listed as one page. When it
//! is cold it is taken apart, and its pages are the next to go.
//!
//! Who reclaims: a CPU that has nothing else to do, ahead of need ([`CpuMemory::relieve`]); and a CPU whose fault has
//! run out of frames or into a limit, outside of its epoch, a batch at a time, whereupon the guest tries again. Any
//! number of them do so at once, beside everything else. No lock is held while entries are changed or anything is
//! compressed.

use crate::ageing::Lists;
use crate::compressed::{Refused, Store, StoreCounts};
use crate::cpu::{Caches, CpuMemory, MemorySystem};
use crate::direct::Changer;
use crate::frames::{FramePool, MAX_VMS, Owner, VmId};
use crate::hand::Hand;
use crate::object::{Backing, Object};
use crate::reverse::Sharer;
use crate::space::Space;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use spin::Mutex;
use stage2::{IpaRange, Level, Tlb};

/// Pages that one step puts away at most.
const AT_ONCE: u64 = 32;
/// Pages on the lists that one step looks at, at most, to find them.
const LISTED_LOOKS: u64 = 2 * AT_ONCE;
/// Pages of objects that one step looks at, at most, to find some that aren't listed.
const HAND_LOOKS: u64 = 4096;
/// Free frames that are kept for compressing others, where there are enough of them.
const KEPT: u64 = 64;

/// When reclaim begins and ends, in free frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watermarks {
    /// Idle CPUs begin below this. They look for pages that could go from twice the high one on.
    pub low: u64,
    /// They end at this.
    pub high: u64,
}

impl Watermarks {
    /// For a machine with so many frames: a 64th of them, and half as much again.
    pub const fn of(total: u64) -> Self {
        let low = total / 64 + 1;
        Self {
            low,
            high: low + low / 2 + 1,
        }
    }
}

/// A number that any CPU adds to, outside of faults but for those that have run out of frames.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What reclaim has done since the system was made, in pages where nothing else is said.
#[derive(Debug, Default)]
pub struct ReclaimCounters {
    /// Found by the hand.
    pub found: Count,
    /// Inactive ones that were looked at.
    pub scanned: Count,
    /// Those among them that had been accessed, and became active.
    pub activated: Count,
    /// Active ones that became inactive.
    pub deactivated: Count,
    /// Compressed.
    pub compressed: Count,
    /// Dropped, as they held zeros only.
    pub zeros: Count,
    /// Left alone, as they don't get small enough.
    pub incompressible: Count,
    /// Left alone, as there was no room for them in compressed form.
    pub no_room: Count,
    /// Blocks that were taken apart.
    pub split: Count,
    /// Steps that idle CPUs took.
    pub idle_steps: Count,
    /// Steps that faults had to take themselves.
    pub direct_steps: Count,
    /// Given up by guests.
    pub ballooned: Count,
}

impl ReclaimCounters {
    /// Calls `each` with every counter's name and value.
    pub fn for_each(&self, mut each: impl FnMut(&'static str, u64)) {
        each("reclaim_found", self.found.get());
        each("reclaim_scanned", self.scanned.get());
        each("reclaim_activated", self.activated.get());
        each("reclaim_deactivated", self.deactivated.get());
        each("reclaim_compressed", self.compressed.get());
        each("reclaim_zeros", self.zeros.get());
        each("reclaim_incompressible", self.incompressible.get());
        each("reclaim_no_room", self.no_room.get());
        each("reclaim_split", self.split.get());
        each("reclaim_idle_steps", self.idle_steps.get());
        each("reclaim_direct_steps", self.direct_steps.get());
        each("ballooned", self.ballooned.get());
    }
}

/// What reclaim knows.
#[derive(Debug)]
pub(crate) struct Pressure {
    /// The watermarks; a low one of 0 stands for none, and no reclaim.
    low: AtomicU64,
    high: AtomicU64,
    /// Whether free frames have fallen below the low watermark, and not yet risen to the high one.
    is_low: AtomicBool,
    lists: Mutex<Lists<Sharer>>,
    hand: Mutex<Hand>,
    /// How often the hand has been around.
    rounds: AtomicU64,
    store: Store,
    counters: ReclaimCounters,
}

impl Pressure {
    /// Apart, as it takes so much stack.
    #[inline(never)]
    pub(crate) fn new(pool: &'static FramePool) -> Box<Self> {
        Box::new(Self {
            low: AtomicU64::new(0),
            high: AtomicU64::new(0),
            is_low: AtomicBool::new(false),
            lists: Mutex::new(Lists::new()),
            hand: Mutex::new(Hand::new()),
            rounds: AtomicU64::new(0),
            store: Store::new(pool),
            counters: ReclaimCounters::default(),
        })
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn counters(&self) -> &ReclaimCounters {
        &self.counters
    }

    pub(crate) fn note_ballooned(&self, pages: u64) {
        self.counters.ballooned.add(pages);
    }

    fn is_on(&self) -> bool {
        self.low.load(Ordering::Relaxed) != 0
    }

    /// Whether frames are to be reclaimed ahead of need.
    fn is_low(&self, free: u64) -> bool {
        if free >= self.high.load(Ordering::Relaxed) {
            self.is_low.store(false, Ordering::Relaxed);
        } else if free < self.low.load(Ordering::Relaxed) {
            self.is_low.store(true, Ordering::Relaxed);
        }
        self.is_low.load(Ordering::Relaxed)
    }

    /// Whether pages are to be found already, so that it is known which of them are cold when some are to go.
    pub(crate) fn is_near(&self, free: u64) -> bool {
        free < 2 * self.high.load(Ordering::Relaxed)
    }

    /// Puts some cold pages away: of one owner, or of whose turn it is. False if it did nothing and there is no hope
    /// that more steps would.
    fn step<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, of: Option<Owner>) -> bool {
        self.find(cpu);
        let rounds = self.rounds.load(Ordering::Relaxed);
        let Some(owner) = of.or_else(|| self.lists.lock().whose_turn()) else {
            return self.lists.lock().is_hopeful(of, rounds);
        };
        self.balance(cpu, owner);
        let (mut away, mut looks) = (0, 0);
        while away < AT_ONCE && looks < LISTED_LOOKS {
            let Some(page) = self.lists.lock().take_inactive(owner) else {
                break;
            };
            looks += 1;
            away += u64::from(self.take(cpu, owner, page));
        }
        self.counters.scanned.add(looks);
        let mut lists = self.lists.lock();
        lists.note(owner, looks, away != 0, rounds);
        away != 0 || lists.is_hopeful(of, rounds)
    }

    /// Moves the hand on over pages that aren't listed, and lists what it finds. While one CPU does, others needn't.
    fn find<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>) {
        let Some(mut hand) = self.hand.try_lock() else {
            return;
        };
        let mut ager = Ager::new(cpu);
        let (mut looks, mut found) = (0, 0);
        while looks < HAND_LOOKS && found < LISTED_LOOKS {
            let Some(object) = hand.object(cpu.system().objects()) else {
                self.rounds.fetch_add(1, Ordering::Relaxed);
                break;
            };
            while hand.page < object.pages() && looks < HAND_LOOKS && found < LISTED_LOOKS {
                looks += 1;
                let pages = object.pages_at_once(hand.page);
                let page = object.sharer(hand.page);
                if object.enlist(hand.page) {
                    ager.age(&object, hand.page);
                    if self.lists.lock().enlist(object.account(), page) {
                        found += 1;
                    } else {
                        object.unlist(hand.page);
                    }
                }
                hand.page += pages;
            }
        }
        self.counters.found.add(found);
    }

    /// Makes the oldest active pages inactive, as long as more are active.
    fn balance<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, owner: Owner) {
        let mut ager = Ager::new(cpu);
        let mut moved = 0;
        while moved < LISTED_LOOKS {
            let Some(page) = self.lists.lock().take_surplus(owner) else {
                break;
            };
            if let Some(object) = cpu.system().objects().get(page.object)
                && object.is_listed(page.page)
            {
                ager.age(&object, page.page);
                self.list_again(&object, page, false);
            }
            moved += 1;
        }
        self.counters.deactivated.add(moved);
    }

    /// Deals with the oldest inactive page, which was taken from its list. Whether it was put away.
    fn take<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, owner: Owner, page: Sharer) -> bool {
        let Some(object) = cpu.system().objects().get(page.object) else {
            return false;
        };
        if !object.is_listed(page.page) {
            return false;
        }
        if Ager::new(cpu).was_accessed(&object, page.page) {
            self.counters.activated.add(1);
            self.list_again(&object, page, true);
            return false;
        }
        let guard = &cpu.pin();
        let Some(claim) = object.claim(page.page) else {
            self.list_again(&object, page, false);
            return false;
        };
        let Backing::Owned(frame) = claim.backing() else {
            claim.unlist();
            return false;
        };
        if object.look(page.page).extent().level < Level::L3 {
            self.counters.split.add(1);
            self.take_apart(&object, owner, page.page);
        }
        match (Changer { cpu, guard }).put_away(claim, frame) {
            Ok(Backing::Zero) => self.counters.zeros.add(1),
            Ok(_) => self.counters.compressed.add(1),
            Err(refused) => {
                match refused {
                    Refused::Incompressible => self.counters.incompressible.add(1),
                    Refused::NoRoom => self.counters.no_room.add(1),
                }
                self.list_again(&object, page, true);
                return false;
            }
        }
        true
    }

    /// Lists the other pages of the region of a claimed page, which was part of a block, as the next to go.
    fn take_apart(&self, object: &Object, owner: Owner, first: u64) {
        object.lower(first);
        for page in object.region_of(first).rev() {
            if object.enlist(page) && !self.lists.lock().enlist_next(owner, object.sharer(page)) {
                object.unlist(page);
            }
        }
    }

    fn list_again(&self, object: &Object, page: Sharer, active: bool) {
        let owner = object.account();
        let mut lists = self.lists.lock();
        let listed = if active {
            lists.activate(owner, page)
        } else {
            lists.enlist(owner, page)
        };
        drop(lists);
        if !listed {
            object.unlist(page.page);
        }
    }
}

/// Looks at access flags, and clears them. What TLBs hold is invalidated for many pages at once, when it ends.
struct Ager<'c, T: Tlb> {
    cpu: &'c CpuMemory<T>,
    cleared: Option<(Arc<Space>, IpaRange)>,
}

impl<'c, T: Tlb> Ager<'c, T> {
    fn new(cpu: &'c CpuMemory<T>) -> Self {
        Self { cpu, cleared: None }
    }

    /// Clears the access flags of all that maps a page, or the block that it begins. Accesses from when this ends on
    /// set them.
    fn age(&mut self, object: &Object, page: u64) {
        let cpu = self.cpu;
        Self::clear(cpu, object, page, |space, range| match &mut self.cleared {
            Some((same, cleared)) if Arc::ptr_eq(same, space) => {
                cleared.start = cleared.start.min(range.start);
                cleared.end = cleared.end.max(range.end);
            }
            cleared => {
                let before = cleared.replace((space.clone(), range));
                Self::invalidate(cpu, before);
            }
        });
    }

    /// Whether a page, or the block that it begins, was accessed since its access flags were cleared; clears them.
    fn was_accessed(&self, object: &Object, page: u64) -> bool {
        let mut accessed = false;
        Self::clear(self.cpu, object, page, |_, _| accessed = true);
        accessed
    }

    fn clear(
        cpu: &CpuMemory<T>,
        object: &Object,
        page: u64,
        mut accessed: impl FnMut(&Arc<Space>, IpaRange),
    ) {
        let pages = page..page + object.pages_at_once(page);
        let guard = cpu.pin();
        for mapping in object.mappings().all(&guard) {
            let range = mapping.range_of(&pages);
            if range.is_empty() {
                continue;
            }
            let space = &mapping.space;
            let (tables, epoch) = (cpu.tables(space.vm()), cpu.retirement(space.vm(), &guard));
            let worker = cpu.worker(&tables, &epoch);
            let mut any = false;
            mapping.lock.exclusively(&mut || {
                space
                    .stage2()
                    .age(&worker, range.clone(), |_, _| any = true);
            });
            if any {
                accessed(space, range);
            }
        }
    }

    fn invalidate(cpu: &CpuMemory<T>, cleared: Option<(Arc<Space>, IpaRange)>) {
        if let Some((space, range)) = cleared {
            let guard = cpu.pin();
            let (tables, epoch) = (cpu.tables(space.vm()), cpu.retirement(space.vm(), &guard));
            space
                .stage2()
                .invalidate(&cpu.worker(&tables, &epoch), range);
        }
    }
}

impl<T: Tlb> Drop for Ager<'_, T> {
    fn drop(&mut self) {
        Self::invalidate(self.cpu, self.cleared.take());
    }
}

impl MemorySystem {
    /// Lets cold pages be put away when frames run out, ahead of need by the watermarks; `None`: they never are.
    pub fn set_watermarks(&self, watermarks: Option<Watermarks>) {
        let pressure = self.pressure();
        let Watermarks { low, high } = watermarks.unwrap_or(Watermarks { low: 0, high: 0 });
        pressure.high.store(high.max(low), Ordering::Relaxed);
        pressure.low.store(low, Ordering::Relaxed);
        self.pool().keep_for_compressed(KEPT.min(low / 2));
    }

    /// What reclaim has done.
    pub fn reclaim_counters(&self) -> &ReclaimCounters {
        self.pressure().counters()
    }

    /// How many pages are listed as active and as inactive.
    pub fn listed_pages(&self) -> (u64, u64) {
        self.pressure().lists.lock().lengths()
    }

    /// What is put away at this moment.
    pub fn put_away(&self) -> StoreCounts {
        self.store().counts()
    }

    pub(crate) fn store(&self) -> &Store {
        self.pressure().store()
    }
}

impl<T: Tlb + Caches> CpuMemory<T> {
    /// A bounded share of housekeeping for a CPU that has nothing else to do: puts cold pages away if few frames are
    /// free, hands its garbage to the epoch, frees what has passed it, fills the cache of frames.
    pub fn idle(&self) {
        self.relieve();
        self.let_epoch_advance();
        self.refill();
    }

    /// A bounded share of reclaim, for a CPU that has nothing else to do: if few frames are free, or a VM has more than
    /// its limit. Whether there is more of it to do.
    pub fn relieve(&self) -> bool {
        let pressure = self.system().pressure();
        if !pressure.is_on() {
            return false;
        }
        self.pool().reclaim_released();
        let free = self.pool().free_frames();
        let is_low = pressure.is_low(free);
        let mut vms = (0..MAX_VMS).filter_map(VmId::new);
        let over = vms.find(|vm| self.pool().over_limit(*vm) > 0);
        if !is_low && over.is_none() {
            if pressure.is_near(free) {
                pressure.find(self);
            }
            return false;
        }
        let of = over.filter(|_| !is_low).map(Owner::Vm);
        pressure.counters.idle_steps.add(1);
        let hopeful = pressure.step(self, of);
        self.let_epoch_advance();
        hopeful
    }

    /// Tries to get what a fault could not have: frames, or a part of its VM's limit, if need be of pages that are put
    /// away for it. The caller holds no guard. Whether it may try again.
    pub(crate) fn make_room(&self) -> bool {
        match self.take_denied() {
            Some(vm) => self.renew_allowance(vm) || self.reclaim(Some(Owner::Vm(vm))),
            None => self.refill() || self.reclaim(None),
        }
    }

    #[cold]
    fn reclaim(&self, of: Option<Owner>) -> bool {
        let pressure = self.system().pressure();
        if !pressure.is_on() {
            return false;
        }
        pressure.counters.direct_steps.add(1);
        let hopeful = pressure.step(self, of);
        self.wait_for_epoch();
        match of {
            Some(Owner::Vm(vm)) => self.renew_allowance(vm) || hopeful,
            _ => self.refill() || hopeful,
        }
    }
}
