//! Runs a vCPU on the calling CPU, slice after slice, until its VM has ended.
//!
//! The CPU is the vCPU's alone meanwhile: it sleeps while the vCPU waits or is paused, and does the memory's deferred work
//! first. Interrupts are acknowledged after the sleep and before the next slice, so that no kick is lost ([`Vcpu`]).

use crate::cpu_pool::BOOT_CPU;
use crate::machine::{DeviceInterrupt, Machine, OwnCpu};
use memory::{AddressSpace, MmuLock};
use vm::{Cpu, Service, SliceEnd, Vcpu, VcpuId, Vm};

/// Runs vCPU `id`, on the CPU that takes these interrupts of the VM's devices; returns at once if another CPU has it.
pub(crate) fn run_vcpu<M, L, S>(
    machine: &M,
    own: &mut OwnCpu<M>,
    vm: &Vm<AddressSpace<L>>,
    id: VcpuId,
    service: &S,
    interrupts: &[DeviceInterrupt],
) where
    M: Machine,
    L: MmuLock,
    S: Service,
{
    let Some(mut vcpu) = Vcpu::bind(vm, id, own.id) else {
        return;
    };
    interrupts.iter().for_each(|one| machine.unmask(one));
    loop {
        match vcpu.run_slice(&mut own.cpu, &own.memory, service) {
            SliceEnd::Waiting => {}
            // CPU 0 may wait for the vCPU to leave the guest, or has memory to free.
            SliceEnd::Paused => machine.kick(BOOT_CPU),
            SliceEnd::Ended => return,
        }
        own.memory.idle();
        own.cpu.wait_for_interrupt(vcpu.wakes_at());
        vcpu.acknowledge(&mut own.cpu);
    }
}
