//! GICD_SGIR, SPENDSGIR, CPENDSGIR: SGIs of a GICv2, which have sources (rule V8). All are of the vCPU that accesses them.

use super::Register;
use crate::interface::VirtualInterface;
use crate::local::Local;
use crate::sgi;
use crate::vgic::Vgic;
use crate::word::Word;

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    pub(super) fn write_sgi(&mut self, value: u64) {
        sgi::send_v2(self.vgic, self.own.vcpu, value, &mut self.kick);
    }

    pub(super) fn read_sources(&self, register: Register) -> u64 {
        register.present(8).fold(0, |value, (intid, shift)| {
            value | u64::from(self.pending_sources(intid)) << shift
        })
    }

    pub(super) fn write_sources(&mut self, register: Register, pending: bool, value: u64) {
        for (intid, shift) in register.present(8) {
            let sources = (value >> shift) as u8;
            if sources == 0 {
                continue;
            }
            if pending {
                sgi::raise_v2(self.vgic, self.own.vcpu, intid, sources, &mut |_| {});
            } else {
                self.clear_sources(intid, sources);
            }
        }
    }
}

impl Vgic {
    pub(super) fn save_sources(&self, register: Register) -> u64 {
        let vcpu = self.vcpus.get(register.vcpu);
        register.present(8).fold(0, |value, (intid, shift)| {
            value | vcpu.map_or(0, |vcpu| u64::from(vcpu.sources.of(intid))) << shift
        })
    }

    pub(super) fn restore_sources(&self, register: Register, value: u64) {
        if let Some(vcpu) = self.vcpus.get(register.vcpu) {
            for (intid, shift) in register.present(8) {
                vcpu.sources.remove(intid, u8::MAX);
                vcpu.sources.add(intid, (value >> shift) as u8);
            }
        }
        self.scatter(register, 8, value, |_, word, value| {
            word.with_if(value & 0xff != 0, Word::LATCH)
        });
    }
}
