//! PSCI 1.1 for a guest's vCPUs (Arm DEN0022).
//!
//! | function | |
//! |---|---|
//! | PSCI_VERSION, PSCI_FEATURES, CPU_ON, CPU_OFF, AFFINITY_INFO, SYSTEM_OFF, SYSTEM_RESET | as the specification has them; AFFINITY_INFO tells of single vCPUs only |
//! | CPU_SUSPEND | standby and power-down, of any level, in the original format of the power state; the hypervisor coordinates, so there is no SET_SUSPEND_MODE |
//! | CPU_DEFAULT_SUSPEND | CPU_SUSPEND's power-down |
//! | SYSTEM_SUSPEND | the same, if all other vCPUs are off: memory stays as it is, and an interrupt of the caller's wakes the VM |
//! | SYSTEM_RESET2 | the architecture's warm reset, which is SYSTEM_RESET; no vendor has others |
//! | MIGRATE_INFO_TYPE | no trusted operating system has to be migrated; so there is no MIGRATE and no MIGRATE_INFO_UP_CPU |
//! | CPU_FREEZE, NODE_HW_STATE, STAT_RESIDENCY, STAT_COUNT, MEM_PROTECT | not supported: a virtual machine has no power controller that these could ask |
//!
//! Calls that change power states act on the VM's switches; the reply says what the calling vCPU must do itself. All vCPUs call
//! at once, with any arguments.

use smccc::psci::error::{
    ALREADY_ON, DENIED, INVALID_ADDRESS, INVALID_PARAMETERS, NOT_SUPPORTED, ON_PENDING,
};
use smccc::psci::{
    PSCI_AFFINITY_INFO_32, PSCI_AFFINITY_INFO_64, PSCI_CPU_DEFAULT_SUSPEND_32,
    PSCI_CPU_DEFAULT_SUSPEND_64, PSCI_CPU_OFF, PSCI_CPU_ON_32, PSCI_CPU_ON_64, PSCI_CPU_SUSPEND_32,
    PSCI_CPU_SUSPEND_64, PSCI_FEATURES, PSCI_MIGRATE_INFO_TYPE, PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET,
    PSCI_SYSTEM_RESET2_32, PSCI_SYSTEM_RESET2_64, PSCI_SYSTEM_SUSPEND_32, PSCI_SYSTEM_SUSPEND_64,
    PSCI_VERSION,
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
const SUSPEND_RESERVED: u32 = 0xfcfe_0000;
const SUSPEND_POWER_DOWN: u32 = 1 << 16;
/// SYSTEM_RESET2's reset type: the only one of the architecture's, and the bit of those of vendors.
const RESET_WARM: u32 = 0;
const RESET_VENDOR: u32 = 1 << 31;

/// The result of a PSCI call for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The caller continues with this in x0.
    Return(i32),
    /// The caller continues with success in x0, and this vCPU must be woken.
    TurnedOn(VcpuId),
    /// The caller sleeps until it is woken, and continues with success in x0.
    Standby,
    /// The caller loses its registers and sleeps until it is woken, and starts here then.
    PowerDown(Start),
    /// The caller is off.
    Off,
    /// The VM ends.
    Stop(StopReason),
}

/// Handles a call of `caller`, with arguments as wide as the call.
///
/// `is_backed` says whether a vCPU could start at an address.
pub fn call<S>(
    vm: &Vm<S>,
    caller: VcpuId,
    function: u32,
    args: [u64; 3],
    is_backed: impl FnOnce(Ipa) -> bool,
) -> Reply {
    let start = |entry, context| Start { entry, context };
    match function {
        PSCI_VERSION => Reply::Return(VERSION),
        PSCI_FEATURES => Reply::Return(features(args[0] as u32)),
        PSCI_CPU_ON_32 | PSCI_CPU_ON_64 => cpu_on(vm, args[0], start(args[1], args[2]), is_backed),
        PSCI_CPU_OFF => Reply::Off,
        PSCI_CPU_SUSPEND_32 | PSCI_CPU_SUSPEND_64 => {
            cpu_suspend(args[0] as u32, start(args[1], args[2]), is_backed)
        }
        PSCI_CPU_DEFAULT_SUSPEND_32 | PSCI_CPU_DEFAULT_SUSPEND_64 => {
            power_down(start(args[0], args[1]), is_backed)
        }
        PSCI_SYSTEM_SUSPEND_32 | PSCI_SYSTEM_SUSPEND_64 => {
            system_suspend(vm, caller, start(args[0], args[1]), is_backed)
        }
        PSCI_AFFINITY_INFO_32 | PSCI_AFFINITY_INFO_64 => {
            Reply::Return(affinity_info(vm, args[0], args[1] as u32))
        }
        PSCI_MIGRATE_INFO_TYPE => Reply::Return(NO_MIGRATION),
        PSCI_SYSTEM_OFF => Reply::Stop(StopReason::PoweredOff),
        PSCI_SYSTEM_RESET => Reply::Stop(StopReason::Reset),
        PSCI_SYSTEM_RESET2_32 | PSCI_SYSTEM_RESET2_64 => system_reset2(args[0] as u32),
        _ => Reply::Return(NOT_SUPPORTED),
    }
}

