//! GICv2, for up to 8 CPUs.

use super::{GicError, KICK, LOWEST_PRIORITY};
use crate::cpu::percpu::CpuId;
use crate::range::PhysicalRange;
use arm_gic::gicv2::registers::{Gicc, Gicd};
use arm_gic::gicv2::{GicV2, SgiTarget, SgiTargetListFilter};
use arm_gic::{IntId, InterruptGroup};
use core::sync::atomic::{AtomicU8, Ordering};
use spin::mutex::TicketMutex;

const MAX_CPUS: usize = 8;
const GICD_ITARGETSR0: u64 = 0x800;
const SPURIOUS: u32 = 1020;

pub struct V2 {
    /// One lock for all, also for the registers that each CPU has for itself: kicks are rare. Fair, as guests cause kicks.
    driver: TicketMutex<GicV2<'static>>,
    distributor: PhysicalRange,
    /// Each CPU's bit in target lists, 0 until it is known.
    targets: [AtomicU8; MAX_CPUS],
}

impl V2 {
    pub fn new(distributor: PhysicalRange, cpu_interface: PhysicalRange) -> Result<Self, GicError> {
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
            driver: TicketMutex::new(driver),
            distributor,
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
        driver.set_interrupt_priority(KICK, 0);
        // SGIs may be enabled for ever, which reads back as an error.
        let _ = driver.enable_interrupt(KICK, true);
        target.store(self.own_target(), Ordering::Relaxed);
        Ok(())
    }

    pub fn enable_private(&self, interrupt: IntId) {
        let mut driver = self.driver.lock();
        driver.set_interrupt_priority(interrupt, 0);
        let _ = driver.enable_interrupt(interrupt, true);
    }

    /// This CPU's bit in target lists: the targets of its private interrupts read as itself.
    fn own_target(&self) -> u8 {
        let register = (self.distributor.start() + GICD_ITARGETSR0) as *const u32;
        // SAFETY: a read-only register of the distributor, mapped as a device.
        unsafe { register.read_volatile() as u8 }
    }

    pub fn kick(&self, cpu: CpuId) {
        let Some(target) = self.targets.get(cpu.index()) else {
            return;
        };
        let target = SgiTarget::List {
            target_list_filter: SgiTargetListFilter::CPUTargetList,
            target_list: target.load(Ordering::Relaxed).into(),
        };
        self.driver.lock().send_sgi(KICK, target);
    }

    pub fn acknowledge(&self) {
        let mut driver = self.driver.lock();
        // The alias registers are for group 1 seen from the secure side; both views we can have use the plain ones.
        while let Some(interrupt) = driver.get_and_acknowledge_interrupt(InterruptGroup::Group0) {
            if interrupt.raw_value() & 0x3ff >= SPURIOUS {
                break;
            }
            driver.end_interrupt(interrupt, InterruptGroup::Group0);
        }
    }
}
