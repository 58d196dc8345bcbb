//! What a vCPU asks of its VM's memory.
//!
//! `memory`'s address spaces implement it for the handle that each physical CPU has of them; tests by a script. Any number
//! of vCPUs call at once.

use memory::{Access, AddressSpace, Caches, CpuMemory, Fault, FaultKind, FaultOutcome, MmuLock};
use stage2::{Ipa, IpaRange, PAGE_SIZE, Tlb};

use crate::cpu::Stage2Registers;

/// A VM's memory, as used from a CPU whose own handle is `C`.
pub trait GuestMemory<C> {
    /// Sees to it that the VM has a VMID that is good on this CPU, on which a vCPU is about to be loaded.
    fn activate(&self, cpu: &C) -> Stage2Registers;

    /// Resolves a stage-2 fault.
    fn fault(&self, cpu: &C, fault: &Fault) -> FaultOutcome;

    /// Whether an instruction at `ipa` is backed by memory at this moment.
    fn is_backed(&self, cpu: &C, ipa: Ipa) -> bool;

    /// Populates the first part of `range`, at most `most` bytes, for accesses of this kind, and returns how many bytes that
    /// is, from its start on: 0 if others were in the way. `range` is in whole pages within the address space, and not
    /// empty; nothing else is known of it.
    ///
    /// # Errors
    /// Not all of `range` is memory that can be accessed so, and nothing was changed; or no memory is left, not even for one page.
    fn prefault(&self, cpu: &C, range: IpaRange, most: u64, access: Access)
    -> Result<u64, Refusal>;

    /// Takes back the first part of `range`, at most `most` bytes, and returns how many bytes that is. What was taken holds
    /// zeros when it is accessed again. `range` is as for [`Self::prefault`].
    ///
    /// # Errors
    /// Not all of `range` is memory that can be taken back; nothing was changed.
    fn balloon(&self, cpu: &C, range: IpaRange, most: u64) -> Result<u64, Refusal>;

    /// Uses a moment in which this CPU has nothing else to do for deferred work.
    fn idle(&self, cpu: &C);
}

/// Why a guest doesn't get what it asks for a range of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No memory is behind some of it.
    NotBacked,
    /// Some of it is memory that may only be read, or a device's.
    NotPermitted,
    /// No frame is left.
    OutOfFrames,
}

impl<L: MmuLock, T: Tlb + Caches> GuestMemory<CpuMemory<T>> for AddressSpace<L> {
    fn activate(&self, cpu: &CpuMemory<T>) -> Stage2Registers {
        let (vttbr, vtcr) = self.activate(cpu);
        Stage2Registers {
            vttbr: vttbr.bits(),
            vtcr,
            forced_write_back: self.stage2().layout().features().fwb,
        }
    }

    #[inline]
    fn fault(&self, cpu: &CpuMemory<T>, fault: &Fault) -> FaultOutcome {
        let outcome = self.fault(cpu, fault);
        if cpu.needs_upkeep() {
            cpu.upkeep();
        }
        outcome
    }

    fn is_backed(&self, cpu: &CpuMemory<T>, ipa: Ipa) -> bool {
        self.read_guest(cpu, ipa, &mut [0; 4]).is_ok()
    }

    fn prefault(
        &self,
        cpu: &CpuMemory<T>,
        range: IpaRange,
        most: u64,
        access: Access,
    ) -> Result<u64, Refusal> {
        let mut done = 0;
        while done < most && range.start.offset(done) < range.end {
            let fault = Fault {
                vcpu: 0,
                ipa: range.start.offset(done),
                va: None,
                access,
                kind: FaultKind::Translation,
            };
            let refusal = match GuestMemory::fault(self, cpu, &fault) {
                FaultOutcome::Resolved | FaultOutcome::RingLow => {
                    done += PAGE_SIZE;
                    continue;
                }
                FaultOutcome::Retry | FaultOutcome::RingFull => return Ok(done),
                FaultOutcome::NoSlot => Refusal::NotBacked,
                FaultOutcome::NotPermitted => Refusal::NotPermitted,
                FaultOutcome::OutOfFrames if done != 0 => return Ok(done),
                FaultOutcome::OutOfFrames => Refusal::OutOfFrames,
            };
            return Err(refusal);
        }
        Ok(done)
    }

    fn balloon(&self, _: &CpuMemory<T>, _: IpaRange, _: u64) -> Result<u64, Refusal> {
        Err(Refusal::NotPermitted)
    }

    fn idle(&self, cpu: &CpuMemory<T>) {
        cpu.idle();
    }
}
