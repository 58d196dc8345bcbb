//! A vCPU's state: every register that a guest can see and change, and that must survive a world switch.
//!
//! Plain data. The world switch reads and writes it at offsets taken from these structs (`repr(C)`), so their layout is fixed;
//! all other code uses the fields. A vCPU's state belongs to the slice that runs it, and otherwise to the holder of its lock.

use vgic::VcpuInterrupts;

use crate::random::Generator;
use crate::registers::debug::DebugState;
use crate::registers::pmu::PmuState;
use crate::registers::sve::SveState;
use crate::registers::syndrome::Syndrome;
use crate::stolen_time::StolenTime;

/// Where a vCPU starts when it is turned on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// The IPA of its first instruction.
    pub entry: u64,
    /// What x0 holds.
    pub context: u64,
}

/// SCTLR_EL1 after reset, as the arm64 boot protocol wants it: MMU and caches off, the bits that are RES1 in Armv8.0 set
/// (LSMAOE, nTLSMD, SPAN, EIS, TSCXT, EOS; Arm ARM D23.2.151).
const SCTLR_EL1_RESET: u64 = 1 << 29 | 1 << 28 | 1 << 23 | 1 << 22 | 1 << 20 | 1 << 11;

/// The general registers, which every exit saves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GuestRegs {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Where the guest continues (ELR_EL2).
    pub pc: u64,
    /// The guest's PSTATE (SPSR_EL2).
    pub pstate: u64,
}

impl GuestRegs {
    /// Register `index` as an operand: 31 is the zero register.
    pub fn operand(&self, index: u8) -> u64 {
        self.x.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// Writes register `index` as an operand: a write to 31 (the zero register) has no effect.
    pub fn set_operand(&mut self, index: u8, value: u64) {
        if let Some(register) = self.x.get_mut(usize::from(index)) {
            *register = value;
        }
    }
}

/// The EL1 and EL0 system registers, switched when a vCPU is loaded or put.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "each field is the register of its name, Arm ARM D23"
)]
pub struct El1State {
    pub sctlr_el1: u64,
    pub cpacr_el1: u64,
    pub ttbr0_el1: u64,
    pub ttbr1_el1: u64,
    pub tcr_el1: u64,
    pub mair_el1: u64,
    pub amair_el1: u64,
    pub vbar_el1: u64,
    pub contextidr_el1: u64,
    pub esr_el1: u64,
    pub far_el1: u64,
    pub afsr0_el1: u64,
    pub afsr1_el1: u64,
    pub elr_el1: u64,
    pub spsr_el1: u64,
    pub sp_el0: u64,
    pub sp_el1: u64,
    pub tpidr_el0: u64,
    pub tpidrro_el0: u64,
    pub tpidr_el1: u64,
    pub par_el1: u64,
    pub csselr_el1: u64,
    pub cntkctl_el1: u64,
    pub cntv_ctl_el0: u64,
    pub cntv_cval_el0: u64,
    pub cntp_ctl_el0: u64,
    pub cntp_cval_el0: u64,
}

impl El1State {
    /// The registers after reset.
    pub const fn reset() -> Self {
        Self {
            sctlr_el1: SCTLR_EL1_RESET,
            cpacr_el1: 0,
            ttbr0_el1: 0,
            ttbr1_el1: 0,
            tcr_el1: 0,
            mair_el1: 0,
            amair_el1: 0,
            vbar_el1: 0,
            contextidr_el1: 0,
            esr_el1: 0,
            far_el1: 0,
            afsr0_el1: 0,
            afsr1_el1: 0,
            elr_el1: 0,
            spsr_el1: 0,
            sp_el0: 0,
            sp_el1: 0,
            tpidr_el0: 0,
            tpidrro_el0: 0,
            tpidr_el1: 0,
            par_el1: 0,
            csselr_el1: 0,
            cntkctl_el1: 0,
            cntv_ctl_el0: 0,
            cntv_cval_el0: 0,
            cntp_ctl_el0: 0,
            cntp_cval_el0: 0,
        }
    }
}

/// The FP and SIMD registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct FpState {
    /// q0 to q31.
    pub q: [u128; 32],
    /// FPCR.
    pub fpcr: u64,
    /// FPSR.
    pub fpsr: u64,
}

/// The keys of pointer authentication (FEAT_PAuth), each as its low and high half.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "each field is the key of its name, Arm ARM D8.10"
)]
pub struct PacKeys {
    pub apia: [u64; 2],
    pub apib: [u64; 2],
    pub apda: [u64; 2],
    pub apdb: [u64; 2],
    pub apga: [u64; 2],
}

