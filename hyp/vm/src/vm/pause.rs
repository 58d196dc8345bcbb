//! Pauses a running VM from outside, reads its vCPUs, and forks it.
//!
//! A vCPU's registers lie in the VM, behind a lock that a slice holds while it runs the guest or handles an exit. So a vCPU
//! whose lock is free is out of the guest and out of every handler, and stays so during the pause, because each slice checks
//! the run state again once it has the lock. Any number may pause a VM at once.
//!
//! The lock alone orders the two sides. A pause first changes the VM's word, then takes the lock; a slice first takes the
//! lock, then reads the word. If the slice was first, it still holds the lock, or is out. If it comes later, it sees
//! everything done before the lock was released, and so the word. The word changes by single steps only (`run_state.rs`), in
//! any order.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::ids::CpuId;
use crate::registers::state::VcpuState;
use crate::vm::glance::{Glance, Seen};
use crate::vm::{VcpuId, VcpuShared, Vm};

/// A pause of a VM: its vCPUs don't run. Dropping it resumes them, unless somebody else pauses the VM too, or it lacks memory,
/// or has ended.
#[must_use = "dropping it lets the VM go on"]
pub struct Pause<'v, S, K: FnMut(CpuId)> {
    vm: &'v Vm<S>,
    kick: K,
}

/// A VM can't be forked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForkError {
    /// There is not enough memory for the vCPUs.
    OutOfMemory,
    /// It has an interrupt controller and devices.
    Devices,
}

impl fmt::Display for ForkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "not enough memory for the fork's vCPUs",
            Self::Devices => "a VM with an interrupt controller and devices can't be forked",
        })
    }
}

impl core::error::Error for ForkError {}

impl<S> Vm<S> {
    /// Pauses the VM. Calls `kick` for each CPU that one of its vCPUs is bound to, now and when the VM resumes. vCPUs leave the
    /// guest soon, but not at once: [`Pause::is_complete`]. The slice that follows the kick ends as
    /// [`Paused`](crate::SliceEnd::Paused).
    ///
    /// The guest's virtual counter continues during the pause, as it does whenever vCPUs wait.
    pub fn pause<K: FnMut(CpuId)>(&self, mut kick: K) -> Pause<'_, S, K> {
        self.life().hold();
        self.kick_all(&mut kick);
        Pause { vm: self, kick }
    }
}

impl<S, K: FnMut(CpuId)> Pause<'_, S, K> {
    /// The VM that is paused.
    pub fn vm(&self) -> &Vm<S> {
        self.vm
    }

    /// Whether all vCPUs have left the guest and all handlers. Once true, it stays true until the end of the pause.
    pub fn is_complete(&self) -> bool {
        let mut vcpus = self.vm.vcpus();
        vcpus.all(|vcpu| self.vm.shared(vcpu).context.try_lock().is_some())
    }

    /// A vCPU's registers, for inspection during the pause. Waits until the vCPU has left the guest. Panics if there is no such
    /// vCPU.
    pub fn state(&self, vcpu: VcpuId) -> VcpuState {
        self.vm.shared(vcpu).context.lock().state.clone()
    }

    /// A snapshot of a vCPU, as far as it is visible now. Panics if there is no such vCPU.
    pub fn glance(&self, vcpu: VcpuId) -> Glance {
        let shared = self.vm.shared(vcpu);
        let context = shared.context.try_lock();
        let exits = shared.exits.snapshot();
        let exits = exits.iter().filter(|(kind, _)| kind.is_exit());
        Glance {
            vcpu,
            power: shared.power.state(),
            seen: context.map(|context| Seen {
                pc: context.state.regs.pc,
                pstate: context.state.regs.pstate,
                last_exit: context.last_exit,
                awaits_answer: context.awaits_answer,
            }),
            exits: exits.map(|(_, count)| count).sum(),
        }
    }

    /// A fork of this VM with the memory `space`: its vCPUs start from this VM's vCPU state in their first slices, with the
    /// same registers, virtual counter and power states. A vCPU that waits for the answer to a service call asks its own VM's
    /// service for it ([`Service::poll`](crate::Service::poll)). Counters begin at 0. Waits until all vCPUs have left the
    /// guest. Nobody may turn vCPUs on from outside meanwhile.
    ///
    /// # Errors
    /// There is not enough memory for the vCPUs, or the VM has devices, which can't be forked yet. Returns the space.
    pub fn fork<T>(&self, space: T) -> Result<Vm<T>, (ForkError, T)> {
        if self.vm.devices().is_some() {
            return Err((ForkError::Devices, space));
        }
        let mut vcpus = Vec::new();
        if vcpus.try_reserve_exact(self.vm.vcpus().count()).is_err() {
            return Err((ForkError::OutOfMemory, space));
        }
        let parents = self.vm.vcpus().map(|vcpu| self.vm.shared(vcpu));
        vcpus.extend(parents.map(VcpuShared::fork));
        let vcpus: Box<[VcpuShared]> = vcpus.into_boxed_slice();
        Ok(Vm::with_vcpus(*self.vm.config(), None, vcpus, space))
    }
}

impl<S, K: FnMut(CpuId)> Drop for Pause<'_, S, K> {
    fn drop(&mut self) {
        if self.vm.life().release() {
            self.vm.kick_all(&mut self.kick);
        }
    }
}

impl<S, K: FnMut(CpuId)> fmt::Debug for Pause<'_, S, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pause")
            .field("is_complete", &self.is_complete())
            .finish_non_exhaustive()
    }
}
