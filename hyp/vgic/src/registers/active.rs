//! ISACTIVER, ICACTIVER, and how a register is read that list registers of other vCPUs have the state of (rule V10).

use super::Register;
use crate::config::Again;
use crate::door::LOOK;
use crate::interface::VirtualInterface;
use crate::local::Local;
use crate::sync::{Ordering, relax};
use crate::word::Word;

/// How often it is looked whether others have looked, before the guest executes the access again.
const LOOKS: u32 = if cfg!(loom) { 2 } else { 2_000 };

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    pub(super) fn read_active(&mut self, register: Register) -> Result<u64, Again> {
        self.ask(register)?;
        Ok(register.gather(self.vgic, 1, |_, word| {
            let held = word.has(Word::CLAIMED) && word.has(Word::A);
            u64::from(word.has(Word::ACT) || held)
        }))
    }

    pub(super) fn write_active(&mut self, register: Register, active: bool, value: u64) {
        for (intid, shift) in register.present(1) {
            if value >> shift & 1 != 0 {
                self.set_active(register.vcpu, intid, active);
            }
        }
    }

    /// Has the words of a register say what the list registers hold: those of this vCPU, and by asking those of others. An access
    /// that is executed again doesn't ask again, as what was answered since it was executed first is new enough: two that ask each
    /// other by turns would never end.
    pub(super) fn ask(&mut self, register: Register) -> Result<(), Again> {
        let own = self.own.vcpu;
        let asked = self.own.asked.take() == Some(register.asked());
        for (intid, _) in register.present(1) {
            let Some(word) = self.vgic.word(register.vcpu, intid) else {
                continue;
            };
            let word = Word(word.load(Ordering::Acquire));
            if word.is_claimed_by(own) {
                self.note(intid);
            } else if word.has(Word::CLAIMED) && !asked {
                self.change_synced(register.vcpu, intid, |word| {
                    let asks = word.has(Word::CLAIMED) && word.owner() != own;
                    (asks && !word.has(Word::SYNC)).then(|| word.with(Word::SYNC))
                });
            }
        }
        let settled = self.wait_until_settled(register);
        self.own.asked = settled.is_err().then_some(register.asked());
        settled
    }

    /// Waits until nothing that the register is about has SYNC, for a while. Serves the own door meanwhile: two that wait for each
    /// other come to an end.
    pub(super) fn wait_until_settled(&mut self, register: Register) -> Result<(), Again> {
        for _ in 0..LOOKS {
            let waits = register.present(1).any(|(intid, _)| {
                let word = self.vgic.word(register.vcpu, intid);
                // Acquires what the owner's guest did before it was looked at.
                word.is_some_and(|word| Word(word.load(Ordering::Acquire)).has(Word::SYNC))
            });
            if !waits {
                return Ok(());
            }
            let door = self.door();
            if door.is_some_and(|door| door.word.load(Ordering::Relaxed) & LOOK != 0) {
                self.drain();
            }
            relax();
        }
        Err(Again)
    }
}
