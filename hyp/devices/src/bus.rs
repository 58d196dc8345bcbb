//! The bus: finds the device at a guest's physical address.

use crate::device::Device;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// The emulated devices of a VM by their addresses. Constant while the VM lives.
#[derive(Default)]
pub struct Bus {
    /// In the order of their addresses, which don't overlap.
    devices: Box<[Entry]>,
}

struct Entry {
    range: Range<u64>,
    device: Arc<dyn Device>,
}

impl Bus {
    /// A bus with these devices.
    ///
    /// # Errors
    /// A range is empty, or two overlap.
    pub fn new(devices: Vec<(Range<u64>, Arc<dyn Device>)>) -> Result<Self, BusError> {
        let mut devices: Box<[Entry]> = devices
            .into_iter()
            .map(|(range, device)| Entry { range, device })
            .collect();
        devices.sort_unstable_by_key(|entry| entry.range.start);
        let mut free = 0;
        for Entry { range, .. } in &devices {
            if range.is_empty() || range.start < free {
                return Err(BusError {
                    start: range.start,
                    end: range.end,
                });
            }
            free = range.end;
        }
        Ok(Self { devices })
    }

    /// The device at an address, and the offset in its registers.
    pub fn find(&self, ipa: u64) -> Option<(&dyn Device, u64)> {
        let behind = self
            .devices
            .partition_point(|entry| entry.range.start <= ipa);
        let entry = self.devices.get(behind.checked_sub(1)?)?;
        (ipa < entry.range.end).then(|| (&*entry.device, ipa - entry.range.start))
    }

    /// All devices with their addresses, in the order of these.
    pub fn devices(&self) -> impl Iterator<Item = (Range<u64>, &dyn Device)> {
        let devices = self.devices.iter();
        devices.map(|entry| (entry.range.clone(), &*entry.device))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.devices.iter().map(|entry| &entry.range);
        f.debug_list().entries(ranges).finish()
    }
}

/// A device's addresses can't be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusError {
    /// The first.
    pub start: u64,
    /// The one behind the last.
    pub end: u64,
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, end } = self;
        write!(
            f,
            "a device at {start:#x} to {end:#x} overlaps another, or is empty"
        )
    }
}

impl core::error::Error for BusError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Width;
    use crate::saved::RestoreError;
    use alloc::collections::TryReserveError;
    use proptest::prelude::*;

    struct Numbered(u64);

    impl Device for Numbered {
        fn read(&self, _: u64, _: Width) -> u64 {
            self.0
        }
        fn write(&self, _: u64, _: Width, _: u64) {}
        fn save(&self, _: &mut Vec<u8>) -> Result<(), TryReserveError> {
            Ok(())
        }
        fn restore(&self, _: &[u8]) -> Result<(), RestoreError> {
            Ok(())
        }
    }

    fn bus(ranges: &[Range<u64>]) -> Result<Bus, BusError> {
        let devices = (0..).zip(ranges).map(|(number, range)| {
            let device: Arc<dyn Device> = Arc::new(Numbered(number));
            (range.clone(), device)
        });
        Bus::new(devices.collect())
    }

    #[test]
    fn devices_are_found_by_their_addresses_only() {
        let bus = bus(&[0x2000..0x3000, 0x1000..0x2000, 0x8000..0x8010]).unwrap();
        let found = |ipa| {
            let (device, offset) = bus.find(ipa)?;
            Some((device.read(0, Width::Word), offset))
        };
        assert_eq!(found(0xfff), None);
        assert_eq!(found(0x1000), Some((1, 0)));
        assert_eq!(found(0x1fff), Some((1, 0xfff)));
        assert_eq!(found(0x2000), Some((0, 0)));
        assert_eq!(found(0x3000), None);
        assert_eq!(found(0x800f), Some((2, 15)));
        assert_eq!(found(0x8010), None);
        assert_eq!(found(u64::MAX), None);
        assert_eq!(bus.devices().count(), 3);
        assert!(Bus::default().find(0).is_none());
    }

    #[test]
    fn overlapping_and_empty_devices_are_refused() {
        assert!(bus(&[0x1000..0x2000, 0x1fff..0x3000]).is_err());
        assert!(bus(&[0x1000..0x2000, 0x1000..0x2000]).is_err());
        assert!(bus(&[0x1000..0x1000, 0x2000..0x3000]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_found_contains_the_address(starts in prop::collection::vec((0u64..64, 1u64..8), 0..8), ipa in 0u64..80) {
            let ranges: Vec<_> = starts.iter().map(|(start, length)| *start..start + length).collect();
            if let Ok(bus) = bus(&ranges) {
                let expected = ranges.iter().position(|range| range.contains(&ipa));
                let found = bus.find(ipa).map(|(device, offset)| (device.read(0, Width::Word) as usize, offset));
                prop_assert_eq!(found, expected.map(|index| (index, ipa - ranges[index].start)));
            }
        }
    }
}
