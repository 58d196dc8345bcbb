//! A guest's accesses to the registers of its interrupt controller and devices. They come before its memory is looked through.

use devices::Width;
use stage2::{Ipa, PAGE_SIZE};
use vgic::{Frame, GuestTables};

use super::running::Running;
use crate::calls::service::Service;
use crate::counts::exits::ExitKind;
use crate::machine::cpu::{Cpu, RawExit};
use crate::machine::guest_memory::GuestMemory;
use crate::registers::syndrome::{Abort, RegisterAccess, fault_page};
use crate::registers::sysreg::Direction;
use crate::vm::devices::Place;

/// The guest's memory, in which are tables of its interrupt controller.
pub(super) struct Tables<'m, S, C> {
    space: &'m S,
    memory: &'m C,
}

impl<S: GuestMemory<C>, C> GuestTables for Tables<'_, S, C> {
    fn read(&self, ipa: u64, bytes: &mut [u8]) -> bool {
        self.space.read_bytes(self.memory, Ipa::new(ipa), bytes)
    }
}

impl<'r, S, C, K, V> Running<'r, S, C, K, V>
where
    S: GuestMemory<C>,
    K: Cpu,
    V: Service + ?Sized,
{
    /// Serves an access to what is emulated; tells whether something is there. Such as the syndrome doesn't describe are external
    /// aborts.
    #[inline(never)]
    pub(super) fn device_access(&mut self, exit: &RawExit, abort: Abort) -> bool {
        let ipa = Ipa::new(fault_page(exit.hpfar) | (exit.far % PAGE_SIZE));
        let Some(place) = self.vm.devices().and_then(|devices| devices.find(ipa)) else {
            return false;
        };
        match abort.register_access() {
            Some(access) => {
                self.count(ExitKind::DeviceAccess);
                self.access(&place, access);
            }
            None => {
                self.count(ExitKind::TranslationFault);
                self.inject_external_abort(exit);
            }
        }
        true
    }

    /// Executes a load or store. If it can't be completed yet, the guest executes it again.
    #[inline(always)]
    fn access(&mut self, place: &Place<'_>, access: RegisterAccess) {
        let done = match access.direction {
            Direction::Read => self.read(place, access.width).map(|value| {
                let regs = &mut self.context.state.regs;
                regs.set_operand(access.operand, access.loaded(value));
            }),
            Direction::Write => {
                let value = self.context.state.regs.operand(access.operand);
                self.write(place, access.width, access.width.of(value))
            }
        };
        if done.is_some() {
            self.skip_instruction();
        }
    }

    pub(super) fn tables(&self) -> Tables<'r, S, C> {
        Tables {
            space: &self.vm.space,
            memory: self.memory,
        }
    }

    #[inline(always)]
    fn read(&mut self, place: &Place<'_>, width: Width) -> Option<u64> {
        let (frame, offset) = match *place {
            Place::Device(device, offset) => return Some(device.read(offset, width)),
            Place::Gic(frame, offset) => (frame, offset),
        };
        let gic = &self.vm.devices()?.gic;
        let interrupts = self.context.interrupts.as_mut()?;
        let shared = interrupts.read_shared(gic, frame, offset, width);
        shared.or_else(|| self.read_local(frame, offset, width))
    }

    /// Reads a register of the interrupt controller that the CPU's list registers have a part in, or one of the ITS.
    #[inline(never)]
    fn read_local(&mut self, frame: Frame, offset: u64, width: Width) -> Option<u64> {
        let tables = self.tables();
        self.with_gic(|interrupts, gic, interface, kick| {
            interrupts
                .read(gic, interface, &tables, frame, offset, width, kick)
                .ok()
        })?
    }

    fn write(&mut self, place: &Place<'_>, width: Width, value: u64) -> Option<()> {
        let tables = self.tables();
        match *place {
            Place::Device(device, offset) => {
                device.write(offset, width, value);
                Some(())
            }
            Place::Gic(frame, offset) => self.with_gic(|interrupts, gic, interface, kick| {
                interrupts
                    .write(gic, interface, &tables, frame, offset, width, value, kick)
                    .ok()
            })?,
        }
    }
}
