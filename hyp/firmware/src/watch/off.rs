//! The platform's world switch and TLB instructions, without a checker.

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

/// The calling CPU's instructions, at most `most_instructions` for an invalidation.
pub fn hardware(features: &CpuFeatures, most_instructions: u32) -> Hardware {
    tlb::maintenance(features, most_instructions)
}

/// Does nothing, as there is no checker.
///
/// # Errors
/// The options ask for a deliberate bug, which only the checker's build has.
pub fn start(options: &EarlyOptions) -> Result<(), OptionError<'static>> {
    options.check_no_bug()
}

/// Does nothing, as there is no checker.
pub fn use_up_vmids(_: &CpuMemory<Hardware>, _: Features) {}
