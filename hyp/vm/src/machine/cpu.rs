//! The run loop's interface to a CPU with EL2: the world switch and a few registers. `platform` implements it on hardware,
//! tests by a script.
//!
//! One value per physical CPU, used by that CPU alone.

use crate::ids::CpuId;
use crate::registers::syndrome::Syndrome;
use core::convert::Infallible;

use stage2::Ipa;
use vgic::{ActivePriorities, ListRegister, VirtualInterface};

use crate::machine::protection::Protections;
use crate::registers::debug::DebugState;
use crate::registers::pmu::PmuState;
use crate::registers::state::{GuestRegs, VcpuState};
use crate::registers::sysreg::SystemRegister;

/// Why the CPU came back from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum ExitReason {
    /// A synchronous exception; ESR_EL2 tells which.
    Synchronous = 0,
    /// A physical IRQ or FIQ: somebody kicked this CPU.
    Interrupt = 1,
    /// A system error.
    SystemError = 2,
    /// A write forbidden by stage 2, which a [`WriteServer`] has served, but after which the guest can't continue at once.
    ServedWrite = 3,
}

/// Serves [writes forbidden by stage 2](is_forbidden_write) without a full exit of the guest.
pub trait WriteServer {
    /// Serves a write to `va`, which the guest's stage 1 maps to `ipa`. Returns whether the guest continues at once; otherwise
    /// it exits ([`ExitReason::ServedWrite`]).
    fn serve(&mut self, va: u64, ipa: Ipa) -> bool;
}

/// No server: the guest exits for each such write.
impl WriteServer for Infallible {
    fn serve(&mut self, _: u64, _: Ipa) -> bool {
        match *self {}
    }
}

/// Fields of ESR_EL2 that identify a guest's own write forbidden by stage 2: the exception class, where the fault status begins
/// without its level, how many bits from there describe the access, and their values for such a write (Arm ARM D24.2.40).
pub mod forbidden_write {
    /// EC: a data abort from a lower exception level.
    pub const CLASS: u64 = 0x24;
    /// Where EC begins.
    pub const CLASS_SHIFT: u32 = 26;
    /// EC's width.
    pub const CLASS_BITS: u32 = 6;
    /// Where DFSC begins, but for the level.
    pub const STATUS_SHIFT: u32 = 2;
    /// The width of CM, S1PTW, WnR and DFSC but for the level.
    pub const STATUS_BITS: u32 = 7;
    /// A permission fault of any level; a write, not of cache maintenance and not of a walk of the guest's tables.
    pub const STATUS: u64 = 0b001_0011;
}

/// Whether the syndrome of a synchronous exit is that of a store or atomic of the guest's own that stage 2 forbids: a data
/// abort with a permission fault of any level, not from cache maintenance, and not from a walk of the guest's tables.
pub const fn is_forbidden_write(esr: u64) -> bool {
    use forbidden_write::{CLASS, CLASS_BITS, CLASS_SHIFT, STATUS, STATUS_BITS, STATUS_SHIFT};
    let class = esr >> CLASS_SHIFT & ((1 << CLASS_BITS) - 1);
    let status = esr >> STATUS_SHIFT & ((1 << STATUS_BITS) - 1);
    class == CLASS && status == STATUS
}

/// The syndrome registers after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawExit {
    /// Which exception it was.
    pub reason: ExitReason,
    /// ESR_EL2; meaningless after an interrupt.
    pub esr: u64,
    /// FAR_EL2; valid for aborts.
    pub far: u64,
    /// HPFAR_EL2; valid for stage-2 faults other than permission faults of the guest's own access.
    pub hpfar: u64,
}

/// The registers that select a VM's stage-2 translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Registers {
    /// VTTBR_EL2: root table and VMID.
    pub vttbr: u64,
    /// VTCR_EL2: IPA size, granule and walk attributes.
    pub vtcr: u64,
    /// HCR_EL2.FWB: the tables' memory types are those of FEAT_S2FWB.
    pub forced_write_back: bool,
}

/// EL2's settings for a vCPU, besides its own state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuControls {
    /// The VM's stage-2 translation.
    pub stage2: Stage2Registers,
    /// The guest's MPIDR_EL1 (VMPIDR_EL2).
    pub mpidr: u64,
    /// The offset that is subtracted from the counter for CNTVCT_EL0, in ticks (CNTVOFF_EL2).
    pub counter_offset: u64,
    /// The guest has a virtual GIC, to which the interrupts of EL1's timers are forwarded, and both of these timers.
    pub virtual_gic: bool,
}

/// The guest's interrupt of EL1's virtual timer, where Arm recommends it (DEN0094, 3.6). A machine that has its own elsewhere has
/// no guests with a virtual GIC: the two have one number.
pub const VIRTUAL_TIMER: u32 = 27;
/// The same of EL1's physical timer.
pub const PHYSICAL_TIMER: u32 = 30;
/// The guest's interrupt of the performance monitors, where Arm recommends it (DEN0094, 3.6). It is the machine's too.
pub const PMU_INTERRUPT: u32 = 23;

/// An interrupt that a CPU has taken while a guest with a virtual GIC was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// A kick, or a stray. It has ended.
    Kick,
    /// The list registers want to be looked after. It has ended, and comes again if they still do.
    Maintenance,
    /// EL1's virtual timer. It is active until the guest ends it.
    VirtualTimer,
    /// The same of EL1's physical timer.
    PhysicalTimer,
    /// An overflow of the guest's performance monitors. It is active until the guest ends it.
    Pmu,
    /// That of a device, by its number. It is active until the guest ends it.
    Device(u32),
}

/// The registers of the loaded guest that decide how it takes an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExceptionControls {
    /// VBAR_EL1.
    pub vbar: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
}

