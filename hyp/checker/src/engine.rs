//! Translates the `stage2` crate's reports into the checker's own types. Only the names meet here; each side works out their
//! meaning independently.

use crate::geometry::{Bbm, Format, Geometry, Granule};
use crate::input::{Barrier, Tlbi};
use stage2::{Layout, Level};

impl From<&Layout> for Geometry {
    fn from(layout: &Layout) -> Self {
        let granule = match layout.features().granule {
            stage2::Granule::Size4K => Granule::Size4K,
            stage2::Granule::Size16K => Granule::Size16K,
            stage2::Granule::Size64K => Granule::Size64K,
        };
        let format = match layout.format() {
            stage2::Format::Narrow => Format::Narrow,
            stage2::Format::Lpa2 => Format::Lpa2,
            stage2::Format::Lpa64K => Format::Lpa64K,
        };
        let bbm = match layout.features().bbm {
            stage2::Bbm::Level0 => Bbm::Level0,
            stage2::Bbm::Level1 => Bbm::Level1,
            stage2::Bbm::Level2 => Bbm::Level2,
        };
        let start = layout.start() as u32;
        let full = Self::new(granule, format, start, layout.root_tables()).with_bbm(bbm);
        if 1 << full.stride == layout.table_entries() {
            return full;
        }
        // A tree for model checking.
        Self {
            stride: layout.table_entries().ilog2(),
            groups: Level::ALL.map(|level| layout.group(level).unwrap_or(1)),
            ..full
        }
    }
}

impl From<stage2::Tlbi> for Tlbi {
    fn from(operation: stage2::Tlbi) -> Self {
        match operation {
            stage2::Tlbi::Ipas2e1is(operand) => Self::Ipas2e1is(operand),
            stage2::Tlbi::Ipas2le1is(operand) => Self::Ipas2le1is(operand),
            stage2::Tlbi::Ripas2e1is(operand) => Self::Ripas2e1is(operand),
            stage2::Tlbi::Ripas2le1is(operand) => Self::Ripas2le1is(operand),
            stage2::Tlbi::Ipas2le1(operand) => Self::Ipas2le1(operand),
            stage2::Tlbi::Vmalle1is => Self::Vmalle1is,
            stage2::Tlbi::Vmalle1 => Self::Vmalle1,
            stage2::Tlbi::Vaae1(operand) => Self::Vaae1(operand),
            stage2::Tlbi::Vmalls12e1is => Self::Vmalls12e1is,
            stage2::Tlbi::Alle1is => Self::Alle1is,
        }
    }
}

impl From<stage2::Barrier> for Barrier {
    fn from(barrier: stage2::Barrier) -> Self {
        match barrier {
            stage2::Barrier::DsbIshst => Self::DsbIshst,
            stage2::Barrier::DsbIsh => Self::DsbIsh,
            stage2::Barrier::DsbNshst => Self::DsbNshst,
            stage2::Barrier::DsbNsh => Self::DsbNsh,
            stage2::Barrier::Isb => Self::Isb,
        }
    }
}
