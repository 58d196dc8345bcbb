//! Page merging: equal pages of registered objects share one frame until one of them is written.
//!
//! A scan goes through all the objects again and again, a few pages with each [`PageMerging::step`]. Policy and statistics are
//! named as in Linux KSM. A page whose checksum hasn't changed since the last scan is a candidate. When two candidates have the
//! same checksum, both are claimed and write-protected, and only then compared: the checksum only selects pairs. Equal pages
//! then share a read-only frame; a write to one of them is copied, as after a fork. A page of zeros becomes what it was before
//! its first write.
//!
//! Pages are merged only between VMs that trust each other ([`trust`](crate::system::trust_domains)). Pages of a VM with a
//! limit are never merged, as no VM would pay for the shared frame; their pages of zeros are freed all the same. A 2 MiB block
//! is split only if enough of its pages had partners in the last scan to pay for the split.
//!
//! Steps are for idle CPUs and run beside everything else, on any number of them at once: each takes the next few pages of the
//! same scan, and all meet in one table of candidates without a lock. Two that want the same page exclude each other by its
//! claim, as with any other change of it. Whoever registers or withdraws objects waits for running steps, and holds a lock that
//! no fault takes; only vCPUs that touch a page wait while it is merged. A scan allocates nothing but tables for split blocks.

mod candidates;
mod progress;
mod sharing;
mod target;

use self::candidates::{Candidates, MetFrames};
use self::progress::{Counted, Found, Progress};
use self::sharing::{Joined, PageOf, checksum, checksum_of_zeros};
use self::target::Target;
use crate::change::propagate::Changer;
use crate::frames::Owner;
use crate::object::{Backing, Object};
use crate::space::AddressSpace;
use crate::space::mmu_lock::MmuLock;
use crate::system::cpu::{Caches, CpuMemory};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::mem;
use spin::RwLock;
use stage2::Tlb;
use stage2::sync::relax;

/// Pages that a scanner takes at once, and looks at during one stay in the epoch.
const AT_ONCE: u64 = 16;
/// Frames that these may need for tables, where blocks are split.
const FRAMES_AT_ONCE: usize = 3 * AT_ONCE as usize;

/// The policy of page merging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MergePolicy {
    /// How many pages a step looks at.
    pub pages_to_scan: u64,
    /// How many pages may share a frame: each further one makes freeing it slower.
    pub max_page_sharing: u64,
    /// How many of a block's 512 pages must have partners before the block is split for them.
    pub pages_of_block: u16,
    /// How many CPUs scan together: each begins with a part of its own. There may be more or fewer.
    pub scanners: usize,
}

impl Default for MergePolicy {
    fn default() -> Self {
        Self {
            pages_to_scan: 100,
            max_page_sharing: 256,
            pages_of_block: 128,
            scanners: 1,
        }
    }
}

/// Statistics of merging, as Linux shows them under /sys/kernel/mm/ksm. Later writes of guests show after the next scan.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MergeStatistics {
    /// Frames that are shared.
    pub pages_shared: u64,
    /// Pages that share them, less one for each frame: the number of frames saved.
    pub pages_sharing: u64,
    /// Unchanged pages without an equal.
    pub pages_unshared: u64,
    /// Pages that changed since the last scan.
    pub pages_volatile: u64,
    /// Pages that were skipped because another CPU was changing them.
    pub pages_skipped: u64,
    /// Pages of zeros whose frames were freed.
    pub zero_pages: u64,
    /// Pages that were looked at, in all scans.
    pub pages_scanned: u64,
    /// Complete scans of all pages.
    pub full_scans: u64,
}

