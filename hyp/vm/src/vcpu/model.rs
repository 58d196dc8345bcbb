//! Slices that end while somebody kicks, pauses or stops the VM, or turns the vCPU on, in every order: the CPU never sleeps
//! through what it is to do. The model checker reports a CPU that does as a deadlock.

use std::collections::VecDeque;
use std::vec::Vec;

use loom::sync::atomic::{AtomicBool, AtomicU64};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use memory::{Access, Fault, FaultOutcome};
use stage2::{Ipa, IpaRange};

use super::*;
use crate::calls::service::ServiceReply;
use crate::machine::cpu::{
    ExceptionControls, ExceptionRecord, ExitReason, Interrupt, NoInterface, RawExit,
    Stage2Registers, VcpuControls, WriteServer,
};
use crate::machine::guest_memory::Refusal;
use crate::machine::protection::Protections;
use crate::registers::debug::DebugState;
use crate::registers::pmu::PmuState;
use crate::registers::state::{GuestRegs, Start, VcpuState};
use crate::registers::syndrome::Syndrome;
use crate::registers::sysreg::SystemRegister;
use crate::vm::VmConfig;
use crate::vm::stop_reason::StopReason;

const CPU: CpuId = CpuId(5);
/// A call of the service.
const CALL: u64 = 0xc600_0002;
/// How often a thread is interrupted where it doesn't wait.
const PREEMPTIONS: usize = 3;
const START: Start = Start {
    entry: 0x4000_0000,
    context: 0,
};

/// What a guest does until it exits.
#[derive(Clone, Copy)]
enum Turn {
    /// Computes until its CPU is kicked.
    Compute,
    /// Executes WFI.
    Wait,
    /// Calls the service.
    Call,
    TurnOff,
    /// Ends its VM.
    PowerOff,
}

impl Turn {
    fn exit(self, regs: &mut GuestRegs) -> RawExit {
        let (reason, class, function) = match self {
            Self::Compute => (ExitReason::Interrupt, 0, 0),
            Self::Wait => (ExitReason::Synchronous, 0x01, 0),
            Self::Call => (ExitReason::Synchronous, 0x16, CALL),
            Self::TurnOff => (ExitReason::Synchronous, 0x16, 0x8400_0002),
            Self::PowerOff => (ExitReason::Synchronous, 0x16, 0x8400_0008),
        };
        regs.x[0] = function;
        RawExit {
            reason,
            esr: class << 26 | 1 << 25,
            far: 0,
            hpfar: 0,
        }
    }
}

/// A VM, its service, and the interrupt line of the CPU that runs its last vCPU.
struct World {
    vm: Vm<Space>,
    pending: Mutex<bool>,
    raised: Condvar,
    /// Whether the service answers.
    answers: AtomicBool,
    /// How often the guest was entered.
    entries: AtomicU64,
}

impl World {
    /// All of the VM's vCPUs are on.
    fn new(vcpus: usize) -> Arc<Self> {
        let config = VmConfig {
            vcpus,
            ipa_bits: 40,
            counter_offset: 0,
            times_faults: false,
        };
        let Ok(vm) = Vm::new(config, Space) else {
            unreachable!("there is memory for the vCPUs")
        };
        vm.vcpus().for_each(|vcpu| vm.turn_on(vcpu, START).unwrap());
        Arc::new(Self {
            vm,
            pending: Mutex::new(false),
            raised: Condvar::new(),
            answers: AtomicBool::new(false),
            entries: AtomicU64::new(0),
        })
    }

    fn kick(&self, cpu: CpuId) {
        assert_eq!(cpu, CPU);
        *self.pending.lock().unwrap() = true;
        self.raised.notify_one();
    }

    fn wait_for_kick(&self) {
        let mut pending = self.pending.lock().unwrap();
        while !*pending {
            pending = self.raised.wait(pending).unwrap();
        }
    }

    fn acknowledge(&self) {
        *self.pending.lock().unwrap() = false;
    }

    /// Runs the last vCPU on a CPU of its own until the VM has ended. Its guest does these turns, the last one for ever.
    fn run(world: &Arc<Self>, turns: &[Turn]) -> thread::JoinHandle<()> {
        let (world, turns) = (world.clone(), turns.iter().copied().collect());
        thread::spawn(move || {
            let id = world.vm.vcpus().last().unwrap();
            let mut cpu = ModelCpu {
                world: &world,
                turns,
            };
            let mut vcpu = Vcpu::bind(&world.vm, id, CPU).unwrap();
            while vcpu.run_slice(&mut cpu, &(), &*world) != SliceEnd::Ended {
                world.wait_for_kick();
                world.acknowledge();
            }
        })
    }
}

