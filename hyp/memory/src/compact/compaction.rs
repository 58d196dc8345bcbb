//! Compaction by migrating pages: rebuilds 2 MiB blocks from an object's scattered frames, and frees runs of frames of which
//! only a few are in use.
//!
//! Pages are migrated one at a time: the page is claimed, made read-only while it is copied, then every table that maps it is
//! switched to the copy. Nothing is unmapped (with direct changes), or vCPUs that touch the page wait for that one page at
//! most. vCPUs may be running, and other CPUs may compact too. Each call does a bounded amount of work, and is meant for idle
//! CPUs.

use crate::change::copy_on_write::{show, writable_by_fault};
use crate::change::propagate::Changer;
use crate::frames::{FrameSize, GRANULE, Owner, Purpose, copy_page};
use crate::object::{Backing, Claim, Object, region_of};
use crate::space::slot::Slot;
use crate::system::cpu::{Caches, CpuMemory};
use crate::system::reverse_map::Sharer;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::array;
use core::sync::atomic::Ordering;
use stage2::{IpaRange, Level, PAGE_SIZE, Pa, Permissions, Tlb};

/// Pages that are moved during one stay in the epoch.
const AT_ONCE: u64 = 16;
const RUN: FrameSize = FrameSize::Block2M;
/// The most pages that may share a frame to be moved: with more the move costs too much.
const SHARERS: usize = 8;
/// The most used frames in a run that is worth clearing.
const FEW: usize = RUN.frames() / 4;
/// The most runs of frames that one call looks at. The model checker has only the one that a test is about.
const RUNS_AT_ONCE: usize = if cfg!(loom) { 1 } else { 64 };

/// The result of compacting a 2 MiB region into one run of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compacted {
    /// It is one run now, and blocks map it from now on.
    Moved,
    /// It already was one run, with shared pages. They are its own now, and blocks map it from now on.
    OwnAgain,
    /// It already was one run that blocks may map.
    Whole,
    /// Some of its pages share frames or have none, or it is smaller than a block.
    NotItsOwn,
    /// Other CPUs were changing some of its pages.
    Busy,
    /// There is no run of free frames.
    OutOfFrames,
}

/// The result of one step of clearing runs of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cleared {
    /// Frames that were moved.
    pub moved: usize,
    /// Frames of the run that couldn't be moved.
    pub left: usize,
    /// Where the next step begins; none after the last.
    pub next: Option<Pa>,
}

impl Slot {
    /// Gives each 2 MiB region of a part of the slot one run of frames again, as far as possible, if it was allocated as
    /// blocks.
    pub(crate) fn compact<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, range: IpaRange) {
        if self.object().piece() > Level::L2 {
            return;
        }
        let span = GRANULE.span(Level::L2);
        let mut start = range.start.align_down(span);
        while start < range.end {
            if self.fitting(start, Level::L2) == Level::L2 {
                self.object()
                    .compact_region_anyhow(cpu, self.object_page(start));
            }
            start = start.checked_add(span).unwrap_or(range.end);
        }
    }
}

