//! Harvests the dirty log in the way that the options choose: get and clear, both in one call, or rings. Bitmaps are harvested
//! by all harvesters at once, rings by CPU 0 alone: it takes what is in a ring while the vCPUs write, as soon as one is nearly
//! full.

use super::{Harness, Part};
use crate::harness::error::WorkloadError;
use crate::harness::verify;
use alloc::sync::Arc;
use control::Machine;
use control::guest::RunningGuest;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use memory::{AddressSpace, CpuMemory, DirtyPages, LogError, MmuLock, SlotId, SplitAhead};
use records::record::PhaseName;
use records::words::{Clear, Harvest};
use vm::VcpuId;

/// Ring entries that are taken at once.
pub(crate) const TAKEN_AT_ONCE: usize = 1024;
/// Parts that a CPU copies at once: less would take longer to get than to copy.
const GOT_AT_ONCE: usize = 4;
/// The initial contents of a buffer for them.
pub(crate) const NO_PAGES: DirtyPages = DirtyPages {
    slot: SlotId(0),
    first: 0,
    count: 0,
};

impl<M: Machine, L: MmuLock> Harness<'_, M, L> {
    /// Harvests all written pages, and checks them against the policy. All vCPUs wait.
    pub(super) fn harvest(&mut self, iteration: u64) -> Result<(), WorkloadError> {
        match (self.options.harvest, self.options.clear) {
            (Harvest::Ring, _) => {
                self.phase(PhaseName::Get, iteration, Self::take_rings)?;
                self.check_log(iteration, "rings")
            }
            (Harvest::Bitmap, Clear::WithGet) => {
                self.phase(PhaseName::Get, iteration, Self::get_and_clear)?;
                self.check_log(iteration, "get and clear")
            }
            (Harvest::Bitmap, Clear::Manual) => {
                self.phase(PhaseName::Get, iteration, Self::get)?;
                self.check_log(iteration, "get")?;
                self.phase(PhaseName::Clear, iteration, Self::clear)?;
                self.check_log(iteration, "clear")
            }
        }
    }

    fn get(&mut self) -> Result<(), WorkloadError> {
        self.in_parts(GOT_AT_ONCE, |space, memory, part| {
            space.get_dirty_log(memory, part.slot, part.pages.start, &mut part.log.lock())
        })
    }

    fn clear(&mut self) -> Result<(), WorkloadError> {
        self.split_in_parts(|space, memory, part| {
            space.clear_dirty_log(memory, part.slot, part.pages.start, &mut part.log.lock())
        })
    }

    fn get_and_clear(&mut self) -> Result<(), WorkloadError> {
        self.split_in_parts(|space, memory, part| {
            let mut log = part.log.lock();
            space.get_and_clear_dirty_log(memory, part.slot, part.pages.start, &mut log)
        })
    }

    /// As [`Self::in_parts`], for work that may split blocks, which are counted.
    pub(super) fn split_in_parts(
        &mut self,
        work: impl Fn(&AddressSpace<L>, &CpuMemory<M::Hardware>, &Part) -> Result<SplitAhead, LogError>
        + Send
        + Sync
        + 'static,
    ) -> Result<(), WorkloadError> {
        let split = Arc::new((AtomicU64::new(0), AtomicBool::new(false)));
        let sum = split.clone();
        self.in_parts(1, move |space, memory, part| {
            let SplitAhead { blocks, ran_out } = work(space, memory, part)?;
            if blocks != 0 {
                sum.0.fetch_add(blocks, Ordering::Relaxed);
            }
            if ran_out {
                sum.1.store(true, Ordering::Relaxed);
            }
            Ok(())
        })?;
        self.count_split(SplitAhead {
            blocks: split.0.load(Ordering::Relaxed),
            ran_out: split.1.load(Ordering::Relaxed),
        });
        Ok(())
    }

    /// Harvests all written pages, without a check. All vCPUs wait.
    pub(super) fn take_all(&mut self) -> Result<(), WorkloadError> {
        self.take_rings()?;
        self.from_rings.fill(0);
        Ok(())
    }

    /// Takes the rest from the rings, and from the bitmap behind them.
    fn take_rings(&mut self) -> Result<(), WorkloadError> {
        (0..self.options.vcpus).for_each(|vcpu| self.take_ring(vcpu));
        self.get_and_clear()
    }

    /// Harvests the rings that are nearly full, and wakes the vCPUs that may wait for that.
    pub(super) fn take_low_rings(&mut self) {
        let RunningGuest { machine, vm, .. } = self.guest;
        let bench = self.bench;
        bench.low_rings().take(|vcpu| {
            self.take_ring(vcpu);
            if let Some(cpu) = vm.cpu_of(VcpuId(vcpu)) {
                machine.kick(cpu);
            }
        });
    }

    /// Takes all that is in a vCPU's ring.
    fn take_ring(&mut self, vcpu: usize) {
        let RunningGuest { own, vm, .. } = self.guest;
        loop {
            let taken = vm
                .space
                .harvest_ring(&own.memory, vcpu, &mut self.ring_buffer);
            for pages in &self.ring_buffer[..taken] {
                if let Some(slot) = self.slots.iter().find(|slot| slot.id == pages.slot) {
                    let first = slot.first_page + pages.first;
                    verify::add(&mut self.from_rings, first, pages.count);
                }
            }
            if taken < self.ring_buffer.len() {
                return;
            }
        }
    }

    fn count_split(&mut self, split: SplitAhead) {
        if split.blocks != 0 {
            self.count("split_blocks", split.blocks);
        }
        if split.ran_out {
            self.count("split_ran_out", 1);
        }
    }
}
