//! What a vCPU asks of its VM's memory.
//!
//! `memory`'s address spaces implement it for the handle that each physical CPU has of them; tests by a script. Any number
//! of vCPUs call at once.

use memory::{AddressSpace, Caches, CpuMemory, Fault, FaultOutcome, MmuLock};
use stage2::{Ipa, Tlb};

use crate::cpu::Stage2Registers;

/// A VM's memory, as used from a CPU whose own handle is `C`.
pub trait GuestMemory<C> {
    /// Sees to it that the VM has a VMID that is good on this CPU, on which a vCPU is about to be loaded.
    fn activate(&self, cpu: &C) -> Stage2Registers;

    /// Resolves a stage-2 fault.
    fn fault(&self, cpu: &C, fault: &Fault) -> FaultOutcome;

    /// Whether an instruction at `ipa` is backed by memory at this moment.
    fn is_backed(&self, cpu: &C, ipa: Ipa) -> bool;

    /// Uses a moment in which this CPU has nothing else to do for deferred work.
    fn idle(&self, cpu: &C);
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

    fn idle(&self, cpu: &CpuMemory<T>) {
        cpu.idle();
    }
}