impl Object {
    /// Moves a page's contents to another frame, for all pages that share its frame. False if impossible: the page has no
    /// frame, is claimed, has too many sharers, or is mapped by a block, or there is no free frame. VMs may be using it.
    pub fn migrate<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, page: u64) -> bool {
        self.system().check(cpu);
        let size = FrameSize::Page4K;
        let Some(to) = (self.pool()).allocate(size, Owner::Hypervisor, Purpose::Guest) else {
            return false;
        };
        let guard = &cpu.pin();
        let moved = match self.look(page).backing() {
            Backing::Owned(from) | Backing::Shared(from) => {
                Changer { cpu, guard }.move_away(from, to)
            }
            _ => false,
        };
        if !moved {
            (self.pool()).free(to, size, Owner::Hypervisor, Purpose::Guest);
        }
        moved
    }

    /// Moves the 2 MiB region around a page into one run of frames, if all of its pages have frames of their own. Blocks may
    /// map it from then on. VMs may be using it.
    pub fn compact_region<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, page: u64) -> Compacted {
        self.system().check(cpu);
        let pages = region_of(page);
        let first = pages.start;
        let extent = self.look(first).extent();
        if extent.level < Level::L3 {
            return if extent.read_only {
                self.own_again(first)
            } else {
                Compacted::Whole
            };
        }
        let owned = |page| matches!(self.look(page).backing(), Backing::Owned(_));
        if pages.end > self.pages() || !pages.clone().all(owned) {
            return Compacted::NotItsOwn;
        }
        // Frames count for the object's account from when they back it, in the place of those that did.
        let Some(run) = (self.pool()).allocate(RUN, Owner::Hypervisor, Purpose::Guest) else {
            return Compacted::OutOfFrames;
        };
        let mut next = first;
        while next < pages.end && self.move_pages(cpu, &mut next, first, run) {}
        for page in next..pages.end {
            let rest = run.offset((page - first) * PAGE_SIZE);
            let size = FrameSize::Page4K;
            (self.pool()).free(rest, size, Owner::Hypervisor, Purpose::Guest);
        }
        if next == pages.end {
            self.raise(first, run)
        } else {
            Compacted::Busy
        }
    }

    /// Allows writable blocks for a region that is still one run of frames, if all of its pages are its own again.
    fn own_again(&self, first: u64) -> Compacted {
        match self.claim_region(first) {
            Some(claims) => {
                self.note_own(&claims);
                Compacted::OwnAgain
            }
            None => Compacted::NotItsOwn,
        }
    }

    /// As [`Self::compact_region`], but without a free run of frames it clears one. The caller is in no epoch.
    pub(crate) fn compact_region_anyhow<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        page: u64,
    ) -> Compacted {
        match self.compact_region(cpu, page) {
            Compacted::OutOfFrames if cpu.clear_some_run() => self.compact_region(cpu, page),
            compacted => compacted,
        }
    }

    /// Moves some pages, from `next` on, to their places in the run that begins with `first`'s. False if one can't be moved.
    fn move_pages<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        next: &mut u64,
        first: u64,
        run: Pa,
    ) -> bool {
        let guard = &cpu.pin();
        let changer = Changer { cpu, guard };
        let end = (*next + AT_ONCE).min(first + RUN.frames() as u64);
        while *next < end {
            let Some(claim) = self.claim(*next) else {
                return false;
            };
            let Backing::Owned(from) = claim.backing() else {
                return false;
            };
            // Another CPU has given the region a run meanwhile, which blocks may map: no page of it moves alone.
            if self.look(*next).extent().level < Level::L3 {
                return false;
            }
            let to = run.offset((*next - first) * PAGE_SIZE);
            changer.withdraw(&claim);
            changer.move_frame(&mut [Some(claim)], from, to, self.account());
            *next += 1;
        }
        true
    }

    /// Allows blocks for a region, if all of its pages are still where they were moved to.
    fn raise(&self, first: u64, run: Pa) -> Compacted {
        let Some(claims) = self.claim_region(first) else {
            return Compacted::Busy;
        };
        let in_place = |page: u64| {
            self.look(page).backing() == Backing::Owned(run.offset((page - first) * PAGE_SIZE))
        };
        if !claims.pages().all(in_place) {
            return Compacted::Busy;
        }
        self.note_run(&claims);
        Compacted::Moved
    }
}

impl<T: Tlb + Caches> Changer<'_, T> {
    /// Replaces a frame by its copy for all of its pages, which are claimed and read-only. The copy's frame has no page yet and
    /// is charged to the hypervisor; the old frame is charged to `owner`.
    fn move_frame(&self, claims: &mut [Option<Claim<'_>>], from: Pa, to: Pa, owner: Owner) {
        let objects = self.cpu.system().objects();
        self.cpu.drop_stale_lines(from, PAGE_SIZE);
        // SAFETY: `to` has just come from the pool; what nobody writes is copied, and stays while its pages are claimed.
        unsafe { copy_page(from, to) };
        show(self.cpu, to, !self.cpu.system().is_written_past_caches());
        self.cpu.recharge(Owner::Hypervisor, owner);
        for claim in claims.iter().flatten() {
            objects.unshare(from, claim.sharer());
            objects.share(to, claim.sharer());
            match claim.backing() {
                Backing::Owned(_) => self.replace(claim, from, to, writable_by_fault),
                _ => self.replace(claim, from, to, |_| Permissions::READ_ONLY),
            }
        }
        // No page is anybody's before all of them have the copy: the first one would take it for its own.
        for claim in claims.iter_mut().filter_map(Option::take) {
            let backing = match claim.backing() {
                Backing::Owned(_) => Backing::Owned(to),
                _ => Backing::Shared(to),
            };
            claim.end(backing);
        }
        self.cpu.retire_guest(self.guard, from, owner);
    }

    /// Moves a frame's contents to `to`, if all of its pages can be claimed and aren't too many.
    fn move_away(&self, from: Pa, to: Pa) -> bool {
        let objects = self.cpu.system().objects();
        let mut sharers: [Option<Sharer>; SHARERS] = [None; SHARERS];
        let mut count = 0;
        objects.sharers(from, |sharer| {
            if let Some(free) = sharers.get_mut(count) {
                *free = Some(sharer);
            }
            count += 1;
        });
        if !(1..=SHARERS).contains(&count) {
            return false;
        }
        let held: [Option<Arc<Object>>; SHARERS] = array::from_fn(|index| {
            sharers[index].and_then(|sharer| Object::named(sharer.object, objects))
        });
        let mut claims: [Option<Claim<'_>>; SHARERS] = array::from_fn(|index| {
            let page = sharers[index].map_or(0, |sharer| sharer.page);
            held[index].as_ref().and_then(|object| object.claim(page))
        });
        let Some(owner) = self.owner_of(&claims, from, count) else {
            return false;
        };
        for claim in claims.iter().flatten() {
            if let Backing::Owned(_) = claim.backing() {
                self.withdraw(claim);
            }
        }
        self.move_frame(&mut claims, from, to, owner);
        true
    }

    /// The owner to which a frame is charged, if all of its pages could be claimed. `None` if some couldn't, don't have this
    /// frame any more, or are part of a block.
    fn owner_of(&self, claims: &[Option<Claim<'_>>], pa: Pa, count: usize) -> Option<Owner> {
        // Another page comes to share the frame only with the claim of one that does.
        let objects = self.cpu.system().objects();
        if claims.iter().flatten().count() != count || objects.count(pa) != count as u64 {
            return None;
        }
        let mut owner = None;
        for claim in claims.iter().flatten() {
            let object = claim.object();
            owner = Some(match claim.backing() {
                _ if object.look(claim.page()).extent().level < Level::L3 => return None,
                Backing::Owned(own) if own == pa => object.account(),
                Backing::Shared(shared) if shared == pa => Owner::Shared,
                _ => return None,
            });
        }
        owner
    }
}