impl MergeStatistics {
    /// Calls `each` with every number's name and value.
    pub fn for_each(&self, mut each: impl FnMut(&'static str, u64)) {
        each("pages_shared", self.pages_shared);
        each("pages_sharing", self.pages_sharing);
        each("pages_unshared", self.pages_unshared);
        each("pages_volatile", self.pages_volatile);
        each("pages_skipped", self.pages_skipped);
        each("ksm_zero_pages", self.zero_pages);
        each("pages_scanned", self.pages_scanned);
        each("full_scans", self.full_scans);
    }
}

/// An object can't be registered for merging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MergeError {
    /// It is a device, or has only one copy already.
    NotMergeable,
    /// There is no heap for the scan's notes on its pages.
    OutOfMemory,
}

impl fmt::Display for MergeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotMergeable => "the memory object has no pages of its own to merge",
            Self::OutOfMemory => "no memory to note the checksums of the object's pages",
        })
    }
}

impl core::error::Error for MergeError {}

/// Merges equal pages of registered objects: their list, and the state of the scan.
#[derive(Debug)]
pub struct PageMerging {
    policy: MergePolicy,
    zeros: u32,
    /// Scanners share it; who registers or withdraws objects has it alone. Its holder may wait for entries, but never for a lock
    /// whose holder waits for it.
    registered: RwLock<Registered>,
    progress: Progress,
    counted: Counted,
}

/// The objects, and what a scan notes about their pages.
#[derive(Debug, Default)]
struct Registered {
    targets: Vec<Target>,
    candidates: Candidates,
    frames: MetFrames,
}

impl PageMerging {
    /// Without any objects.
    pub fn new(policy: MergePolicy) -> Self {
        Self {
            policy,
            zeros: checksum_of_zeros(),
            registered: RwLock::default(),
            progress: Progress::new(policy.scanners),
            counted: Counted::new(),
        }
    }

    /// Registers an object: its pages are merged from now on, among themselves and with those of VMs that
    /// [trust](crate::MemorySystem::trust) its own. It may be in use. Waits for a running step.
    ///
    /// # Errors
    /// It has no pages that could be merged, or there is no heap. Nothing has changed then.
    pub fn add(&self, object: &Arc<Object>) -> Result<(), MergeError> {
        if !is_mergeable(object) {
            return Err(MergeError::NotMergeable);
        }
        self.change(|registered| registered.add(object, &self.progress))
    }

    /// Withdraws an object: its pages are merged no more; merged pages stay so. When this returns, no step uses the object.
    /// Waits for a running step.
    pub fn remove(&self, object: &Object) {
        self.change(|registered| self.retain(registered, |target| target.id() != object.id()));
    }

    /// Registers all objects that a VM's slots map, where they can be merged. Objects of later slots must be added separately.
    ///
    /// # Errors
    /// There is no heap. Nothing of the VM is merged any more then.
    pub fn add_vm<L: MmuLock, T>(
        &self,
        cpu: &CpuMemory<T>,
        vm: &AddressSpace<L>,
    ) -> Result<(), MergeError> {
        let add = |registered: &mut Registered| {
            let guard = vm.pin(cpu);
            let mut objects = vm.slots(&guard).iter().map(|slot| slot.object());
            objects.try_for_each(|object| match is_mergeable(object) {
                true => registered.add(object, &self.progress),
                false => Ok(()),
            })
        };
        self.change(add).inspect_err(|_| self.remove_vm(cpu, vm))
    }

    /// As [`Self::remove`], for all objects that a VM's slots map. Must be called before the VM is destroyed, so that its
    /// memory is free when that returns.
    pub fn remove_vm<L: MmuLock, T>(&self, cpu: &CpuMemory<T>, vm: &AddressSpace<L>) {
        self.change(|registered| {
            // Here, as nobody waits for scanners within an epoch.
            let guard = vm.pin(cpu);
            let slots = vm.slots(&guard);
            let is_of_vm = |id| slots.iter().any(|slot| slot.object().id() == id);
            self.retain(registered, |target| !is_of_vm(target.id()));
        });
    }