impl Service for World {
    fn call(&self, vcpu: VcpuId, _: u32, _: [u64; 6]) -> ServiceReply {
        self.poll(vcpu)
    }

    fn poll(&self, _: VcpuId) -> ServiceReply {
        match self.answers.load(Ordering::Relaxed) {
            true => ServiceReply::Return([0; 4]),
            false => ServiceReply::Wait,
        }
    }

    fn ring_low(&self, _: VcpuId) {}
}

/// Memory that no guest of these tests uses.
struct Space;

impl GuestMemory<()> for Space {
    fn activate(&self, (): &()) -> Stage2Registers {
        Stage2Registers {
            vttbr: 1,
            vtcr: 2,
            forced_write_back: false,
        }
    }

    fn fault(&self, (): &(), fault: &Fault) -> FaultOutcome {
        unreachable!("{fault:?}")
    }

    fn is_backed(&self, (): &(), _: Ipa) -> bool {
        false
    }

    fn read_bytes(&self, (): &(), _: Ipa, _: &mut [u8]) -> bool {
        false
    }

    fn write_bytes(&self, (): &(), _: Ipa, _: &[u8]) {}

    fn prefault(&self, (): &(), _: usize, _: IpaRange, _: u64, _: Access) -> Result<u64, Refusal> {
        Err(Refusal::NotBacked)
    }

    fn balloon(&self, (): &(), _: IpaRange, _: u64) -> Result<u64, Refusal> {
        Err(Refusal::NotBacked)
    }
}

struct ModelCpu<'w> {
    world: &'w World,
    turns: VecDeque<Turn>,
}

impl Cpu for ModelCpu<'_> {
    type Interface = NoInterface;

    fn now_ns(&self) -> u64 {
        0
    }

    fn load(&mut self, _: &VcpuState, _: &VcpuControls) {}

    fn put(&mut self, _: &mut VcpuState) -> Option<u64> {
        None
    }

    fn enter<S: WriteServer>(&mut self, regs: &mut GuestRegs, _: Option<&mut S>) -> RawExit {
        self.world.entries.fetch_add(1, Ordering::Relaxed);
        assert_ne!(regs.x[0], CALL, "it goes on without an answer");
        let turn = match self.turns.len() {
            1 => self.turns[0],
            _ => self.turns.pop_front().unwrap(),
        };
        if matches!(turn, Turn::Compute) {
            self.world.wait_for_kick();
        }
        turn.exit(regs)
    }

    fn syndrome(&self) -> Syndrome {
        Syndrome::NONE
    }

    fn translate_read(&mut self, _: u64) -> Option<Ipa> {
        None
    }

    fn exception_controls(&mut self) -> ExceptionControls {
        ExceptionControls { vbar: 0, sctlr: 0 }
    }

    fn set_exception(&mut self, record: &ExceptionRecord) {
        unreachable!("{record:?}")
    }

    fn set_debug(&mut self, _: &DebugState) {
        unreachable!("these guests aren't offered any")
    }

    fn begin_sve(&mut self, _: &mut VcpuState) {
        unreachable!("these guests aren't offered any")
    }

    fn begin_pmu(&mut self, _: &PmuState) {
        unreachable!("these guests aren't offered any")
    }

    fn access_pmu(&mut self, _: SystemRegister, _: Option<u64>) -> Option<u64> {
        unreachable!("these guests aren't offered any")
    }

    fn id_register(&self, _: SystemRegister) -> u64 {
        0
    }

    fn protections(&self) -> Protections {
        Protections::default()
    }

    fn kick(&mut self, target: CpuId) {
        self.world.kick(target);
    }

    fn acknowledge_interrupts(&mut self) -> Option<u32> {
        self.world.acknowledge();
        None
    }

    fn wait_for_interrupt(&mut self, _: Option<u64>) {
        unreachable!("the caller of the slices sleeps")
    }

    fn interface(&mut self) -> NoInterface {
        unreachable!("the VM has no GIC")
    }

    fn take_interrupt(&mut self) -> Option<Interrupt> {
        unreachable!("the VM has no GIC")
    }

    fn physical_offset(&self, _: u64) -> u64 {
        0
    }
}