impl<T: Tlb + Caches> CpuMemory<T> {
    /// Moves guest memory out of the first 2 MiB run of frames, at or after `from`, in which at most `most` frames back guests,
    /// so that the whole run may become free. Other uses of the run's frames are unknown here, and stay. The number of runs
    /// looked at is bounded, so a step may only return where the next one begins. The caller is in no epoch.
    pub fn clear_run(&self, from: Pa, most: usize) -> Cleared {
        let mut next = Some(from);
        for _ in 0..RUNS_AT_ONCE {
            let Some(run) = next.and_then(|from| self.pool().next_run(from, RUN)) else {
                return Cleared {
                    moved: 0,
                    left: 0,
                    next: None,
                };
            };
            next = run.checked_add(RUN.bytes());
            let used = frames_of(run).filter(|pa| self.backs_guest(*pa)).count();
            if (1..=most).contains(&used) {
                let moved = self.move_out(run);
                return Cleared {
                    moved,
                    left: used.saturating_sub(moved),
                    next,
                };
            }
        }
        Cleared {
            moved: 0,
            left: 0,
            next,
        }
    }

    /// Clears the next run with few used frames, for a caller that needs a free run. True if one may have become free. The
    /// caller is in no epoch.
    fn clear_some_run(&self) -> bool {
        let hand = self.system().next_to_clear();
        let cleared = self.clear_run(Pa::new(hand.load(Ordering::Relaxed)), FEW);
        let next = cleared.next.map_or(0, Pa::get);
        hand.store(next, Ordering::Relaxed);
        if cleared.moved == 0 {
            return false;
        }
        // What was moved is free only then.
        self.wait_for_epoch();
        cleared.left == 0
    }

    fn move_out(&self, run: Pa) -> usize {
        let inside = run.get()..run.get() + RUN.bytes();
        let (pool, size) = (self.pool(), FrameSize::Page4K);
        let allocate = || pool.allocate(size, Owner::Hypervisor, Purpose::Guest);
        // Free frames of the run itself.
        let mut unfit = Vec::new();
        if unfit.try_reserve_exact(RUN.frames()).is_err() {
            return 0;
        }
        let mut moved = 0;
        for from in frames_of(run).filter(|pa| self.backs_guest(*pa)) {
            let to = loop {
                match allocate() {
                    Some(pa) if inside.contains(&pa.get()) => unfit.push(pa),
                    other => break other,
                }
            };
            let Some(to) = to else { break };
            let guard = &self.pin();
            if (Changer { cpu: self, guard }).move_away(from, to) {
                moved += 1;
            } else {
                pool.free(to, size, Owner::Hypervisor, Purpose::Guest);
            }
        }
        for pa in unfit {
            pool.free(pa, size, Owner::Hypervisor, Purpose::Guest);
        }
        moved
    }

    /// Whether a frame backs a page at this moment.
    fn backs_guest(&self, pa: Pa) -> bool {
        let record = self.pool().record(pa);
        record.is_some_and(|record| record.state.load(Ordering::Relaxed) != 0)
    }
}

fn frames_of(run: Pa) -> impl Iterator<Item = Pa> {
    (0..RUN.frames() as u64).map(move |index| run.offset(index * PAGE_SIZE))
}