    /// Withdraws some objects. If there were any the scan restarts, as pages are renumbered.
    fn retain(&self, registered: &mut Registered, keep: impl FnMut(&Target) -> bool) {
        let before = registered.targets.len();
        registered.targets.retain(keep);
        if registered.targets.len() != before {
            let mut first = 0;
            for target in &mut registered.targets {
                first = target.move_to(first);
            }
            self.begin(registered, false);
        }
    }

    /// Changes what is registered. Waits for running steps, and keeps others from beginning.
    fn change<R>(&self, change: impl FnOnce(&mut Registered) -> R) -> R {
        let mut waiting = loop {
            match self.registered.try_upgradeable_read() {
                Some(waiting) => break waiting,
                None => relax(),
            }
        };
        let mut registered = loop {
            match waiting.try_upgrade() {
                Ok(registered) => break registered,
                Err(still) => waiting = still,
            }
            relax();
        };
        lock_passed();
        let changed = change(&mut registered);
        lock_passed();
        changed
    }

    /// Begins the next scan: without candidates and counts. No scanner has pages of the last one, which is complete or
    /// restarted.
    fn begin(&self, registered: &Registered, is_complete: bool) {
        registered.candidates.clear();
        registered.frames.clear();
        for target in &registered.targets {
            target.begin_scan(is_complete);
        }
        self.counted.begin(is_complete);
        self.progress.begin(registered.pages());
    }

    /// The statistics so far.
    pub fn statistics(&self) -> MergeStatistics {
        self.counted.statistics()
    }

    /// As [`Self::scan`], for the number of pages in the policy.
    pub fn step<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>) -> u64 {
        self.scan(cpu, self.policy.pages_to_scan)
    }

    /// Scans up to `most` further pages, none of them twice, and returns how many: fewer at the end of a scan of all pages, and
    /// none while other CPUs look at the last of them, or objects are being registered or withdrawn. Any number of CPUs may
    /// scan at once.
    ///
    /// The caller is in no epoch.
    pub fn scan<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, most: u64) -> u64 {
        let Some(registered) = self.registered.try_read() else {
            return 0;
        };
        lock_passed();
        let mut scanner = Scanner {
            merging: self,
            registered: &registered,
            met: None,
            found: Found::default(),
        };
        let scan = self.progress.scan();
        let (mut scanned, mut own) = (0, None);
        let end = loop {
            if cpu.cached_frames() < FRAMES_AT_ONCE {
                cpu.refill();
            }
            match scanner.batch(cpu, &mut own, scan, AT_ONCE.min(most - scanned)) {
                Ok(pages) => scanned += pages,
                Err(end) => break end,
            }
        };
        drop((scanner, own));
        lock_passed();
        drop(registered);
        if end == End::Dropped {
            self.change(|registered| self.retain(registered, |target| target.object().is_some()));
        }
        scanned
    }
}

impl Registered {
    fn add(&mut self, object: &Arc<Object>, progress: &Progress) -> Result<(), MergeError> {
        if self.targets.iter().any(|target| target.id() == object.id()) {
            return Ok(());
        }
        let target = Target::new(object, self.pages()).ok_or(MergeError::OutOfMemory)?;
        let out_of_memory = |_| MergeError::OutOfMemory;
        self.targets.try_reserve(1).map_err(out_of_memory)?;
        let pages = target.ordinals().end as usize;
        (self.candidates.reserve(pages))
            .and_then(|()| self.frames.reserve(pages))
            .ok_or(MergeError::OutOfMemory)?;
        self.targets.push(target);
        progress.extend(self.pages());
        Ok(())
    }

    /// The pages of all objects.
    fn pages(&self) -> u32 {
        self.targets.last().map_or(0, |last| last.ordinals().end)
    }

    /// The object that has the page of this number.
    fn index_of(&self, ordinal: u32) -> usize {
        (self.targets).partition_point(|target| target.ordinals().end <= ordinal)
    }
}

