//! ISENABLER, ICENABLER (rule V9): a disabled interrupt isn't signalled any more once GICD_CTLR.RWP reads 0. One that was taken
//! stays active.

use super::Register;
use crate::config::{Again, Version};
use crate::interface::VirtualInterface;
use crate::local::Local;
use crate::vgic::Vgic;
use crate::word::{FIRST_PPI, Word};

impl Vgic {
    pub(super) fn read_enable(&self, register: Register) -> u64 {
        register.gather(self, 1, |_, word| u64::from(word.has(Word::ENABLED)))
    }
}

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    pub(super) fn write_enable(
        &mut self,
        register: Register,
        enable: bool,
        value: u64,
    ) -> Result<(), Again> {
        let v2 = self.vgic.version == Version::V2;
        for (intid, shift) in register.present(1) {
            // SGIs of a GICv2 are always enabled.
            if value >> shift & 1 == 0 || v2 && intid < FIRST_PPI {
                continue;
            }
            if enable {
                self.change(register.vcpu, intid, |word| {
                    (!word.has(Word::ENABLED)).then(|| word.with(Word::ENABLED))
                });
                self.tell_of_physical(register.vcpu, intid);
            } else {
                self.disable(register.vcpu, intid);
            }
        }
        if v2 && !enable {
            // There is no RWP to poll.
            self.wait_until_settled(register)?;
        }
        Ok(())
    }

    fn disable(&mut self, vcpu: usize, intid: u32) {
        let own = self.own.vcpu;
        self.change_synced(vcpu, intid, |word| {
            if !word.has(Word::ENABLED) {
                return None;
            }
            let disabled = word.without(Word::ENABLED);
            let elsewhere = word.has(Word::CLAIMED) && word.owner() != own;
            Some(if elsewhere {
                disabled.with(Word::SYNC)
            } else {
                disabled
            })
        });
    }
}
