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

/// Whether the A64 instruction `word` fetches a cache line to write even when it reads (Arm ARM C4.1, "Loads and Stores"):
/// those that read and write at once, and exclusive loads, whose store comes soon. A change of a word so costs one move,
/// whichever way it is made.
pub fn fetches_to_write(word: u32) -> bool {
    let is = |mask: u32, value: u32| word & mask == value;
    // LDADD and its like, SWP; but LDAPR, which only loads, is among them.
    let is_operation = is(0x3b20_0c00, 0x3820_0000) && !is(0x3f3f_fc00, 0x383f_c000);
    let is_compare_and_swap = is(0x3fa0_7c00, 0x08a0_7c00) || is(0xbfa0_7c00, 0x0820_7c00);
    let is_exclusive_load = is(0x3fc0_0000, 0x0840_0000);
    is_operation || is_compare_and_swap || is_exclusive_load
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

    #[test]
    fn changes_of_memory_are_told_from_loads_and_stores() {
        let changes = [
            ("ldadd x0, x1, [x2]", 0xf820_0041),
            ("ldaddal w0, w1, [x2]", 0xb8e0_0041),
            ("swpal x0, x1, [x2]", 0xf8e0_8041),
            ("swpab w0, w1, [x2]", 0x38a0_8041),
            ("stadd x0, [x2]", 0xf820_005f),
            ("cas x0, x1, [x2]", 0xc8a0_7c41),
            ("casalb w0, w1, [x2]", 0x08e0_fc41),
            ("casp x0, x1, x2, x3, [x4]", 0x4820_7c82),
            ("caspal w0, w1, w2, w3, [x4]", 0x0860_fc82),
            ("ldxr x0, [x1]", 0xc85f_7c20),
            ("ldaxr x0, [x1]", 0xc85f_fc20),
            ("ldxp x0, x1, [x2]", 0xc87f_0440),
        ];
        for (text, word) in changes {
            assert!(fetches_to_write(word), "{text}");
        }
        let others = [
            ("ldapr x0, [x2]", 0xf8bf_c040),
            ("ldaprb w0, [x2]", 0x38bf_c040),
            ("ldr x0, [x1, x2]", 0xf862_6820),
            ("str x0, [x1, x2]", 0xf822_6820),
            ("ldp x0, x1, [x2]", 0xa940_0440),
            ("stxr w3, x0, [x1]", 0xc803_7c20),
            ("ldar x0, [x1]", 0xc8df_fc20),
            ("stlr x0, [x1]", 0xc89f_fc20),
            ("stxp w3, x0, x1, [x2]", 0xc823_0440),
            ("ldraa x0, [x1]", 0xf820_0420),
            ("ldr q0, [x1, x2]", 0x3ce2_6820),
        ];
        for (text, word) in others {
            assert!(!fetches_to_write(word), "{text}");
        }
    }
}
