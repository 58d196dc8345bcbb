//! Hypercalls outside the run loop: the vendor-specific services that the control plane and the workloads offer to guests.

use crate::stop::StopReason;
use crate::vm::VcpuId;

/// Answers vendor-specific hypercalls. Every vCPU of a VM calls at once, each with arguments that may be anything.
pub trait Service: Sync {
    /// A vCPU calls `function` (one of the vendor-specific hypervisor range) with x1 to x6.
    fn call(&self, vcpu: VcpuId, function: u32, args: [u64; 6]) -> ServiceReply;

    /// Asked while a vCPU waits, each time its CPU is kicked: what the call that [`ServiceReply::Wait`] answered returns now.
    fn poll(&self, vcpu: VcpuId) -> ServiceReply;

    /// A vCPU's dirty ring is nearly full, or full, and the vCPU sleeps until its CPU is kicked: it is time to harvest it.
    fn ring_low(&self, vcpu: VcpuId);

    /// A vCPU's thread has let go of its vCPU because the VM is paused ([`Vm::pause`](crate::Vm::pause)), or lacks memory
    /// ([`Vm::starvation`](crate::Vm::starvation)): whoever waits for that is to look now.
    fn parked(&self, vcpu: VcpuId);
}

/// What a vendor-specific hypercall comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceReply {
    /// The vCPU goes on with these in x0 to x3.
    Return([u64; 4]),
    /// There is no such function: the vCPU goes on with NOT_SUPPORTED in x0.
    NotSupported,
    /// The vCPU sleeps, and [`Service::poll`] is asked again whenever its CPU is kicked.
    Wait,
    /// The VM ends.
    Stop(StopReason),
}