/// All of a vCPU's registers.
#[derive(Debug, PartialEq, Eq)]
#[repr(C)]
pub struct VcpuState {
    /// General registers, program counter and PSTATE.
    pub regs: GuestRegs,
    /// EL1 and EL0 system registers.
    pub el1: El1State,
    /// FP and SIMD registers.
    pub fp: FpState,
    /// Pointer-authentication keys; unused on a CPU without them.
    pub pac: PacKeys,
    /// DISR_EL1, which is VDISR_EL2 for a guest; unused on a CPU without FEAT_RAS.
    pub disr_el1: u64,
    /// The debug registers; unused unless the VM offers them.
    pub debug: DebugState,
    /// The SVE registers, if the VM offers them.
    pub sve: Option<SveState>,
    /// The performance monitors; unused unless the VM offers them.
    pub pmu: PmuState,
}

/// What EL1's timers count from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerOffsets {
    /// The counter's value at which the virtual timer's is 0.
    pub virtual_timer: u64,
    /// The same of the physical timer.
    pub physical: u64,
}

impl El1State {
    /// The counter's values at which the virtual and the physical timer raise their interrupts, if they do.
    pub fn timers_due(&self, offsets: TimerOffsets) -> [Option<u64>; 2] {
        let due = |ctl: u64, cval: u64, offset: u64| {
            const ENABLE: u64 = 1;
            const IMASK: u64 = 1 << 1;
            (ctl & (ENABLE | IMASK) == ENABLE).then(|| cval.saturating_add(offset))
        };
        let virtual_timer = due(self.cntv_ctl_el0, self.cntv_cval_el0, offsets.virtual_timer);
        let physical = due(self.cntp_ctl_el0, self.cntp_cval_el0, offsets.physical);
        [virtual_timer, physical]
    }
}

impl VcpuState {
    /// A vCPU out of reset, about to execute `entry` with `x0` in x0 as both the arm64 boot protocol and PSCI CPU_ON
    /// demand: at EL1 on its own stack pointer, everything masked, MMU off.
    pub fn starting_at(entry: u64, x0: u64) -> Self {
        let mut regs = GuestRegs {
            pc: entry,
            pstate: crate::registers::pstate::EL1H | crate::registers::pstate::DAIF,
            ..Default::default()
        };
        regs.x[0] = x0;
        Self {
            regs,
            el1: El1State::reset(),
            fp: FpState::default(),
            pac: PacKeys::default(),
            disr_el1: 0,
            debug: DebugState::default(),
            sve: None,
            pmu: PmuState::default(),
        }
    }

    /// A copy. `None` if there is no memory for its SVE registers.
    pub fn try_clone(&self) -> Option<Self> {
        let Self {
            regs,
            el1,
            fp,
            pac,
            disr_el1,
            debug,
            sve,
            pmu,
        } = self;
        let sve = match sve {
            Some(sve) => Some(sve.try_clone()?),
            None => None,
        };
        Some(Self {
            regs: regs.clone(),
            el1: el1.clone(),
            fp: fp.clone(),
            pac: pac.clone(),
            disr_el1: *disr_el1,
            debug: debug.clone(),
            sve,
            pmu: pmu.clone(),
        })
    }

    /// Resets the vCPU, to start at `start`.
    fn reset(&mut self, start: Start) {
        let sve = self.sve.take().map(SveState::reset);
        *self = Self {
            sve,
            ..Self::starting_at(start.entry, start.context)
        };
    }

    /// Powers the vCPU down, to start again at `start`: as [`Self::starting_at`], but its timers run on and can wake it.
    pub(crate) fn power_down(&mut self, start: Start) {
        let El1State {
            cntv_ctl_el0,
            cntv_cval_el0,
            cntp_ctl_el0,
            cntp_cval_el0,
            ..
        } = self.el1;
        self.reset(start);
        self.el1.cntv_ctl_el0 = cntv_ctl_el0;
        self.el1.cntv_cval_el0 = cntv_cval_el0;
        self.el1.cntp_ctl_el0 = cntp_ctl_el0;
        self.el1.cntp_cval_el0 = cntp_cval_el0;
    }
}

