//! Devices of the machine that a guest with a board has: where they are, and their interrupts among the guest's.

use super::map::{
    CPU_INTERFACE, DISTRIBUTOR, ITS, REDISTRIBUTORS, RTC_SPI, SPI, SPIS, STOLEN_TIMES,
    UART_REGISTERS, UART_SPI,
};
use crate::error::RunError;
use crate::machine::{Device, DeviceError, Machine};
use crate::request::Request;
use alloc::vec::Vec;
use core::ops::Range;
use memory::CpuMemory;
use records::options::RAM;
use vgic::Forwarded;
use vm::MAX_VCPUS;

/// A device, and the guest's numbers of its interrupts among the SPIs, in their order.
#[derive(Clone, Debug)]
pub(crate) struct AssignedDevice {
    pub(super) device: Device,
    pub(super) spis: Vec<u32>,
}

/// The devices of a request.
///
/// # Errors
/// The guest can't be given one of them.
pub(crate) fn all<M: Machine>(
    machine: &M,
    memory: &CpuMemory<M::Hardware>,
    request: &Request<'_>,
) -> Result<Vec<AssignedDevice>, RunError> {
    let mut all: Vec<AssignedDevice> = Vec::new();
    let mut free = Spis::new();
    for path in &request.options.devices {
        let failed = |error| RunError::Device {
            path: path.clone(),
            error,
        };
        let device = machine.device(memory, path).map_err(failed)?;
        let ram = request.options.program_bytes().unwrap_or(0);
        check_places(ranges(&device), ram).map_err(failed)?;
        let interrupts = (device.interrupts.as_deref())
            .ok_or(DeviceError::Interrupts)
            .map_err(failed)?;
        let spis = interrupts.iter().map(|one| free.take(one.intid - SPI));
        let spis: Option<Vec<u32>> = spis.collect();
        let spis = spis.ok_or(DeviceError::TooManyInterrupts).map_err(failed)?;
        all.push(AssignedDevice { device, spis });
    }
    Ok(all)
}

/// Checks that the guest has nothing else where the device is.
fn check_places(ranges: impl Iterator<Item = Range<u64>>, ram: u64) -> Result<(), DeviceError> {
    let stolen = STOLEN_TIMES.pages(MAX_VCPUS);
    let taken = [
        (DISTRIBUTOR, "its interrupt controller"),
        (CPU_INTERFACE, "its interrupt controller"),
        (ITS, "its interrupt controller"),
        (REDISTRIBUTORS, "its interrupt controller"),
        (UART_REGISTERS, "its UART"),
        (stolen.start.get()..stolen.end.get(), "its stolen time"),
        (RAM..RAM.saturating_add(ram), "its memory"),
    ];
    for range in ranges {
        if let Some((_, by)) = taken.iter().find(|(taken, _)| overlap(taken, &range)) {
            let start = range.start;
            return Err(DeviceError::OnBoard { start, by });
        }
    }
    Ok(())
}

/// The addresses of a device's registers.
fn ranges(device: &Device) -> impl Iterator<Item = Range<u64>> {
    let registers = device.registers.iter();
    registers.map(|one| one.start..one.start + one.object.bytes())
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// The guest's SPIs that nobody has.
struct Spis([bool; SPIS]);

impl Spis {
    fn new() -> Self {
        let mut free = [true; SPIS];
        for spi in [UART_SPI, RTC_SPI] {
            free[spi as usize] = false;
        }
        Self(free)
    }

    /// Takes this one, as the machine has it, or else the last one there is.
    fn take(&mut self, wanted: u32) -> Option<u32> {
        let is_free = |spi: &usize| self.0.get(*spi) == Some(&true);
        let wanted = Some(wanted as usize).filter(is_free);
        let spi = wanted.or_else(|| self.0.iter().rposition(|free| *free))?;
        self.0[spi] = false;
        Some(spi as u32)
    }
}

impl AssignedDevice {
    /// The interrupts as the guest's interrupt controller forwards them.
    pub(super) fn forwarded(&self) -> impl Iterator<Item = Forwarded> {
        let physical = self.device.interrupts.iter().flatten();
        let both = physical.zip(&self.spis);
        both.map(|(physical, spi)| Forwarded {
            virtual_id: SPI + spi,
            physical_id: physical.intid,
        })
    }

    /// Whether it has registers there.
    pub(super) fn overlaps(&self, range: &Range<u64>) -> bool {
        ranges(&self.device).any(|own| overlap(range, &own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_where_the_guest_has_nothing_else() {
        let ram = 64 << 20;
        let by = |start: u64, bytes: u64| match check_places(
            core::iter::once(start..start + bytes),
            ram,
        ) {
            Ok(()) => None,
            Err(DeviceError::OnBoard { by, .. }) => Some(by),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(by(0x0901_0000, 0x1000), None, "the clock gives way");
        assert_eq!(by(0x0902_0000, 0x8_0000), None);
        assert_eq!(by(0x0902_0000, 0x9_0000), Some("its stolen time"));
        assert_eq!(by(0x0900_0000, 0x1000), Some("its UART"));
        assert_eq!(by(0, 0x0800_0001), Some("its interrupt controller"));
        assert_eq!(by(RAM + ram - 0x1000, 0x2000), Some("its memory"));
        assert_eq!(by(RAM + ram, 0x1000), None);
    }

    #[test]
    fn an_interrupt_has_the_machines_number_where_that_is_free() {
        let mut free = Spis::new();
        assert_eq!(free.take(5), Some(5));
        assert_eq!(free.take(5), Some(63));
        assert_eq!(free.take(RTC_SPI), Some(62), "the board's own");
        assert_eq!(free.take(900), Some(61), "the guest has fewer");
        let mut left = core::iter::from_fn(|| free.take(0));
        assert_eq!(left.by_ref().count(), SPIS - 6);
        assert_eq!(free.take(1), None);
    }
}
