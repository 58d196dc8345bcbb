//! The boot CPU's settings that secondary CPUs need.

use core::sync::atomic::AtomicU64;

/// The values with which a CPU switches its MMU on. Read with the MMU off.
#[repr(C, align(128))]
pub(crate) struct BootContext {
    pub(crate) ttbr: AtomicU64,
    pub(crate) mair: AtomicU64,
    pub(crate) tcr: AtomicU64,
    pub(crate) sctlr: AtomicU64,
}

pub(crate) static BOOT_CONTEXT: BootContext = BootContext {
    ttbr: AtomicU64::new(0),
    mair: AtomicU64::new(0),
    tcr: AtomicU64::new(0),
    sctlr: AtomicU64::new(0),
};
