//! Checks the address range of an operation once, at its start. A refused operation has changed nothing.

use crate::address::{Ipa, IpaRange, Pa};
use crate::layout::{Format, Layout};
use core::fmt;

/// An operation was asked for addresses that its tables can't translate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
        /// The end of it that lies within a page.
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
    /// What is to back the range doesn't begin with a page.
    UnalignedBacking {
        /// Its address.
        pa: Pa,
        /// Bytes of a page.
        page_size: u64,
    },
    /// What is to back the range reaches beyond what a physical address can say.
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

    /// Bits of the physical addresses that descriptors can hold, of those that the CPU has.
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

    /// Whether an operation may be asked for `range`: whole pages of the IPA space, or nothing of it. A call, as what follows it
    /// is long, and better kept in registers.
    ///
    /// # Errors
    /// What is wrong with it.
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

    /// Whether `bytes` from `pa` on, whole pages, can back guest memory. Without this an address is cut off where descriptors
    /// have no bits for it, and leads to other memory.
    ///
    /// # Errors
    /// What is wrong with it.
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