/// Why a step ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// It has looked at all pages that it should, or the scan has come to its end.
    Done,
    /// The last owner of the object whose turn it is has dropped it.
    Dropped,
}

/// An object in use, and which of all it is. Kept from page to page: its count of owners is a cache line of all scanners.
type InUse = Option<(usize, Arc<Object>)>;

/// One of the CPUs that scan, during a step.
struct Scanner<'s> {
    merging: &'s PageMerging,
    registered: &'s Registered,
    /// The other object of which it has met a candidate last.
    met: InUse,
    found: Found,
}

/// The object of this index, if it isn't gone.
fn object_in<'u>(
    in_use: &'u mut InUse,
    targets: &[Target],
    index: usize,
) -> Option<&'u Arc<Object>> {
    if in_use.as_ref().is_none_or(|(used, _)| *used != index) {
        *in_use = targets[index].object().map(|object| (index, object));
    }
    in_use.as_ref().map(|(_, object)| object)
}

impl Scanner<'_> {
    /// Takes up to `most` of the next pages of this scan, of one object, looks at them, and returns how many.
    fn batch<T: Tlb + Caches>(
        &mut self,
        cpu: &CpuMemory<T>,
        own: &mut InUse,
        scan: u32,
        most: u64,
    ) -> Result<u64, End> {
        let (progress, targets) = (&self.merging.progress, &self.registered.targets);
        let (index, pages, object) = loop {
            let rest = progress.rest(cpu.number(), scan);
            let rest = rest.filter(|_| most != 0).ok_or(End::Done)?;
            let index = self.registered.index_of(rest.pages.start);
            let object = object_in(own, targets, index).ok_or(End::Dropped)?;
            let of_object = targets[index].ordinals().end - rest.pages.start;
            if let Some(pages) = progress.take(&rest, of_object.min(most as u32)) {
                break (index, pages, object);
            }
        };
        let guard = &cpu.pin();
        let changer = Changer { cpu, guard };
        let first = targets[index].ordinals().start;
        for page in pages.clone() {
            let page = PageOf {
                object,
                page: (page - first).into(),
            };
            self.look_at(&changer, index, page);
        }
        let scanned = pages.len() as u64;
        self.found.counts.pages_scanned += scanned;
        self.merging.counted.add(mem::take(&mut self.found));
        if progress.finish(&pages, self.registered.pages()) {
            self.merging.begin(self.registered, true);
        }
        Ok(scanned)
    }

    fn look_at<T: Tlb + Caches>(
        &mut self,
        changer: &Changer<'_, T>,
        index: usize,
        page: PageOf<'_>,
    ) {
        let target = &self.registered.targets[index];
        let look = page.object.look(page.page);
        if look.is_claimed() {
            self.found.counts.pages_skipped += 1;
            return;
        }
        let noted = target.checksum(page.page);
        match look.backing() {
            Backing::Owned(pa) => {
                let now = checksum(changer, pa);
                if now != noted {
                    target.note(page.page, now);
                    self.found.counts.pages_volatile += 1;
                } else if now == self.merging.zeros {
                    self.give_up_zeros(changer, index, page);
                } else if !self.meet(changer, index, page, now) {
                    self.found.counts.pages_unshared += 1;
                }
            }
            Backing::Shared(pa) => {
                // It is as it was when it came to be shared.
                let checksum = if noted == 0 {
                    checksum(changer, pa)
                } else {
                    noted
                };
                target.note(page.page, checksum);
                let is_alone = page.object.system().objects().count(pa) <= 1;
                let joined = self.meet(changer, index, page, checksum);
                if !is_alone && self.registered.frames.enter(pa) {
                    self.found.counts.pages_shared += 1;
                } else if !is_alone {
                    self.found.counts.pages_sharing += 1;
                } else if !joined {
                    // Two pages that had been alone were counted when they were joined.
                    self.found.counts.pages_unshared += 1;
                }
            }
            Backing::Zero if noted == self.merging.zeros => self.found.counts.zero_pages += 1,
            // What was compressed is cold, and takes less than a frame already.
            Backing::Zero | Backing::Vacant | Backing::Compressed(_) | Backing::Device(_) => {}
        }
    }

    /// Frees the frame of a page of zeros.
    fn give_up_zeros<T: Tlb + Caches>(
        &mut self,
        changer: &Changer<'_, T>,
        index: usize,
        page: PageOf<'_>,
    ) {
        let target = &self.registered.targets[index];
        if !target.may_be_apart(page, &self.merging.policy) {
            target.count_partner(page.page);
            self.found.counts.pages_unshared += 1;
            return;
        }
        match changer.give_up_zeros(page) {
            Joined::Done { .. } => self.found.counts.zero_pages += 1,
            Joined::Busy => self.found.counts.pages_skipped += 1,
            Joined::Different => self.found.counts.pages_volatile += 1,
        }
    }

    /// Handles an unchanged page: merges it with an equal candidate, or notes it as a candidate. Returns whether it was merged.
    fn meet<T: Tlb + Caches>(
        &mut self,
        changer: &Changer<'_, T>,
        index: usize,
        page: PageOf<'_>,
        checksum: u32,
    ) -> bool {
        let (policy, registered) = (&self.merging.policy, self.registered);
        let (targets, candidates) = (&registered.targets, &registered.candidates);
        let target = &targets[index];
        let ordinal = target.ordinals().start + page.page as u32;
        if is_limited(page.object) {
            return false;
        }
        let domains = page.object.system().trust_domains();
        let domain = domains.of(page.object.account(), page.object.id());
        let checksum = checksum ^ domain.bits();
        // Pages of owners that don't trust this one are passed by, so that they change nothing that this one could notice.
        let others = &mut self.met;
        let is_trusted = |met| {
            let at = registered.index_of(met);
            at == index
                || object_in(others, targets, at)
                    .is_some_and(|object| domains.of(object.account(), object.id()) == domain)
        };
        let Some(met) = candidates.enter(checksum, ordinal, is_trusted) else {
            return false;
        };
        let at = registered.index_of(met);
        let object = match at == index {
            true => Some(page.object),
            // Whoever found that it is trusted has left it here.
            false => object_in(&mut self.met, targets, at).map(|object| &**object),
        };
        let Some(object) = object else {
            return false;
        };
        let other = PageOf {
            object,
            page: (met - targets[at].ordinals().start).into(),
        };
        if page.shares_with(other) {
            return false;
        }
        if !target.may_be_apart(page, policy) || !targets[at].may_be_apart(other, policy) {
            target.count_partner(page.page);
            if candidates.pair(checksum, met) {
                targets[at].count_partner(other.page);
            }
            return false;
        }
        let counts = &mut self.found.counts;
        match changer.join(page, other, policy.max_page_sharing) {
            Joined::Done { alone, shared } => {
                self.found.joined += alone;
                counts.pages_shared += u64::from(!shared);
                counts.pages_sharing += 1;
                return true;
            }
            Joined::Busy => counts.pages_skipped += 1,
            Joined::Different => candidates.replace(checksum, met, ordinal),
        }
        false
    }
}

/// The model checker doesn't see the order that the lock makes.
fn lock_passed() {
    #[cfg(loom)]
    stage2::sync::full_barrier();
}

/// Whether an object has pages that are to be merged.
fn is_mergeable(object: &Object) -> bool {
    !object.is_device() && !object.is_image()
}

/// Whether its pages count towards a VM's limit. A merged frame is charged to no VM and can't be compressed: a guest that fills
/// its memory with equal pages would get twice its limit and more.
fn is_limited(object: &Object) -> bool {
    match object.account() {
        Owner::Vm(vm) => object.pool().limit(vm).is_some(),
        Owner::Hypervisor | Owner::Shared => false,
    }
}
