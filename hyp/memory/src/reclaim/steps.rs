//! The steps of reclaim: finds cold pages and [compresses](crate::reclaim::compress) them, when frames run out or a VM exceeds
//! its limit.
//!
//! A cursor over all objects finds pages and puts them on the [lists](crate::system::page_lists), where they stay until they
//! are compressed or their backing has changed. A page counts as accessed if the access flag is set in any VM's entry for it;
//! where hardware doesn't set the flags, the next access faults. A block is listed as one page. A cold block is split, and its
//! pages are compressed next.
//!
//! Reclaim runs on idle CPUs, ahead of need ([`CpuMemory::relieve`]), and on a CPU whose fault has run out of frames or into a
//! limit: that CPU compresses a small batch outside of its epoch, and the guest tries again. Any number of CPUs reclaim at
//! once, beside everything else. No lock is held while entries are changed or data is compressed.
//!
//! The [watermarks](crate::frames::watermarks) are checked where frames are taken in numbers: when a CPU's cache is refilled, a
//! VM's allowance is renewed, or a run is allocated. A CPU that finds memory short wakes a sleeping one
//! ([`IdleCpus`](crate::IdleCpus)), which reclaims until there is enough again. A fault that takes a frame from its CPU's cache
//! checks nothing.

use crate::change::access_flags::AccessScan;
use crate::change::propagate::Changer;
use crate::frames::compressed_store::Refused;
use crate::frames::{MAX_VMS, Owner, VmId};
use crate::object::claim_batch::{Batch, MOST};
use crate::object::{Backing, Claim, Object, region_of};
use crate::system::MemorySystem;
use crate::system::cpu::{Caches, CpuMemory};
use crate::system::reclaim_state::ReclaimState;
use crate::system::reverse_map::{ObjectId, Sharer};
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use stage2::{Level, Tlb};

/// The bounds of one step.
#[derive(Clone, Copy, Debug)]
struct StepBudget {
    /// Pages to compress.
    compress: u64,
    /// Listed pages to look at for that.
    listed_looks: u64,
    /// Pages of objects to look at, to find some that aren't listed.
    object_looks: u64,
}

impl StepBudget {
    /// For an idle CPU.
    const IDLE: Self = Self {
        compress: 32,
        listed_looks: 64,
        object_looks: 4096,
    };
    /// For a fault, which delays a vCPU.
    const DIRECT: Self = Self {
        compress: 8,
        listed_looks: 16,
        object_looks: 512,
    };
}

