//! Hypercalls outside the run loop: the vendor-specific services that the control plane and the workloads offer to guests.

use crate::ids::VcpuId;
use crate::vm::stop_reason::StopReason;

/// Handles vendor-specific hypercalls. Every vCPU of a VM calls at once, each with any arguments.
pub trait Service: Sync {
    /// A vCPU calls `function` (one of the vendor-specific hypervisor range) with x1 to x6.
    fn call(&self, vcpu: VcpuId, function: u32, args: [u64; 6]) -> ServiceReply;

    /// Called while a vCPU waits, each time its CPU is kicked: the current result of the call that returned
    /// [`ServiceReply::Wait`].
    fn poll(&self, vcpu: VcpuId) -> ServiceReply;

    /// A vCPU's dirty ring is nearly full, or it is full and the vCPU waits until its CPU is kicked: it needs a harvest.
    fn ring_low(&self, vcpu: VcpuId);
}

/// The result of a vendor-specific hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceReply {
    /// The vCPU continues with these values in x0 to x3.
    Return([u64; 4]),
    /// There is no such function: the vCPU continues with NOT_SUPPORTED in x0.
    NotSupported,
    /// The vCPU waits, and [`Service::poll`] is called whenever its CPU is kicked.
    Wait,
    /// The VM ends.
    Stop(StopReason),
}
