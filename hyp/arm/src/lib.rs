//! Plain values of the architecture, without registers: what crates that know nothing of each other have in common.

#![cfg_attr(not(test), no_std)]

/// The width of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
    /// 64 bits.
    Double,
}

impl Width {
    /// All widths.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Half, Self::Word, Self::Double];

    /// Its length in bytes.
    pub const fn bytes(self) -> u64 {
        // They are declared in this order: no table is read.
        1 << self as u8
    }

    /// The bits of `value` that an access of this width transfers.
    pub const fn of(self, value: u64) -> u64 {
        value & (u64::MAX >> (64 - 8 * self.bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_width_takes_its_bits() {
        let value = 0x8877_6655_4433_2211;
        let taken = Width::ALL.map(|width| width.of(value));
        assert_eq!(taken, [0x11, 0x2211, 0x4433_2211, value]);
        assert_eq!(Width::ALL.map(Width::bytes), [1, 2, 4, 8]);
    }
}