impl ReclaimState {
    /// Compresses some cold pages: of the given owner, or of the next in turn. False if it did nothing and further steps would
    /// be in vain.
    fn step<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        of: Option<Owner>,
        budget: StepBudget,
    ) -> bool {
        self.find(cpu, budget);
        let rounds = self.rounds.load(Ordering::Relaxed);
        let Some(owner) = of.or_else(|| self.lists.lock().whose_turn()) else {
            return self.lists.lock().is_hopeful(of, rounds);
        };
        self.balance(cpu, owner, budget);
        let (mut away, mut looks) = (0, 0);
        loop {
            let most = (budget.compress - away).min(budget.listed_looks - looks);
            let cold = self.take_cold(cpu, owner, most);
            if cold.looks == 0 {
                break;
            }
            looks += cold.looks;
            away += self.compress_cold(cpu, owner, cold);
        }
        self.counters.scanned.add(looks);
        let mut lists = self.lists.lock();
        lists.note(owner, looks, away != 0, rounds);
        lists.is_hopeful(of, rounds)
    }

    /// Moves the cursor over pages that aren't listed, and lists those it finds. Only one CPU at a time does this; others skip
    /// it.
    fn find<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, budget: StepBudget) {
        let Some(mut hand) = self.hand.try_lock() else {
            return;
        };
        let mut scan = AccessScan::new(cpu);
        let (mut looks, mut found) = (0, 0);
        while looks < budget.object_looks && found < budget.listed_looks {
            let Some(object) = hand.object(cpu.system().objects()) else {
                self.rounds.fetch_add(1, Ordering::Relaxed);
                break;
            };
            // The model checker doesn't see that the object was made before.
            #[cfg(loom)]
            stage2::sync::full_barrier();
            while hand.page < object.pages()
                && looks < budget.object_looks
                && found < budget.listed_looks
            {
                looks += 1;
                let pages = object.pages_at_once(hand.page);
                let page = object.sharer(hand.page);
                if object.enlist(hand.page) {
                    scan.age(&object, hand.page);
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

    /// Deactivates the oldest active pages while there are more active than inactive ones.
    fn balance<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, owner: Owner, budget: StepBudget) {
        let mut scan = AccessScan::new(cpu);
        let mut named = Named::new(cpu.system());
        let mut moved = 0;
        while moved < budget.listed_looks {
            let Some(page) = self.lists.lock().take_surplus(owner) else {
                break;
            };
            if let Some(object) = named.object(page)
                && object.is_listed(page.page)
            {
                scan.age(object, page.page);
                self.list_again(object, page, false);
            }
            moved += 1;
        }
        self.counters.deactivated.add(moved);
    }

    /// Takes the oldest inactive pages from their list, at most `most` of them; accessed ones become active.
    fn take_cold<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, owner: Owner, most: u64) -> Cold {
        let scan = AccessScan::new(cpu);
        let mut named = Named::new(cpu.system());
        let mut cold = Cold::default();
        while cold.count < MOST && cold.looks < most {
            let Some(page) = self.lists.lock().take_inactive(owner) else {
                break;
            };
            cold.looks += 1;
            let Some(object) = named.object(page) else {
                continue;
            };
            if !object.is_listed(page.page) {
                continue;
            }
            if scan.was_accessed(object, page.page) {
                self.counters.activated.add(1);
                self.list_again(object, page, true);
                continue;
            }
            cold.pages[cold.count] = page;
            cold.count += 1;
        }
        cold
    }

    /// Compresses cold pages, a batch for each object. Returns how many were compressed.
    fn compress_cold<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        owner: Owner,
        mut cold: Cold,
    ) -> u64 {
        let pages = &mut cold.pages[..cold.count];
        // In the order in which a batch takes them: neighbours on a list are seldom far from each other.
        pages.sort_unstable_by_key(|page| (page.object.place(), page.page));
        let mut away = 0;
        for of_one in pages.chunk_by(|one, next| one.object == next.object) {
            if let Some(object) = Object::named(of_one[0].object, cpu.system().objects()) {
                away += self.compress_of(cpu, owner, &object, of_one);
            }
        }
        away
    }

    /// Compresses pages of one object, in ascending order.
    fn compress_of<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        owner: Owner,
        object: &Object,
        pages: &[Sharer],
    ) -> u64 {
        let mut batch = Batch::new(object);
        let mut busy = [None; MOST];
        for (page, busy) in pages.iter().zip(&mut busy) {
            match object.claim(page.page) {
                Some(claim) if matches!(claim.backing(), Backing::Owned(_)) => batch.add(claim),
                // With what backs it, that it was listed has gone.
                Some(claim) => claim.cancel(),
                None => *busy = Some(*page),
            }
        }
        for claim in batch.claims() {
            if object.look(claim.page()).extent().level < Level::L3 {
                self.counters.split.add(1);
                self.take_apart(object, owner, claim.page());
            }
        }
        if batch.len() != 0 {
            let guard = &cpu.pin();
            (Changer { cpu, guard }).isolate(&batch);
            self.counters.batches.add(1);
        }
        let mut away = 0;
        for claim in batch.into_claims() {
            match cpu.compress(claim) {
                Ok(Backing::Zero) => self.counters.zeros.add(1),
                Ok(_) => self.counters.compressed.add(1),
                Err((claim, refused)) => {
                    self.keep(claim, refused);
                    continue;
                }
            }
            away += 1;
        }
        for page in busy.into_iter().flatten() {
            self.list_again(object, page, false);
        }
        away
    }

    /// Lists a page that can't be compressed as active.
    fn keep(&self, claim: Claim<'_>, refused: Refused) {
        match refused {
            Refused::Incompressible => self.counters.incompressible.add(1),
            Refused::NoRoom => self.counters.no_room.add(1),
        }
        let (owner, page) = (claim.object().account(), claim.sharer());
        if self.lists.lock().activate(owner, page) {
            claim.cancel();
        } else {
            claim.unlist();
        }
    }

    /// Lists the other pages of a claimed page's region, which was part of a block, as the next to be compressed.
    fn take_apart(&self, object: &Object, owner: Owner, first: u64) {
        object.lower(first);
        for page in region_of(first).rev() {
            let mut lists = self.lists.lock();
            // Whoever has claims doesn't wait for others, as taking it back would.
            if lists.has_room(owner) && object.enlist(page) {
                lists.enlist_next(owner, object.sharer(page));
            }
        }
    }

    /// Lists a page again that was taken from its list. The caller holds no claim.
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

