//! IROUTER, and ITARGETSR of a GICv2 (rules V1 and V18).

use super::Register;
use crate::interface::VirtualInterface;
use crate::local::Local;
use crate::vgic::Vgic;
use crate::word::FIRST_SPI;
use arm::Width;

/// Aff2 to Aff0. There is no Aff3, and interrupts go to one vCPU (GICD_TYPER.No1N).
const AFFINITY: u64 = 0xff_ffff;

impl Register {
    /// The interrupt of an IROUTER.
    pub(super) const fn routed(self) -> u32 {
        (self.offset / 8) as u32
    }
}

impl Vgic {
    pub(super) fn read_route(&self, register: Register) -> u64 {
        let word = self.shared(register.routed());
        register.part(word.map_or(0, |word| u64::from(word.route())))
    }

    pub(super) fn read_targets(&self, register: Register) -> u64 {
        register.gather(self, 8, |intid, word| {
            if intid < FIRST_SPI {
                1 << register.vcpu
            } else {
                u64::from(word.route() & 0xff)
            }
        })
    }
}

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    pub(super) fn write_route(&mut self, register: Register, value: u64) {
        // The upper half of a register is Aff3: the whole route changes at once, however it is written.
        let upper = register.size == Width::Word && !register.offset.is_multiple_of(8);
        if !upper {
            self.set_route(register.routed(), (value & AFFINITY) as u32);
        }
    }

    pub(super) fn write_targets(&mut self, register: Register, value: u64) {
        let all = (1_u64 << self.vgic.vcpus.len()) - 1;
        for (intid, shift) in register.present(8) {
            self.set_route(intid, (value >> shift & 0xff & all) as u32);
        }
    }

    fn set_route(&mut self, intid: u32, route: u32) {
        if intid >= FIRST_SPI {
            self.change(self.own.vcpu, intid, |word| {
                (word.route() != route).then(|| word.with_route(route))
            });
        }
    }
}
