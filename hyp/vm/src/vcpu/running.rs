//! A slice of a vCPU: enters the guest and handles its exits until the vCPU waits or must leave.
//!
//! The path of a stage-2 fault is short and straight; all other exits are kept out of its way. The vCPU's registers stay
//! locked.

use memory::{Access, Fault, FaultKind, FaultOutcome};
use stage2::{Ipa, PAGE_SIZE};

use super::attended::Attended;
use crate::calls::service::Service;
use crate::counts::exits::{ExitCounters, ExitKind};
use crate::counts::fault_latency::HoldPeriod;
use crate::ids::{CpuId, VcpuId};
use crate::machine::cpu::{Cpu, ExceptionRecord, ExitReason, RawExit, VcpuControls, WriteServer};
use crate::machine::guest_memory::GuestMemory;
use crate::registers::debug::DebugPoints;
use crate::registers::id;
use crate::registers::pstate;
use crate::registers::state::Context;
use crate::registers::syndrome::Syndrome;
use crate::registers::syndrome::{
    Abort, AbortKind, Cause, SystemAccess, external_abort, fault_page, is_sgi1r_write, is_survived,
    undefined,
};
use crate::registers::sysreg::{Direction, Emulation, emulate};
use crate::vm::Vm;
use crate::vm::stop_reason::Starvation;
use crate::vm::stop_reason::StopReason;

const INSTRUCTION: u64 = 4;
/// SCTLR_EL1.M: stage 1 is on.
const SCTLR_M: u64 = 1;
/// The address bits of VBAR_EL1.
const VECTOR_BASE: u64 = !0x7ff;

/// What to do after an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// The guest continues, if its VM runs.
    Enter,
    /// The vCPU waits until its CPU is kicked; then the guest continues.
    Wait,
    /// The same, and an interrupt of the guest's wakes it too.
    WaitForInterrupt,
    /// The vCPU is turned off.
    TurnOff,
    /// The VM ends, for the reason that was noted ([`Running::end`]).
    Stop,
}

/// How a run has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RunEnd {
    /// The vCPU waits until its CPU is kicked, or the counter has this value.
    Waits { wakes_at: Option<u64> },
    /// The VM is paused or has ended.
    Leaves,
}

/// Serves the commonest faults without unloading the guest: its own writes that stage 2 forbids, such as the first to a logged
/// page.
struct Writes<'r, S, C> {
    space: &'r S,
    memory: &'r C,
    exits: &'r ExitCounters,
    vcpu: usize,
    /// The result and address of the last write, if the guest can't continue at once.
    last: Option<(FaultOutcome, Ipa)>,
}

impl<S: GuestMemory<C>, C> WriteServer for Writes<'_, S, C> {
    #[inline(always)]
    fn serve(&mut self, va: u64, ipa: Ipa) -> bool {
        self.exits.count(ExitKind::PermissionFault);
        match self.space.write(self.memory, self.vcpu, va, ipa) {
            FaultOutcome::Resolved | FaultOutcome::Retry => true,
            outcome => {
                self.last = Some((outcome, ipa));
                false
            }
        }
    }
}

/// A vCPU during a slice.
pub(super) struct Running<'r, S, C, K, V: ?Sized> {
    pub(super) id: VcpuId,
    /// The CPU that runs it.
    pub(super) here: CpuId,
    pub(super) context: &'r mut Context,
    pub(super) vm: &'r Vm<S>,
    pub(super) cpu: &'r mut K,
    pub(super) memory: &'r C,
    pub(super) service: &'r V,
    /// The vCPU's counters.
    pub(super) exits: &'r ExitCounters,
    /// The reason to end the VM, once an exit has noted one. Kept out of [`Next`], which each exit would copy.
    pub(super) reason: Option<StopReason>,
    /// When a WFIT gives up, by the counter.
    pub(super) timeout: Option<u64>,
}