/// Cold pages of one owner: inactive and not accessed.
struct Cold {
    pages: [Sharer; MOST],
    count: usize,
    /// Pages that were looked at to find them.
    looks: u64,
}

impl Default for Cold {
    fn default() -> Self {
        let none = Sharer {
            object: ObjectId::NONE,
            page: 0,
        };
        Self {
            pages: [none; MOST],
            count: 0,
            looks: 0,
        }
    }
}

/// Looks up objects by identifier; several lookups in a row are often for the same one.
struct Named {
    system: &'static MemorySystem,
    last: Option<Arc<Object>>,
}

impl Named {
    fn new(system: &'static MemorySystem) -> Self {
        Self { system, last: None }
    }

    /// The object of a page, unless its last owner is dropping it.
    fn object(&mut self, page: Sharer) -> Option<&Object> {
        let last = self.last.take().filter(|last| last.id() == page.object);
        self.last = last.or_else(|| Object::named(page.object, self.system.objects()));
        self.last.as_deref()
    }
}

/// The most frames that are needed together: the tables of a 1 GiB block that is split around a page.
const FRAMES_AT_ONCE: usize = 2;

/// What has become of a shortage of frames, or of a VM's limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shortage {
    /// The frames are available by now.
    Over,
    /// Pages were compressed, or further steps may do so. The caller may try again, but has already taken long.
    Reduced,
    /// There are no frames, and no pages to compress for them.
    Lasts,
}

impl<T: Tlb + Caches> CpuMemory<T> {
    /// A bounded step of housekeeping on an idle CPU: compresses cold pages if few frames are free, passes retired memory to
    /// the epoch, frees what the epoch has released, refills the frame cache.
    pub fn idle(&self) {
        self.relieve();
        self.let_epoch_advance();
        self.refill();
    }

    /// A bounded step of reclaim on an idle CPU, if few frames are free or a VM is near its limit. Returns whether there is
    /// more to do.
    pub fn relieve(&self) -> bool {
        let reclaim = self.system().reclaim();
        if !reclaim.levels.is_on() {
            return false;
        }
        self.pool().reclaim_released();
        let free = self.pool().free_frames();
        let is_low = reclaim.levels.is_low(free);
        let pool = self.pool();
        let mut vms = (0..MAX_VMS).filter_map(VmId::new);
        let near = vms.find(|vm| {
            let room = pool.room(*vm);
            room.is_some_and(|room| reclaim.levels.is_near_limit(pool, *vm, room))
        });
        if !is_low && near.is_none() {
            if reclaim.is_near(free) {
                reclaim.find(self, StepBudget::IDLE);
            }
            return false;
        }
        let of = near.filter(|_| !is_low).map(Owner::Vm);
        reclaim.counters.idle_steps.add(1);
        let hopeful = reclaim.step(self, of, StepBudget::IDLE);
        self.let_epoch_advance();
        hopeful
    }

    /// Tries to free what was missing: frames, or part of its VM's limit, if need be by compressing pages. The caller holds no
    /// guard.
    pub(crate) fn relieve_shortage(&self) -> Shortage {
        let denied = self.take_denied();
        if self.has_room(denied) {
            Shortage::Over
        } else if self.reclaim(denied) {
            Shortage::Reduced
        } else {
            Shortage::Lasts
        }
    }

    /// Whether frames are available by now: within a VM's limit, or among the free ones. If the cache had frames all along,
    /// they were too few, unless there are as many as any operation takes at once.
    fn has_room(&self, denied: Option<VmId>) -> bool {
        match denied {
            Some(vm) => self.renew_allowance(vm),
            None => {
                let before = self.cached_frames();
                self.refill();
                self.cached_frames() > before || before >= FRAMES_AT_ONCE
            }
        }
    }

    #[cold]
    fn reclaim(&self, denied: Option<VmId>) -> bool {
        let reclaim = self.system().reclaim();
        if !reclaim.levels.is_on() {
            return false;
        }
        reclaim.counters.direct_steps.add(1);
        let hopeful = reclaim.step(self, denied.map(Owner::Vm), StepBudget::DIRECT);
        self.let_epoch_advance();
        // A limit counts what was compressed at once; frames come free when the epoch has passed.
        if self.has_room(denied) {
            return true;
        }
        self.wait_for_epoch();
        self.has_room(denied) || hopeful
    }
}
