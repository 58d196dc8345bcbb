//! A vCPU comes to a CPU, leaves it, sleeps (rules V14 and V15).

use super::{Local, Release};
use crate::door::{BLOCKED, CPU_SHIFT, LOOK, ON};
use crate::interface::{ActivePriorities, ListRegister, VirtualInterface, hcr, vmcr};
use crate::sync::Ordering;
use crate::word::{FIRST_PPI, FIRST_SPI, Word};

impl<'a, H: VirtualInterface, K: FnMut(usize)> Local<'a, H, K> {
    /// Loads the vCPU.
    pub(crate) fn load(&mut self, cpu: usize) {
        let Some(door) = self.door() else { return };
        let present = ON | (cpu as u64) << CPU_SHIFT;
        let mut seen = door.word.load(Ordering::Relaxed);
        // On before it looks: whoever rings later kicks. Acquires what was told while it was away.
        while let Err(now) = door.word.compare_exchange(
            seen,
            seen & !(u64::MAX << CPU_SHIFT | BLOCKED) | present,
            Ordering::AcqRel,
            Ordering::Relaxed,
        ) {
            seen = now;
        }
        self.hw.write_vmcr(self.own.vmcr);
        self.hw.write_active_priorities(self.own.active_priorities);
        for slot in 0..self.list_registers() {
            self.hw.write_lr(slot, ListRegister::INVALID);
        }
        self.resume();
    }

    /// Lets the interface work again, with all list registers free.
    fn resume(&mut self) {
        self.own.hcr = hcr::EN;
        self.hw.write_hcr(hcr::EN);
        self.each_physical_private(|hw, physical, active| {
            // Whoever was put here has left none active.
            if active {
                hw.set_active(physical, true);
            }
        });
        self.drain();
        self.fill();
    }

    /// Puts the vCPU.
    pub(crate) fn put(&mut self) {
        self.release();
        if let Some(door) = self.door() {
            // Releases the words, which are the state from now on. Nothing is claimed: nobody waits for this vCPU.
            let absent = ON | u64::MAX << CPU_SHIFT;
            door.word.fetch_and(!absent, Ordering::AcqRel);
        }
    }

    /// Puts the vCPU to sleep, if there is nothing to look at.
    pub(crate) fn block(&mut self) -> bool {
        let Some(door) = self.door() else {
            return false;
        };
        self.release();
        let mut seen = door.word.load(Ordering::Relaxed);
        while seen & LOOK == 0 {
            let asleep = seen & !ON | BLOCKED;
            // Fails where somebody rings, who has found it on; whoever rings later finds it asleep, and wakes it.
            match door
                .word
                .compare_exchange(seen, asleep, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        self.resume();
        false
    }

    /// Gives back what is claimed, and keeps what the registers hold.
    fn release(&mut self) {
        for slot in self.slots() {
            self.settle(slot, Release::Whole);
        }
        self.each_physical_private(|hw, physical, active| {
            if active {
                hw.set_active(physical, false);
            }
        });
        self.own.vmcr = self.hw.read_vmcr();
        self.own.active_priorities = self.hw.read_active_priorities();
        self.own.hcr = 0;
        self.hw.write_hcr(0);
    }

    /// Calls `each` with every physical PPI behind one of this vCPU, and whether it is active on its behalf.
    fn each_physical_private(&mut self, mut each: impl FnMut(&mut H, u32, bool)) {
        let vgic: &'a _ = self.vgic;
        for forwarded in &vgic.forwarded {
            let private = (FIRST_PPI..FIRST_SPI).contains(&forwarded.virtual_id);
            let word = self.word(forwarded.virtual_id).filter(|_| private);
            if let Some(word) = word {
                let active = Word(word.load(Ordering::Relaxed)).has(Word::HW);
                each(self.hw, forwarded.physical_id, active);
            }
        }
    }

    /// Whether an interrupt is pending for the vCPU and not active, in a list register or for want of one.
    pub(crate) fn is_requested(&mut self) -> bool {
        let is_held = self.slots().any(|slot| {
            let register = self.hw.read_lr(slot);
            register.pending() && !register.active()
        });
        if is_held {
            return true;
        }
        let groups = self.vgic.groups();
        let mut from = 0;
        while let Some(intid) = self.own.backlog.next(from) {
            if self.may_claim(intid, groups) {
                return true;
            }
            from = intid + 1;
        }
        false
    }

    /// Whether a pending list register is signalled to the guest: its group is enabled, and it passes the priority mask and what
    /// is running (IHI 0069, 4.8).
    pub(crate) fn is_signalled(&self) -> bool {
        let control = self.hw.read_vmcr();
        let running = running_priority(self.hw.read_active_priorities(), self.hw.preemption_bits());
        let mask = (control >> vmcr::VPMR_SHIFT) as u8;
        self.slots().any(|slot| {
            let register = self.hw.read_lr(slot);
            let enable = if register.group1() {
                vmcr::VENG1
            } else {
                vmcr::VENG0
            };
            let priority = register.priority();
            register.pending()
                && !register.active()
                && control & enable != 0
                && priority < mask
                && running.is_none_or(|running| {
                    u32::from(priority & group_mask(control, register.group1())) < running
                })
        })
    }
}

/// The bits of a priority that count for preemption.
fn group_mask(control: u64, group1: bool) -> u8 {
    let point0 = control >> vmcr::VBPR0_SHIFT & 7;
    let point1 = control >> vmcr::VBPR1_SHIFT & 7;
    let ignored = if group1 && control & vmcr::VCBPR == 0 {
        point1
    } else {
        point0 + 1
    };
    (0xff_u32 << ignored) as u8
}

/// The priority of the most urgent active interrupt.
fn running_priority(active: ActivePriorities, bits: u32) -> Option<u32> {
    let mut levels = active
        .group0
        .iter()
        .zip(active.group1)
        .map(|(one, other)| one | other);
    let index = levels.clone().position(|level| level != 0)?;
    let bit = levels.nth(index)?.trailing_zeros();
    Some((index as u32 * 32 + bit) << (8_u32.saturating_sub(bits)))
}
