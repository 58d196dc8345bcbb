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
//! Steps are for idle CPUs and run beside everything else. The scanning CPU holds a lock that no fault takes; only vCPUs that
//! touch a page wait while it is merged. A scan allocates nothing but tables for split blocks.

mod candidates;
mod sharing;
mod target;

use self::candidates::{Candidates, MetFrames};
use self::sharing::{Joined, PageOf, checksum, checksum_of_zeros};
use self::target::Target;
use crate::change::propagate::Changer;
use crate::frames::Owner;
use crate::object::{Backing, Object};
use crate::space::AddressSpace;
use crate::space::mmu_lock::MmuLock;
use crate::space::slot::SlotArray;
use crate::system::cpu::{Caches, CpuMemory};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use spin::Mutex;
use stage2::Tlb;

/// Pages that are scanned during one stay in the epoch.
const AT_ONCE: u64 = 16;

/// The policy of page merging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MergePolicy {
    /// How many pages a step looks at.
    pub pages_to_scan: u64,
    /// How many pages may share a frame: each further one makes freeing it slower.
    pub max_page_sharing: u64,
    /// How many of a block's 512 pages must have partners before the block is split for them.
    pub pages_of_block: u16,
}

impl Default for MergePolicy {
    fn default() -> Self {
        Self {
            pages_to_scan: 100,
            max_page_sharing: 256,
            pages_of_block: 128,
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
    scan: Mutex<Scan>,
}

/// The state of the scan. Its holder may wait for entries, but never for a lock whose holder waits for it.
#[derive(Debug)]
struct Scan {
    targets: Vec<Target>,
    candidates: Candidates,
    frames: MetFrames,
    /// The next page: its target, and its number there.
    next: (usize, u64),
    /// The numbers of this scan so far, and those of the last complete one.
    current: MergeStatistics,
    published: MergeStatistics,
    zeros: u32,
}

impl PageMerging {
    /// Without any objects.
    pub fn new(policy: MergePolicy) -> Self {
        Self {
            policy,
            scan: Mutex::new(Scan {
                targets: Vec::new(),
                candidates: Candidates::default(),
                frames: MetFrames::default(),
                next: (0, 0),
                current: MergeStatistics::default(),
                published: MergeStatistics::default(),
                zeros: checksum_of_zeros(),
            }),
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
        self.scan.lock().add(object)
    }

    /// Withdraws an object: its pages are merged no more; merged pages stay so. When this returns, no step uses the object.
    /// Waits for a running step.
    pub fn remove(&self, object: &Object) {
        let mut scan = self.scan.lock();
        scan.retain(|target| target.id() != object.id());
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
        let mut scan = self.scan.lock();
        let guard = vm.pin(cpu);
        for slot in vm.slots(&guard).iter() {
            let object = slot.object();
            if is_mergeable(object)
                && let Err(error) = scan.add(object)
            {
                scan.forget(vm.slots(&guard));
                return Err(error);
            }
        }
        Ok(())
    }

    /// As [`Self::remove`], for all objects that a VM's slots map. Must be called before the VM is destroyed, so that its
    /// memory is free when that returns.
    pub fn remove_vm<L: MmuLock, T>(&self, cpu: &CpuMemory<T>, vm: &AddressSpace<L>) {
        let mut scan = self.scan.lock();
        scan.forget(vm.slots(&vm.pin(cpu)));
    }

    /// The statistics so far.
    pub fn statistics(&self) -> MergeStatistics {
        self.scan.lock().published
    }

    /// As [`Self::scan`], for the number of pages in the policy.
    pub fn step<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>) -> u64 {
        self.scan(cpu, self.policy.pages_to_scan)
    }

    /// Scans up to `most` further pages, none of them twice, and returns how many. None while another CPU makes a step. Other
    /// calls for this merging wait until it returns.
    ///
    /// The caller is in no epoch.
    pub fn scan<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, most: u64) -> u64 {
        let Some(mut scan) = self.scan.try_lock() else {
            return 0;
        };
        let mut scanned = 0;
        while scanned < most {
            // For tables, where blocks are split.
            cpu.refill();
            scanned += scan.batch(cpu, &self.policy, AT_ONCE.min(most - scanned));
            if scan.next == (0, 0) {
                break;
            }
        }
        scanned
    }
}

impl Scan {
    fn add(&mut self, object: &Arc<Object>) -> Result<(), MergeError> {
        if self.targets.iter().any(|target| target.id() == object.id()) {
            return Ok(());
        }
        let first = self.targets.last().map_or(0, |last| last.ordinals().end);
        let target = Target::new(object, first).ok_or(MergeError::OutOfMemory)?;
        let out_of_memory = |_| MergeError::OutOfMemory;
        self.targets.try_reserve(1).map_err(out_of_memory)?;
        let pages = target.ordinals().end as usize;
        (self.candidates.reserve(pages))
            .and_then(|()| self.frames.reserve(pages))
            .ok_or(MergeError::OutOfMemory)?;
        self.targets.push(target);
        Ok(())
    }

