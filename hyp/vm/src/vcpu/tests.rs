//! Whole run loops over a scripted CPU: the result of a guest's actions, and how its VM ends.

mod calls;
mod fakes;
mod interrupts;
mod memory;
mod pauses;
mod slices;
mod stolen_time;
mod traps;

use super::*;
use crate::calls::service::ServiceReply;
use crate::counts::exits::{ExitCounts, ExitKind};
use crate::machine::cpu::{ExceptionRecord, ExitReason, RawExit};
use crate::machine::protection::{Protection, Protections};
use crate::registers::state::GuestRegs;
use crate::registers::state::Start;
use crate::vm::VmConfig;
use crate::vm::pause::{ForkParts, Moment, Pause};
use crate::vm::stop_reason::StopReason;
use ::memory::{Access, Fault, FaultKind, FaultOutcome};
use fakes::{ENTRY, FakeCpu, FakeService, FakeSpace, Lines, SPAN, Turn, VBAR};
use proptest::prelude::*;
use stage2::{Ipa, PAGE_SIZE};
use std::boxed::Box;
use std::sync::{Arc, Mutex};

const DATA_ABORT: u64 = 0x24 << 26 | IL;
const FETCH_ABORT: u64 = 0x20 << 26 | IL;
const IL: u64 = 1 << 25;
const HVC: u64 = 0x16 << 26 | IL;
const SMC: u64 = 0x17 << 26 | IL;
const SYSTEM: u64 = 0x18 << 26 | IL;
const SVE: u64 = 0x19 << 26 | IL;
const WFI: u64 = 0x01 << 26 | IL;
const WRITE: u64 = 1 << 6;
const TABLE_WALK: u64 = 1 << 7;

const NOT_SUPPORTED: u64 = u64::MAX;
const PSCI_VERSION: u64 = 0x8400_0000;
const PSCI_FEATURES: u64 = 0x8400_000a;
const CPU_SUSPEND: u64 = 0xc400_0001;
const SYSTEM_SUSPEND: u64 = 0xc400_000e;
const CPU_OFF: u64 = 0x8400_0002;
const CPU_ON: u64 = 0xc400_0003;
const AFFINITY_INFO: u64 = 0xc400_0004;
const SYSTEM_OFF: u64 = 0x8400_0008;

fn exit(esr: u64) -> RawExit {
    RawExit {
        reason: ExitReason::Synchronous,
        esr,
        far: 0,
        hpfar: 0,
    }
}

/// A fork of a VM without devices, at once.
fn forked<K: FnMut(CpuId)>(pause: &Pause<'_, FakeSpace, K>) -> Vm<FakeSpace> {
    let parts = ForkParts {
        space: FakeSpace::default(),
        devices: None,
    };
    let fork = pause.fork(parts, Moment::default());
    fork.unwrap_or_else(|(error, _)| panic!("{error}"))
}

/// The guest calls `function`.
fn call(function: u64, args: [u64; 3]) -> Turn {
    Box::new(move |regs| {
        regs.x[0] = function;
        regs.x[1..4].copy_from_slice(&args);
        exit(HVC)
    })
}

/// The guest comes out without having changed a register.
fn out(raw: RawExit) -> Turn {
    Box::new(move |_| raw)
}

/// The guest looks at its registers, and comes out by an interrupt.
fn check(look: impl FnOnce(&GuestRegs) + Send + 'static) -> Turn {
    let mut look = Some(look);
    Box::new(move |regs| {
        if let Some(look) = look.take() {
            look(regs);
        }
        RawExit {
            reason: ExitReason::Interrupt,
            esr: 0,
            far: 0,
            hpfar: 0,
        }
    })
}

/// The guest finds this in x0 after a 64-bit call.
fn returns(value: i64) -> Turn {
    check(move |regs| assert_eq!(regs.x[0] as i64, value))
}

/// The guest finds this in x0 after a 32-bit call, whose results are in the lower half.
fn returns_32(value: i32) -> Turn {
    check(move |regs| assert_eq!(regs.x[0], u64::from(value as u32)))
}

/// The guest reads or writes a system register, with x5.
fn system((op0, op1, crn, crm, op2): (u64, u64, u64, u64, u64), read: bool) -> Turn {
    out(exit(
        SYSTEM
            | op0 << 20
            | op2 << 17
            | op1 << 14
            | crn << 10
            | 5 << 5
            | crm << 1
            | u64::from(read),
    ))
}

/// A VM with vCPU 0 turned on.
fn vm(vcpus: usize) -> Vm<FakeSpace> {
    vm_with(vcpus, false)
}

fn vm_with(vcpus: usize, times_faults: bool) -> Vm<FakeSpace> {
    let vm = Vm::new(
        VmConfig {
            vcpus,
            ipa_bits: 40,
            counter_offset: 5,
            times_faults,
        },
        FakeSpace::default(),
    )
    .unwrap();
    vm.turn_on(
        VcpuId(0),
        Start {
            entry: ENTRY,
            context: 0x4800_0000,
        },
    )
    .unwrap();
    vm
}

/// Runs on `cpu` the vCPU of the same number.
fn run_on(vm: &Vm<FakeSpace>, service: &FakeService, mut cpu: FakeCpu) -> FakeCpu {
    let vcpu = VcpuId(cpu.id.0);
    run_slices(vm, vcpu, &mut cpu, &(), service);
    cpu
}

