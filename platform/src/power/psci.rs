//! Firmware calls: starting CPUs, powering off (PSCI 1.1), workarounds (SMCCC 1.1). An SMC is issued only where the device tree
//! offers PSCI by SMC: elsewhere it may hang. Any CPU may call at any time.

use crate::console;
use crate::cpu::speculation::{Firmware, Workaround};
use crate::discovery::{Conduit, Mpidr};
use core::sync::atomic::{AtomicU8, Ordering};
use smccc::psci::{self, Version};
use smccc::{Hvc, Smc, arch};

pub use smccc::psci::Error;

const NONE: u8 = 0;
const SMC: u8 = 1;
const HVC: u8 = 2;
static CONDUIT: AtomicU8 = AtomicU8::new(NONE);

/// Says how firmware is called. HVC is possible only below EL2, so at EL2 it counts as no PSCI.
pub(crate) fn init(conduit: Option<Conduit>, exception_level: u64) {
    let conduit = match conduit {
        Some(Conduit::Smc) if exception_level < 3 => SMC,
        Some(Conduit::Hvc) if exception_level < 2 => HVC,
        _ => NONE,
    };
    CONDUIT.store(conduit, Ordering::Relaxed);
}

/// The firmware's PSCI version, or `None` without PSCI.
pub fn version() -> Option<Version> {
    match CONDUIT.load(Ordering::Relaxed) {
        SMC => psci::version::<Smc>().ok(),
        HVC => psci::version::<Hvc>().ok(),
        _ => None,
    }
}

/// What firmware can do about speculation on the calling CPU. Each CPU may get another answer.
pub(crate) fn workarounds() -> Firmware {
    const WITH_FEATURES: arch::Version = arch::Version { major: 1, minor: 1 };
    // Without SMCCC 1.1 there is no ARCH_FEATURES, and without PSCI 1.0 no way to know.
    let has_features = CONDUIT.load(Ordering::Relaxed) == SMC
        && psci::version::<Smc>().is_ok_and(|version| version.major >= 1)
        && psci::psci_features::<Smc>(arch::SMCCC_VERSION).is_ok()
        && arch::version::<Smc>().is_ok_and(|version| version >= WITH_FEATURES);
    if !has_features {
        return Firmware::default();
    }
    let workaround = |function| match arch::features::<Smc>(function) {
        Ok(0) => Workaround::Needed,
        Ok(_) | Err(arch::Error::NotRequired) => Workaround::NotNeeded,
        Err(_) => Workaround::Missing,
    };
    Firmware {
        branch_targets: workaround(arch::SMCCC_ARCH_WORKAROUND_1),
        store_bypass: workaround(arch::SMCCC_ARCH_WORKAROUND_2),
        branch_history: workaround(arch::SMCCC_ARCH_WORKAROUND_3),
    }
}

/// Starts a CPU at the physical address `entry`, with `context` in its x0.
pub(crate) fn cpu_on(mpidr: Mpidr, entry: u64, context: u64) -> Result<(), Error> {
    match CONDUIT.load(Ordering::Relaxed) {
        SMC => psci::cpu_on::<Smc>(mpidr.affinity(), entry, context),
        _ => Err(Error::NotSupported),
    }
}

/// Powers the machine off, or waits for ever where firmware can't do that.
pub fn power_off() -> ! {
    // Both return only when they failed.
    let _ = match CONDUIT.load(Ordering::Relaxed) {
        SMC => psci::system_off::<Smc>(),
        HVC => psci::system_off::<Hvc>(),
        _ => Err(Error::NotSupported),
    };
    loop {
        aarch64_cpu::asm::wfe();
    }
}

/// Ends the machine: prints the status in the line that comes last of all, and powers off.
pub fn exit(status: u8) -> ! {
    console::write_last_line(format_args!("parvisor: exit status {status}"));
    power_off()
}