/// 0 for the functions that there are: of CPU_SUSPEND it says that its power states have the original format, and that no
/// operating system coordinates.
const fn features(function: u32) -> i32 {
    match function {
        PSCI_VERSION
        | PSCI_FEATURES
        | PSCI_CPU_ON_32
        | PSCI_CPU_ON_64
        | PSCI_CPU_OFF
        | PSCI_CPU_SUSPEND_32
        | PSCI_CPU_SUSPEND_64
        | PSCI_CPU_DEFAULT_SUSPEND_32
        | PSCI_CPU_DEFAULT_SUSPEND_64
        | PSCI_SYSTEM_SUSPEND_32
        | PSCI_SYSTEM_SUSPEND_64
        | PSCI_AFFINITY_INFO_32
        | PSCI_AFFINITY_INFO_64
        | PSCI_MIGRATE_INFO_TYPE
        | PSCI_SYSTEM_OFF
        | PSCI_SYSTEM_RESET
        | PSCI_SYSTEM_RESET2_32
        | PSCI_SYSTEM_RESET2_64 => 0,
        smccc::arch::SMCCC_VERSION => 0,
        _ => NOT_SUPPORTED,
    }
}

/// Whether a vCPU could start there: instructions are words.
fn is_entry(start: Start, is_backed: impl FnOnce(Ipa) -> bool) -> bool {
    start.entry.is_multiple_of(4) && is_backed(Ipa::new(start.entry))
}

fn cpu_on<S>(vm: &Vm<S>, target: u64, start: Start, is_backed: impl FnOnce(Ipa) -> bool) -> Reply {
    let Some(target) = vm.vcpu_at(target) else {
        return Reply::Return(INVALID_PARAMETERS);
    };
    if !is_entry(start, is_backed) {
        return Reply::Return(INVALID_ADDRESS);
    }
    match vm.turn_on(target, start) {
        Ok(()) => Reply::TurnedOn(target),
        Err(PowerState::On) => Reply::Return(ALREADY_ON),
        Err(_) => Reply::Return(ON_PENDING),
    }
}

/// Every level and state is one of two: whatever the hypervisor saves is its own affair.
fn cpu_suspend(power_state: u32, start: Start, is_backed: impl FnOnce(Ipa) -> bool) -> Reply {
    if power_state & SUSPEND_RESERVED != 0 {
        Reply::Return(INVALID_PARAMETERS)
    } else if power_state & SUSPEND_POWER_DOWN == 0 {
        Reply::Standby
    } else {
        power_down(start, is_backed)
    }
}

fn power_down(start: Start, is_backed: impl FnOnce(Ipa) -> bool) -> Reply {
    if is_entry(start, is_backed) {
        Reply::PowerDown(start)
    } else {
        Reply::Return(INVALID_ADDRESS)
    }
}

/// Nobody turns a vCPU on meanwhile: the caller is the only one that runs.
fn system_suspend<S>(
    vm: &Vm<S>,
    caller: VcpuId,
    start: Start,
    is_backed: impl FnOnce(Ipa) -> bool,
) -> Reply {
    let mut others = vm.vcpus().filter(|&vcpu| vcpu != caller);
    if others.any(|vcpu| vm.power_state(vcpu) != PowerState::Off) {
        return Reply::Return(DENIED);
    }
    power_down(start, is_backed)
}

fn system_reset2(reset_type: u32) -> Reply {
    match reset_type {
        RESET_WARM => Reply::Stop(StopReason::Reset),
        RESET_VENDOR.. => Reply::Return(NOT_SUPPORTED),
        _ => Reply::Return(INVALID_PARAMETERS),
    }
}

fn affinity_info<S>(vm: &Vm<S>, target: u64, lowest_level: u32) -> i32 {
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
