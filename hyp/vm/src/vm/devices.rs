//! What a VM has besides vCPUs and memory: an interrupt controller, and emulated devices.

use alloc::sync::Arc;
use core::ops::Range;

use devices::{Bus, Device};
use stage2::Ipa;
use vgic::{Frame, Vgic};

/// The interrupt controller and the devices of a VM.
#[derive(Debug)]
pub struct Devices {
    /// The interrupt controller, for as many vCPUs as the VM has.
    pub gic: Arc<Vgic>,
    /// The devices.
    pub bus: Bus,
}

/// What is at an address, and the offset in it.
pub(crate) enum Place<'d> {
    /// Registers of the interrupt controller.
    Gic(Frame, u64),
    /// A device.
    Device(&'d dyn Device, u64),
}

impl Devices {
    /// From the first to the last of the addresses where there is something; between them there may be memory.
    pub(crate) fn reach(&self) -> Range<u64> {
        let devices = self.bus.devices().map(|(range, _)| range);
        devices.fold(self.gic.reach(), |all, one| {
            all.start.min(one.start)..all.end.max(one.end)
        })
    }

    #[inline(always)]
    pub(crate) fn find(&self, ipa: Ipa) -> Option<Place<'_>> {
        if let Some((frame, offset)) = self.gic.locate(ipa.get()) {
            return Some(Place::Gic(frame, offset));
        }
        let (device, offset) = self.bus.find(ipa.get())?;
        Some(Place::Device(device, offset))
    }
}
