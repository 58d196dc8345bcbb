//! The machine that the control plane works with: the platform behind its trait.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use control::{Device, DeviceError, DeviceInterrupt, Facts, Machine, Registers, Speaker};
use memory::{CpuMemory, Object, ObjectError};
use platform::CpuId;
use platform::boot::System;
use platform::boot::cpus;
use platform::console;
use platform::cpu::common::Common;
use platform::discovery::Gic;
use platform::drivers::gic;
use platform::drivers::timer;
use platform::range::PhysicalRange;
use spin::Mutex;
use stage2::{Features, PAGE_SIZE, Pa};
use vgic::Version;
use vm::Seed;

use crate::watch::{GuestCpu, Hardware};

/// This machine.
pub struct Board {
    facts: Facts,
    system: &'static System,
    /// VMs that have got a seed.
    seeded: AtomicU64,
    /// What of devices guests have: for as long as somebody holds the lease.
    given: Mutex<Vec<(Given, Weak<()>)>>,
}

/// What a guest has of a device, and nobody else.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Given {
    /// The registers from here on.
    Registers(u64),
    /// The interrupt of this number.
    Interrupt(u32),
}

impl Board {
    /// For a machine whose CPUs are up, and have `stage2` with pages of 4 KiB.
    pub fn new(system: &'static System, stage2: Features, most_tlbi: u32) -> Self {
        let common = cpus::common();
        let facts = Facts {
            cpus: cpus::count(),
            stage2,
            most_tlbi,
            cpu_model: cpus::model(),
            gic: match system.machine.gic {
                Gic::V2 { .. } => 2,
                Gic::V3 { .. } => 3,
            },
            guest_gic: gic::list_registers().map(|_| match system.machine.gic {
                Gic::V2 { .. } => Version::V2,
                Gic::V3 { .. } => Version::V3,
            }),
            vector_bytes: common.vector_bytes(),
            pmu: pmu(system, &common),
            clock: "cntpct",
            wakes_for_input: (system.machine.console).is_some_and(|uart| uart.interrupt.is_some()),
        };
        Self {
            facts,
            system,
            seeded: AtomicU64::new(0),
            given: Mutex::new(Vec::new()),
        }
    }

    /// The lease of a device with these registers and interrupts.
    fn lease(
        &self,
        registers: &[Registers],
        interrupts: &[DeviceInterrupt],
    ) -> Result<Arc<()>, DeviceError> {
        let mut given = self.given.lock();
        given.retain(|(_, lease)| lease.strong_count() != 0);
        let console = self.system.machine.console.and_then(|uart| uart.interrupt);
        let registers = registers.iter().map(|one| Given::Registers(one.start));
        let interrupts = interrupts.iter().map(|one| Given::Interrupt(one.intid));
        let lease = Arc::new(());
        for one in registers.chain(interrupts) {
            // One is taken for one guest, and forwarded by one number.
            let is_console = console.is_some_and(|console| one == Given::Interrupt(console.0));
            if is_console || given.iter().any(|(other, _)| *other == one) {
                return Err(match one {
                    Given::Registers(_) => DeviceError::Given,
                    Given::Interrupt(intid) => DeviceError::SharedInterrupt { intid },
                });
            }
            let bytes = size_of::<(Given, Weak<()>)>() as u64;
            (given.try_reserve(1))
                .map_err(|_| DeviceError::Object(ObjectError::OutOfMemory { bytes }))?;
            given.push((one, Arc::downgrade(&lease)));
        }
        Ok(lease)
    }

    /// The object of some registers that a guest gets.
    fn registers(
        &self,
        memory: &CpuMemory<Hardware>,
        range: PhysicalRange,
    ) -> Result<Registers, DeviceError> {
        let (start, bytes) = (range.start(), range.size());
        if !start.is_multiple_of(PAGE_SIZE) || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(DeviceError::Unaligned { start, bytes });
        }
        if range.end() > 1 << self.system.features.pa_bits {
            return Err(DeviceError::NoRegisters);
        }
        if let Some(by) = self.system.machine.user_of(range) {
            return Err(DeviceError::Taken { start, by });
        }
        // SAFETY: it is neither memory, so none of the pool's, nor a device that the hypervisor uses. The user, who has named the
        // device, answers for its effects.
        let object = unsafe { Object::device(memory, Pa::new(start)..Pa::new(range.end())) };
        let object = object.map_err(DeviceError::Object)?;
        Ok(Registers { start, object })
    }
}

