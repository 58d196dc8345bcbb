//! ISPENDR, ICPENDR (rule V10).

use super::Register;
use crate::config::{Again, Version};
use crate::interface::VirtualInterface;
use crate::local::Local;
use crate::sync::Ordering;
use crate::vgic::Vgic;
use crate::word::{FIRST_PPI, Word};

impl Vgic {
    /// The SGIs that are still in a vCPU's door.
    fn latched_sgis(&self, vcpu: usize) -> u64 {
        // Pairs with the exchange that takes them into their words: whoever finds a bit gone finds the word's latch.
        self.vcpus.get(vcpu).map_or(0, |vcpu| {
            vcpu.door.word.load(Ordering::Acquire) & crate::door::SGIS
        })
    }
}

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    pub(super) fn read_pending(&mut self, register: Register) -> Result<u64, Again> {
        self.ask(register)?;
        // The door first, then the words (rule V8).
        let sgis = self.vgic.latched_sgis(register.vcpu);
        let own = register.vcpu == self.own.vcpu;
        Ok(register.gather(self.vgic, 1, |intid, word| {
            if self.sources_of(intid).is_some() {
                return u64::from(self.pending_sources(intid) != 0);
            }
            let in_door = intid < FIRST_PPI && sgis >> intid & 1 != 0;
            let held = word.has(Word::CLAIMED) && word.has(Word::P);
            // The line of a forwarded interrupt, whether it is enabled or not.
            let line = || self.vgic.physical(intid).and_then(|id| self.hw.line(id));
            let line = own && line() == Some(true);
            u64::from(in_door || word.is_pending() || held || line)
        }))
    }

    pub(super) fn write_pending(&mut self, register: Register, pending: bool, value: u64) {
        let v2 = self.vgic.version == Version::V2;
        for (intid, shift) in register.present(1) {
            // SGIs of a GICv2 have sources, and GICD_SPENDSGIR for these.
            if value >> shift & 1 == 0 || v2 && intid < FIRST_PPI {
                continue;
            }
            if !pending
                && intid < FIRST_PPI
                && let Some(vcpu) = self.vgic.vcpus.get(register.vcpu)
            {
                // The door first: what is on its way from there is in the word then, but for one that is being taken.
                vcpu.door.word.fetch_and(!(1 << intid), Ordering::AcqRel);
            }
            self.set_pending(register.vcpu, intid, pending);
        }
    }
}
