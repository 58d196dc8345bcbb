//! SGIs that a guest sends by system register, or by GICD_SGIR (rule V8): the target's door latches them.

pub(crate) mod sources;

use crate::config::SgiRegister;
use crate::sync::Ordering;
use crate::vgic::{SharedVcpu, Vgic};
use crate::word::Word;

/// Sends an SGI from a vCPU.
#[inline]
pub(crate) fn send(
    vgic: &Vgic,
    own: usize,
    register: SgiRegister,
    value: u64,
    mut kick: impl FnMut(usize),
) {
    let intid = (value >> 24 & 15) as u32;
    let mut ring = |index: usize, target: &SharedVcpu| {
        // ICC_SGI0R_EL1 and ICC_ASGI1R_EL1 send those of group 0 only, as there is one security state.
        if register != SgiRegister::Sgi1 {
            let word = vgic.word(index, intid);
            // What a group is changed to meanwhile may or may not be seen.
            if word.is_none_or(|word| Word(word.load(Ordering::Relaxed)).has(Word::GROUP1)) {
                return;
            }
        }
        if index == own {
            target.door.ring(1 << intid, &mut |_| {});
        } else {
            target.door.ring(1 << intid, &mut kick);
        }
    };
    if value >> 40 & 1 != 0 {
        // IRM: all but the sender.
        let all = vgic.vcpus.iter().enumerate();
        all.filter(|(index, _)| *index != own)
            .for_each(|(index, target)| ring(index, target));
        return;
    }
    let range = (value >> 44 & 15) as u32;
    let cluster = (value >> 16 & 0xff) as u32 | ((value >> 32 & 0xff) as u32) << 8;
    if value >> 48 & 0xff != 0 {
        return;
    }
    let first = cluster << 8 | range << 4;
    let mut list = value & 0xffff;
    while list != 0 {
        let affinity = first + list.trailing_zeros();
        list &= list - 1;
        if let Some(index) = vgic.vcpu_of(affinity)
            && let Some(target) = vgic.vcpus.get(index)
        {
            ring(index, target);
        }
    }
}

/// Sends an SGI of a GICv2, from a vCPU (GICD_SGIR).
pub(crate) fn send_v2(vgic: &Vgic, own: usize, value: u64, kick: &mut impl FnMut(usize)) {
    let intid = (value & 15) as u32;
    let all = (1_u64 << vgic.vcpus.len()) - 1;
    let mut targets = match value >> 24 & 3 {
        0 => value >> 16 & 0xff & all,
        1 => all & !(1 << own),
        2 => 1 << own,
        _ => return,
    };
    while targets != 0 {
        let target = targets.trailing_zeros() as usize;
        targets &= targets - 1;
        if target == own {
            raise_v2(vgic, target, intid, 1 << own, &mut |_| {});
        } else {
            raise_v2(vgic, target, intid, 1 << own, kick);
        }
    }
}

/// Makes an SGI of a GICv2 pending at a vCPU, from these sources.
pub(crate) fn raise_v2(
    vgic: &Vgic,
    target: usize,
    intid: u32,
    sources: u8,
    kick: &mut impl FnMut(usize),
) {
    let Some(target) = vgic.vcpus.get(target) else {
        return;
    };
    // Before the door, which is rung with Release: whoever takes the door's bit finds the sources.
    target.sources.add(intid, sources);
    target.door.ring(1 << intid, kick);
}
