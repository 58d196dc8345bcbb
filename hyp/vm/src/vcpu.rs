//! A vCPU's thread: waits to be turned on, runs the guest, handles its exits, until the VM ends.
//!
//! One thread on one CPU runs a vCPU; it shares with the others only what [`Vm`] holds. The path of a stage-2 fault is
//! short and straight; everything else is kept out of its way.

use core::sync::atomic::{Ordering, fence};

use memory::{Access, Fault, FaultKind, FaultOutcome};
use stage2::{Ipa, PAGE_SIZE};

use crate::cpu::{Cpu, CpuId, ExceptionRecord, ExitReason, RawExit, VcpuControls};
use crate::exits::ExitKind;
use crate::holds::HoldPeriod;
use crate::id;
use crate::psci;
use crate::pstate;
use crate::service::{Service, ServiceReply};
use crate::space::GuestMemory;
use crate::state::VcpuState;
use crate::stop::StopReason;
use crate::syndrome::{
    Abort, AbortKind, Cause, SystemAccess, external_abort, fault_page, undefined,
};
use crate::sysreg::{Direction, Emulation, emulate};
use crate::vm::{VcpuId, Vm};

/// SMCCC 1.4, and the functions of the Arm architecture range that exist here (DEN0028, section 7).
const SMCCC_1_4: u64 = 1 << 16 | 4;
const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
/// Bits of a function identifier: a 64-bit call, the owning entity with the fast-call bit (DEN0028, table 2-1).
const CALL_64: u32 = 1 << 30;
const OWNER: u32 = 0xbf00_0000;
const OWNER_PSCI: u32 = 0x8400_0000;
const OWNER_VENDOR: u32 = 0x8600_0000;
const INSTRUCTION: u64 = 4;
/// The address bits of VBAR_EL1.
const VECTOR_BASE: u64 = !0x7ff;

/// A vCPU, for the thread that runs it.
#[derive(Debug)]
pub struct Vcpu {
    id: VcpuId,
    state: VcpuState,
}

/// What follows an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Enter,
    TurnOff,
    Stop(StopReason),
}

/// All that the thread of a vCPU works with.
struct Thread<'t, S, C, K, V: ?Sized> {
    vcpu: Vcpu,
    vm: &'t Vm<S>,
    cpu: &'t mut K,
    memory: &'t C,
    service: &'t V,
}

impl Vcpu {
    /// vCPU `id`, off.
    pub fn new(id: VcpuId) -> Self {
        Self {
            id,
            state: VcpuState::starting_at(0, 0),
        }
    }

    /// The vCPU's thread on CPU `here`. Returns when the VM has ended; at once if another thread runs this vCPU.
    pub fn run<S, C, K, V>(self, vm: &Vm<S>, here: CpuId, cpu: &mut K, memory: &C, service: &V)
    where
        S: GuestMemory<C>,
        K: Cpu,
        V: Service + ?Sized,
    {
        if !vm.bind(self.id, here) {
            return;
        }
        // Whoever ends the VM either finds this CPU to kick, or is seen below.
        fence(Ordering::SeqCst);
        let id = self.id;
        Thread {
            vcpu: self,
            vm,
            cpu,
            memory,
            service,
        }
        .run();
        vm.unbind(id);
    }
}

