//! A vCPU, which runs slice by slice on the CPU that it is bound to.
//!
//! A slice runs the guest until it waits, or until its VM is paused or ended. Between slices the vCPU is state in its [`Vm`],
//! and the CPU is its caller's: to sleep, to run another vCPU, or to do other work.
//!
//! While a slice holds the vCPU's lock, the registers are its own. So whoever pauses the VM finds that lock held, or the slice
//! sees the pause once it has the lock.
//!
//! A slice looks at the VM's run state, the vCPU's power state and its service after its CPU's last kick was acknowledged, and
//! whoever changes one of these kicks the CPU afterwards. So the caller may sleep after a slice: a change that the slice has
//! missed comes with a kick that is still pending. For the same reason a caller with several vCPUs runs each of them between
//! an acknowledgement and its sleep, as one slice's acknowledgement may be of another vCPU's kick.

mod attended;
mod calls;
mod device_access;
mod interrupts;
mod running;

use stage2::sync::{Ordering, fence};

use crate::calls::service::Service;
use crate::ids::CpuId;
use crate::ids::VcpuId;
use crate::machine::cpu::Cpu;
use crate::machine::guest_memory::GuestMemory;
use crate::vm::Vm;
use crate::vm::power::PowerState;
use running::{RunEnd, Running};

/// A vCPU that is bound to a CPU: that CPU alone runs it, and is kicked for it. Dropping it releases the vCPU to other CPUs.
///
/// What TLBs hold of the guest's stage 1 is not looked after: whoever has a CPU run another vCPU of a VM than before, or a vCPU
/// that has run elsewhere meanwhile, first invalidates there what the CPU has of the VM's stage 1.
#[derive(Debug)]
pub struct Vcpu<'v, S> {
    vm: &'v Vm<S>,
    id: VcpuId,
    here: CpuId,
    wakes_at: Option<u64>,
}

/// Why a slice has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "it says what the CPU may do next"]
pub enum SliceEnd {
    /// The vCPU has nothing to do until its CPU is kicked, or until [`Vcpu::wakes_at`]: it is off or in WFI, or waits for a
    /// service or for room in its dirty ring.
    Waiting,
    /// The VM is paused ([`Vm::pause`]), or lacks memory ([`Vm::starvation`]). The CPU is kicked when the VM resumes.
    Paused,
    /// The VM has ended.
    Ended,
}

impl<'v, S> Vcpu<'v, S> {
    /// Binds vCPU `id` of `vm` to CPU `here`, which is the caller's; `None` if it is bound already. Panics if there is no such
    /// vCPU.
    pub fn bind(vm: &'v Vm<S>, id: VcpuId, here: CpuId) -> Option<Self> {
        if !vm.bind(id, here) {
            return None;
        }
        // Whoever pauses or ends the VM, or turns the vCPU on, either finds this CPU to kick, or is seen by the first slice.
        fence(Ordering::SeqCst);
        Some(Self {
            vm,
            id,
            here,
            wakes_at: None,
        })
    }

    /// The counter's value at which the vCPU goes on, even if its CPU isn't kicked, after a slice in which it waited for an
    /// interrupt: that of the first of its timers.
    pub fn wakes_at(&self) -> Option<u64> {
        self.wakes_at
    }

    /// Takes the interrupts that are pending for the CPU, before a slice. Those of the VM's devices are forwarded to it.
    pub fn acknowledge<K: Cpu>(&self, cpu: &mut K) {
        while let Some(interrupt) = cpu.acknowledge_interrupts() {
            if let Some(devices) = self.vm.devices() {
                let kick = |target| {
                    // This CPU looks before it enters.
                    if target != self.here.0 {
                        cpu.kick(CpuId(target));
                    }
                };
                devices.gic.forward_physical(interrupt, kick);
            }
        }
    }

    /// Runs the vCPU for a slice, on the CPU that it is bound to.
    pub fn run_slice<C, K, V>(&mut self, cpu: &mut K, memory: &C, service: &V) -> SliceEnd
    where
        S: GuestMemory<C>,
        K: Cpu,
        V: Service + ?Sized,
    {
        let vm = self.vm;
        self.wakes_at = None;
        // Read before the lock, so that nobody finds a paused vCPU's lock held because its CPU was kicked.
        if !vm.runs() {
            return self.not_running();
        }
        let shared = vm.shared(self.id);
        let mut context = shared.context.lock();
        if !vm.runs() {
            return self.not_running();
        }
        if let Some(start) = shared.power.take_start() {
            context.start(start);
        } else if shared.power.state() != PowerState::On {
            return SliceEnd::Waiting;
        }
        if let Some(times) = vm.stolen_times()
            && let Some(stolen_ns) = context.stolen.end(|| cpu.now_ns())
        {
            let at = times.time(self.id.0);
            vm.space.write_bytes(memory, at, &stolen_ns.to_le_bytes());
        }
        let end = Running {
            id: self.id,
            here: self.here,
            context: &mut context,
            vm,
            cpu,
            memory,
            service,
            exits: &shared.exits,
            reason: None,
            timeout: None,
        }
        .run();
        match end {
            RunEnd::Waits { wakes_at } if !vm.has_ended() => {
                self.wakes_at = wakes_at;
                SliceEnd::Waiting
            }
            RunEnd::Leaves if !vm.has_ended() && vm.stolen_times().is_some() => {
                context.stolen.begin(cpu.now_ns());
                self.not_running()
            }
            RunEnd::Waits { .. } | RunEnd::Leaves => self.not_running(),
        }
    }

    /// Why a slice has ended in which the vCPU doesn't wait.
    fn not_running(&self) -> SliceEnd {
        match self.vm.has_ended() {
            true => SliceEnd::Ended,
            false => SliceEnd::Paused,
        }
    }
}

impl<S> Drop for Vcpu<'_, S> {
    fn drop(&mut self) {
        self.vm.unbind(self.id);
    }
}

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;
