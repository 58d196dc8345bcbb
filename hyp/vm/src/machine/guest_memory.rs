//! A vCPU's interface to its VM's memory.
//!
//! Implemented by the handle that each physical CPU has of `memory`'s address spaces; in tests by a script. Any number of vCPUs
//! call at once.

use memory::{
    Access, AddressSpace, BalloonError, Caches, CpuMemory, Fault, FaultKind, FaultOutcome, MmuLock,
    NotPopulated, PrefaultError,
};
use stage2::{Ipa, IpaRange, Tlb};

use crate::machine::cpu::Stage2Registers;

/// A VM's memory, accessed from a CPU whose own handle is `C`.
pub trait GuestMemory<C> {
    /// Makes sure that the VM has a valid VMID on this CPU, on which a vCPU is about to be loaded.
    fn activate(&self, cpu: &C) -> Stage2Registers;

    /// Resolves a stage-2 fault.
    fn fault(&self, cpu: &C, fault: &Fault) -> FaultOutcome;

    /// As [`Self::fault`], for the commonest fault: a write of vCPU `vcpu` to `va`, translated to `ipa`, that stage 2 forbids.
    #[inline(always)]
    fn write(&self, cpu: &C, vcpu: usize, va: u64, ipa: Ipa) -> FaultOutcome {
        self.fault(
            cpu,
            &Fault {
                vcpu,
                ipa,
                va: Some(va),
                access: Access::Write,
                kind: FaultKind::Permission,
            },
        )
    }

    /// Whether memory currently backs an instruction at `ipa`.
    fn is_backed(&self, cpu: &C, ipa: Ipa) -> bool;

    /// Copies bytes out of the VM's own memory, as a device reads it. Returns whether all of them are there.
    fn read_bytes(&self, cpu: &C, ipa: Ipa, bytes: &mut [u8]) -> bool;

    /// Writes to the guest's memory as a device does, which the dirty log shows. Writes nothing where there is no memory.
    fn write_bytes(&self, cpu: &C, ipa: Ipa, bytes: &[u8]);

    /// Populates the first part of `range`, at most `most` bytes, for accesses of vCPU `vcpu`. Returns how many bytes, from the
    /// range's start: at least a page. `range` is in whole pages within the address space, and not empty; nothing else was
    /// checked.
    ///
    /// # Errors
    /// Not all of `range` is memory that permits this access, and nothing was changed; or not even one page could be populated.
    fn prefault(
        &self,
        cpu: &C,
        vcpu: usize,
        range: IpaRange,
        most: u64,
        access: Access,
    ) -> Result<u64, Refusal>;

    /// Takes back the first part of `range`, at most `most` bytes. Returns how many bytes, from the range's start: at least a
    /// page. The memory taken reads as zero on its next access. `range` is as for [`Self::prefault`].
    ///
    /// # Errors
    /// Not all of `range` is memory that can be taken back; nothing was changed.
    fn balloon(&self, cpu: &C, range: IpaRange, most: u64) -> Result<u64, Refusal>;
}

/// Why a guest's request for a range of its memory is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Some of it isn't backed by memory.
    NotBacked,
    /// Some of it is read-only, or a device's.
    NotPermitted,
    /// No frame is left.
    OutOfFrames,
    /// The vCPU's dirty ring is full, and must be harvested before any further write.
    RingFull,
    /// Other CPUs interfere: the guest asks again, after other pending work.
    Busy,
}

impl From<NotPopulated> for Refusal {
    fn from(reason: NotPopulated) -> Self {
        match reason {
            NotPopulated::NoSlot => Self::NotBacked,
            NotPopulated::NotPermitted => Self::NotPermitted,
            NotPopulated::OutOfFrames => Self::OutOfFrames,
            NotPopulated::RingFull => Self::RingFull,
            NotPopulated::Busy => Self::Busy,
        }
    }
}

/// The first part of a range, at most `most` bytes.
fn first_part(range: IpaRange, most: u64) -> IpaRange {
    let bytes = (range.end.get() - range.start.get()).min(most);
    range.start..range.start.offset(bytes)
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

    #[inline(always)]
    fn fault(&self, cpu: &CpuMemory<T>, fault: &Fault) -> FaultOutcome {
        let outcome = self.fault(cpu, fault);
        if cpu.needs_upkeep() {
            cpu.upkeep();
        }
        outcome
    }

    #[inline(always)]
    fn write(&self, cpu: &CpuMemory<T>, vcpu: usize, va: u64, ipa: Ipa) -> FaultOutcome {
        self.write(cpu, vcpu, va, ipa)
    }

    fn is_backed(&self, cpu: &CpuMemory<T>, ipa: Ipa) -> bool {
        self.read_guest(cpu, ipa, &mut [0; 4]).is_ok()
    }

    fn read_bytes(&self, cpu: &CpuMemory<T>, ipa: Ipa, bytes: &mut [u8]) -> bool {
        self.read_guest(cpu, ipa, bytes).is_ok()
    }

    fn write_bytes(&self, cpu: &CpuMemory<T>, ipa: Ipa, bytes: &[u8]) {
        // Whoever writes has more to write later.
        let _ = self.write_guest(cpu, ipa, bytes);
    }

    fn prefault(
        &self,
        cpu: &CpuMemory<T>,
        vcpu: usize,
        range: IpaRange,
        most: u64,
        access: Access,
    ) -> Result<u64, Refusal> {
        self.check_range(cpu, &range, access)?;
        let part = first_part(range, most);
        let (start, end) = (part.start.get(), part.end.get());
        match self.prefault(cpu, vcpu, part, access) {
            Ok(()) => Ok(end - start),
            Err(PrefaultError { done_to, reason }) => match done_to.get() - start {
                0 => Err(reason.into()),
                done => Ok(done),
            },
        }
    }

    fn balloon(&self, cpu: &CpuMemory<T>, range: IpaRange, most: u64) -> Result<u64, Refusal> {
        self.check_range(cpu, &range, Access::Write)?;
        let part = first_part(range, most);
        let bytes = part.end.get() - part.start.get();
        match self.balloon(cpu, part) {
            Ok(_) => Ok(bytes),
            Err(BalloonError::NoSlot { .. }) => Err(Refusal::NotBacked),
            Err(BalloonError::NotOwn { .. } | BalloonError::Unaligned) => {
                Err(Refusal::NotPermitted)
            }
        }
    }
}
