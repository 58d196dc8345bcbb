//! What all vCPUs of a VM share.

use crate::config::{Frame, VgicConfig, VgicError};

/// The virtual GIC of a VM.
#[derive(Debug)]
pub struct Vgic {}

impl Vgic {
    /// One in its reset state.
    pub fn new(_config: &VgicConfig<'_>) -> Result<Self, VgicError> {
        Err(VgicError::OutOfMemory)
    }

    /// The frame at an address of the guest, and the offset in it.
    pub fn locate(&self, _ipa: u64) -> Option<(Frame, u64)> {
        None
    }

    /// Sets the line of an SPI, from any CPU. Calls `kick` with a physical CPU that has to leave its guest, or wake; the caller
    /// may leave out its own CPU. Others than SPIs are ignored.
    pub fn set_spi_level(&self, _intid: u32, _level: bool, _kick: impl FnMut(usize)) {}

    /// Raises an SPI that is configured as an edge, from any CPU; `kick` as in [`set_spi_level`](Self::set_spi_level).
    pub fn pulse_spi(&self, _intid: u32, _kick: impl FnMut(usize)) {}

    /// A physical SPI was taken on any CPU that is forwarded as `virtual_id`: its priority was dropped, it is active; `kick` as in
    /// [`set_spi_level`](Self::set_spi_level).
    pub fn forward_spi(&self, _virtual_id: u32, _kick: impl FnMut(usize)) {}

    /// As it was when it was made: for the reset of a VM. No vCPU is loaded.
    pub fn reset(&self) {}

    /// A copy of its state, for a fork. No vCPU is loaded, and no device raises (rule V16).
    pub fn snapshot(&self) -> Result<Self, VgicError> {
        Err(VgicError::OutOfMemory)
    }
}
