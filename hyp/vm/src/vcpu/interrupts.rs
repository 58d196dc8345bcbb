//! The interrupts of a vCPU whose VM has a virtual GIC, while it is loaded.
//!
//! All paths of others pass this by: without a virtual GIC an interrupt is a kick, and WFI waits for one.

use vgic::{Doorbell, SgiRegister, VcpuInterrupts, Vgic};

use super::attended::Attended;
use super::running::{Next, Running};
use crate::calls::service::Service;
use crate::counts::exits::ExitKind;
use crate::ids::CpuId;
use crate::machine::cpu::{Cpu, Interrupt, PHYSICAL_TIMER, VIRTUAL_TIMER};
use crate::machine::guest_memory::GuestMemory;
use crate::registers::state::TimerOffsets;

impl<'r, S, C, K, V> Running<'r, S, C, K, V>
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

    /// What to look at before each entry and after each exit.
    pub(super) fn attended(&self) -> Attended<'r> {
        let interrupts = self.context.interrupts.as_ref();
        let attended = self.vm.devices().zip(interrupts);
        let attended = attended.map(|(devices, interrupts)| {
            let reach = devices.reach();
            Attended {
                doorbell: interrupts.doorbell(&devices.gic),
                start: reach.start,
                bytes: reach.end - reach.start,
            }
        });
        attended.unwrap_or_default()
    }

    /// Looks for new interrupts, before the guest is entered.
    #[inline(always)]
    pub(super) fn look(&mut self, attended: &Attended<'_>) {
        if attended.doorbell.is_some_and(Doorbell::rings) {
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
            return self.cpu.acknowledge_interrupts();
        }
        let timer = match self.cpu.take_interrupt() {
            None | Some(Interrupt::Kick) => return,
            Some(Interrupt::Maintenance) => None,
            Some(Interrupt::VirtualTimer) => Some(VIRTUAL_TIMER),
            Some(Interrupt::PhysicalTimer) => Some(PHYSICAL_TIMER),
        };
        self.with_gic(|interrupts, gic, interface, kick| match timer {
            None => interrupts.maintenance(gic, interface, kick),
            Some(timer) => interrupts.raise_physical(gic, interface, timer, kick),
        });
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
        let attended = self.vm.devices().zip(self.context.interrupts.as_ref());
        let due = attended.and_then(|(devices, interrupts)| {
            // One that was raised and isn't taken by the guest won't be raised again.
            let unless_raised = |timer, offset| {
                let is_raised = interrupts.is_raised(&devices.gic, timer);
                (!is_raised).then_some(offset)
            };
            let offset = self.vm.counter_offset();
            let offsets = TimerOffsets {
                virtual_timer: unless_raised(VIRTUAL_TIMER, offset),
                physical: unless_raised(PHYSICAL_TIMER, self.cpu.physical_offset(offset)),
            };
            self.context.state.el1.timers_due(offsets)
        });
        due.into_iter().chain(self.timeout).min()
    }

    /// Executes a write to ICC_SGI1R_EL1 that has this syndrome.
    #[inline(never)]
    pub(super) fn sgi(&mut self, esr: u64) -> Next {
        self.count(ExitKind::SystemRegister);
        let value = self.context.state.regs.operand((esr >> 5 & 0x1f) as u8);
        self.send_sgi(SgiRegister::Sgi1, value);
        self.skip_instruction();
        Next::Enter
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