impl<S, C, K, V> Running<'_, S, C, K, V>
where
    S: GuestMemory<C>,
    K: Cpu,
    V: Service + ?Sized,
{
    /// Runs the guest until the vCPU waits or is turned off, or the VM is paused or ends.
    pub(super) fn run(&mut self) -> RunEnd {
        let vm = self.vm;
        let mut next = self.take_answer();
        if next == Next::Wait {
            return RunEnd::Waits { wakes_at: None };
        }
        let controls = VcpuControls {
            stage2: vm.space.activate(self.memory),
            mpidr: self.id.mpidr(),
            counter_offset: vm.counter_offset(),
            virtual_gic: vm.devices().is_some(),
        };
        self.cpu.load(&self.context.state, &controls);
        let mut writes = Writes {
            space: &vm.space,
            memory: self.memory,
            exits: self.exits,
            vcpu: self.id.0,
            last: None,
        };
        next = match controls.virtual_gic {
            false => self.run_guest::<false>(next, &mut writes, &Attended::default()),
            true => self.run_interrupted(next, &mut writes),
        };
        let last_exit = self.cpu.syndrome();
        let late_error = self.cpu.put(&mut self.context.state);
        if let Some(start) = self.context.powers_down.take() {
            self.context.state.power_down(start);
        }
        if last_exit != Syndrome::NONE {
            self.context.last_exit = last_exit;
        }
        if next == Next::TurnOff && vm.turn_off(self.id) {
            self.end(StopReason::AllVcpusOff);
        }
        let reason = self.reason.take();
        if let Some(esr) = late_error {
            self.system_error(esr);
        }
        // The first one stays.
        for reason in [self.reason.take(), reason].into_iter().flatten() {
            vm.stop(reason, |cpu| self.cpu.kick(cpu));
        }
        let wakes_at = match next {
            Next::WaitForInterrupt => self.wakes_at(),
            Next::Wait | Next::TurnOff => None,
            Next::Enter | Next::Stop => return RunEnd::Leaves,
        };
        RunEnd::Waits { wakes_at }
    }

    /// As [`Self::run_guest`], with the vCPU's interrupts.
    #[inline(never)]
    fn run_interrupted(&mut self, mut next: Next, writes: &mut Writes<'_, S, C>) -> Next {
        let attended = self.attended();
        self.load_interrupts();
        if self.context.is_down && next == Next::Enter {
            next = self.power_up();
        }
        loop {
            next = self.run_guest::<true>(next, writes, &attended);
            if next != Next::WaitForInterrupt {
                self.put_interrupts();
                return next;
            }
            if self.block() {
                return next;
            }
            if self.context.is_down {
                // The next slice looks whether it is woken.
                self.timeout = Some(0);
                self.put_interrupts();
                return next;
            }
            next = Next::Enter;
        }
    }

    /// Enters the guest and handles its exits while it continues at once. `GIC`: it has a virtual one.
    #[inline(always)]
    fn run_guest<const GIC: bool>(
        &mut self,
        mut next: Next,
        writes: &mut Writes<'_, S, C>,
        attended: &Attended<'_>,
    ) -> Next {
        let vm = self.vm;
        // Where faults are timed, all of them come out.
        let is_timed = vm.timed().is_some();
        while next == Next::Enter && vm.runs() {
            if GIC {
                self.look(attended);
            }
            let server = if is_timed { None } else { Some(&mut *writes) };
            let exit = self.cpu.enter(&mut self.context.state.regs, server);
            next = self.handle::<GIC>(&exit, &mut writes.last, attended);
        }
        next
    }

    /// Handles an exit. `last` is the result of the last write served without an exit, if the guest couldn't continue.
    #[inline(always)]
    fn handle<const GIC: bool>(
        &mut self,
        exit: &RawExit,
        last: &mut Option<(FaultOutcome, Ipa)>,
        attended: &Attended<'_>,
    ) -> Next {
        match exit.reason {
            ExitReason::Synchronous => {
                let (abort, access) = match Cause::decode(exit.esr) {
                    Cause::DataAbort(abort) => {
                        if GIC
                            && attended.may_be_device(exit, abort)
                            && self.device_access(exit, abort)
                        {
                            return Next::Enter;
                        }
                        (abort, abort.data_access())
                    }
                    Cause::InstructionAbort(abort) => (abort, abort.fetch_access()),
                    Cause::SystemRegister(_)
                        if GIC && is_sgi1r_write(exit.esr) && self.vm.offer().gic_registers =>
                    {
                        return self.sgi(exit.esr);
                    }
                    other => return self.instruction(exit, other),
                };
                self.abort(exit, abort, access)
            }
            ExitReason::Interrupt => {
                self.count(ExitKind::Interrupt);
                self.interrupt();
                Next::Enter
            }
            ExitReason::SystemError => self.system_error(exit.esr),
            ExitReason::ServedWrite => match last.take() {
                Some((outcome, ipa)) => self.after_fault(exit, outcome, ipa),
                None => Next::Enter,
            },
        }
    }

    #[inline]
    pub(super) fn count(&self, kind: ExitKind) {
        self.exits.count(kind);
    }

    #[inline(always)]
    fn abort(&mut self, exit: &RawExit, abort: Abort, access: Access) -> Next {
        let AbortKind::Stage2(kind) = abort.kind() else {
            return self.other_abort(exit, abort);
        };
        let (outcome, ipa) = match self.vm.timed() {
            None => self.serve(exit, abort, access, kind),
            Some(period) => self.serve_timed(period, exit, (abort, access, kind)),
        };
        self.after_fault(exit, outcome, ipa)
    }

    /// What to do after a fault at `ipa`.
    #[inline(always)]
    fn after_fault(&mut self, exit: &RawExit, outcome: FaultOutcome, ipa: Ipa) -> Next {
        match outcome {
            FaultOutcome::Resolved | FaultOutcome::Retry => Next::Enter,
            FaultOutcome::RingLow => self.ring_low(),
            FaultOutcome::RingFull => self.wait_for_ring(),
            FaultOutcome::NoSlot | FaultOutcome::NotPermitted => self.inject_external_abort(exit),
            FaultOutcome::OutOfFrames => self.starve(ipa),
        }
    }

    /// Serves a stage-2 fault, and returns its address.
    #[inline(always)]
    fn serve(
        &mut self,
        exit: &RawExit,
        abort: Abort,
        access: Access,
        kind: FaultKind,
    ) -> (FaultOutcome, Ipa) {
        self.count(match kind {
            FaultKind::Translation => ExitKind::TranslationFault,
            FaultKind::AccessFlag => ExitKind::AccessFlagFault,
            FaultKind::Permission => ExitKind::PermissionFault,
        });
        if access != Access::Write {
            self.count(ExitKind::ReadFault);
        }
        let own_access = !abort.on_table_walk();
        let ipa = if kind == FaultKind::Permission && own_access {
            // HPFAR_EL2 isn't valid then (Arm ARM D24.2.66).
            match self.cpu.translate_read(exit.far) {
                Some(ipa) => ipa,
                None => {
                    self.count(ExitKind::LostTranslation);
                    return (FaultOutcome::Retry, Ipa::new(0));
                }
            }
        } else {
            Ipa::new(fault_page(exit.hpfar) | (exit.far % PAGE_SIZE))
        };
        let fault = Fault {
            vcpu: self.id.0,
            ipa,
            va: own_access.then_some(exit.far),
            access,
            kind,
        };
        (self.vm.space.fault(self.memory, &fault), ipa)
    }

    /// As [`Self::serve`], and notes its duration.
    #[inline(never)]
    fn serve_timed(
        &mut self,
        period: &HoldPeriod,
        exit: &RawExit,
        (abort, access, kind): (Abort, Access, FaultKind),
    ) -> (FaultOutcome, Ipa) {
        let exited_ns = self.cpu.now_ns();
        let served = self.serve(exit, abort, access, kind);
        let hold = self.cpu.now_ns().saturating_sub(exited_ns);
        self.vm.shared(self.id).longest_hold.note(period, hold);
        served
    }

    /// Pauses the VM for lack of memory. The guest tries again when it resumes.
    #[cold]
    fn starve(&mut self, ipa: Ipa) -> Next {
        let vcpu = self.id;
        self.vm
            .starve(Starvation { vcpu, ipa }, |cpu| self.cpu.kick(cpu));
        Next::Enter
    }

    #[cold]
    fn ring_low(&self) -> Next {
        self.service.ring_low(self.id);
        Next::Enter
    }

    /// Waits for the ring's harvest; then the guest tries again.
    #[cold]
    pub(super) fn wait_for_ring(&mut self) -> Next {
        self.count(ExitKind::RingFull);
        if self.vm.stolen_times().is_some() {
            self.context.stolen.begin(self.cpu.now_ns());
        }
        self.service.ring_low(self.id);
        Next::Wait
    }

    /// Handles an SError caused by an access of the guest, or on its behalf.
    #[cold]
    fn system_error(&mut self, esr: u64) -> Next {
        self.count(ExitKind::SystemError);
        if is_survived(esr) {
            return Next::Enter;
        }
        let vcpu = self.id;
        self.end(StopReason::SystemError { vcpu, esr })
    }

    #[cold]
    fn other_abort(&mut self, exit: &RawExit, abort: Abort) -> Next {
        self.count(ExitKind::OtherAbort);
        match abort.kind() {
            AbortKind::TlbConflict => self.end(StopReason::TlbConflict {
                vcpu: self.id,
                va: exit.far,
            }),
            _ => self.inject_external_abort(exit),
        }
    }

    #[cold]
    fn instruction(&mut self, exit: &RawExit, cause: Cause) -> Next {
        match cause {
            Cause::Hypercall { immediate } => {
                self.count(ExitKind::Hypercall);
                self.hypercall(immediate)
            }
            Cause::SecureCall { immediate } => {
                self.count(ExitKind::Hypercall);
                self.skip_instruction();
                self.hypercall(immediate)
            }
            Cause::SystemRegister(access) => {
                self.count(ExitKind::SystemRegister);
                self.system_register(exit, access)
            }
            Cause::Wait(wait) if pstate::is_aarch64(self.context.state.regs.pstate) => {
                self.count(ExitKind::WaitForInterrupt);
                self.skip_instruction();
                self.wait(wait.timeout())
            }
            Cause::Sve => self.sve(exit),
            Cause::Wait(_) | Cause::DataAbort(_) | Cause::InstructionAbort(_) | Cause::Other => {
                self.count(ExitKind::Other);
                self.inject_undefined(exit)
            }
        }
    }

    pub(super) fn skip_instruction(&mut self) {
        let regs = &mut self.context.state.regs;
        regs.pc = regs.pc.wrapping_add(INSTRUCTION);
        regs.pstate = pstate::after_instruction(regs.pstate);
    }

    /// Makes the guest repeat its last call.
    pub(super) fn call_again(&mut self) {
        let regs = &mut self.context.state.regs;
        regs.pc = regs.pc.wrapping_sub(INSTRUCTION);
    }

    #[inline(never)]
    fn system_register(&mut self, exit: &RawExit, access: SystemAccess) -> Next {
        let offer = self.vm.offer();
        let value = match emulate(access.register, access.direction, &offer) {
            Emulation::Undefined => return self.inject_undefined(exit),
            Emulation::SendSgi(register) => {
                self.send_sgi(register, self.context.state.regs.operand(access.operand));
                0
            }
            Emulation::Deactivate => {
                self.deactivate(self.context.state.regs.operand(access.operand) as u32);
                0
            }
            Emulation::Debug => match self.debug_register(access) {
                Some(value) => value,
                None => return self.inject_undefined(exit),
            },
            Emulation::Pmu if !self.context.state.pmu.is_used => return self.begin_pmu(),
            Emulation::Pmu => {
                let value = self.context.state.regs.operand(access.operand);
                let written = (access.direction == Direction::Write).then_some(value);
                match self.cpu.access_pmu(access.register, written) {
                    Some(value) => value,
                    None => return self.inject_undefined(exit),
                }
            }
            Emulation::Fixed(value) => value,
            Emulation::Id => id::guest_view(access.register, &offer, |register| {
                self.cpu.id_register(register)
            }),
        };
        if access.direction == Direction::Read {
            self.context.state.regs.set_operand(access.operand, value);
        }
        self.skip_instruction();
        Next::Enter
    }

    /// Executes an access to a debug register, if there is such a one.
    #[cold]
    fn debug_register(&mut self, access: SystemAccess) -> Option<u64> {
        let points = DebugPoints::of(self.cpu.id_register(id::ID_AA64DFR0_EL1));
        let value = self.context.state.regs.operand(access.operand);
        let debug = &mut self.context.state.debug;
        let read = debug.access(access.register, access.direction, value, points)?;
        if access.direction == Direction::Write {
            self.cpu.set_debug(debug);
        }
        Some(read)
    }

    /// Gives the guest the CPU's performance monitors; then it tries again.
    #[cold]
    fn begin_pmu(&mut self) -> Next {
        let pmu = &mut self.context.state.pmu;
        pmu.is_used = true;
        self.cpu.begin_pmu(pmu);
        Next::Enter
    }

    /// Gives the guest the CPU's SVE registers, if the VM offers them; then it tries again.
    #[cold]
    fn sve(&mut self, exit: &RawExit) -> Next {
        self.count(ExitKind::Other);
        if self.context.state.sve.is_none() {
            return self.inject_undefined(exit);
        }
        self.cpu.begin_sve(&mut self.context.state);
        Next::Enter
    }

    #[cold]
    pub(super) fn inject_external_abort(&mut self, exit: &RawExit) -> Next {
        self.count(ExitKind::InjectedAbort);
        let from = self.context.state.regs.pc;
        let esr = external_abort(exit.esr, pstate::is_el0(self.context.state.regs.pstate));
        let next = self.inject(esr, Some(exit.far));
        let fetches = matches!(Cause::decode(exit.esr), Cause::InstructionAbort(_));
        if fetches && self.context.state.regs.pc == from && !self.translates() {
            // It is at its vector already, and would be sent there for ever; nobody else can change where that leads.
            return self.end(StopReason::NoVectors {
                vcpu: self.id,
                pc: from,
            });
        }
        next
    }

    /// Whether the guest's stage 1 is on.
    fn translates(&mut self) -> bool {
        self.cpu.exception_controls().sctlr & SCTLR_M != 0
    }

    #[cold]
    fn inject_undefined(&mut self, exit: &RawExit) -> Next {
        self.count(ExitKind::InjectedUndefined);
        self.inject(undefined(exit.esr), None)
    }

    /// Makes the guest take a synchronous exception to EL1 (Arm ARM, AArch64.TakeException).
    fn inject(&mut self, esr: u64, far: Option<u64>) -> Next {
        let controls = self.cpu.exception_controls();
        let regs = &mut self.context.state.regs;
        self.cpu.set_exception(&ExceptionRecord {
            elr: regs.pc,
            spsr: regs.pstate,
            esr,
            far,
        });
        regs.pc =
            (controls.vbar & VECTOR_BASE).wrapping_add(pstate::synchronous_vector(regs.pstate));
        regs.pstate = pstate::on_exception(regs.pstate, controls.sctlr);
        Next::Enter
    }

    /// Notes the reason to end the VM.
    #[cold]
    pub(super) fn end(&mut self, reason: StopReason) -> Next {
        self.reason = Some(reason);
        Next::Stop
    }
}
