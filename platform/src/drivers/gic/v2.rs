//! GICv2, for up to 8 CPUs.

use super::list_registers::ListRegisters;
use super::registers::{Registers, set_field, set_up_shared};
use super::{GicError, KICK, LOWEST_PRIORITY};
use crate::cpu::percpu::CpuId;
use crate::range::PhysicalRange;
use arm_gic::gicv2::GicV2;
use arm_gic::gicv2::registers::{Gicc, Gicd};
use core::sync::atomic::{AtomicU8, Ordering};
use spin::Mutex;

const MAX_CPUS: usize = 8;
/// Registers of the distributor.
const GICD_ISENABLER0: u64 = 0x100;
const GICD_ICENABLER0: u64 = 0x180;
const GICD_ISACTIVER0: u64 = 0x300;
const GICD_ICACTIVER0: u64 = 0x380;
const GICD_IPRIORITYR0: u64 = 0x400;
/// Of the priorities of what is private to a CPU, four to a word.
const PRIORITY_WORDS: u64 = 8;
const GICD_ITARGETSR0: u64 = 0x800;
const GICD_SGIR: u64 = 0xf00;
/// Registers of the CPU interface.
const GICC_CTLR: u64 = 0;
const GICC_IAR: u64 = 0xc;
const GICC_EOIR: u64 = 0x10;
const GICC_DIR: u64 = 0x1000;
/// GICC_CTLR: interrupts are signalled, of the only group that EL2 sees; their end doesn't deactivate them.
const ENABLED: u32 = 1;
const EOI_MODE: u32 = 1 << 9;
/// The number of an interrupt in GICC_IAR. Above it an SGI has its source, which its end must have too.
pub const INTID: u32 = 0x3ff;
const SPURIOUS: u32 = 1020;

pub struct V2 {
    /// For what a CPU sets up as it starts.
    driver: Mutex<GicV2<'static>>,
    distributor: Registers,
    cpu_interface: Registers,
    virtual_control: Option<Registers>,
    /// GICC_DIR exists where the tree says that the CPU interface is.
    ends_in_two_steps: bool,
    /// Each CPU's bit in target lists, 0 until it is known.
    targets: [AtomicU8; MAX_CPUS],
}

impl V2 {
    pub fn new(
        distributor: PhysicalRange,
        cpu_interface: PhysicalRange,
        virtual_control: Option<PhysicalRange>,
    ) -> Result<Self, GicError> {
        // SAFETY: the device tree says that these are a GIC's registers; they are mapped as a device and nobody else
        // uses them.
        let mut driver = unsafe {
            GicV2::new(
                distributor.start() as *mut Gicd,
                cpu_interface.start() as *mut Gicc,
            )
        };
        driver.enable_all_interrupts(false);
        Ok(Self {
            driver: Mutex::new(driver),
            // SAFETY: as above. Each CPU has a CPU interface of its own; of the distributor only registers are used that act
            // by single bits, or on what is private to the CPU.
            distributor: unsafe { Registers::new(distributor) },
            // SAFETY: as above.
            cpu_interface: unsafe { Registers::new(cpu_interface) },
            // SAFETY: as above.
            virtual_control: virtual_control.map(|range| unsafe { Registers::new(range) }),
            ends_in_two_steps: cpu_interface.size() > GICC_DIR,
            targets: [const { AtomicU8::new(0) }; MAX_CPUS],
        })
    }

    pub fn init_cpu(&self, cpu: CpuId) -> Result<(), GicError> {
        let target = self
            .targets
            .get(cpu.index())
            .ok_or(GicError::TooManyCpus(cpu.index() + 1))?;
        let mut driver = self.driver.lock();
        driver.setup();
        // With two security states this is the non-secure group, whose enable bit the driver takes for group 0's.
        driver.enable_group0(true);
        driver.set_priority_mask(LOWEST_PRIORITY);
        self.distributor.write(GICD_ICENABLER0, u32::MAX);
        for word in 0..PRIORITY_WORDS {
            self.distributor.write(GICD_IPRIORITYR0 + word * 4, 0);
        }
        // SGIs may be enabled for ever, which reads back as an error.
        let _ = driver.enable_interrupt(KICK, true);
        target.store(self.own_target(), Ordering::Relaxed);
        if let Some(mut guest) = self.list_registers() {
            guest.switch_off();
        }
        let eoi_mode = if self.ends_in_two_steps { EOI_MODE } else { 0 };
        self.cpu_interface.write(GICC_CTLR, ENABLED | eoi_mode);
        Ok(())
    }

    pub fn list_registers(&self) -> Option<ListRegisters> {
        let registers = self.virtual_control.filter(|_| self.ends_in_two_steps)?;
        Some(ListRegisters::mapped(registers))
    }

    pub fn set_enabled(&self, private: u32, enabled: bool) {
        let register = if enabled {
            GICD_ISENABLER0
        } else {
            GICD_ICENABLER0
        };
        self.distributor.write(register, private);
    }

    pub fn set_active(&self, private: u32, active: bool) {
        let register = if active {
            GICD_ISACTIVER0
        } else {
            GICD_ICACTIVER0
        };
        self.distributor.write(register, private);
    }

    pub fn distributor(&self) -> Registers {
        self.distributor
    }

    /// Sets up an interrupt that all CPUs share, for this CPU alone. It stays off.
    pub fn route_here(&self, interrupt: u32) {
        set_up_shared(self.distributor, interrupt);
        let target = self.own_target().into();
        set_field(self.distributor, GICD_ITARGETSR0, 8, interrupt, target);
    }

    /// This CPU's bit in target lists: the targets of its private interrupts read as itself.
    fn own_target(&self) -> u8 {
        self.distributor.read(GICD_ITARGETSR0) as u8
    }

    pub fn kick(&self, cpu: CpuId) {
        const TARGETS: u32 = 16;
        // As a secure GIC needs it: of the group that EL2 sees.
        const NON_SECURE: u32 = 1 << 15;
        let Some(target) = self.targets.get(cpu.index()) else {
            return;
        };
        let target = u32::from(target.load(Ordering::Relaxed));
        self.distributor
            .write(GICD_SGIR, target << TARGETS | NON_SECURE | u32::from(KICK));
    }

    pub fn take(&self) -> Option<u32> {
        // Not the alias register, which is for group 1 seen from the secure side; both views that we can have use this one.
        let taken = self.cpu_interface.read(GICC_IAR);
        if taken & INTID >= SPURIOUS {
            return None;
        }
        self.cpu_interface.write(GICC_EOIR, taken);
        Some(taken)
    }

    pub fn deactivate(&self, taken: u32) {
        if self.ends_in_two_steps {
            self.cpu_interface.write(GICC_DIR, taken);
        }
    }
}
