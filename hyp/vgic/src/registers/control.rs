//! GICD_CTLR, GICR_CTLR, GICR_WAKER, and what identifies a GIC.

use super::Register;
use crate::config::Version;
use crate::interface::VirtualInterface;
use crate::its::INTID_BITS;
use crate::local::Local;
use crate::sync::Ordering;
use crate::vgic::Vgic;

/// GICD_CTLR.EnableGrp0 and EnableGrp1.
const GROUPS: u64 = 3;
const ARE: u64 = 1 << 4;
const DS: u64 = 1 << 6;
const RWP: u64 = 1 << 31;
const NO_1_OF_N: u64 = 1 << 25;
/// INTIDs have so many bits, less one.
const ID_BITS: u64 = 9 << 19;
const ID_BITS_WITH_LPIS: u64 = (INTID_BITS as u64 - 1) << 19;
const LPIS: u64 = 1 << 17;
/// GICR_CTLR: EnableLPIs, which can be cleared.
const ENABLE_LPIS: u64 = 1;
const CLEAR_ENABLE_SUPPORTED: u64 = 1 << 1;
/// GICR_TYPER.PLPIS.
const PHYSICAL_LPIS: u64 = 1;
const REDISTRIBUTOR_RWP: u64 = 1 << 3;
const LAST: u64 = 1 << 4;
const PROCESSOR_SLEEP: u64 = 1 << 1;
const CHILDREN_ASLEEP: u64 = 1 << 2;

/// IIDR: product 'P', of Arm as far as JEP106 goes.
pub(super) const IMPLEMENTER: u64 = 0x5000_043b;

/// PIDR4 to PIDR7, PIDR0 to PIDR3, CIDR0 to CIDR3, from the offset of PIDR4.
pub(super) const fn identity(version: Version, offset: u64) -> u64 {
    // PIDR2.ArchRev.
    let revision = match version {
        Version::V2 => 0x2b,
        Version::V3 => 0x3b,
    };
    match offset / 4 {
        0 => 0x04,
        4 => 0x92,
        5 => 0xb4,
        6 => revision,
        8 => 0x0d,
        9 => 0xf0,
        10 => 0x05,
        11 => 0xb1,
        _ => 0,
    }
}

impl Vgic {
    pub(super) fn read_control(&self) -> u64 {
        match self.version {
            Version::V2 => self.groups(),
            Version::V3 => {
                let pending = if self.is_write_pending() { RWP } else { 0 };
                self.groups() | ARE | DS | pending
            }
        }
    }

    pub(super) fn read_type(&self) -> u64 {
        let lines = self.spis.len() as u64 / 32;
        match self.version {
            Version::V2 => lines | (self.vcpus.len() as u64 - 1) << 5,
            Version::V3 if self.its.is_some() => lines | ID_BITS_WITH_LPIS | LPIS | NO_1_OF_N,
            Version::V3 => lines | ID_BITS | NO_1_OF_N,
        }
    }

    pub(super) fn read_redistributor_control(&self, vcpu: usize) -> u64 {
        let pending = if self.is_write_pending() {
            REDISTRIBUTOR_RWP
        } else {
            0
        };
        let lpis = self.its.as_ref().map_or(0, |its| {
            let enabled = if its.forwards_lpis(vcpu) {
                ENABLE_LPIS
            } else {
                0
            };
            CLEAR_ENABLE_SUPPORTED | enabled
        });
        pending | lpis
    }

    pub(super) fn read_redistributor_type(&self, register: Register) -> u64 {
        let Some(vcpu) = self.vcpus.get(register.vcpu) else {
            return 0;
        };
        let number = register.vcpu as u64;
        let last = if register.vcpu + 1 == self.vcpus.len() {
            LAST
        } else {
            0
        };
        let lpis = if self.its.is_some() { PHYSICAL_LPIS } else { 0 };
        register.part(u64::from(vcpu.affinity) << 32 | number << 8 | last | lpis)
    }

    pub(super) fn read_waker(&self, register: Register) -> u64 {
        let vcpu = self.vcpus.get(register.vcpu);
        // It is about nothing but itself.
        let asleep = vcpu.is_some_and(|vcpu| vcpu.asleep.load(Ordering::Relaxed) != 0);
        if asleep {
            PROCESSOR_SLEEP | CHILDREN_ASLEEP
        } else {
            0
        }
    }

    pub(super) fn write_waker(&self, register: Register, value: u64) {
        if let Some(vcpu) = self.vcpus.get(register.vcpu) {
            vcpu.asleep
                .store(u64::from(value & PROCESSOR_SLEEP != 0), Ordering::Relaxed);
        }
    }
}

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    /// Switches groups on and off: each vCPU looks at everything again, and RWP says whether all have (rule V9).
    pub(super) fn write_control(&mut self, value: u64) {
        if self.vgic.set_groups(value & GROUPS) {
            self.vgic.call_all_but(self.own.vcpu, &mut self.kick);
            self.note_all();
        }
    }
}
