//! Paravirtualized time (Arm DEN0057): a guest asks where it finds the time that was stolen from a vCPU. Pure functions.

use stage2::Ipa;

/// Asks whether a function of this interface is there.
pub const PV_TIME_FEATURES: u32 = 0xc500_0020;
/// Asks where the calling vCPU's structure is.
pub const PV_TIME_ST: u32 = 0xc500_0021;

/// The result of a call of the standard hypervisor services, for a vCPU whose structure is there.
pub const fn call(function: u32, argument: u32, structure: Option<Ipa>) -> u64 {
    match (function, argument, structure) {
        (PV_TIME_FEATURES, PV_TIME_FEATURES | PV_TIME_ST, Some(_)) => abi::SUCCESS,
        (PV_TIME_ST, _, Some(structure)) => structure.get(),
        _ => abi::NOT_SUPPORTED,
    }
}
