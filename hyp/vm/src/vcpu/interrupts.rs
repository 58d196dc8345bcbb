//! The interrupts of a vCPU whose VM has a virtual GIC, while it is loaded.
//!
//! All paths of others pass this by: without a virtual GIC an interrupt is a kick, and WFI waits for one.

use vgic::{Doorbell, SgiRegister, VcpuInterrupts, Vgic};

use super::attended::Attended;
use super::running::{Next, Running};
use crate::calls::service::Service;
use crate::counts::exits::ExitKind;
use crate::ids::CpuId;
use crate::machine::cpu::{Cpu, Interrupt, PHYSICAL_TIMER, PMU_INTERRUPT, VIRTUAL_TIMER};
use crate::machine::guest_memory::GuestMemory;
use crate::registers::state::{Start, TimerOffsets};

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
        if self.look_once() {
            self.execute_commands();
        }
    }

    /// Returns whether there are commands of the ITS to execute.
    fn look_once(&mut self) -> bool {
        let has_commands = self.with_gic(|interrupts, gic, interface, kick| {
            interrupts.look(gic, interface, kick);
            interrupts.has_commands(gic)
        });
        has_commands.unwrap_or(false)
    }

    /// Executes the commands of the ITS that an access has left. What this CPU is interrupted for is served in between.
    #[cold]
    fn execute_commands(&mut self) {
        let tables = self.tables();
        while self.vm.runs() {
            self.with_gic(|interrupts, gic, interface, kick| {
                interrupts.execute_commands(gic, interface, &tables, kick);
            });
            while self.take_interrupt() {}
            if !self.look_once() {
                return;
            }
        }
        // The kick that has said so is taken: the guest comes out before its first instruction.
        self.cpu.kick(self.here);
    }

    /// Takes the interrupt for which the guest has come out.
    pub(super) fn interrupt(&mut self) {
        if self.context.interrupts.is_none() {
            // None of a device is forwarded to this VM.
            while self.cpu.acknowledge_interrupts().is_some() {}
            return;
        }
        self.take_interrupt();
    }

    /// Takes one interrupt of this CPU. Returns whether there was one.
    fn take_interrupt(&mut self) -> bool {
        let private = match self.cpu.take_interrupt() {
            None => return false,
            Some(Interrupt::Kick) => return true,
            Some(Interrupt::Device(interrupt)) => {
                self.take_of_device(interrupt);
                return true;
            }
            Some(Interrupt::Maintenance) => None,
            Some(Interrupt::VirtualTimer) => Some(VIRTUAL_TIMER),
            Some(Interrupt::PhysicalTimer) => Some(PHYSICAL_TIMER),
            Some(Interrupt::Pmu) => Some(PMU_INTERRUPT),
        };
        self.with_gic(|interrupts, gic, interface, kick| match private {
            None => interrupts.maintenance(gic, interface, kick),
            Some(private) => interrupts.raise_physical(gic, interface, private, kick),
        });
        true
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

    /// What follows when the vCPU asks to be powered down.
    pub(super) fn power_down(&mut self, start: Start) -> Next {
        self.context.powers_down = Some(start);
        // Without a GIC there are no interrupts, and any kick wakes it.
        self.context.is_down = self.context.interrupts.is_some();
        if self.is_requested() {
            // It starts again at once.
            self.timeout = Some(0);
        }
        Next::WaitForInterrupt
    }

    fn is_requested(&mut self) -> bool {
        let is_requested = self.with_gic(|interrupts, gic, interface, kick| {
            interrupts.is_requested(gic, interface, kick)
        });
        is_requested.unwrap_or(false)
    }

    /// What a vCPU does that is loaded and was powered down: it goes on if an interrupt is there. A kick alone doesn't wake it.
    pub(super) fn power_up(&mut self) -> Next {
        // Timers that have expired meanwhile.
        while self.take_interrupt() {}
        if self.look_once() {
            self.execute_commands();
        }
        self.context.is_down = !self.is_requested();
        if !self.context.is_down {
            return Next::Enter;
        }
        // What the kicks were about that were taken is seen from here on.
        if !self.vm.runs() {
            // The next slice looks again.
            self.timeout = Some(0);
        }
        Next::WaitForInterrupt
    }

    /// When a vCPU goes on that waits for an interrupt, and was put.
    pub(super) fn wakes_at(&self) -> Option<u64> {
        let mut first = self.timeout;
        if let (Some(devices), Some(interrupts)) = (self.vm.devices(), &self.context.interrupts) {
            let virtual_timer = self.vm.counter_offset();
            let physical = self.cpu.physical_offset(virtual_timer);
            let offsets = TimerOffsets {
                virtual_timer,
                physical,
            };
            let due = self.context.state.el1.timers_due(offsets);
            for (timer, due) in [VIRTUAL_TIMER, PHYSICAL_TIMER].into_iter().zip(due) {
                // One whose interrupt doesn't come would end every wait at once.
                let due = due.filter(|_| interrupts.awaits(&devices.gic, timer));
                first = first.into_iter().chain(due).min();
            }
            // It has come since the guest was entered last.
            if self.context.state.pmu.is_raised() && interrupts.awaits(&devices.gic, PMU_INTERRUPT)
            {
                first = Some(0);
            }
        }
        first
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
