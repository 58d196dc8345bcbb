//! A vCPU's thread: waits to be turned on, runs the guest, releases the vCPU while the VM is paused, until the VM ends.
//!
//! One thread on one CPU runs a vCPU; it shares with the others only what [`Vm`] holds. While it holds the vCPU's lock, the
//! registers are the thread's. So whoever pauses the VM finds that lock held, or the thread sees the pause once it has the
//! lock.

mod calls;
mod running;

use core::sync::atomic::{Ordering, fence};

use crate::calls::service::Service;
use crate::ids::CpuId;
use crate::ids::VcpuId;
use crate::machine::cpu::Cpu;
use crate::machine::guest_memory::GuestMemory;
use crate::registers::state::Context;
use crate::vm::Vm;
use crate::vm::power::PowerState;
use running::Running;

/// A vCPU, for the thread that runs it.
#[derive(Debug)]
pub struct Vcpu {
    id: VcpuId,
}

/// The context of a vCPU's thread.
struct Thread<'t, S, C, K, V: ?Sized> {
    id: VcpuId,
    vm: &'t Vm<S>,
    cpu: &'t mut K,
    memory: &'t C,
    service: &'t V,
}

impl Vcpu {
    /// vCPU `id` of a VM.
    pub fn new(id: VcpuId) -> Self {
        Self { id }
    }

    /// The vCPU's thread on CPU `here`. Returns when the VM has ended; at once if another thread runs this vCPU.
    pub fn run<S, C, K, V>(self, vm: &Vm<S>, here: CpuId, cpu: &mut K, memory: &C, service: &V)
    where
        S: GuestMemory<C>,
        K: Cpu,
        V: Service + ?Sized,
    {
        let Self { id } = self;
        if !vm.bind(id, here) {
            return;
        }
        // Whoever pauses or ends the VM either finds this CPU to kick, or is seen below.
        fence(Ordering::SeqCst);
        Thread {
            id,
            vm,
            cpu,
            memory,
            service,
        }
        .run();
        vm.unbind(id);
    }
}

impl<S, C, K, V> Thread<'_, S, C, K, V>
where
    S: GuestMemory<C>,
    K: Cpu,
    V: Service + ?Sized,
{
    fn run(&mut self) {
        while !self.vm.has_ended() {
            if self.vm.runs() {
                self.run_or_sleep();
            } else {
                self.park();
            }
        }
    }

    /// Runs the guest, if the vCPU is on, until the vCPU is turned off or the VM stops running.
    fn run_or_sleep(&mut self) {
        let vm = self.vm;
        let shared = vm.shared(self.id);
        let mut context = shared.context.lock();
        if !vm.runs() {
            return;
        }
        if let Some(start) = shared.power.take_start() {
            *context = Context::starting_at(start);
        } else if shared.power.state() != PowerState::On {
            drop(context);
            return sleep(vm, self.cpu, self.memory);
        }
        Running {
            id: self.id,
            context: &mut context,
            vm,
            cpu: self.cpu,
            memory: self.memory,
            service: self.service,
            exits: &shared.exits,
            reason: None,
        }
        .run();
    }

    /// Waits for the end of a pause, with the vCPU released.
    fn park(&mut self) {
        self.service.parked(self.id);
        while !self.vm.runs() && !self.vm.has_ended() {
            sleep(self.vm, self.cpu, self.memory);
        }
    }
}

/// Sleeps until this CPU is kicked. The caller checks its condition before and after.
fn sleep<S: GuestMemory<C>, C, K: Cpu>(vm: &Vm<S>, cpu: &mut K, memory: &C) {
    vm.space.idle(memory);
    cpu.wait_for_interrupt();
    cpu.acknowledge_interrupts();
}

#[cfg(all(test, not(loom)))]
mod tests;
