//! The shape of the top of a stage-2 tree: IPA size, starting level, concatenated tables (Arm ARM D8.2.1, VTCR_EL2).

use crate::address::{Level, PAGE_SIZE, STRIDE, TABLE_ENTRIES};

/// Most tables that a root may concatenate (Arm ARM D8.2.1).
const MAX_CONCATENATED: usize = 16;

/// How many IPA bits a VM has, and what its root looks like for that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootShape {
    ipa_bits: u32,
    level: Level,
    tables: usize,
}

/// The IPA size isn't one that Parvisor offers, or that the CPU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadIpaSize {
    /// What was asked for.
    pub bits: u32,
    /// The most that is possible here.
    pub most: u32,
}

impl core::fmt::Display for BadIpaSize {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "an IPA size of {} bits is not possible here: 32 to {}",
            self.bits, self.most
        )
    }
}

impl core::error::Error for BadIpaSize {}

impl RootShape {
    /// The root with the fewest levels for `ipa_bits` (32 to 48, at most `pa_bits`, the CPU's PARange). Concatenating up to
    /// 16 tables saves a level.
    pub fn new(ipa_bits: u32, pa_bits: u32) -> Result<Self, BadIpaSize> {
        let most = pa_bits.min(48);
        if !(32..=most).contains(&ipa_bits) {
            return Err(BadIpaSize {
                bits: ipa_bits,
                most,
            });
        }
        Ok(Self::starting_at_best(ipa_bits))
    }

    /// The model checker's trees: two levels, the root one table at level 2.
    #[cfg(loom)]
    pub fn small() -> Self {
        Self::starting_at_best(Level::L2.shift() + STRIDE)
    }

    fn starting_at_best(ipa_bits: u32) -> Self {
        let mut level = Level::L2;
        loop {
            let tables = 1usize << ipa_bits.saturating_sub(level.shift() + STRIDE);
            match level.above() {
                Some(above) if tables > MAX_CONCATENATED => level = above,
                _ => {
                    return Self {
                        ipa_bits,
                        level,
                        tables,
                    };
                }
            }
        }
    }

    /// The IPA space's size in bits.
    pub const fn ipa_bits(self) -> u32 {
        self.ipa_bits
    }

    /// The first level that is looked up.
    pub const fn level(self) -> Level {
        self.level
    }

    /// Frames of the root: concatenated tables, a power of two, to be allocated in one run aligned to its size.
    pub const fn frames(self) -> usize {
        self.tables
    }

    /// The root's size and alignment in bytes.
    pub const fn bytes(self) -> u64 {
        self.tables as u64 * PAGE_SIZE
    }

    /// Entries of the root that addresses of this IPA size can reach.
    pub const fn entries(self) -> usize {
        let reachable = 1usize << (self.ipa_bits - self.level.shift());
        let present = self.tables * TABLE_ENTRIES;
        if reachable < present {
            reachable
        } else {
            present
        }
    }

    /// VTCR_EL2 for this shape (Arm ARM D23.2.216): 4 KiB granule, walks inner shareable and write-back, `pa_range` as in
    /// ID_AA64MMFR0_EL1.PARange (at most 0b0101, 48 bits), 16-bit VMIDs if the CPU has them.
    pub const fn vtcr(self, pa_range: u64, vmid_bits: u32) -> u64 {
        const RES1: u64 = 1 << 31;
        const WALKS: u64 = 0b01 << 8 | 0b01 << 10 | 0b11 << 12;
        let t0sz = 64 - self.ipa_bits as u64;
        // SL0 for the 4 KiB granule: 0 starts at level 2, 1 at level 1, 2 at level 0.
        let sl0 = 2 - self.level as u64;
        let pa_size = if pa_range > 5 { 5 } else { pa_range };
        let vs = (vmid_bits == 16) as u64;
        RES1 | t0sz | sl0 << 6 | WALKS | pa_size << 16 | vs << 19
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn roots_start_as_low_as_sixteen_tables_allow() {
        let shape = |bits| RootShape::new(bits, 52).map(|s| (s.level(), s.frames()));
        assert_eq!(shape(32), Ok((Level::L2, 4)));
        assert_eq!(shape(34), Ok((Level::L2, 16)));
        assert_eq!(shape(35), Ok((Level::L1, 1)));
        assert_eq!(shape(39), Ok((Level::L1, 1)));
        assert_eq!(shape(40), Ok((Level::L1, 2)));
        assert_eq!(shape(43), Ok((Level::L1, 16)));
        assert_eq!(shape(44), Ok((Level::L0, 1)));
        assert_eq!(shape(48), Ok((Level::L0, 1)));
    }

    #[test]
    fn sizes_that_the_cpu_lacks_are_refused() {
        assert_eq!(
            RootShape::new(48, 40),
            Err(BadIpaSize { bits: 48, most: 40 })
        );
        assert_eq!(
            RootShape::new(31, 48),
            Err(BadIpaSize { bits: 31, most: 48 })
        );
        assert!(RootShape::new(49, 52).is_err());
    }

    #[test]
    fn vtcr_matches_the_shape() {
        let shape = RootShape::new(40, 40).unwrap();
        assert_eq!(shape.vtcr(2, 8), 0x8002_3558);
        assert_eq!(RootShape::new(48, 52).unwrap().vtcr(6, 16), 0x800d_3590);
    }

    #[test]
    fn only_reachable_entries_count() {
        assert_eq!(RootShape::new(40, 40).unwrap().entries(), 1024);
        assert_eq!(RootShape::new(36, 40).unwrap().entries(), 64);
        assert_eq!(RootShape::new(48, 48).unwrap().entries(), 512);
    }
}
