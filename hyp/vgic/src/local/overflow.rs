//! More interrupts than list registers (rules V11 and V12): the best pending ones are in list registers, before those that are
//! active. Those active *outside* are counted by hardware when they are deactivated.

use super::{Local, Release};
use crate::interface::{MAX_LIST_REGISTERS, VirtualInterface, hcr, vmcr};
use crate::settle::{BY_HAND, Settled};
use crate::sync::Ordering;
use crate::vgic::Vgic;
use crate::word::Word;

/// The urgency of an interrupt: its priority, behind all others if the guest hasn't enabled its group.
type Rank = u16;
const DISABLED: Rank = 1 << 8;

/// The best of the backlog, as many as there are list registers at most.
struct Best {
    found: [(Rank, u32); MAX_LIST_REGISTERS],
    count: usize,
    most: usize,
}

impl Best {
    const fn new(most: usize) -> Self {
        Self {
            found: [(0, 0); MAX_LIST_REGISTERS],
            count: 0,
            most,
        }
    }

    fn add(&mut self, rank: Rank, intid: u32) {
        let at = self.found[..self.count].partition_point(|(other, _)| *other <= rank);
        if at >= self.most {
            return;
        }
        self.count = (self.count + 1).min(self.most);
        self.found[at..self.count].rotate_right(1);
        self.found[at] = (rank, intid);
    }
}

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    /// Claims the best of the backlog, and evicts what has to give way. Returns the maintenance interrupts for what is left.
    pub(super) fn claim_best(&mut self) -> u64 {
        let groups = self.vgic.groups();
        let enabled = self.hw.read_vmcr();
        let mut best = Best::new(self.list_registers());
        self.each_loadable(groups, enabled, |rank, _, intid| best.add(rank, intid));
        for (rank, intid) in best.found.into_iter().take(best.count) {
            let Some(slot) = self.free_slot().or_else(|| self.evict(rank, enabled)) else {
                break;
            };
            self.claim(slot, intid, groups);
            self.own.backlog.remove(intid);
        }
        let is_on = |group1| enabled & if group1 { vmcr::VENG1 } else { vmcr::VENG0 } != 0;
        // When the guest switches its groups others are more urgent. What is asked for isn't so now: it would come at once again.
        // With one group on, nothing is more urgent once that is off. (QEMU 10 signals VGrp0D for as long as group 1 is off.)
        let groups_off = match (is_on(false), is_on(true)) {
            (true, true) => hcr::VGRP0DIE | hcr::VGRP1DIE,
            _ => 0,
        };
        let mut wanted = 0;
        self.each_loadable(groups, enabled, |rank, group1, _| {
            wanted |= groups_off;
            wanted |= match (rank < DISABLED, group1) {
                (true, _) => hcr::NPIE,
                (false, false) => hcr::VGRP0EIE,
                (false, true) => hcr::VGRP1EIE,
            };
        });
        wanted
    }

    /// Goes through the backlog, and forgets what may not be taken here.
    fn each_loadable(&mut self, groups: u64, enabled: u64, mut each: impl FnMut(Rank, bool, u32)) {
        let mut from = 0;
        while let Some(intid) = self.own.backlog.next(from) {
            from = intid + 1;
            if !self.may_claim(intid, groups) {
                self.own.backlog.remove(intid);
            } else if let Some(word) = self.word(intid) {
                let word = Word(word.load(Ordering::Relaxed));
                let group1 = word.has(Word::GROUP1);
                each(Self::rank(group1, word.priority(), enabled), group1, intid);
            }
        }
    }

    fn rank(group1: bool, priority: u8, enabled: u64) -> Rank {
        let enable = if group1 { vmcr::VENG1 } else { vmcr::VENG0 };
        let behind = if enabled & enable != 0 { 0 } else { DISABLED };
        Rank::from(priority) | behind
    }

    /// Frees a list register for an interrupt of this rank: that of the least urgent active one, else that of the least urgent
    /// pending one that is less urgent.
    fn evict(&mut self, rank: Rank, enabled: u64) -> Option<usize> {
        let mut victim: Option<((bool, Rank), usize)> = None;
        for slot in self.slots() {
            let register = self.hw.read_lr(slot);
            let own = Self::rank(register.group1(), register.priority(), enabled);
            let key = (register.active(), own);
            // One that can't be signalled yet is worth no trap at the end of an active one.
            let gives_way = register.active() && rank < DISABLED || own > rank;
            if gives_way && victim.is_none_or(|(worst, _)| key > worst) {
                victim = Some((key, slot));
            }
        }
        let (_, slot) = victim?;
        self.settle(slot, Release::Whole);
        (self.own.claimed >> slot & 1 == 0).then_some(slot)
    }

    /// Gives those active outside list registers of their own again, while there are free ones.
    pub(super) fn take_back_active(&mut self) {
        self.forget_inactive();
        while let Some((priority, intid)) = self.own.outside.most_urgent() {
            let Some(slot) = self.free_slot() else { return };
            self.own.outside.remove(intid);
            self.take_back(slot, intid, priority);
        }
    }

    fn take_back(&mut self, slot: usize, intid: u32, priority: u8) {
        let vcpu = self.own.vcpu;
        let Some(word) = self.word(intid) else { return };
        let claimed = Vgic::change(word, |old| {
            let is_own = old.has(Word::ACT) && !old.has(Word::CLAIMED) && old.owner() == vcpu;
            let new = old.without(Word::ACT | Word::P);
            is_own.then(|| new.with(Word::CLAIMED | Word::A))
        });
        let Ok((_, new)) = claimed else { return };
        let left = new.has(Word::LATCH);
        let physical = new.has(Word::HW) && !left;
        let settled = Settled {
            word: new,
            pending: false,
            active: true,
            latched: false,
            eoi: !physical && (!new.has(Word::EDGE) || left),
            physical,
            active_at: Some(priority),
            ends_physical: false,
        };
        self.write_lr(slot, intid, &settled);
        if left {
            self.settle(slot, Release::IfNeeded);
        }
    }

    /// Takes those from outside that aren't active any more.
    fn forget_inactive(&mut self) {
        let mut from = 0;
        while let Some(intid) = self.own.outside.next(from) {
            from = intid + 1;
            let word = self
                .word(intid)
                .map(|word| Word(word.load(Ordering::Acquire)));
            let is_active = |word: Word| word.has(Word::ACT) && word.owner() == self.own.vcpu;
            if !word.is_some_and(is_active) {
                self.own.outside.remove(intid);
            }
        }
    }

    /// The maintenance interrupts and traps that those outside need.
    pub(super) fn outside_hcr(&self) -> u64 {
        match (self.own.outside.is_empty(), self.hw.can_trap_deactivation()) {
            (true, _) => 0,
            (false, true) => hcr::LRENPIE | hcr::TDIR,
            (false, false) => hcr::LRENPIE,
        }
    }

    /// Deactivates as many of those outside as hardware has counted (rule V11): outside as they were at entry, the most urgent
    /// first. One that another vCPU has deactivated meanwhile was counted too.
    #[inline(never)]
    pub(super) fn serve_eoi_count(&mut self) {
        let count = self.hw.read_hcr() >> hcr::EOI_COUNT_SHIFT & hcr::EOI_COUNT_MASK;
        if count == 0 {
            return;
        }
        // Which starts to count anew.
        self.hw.write_hcr(self.own.hcr);
        if self.hw.can_trap_deactivation() && self.hw.read_vmcr() & vmcr::VEOIM != 0 {
            // DIR traps, and EOIR deactivates nothing. QEMU 10 counts it all the same.
            return;
        }
        for _ in 0..count {
            match self.own.outside.most_urgent() {
                Some((priority, intid)) if priority != BY_HAND => {
                    self.own.outside.remove(intid);
                    self.end_outside(intid);
                }
                // The guest ends what it hasn't acknowledged.
                _ => return,
            }
        }
    }

    /// The guest has deactivated one that was active outside.
    fn end_outside(&mut self, intid: u32) {
        let vcpu = self.own.vcpu;
        let changed = self.change(vcpu, intid, |old| {
            let is_own = old.has(Word::ACT) && !old.has(Word::CLAIMED) && old.owner() == vcpu;
            let new = old.without(Word::ACT);
            is_own.then(|| {
                if new.is_traceless() {
                    new.without(Word::HW)
                } else {
                    new
                }
            })
        });
        if changed.is_some_and(|(old, new)| old.has(Word::HW) && !new.has(Word::HW)) {
            self.end_physical(intid);
        }
    }
}
