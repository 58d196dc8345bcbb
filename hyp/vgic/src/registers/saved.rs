//! Saving and restoring by register, as migration needs it: unlike a guest's accesses, these see latches without lines, set what
//! a guest can only set *or* clear, and tell nobody. No vCPU is loaded, and no device raises (rule V16).

use super::{Register, Topic};
use crate::config::{Frame, Version};
use crate::door::SGIS;
use crate::its::Its;
use crate::sync::Ordering;
use crate::vgic::Vgic;
use crate::word::{FIRST_PPI, Word};
use arm::Width;

impl Vgic {
    /// The value of a register, for [`restore`](Self::restore); `vcpu` is the one whose private interrupts a GICv2's distributor
    /// shows. ISENABLER, ISPENDR and ISACTIVER hold the state; what clears it needn't be saved. Lines are the devices' own state.
    pub fn save(&self, vcpu: usize, frame: Frame, offset: u64, size: Width) -> u64 {
        if let (Frame::Its, Some(its)) = (frame, &self.its) {
            return its.save_register(offset, size);
        }
        let Some(register) = Register::find(self, vcpu, frame, offset, size) else {
            return 0;
        };
        match register.topic {
            Topic::Control => self.groups(),
            Topic::Group | Topic::Priority | Topic::Config => self.read_attribute(register),
            Topic::Enable(true) => self.read_enable(register),
            Topic::Pending(true) => {
                let sgis = self
                    .vcpus
                    .get(register.vcpu)
                    .map_or(0, |vcpu| vcpu.door.word.load(Ordering::Acquire) & SGIS);
                register.gather(self, 1, |intid, word| {
                    let in_door = intid < FIRST_PPI && sgis >> intid & 1 != 0;
                    u64::from(word.has(Word::LATCH) || in_door)
                })
            }
            Topic::Active(true) => {
                register.gather(self, 1, |_, word| u64::from(word.has(Word::ACT)))
            }
            Topic::Targets => self.read_targets(register),
            Topic::Sources(true) => self.save_sources(register),
            Topic::Route => self.read_route(register),
            Topic::Waker => self.read_waker(register),
            Topic::RedistributorControl => {
                let forwards = |its: &Its| its.forwards_lpis(register.vcpu);
                self.its.as_ref().is_some_and(forwards).into()
            }
            Topic::Properties => register.part(self.properties()),
            Topic::PendingTable => {
                let table = |its: &Its| its.pending_table(register.vcpu);
                register.part(self.its.as_ref().map_or(0, table))
            }
            _ => 0,
        }
    }

    /// Gives a register the value that [`save`](Self::save) had. Each vCPU looks at everything when it is loaded.
    pub fn restore(&self, vcpu: usize, frame: Frame, offset: u64, size: Width, value: u64) {
        if let (Frame::Its, Some(its)) = (frame, &self.its) {
            its.restore_register(offset, size, value);
            return self.look_again();
        }
        let Some(register) = Register::find(self, vcpu, frame, offset, size) else {
            return;
        };
        match register.topic {
            Topic::Control => {
                self.set_groups(value & 3);
            }
            Topic::Group | Topic::Priority | Topic::Config => {
                self.scatter(
                    register,
                    register.topic.bits(),
                    value,
                    |intid, word, value| self.with_attribute(register.topic, intid, word, value),
                );
            }
            Topic::Enable(true) => self.scatter(register, 1, value, |_, word, value| {
                word.with_if(value & 1 != 0, Word::ENABLED)
            }),
            Topic::Pending(true) => self.scatter(register, 1, value, |intid, word, value| {
                if self.version == Version::V2 && intid < FIRST_PPI {
                    // Its sources tell.
                    word
                } else {
                    word.with_if(value & 1 != 0, Word::LATCH)
                }
            }),
            Topic::Sources(true) => self.restore_sources(register, value),
            Topic::Active(true) => self.scatter(register, 1, value, |intid, word, value| {
                // Whoever it is routed to has acknowledged it, as far as registers tell.
                let owner = self.target(register.vcpu, intid, word).unwrap_or(0);
                word.with_if(value & 1 != 0, Word::ACT).with_owner(owner)
            }),
            Topic::Targets => self.scatter(register, 8, value, |_, word, value| {
                word.with_route(value as u32 & 0xff)
            }),
            Topic::Route => {
                if let Some(word) = self.word(0, register.routed())
                    && (register.size == Width::Double || register.offset.is_multiple_of(8))
                {
                    let old = Word(word.load(Ordering::Relaxed));
                    word.store(old.with_route(value as u32).0, Ordering::Relaxed);
                }
            }
            Topic::Waker => self.write_waker(register, value),
            topic => {
                if let Some(its) = &self.its {
                    match topic {
                        Topic::RedistributorControl => {
                            its.set_forwards_lpis(register.vcpu, value & 1 != 0);
                        }
                        Topic::Properties => {
                            its.set_properties(register.with_part(its.properties(), value));
                        }
                        Topic::PendingTable => {
                            let old = its.pending_table(register.vcpu);
                            its.set_pending_table(register.vcpu, register.with_part(old, value));
                        }
                        _ => {}
                    }
                }
            }
        }
        self.look_again();
    }

    pub(super) fn scatter(
        &self,
        register: Register,
        bits: u64,
        value: u64,
        change: impl Fn(u32, Word, u64) -> Word,
    ) {
        for (intid, shift) in register.present(bits) {
            if let Some(word) = self.word(register.vcpu, intid) {
                // Nobody else is there.
                let old = Word(word.load(Ordering::Relaxed));
                let new = change(intid, old, value >> shift);
                word.store(new.0, Ordering::Relaxed);
            }
        }
    }
}
