//! Enables and disables dirty logging of a slot, and splits its blocks ahead of faults. vCPUs may be running.
//!
//! Rule 8: a switch publishes the log, full barrier, then walks the entries; a fault changes its entry, full barrier, then
//! looks for a log. One of the two sees the other.

use crate::dirty::bitmap::DirtyLog;
use crate::dirty::policy::{Ahead, LogPolicy, Splitting};
use crate::dirty::slot_id::SlotId;
use crate::epoch::published::try_box;
use crate::frames::GRANULE;
use crate::space::mmu_lock::MmuLock;
use crate::space::slot::Slot;
use crate::space::{AddressSpace, IN_SPACE};
use crate::system::cpu::{Caches, CpuMemory};
use alloc::sync::Arc;
use core::fmt;
use core::ops::{AddAssign, Range};
use crossbeam_epoch::Guard;
use stage2::{All, Ipa, IpaRange, Level, PAGE_SIZE, Tlb, Wanted};

/// A chunk that holds any slot: IPA spaces have no more than 52 bits.
const LARGEST_CHUNK: u64 = 1 << 62;

/// A dirty log can't be switched, read or cleared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogError {
    /// No such slot.
    Unknown(SlotId),
    /// Logging is enabled already, or the slot is read-only or a device.
    NotPossible(SlotId),
    /// Logging isn't enabled.
    Disabled(SlotId),
    /// The bitmap reaches beyond the slot, or doesn't begin at a multiple of 64 pages.
    OutOfRange(SlotId),
    /// No heap for the bitmap.
    OutOfMemory(SlotId),
    /// The VM's tables have no hardware dirty state.
    NoHardwareTracking(SlotId),
    /// The VM has no dirty rings, or another requested option excludes them.
    NoRing(SlotId),
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(id) => write!(f, "there is no {id}"),
            Self::NotPossible(id) => write!(
                f,
                "dirty logging of {id} is enabled already, or the slot is read-only"
            ),
            Self::Disabled(id) => write!(f, "dirty logging of {id} isn't enabled"),
            Self::OutOfRange(id) => write!(f, "the bitmap doesn't lie within {id}"),
            Self::OutOfMemory(id) => write!(f, "no memory for the dirty log of {id}"),
            Self::NoHardwareTracking(id) => {
                write!(
                    f,
                    "writes to {id} can't be tracked by hardware: the VM's tables have no dirty state"
                )
            }
            Self::NoRing(id) => write!(
                f,
                "writes to {id} can't be logged in rings: the VM has none, or they don't go with hardware tracking or a \
                 log that is initially set"
            ),
        }
    }
}

impl core::error::Error for LogError {}

/// The result of splitting ahead of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SplitAhead {
    /// Blocks that were replaced.
    pub blocks: u64,
    /// Whether it ended early, as too few frames were free. The remaining blocks are split at their first write.
    pub ran_out: bool,
}

impl AddAssign for SplitAhead {
    fn add_assign(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.ran_out |= other.ran_out;
    }
}

