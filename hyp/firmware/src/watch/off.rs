//! Nobody watches.

use control::options::{EarlyOptions, OptionError};
use memory::CpuMemory;
use platform::cpu::features::CpuFeatures;
use platform::cpu::tlb;
use platform::el2::world::HardwareCpu;
use stage2::Features;

/// The calling CPU's world switch.
pub type GuestCpu = HardwareCpu;
/// The calling CPU's TLB and cache instructions.
pub type Hardware = tlb::Maintenance;

/// The calling CPU, to run guests.
pub fn guest_cpu(features: &CpuFeatures) -> GuestCpu {
    HardwareCpu::new(features)
}

/// The calling CPU's instructions, an invalidation consisting of at most so many.
pub fn hardware(features: &CpuFeatures, most_instructions: u32) -> Hardware {
    tlb::maintenance(features, most_instructions)
}

/// Watches nothing.
///
/// # Errors
/// A bug is asked for, of which there is none without anybody to find it.
pub fn start(options: &EarlyOptions) -> Result<(), OptionError<'static>> {
    options.check_no_bug()
}

/// VMs get the first VMIDs.
pub fn use_up_vmids(_: &CpuMemory<Hardware>, _: Features) {}
