//! A vCPU on the CPU that it is loaded on, with its guest outside: what it shares, what it has alone, and the hardware.

mod commands;
mod drain;
mod fill;
mod overflow;
mod presence;
mod sourced;

use crate::config::Version;
use crate::door::Door;
use crate::interface::{ListRegister, VirtualInterface};
use crate::own::VcpuInterrupts;
use crate::settle::{Held, Place, Settled, raised_again, settle};
use crate::sync::{AtomicU64, Ordering};
use crate::vgic::Vgic;
use crate::word::{FIRST_LPI, FIRST_SPI, Word};

/// The vCPU.
pub(crate) struct Local<'a, H, K> {
    pub(crate) vgic: &'a Vgic,
    pub(crate) own: &'a mut VcpuInterrupts,
    pub(crate) hw: &'a mut H,
    pub(crate) kick: K,
}

/// Whether all of a word's list register has to leave it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Release {
    /// What may stay stays.
    IfNeeded,
    /// Nothing stays.
    Whole,
}

impl<'a, H: VirtualInterface, K: FnMut(usize)> Local<'a, H, K> {
    /// The vCPU. What the guest has deactivated since it was entered is served first (rule V11).
    pub(crate) fn new(
        vgic: &'a Vgic,
        own: &'a mut VcpuInterrupts,
        hw: &'a mut H,
        mut kick: K,
    ) -> Self {
        if !own.outside.is_empty() {
            // One of its own: what is returned is never moved.
            let (own, hw, kick) = (&mut *own, &mut *hw, &mut kick);
            let mut local = Local {
                vgic,
                own,
                hw,
                kick,
            };
            local.serve_eoi_count();
        }
        Self {
            vgic,
            own,
            hw,
            kick,
        }
    }