/// Whether guests can have the performance monitors, and those with a virtual GIC their interrupt.
fn pmu(system: &System, common: &Common) -> Result<(), &'static str> {
    common.pmu((system.machine.cpus.iter()).map(|cpu| cpu.mpidr.affinity()))?;
    if gic::list_registers().is_none() {
        // No guest has an interrupt controller.
        return Ok(());
    }
    match system.machine.gic {
        Gic::V2 { .. } => Err("its interrupt isn't forwarded by a GICv2"),
        Gic::V3 { .. } if gic::can_forward_pmu() => Ok(()),
        Gic::V3 { .. } => Err("the interrupt of the CPUs' PMU isn't PPI 7"),
    }
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board")
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

impl Machine for Board {
    type Cpu = GuestCpu;
    type Hardware = Hardware;

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn now_ns(&self) -> u64 {
        timer::now_ns()
    }

    fn seed(&self) -> Option<Seed> {
        let number = self.seeded.fetch_add(1, Ordering::Relaxed);
        self.system.machine.seed.map(|seed| seed.child(number))
    }

    fn counter(&self) -> u64 {
        timer::counter()
    }

    fn write_line(&self, line: fmt::Arguments<'_>) {
        console::write_line(line);
    }

    fn write_console(&self, bytes: &[u8]) -> usize {
        console::write(bytes)
    }

    fn write_console_as(&self, speaker: &Speaker<'_>, bytes: &[u8]) -> usize {
        console::write_as(speaker.number, speaker.name, speaker.is_within, bytes)
    }

    fn read_console(&self, bytes: &mut [u8]) -> usize {
        console::read(bytes)
    }

    fn kick(&self, cpu: vm::CpuId) {
        gic::kick(CpuId::new(cpu.0));
    }

    fn here(&self) -> vm::CpuId {
        vm::CpuId(CpuId::current().index())
    }

    fn kick_each(&self, cpus: impl Iterator<Item = vm::CpuId>) {
        gic::kick_each(cpus.map(|cpu| CpuId::new(cpu.0)));
    }

    fn device(&self, memory: &CpuMemory<Hardware>, path: &str) -> Result<Device, DeviceError> {
        let found = self.system.device(path).ok_or(DeviceError::Unknown)?;
        let no_room = |ranges: usize| {
            let bytes = (ranges * size_of::<Registers>()) as u64;
            DeviceError::Object(ObjectError::OutOfMemory { bytes })
        };
        let found = found.map_err(|error| no_room(error.ranges))?;
        if found.registers.is_empty() {
            return Err(DeviceError::NoRegisters);
        }
        let mut registers = Vec::new();
        let count = found.registers.len();
        registers
            .try_reserve_exact(count)
            .map_err(|_| no_room(count))?;
        for range in &found.registers {
            registers.push(self.registers(memory, *range)?);
        }
        let interrupts = match &found.interrupts {
            None => None,
            Some(found) => {
                let mut all = Vec::new();
                (all.try_reserve_exact(found.len())).map_err(|_| no_room(found.len()))?;
                all.extend(found.iter().map(|shared| DeviceInterrupt {
                    intid: shared.interrupt.0,
                    is_edge: shared.is_edge,
                }));
                Some(all)
            }
        };
        Ok(Device {
            lease: self.lease(&registers, interrupts.as_deref().unwrap_or_default())?,
            registers,
            interrupts,
            name: found.name,
            compatible: found.compatible,
            clock_names: found.clock_names,
        })
    }

    fn forward(&self, interrupt: &DeviceInterrupt, cpu: vm::CpuId) {
        let DeviceInterrupt { intid, is_edge } = *interrupt;
        gic::route(intid, is_edge, CpuId::new(cpu.0));
    }

    fn unmask(&self, interrupt: &DeviceInterrupt) {
        gic::unmask(interrupt.intid);
    }

    fn mask(&self, interrupt: &DeviceInterrupt) {
        gic::mask(interrupt.intid);
    }

    fn virtual_cpu_interface(
        &self,
        memory: &CpuMemory<Hardware>,
    ) -> Result<Registers, DeviceError> {
        let Gic::V2 {
            virtual_cpu_interface: Some(range),
            ..
        } = self.system.machine.gic
        else {
            return Err(DeviceError::NoRegisters);
        };
        let (start, bytes) = (range.start(), range.size());
        if !start.is_multiple_of(PAGE_SIZE) || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(DeviceError::Unaligned { start, bytes });
        }
        // SAFETY: nobody else uses it, and what a guest does there acts on the list registers of the CPU that runs it, which are
        // its own or, if it has no virtual GIC, are switched off.
        let object = unsafe { Object::device(memory, Pa::new(start)..Pa::new(range.end())) };
        let object = object.map_err(DeviceError::Object)?;
        Ok(Registers { start, object })
    }

    fn wait(&self, deadline_ns: u64) {
        gic::wait_until(deadline_ns);
    }
}