impl<S, C, K, V> Thread<'_, S, C, K, V>
where
    S: GuestMemory<C>,
    K: Cpu,
    V: Service + ?Sized,
{
    fn run(&mut self) {
        while !self.vm.has_ended() {
            match self.vm.shared(self.vcpu.id).power.take_start() {
                Some(start) => {
                    self.vcpu.state = VcpuState::starting_at(start.entry, start.context);
                    self.run_guest();
                }
                None => self.sleep(),
            }
        }
    }

    /// Runs the guest until the vCPU goes off or the VM ends.
    fn run_guest(&mut self) {
        let vm = self.vm;
        let controls = VcpuControls {
            stage2: vm.space.activate(self.memory),
            mpidr: self.vcpu.id.mpidr(),
            counter_offset: vm.counter_offset(),
        };
        self.cpu.load(&self.vcpu.state, &controls);
        let mut next = Next::Enter;
        while next == Next::Enter && !vm.has_ended() {
            let exit = self.cpu.enter(&mut self.vcpu.state.regs);
            next = self.handle(&exit);
        }
        self.cpu.put(&mut self.vcpu.state);
        match next {
            Next::TurnOff if vm.turn_off(self.vcpu.id) => self.stop(StopReason::AllVcpusOff),
            Next::Stop(reason) => self.stop(reason),
            Next::Enter | Next::TurnOff => {}
        }
    }

    #[inline]
    fn handle(&mut self, exit: &RawExit) -> Next {
        match exit.reason {
            ExitReason::Synchronous => match Cause::decode(exit.esr) {
                Cause::DataAbort(abort) => self.abort(exit, abort, abort.data_access()),
                Cause::InstructionAbort(abort) => self.abort(exit, abort, abort.fetch_access()),
                other => self.instruction(exit, other),
            },
            ExitReason::Interrupt => {
                self.count(ExitKind::Interrupt);
                self.cpu.acknowledge_interrupts();
                Next::Enter
            }
            ExitReason::SystemError => {
                self.count(ExitKind::SystemError);
                Next::Stop(StopReason::SystemError {
                    vcpu: self.vcpu.id,
                    esr: exit.esr,
                })
            }
        }
    }

    #[inline]
    fn count(&self, kind: ExitKind) {
        self.vm.shared(self.vcpu.id).exits.count(kind);
    }

    #[inline]
    fn abort(&mut self, exit: &RawExit, abort: Abort, access: Access) -> Next {
        let AbortKind::Stage2(kind) = abort.kind() else {
            return self.other_abort(exit, abort);
        };
        let (outcome, ipa) = match self.vm.timed() {
            None => self.serve(exit, abort, access, kind),
            Some(period) => self.serve_timed(period, exit, (abort, access, kind)),
        };
        match outcome {
            FaultOutcome::Resolved | FaultOutcome::Retry => Next::Enter,
            FaultOutcome::RingLow => self.ring_low(),
            FaultOutcome::RingFull => self.wait_for_ring(),
            FaultOutcome::NoSlot | FaultOutcome::NotPermitted => self.inject_external_abort(exit),
            FaultOutcome::OutOfFrames => Next::Stop(StopReason::OutOfFrames {
                vcpu: self.vcpu.id,
                ipa,
            }),
        }
    }

    /// Serves a stage-2 fault, and says at which address.
    #[inline]
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
            vcpu: self.vcpu.id.0,
            ipa,
            va: own_access.then_some(exit.far),
            access,
            kind,
        };
        (self.vm.space.fault(self.memory, &fault), ipa)
    }

    /// As [`Self::serve`], and notes how long it took.
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
        self.vm.shared(self.vcpu.id).longest_hold.note(period, hold);
        served
    }

    #[cold]
    fn ring_low(&self) -> Next {
        self.service.ring_low(self.vcpu.id);
        Next::Enter
    }

    /// Nothing is written before the ring was harvested; then the guest tries again.
    #[cold]
    fn wait_for_ring(&mut self) -> Next {
        self.count(ExitKind::RingFull);
        self.service.ring_low(self.vcpu.id);
        self.sleep();
        Next::Enter
    }

    #[cold]
    fn other_abort(&mut self, exit: &RawExit, abort: Abort) -> Next {
        self.count(ExitKind::OtherAbort);
        match abort.kind() {
            AbortKind::TlbConflict => Next::Stop(StopReason::TlbConflict {
                vcpu: self.vcpu.id,
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
            Cause::Wait if pstate::is_aarch64(self.vcpu.state.regs.pstate) => {
                self.count(ExitKind::WaitForInterrupt);
                self.skip_instruction();
                self.sleep();
                Next::Enter
            }
            Cause::Wait | Cause::DataAbort(_) | Cause::InstructionAbort(_) | Cause::Other => {
                self.count(ExitKind::Other);
                self.inject_undefined(exit)
            }
        }
    }

    fn skip_instruction(&mut self) {
        let regs = &mut self.vcpu.state.regs;
        regs.pc = regs.pc.wrapping_add(INSTRUCTION);
        regs.pstate = pstate::after_instruction(regs.pstate);
    }

    fn system_register(&mut self, exit: &RawExit, access: SystemAccess) -> Next {
        let value = match emulate(access.register, access.direction) {
            Emulation::Undefined => return self.inject_undefined(exit),
            Emulation::Fixed(value) => value,
            Emulation::Id => {
                let own = self.cpu.id_register(access.register);
                id::guest_view(access.register, own, self.vm.ipa_bits())
            }
        };
        if access.direction == Direction::Read {
            self.vcpu.state.regs.set_operand(access.operand, value);
        }
        self.skip_instruction();
        Next::Enter
    }

    fn hypercall(&mut self, immediate: u16) -> Next {
        let x = &self.vcpu.state.regs.x;
        let function = x[0] as u32;
        let mask = if function & CALL_64 != 0 {
            u64::MAX
        } else {
            u64::from(u32::MAX)
        };
        let args: [u64; 6] = core::array::from_fn(|index| x[index + 1] & mask);
        if immediate != 0 {
            return self.answer([hypercall::NOT_SUPPORTED]);
        }
        match (function, function & OWNER) {
            (SMCCC_VERSION, _) => self.answer([SMCCC_1_4]),
            (SMCCC_ARCH_FEATURES, _) => self.answer([match args[0] as u32 {
                SMCCC_VERSION | SMCCC_ARCH_FEATURES => 0,
                _ => hypercall::NOT_SUPPORTED,
            }]),
            (_, OWNER_PSCI) => self.psci(function, [args[0], args[1], args[2]]),
            (hypercall::VENDOR_UID, _) => self.answer(hypercall::UID.map(u64::from)),
            (hypercall::VENDOR_REVISION, _) => self.answer(hypercall::REVISION.map(u64::from)),
            (_, OWNER_VENDOR) => {
                let reply = self.service.call(self.vcpu.id, function, args);
                self.served(reply)
            }
            _ => self.answer([hypercall::NOT_SUPPORTED]),
        }
    }

    /// Results go to x0 and up; every other register keeps its value (SMCCC 1.4, section 2.6).
    fn answer<const N: usize>(&mut self, values: [u64; N]) -> Next {
        self.vcpu.state.regs.x[..N].copy_from_slice(&values);
        Next::Enter
    }

    fn psci(&mut self, function: u32, args: [u64; 3]) -> Next {
        let (vm, memory) = (self.vm, self.memory);
        match psci::call(vm, function, args, |ipa| vm.space.is_backed(memory, ipa)) {
            psci::Reply::Return(value) => self.answer([i64::from(value) as u64]),
            psci::Reply::TurnedOn(target) => {
                if let Some(cpu) = vm.cpu_of(target) {
                    self.cpu.kick(cpu);
                }
                self.answer([hypercall::SUCCESS])
            }
            psci::Reply::Standby => {
                self.sleep();
                self.answer([hypercall::SUCCESS])
            }
            psci::Reply::Off => Next::TurnOff,
            psci::Reply::Stop(reason) => Next::Stop(reason),
        }
    }

    fn served(&mut self, mut reply: ServiceReply) -> Next {
        loop {
            match reply {
                ServiceReply::Return(values) => return self.answer(values),
                ServiceReply::NotSupported => return self.answer([hypercall::NOT_SUPPORTED]),
                ServiceReply::Stop(reason) => return Next::Stop(reason),
                ServiceReply::Wait if self.vm.has_ended() => return Next::Enter,
                ServiceReply::Wait => {
                    self.sleep();
                    reply = self.service.poll(self.vcpu.id);
                }
            }
        }
    }

    #[cold]
    fn inject_external_abort(&mut self, exit: &RawExit) -> Next {
        self.count(ExitKind::InjectedAbort);
        let esr = external_abort(exit.esr, pstate::is_el0(self.vcpu.state.regs.pstate));
        self.inject(esr, Some(exit.far))
    }

    #[cold]
    fn inject_undefined(&mut self, exit: &RawExit) -> Next {
        self.count(ExitKind::InjectedUndefined);
        self.inject(undefined(exit.esr), None)
    }

    /// Makes the guest take a synchronous exception to EL1 (Arm ARM, AArch64.TakeException).
    fn inject(&mut self, esr: u64, far: Option<u64>) -> Next {
        let controls = self.cpu.exception_controls();
        let regs = &mut self.vcpu.state.regs;
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

    /// Sleeps until this CPU is kicked. The caller looks at what it waits for before and after.
    fn sleep(&mut self) {
        self.vm.space.idle(self.memory);
        self.cpu.wait_for_interrupt();
        self.cpu.acknowledge_interrupts();
    }

    fn stop(&mut self, reason: StopReason) {
        self.vm.stop(reason, |cpu| self.cpu.kick(cpu));
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