    pub(crate) fn door(&self) -> Option<&'a Door> {
        Some(&self.vgic.vcpus.get(self.own.vcpu)?.door)
    }

    /// How many list registers are used.
    fn list_registers(&self) -> usize {
        self.hw.list_registers().min(self.own.held.len())
    }

    /// Changes the word of an interrupt, private to `vcpu` or shared, unless `change` finds nothing to do, and tells whoever has
    /// to know. Returns it as it was and as it is.
    pub(crate) fn change(
        &mut self,
        vcpu: usize,
        intid: u32,
        change: impl FnMut(Word) -> Option<Word>,
    ) -> Option<(Word, Word)> {
        let word = self.vgic.word(vcpu, intid)?;
        let (old, new) = Vgic::change(word, change).ok()?;
        self.tell_of(vcpu, intid, old, new);
        Some((old, new))
    }

    /// As [`change`](Self::change), for changes that may set SYNC: those are counted, before they can be seen (rule V9).
    pub(crate) fn change_synced(
        &mut self,
        vcpu: usize,
        intid: u32,
        mut change: impl FnMut(Word) -> Option<Word>,
    ) -> Option<(Word, Word)> {
        let unsettled = &self.vgic.unsettled;
        let is_new = |old: Word, new: Word| new.has(Word::SYNC) && !old.has(Word::SYNC);
        let mut counted = false;
        let changed = Vgic::change(self.vgic.word(vcpu, intid)?, |old| {
            let new = change(old)?;
            if is_new(old, new) && !counted {
                // Before the word, whose exchange releases it: whoever sees SYNC finds it counted.
                unsettled.fetch_add(1, Ordering::Relaxed);
                counted = true;
            }
            Some(new)
        });
        let is_counted_for = changed.is_ok_and(|(old, new)| is_new(old, new));
        if counted && !is_counted_for {
            // Nothing was done that another could rely on.
            unsettled.fetch_sub(1, Ordering::Relaxed);
        }
        let (old, new) = changed.ok()?;
        self.tell_of(vcpu, intid, old, new);
        Some((old, new))
    }

    fn tell_of(&mut self, vcpu: usize, intid: u32, old: Word, new: Word) {
        if let Some(told) = self.vgic.told(vcpu, intid, old, new) {
            self.tell(told, intid);
        }
    }

    /// Tells a vCPU, or notes it for this one.
    fn tell(&mut self, told: usize, intid: u32) {
        if told == self.own.vcpu {
            self.note(intid);
        } else {
            self.vgic.tell(told, intid, &mut self.kick);
        }
    }

    /// Tells another vCPU that the physical interrupt behind a private one of its may come to it now: it may sleep without
    /// waiting for that ([`VcpuInterrupts::awaits`]).
    pub(crate) fn tell_of_physical(&mut self, vcpu: usize, intid: u32) {
        if intid < FIRST_SPI && vcpu != self.own.vcpu && self.vgic.physical(intid).is_some() {
            self.tell(vcpu, intid);
        }
    }

    /// Has an interrupt looked at by the next [`fill`](Self::fill), and at once if a list register holds it.
    pub(crate) fn note(&mut self, intid: u32) {
        match self.slot_of(intid) {
            Some(slot) => self.settle(slot, Release::IfNeeded),
            None => self.own.backlog.insert(intid),
        }
    }

    /// The list register that holds an interrupt.
    fn slot_of(&self, intid: u32) -> Option<usize> {
        let mut left = self.own.claimed;
        while left != 0 {
            let slot = left.trailing_zeros() as usize;
            left &= left - 1;
            if self.own.held.get(slot)?.intid == intid {
                return Some(slot);
            }
        }
        None
    }

    /// The slots whose list registers are claimed.
    fn slots(&self) -> impl Iterator<Item = usize> + use<H, K> {
        let mut left = self.own.claimed;
        core::iter::from_fn(move || {
            let slot = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(slot)
        })
    }

    /// Settles what a list register holds (rule V3): what the guest has done with it, what others have asked of it.
    fn settle(&mut self, slot: usize, release: Release) {
        let Some(held) = self.own.held.get(slot).copied() else {
            return;
        };
        let Some(word) = self.word(held.intid) else {
            return;
        };
        let register = self.hw.read_lr(slot);
        let is_written = register.bits() != 0;
        let register = self.give_back_source(held.intid, register);
        let sources = self.sources_of(held.intid);
        let sources = sources.map(|sources| sources.of(held.intid));
        let (vgic, vcpu) = (self.vgic, self.own.vcpu);
        // Seen as the door or the hint that told of a change saw it.
        let groups = vgic.groups();
        let mut settled = None;
        let changed = Vgic::change(word, |old| {
            let place = match release {
                Release::Whole => Place::Nowhere,
                Release::IfNeeded if Self::is_for(vgic, vcpu, held.intid, old, groups) => {
                    Place::Here
                }
                Release::IfNeeded => Place::Elsewhere,
            };
            let old = Self::with_sources(sources, old);
            let new = settle(old, register, held, place);
            settled = Some(new);
            Some(new.word)
        });
        let (Ok((old, new)), Some(mut settled)) = (changed, settled) else {
            return;
        };
        if settled.pending || settled.active {
            settled.eoi |= settled.pending && self.take_source(held.intid);
            self.write_lr(slot, held.intid, &settled);
        } else {
            self.free(slot, is_written);
            if let Some(priority) = settled.active_at
                && new.has(Word::ACT)
            {
                self.own.outside.insert(held.intid, priority);
            }
        }
        if settled.ends_physical {
            self.end_physical(held.intid);
        }
        if old.has(Word::SYNC) {
            // After the list register is as the word says: whoever waits may rely on it (rule V3).
            vgic.unsettled.fetch_sub(1, Ordering::Release);
        }
        if new.is_deliverable()
            && let Some(target) = vgic.target(vcpu, held.intid, new)
        {
            self.tell(target, held.intid);
        }
    }

    /// Settles an edge that was raised again after the guest had ended it, as an interrupt mostly is. Returns whether it was one.
    #[inline(always)]
    fn settle_raised(&mut self, slot: usize) -> bool {
        let Some(intid) = self.own.held.get(slot).map(|held| held.intid) else {
            return false;
        };
        // SGIs of a GICv2 have sources.
        if self.vgic.version == Version::V2 {
            return false;
        }
        let Some(place) = self.word(intid) else {
            return false;
        };
        let old = Word(place.load(Ordering::Acquire));
        let Some(new) = raised_again(old, self.hw.read_lr(slot)) else {
            return false;
        };
        if !Self::is_for(self.vgic, self.own.vcpu, intid, old, self.vgic.groups()) {
            return false;
        }
        // As in `Vgic::change`. If another changes it meanwhile, there is more to settle.
        let changed = place.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed);
        if changed.is_err() {
            return false;
        }
        let register = ListRegister::new(intid, new.priority())
            .with_state(true, false)
            .with_group1(new.has(Word::GROUP1));
        self.hw.write_lr(slot, register);
        if let Some(held) = self.own.held.get_mut(slot) {
            *held = Held {
                intid,
                latched: true,
                active_at: None,
                has_source: false,
            };
        }
        true
    }

    fn write_lr(&mut self, slot: usize, intid: u32, settled: &Settled) {
        let word = settled.word;
        let register = ListRegister::new(intid, word.priority())
            .with_state(settled.pending, settled.active)
            .with_group1(word.has(Word::GROUP1));
        let source = self.sources_of(intid).map(|_| self.source(intid));
        let register = register.with_source(source.unwrap_or(0));
        let physical = if settled.physical {
            self.vgic.physical(intid)
        } else {
            None
        };
        let register = match physical {
            Some(physical) => register.with_physical(physical),
            None => register.with_eoi(settled.eoi),
        };
        self.hw.write_lr(slot, register);
        if let Some(held) = self.own.held.get_mut(slot) {
            *held = Held {
                intid,
                latched: settled.latched,
                active_at: settled.active_at,
                has_source: source.is_some(),
            };
        }
        self.own.claimed |= 1 << slot;
    }

    fn free(&mut self, slot: usize, is_written: bool) {
        if is_written {
            self.hw.write_lr(slot, ListRegister::INVALID);
        }
        self.own.claimed &= !(1 << slot);
    }

    /// Whether an interrupt may be taken here: its group is on, and it is routed to this vCPU, which takes LPIs if it is one.
    fn is_for(vgic: &Vgic, vcpu: usize, intid: u32, word: Word, groups: u64) -> bool {
        let forwards = || vgic.its.as_ref().is_some_and(|its| its.forwards_lpis(vcpu));
        Vgic::is_group_on(groups, word)
            && vgic.target(vcpu, intid, word) == Some(vcpu)
            && (intid < FIRST_LPI || forwards())
    }

    /// The word of an interrupt of this vCPU, or of a shared one.
    fn word(&self, intid: u32) -> Option<&'a AtomicU64> {
        self.vgic.word(self.own.vcpu, intid)
    }

    /// Ends the physical interrupt behind one of this vCPU or a shared one.
    fn end_physical(&mut self, intid: u32) {
        if let Some(physical) = self.vgic.physical(intid) {
            self.hw.deactivate(physical);
        }
    }

    /// Makes an interrupt active, or no more, by hand (rule V10). The caller fills.
    pub(crate) fn set_active(&mut self, vcpu: usize, intid: u32, active: bool) {
        let own = self.own.vcpu;
        let changed = self.change_synced(vcpu, intid, |word| {
            if word.has(Word::CLAIMED) {
                let (ask, instead) = if active {
                    (Word::SETA, Word::CLRA)
                } else {
                    (Word::CLRA, Word::SETA)
                };
                let sync = word.owner() != own;
                let asked = word.with(ask).without(instead);
                return Some(if sync { asked.with(Word::SYNC) } else { asked });
            }
            let new = word.with_if(active, Word::ACT);
            (new != word).then(|| Self::without_trace(own, vcpu, intid, word, new))
        });
        self.end_if_traceless(vcpu, intid, changed);
    }

    /// Makes an interrupt pending, or no more, by hand (rule V10). The caller fills.
    pub(crate) fn set_pending(&mut self, vcpu: usize, intid: u32, pending: bool) {
        let own = self.own.vcpu;
        let changed = self.change_synced(vcpu, intid, |word| {
            if pending {
                return Some(word.with(Word::LATCH).without(Word::DROP));
            }
            let cleared = word.without(Word::LATCH);
            if word.has(Word::CLAIMED) {
                // A physical interrupt that was raised under the claim is left without a trace.
                let owes = word.has(Word::HW) && word.has(Word::LATCH);
                let asked = cleared
                    .with(Word::DROP)
                    .with(if owes { Word::DEBT } else { 0 });
                let sync = word.owner() != own;
                return Some(if sync { asked.with(Word::SYNC) } else { asked });
            }
            (cleared != word).then(|| Self::without_trace(own, vcpu, intid, word, cleared))
        });
        self.end_if_traceless(vcpu, intid, changed);
    }

    /// `new`, without the mark of a physical interrupt if no trace of it is left: whoever removes the last ends it (rule V13), or
    /// leaves that to the vCPU of a private interrupt, whose CPU has it.
    fn without_trace(own: usize, vcpu: usize, intid: u32, old: Word, new: Word) -> Word {
        if !old.has(Word::HW) || !new.is_traceless() {
            new
        } else if intid < FIRST_SPI && vcpu != own {
            new.with(Word::DEBT)
        } else {
            new.without(Word::HW)
        }
    }

    fn end_if_traceless(&mut self, vcpu: usize, intid: u32, changed: Option<(Word, Word)>) {
        let Some((old, new)) = changed else { return };
        if new.has(Word::DEBT) && !new.has(Word::CLAIMED) {
            self.tell(vcpu, intid);
        } else if old.has(Word::HW) && !new.has(Word::HW) {
            self.end_physical(intid);
        }
    }
}
