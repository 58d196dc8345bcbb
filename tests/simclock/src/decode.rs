//! What an instruction does that costs more than a nanosecond. Pure.

/// Whom a TLB invalidation reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// The CPU that executes it.
    Local,
    /// All CPUs.
    Broadcast,
}

/// The scope of a TLB invalidation, if the A64 instruction `word` is one (Arm ARM C5.1.3 and C5.3, "TLB maintenance").
///
/// They are `SYS` with CRn 8, or 9 for those that don't wait for speculative accesses (nXS). Of CRm, 0 to 3 and 5 stand for
/// the inner and the outer shareable domain, 6 and 7 for this CPU. By IPA (op1 4), CRm 0 is inner shareable, and 4 holds
/// all three scopes by op2: 0 and 4 outer shareable, 1 and 5 local, 3 and 7 outer shareable by range, 2 and 6 local by
/// range.
pub fn tlb_invalidation(word: u32) -> Option<Scope> {
    const SYS: u32 = 0xd508_0000;
    const SYS_MASK: u32 = 0xfff8_0000;
    let field = |shift: u32, bits: u32| word >> shift & ((1 << bits) - 1);
    let (operation, register, kind, form) = (field(16, 3), field(12, 4), field(8, 4), field(5, 3));
    if word & SYS_MASK != SYS || !matches!(register, 8 | 9) {
        return None;
    }
    Some(match (kind, operation, form) {
        (0..=3 | 5, _, _) => Scope::Broadcast,
        (4, 4, 0 | 3 | 4 | 7) => Scope::Broadcast,
        _ => Scope::Local,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `llvm-mc -triple=aarch64 -mattr=+v8.7a,+tlb-rmi,+xs -show-encoding` writes them.
    const ENCODINGS: [(&str, u32, Option<Scope>); 17] = [
        ("tlbi vmalle1", 0xd508_871f, Some(Scope::Local)),
        ("tlbi vmalle1is", 0xd508_831f, Some(Scope::Broadcast)),
        ("tlbi vmalle1os", 0xd508_811f, Some(Scope::Broadcast)),
        ("tlbi vae1is, x0", 0xd508_8320, Some(Scope::Broadcast)),
        ("tlbi vae2, x0", 0xd50c_8720, Some(Scope::Local)),
        ("tlbi vae2is, x0", 0xd50c_8320, Some(Scope::Broadcast)),
        ("tlbi rvae1, x0", 0xd508_8620, Some(Scope::Local)),
        ("tlbi rvae1is, x0", 0xd508_8220, Some(Scope::Broadcast)),
        ("tlbi rvae1os, x0", 0xd508_8520, Some(Scope::Broadcast)),
        ("tlbi ipas2e1, x0", 0xd50c_8420, Some(Scope::Local)),
        ("tlbi ipas2e1is, x0", 0xd50c_8020, Some(Scope::Broadcast)),
        ("tlbi ipas2e1os, x0", 0xd50c_8400, Some(Scope::Broadcast)),
        ("tlbi ripas2e1, x0", 0xd50c_8440, Some(Scope::Local)),
        ("tlbi ripas2e1os, x0", 0xd50c_8460, Some(Scope::Broadcast)),
        ("tlbi vmalle1isnxs", 0xd508_931f, Some(Scope::Broadcast)),
        ("dc civac, x0", 0xd50b_7e20, None),
        ("at s1e1r, x0", 0xd508_7800, None),
    ];

    #[test]
    fn every_kind_of_tlb_invalidation_has_its_scope() {
        for (text, word, scope) in ENCODINGS {
            assert_eq!(tlb_invalidation(word), scope, "{text}");
        }
    }

    #[test]
    fn other_instructions_are_none() {
        // add x0, x0, #1; dsb ish; msr vttbr_el2, x0; mrs x0, cntvct_el0
        for word in [0x9100_0400, 0xd503_3b9f, 0xd51c_2100, 0xd53b_e040] {
            assert_eq!(tlb_invalidation(word), None, "{word:#x}");
        }
    }
}
