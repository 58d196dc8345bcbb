//! The end of logging: disables it and restores split blocks, at once or while the vCPUs run.

use super::Harness;
use crate::harness::error::WorkloadError;
use crate::harness::steps::Step;
use abi::step;
use alloc::sync::Arc;
use control::Machine;
use control::guest::RunningGuest;
use core::sync::atomic::{AtomicU64, Ordering};
use memory::MmuLock;
use records::record::PhaseName;
use records::words::Restore;

/// Background rounds of restoring before waiting for the vCPUs: the two are in each other's way.
const ROUNDS: usize = 4;

impl<M: Machine, L: MmuLock> Harness<'_, M, L> {
    /// Disables logging, and restores blocks as the options say.
    pub(super) fn end_logging(&mut self) -> Result<(), WorkloadError> {
        let restore = self.options.restore;
        self.phase(PhaseName::Disable, 0, Self::disable)?;
        match restore {
            Restore::Never => Ok(()),
            Restore::AtOnce => {
                self.phase(PhaseName::Restore, 0, Self::restore_at_once)?;
                self.check_tables()
            }
            Restore::Background => {
                self.restore_in_background()?;
                self.check_tables()
            }
        }
    }

    fn disable(&mut self) -> Result<(), WorkloadError> {
        let RunningGuest { own, vm, .. } = self.guest;
        for slot in &self.slots {
            vm.space.disable_dirty_log(&own.memory, slot.id)?;
        }
        Ok(())
    }

    fn restore_at_once(&mut self) -> Result<(), WorkloadError> {
        let left = self.restore_blocks()?;
        self.count("tables_left", left);
        if left == 0 || self.options.keeps_blocks_apart() {
            Ok(())
        } else {
            Err(WorkloadError::NotRestored { left })
        }
    }

    /// Restores blocks while the vCPUs write once more. The phase's time is that of restoring; its counters include the vCPUs'.
    fn restore_in_background(&mut self) -> Result<(), WorkloadError> {
        let iteration = self.options.iterations + 1;
        let start = self.start_phase();
        self.post(Step::new(step::DIRTY, iteration));
        for _ in 0..ROUNDS {
            if self.restore_blocks()? == 0 {
                break;
            }
        }
        let end_ns = self.guest.machine.now_ns();
        self.wait_for_vcpus()?;
        self.restore_at_once()?;
        self.end_phase(PhaseName::Restore, 0, end_ns, start);
        self.read_journals()?;
        self.written_in(iteration)
    }

    /// Restores all slots once, by all harvesters, and returns how many tables are left.
    fn restore_blocks(&mut self) -> Result<u64, WorkloadError> {
        let sums = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let adding = sums.clone();
        self.in_parts(1, move |space, memory, part| {
            let restored = space.restore_part(memory, part.slot, part.pages.clone())?;
            adding[0].fetch_add(restored.blocks, Ordering::Relaxed);
            adding[1].fetch_add(restored.left, Ordering::Relaxed);
            Ok(())
        })?;
        let [blocks, left] = sums.each_ref().map(|sum| sum.load(Ordering::Relaxed));
        self.count("restored_blocks", blocks);
        Ok(left)
    }

    /// Checks that as many tables are in use as before logging, unless blocks were split for other reasons: there was no room
    /// for all of them, or some of their pages were merged.
    fn check_tables(&self) -> Result<(), WorkloadError> {
        let tables = self.tables_in_use();
        if tables == self.tables_before || self.options.keeps_blocks_apart() {
            Ok(())
        } else {
            Err(WorkloadError::TablesRemain {
                before: self.tables_before,
                tables,
            })
        }
    }

    pub(super) fn tables_in_use(&self) -> u64 {
        let RunningGuest { own, vm, .. } = self.guest;
        own.memory.pool().counts_of(vm.space.vm()).table
    }
}