/// Runs `other` beside slices of the last of `vcpus` vCPUs, in every order that takes up to [`PREEMPTIONS`]. Returns the reasons
/// for which the VM has ended.
fn explore(vcpus: usize, turns: &'static [Turn], other: fn(&World)) -> Vec<StopReason> {
    let reasons = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = reasons.clone();
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS);
    model.check(move || {
        let world = World::new(vcpus);
        let slices = World::run(&world, turns);
        other(&world);
        slices.join().unwrap();
        let reason = world.vm.stop_reason().unwrap();
        let mut noted = noted.lock().unwrap();
        if !noted.contains(&reason) {
            noted.push(reason);
        }
    });
    let reasons = reasons.lock().unwrap();
    reasons.clone()
}

#[test]
fn an_answer_that_comes_as_a_slice_ends_is_taken() {
    let reasons = explore(1, &[Turn::Call, Turn::PowerOff], |world| {
        world.answers.store(true, Ordering::Relaxed);
        world.vm.kick_all(|cpu| world.kick(cpu));
    });
    assert_eq!(reasons, [StopReason::PoweredOff]);
}

/// Pauses the VM, and answers meanwhile.
fn pause_and_answer(world: &World) {
    let pause = world.vm.pause(|cpu| world.kick(cpu));
    let vcpu = world.vm.vcpus().last().unwrap();
    // Waits until the vCPU is out.
    let state = pause.state(vcpu).unwrap();
    let entries = world.entries.load(Ordering::Relaxed);
    world.answers.store(true, Ordering::Relaxed);
    let entered = world.entries.load(Ordering::Relaxed) != entries;
    assert!(!entered, "the guest ran during the pause");
    assert_eq!(
        pause.state(vcpu).unwrap(),
        state,
        "it got its answer in the pause"
    );
}

#[test]
fn a_slice_that_ends_beside_a_pause_leaves_the_guest_out_and_goes_on_after_it() {
    let reasons = explore(1, &[Turn::Call, Turn::PowerOff], pause_and_answer);
    assert_eq!(reasons, [StopReason::PoweredOff]);
}

#[test]
fn a_pause_and_a_stop_reach_a_guest_that_computes() {
    let reasons = explore(1, &[Turn::Compute], |world| {
        pause_and_answer(world);
        world.vm.stop(StopReason::TimedOut, |cpu| world.kick(cpu));
    });
    assert_eq!(reasons, [StopReason::TimedOut]);
}

#[test]
fn a_stop_as_a_slice_ends_is_seen() {
    for turns in [&[Turn::Wait][..], &[Turn::Call], &[Turn::TurnOff]] {
        let reasons = explore(2, turns, |world| {
            world.vm.stop(StopReason::TimedOut, |cpu| world.kick(cpu));
        });
        assert_eq!(reasons, [StopReason::TimedOut]);
    }
}

/// Turns the last vCPU on, as PSCI does.
fn turn_on(world: &World) -> Result<(), PowerState> {
    let vcpu = world.vm.vcpus().last().unwrap();
    world.vm.turn_on(vcpu, START)?;
    if let Some(cpu) = world.vm.cpu_of(vcpu) {
        world.kick(cpu);
    }
    Ok(())
}

#[test]
fn a_vcpu_that_is_turned_on_as_it_goes_off_starts_again() {
    let mut reasons = explore(2, &[Turn::TurnOff, Turn::PowerOff], |world| {
        // If it is still on, or about to be.
        if turn_on(world).is_err() {
            world.vm.stop(StopReason::Requested, |cpu| world.kick(cpu));
        }
    });
    reasons.sort_by_key(|reason| *reason == StopReason::Requested);
    assert_eq!(reasons, [StopReason::PoweredOff, StopReason::Requested]);
}

#[test]
fn a_vcpu_that_is_turned_on_as_it_is_bound_starts() {
    loom::model(|| {
        let world = World::new(2);
        let vcpu = world.vm.vcpus().last().unwrap();
        let _ = world.vm.shared(vcpu).power.take_start();
        world.vm.turn_off(vcpu);
        let slices = World::run(&world, &[Turn::PowerOff]);
        turn_on(&world).unwrap();
        slices.join().unwrap();
        assert_eq!(world.vm.stop_reason(), Some(StopReason::PoweredOff));
    });
}
