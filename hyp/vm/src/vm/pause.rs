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
//!
//! The guest's time stands still in a pause, as in KVM and QEMU: from [`Pause::stop_time`], when all vCPUs are out, until
//! [`Pause::resume`], which moves the offset of its virtual counter. So no timer of the guest is late after the pause, and a
//! fork begins at the moment at which its parent was forked. What can't be moved is the physical counter of a CPU without
//! FEAT_ECV, and the real-time clock, which shows the time of the world.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use vgic::Vgic;

use crate::ids::CpuId;
use crate::registers::state::VcpuState;
use crate::vm::devices::Devices;
use crate::vm::glance::{Glance, Seen};
use crate::vm::{VcpuId, VcpuShared, Vm, VmConfig};

/// A pause of a VM: its vCPUs don't run. Dropping it resumes them, unless somebody else pauses the VM too, or it lacks memory,
/// or has ended.
#[must_use = "dropping it lets the VM go on"]
pub struct Pause<'v, S, K: FnMut(CpuId)> {
    vm: &'v Vm<S>,
    kick: K,
    /// Since when the guest's time stands still.
    still_since: Option<Moment>,
}

/// A moment, by both of the machine's clocks.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Moment {
    /// The physical counter.
    pub counter: u64,
    /// Nanoseconds since some fixed moment, as [`Cpu::now_ns`](crate::Cpu::now_ns) tells them.
    pub ns: u64,
}

impl Moment {
    /// The time since an earlier moment.
    const fn since(self, earlier: Self) -> Self {
        Self {
            counter: self.counter.saturating_sub(earlier.counter),
            ns: self.ns.saturating_sub(earlier.ns),
        }
    }
}

/// What a fork doesn't take from its parent.
#[derive(Debug)]
pub struct ForkParts<T> {
    /// Its memory, which has what the parent's has.
    pub space: T,
    /// Its interrupt controller and devices, with the state of the parent's ([`Vgic::snapshot`], and what each device saves), if
    /// that has any.
    pub devices: Option<Devices>,
}

/// A VM can't be forked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForkError {
    /// There is not enough memory for the vCPUs.
    OutOfMemory,
    /// The fork's interrupt controller isn't like the parent's, or only one of them has one.
    Devices,
}

impl fmt::Display for ForkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "not enough memory for the fork's vCPUs",
            Self::Devices => "the fork's interrupt controller isn't like its parent's",
        })
    }
}

impl core::error::Error for ForkError {}

impl<S> Vm<S> {
    /// Pauses the VM. Calls `kick` for each CPU that one of its vCPUs is bound to, now and when the VM resumes. vCPUs leave the
    /// guest soon, but not at once: [`Pause::is_complete`]. The slice that follows the kick ends as
    /// [`Paused`](crate::SliceEnd::Paused).
    ///
    /// The guest's virtual counter continues, as it does whenever vCPUs wait, until [`Pause::stop_time`].
    pub fn pause<K: FnMut(CpuId)>(&self, mut kick: K) -> Pause<'_, S, K> {
        self.life().hold();
        self.kick_all(&mut kick);
        Pause {
            vm: self,
            kick,
            still_since: None,
        }
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

    /// Has the guest's time stand still from `now` on, once the pause is complete. Its virtual counter goes on when the pause
    /// ends by [`Self::resume`]. Only where nobody else pauses the VM too.
    pub fn stop_time(&mut self, now: Moment) {
        if self.vm.life().is_held_once() && self.is_complete() {
            self.still_since = Some(now);
        }
    }

    /// Ends the pause. The guest's time goes on where it was when it was [stopped](Self::stop_time); none of the pause counts as
    /// stolen then.
    pub fn resume(self, now: Moment) {
        let skipped = self.still_for(now);
        if skipped != Moment::default() {
            for vcpu in self.vm.vcpus() {
                let mut context = self.vm.shared(vcpu).context.lock();
                context.stolen.skip(skipped.ns);
            }
            self.vm.skip_time(skipped.counter);
        }
    }

    /// For how long time has stood still.
    fn still_for(&self, now: Moment) -> Moment {
        let since = self.still_since;
        since.map_or_else(Moment::default, |since| now.since(since))
    }

    /// A vCPU's registers, for inspection during the pause; `None` if there is no memory for the copy. Waits until the vCPU has left
    /// the guest. Panics if there is no such vCPU.
    pub fn state(&self, vcpu: VcpuId) -> Option<VcpuState> {
        self.vm.shared(vcpu).context.lock().state.try_clone()
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

    /// A fork of this VM: its vCPUs start from this VM's vCPU state in their first slices, with the same registers, interrupts
    /// and power states. A vCPU that waits for the answer to a service call asks its own VM's service for it
    /// ([`Service::poll`](crate::Service::poll)). Counters begin at 0. Its virtual counter goes on `now`, where this VM's was
    /// [stopped](Self::stop_time). Waits until all vCPUs have left the guest. Nobody may turn vCPUs on from outside meanwhile.
    ///
    /// # Errors
    /// There is not enough memory for the vCPUs, or its interrupt controller doesn't fit. Returns the space.
    pub fn fork<T>(&self, parts: ForkParts<T>, now: Moment) -> Result<Vm<T>, (ForkError, T)> {
        let ForkParts { space, devices } = parts;
        let kind = |gic: &Vgic| (gic.version(), gic.vcpus());
        let kind = |devices: &Devices| kind(&devices.gic);
        if devices.as_ref().map(kind) != self.vm.devices().map(kind) {
            return Err((ForkError::Devices, space));
        }
        let mut vcpus = Vec::new();
        let count = self.vm.vcpus().count();
        if vcpus.try_reserve_exact(count).is_err() {
            return Err((ForkError::OutOfMemory, space));
        }
        let skipped = self.still_for(now);
        for vcpu in self.vm.vcpus() {
            let Some(fork) = self.vm.shared(vcpu).fork(skipped.ns) else {
                return Err((ForkError::OutOfMemory, space));
            };
            vcpus.push(fork);
        }
        let vcpus: Box<[VcpuShared]> = vcpus.into_boxed_slice();
        let config = VmConfig {
            counter_offset: self.vm.counter_offset().wrapping_add(skipped.counter),
            ..*self.vm.config()
        };
        let mut fork = Vm::with_vcpus(config, devices, vcpus, space);
        fork.inherit_features(self.vm.features());
        if let Some(times) = self.vm.stolen_times() {
            fork.tell_stolen_time(times);
        }
        Ok(fork)
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

#[cfg(test)]
mod heap_tests;