/// The contents of the exception registers for the guest's handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExceptionRecord {
    /// ELR_EL1.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1, or `None` to leave it alone.
    pub far: Option<u64>,
}

/// A CPU at EL2.
pub trait Cpu {
    /// A handle of the CPU's list registers.
    type Interface: VirtualInterface;

    /// Nanoseconds since some fixed moment.
    fn now_ns(&self) -> u64;

    /// Loads a vCPU's EL1, FP and key registers into the CPU, and sets the traps.
    fn load(&mut self, state: &VcpuState, controls: &VcpuControls);

    /// Saves the loaded vCPU's registers into `state` (all but the general ones, which every exit saves) and leaves the CPU
    /// without a guest: no stage-2 translation is active afterwards.
    ///
    /// Returns the syndrome (ESR_EL2) of an SError from an access made while the guest was loaded, if the guest hasn't exited
    /// with it. A later one counts as EL2's own.
    fn put(&mut self, state: &mut VcpuState) -> Option<u64>;

    /// Runs the loaded guest until it exits. Writes forbidden by stage 2 that `server` serves need no exit; an interrupt still
    /// makes the guest exit, however many writes there are. While a write is served, `regs` don't hold the guest's registers.
    fn enter<S: WriteServer>(&mut self, regs: &mut GuestRegs, server: Option<&mut S>) -> RawExit;

    /// The syndrome of the loaded guest's last synchronous exit since it was loaded.
    fn syndrome(&self) -> Syndrome;

    /// The loaded guest's stage-1 translation of `va` for a read at EL1 (AT S1E1R), or `None` if there is none, or none any
    /// more. The guest's PAR_EL1 is kept.
    fn translate_read(&mut self, va: u64) -> Option<Ipa>;

    /// How the loaded guest takes exceptions.
    fn exception_controls(&mut self) -> ExceptionControls;

    /// Fills the loaded guest's exception registers.
    fn set_exception(&mut self, record: &ExceptionRecord);

    /// Writes the loaded guest's debug registers, if any exception of theirs is on; else switches these off.
    fn set_debug(&mut self, state: &DebugState);

    /// The loaded guest, which has just used SVE, is given its registers (`state.sve`).
    fn begin_sve(&mut self, state: &mut VcpuState);

    /// The loaded guest, which has just used the performance monitors, is given these registers. What it does with them doesn't trap
    /// any more, if the CPU can be told not to count at EL2.
    fn begin_pmu(&mut self, state: &PmuState);

    /// Executes the loaded guest's access to one of them after [`begin_pmu`](Self::begin_pmu), a write of `written` or a read.
    /// Returns what a read gives; `None` if the CPU doesn't have the register, or such an access to it.
    fn access_pmu(&mut self, register: SystemRegister, written: Option<u64>) -> Option<u64>;

    /// The CPU's own ID register; 0 if the CPU doesn't have it.
    fn id_register(&self, register: SystemRegister) -> u64;

    /// Whether the CPU has a random number generator with an entropy source of its own.
    fn has_random(&self) -> bool {
        false
    }

    /// 64 bits of the CPU's random number generator, reseeded for them. `None` if it has none at the moment.
    fn random(&mut self) -> Option<u64> {
        None
    }

    /// How guests are protected from speculation, over all of the machine's CPUs: by the mitigations at each exit, and by those
    /// that they need themselves.
    fn protections(&self) -> Protections;

    /// Makes CPU `target` leave its guest or its wait, by an interrupt. All earlier writes of this CPU are visible to the
    /// target then.
    fn kick(&mut self, target: CpuId);

    /// The CPU's list registers. Called while a guest with a virtual GIC is loaded.
    fn interface(&mut self) -> Self::Interface;

    /// Takes one of the interrupts that are pending for this CPU, while a guest with a virtual GIC is loaded.
    fn take_interrupt(&mut self) -> Option<Interrupt>;

    /// Takes and ends the interrupts that are pending for this CPU: kicks, and any strays. If it takes one of a device, it returns
    /// the number of that, which stays active, and is to be called again.
    fn acknowledge_interrupts(&mut self) -> Option<u32>;

    /// Sleeps until an interrupt is pending, or until the counter reaches `tick`, if that is given. Returns at once if one is
    /// already, and may return for no reason. No guest is loaded.
    fn wait_for_interrupt(&mut self, tick: Option<u64>);

    /// The counter's value at which a guest's physical counter and timer are 0, if its virtual ones are at `offset`.
    fn physical_offset(&self, offset: u64) -> u64;
}

/// The list registers of a CPU that has none: for machines whose guests get no virtual GIC.
#[derive(Clone, Copy, Debug)]
pub enum NoInterface {}

impl VirtualInterface for NoInterface {
    fn list_registers(&self) -> usize {
        match *self {}
    }

    fn read_lr(&self, _: usize) -> ListRegister {
        match *self {}
    }

    fn write_lr(&mut self, _: usize, _: ListRegister) {
        match *self {}
    }

    fn read_hcr(&self) -> u64 {
        match *self {}
    }

    fn write_hcr(&mut self, _: u64) {
        match *self {}
    }

    fn read_vmcr(&self) -> u64 {
        match *self {}
    }

    fn write_vmcr(&mut self, _: u64) {
        match *self {}
    }

    fn read_active_priorities(&self) -> ActivePriorities {
        match *self {}
    }

    fn write_active_priorities(&mut self, _: ActivePriorities) {
        match *self {}
    }

    fn deactivate(&mut self, _: u32) {
        match *self {}
    }

    fn set_active(&mut self, _: u32, _: bool) {
        match *self {}
    }
}
