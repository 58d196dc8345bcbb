//! A vCPU's thread: waits to be turned on, runs the guest, handles its exits, until the VM ends.
//!
//! One thread on one CPU runs a vCPU; it shares with the others only what [`Vm`] holds. The path of a stage-2 fault is
//! short and straight; everything else is kept out of its way.

use core::sync::atomic::{Ordering, fence};

use memory::{Access, Fault, FaultKind, FaultOutcome};
use stage2::{Ipa, PAGE_SIZE};

use crate::cpu::{Cpu, CpuId, ExceptionRecord, ExitReason, RawExit, VcpuControls};
use crate::exits::ExitKind;
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
    pub fn run<S, C, K, V>(mut self, vm: &Vm<S>, here: CpuId, cpu: &mut K, memory: &C, service: &V)
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
        let mut thread = Thread {
            vm,
            cpu,
            memory,
            service,
        };
        while !vm.has_ended() {
            match vm.shared(self.id).power.take_start() {
                Some(start) => {
                    self.state = VcpuState::starting_at(start.entry, start.context);
                    self.run_guest(&mut thread);
                }
                None => thread.sleep(),
            }
        }
        vm.unbind(self.id);
    }

    /// Runs the guest until the vCPU goes off or the VM ends.
    fn run_guest<S, C, K, V>(&mut self, thread: &mut Thread<'_, S, C, K, V>)
    where
        S: GuestMemory<C>,
        K: Cpu,
        V: Service + ?Sized,
    {
        let vm = thread.vm;
        let controls = VcpuControls {
            stage2: vm.space.activate(thread.memory),
            mpidr: self.id.mpidr(),
            counter_offset: vm.counter_offset(),
        };
        thread.cpu.load(&self.state, &controls);
        let mut next = Next::Enter;
        while next == Next::Enter && !vm.has_ended() {
            let exit = thread.cpu.enter(&mut self.state.regs);
            next = self.handle(thread, &exit);
        }
        thread.cpu.put(&mut self.state);
        match next {
            Next::TurnOff if vm.turn_off(self.id) => thread.stop(StopReason::AllVcpusOff),
            Next::Stop(reason) => thread.stop(reason),
            Next::Enter | Next::TurnOff => {}
        }
    }

    #[inline]
    fn handle<S, C, K, V>(&mut self, thread: &mut Thread<'_, S, C, K, V>, exit: &RawExit) -> Next
    where
        S: GuestMemory<C>,
        K: Cpu,
        V: Service + ?Sized,
    {
        match exit.reason {
            ExitReason::Synchronous => match Cause::decode(exit.esr) {
                Cause::DataAbort(abort) => self.abort(thread, exit, abort, abort.data_access()),
                Cause::InstructionAbort(abort) => {
                    self.abort(thread, exit, abort, abort.fetch_access())
                }
                other => self.instruction(thread, exit, other),
            },
            ExitReason::Interrupt => {
                self.count(thread.vm, ExitKind::Interrupt);
                thread.cpu.acknowledge_interrupts();
                Next::Enter
            }
            ExitReason::SystemError => {
                self.count(thread.vm, ExitKind::SystemError);
                Next::Stop(StopReason::SystemError {
                    vcpu: self.id,
                    esr: exit.esr,
                })
            }
        }
    }

    #[inline]
    fn count<S>(&self, vm: &Vm<S>, kind: ExitKind) {
        vm.shared(self.id).exits.count(kind);
    }

    #[inline]
    fn abort<S, C, K, V>(
        &mut self,
        thread: &mut Thread<'_, S, C, K, V>,
        exit: &RawExit,
        abort: Abort,
        access: Access,
    ) -> Next
    where
        S: GuestMemory<C>,
        K: Cpu,
        V: Service + ?Sized,
    {
        let AbortKind::Stage2(kind) = abort.kind() else {
            return self.other_abort(thread, exit, abort);
        };
        self.count(
            thread.vm,
            match kind {
                FaultKind::Translation => ExitKind::TranslationFault,
                FaultKind::AccessFlag => ExitKind::AccessFlagFault,
                FaultKind::Permission => ExitKind::PermissionFault,
            },
        );
        let own_access = !abort.on_table_walk();
        let ipa = if kind == FaultKind::Permission && own_access {
            // HPFAR_EL2 isn't valid then (Arm ARM D24.2.66).
            match thread.cpu.translate_read(exit.far) {
                Some(ipa) => ipa,
                None => {
                    self.count(thread.vm, ExitKind::LostTranslation);
                    return Next::Enter;
                }
            }
        } else {
            Ipa::new(fault_page(exit.hpfar) | (exit.far % PAGE_SIZE))
        };
        let fault = Fault {
            ipa,
            va: own_access.then_some(exit.far),
            access,
            kind,
        };
        match thread.vm.space.fault(thread.memory, &fault) {
            FaultOutcome::Resolved | FaultOutcome::Retry => Next::Enter,
            FaultOutcome::NoSlot | FaultOutcome::NotPermitted => {
                self.inject_external_abort(thread, exit)
            }
            FaultOutcome::OutOfFrames => Next::Stop(StopReason::OutOfFrames { vcpu: self.id, ipa }),
        }
    }

    #[cold]
    fn other_abort<S, C, K, V>(
        &mut self,
        thread: &mut Thread<'_, S, C, K, V>,
        exit: &RawExit,
        abort: Abort,
    ) -> Next
    where
        K: Cpu,
        V: ?Sized,
    {
        self.count(thread.vm, ExitKind::OtherAbort);
        match abort.kind() {
            AbortKind::TlbConflict => Next::Stop(StopReason::TlbConflict {
                vcpu: self.id,
                va: exit.far,
            }),
            _ => self.inject_external_abort(thread, exit),
        }
    }

    #[cold]
    fn instruction<S, C, K, V>(
        &mut self,
        thread: &mut Thread<'_, S, C, K, V>,
        exit: &RawExit,
        cause: Cause,
    ) -> Next
    where
        S: GuestMemory<C>,
        K: Cpu,
        V: Service + ?Sized,
    {
        match cause {
            Cause::Hypercall { immediate } => {
                self.count(thread.vm, ExitKind::Hypercall);
                self.hypercall(thread, immediate)
            }
            Cause::SecureCall { immediate } => {
                self.count(thread.vm, ExitKind::Hypercall);
                self.skip_instruction();
                self.hypercall(thread, immediate)
            }
            Cause::SystemRegister(access) => {
                self.count(thread.vm, ExitKind::SystemRegister);
                self.system_register(thread, exit, access)
            }
            Cause::Wait if pstate::is_aarch64(self.state.regs.pstate) => {
                self.count(thread.vm, ExitKind::WaitForInterrupt);
                self.skip_instruction();
                thread.sleep();
                Next::Enter
            }
            Cause::Wait | Cause::DataAbort(_) | Cause::InstructionAbort(_) | Cause::Other => {
                self.count(thread.vm, ExitKind::Other);
                self.inject_undefined(thread, exit)
            }
        }
    }

    fn skip_instruction(&mut self) {
        let regs = &mut self.state.regs;
        regs.pc = regs.pc.wrapping_add(INSTRUCTION);
        regs.pstate = pstate::after_instruction(regs.pstate);
    }

    fn system_register<S, C, K, V>(
        &mut self,
        thread: &mut Thread<'_, S, C, K, V>,
        exit: &RawExit,
        access: SystemAccess,
    ) -> Next
    where
        K: Cpu,
        V: ?Sized,
    {
        let value = match emulate(access.register, access.direction) {
            Emulation::Undefined => return self.inject_undefined(thread, exit),
            Emulation::Fixed(value) => value,
            Emulation::Id => {
                let own = thread.cpu.id_register(access.register);
                id::guest_view(access.register, own, thread.vm.ipa_bits())
            }
        };
        if access.direction == Direction::Read {
            self.state.regs.set_operand(access.operand, value);
        }
        self.skip_instruction();
        Next::Enter
    }

    fn hypercall<S, C, K, V>(&mut self, thread: &mut Thread<'_, S, C, K, V>, immediate: u16) -> Next
    where
        S: GuestMemory<C>,
        K: Cpu,
        V: Service + ?Sized,
    {
        let x = &self.state.regs.x;
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
            (_, OWNER_PSCI) => self.psci(thread, function, [args[0], args[1], args[2]]),
            (hypercall::VENDOR_UID, _) => self.answer(hypercall::UID.map(u64::from)),
            (hypercall::VENDOR_REVISION, _) => self.answer(hypercall::REVISION.map(u64::from)),
            (_, OWNER_VENDOR) => {
                let reply = thread.service.call(self.id, function, args);
                self.served(thread, reply)
            }
            _ => self.answer([hypercall::NOT_SUPPORTED]),
        }
    }

    /// Results go to x0 and up; every other register keeps its value (SMCCC 1.4, section 2.6).
    fn answer<const N: usize>(&mut self, values: [u64; N]) -> Next {
        self.state.regs.x[..N].copy_from_slice(&values);
        Next::Enter
    }

    fn psci<S, C, K, V>(
        &mut self,
        thread: &mut Thread<'_, S, C, K, V>,
        function: u32,
        args: [u64; 3],
    ) -> Next
    where
        S: GuestMemory<C>,
        K: Cpu,
        V: Service + ?Sized,
    {
        let (vm, memory) = (thread.vm, thread.memory);
        match psci::call(vm, function, args, |ipa| vm.space.is_backed(memory, ipa)) {
            psci::Reply::Return(value) => self.answer([i64::from(value) as u64]),
            psci::Reply::TurnedOn(target) => {
                if let Some(cpu) = vm.cpu_of(target) {
                    thread.cpu.kick(cpu);
                }
                self.answer([hypercall::SUCCESS])
            }
            psci::Reply::Standby => {
                thread.sleep();
                self.answer([hypercall::SUCCESS])
            }
            psci::Reply::Off => Next::TurnOff,
            psci::Reply::Stop(reason) => Next::Stop(reason),
        }
    }

    fn served<S, C, K, V>(
        &mut self,
        thread: &mut Thread<'_, S, C, K, V>,
        mut reply: ServiceReply,
    ) -> Next
    where
        S: GuestMemory<C>,
        K: Cpu,
        V: Service + ?Sized,
    {
        loop {
            match reply {
                ServiceReply::Return(values) => return self.answer(values),
                ServiceReply::NotSupported => return self.answer([hypercall::NOT_SUPPORTED]),
                ServiceReply::Stop(reason) => return Next::Stop(reason),
                ServiceReply::Wait if thread.vm.has_ended() => return Next::Enter,
                ServiceReply::Wait => {
                    thread.sleep();
                    reply = thread.service.poll(self.id);
                }
            }
        }
    }

    #[cold]
    fn inject_external_abort<S, C, K, V>(
        &mut self,
        thread: &mut Thread<'_, S, C, K, V>,
        exit: &RawExit,
    ) -> Next
    where
        K: Cpu,
        V: ?Sized,
    {
        self.count(thread.vm, ExitKind::InjectedAbort);
        let esr = external_abort(exit.esr, pstate::is_el0(self.state.regs.pstate));
        self.inject(thread.cpu, esr, Some(exit.far))
    }

    #[cold]
    fn inject_undefined<S, C, K, V>(
        &mut self,
        thread: &mut Thread<'_, S, C, K, V>,
        exit: &RawExit,
    ) -> Next
    where
        K: Cpu,
        V: ?Sized,
    {
        self.count(thread.vm, ExitKind::InjectedUndefined);
        self.inject(thread.cpu, undefined(exit.esr), None)
    }

    /// Makes the guest take a synchronous exception to EL1 (Arm ARM, AArch64.TakeException).
    fn inject(&mut self, cpu: &mut impl Cpu, esr: u64, far: Option<u64>) -> Next {
        let controls = cpu.exception_controls();
        let regs = &mut self.state.regs;
        cpu.set_exception(&ExceptionRecord {
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
}

impl<S, C, K: Cpu, V: ?Sized> Thread<'_, S, C, K, V> {
    /// Sleeps until this CPU is kicked. The caller looks at what it waits for before and after.
    fn sleep(&mut self)
    where
        S: GuestMemory<C>,
    {
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