impl<L: MmuLock> AddressSpace<L> {
    /// Starts logging writes to a slot as `policy` says. When this returns, every further write is logged; or, with a log that
    /// is initially set, every write after its page was first cleared. A write that races with this call may or may not be
    /// logged. vCPUs may be running.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn enable_dirty_log<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        policy: &LogPolicy,
    ) -> Result<SplitAhead, LogError> {
        let _control = self.control().lock();
        let slot = self.publish_log(cpu, id, policy)?;
        Ok(self.protect_ahead(cpu, policy, slot.range()))
    }

    /// The first half of [`Self::enable_dirty_log`], for a slot whose parts several CPUs then write-protect: writes are logged
    /// from when [`Self::protect_part`] has returned for all of its pages. Until then one may or may not be. A log that is
    /// initially set needs no second half.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn start_dirty_log<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        policy: &LogPolicy,
    ) -> Result<(), LogError> {
        let _control = self.control().lock();
        self.publish_log(cpu, id, policy).map(|_| ())
    }

    /// The second half of [`Self::enable_dirty_log`] for some pages of the slot: splits their blocks ahead of faults if the
    /// policy says so, and has their next writes noticed. Does nothing if the log was initially set. Several CPUs may do this
    /// at the same time, each for its own pages; pages of one block on two CPUs are right, but both may split it in vain.
    ///
    /// # Errors
    /// The slot isn't logged.
    pub fn protect_part<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        pages: Range<u64>,
    ) -> Result<SplitAhead, LogError> {
        let _control = self.control().share();
        let (policy, range) = {
            let guard = self.pin(cpu);
            let slot = self.slots(&guard).get(id);
            let slot = slot.map_err(|_| LogError::Unknown(id))?;
            let log = slot.log(&guard).ok_or(LogError::Disabled(id))?;
            (*log.policy(), slot.range_of(&pages))
        };
        Ok(self.protect_ahead(cpu, &policy, range))
    }

    /// Publishes a log of the slot, with `control` held.
    fn publish_log<T>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        policy: &LogPolicy,
    ) -> Result<Arc<Slot>, LogError> {
        let guard = self.pin(cpu);
        let slot = self.held_slot(id, &guard)?;
        self.check_policy(&slot, policy, &guard)?;
        let words = slot.take_spare().ok_or(LogError::OutOfMemory(id))?;
        let log = try_box(DirtyLog::new(words, slot.pages(), *policy));
        let log = log.ok_or(LogError::OutOfMemory(id))?;
        slot.replace_log(Some(log), &guard);
        Ok(slot)
    }

    /// Splits blocks and has the next writes noticed in a range whose log was just published, unless it is initially set.
    fn protect_ahead<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        policy: &LogPolicy,
        range: IpaRange,
    ) -> SplitAhead {
        if policy.initially_set {
            return SplitAhead::default();
        }
        let split = self.split_ahead(cpu, policy, range.clone());
        let guard = self.pin(cpu);
        self.protect_logged(cpu, &guard, policy, range, All, |_, _| {});
        split
    }

    fn check_policy(&self, slot: &Slot, policy: &LogPolicy, guard: &Guard) -> Result<(), LogError> {
        let id = slot.id();
        if slot.read_only() || slot.object().is_device() || slot.log(guard).is_some() {
            return Err(LogError::NotPossible(id));
        }
        if policy.by_hardware() && !self.stage2().layout().features().hardware_dirty {
            return Err(LogError::NoHardwareTracking(id));
        }
        if policy.ring && (self.rings().is_empty() || policy.by_hardware() || policy.initially_set)
        {
            return Err(LogError::NoRing(id));
        }
        Ok(())
    }

    /// Stops logging. Blocks that it has split stay so until [`Self::restore_blocks`]. vCPUs may be running.
    ///
    /// # Errors
    /// The slot isn't logged.
    pub fn disable_dirty_log<T>(&self, cpu: &CpuMemory<T>, id: SlotId) -> Result<(), LogError> {
        let _control = self.control().lock();
        let slot = {
            let guard = self.pin(cpu);
            let slot = self.held_slot(id, &guard)?;
            if !slot.replace_log(None, &guard) {
                return Err(LogError::Disabled(id));
            }
            slot
        };
        // Logs come and go faster than CPUs are idle: each gives the memory of one before back.
        cpu.let_epoch_advance();
        // Without, the next log is made when it is wanted.
        slot.prepare_log();
        Ok(())
    }

    /// Splits the blocks of a logged slot as eager splitting does, from `from` on over at most `bytes` (to whole pages). vCPUs
    /// may be running, and other CPUs may split other blocks.
    ///
    /// # Errors
    /// The slot isn't logged.
    pub fn split_blocks<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        from: Ipa,
        bytes: u64,
        ahead: Ahead,
    ) -> Result<SplitAhead, LogError> {
        let _control = self.control().share();
        let (slot, policy) = {
            let guard = self.pin(cpu);
            let slot = self.held_slot(id, &guard)?;
            let log = slot.log(&guard).ok_or(LogError::Disabled(id))?;
            let policy = LogPolicy {
                splitting: Splitting::Eager(ahead),
                ..*log.policy()
            };
            (slot, policy)
        };
        let slot = slot.range();
        let start = from.clamp(slot.start, slot.end).align_down(PAGE_SIZE);
        let end = from.checked_add(bytes).unwrap_or(slot.end);
        let end = (start.max(end).checked_add(PAGE_SIZE - 1)).unwrap_or(slot.end);
        let end = end.align_down(PAGE_SIZE).min(slot.end);
        Ok(self.split_ahead(cpu, &policy, start..end))
    }

    /// Splits the blocks in a range, if the policy says so, chunk by chunk. Between two chunks nothing is held.
    pub(crate) fn split_ahead<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        policy: &LogPolicy,
        range: IpaRange,
    ) -> SplitAhead {
        let mut all = SplitAhead::default();
        let Splitting::Eager(Ahead { chunk, reserve }) = policy.splitting else {
            return all;
        };
        let chunk = chunk.clamp(GRANULE.span(Level::L2), LARGEST_CHUNK);
        let chunk = chunk.next_power_of_two();
        let mut at = range.start;
        while at < range.end && !all.ran_out {
            let end = at.align_down(chunk).checked_add(chunk).unwrap_or(range.end);
            let end = end.min(range.end);
            all += self.split_chunk(cpu, policy, at..end, reserve);
            at = end;
        }
        all
    }

    fn split_chunk<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        policy: &LogPolicy,
        range: IpaRange,
        reserve: u64,
    ) -> SplitAhead {
        let guard = self.pin(cpu);
        let (tables, epoch) = (
            cpu.tables(self.vm()).sparing(reserve),
            cpu.retirement(self.vm(), &guard),
        );
        let worker = cpu.worker(&tables, &epoch);
        let _lock = self.lock().exclusive();
        let to = policy.largest_written();
        match self.stage2().split(&worker, range, to, u64::MAX) {
            Ok(split) => SplitAhead {
                blocks: split.blocks,
                ran_out: false,
            },
            Err(failed) => SplitAhead {
                blocks: failed.split.blocks,
                ran_out: true,
            },
        }
    }

    /// A reference to a slot, for use beyond the epoch.
    pub(crate) fn held_slot(&self, id: SlotId, guard: &Guard) -> Result<Arc<Slot>, LogError> {
        let slot = self.slots(guard).get(id);
        slot.cloned().map_err(|_| LogError::Unknown(id))
    }

    /// Makes sure that the next write to each leaf in `range` that `wanted` selects is noticed, as `policy` says. `forgotten`
    /// receives blocks whose hardware dirty state is cleared by this, perhaps also for pages that weren't selected.
    pub(crate) fn protect_logged<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        guard: &Guard,
        policy: &LogPolicy,
        range: IpaRange,
        wanted: impl Wanted + Copy,
        forgotten: impl FnMut(Ipa, Level),
    ) {
        let (tables, epoch) = (cpu.tables(self.vm()), cpu.retirement(self.vm(), guard));
        let worker = cpu.worker(&tables, &epoch);
        let _lock = self.lock().exclusive();
        let stage2 = self.stage2();
        if policy.by_hardware() {
            let largest = policy.largest_written();
            return stage2
                .track_writes(&worker, range, largest, wanted, forgotten)
                .expect(IN_SPACE);
        }
        let protect = || {
            stage2
                .write_protect(&worker, range.clone(), wanted, |_, _| {})
                .expect(IN_SPACE)
        };
        #[cfg(feature = "watch")]
        crate::watch::write_protects(stage2.vttbr(), &range, &wanted, &mut || protect());
        #[cfg(not(feature = "watch"))]
        protect();
    }
}
