//! What a vCPU with a virtual GIC has besides memory: what is asked before each entry and at each data abort, at hand.

use memory::FaultKind;
use vgic::Doorbell;

use crate::machine::cpu::RawExit;
use crate::registers::syndrome::{Abort, AbortKind, fault_page};

/// What there is besides memory for a vCPU: what tells of interrupts, and the addresses from the first to the last device.
#[derive(Default)]
pub(super) struct Attended<'r> {
    pub(super) doorbell: Option<Doorbell<'r>>,
    pub(super) start: u64,
    pub(super) bytes: u64,
}

impl Attended<'_> {
    /// Whether a data abort may be an access to a device.
    #[inline(always)]
    pub(super) fn may_be_device(&self, exit: &RawExit, abort: Abort) -> bool {
        fault_page(exit.hpfar).wrapping_sub(self.start) < self.bytes
            && abort.kind() == AbortKind::Stage2(FaultKind::Translation)
    }
}