/// Runs a vCPU until its VM has ended, as one that has its CPU to itself; not if another CPU has it.
fn run_slices<S: GuestMemory<C>, C>(
    vm: &Vm<S>,
    id: VcpuId,
    cpu: &mut FakeCpu,
    memory: &C,
    service: &FakeService,
) {
    let Some(mut vcpu) = Vcpu::bind(vm, id, cpu.id) else {
        return;
    };
    loop {
        let end = vcpu.run_slice(cpu, memory, service);
        assert!(!cpu.loaded, "a guest was left in the CPU");
        match end {
            SliceEnd::Waiting => {}
            SliceEnd::Paused => service.paused.lock().unwrap().push(id),
            SliceEnd::Ended => return,
        }
        cpu.wait_for_interrupt(vcpu.wakes_at());
        cpu.acknowledge_interrupts();
    }
}

/// Runs vCPU 0 through a script, without services.
fn run(vm: &Vm<FakeSpace>, script: impl IntoIterator<Item = Turn>) -> FakeCpu {
    run_on(
        vm,
        &FakeService::default(),
        FakeCpu::new(0, &Lines::new(1), script),
    )
}

/// Runs the only vCPU of a VM through a script, and tells what was counted and why the VM ended.
fn run_alone(script: impl IntoIterator<Item = Turn>) -> (FakeCpu, ExitCounts, Option<StopReason>) {
    let vm = vm(1);
    let cpu = run(&vm, script);
    (cpu, vm.exits(), vm.stop_reason())
}

#[test]
fn a_vcpu_starts_where_it_was_turned_on_and_ends_with_its_vm() {
    let (cpu, exits, reason) = run_alone([]);
    assert_eq!(reason, Some(StopReason::PoweredOff));
    let (state, controls) = &cpu.loads[0];
    assert_eq!((state.regs.pc, state.regs.x[0]), (ENTRY, 0x4800_0000));
    assert_eq!(
        (
            controls.mpidr,
            controls.counter_offset,
            controls.stage2.vttbr
        ),
        (0x8000_0000, 5, 1)
    );
    assert_eq!(exits.of(ExitKind::Hypercall), 1);
}

#[test]
fn an_ended_vm_is_not_entered() {
    let vm = vm(1);
    vm.stop(StopReason::TimedOut, |_| {});
    let cpu = run(&vm, [check(|_| panic!("entered"))]);
    assert_eq!(cpu.script.len(), 1);
}

#[test]
fn a_guest_that_faults_for_ever_ends_with_its_vm() {
    let vm = Arc::new(vm(1));
    vm.space
        .outcomes
        .lock()
        .unwrap()
        .extend([FaultOutcome::NoSlot; 1000]);
    let script = (0..1000).map(|round| {
        let vm = vm.clone();
        Box::new(move |_: &mut GuestRegs| {
            if round == 500 {
                vm.stop(StopReason::TimedOut, |_| {});
            }
            exit(DATA_ABORT | 0x06)
        }) as Turn
    });
    let cpu = run(&vm, script);
    assert_eq!(
        cpu.script.len(),
        499,
        "the exit after the end is the last one"
    );
}

#[test]
fn a_vcpu_is_bound_to_one_cpu_only() {
    let vm = vm(1);
    assert!(vm.bind(VcpuId(0), CpuId(3)));
    assert!(run(&vm, []).loads.is_empty());
    assert_eq!(vm.cpu_of(VcpuId(0)), Some(CpuId(3)));
}

fn any_exit() -> impl Strategy<Value = RawExit> {
    let class = prop::sample::select(vec![0x01u64, 0x16, 0x17, 0x18, 0x20, 0x24, 0x3f]);
    let esr = prop_oneof![
        any::<u64>(),
        (class, any::<u64>()).prop_map(|(class, iss)| class << 26 | iss & 0x3ff_ffff)
    ];
    let reason = prop_oneof![8 => Just(ExitReason::Synchronous), 1 => Just(ExitReason::Interrupt)];
    (reason, esr, any::<u64>(), any::<u64>()).prop_map(|(reason, esr, far, hpfar)| RawExit {
        reason,
        esr,
        far,
        hpfar,
    })
}

fn any_function() -> impl Strategy<Value = u64> {
    let range = prop::sample::select(vec![
        0x8000_0000u64,
        0x8000_8000,
        0x8400_0000,
        0x8400_0040,
        0xc400_0000,
        0xc400_0040,
        0x8401_0000,
        0xc500_0010,
        0x8600_ff00,
        0xc600_0000,
    ]);
    prop_oneof![
        any::<u64>(),
        (range, 0u64..0x20).prop_map(|(range, function)| range + function)
    ]
}

fn any_outcome() -> impl Strategy<Value = FaultOutcome> {
    use FaultOutcome::{NoSlot, NotPermitted, Resolved, Retry};
    prop::sample::select(vec![Resolved, Retry, NoSlot, NotPermitted])
}

proptest! {
    /// A guest of garbage: every exit that a CPU could report and many that it couldn't, with any registers.
    #[test]
    fn no_guest_makes_its_run_loop_fail(
        turns in prop::collection::vec((any_exit(), any_function(), any::<[u64; 5]>(), any::<u64>()), 1..40),
        outcomes in prop::collection::vec(any_outcome(), 0..40),
    ) {
        let vm = vm(2);
        vm.space.outcomes.lock().unwrap().extend(outcomes);
        let lines = Lines::new(1);
        let script = turns.into_iter().map(|(raw, function, args, pstate)| {
            let lines = lines.clone();
            Box::new(move |regs: &mut GuestRegs| {
                lines.kick(CpuId(0));
                regs.x[0] = function;
                regs.x[1..6].copy_from_slice(&args);
                regs.pstate = pstate;
                raw
            }) as Turn
        });
        let mut cpu = FakeCpu::new(0, &lines, script);
        cpu.translation = Some(Ipa::new(0x1000));
        run_on(&vm, &FakeService::default(), cpu);
        prop_assert!(vm.stop_reason().is_some());
    }
}
