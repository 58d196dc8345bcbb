//! What a VM offers its guest besides the CPU's own features, as far as system registers show it.

/// What a VM offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Size of the guest's physical address space.
    pub ipa_bits: u32,
    /// A GICv3, whose CPU interface is system registers.
    pub gic_registers: bool,
    /// The CPU's breakpoints and watchpoints.
    pub debug: bool,
    /// SVE.
    pub sve: bool,
    /// The performance monitors.
    pub pmu: bool,
}

/// Features of the CPU with state of their own, which a VM offers its guest if asked to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfferedFeatures {
    /// Breakpoints, watchpoints and software step.
    pub debug: bool,
    /// The bytes of a vector of SVE; 0: none is offered.
    pub vector_bytes: usize,
    /// The performance monitors.
    pub pmu: bool,
}
