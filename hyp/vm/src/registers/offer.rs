//! What a VM offers its guest besides the CPU's own features, as far as system registers show it.

/// What a VM offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Size of the guest's physical address space.
    pub ipa_bits: u32,
    /// A GICv3, whose CPU interface is system registers.
    pub gic_registers: bool,
}
