//! IGROUPR, IPRIORITYR, ICFGR.

use super::{Register, Topic};
use crate::interface::VirtualInterface;
use crate::local::Local;
use crate::vgic::Vgic;
use crate::word::{FIRST_PPI, Word};

impl Topic {
    /// The bits of each interrupt.
    pub(super) const fn bits(self) -> u64 {
        match self {
            Self::Priority | Self::Targets => 8,
            Self::Config => 2,
            _ => 1,
        }
    }
}

impl Vgic {
    pub(super) fn read_attribute(&self, register: Register) -> u64 {
        register.gather(self, register.topic.bits(), |_, word| {
            match register.topic {
                Topic::Group => u64::from(word.has(Word::GROUP1)),
                Topic::Priority => u64::from(word.priority()),
                // The upper bit of two.
                _ => u64::from(word.has(Word::EDGE)) << 1,
            }
        })
    }

    /// The word with the attribute that a register gives it.
    pub(super) fn with_attribute(&self, topic: Topic, intid: u32, word: Word, value: u64) -> Word {
        match topic {
            Topic::Group => word.with_if(value & 1 != 0, Word::GROUP1),
            Topic::Priority => word.with_priority(value as u8 & self.priority_mask),
            // SGIs are edges.
            Topic::Config if intid >= FIRST_PPI => word.with_if(value & 2 != 0, Word::EDGE),
            _ => word,
        }
    }
}

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    pub(super) fn write_attribute(&mut self, register: Register, value: u64) {
        let vgic = self.vgic;
        for (intid, shift) in register.present(register.topic.bits()) {
            self.change(register.vcpu, intid, |word| {
                let new = vgic.with_attribute(register.topic, intid, word, value >> shift);
                (new != word).then_some(new)
            });
            if register.topic == Topic::Group {
                self.tell_of_physical(register.vcpu, intid);
            }
        }
    }
}