    /// Removes all objects that these slots map.
    fn forget(&mut self, slots: &SlotArray) {
        self.retain(|target| slots.iter().all(|slot| slot.object().id() != target.id()));
    }

    /// Removes some targets. If any are removed the scan restarts, as pages are renumbered.
    fn retain(&mut self, keep: impl FnMut(&Target) -> bool) {
        let before = self.targets.len();
        self.targets.retain(keep);
        if self.targets.len() != before {
            let mut first = 0;
            for target in &mut self.targets {
                first = target.move_to(first);
            }
            self.begin();
            self.next = (0, 0);
        }
    }

    /// Scans some of the next pages, of one object, and returns how many.
    fn batch<T: Tlb + Caches>(
        &mut self,
        cpu: &CpuMemory<T>,
        policy: &MergePolicy,
        most: u64,
    ) -> u64 {
        let (index, from) = self.next;
        let Some(target) = self.targets.get(index) else {
            return 0;
        };
        let Some(object) = target.object() else {
            self.retain(|target| target.object().is_some());
            return 0;
        };
        let end = (from + most).min(object.pages());
        let guard = &cpu.pin();
        let changer = Changer { cpu, guard };
        for page in from..end {
            let page = PageOf {
                object: &object,
                page,
            };
            self.look_at(&changer, policy, index, page);
        }
        self.current.pages_scanned += end - from;
        self.published.pages_scanned = self.current.pages_scanned;
        self.published.pages_skipped = self.current.pages_skipped;
        self.next = if end < object.pages() {
            (index, end)
        } else if index + 1 < self.targets.len() {
            (index + 1, 0)
        } else {
            self.finish();
            (0, 0)
        };
        end - from
    }

    /// Ends a scan of all pages.
    fn finish(&mut self) {
        self.published = MergeStatistics {
            full_scans: self.published.full_scans + 1,
            ..self.current
        };
        self.begin();
    }

    /// Begins a scan: clears its candidates, and all counts but those over all scans.
    fn begin(&mut self) {
        self.candidates.clear();
        self.frames.clear();
        self.current = MergeStatistics {
            pages_scanned: self.current.pages_scanned,
            pages_skipped: self.current.pages_skipped,
            ..MergeStatistics::default()
        };
    }

