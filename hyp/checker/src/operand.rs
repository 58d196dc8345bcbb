//! Decodes the operand of a TLB maintenance instruction into its scope (Arm ARM C5.5).

use crate::geometry::{Format, Geometry, Granule};
use crate::input::Tlbi;
use crate::regime::Vtcr;
use core::ops::Range;

/// What an instruction is sure to drop from the TLBs that it acts on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    /// Nothing of stage 2.
    Nothing,
    /// Stage-2 entries that translate an address in the range.
    Stage2 {
        /// The addresses.
        range: Range<u64>,
        /// Leaves only: cached tables stay.
        last_level: bool,
        /// Leaves of this level only, and tables above it.
        level: Option<u32>,
    },
    /// Combined entries: of the whole VMID, or of the page at this virtual address.
    Combined(Option<u64>),
    /// Everything of the VMID.
    Everything,
}

/// The scope of `operation` in a tree of this geometry, issued by a CPU with this VTCR_EL2. An operand is valid only if
/// VTCR_EL2 is the tree's.
pub(crate) fn scope(operation: Tlbi, geometry: &Geometry, vtcr: Vtcr) -> Scope {
    match encoded(operation, geometry) {
        Scope::Stage2 { .. } if !vtcr.fits(geometry) => Scope::Nothing,
        scope => scope,
    }
}

fn encoded(operation: Tlbi, geometry: &Geometry) -> Scope {
    match operation {
        Tlbi::Ipas2e1is(operand) | Tlbi::Ipas2e1(operand) => by_address(operand, false, geometry),
        Tlbi::Ipas2le1is(operand) | Tlbi::Ipas2le1(operand) => by_address(operand, true, geometry),
        Tlbi::Ripas2e1is(operand) => by_range(operand, false, geometry),
        Tlbi::Ripas2le1is(operand) => by_range(operand, true, geometry),
        Tlbi::Vmalle1is | Tlbi::Vmalle1 => Scope::Combined(None),
        Tlbi::Vaae1(operand) => Scope::Combined(Some((operand & ((1 << 44) - 1)) << 12)),
        Tlbi::Vmalls12e1is | Tlbi::Vmalls12e1 | Tlbi::Alle1is => Scope::Everything,
        Tlbi::Vae2is(_) | Tlbi::Alle2is => Scope::Nothing,
    }
}

/// TTL in bits 47 to 44, IPA[51:12] in bits 39 to 0.
fn by_address(operand: u64, last_level: bool, geometry: &Geometry) -> Scope {
    let hint = operand >> 44 & 0xf;
    let level = match (hint >> 2, (hint & 3) as u32) {
        (0, _) => None,
        // A hint for another granule finds nothing.
        (granule, _) if granule != geometry.granule.field() => return Scope::Nothing,
        // Reserved without 52-bit descriptors, and taken for no hint: level 0 of 4K, level 1 of 16K. Level 0 of the
        // others always is.
        (1, 0) | (2, 1) if geometry.format != Format::Lpa2 => None,
        (2 | 3, 0) => None,
        (_, level) => Some(level),
    };
    let page = 1 << geometry.granule.page_shift();
    let ipa = ((operand & ((1 << 40) - 1)) << 12) & !(page - 1);
    Scope::Stage2 {
        range: ipa..ipa + page,
        last_level,
        level,
    }
}

