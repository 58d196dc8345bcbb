//! SGIs of a GICv2 in list registers: of one source after the other (rule V8).

use super::Local;
use crate::config::Version;
use crate::interface::{ListRegister, VirtualInterface};
use crate::sgi::sources::Sources;
use crate::sync::Ordering;
use crate::vgic::Vgic;
use crate::word::{FIRST_PPI, Word};

impl<'a, H: VirtualInterface, K: FnMut(usize)> Local<'a, H, K> {
    /// The sources of an interrupt of this vCPU, if it is one that has sources.
    pub(crate) fn sources_of(&self, intid: u32) -> Option<&'a Sources> {
        if self.vgic.version == Version::V3 || intid >= FIRST_PPI {
            return None;
        }
        Some(&self.vgic.vcpus.get(self.own.vcpu)?.sources)
    }

    /// The source that the list register of an SGI has, or had last.
    pub(super) fn source(&self, intid: u32) -> u8 {
        let source = self.own.sources.get(intid as usize);
        source.copied().unwrap_or(0)
    }

    /// Gives the source of a list register back, if it is still pending: the guest, which is outside, hasn't got it. Returns the
    /// list register without it.
    pub(super) fn give_back_source(&self, intid: u32, register: ListRegister) -> ListRegister {
        match self.sources_of(intid) {
            Some(sources) if register.pending() => {
                sources.add(intid, 1 << self.source(intid));
                register.with_state(false, register.active())
            }
            _ => register,
        }
    }

    /// Takes a source for the list register that becomes pending. Returns whether others are left; then LATCH is in the word.
    pub(super) fn take_source(&mut self, intid: u32) -> bool {
        let Some(sources) = self.sources_of(intid) else {
            return false;
        };
        let first = sources.of(intid).trailing_zeros() & 7;
        let bit = 1 << first;
        let left = sources.remove(intid, bit) & !bit != 0;
        if let Some(source) = self.own.sources.get_mut(intid as usize) {
            *source = first as u8;
        }
        if left && let Some(word) = self.word(intid) {
            // Nobody else looks at it.
            word.fetch_or(Word::LATCH, Ordering::Relaxed);
        }
        left
    }

    /// The word of an interrupt with what its sources say: a source may have been taken before the door's bit that told of it.
    pub(super) fn with_sources(sources: Option<u8>, word: Word) -> Word {
        match sources {
            Some(sources) => word.with_if(sources != 0, Word::LATCH),
            None => word,
        }
    }

    /// Makes LATCH of a word that isn't claimed agree with its sources.
    pub(super) fn look_at_sources(&self, intid: u32) {
        let Some(sources) = self.sources_of(intid) else {
            return;
        };
        if sources.of(intid) == 0
            && let Some(word) = self.word(intid)
        {
            // What comes meanwhile sets it again, when the door's bit is taken.
            let _ = Vgic::change(word, |word| {
                let is_stale = word.has(Word::LATCH) && !word.has(Word::CLAIMED);
                is_stale.then(|| word.without(Word::LATCH))
            });
        }
    }

    /// The sources that an SGI is pending from, with the one in a list register.
    pub(crate) fn pending_sources(&self, intid: u32) -> u8 {
        let waiting = self
            .sources_of(intid)
            .map_or(0, |sources| sources.of(intid));
        match self.slot_of(intid) {
            Some(slot) if self.hw.read_lr(slot).pending() => waiting | 1 << self.source(intid),
            _ => waiting,
        }
    }

    /// Makes an SGI pending no more from some sources, by hand. The caller fills.
    pub(crate) fn clear_sources(&mut self, intid: u32, cleared: u8) {
        let Some(sources) = self.sources_of(intid) else {
            return;
        };
        if let Some(slot) = self.slot_of(intid) {
            let register = self.give_back_source(intid, self.hw.read_lr(slot));
            self.hw.write_lr(slot, register);
        }
        sources.remove(intid, cleared);
        self.note(intid);
    }
}
