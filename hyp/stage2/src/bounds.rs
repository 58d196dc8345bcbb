//! Checks the address range of an operation once, at its start. A refused operation has changed nothing.

use crate::address::{Ipa, IpaRange, Pa};
use crate::features::Format;
use crate::layout::Layout;
use core::fmt;

/// The tables can't translate an operation's addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BadAddress {
    /// The range ends before it starts.
    Reversed {
        /// Its start.
        start: Ipa,
        /// Its end.
        end: Ipa,
    },
    /// The range doesn't consist of whole pages.
    Unaligned {
        /// The end of the range that lies within a page.
        ipa: Ipa,
        /// Bytes of a page.
        page_size: u64,
    },
    /// The range reaches beyond the IPA space.
    NotInSpace {
        /// Its end.
        end: Ipa,
        /// Bits of the IPA space.
        ipa_bits: u32,
    },
    /// The backing doesn't begin at a page.
    UnalignedBacking {
        /// Its address.
        pa: Pa,
        /// Bytes of a page.
        page_size: u64,
    },
    /// The backing reaches beyond the physical addresses.
    NotInMemory {
        /// Its first address.
        pa: Pa,
        /// Its bytes.
        bytes: u64,
        /// Bits of a physical address.
        pa_bits: u32,
    },
}

impl fmt::Display for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reversed { start, end } => {
                write!(f, "the range from {start} ends before it starts, at {end}")
            }
            Self::Unaligned { ipa, page_size } => {
                write!(
                    f,
                    "guest address {ipa} is no multiple of the page size, {page_size}"
                )
            }
            Self::NotInSpace { end, ipa_bits } => write!(
                f,
                "a range up to {end} doesn't fit into guest addresses of {ipa_bits} bits"
            ),
            Self::UnalignedBacking { pa, page_size } => {
                write!(
                    f,
                    "physical address {pa} is no multiple of the page size, {page_size}"
                )
            }
            Self::NotInMemory { pa, bytes, pa_bits } => write!(
                f,
                "{bytes} bytes from {pa} on don't fit into physical addresses of {pa_bits} bits"
            ),
        }
    }
}

impl core::error::Error for BadAddress {}

impl Layout {
    /// The whole IPA space.
    pub const fn all(&self) -> IpaRange {
        Ipa::new(0)..Ipa::new(1 << self.ipa_bits())
    }

    /// Whether a range lies within the IPA space.
    pub const fn contains(&self, range: &IpaRange) -> bool {
        range.start.get() <= range.end.get() && range.end.get() <= 1 << self.ipa_bits()
    }

    /// Bits of the physical addresses that descriptors can hold, within the CPU's own.
    pub const fn pa_bits(&self) -> u32 {
        let most = match self.format() {
            Format::Narrow => 48,
            Format::Lpa2 | Format::Lpa64K => 52,
        };
        if self.features().pa_bits < most {
            self.features().pa_bits
        } else {
            most
        }
    }

    /// Checks an operation's `range`: whole pages within the IPA space, or an empty range. Not inlined, as the code that
    /// follows it is long and better kept in registers.
    ///
    /// # Errors
    /// What is wrong with the range.
    #[inline(never)]
    pub const fn check(&self, range: &IpaRange) -> Result<(), BadAddress> {
        let (start, end) = (range.start, range.end);
        let page_size = self.page_size();
        if end.get() < start.get() {
            return Err(BadAddress::Reversed { start, end });
        }
        if end.get() > 1 << self.ipa_bits() {
            let ipa_bits = self.ipa_bits();
            return Err(BadAddress::NotInSpace { end, ipa_bits });
        }
        if !start.is_aligned(page_size) {
            let ipa = start;
            return Err(BadAddress::Unaligned { ipa, page_size });
        }
        if !end.is_aligned(page_size) {
            let ipa = end;
            return Err(BadAddress::Unaligned { ipa, page_size });
        }
        Ok(())
    }

    /// Checks that `bytes` from `pa` on, whole pages, can back guest memory. Unchecked, an address with too many bits is
    /// truncated in descriptors and leads to other memory.
    ///
    /// # Errors
    /// What is wrong with the backing.
    #[inline(never)]
    pub const fn check_backing(&self, pa: Pa, bytes: u64) -> Result<(), BadAddress> {
        let page_size = self.page_size();
        if !pa.is_aligned(page_size) {
            return Err(BadAddress::UnalignedBacking { pa, page_size });
        }
        let pa_bits = self.pa_bits();
        match pa.checked_add(bytes) {
            Some(end) if end.get() <= 1 << pa_bits => Ok(()),
            _ => Err(BadAddress::NotInMemory { pa, bytes, pa_bits }),
        }
    }
}