    fn look_at<T: Tlb + Caches>(
        &mut self,
        changer: &Changer<'_, T>,
        policy: &MergePolicy,
        index: usize,
        page: PageOf<'_>,
    ) {
        let target = &mut self.targets[index];
        target.enter_region(page.page);
        let look = page.object.look(page.page);
        if look.is_claimed() {
            self.current.pages_skipped += 1;
            return;
        }
        let noted = target.checksum(page.page);
        match look.backing() {
            Backing::Owned(pa) => {
                let now = checksum(changer, pa);
                if now != noted {
                    target.note(page.page, now);
                    self.current.pages_volatile += 1;
                } else if now == self.zeros {
                    self.give_up_zeros(changer, policy, index, page);
                } else if !self.meet(changer, policy, index, page, now) {
                    self.current.pages_unshared += 1;
                }
            }
            Backing::Shared(pa) => {
                // It is as it was when it came to be shared.
                let checksum = if noted == 0 {
                    checksum(changer, pa)
                } else {
                    noted
                };
                self.targets[index].note(page.page, checksum);
                let is_alone = page.object.system().objects().count(pa) <= 1;
                let joined = self.meet(changer, policy, index, page, checksum);
                if !is_alone && self.frames.enter(pa) {
                    self.current.pages_shared += 1;
                } else if !is_alone {
                    self.current.pages_sharing += 1;
                } else if !joined {
                    // Two pages that had been alone were counted when they were joined.
                    self.current.pages_unshared += 1;
                }
            }
            Backing::Zero if noted == self.zeros => self.current.zero_pages += 1,
            // What was compressed is cold, and takes less than a frame already.
            Backing::Zero | Backing::Vacant | Backing::Compressed(_) | Backing::Device(_) => {}
        }
    }

    /// Frees the frame of a page of zeros.
    fn give_up_zeros<T: Tlb + Caches>(
        &mut self,
        changer: &Changer<'_, T>,
        policy: &MergePolicy,
        index: usize,
        page: PageOf<'_>,
    ) {
        let target = &mut self.targets[index];
        if !target.may_be_apart(page, policy) {
            target.count_partner(page.page);
            self.current.pages_unshared += 1;
            return;
        }
        match changer.give_up_zeros(page) {
            Joined::Done { .. } => self.current.zero_pages += 1,
            Joined::Busy => self.current.pages_skipped += 1,
            Joined::Different => self.current.pages_volatile += 1,
        }
    }

    /// Handles an unchanged page: merges it with an equal candidate, or notes it as a candidate. Returns whether it was merged.
    fn meet<T: Tlb + Caches>(
        &mut self,
        changer: &Changer<'_, T>,
        policy: &MergePolicy,
        index: usize,
        page: PageOf<'_>,
        checksum: u32,
    ) -> bool {
        let ordinal = self.targets[index].ordinals().start + page.page as u32;
        if is_limited(page.object) {
            return false;
        }
        let domains = page.object.system().trust_domains();
        let domain = domains.of(page.object.account(), page.object.id());
        let checksum = checksum ^ domain.bits();
        let Some(met) = self.candidates.enter(checksum, ordinal) else {
            return false;
        };
        let at = (self.targets).partition_point(|target| target.ordinals().end <= met);
        let object = self.targets[at].object();
        let Some(object) =
            object.filter(|object| domains.of(object.account(), object.id()) == domain)
        else {
            // It is gone, or met by chance: its owner and this one don't trust each other.
            self.candidates.replace(checksum, met, ordinal);
            return false;
        };
        let other = PageOf {
            object: &object,
            page: (met - self.targets[at].ordinals().start).into(),
        };
        if page.shares_with(other) {
            return false;
        }
        if !self.targets[index].may_be_apart(page, policy)
            || !self.targets[at].may_be_apart(other, policy)
        {
            self.targets[index].count_partner(page.page);
            if self.candidates.pair(checksum, met) {
                self.targets[at].count_partner(other.page);
            }
            return false;
        }
        match changer.join(page, other, policy.max_page_sharing) {
            Joined::Done { alone, shared } => {
                // Guests may have parted some since they were counted.
                let unshared = &mut self.current.pages_unshared;
                *unshared = unshared.saturating_sub(alone);
                self.current.pages_shared += u64::from(!shared);
                self.current.pages_sharing += 1;
                return true;
            }
            Joined::Busy => self.current.pages_skipped += 1,
            Joined::Different => self.candidates.replace(checksum, met, ordinal),
        }
        false
    }
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
