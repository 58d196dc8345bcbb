//! The interrupts of a vCPU whose VM has a virtual GIC, while it is loaded.
//!
//! All paths of others pass this by: without a virtual GIC an interrupt is a kick, and WFI waits for one.

use vgic::{SgiRegister, VcpuInterrupts, Vgic};

use super::running::{Next, Running};
use crate::calls::service::Service;
use crate::ids::CpuId;
use crate::machine::cpu::{Cpu, Interrupt, PHYSICAL_TIMER, VIRTUAL_TIMER};
use crate::machine::guest_memory::GuestMemory;
use crate::registers::state::TimerOffsets;

impl<S, C, K, V> Running<'_, S, C, K, V>
where
    S: GuestMemory<C>,
    K: Cpu,
    V: Service + ?Sized,
{
    /// Gives `work` the vCPU's interrupts, the GIC, the CPU's list registers, and what kicks a CPU. `None` without a GIC.
    pub(super) fn with_gic<R>(
        &mut self,
        work: impl FnOnce(&mut VcpuInterrupts, &Vgic, &mut K::Interface, &mut dyn FnMut(usize)) -> R,
    ) -> Option<R> {
        let devices = self.vm.devices()?;
        let interrupts = self.context.interrupts.as_mut()?;
        let mut interface = self.cpu.interface();
        let (here, cpu) = (self.here, &mut *self.cpu);
        let mut kick = |target| {
            // This CPU looks before it enters.
            if target != here.0 {
                cpu.kick(CpuId(target));
            }
        };
        Some(work(interrupts, &devices.gic, &mut interface, &mut kick))
    }

    pub(super) fn load_interrupts(&mut self) {
        let here = self.here.0;
        self.with_gic(|interrupts, gic, interface, kick| {
            interrupts.load(gic, interface, here, kick);
        });
    }

    /// Takes the vCPU's interrupts out of the CPU.
    pub(super) fn put_interrupts(&mut self) {
        self.with_gic(|interrupts, gic, interface, kick| interrupts.put(gic, interface, kick));
    }

    /// As [`Self::put_interrupts`], unless an interrupt has come: one that comes from here on kicks the CPU.
    pub(super) fn block(&mut self) -> bool {
        let slept = self
            .with_gic(|interrupts, gic, interface, kick| interrupts.block(gic, interface, kick));
        slept.unwrap_or(true)
    }

    /// Looks for new interrupts, before the guest is entered.
    #[inline(always)]
    pub(super) fn look(&mut self) {
        if let (Some(devices), Some(interrupts)) = (self.vm.devices(), &self.context.interrupts)
            && interrupts.needs_look(&devices.gic)
        {
            self.take_new();
        }
    }

    #[inline(never)]
    fn take_new(&mut self) {
        self.with_gic(|interrupts, gic, interface, kick| interrupts.look(gic, interface, kick));
    }

    /// Takes the interrupt for which the guest has come out.
    pub(super) fn interrupt(&mut self) {
        if self.context.interrupts.is_none() {
            // None of a device is forwarded to this VM.
            while self.cpu.acknowledge_interrupts().is_some() {}
            return;
        }
        let timer = match self.cpu.take_interrupt() {
            None | Some(Interrupt::Kick) => return,
            Some(Interrupt::Device(interrupt)) => return self.take_of_device(interrupt),
            Some(Interrupt::Maintenance) => None,
            Some(Interrupt::VirtualTimer) => Some(VIRTUAL_TIMER),
            Some(Interrupt::PhysicalTimer) => Some(PHYSICAL_TIMER),
        };
        self.with_gic(|interrupts, gic, interface, kick| match timer {
            None => interrupts.maintenance(gic, interface, kick),
            Some(timer) => interrupts.raise_physical(gic, interface, timer, kick),
        });
    }

    #[cold]
    fn take_of_device(&mut self, interrupt: u32) {
        self.with_gic(|_, gic, _, kick| gic.forward_physical(interrupt, kick));
    }

    /// What follows a WFI, or a WFIT whose timeout is in this register.
    pub(super) fn wait(&mut self, timeout: Option<u8>) -> Next {
        let sleeps = self.with_gic(|interrupts, gic, interface, kick| {
            interrupts.may_sleep(gic, interface, kick)
        });
        self.timeout = timeout.map(|register| {
            let count = self.context.state.regs.operand(register);
            count.saturating_add(self.vm.counter_offset())
        });
        match sleeps {
            Some(false) => Next::Enter,
            Some(true) | None => Next::WaitForInterrupt,
        }
    }

    /// When a vCPU goes on that waits for an interrupt, and was put.
    pub(super) fn wakes_at(&self) -> Option<u64> {
        let due = self.context.interrupts.as_ref().and_then(|_| {
            let virtual_timer = self.vm.counter_offset();
            let physical = self.cpu.physical_offset(virtual_timer);
            let offsets = TimerOffsets {
                virtual_timer,
                physical,
            };
            self.context.state.el1.timers_due(offsets)
        });
        due.into_iter().chain(self.timeout).min()
    }

    /// Executes a write to a register that sends SGIs.
    pub(super) fn send_sgi(&mut self, register: SgiRegister, value: u64) {
        self.with_gic(|interrupts, gic, _, kick| interrupts.send_sgi(gic, register, value, kick));
    }

    /// Executes a write to ICC_DIR_EL1.
    pub(super) fn deactivate(&mut self, intid: u32) {
        self.with_gic(|interrupts, gic, interface, kick| {
            interrupts.deactivate(gic, interface, intid, kick);
        });
    }
}
