//! The registers that select a CPU's stage-2 regime: VTTBR_EL2 and VTCR_EL2 (Arm ARM D23.2.216, D23.2.217).
//!
//! A write to a register takes effect with the next context synchronisation event. Until then an instruction may use either
//! value, of each register on its own (D8.2, synchronisation of System registers).

use crate::geometry::{Format, Geometry, Granule};
use alloc::vec::Vec;

/// The values that a register may have, oldest first: the one at the last context synchronisation event, and those written
/// since.
#[derive(Clone, Debug)]
struct Register(Vec<u64>);

impl Register {
    fn new(value: u64) -> Self {
        Self(Vec::from([value]))
    }

    fn written(&self) -> u64 {
        self.0.last().copied().unwrap_or(0)
    }

    fn synchronise(&mut self) {
        let last = self.written();
        self.0.clear();
        self.0.push(last);
    }
}

/// One CPU's registers.
#[derive(Clone, Debug)]
pub(crate) struct Registers {
    vttbr: Register,
    vtcr: Register,
}

impl Registers {
    /// As a CPU has them before anybody writes them: nothing but VTCR_EL2's RES1 bit.
    pub(crate) fn new() -> Self {
        Self {
            vttbr: Register::new(0),
            vtcr: Register::new(1 << 31),
        }
    }

    pub(crate) fn write_vttbr(&mut self, value: u64) {
        self.vttbr.0.push(value);
    }

    pub(crate) fn write_vtcr(&mut self, value: u64) {
        self.vtcr.0.push(value);
    }

    /// A context synchronisation event: writes take effect. Returns the roots that may have been in effect until now.
    pub(crate) fn synchronise(&mut self) -> Vec<u64> {
        let before = self.vttbr.0.iter().map(|value| root_of(*value)).collect();
        self.vttbr.synchronise();
        self.vtcr.synchronise();
        before
    }

    /// The regime of the CPU once its writes have taken effect.
    pub(crate) fn written(&self) -> Regime {
        Regime {
            vttbr: self.vttbr.written(),
            vtcr: Vtcr(self.vtcr.written()),
        }
    }

    /// Every regime that the CPU may be in.
    pub(crate) fn possible(&self) -> impl Iterator<Item = Regime> {
        let vttbrs = self.vttbr.0.iter();
        vttbrs.flat_map(|&vttbr| {
            let vtcrs = self.vtcr.0.iter();
            vtcrs.map(move |&vtcr| Regime {
                vttbr,
                vtcr: Vtcr(vtcr),
            })
        })
    }

    /// Whether the CPU may have a tree loaded.
    pub(crate) fn may_have(&self, root: u64) -> bool {
        self.vttbr.0.iter().any(|value| root_of(*value) == root)
    }
}

/// What one pair of values means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Regime {
    pub(crate) vttbr: u64,
    pub(crate) vtcr: Vtcr,
}

impl Regime {
    pub(crate) fn root(self) -> u64 {
        root_of(self.vttbr)
    }

    /// The VMID, as entries are tagged and matched: of 8 bits where VS is clear, whatever VTTBR_EL2 holds above.
    pub(crate) fn vmid(self) -> u16 {
        let vmid = (self.vttbr >> 48) as u16;
        if self.vtcr.wide_vmids() {
            vmid
        } else {
            vmid & 0xff
        }
    }
}

/// VTCR_EL2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Vtcr(pub(crate) u64);

impl Vtcr {
    /// VS: VMIDs of 16 bits.
    const fn wide_vmids(self) -> bool {
        self.0 >> 19 & 1 != 0
    }

    /// TG0. One encoding is reserved.
    const fn granule(self) -> Option<Granule> {
        match self.0 >> 14 & 0b11 {
            0b00 => Some(Granule::Size4K),
            0b01 => Some(Granule::Size64K),
            0b10 => Some(Granule::Size16K),
            _ => None,
        }
    }

    /// Whether walks and operands under this register are those of a tree: its granule (TG0) and its descriptors' addresses
    /// (DS).
    pub(crate) fn fits(self, geometry: &Geometry) -> bool {
        let ds = self.0 >> 32 & 1 != 0;
        self.granule() == Some(geometry.granule) && ds == (geometry.format == Format::Lpa2)
    }
}

/// VTTBR_EL2.BADDR: bits 47 to 1, with bits 51 to 48 of the address in 5 to 2 where roots are aligned enough.
pub(crate) fn root_of(vttbr: u64) -> u64 {
    const ADDRESS: u64 = 0x0000_ffff_ffff_ffc0;
    vttbr & ADDRESS | (vttbr >> 2 & 0xf) << 48
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const VS: u64 = 1 << 19;

    #[test]
    fn the_upper_half_of_a_vmid_counts_where_vtcr_says_so() {
        let vmid = |vtcr| {
            let vttbr = 0x107 << 48 | 0x10_0000;
            let vtcr = Vtcr(vtcr);
            Regime { vttbr, vtcr }.vmid()
        };
        assert_eq!((vmid(1 << 31), vmid(VS)), (7, 0x107));
    }

    #[test]
    fn what_was_written_is_in_effect_after_a_synchronisation() {
        let mut registers = Registers::new();
        registers.write_vttbr(0x1000);
        registers.write_vtcr(VS);
        let possible = |registers: &Registers| {
            let found = registers.possible();
            found.map(|found| (found.vttbr, found.vtcr.0)).collect()
        };
        let before: Vec<(u64, u64)> = possible(&registers);
        let first = 1 << 31;
        assert_eq!(before, [(0, first), (0, VS), (0x1000, first), (0x1000, VS)]);
        assert!(registers.may_have(0) && registers.may_have(0x1000));
        assert_eq!(registers.synchronise(), [0, 0x1000]);
        let after: Vec<(u64, u64)> = possible(&registers);
        assert_eq!(after, vec![(0x1000, VS)]);
    }

    #[test]
    fn granule_and_address_format_make_a_regime_fit() {
        let wide = Geometry::new(Granule::Size16K, Format::Lpa2, 1, 1);
        let vtcr = 1 << 32 | 0b10 << 14;
        assert!(Vtcr(vtcr).fits(&wide));
        for other in [0, 0b10 << 14, 1 << 32, 1 << 32 | 0b11 << 14] {
            assert!(!Vtcr(other).fits(&wide), "{other:#x}");
        }
        let large = Geometry::new(Granule::Size64K, Format::Lpa64K, 1, 1);
        assert!(Vtcr(0b01 << 14).fits(&large));
    }
}
