//! PSCI 1.1 for a guest's vCPUs (Arm DEN0022F), and the function numbers of the SMC Calling Convention (DEN0028).
//!
//! Calls that change power states act on the VM's switches; the reply says what the calling vCPU must do itself. All vCPUs call
//! at once, with any arguments.

use smccc::psci::error::{
    ALREADY_ON, INVALID_ADDRESS, INVALID_PARAMETERS, NOT_SUPPORTED, ON_PENDING,
};
use smccc::psci::{
    PSCI_AFFINITY_INFO_32, PSCI_AFFINITY_INFO_64, PSCI_CPU_OFF, PSCI_CPU_ON_32, PSCI_CPU_ON_64,
    PSCI_CPU_SUSPEND_32, PSCI_CPU_SUSPEND_64, PSCI_FEATURES, PSCI_MIGRATE_INFO_TYPE,
    PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET, PSCI_VERSION,
};
use stage2::Ipa;

use crate::ids::VcpuId;
use crate::registers::state::Start;
use crate::vm::Vm;
use crate::vm::power::PowerState;
use crate::vm::stop_reason::StopReason;

/// PSCI 1.1.
const VERSION: i32 = 1 << 16 | 1;
/// No trusted operating system has to be migrated.
const NO_MIGRATION: i32 = 2;
/// CPU_SUSPEND's power state, original format: the bits that must be 0 and the one that asks for power-down (5.4.2).
const SUSPEND_RESERVED: u64 = 0xfcfe_0000;
const SUSPEND_POWER_DOWN: u64 = 1 << 16;

/// The result of a PSCI call for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The caller continues with this in x0.
    Return(i32),
    /// The caller continues with success in x0, and this vCPU must be woken.
    TurnedOn(VcpuId),
    /// The caller sleeps until its CPU is kicked, and continues with success in x0.
    Standby,
    /// The caller is off.
    Off,
    /// The VM ends.
    Stop(StopReason),
}

/// Handles a call of the standard secure service range.
///
/// `is_backed` says whether a vCPU could start at an address.
pub fn call<S>(
    vm: &Vm<S>,
    function: u32,
    args: [u64; 3],
    is_backed: impl FnOnce(Ipa) -> bool,
) -> Reply {
    match function {
        PSCI_VERSION => Reply::Return(VERSION),
        PSCI_FEATURES => Reply::Return(features(args[0] as u32)),
        PSCI_CPU_ON_32 | PSCI_CPU_ON_64 => cpu_on(
            vm,
            args[0],
            Start {
                entry: args[1],
                context: args[2],
            },
            is_backed,
        ),
        PSCI_CPU_OFF => Reply::Off,
        PSCI_CPU_SUSPEND_32 | PSCI_CPU_SUSPEND_64 => cpu_suspend(args[0]),
        PSCI_AFFINITY_INFO_32 | PSCI_AFFINITY_INFO_64 => {
            Reply::Return(affinity_info(vm, args[0], args[1]))
        }
        PSCI_MIGRATE_INFO_TYPE => Reply::Return(NO_MIGRATION),
        PSCI_SYSTEM_OFF => Reply::Stop(StopReason::PoweredOff),
        PSCI_SYSTEM_RESET => Reply::Stop(StopReason::Reset),
        _ => Reply::Return(NOT_SUPPORTED),
    }
}

fn features(function: u32) -> i32 {
    match function {
        PSCI_VERSION
        | PSCI_FEATURES
        | PSCI_CPU_ON_32
        | PSCI_CPU_ON_64
        | PSCI_CPU_OFF
        | PSCI_CPU_SUSPEND_32
        | PSCI_CPU_SUSPEND_64
        | PSCI_AFFINITY_INFO_32
        | PSCI_AFFINITY_INFO_64
        | PSCI_MIGRATE_INFO_TYPE
        | PSCI_SYSTEM_OFF
        | PSCI_SYSTEM_RESET => 0,
        smccc::arch::SMCCC_VERSION => 0,
        _ => NOT_SUPPORTED,
    }
}

fn cpu_on<S>(vm: &Vm<S>, target: u64, start: Start, is_backed: impl FnOnce(Ipa) -> bool) -> Reply {
    let Some(target) = vm.vcpu_at(target) else {
        return Reply::Return(INVALID_PARAMETERS);
    };
    if !start.entry.is_multiple_of(4) || !is_backed(Ipa::new(start.entry)) {
        return Reply::Return(INVALID_ADDRESS);
    }
    match vm.turn_on(target, start) {
        Ok(()) => Reply::TurnedOn(target),
        Err(PowerState::On) => Reply::Return(ALREADY_ON),
        Err(_) => Reply::Return(ON_PENDING),
    }
}

/// Only standby exists: a powered-down core would resume at its entry point, and that would save nothing here.
fn cpu_suspend(power_state: u64) -> Reply {
    if power_state & (SUSPEND_RESERVED | SUSPEND_POWER_DOWN) != 0 || power_state >> 32 != 0 {
        return Reply::Return(INVALID_PARAMETERS);
    }
    Reply::Standby
}

fn affinity_info<S>(vm: &Vm<S>, target: u64, lowest_level: u64) -> i32 {
    // From PSCI 1.0 on only single cores need be told of.
    let Some(target) = vm.vcpu_at(target).filter(|_| lowest_level == 0) else {
        return INVALID_PARAMETERS;
    };
    match vm.power_state(target) {
        PowerState::On => 0,
        PowerState::Off => 1,
        PowerState::OnPending => 2,
    }
}