/// TG in bits 47 and 46, SCALE in 45 and 44, NUM in 43 to 39, TTL in 38 and 37, BaseADDR in 36 to 0: in pages, but in
/// units of 64 KiB with VTCR_EL2.DS.
fn by_range(operand: u64, last_level: bool, geometry: &Geometry) -> Scope {
    if operand >> 46 & 3 != geometry.granule.field() {
        return Scope::Nothing;
    }
    let page_shift = geometry.granule.page_shift();
    let base_shift = match geometry.format {
        Format::Lpa2 => 16,
        Format::Narrow | Format::Lpa64K => page_shift,
    };
    let scale = operand >> 44 & 3;
    let num = operand >> 39 & 0x1f;
    let first = (operand & ((1 << 37) - 1)) << base_shift;
    let bytes = ((num + 1) << (5 * scale + 1)) << page_shift;
    let level = match (operand >> 37 & 3) as u32 {
        0 => None,
        // Reserved without 52-bit descriptors.
        1 if geometry.granule == Granule::Size16K && geometry.format != Format::Lpa2 => None,
        level => Some(level),
    };
    // Which addresses are meant is unpredictable if a hinted level's block doesn't start there.
    if level.is_some_and(|level| first & (geometry.span(level) - 1) != 0) {
        return Scope::Nothing;
    }
    Scope::Stage2 {
        range: first..first + bytes,
        last_level,
        level,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage2(range: Range<u64>, last_level: bool, level: Option<u32>) -> Scope {
        Scope::Stage2 {
            range,
            last_level,
            level,
        }
    }

    #[test]
    fn an_operand_by_address_carries_a_page_and_perhaps_a_level() {
        let narrow = Geometry::new(Granule::Size4K, Format::Narrow, 1, 1);
        let wide = Geometry::new(Granule::Size4K, Format::Lpa2, 0, 1);
        let ipa = 0x8_0123_4567_8000;
        let at = |hint: u64| hint << 44 | ipa >> 12;
        let page = ipa..ipa + 0x1000;
        for (geometry, hint, level) in [
            (&narrow, 0b0000, None),
            (&narrow, 0b0011, None),
            (&narrow, 0b0111, Some(3)),
            (&narrow, 0b0110, Some(2)),
            (&narrow, 0b0100, None),
            (&wide, 0b0100, Some(0)),
        ] {
            assert_eq!(
                encoded(Tlbi::Ipas2le1is(at(hint)), geometry),
                stage2(page.clone(), true, level),
                "{hint:#b}"
            );
        }
        assert_eq!(
            encoded(Tlbi::Ipas2e1is(at(0b1011)), &narrow),
            Scope::Nothing
        );
        let large = Geometry::new(Granule::Size64K, Format::Narrow, 1, 1);
        assert_eq!(
            encoded(Tlbi::Ipas2e1(0x12_345f), &large),
            stage2(0x1_2345_0000..0x1_2346_0000, false, None)
        );
    }

    #[test]
    fn an_operand_by_range_multiplies_out() {
        let narrow = Geometry::new(Granule::Size4K, Format::Narrow, 1, 1);
        // 4K, scale 1, num 7: 8 << 6 pages from 2 MiB on.
        let operand = 1 << 46 | 1 << 44 | 7 << 39 | 0x200;
        assert_eq!(
            encoded(Tlbi::Ripas2e1is(operand), &narrow),
            stage2(0x20_0000..0x40_0000, false, None)
        );
        assert_eq!(
            encoded(Tlbi::Ripas2le1is(operand | 2 << 37), &narrow),
            stage2(0x20_0000..0x40_0000, true, Some(2))
        );
        // A level 1 block can't begin at 2 MiB.
        assert_eq!(
            encoded(Tlbi::Ripas2le1is(operand | 1 << 37), &narrow),
            Scope::Nothing
        );
        assert_eq!(
            encoded(Tlbi::Ripas2e1is(operand ^ 3 << 46), &narrow),
            Scope::Nothing
        );
        let wide = Geometry::new(Granule::Size16K, Format::Lpa2, 1, 1);
        let operand = 2 << 46 | 3;
        assert_eq!(
            encoded(Tlbi::Ripas2e1is(operand), &wide),
            stage2(0x3_0000..0x3_8000, false, None)
        );
    }

    #[test]
    fn el2_stage_1_maintenance_reaches_nothing() {
        let narrow = Geometry::new(Granule::Size4K, Format::Narrow, 1, 1);
        assert_eq!(encoded(Tlbi::Vae2is(0), &narrow), Scope::Nothing);
        assert_eq!(encoded(Tlbi::Alle2is, &narrow), Scope::Nothing);
    }

    #[test]
    fn operands_mean_nothing_in_another_regime() {
        let wide = Geometry::new(Granule::Size4K, Format::Lpa2, 0, 1);
        let (own, boot) = (Vtcr(1 << 32 | 1 << 31), Vtcr(1 << 31));
        for operation in [Tlbi::Ipas2e1is(0), Tlbi::Ripas2le1is(1 << 46)] {
            assert_ne!(scope(operation, &wide, own), Scope::Nothing);
            assert_eq!(scope(operation, &wide, boot), Scope::Nothing);
        }
        assert_eq!(scope(Tlbi::Vmalls12e1is, &wide, boot), Scope::Everything);
    }
}