/// The state of a vCPU that no CPU runs: all that its next slice, or a fork's, needs to continue it.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) state: VcpuState,
    /// It waits for the answer to a service call, which goes to its x0 and up.
    pub(crate) awaits_answer: bool,
    /// It has asked to be powered down, and starts here when it is woken. Only until it is put.
    pub(crate) powers_down: Option<Start>,
    /// It is powered down until an interrupt wakes it.
    pub(crate) is_down: bool,
    /// Its last synchronous exit, as of when it was put.
    pub(crate) last_exit: Syndrome,
    /// Its interrupts, if its VM has an interrupt controller.
    pub(crate) interrupts: Option<VcpuInterrupts>,
    /// Its random numbers, if its VM has a seed.
    pub(crate) generator: Option<Generator>,
    /// The time that was stolen from it, if its VM tells it.
    pub(crate) stolen: StolenTime,
}

impl Context {
    /// A vCPU that has never been on.
    pub(crate) fn new(interrupts: Option<VcpuInterrupts>) -> Self {
        Self {
            state: VcpuState::starting_at(0, 0),
            awaits_answer: false,
            powers_down: None,
            is_down: false,
            last_exit: Syndrome::NONE,
            interrupts,
            generator: None,
            stolen: StolenTime::default(),
        }
    }

    /// Starts the vCPU, which has just been turned on.
    pub(crate) fn start(&mut self, start: Start) {
        if let Some(interrupts) = &mut self.interrupts {
            interrupts.reset();
        }
        self.state.reset(start);
        self.awaits_answer = false;
        self.powers_down = None;
        self.is_down = false;
        self.last_exit = Syndrome::NONE;
    }

    /// The same for a fork's vCPU, but for its random numbers. `None` if there is no memory for it.
    pub(crate) fn fork(&mut self) -> Option<Self> {
        Some(Self {
            state: self.state.try_clone()?,
            awaits_answer: self.awaits_answer,
            powers_down: self.powers_down,
            is_down: self.is_down,
            last_exit: self.last_exit,
            interrupts: self.interrupts.clone(),
            generator: self.generator.as_mut().map(Generator::fork),
            stolen: self.stolen,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_due_where_it_is_on_and_not_masked() {
        let offsets = TimerOffsets {
            virtual_timer: 100,
            physical: 0,
        };
        let due = |cntv: (u64, u64), cntp: (u64, u64)| {
            El1State {
                cntv_ctl_el0: cntv.0,
                cntv_cval_el0: cntv.1,
                cntp_ctl_el0: cntp.0,
                cntp_cval_el0: cntp.1,
                ..El1State::reset()
            }
            .timers_due(offsets)
        };
        assert_eq!(due((0, 5), (0, 5)), [None, None]);
        assert_eq!(due((3, 5), (2, 5)), [None, None], "masked");
        assert_eq!(due((1, 5), (0, 5)), [Some(105), None]);
        assert_eq!(due((1, 5), (1, 50)), [Some(105), Some(50)]);
        assert_eq!(
            due((5, 5), (3, 50)),
            [Some(105), None],
            "its condition is met already"
        );
        assert_eq!(due((1, u64::MAX), (0, 0)), [Some(u64::MAX), None], "never");
    }

    #[test]
    fn operand_31_is_the_zero_register() {
        let mut regs = GuestRegs::default();
        regs.set_operand(31, 5);
        regs.set_operand(30, 6);
        assert_eq!((regs.operand(31), regs.operand(30), regs.pc), (0, 6, 0));
    }

    #[test]
    fn a_vcpu_starts_as_the_boot_protocol_says() {
        let state = VcpuState::starting_at(0x4020_0000, 0x4800_0000);
        assert_eq!(
            (state.regs.pc, state.regs.x[0], state.regs.x[1]),
            (0x4020_0000, 0x4800_0000, 0)
        );
        assert_eq!(state.regs.pstate, 0x3c5);
        assert_eq!(state.el1.sctlr_el1, 0x30d0_0800);
    }

    #[test]
    fn of_a_vcpu_that_is_powered_down_the_timer_is_left() {
        let mut state = VcpuState::starting_at(0x4020_0000, 0x4800_0000);
        state.el1.cntv_ctl_el0 = 1;
        state.el1.cntv_cval_el0 = 1234;
        let mut expected = VcpuState::starting_at(0x4000_0000, 7);
        (expected.el1.cntv_ctl_el0, expected.el1.cntv_cval_el0) = (1, 1234);
        state.regs.x[5] = 5;
        state.regs.pstate = 0;
        state.el1.ttbr0_el1 = 0x4100_0000;
        state.fp.q[3] = 3;
        state.pac.apia = [1, 2];
        state.disr_el1 = 1;
        state.power_down(Start {
            entry: 0x4000_0000,
            context: 7,
        });
        assert_eq!(state, expected);
    }
}
