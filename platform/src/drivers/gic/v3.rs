//! GICv3 and v4, by system registers.

use super::list_registers::ListRegisters;
use super::registers::Registers;
use super::{GicError, KICK, LOWEST_PRIORITY};
use crate::cpu::percpu::{CpuId, PerCpu};
use crate::cpu::register::{read_register, write_register};
use crate::discovery::Mpidr;
use crate::range::PhysicalRange;
use aarch64_cpu::asm::barrier;
use alloc::vec::Vec;
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{
    GicCpuInterface, GicDistributor, GicRedistributor, GicRedistributorIterator,
    HIGHEST_NS_PRIORITY, SgiTarget, SgiTargetGroup,
};
use arm_gic::{InterruptGroup, UniqueMmioPointer};
use core::ptr::NonNull;
use spin::Once;
use vgic::VirtualInterface;

/// ICC_SRE_EL2 (IHI 0069, 12.2.20): system registers instead of memory-mapped ones, and no bypass of the GIC. Enable (bit 3)
/// stays clear, so EL1's ICC_SRE_EL1 traps.
const ICC_SRE: u64 = 1;
const ICC_SRE_NO_BYPASS: u64 = 0b11 << 1;

/// ICC_CTLR_EL1: the end of an interrupt doesn't deactivate it.
const ICC_CTLR_EOI_MODE: u64 = 1 << 1;
/// The size of a redistributor's frames. The second has what is private to its CPU.
const FRAME: u64 = 1 << 16;
const GICR_ISENABLER0: u64 = 0x100;
const GICR_ICENABLER0: u64 = 0x180;
const GICR_ISACTIVER0: u64 = 0x300;
const GICR_ICACTIVER0: u64 = 0x380;

/// The most targets of one write to ICC_SGI1R_EL1.
const TARGETS: u8 = 16;

/// CPUs that one write to ICC_SGI1R_EL1 can name.
#[derive(Clone, Copy)]
struct Targets {
    /// Affinities 3, 2 and 1, where a CPU's own has them.
    cluster: u64,
    /// A bit for each affinity 0.
    list: u16,
}

impl Targets {
    fn of(cpu: Mpidr) -> Self {
        let affinity0 = cpu.affinity() as u8;
        Self {
            cluster: cpu.affinity() & !0xff,
            list: 1 << (affinity0 % TARGETS),
        }
    }
}

fn send(targets: Targets) {
    let [_, affinity1, affinity2, affinity3] = Mpidr::from_register(targets.cluster).fields();
    let target = SgiTarget::List {
        affinity3,
        affinity2,
        affinity1,
        target_list: targets.list,
    };
    // Fails only for what isn't an SGI.
    let _ = GicCpuInterface::send_sgi(KICK, target, SgiTargetGroup::CurrentGroup1);
}

/// What was sent is on its way. Without this a CPU that waits, or works at EL2 for long, may keep it to itself.
fn complete() {
    barrier::isb(barrier::SY);
}

pub struct V3 {
    distributor: Option<Registers>,
    redistributors: Vec<PhysicalRange>,
    /// Each CPU's registers for its private interrupts, once it has found them.
    private: Vec<Once<Registers>>,
}

impl V3 {
    pub fn new(distributor: PhysicalRange, redistributors: &[PhysicalRange], cpus: usize) -> Self {
        let registers = NonNull::new(distributor.start() as *mut Gicd).map(|start| {
            // SAFETY: the device tree says that this is a distributor; it is mapped as a device, and only used here. The driver
            // goes before the registers are used.
            let (driver, registers) = unsafe {
                let registers = Registers::new(distributor);
                (UniqueMmioPointer::new(start), registers)
            };
            let mut driver = GicDistributor::new(driver);
            driver.configure_default_settings();
            driver.enable_all_interrupts(false);
            registers
        });
        Self {
            distributor: registers,
            redistributors: redistributors.to_vec(),
            private: (0..cpus).map(|_| Once::new()).collect(),
        }
    }

    pub fn init_cpu(&self, cpu: CpuId) -> Result<(), GicError> {
        let mpidr = PerCpu::try_current()
            .map(|data| data.mpidr)
            .ok_or(GicError::NoRedistributor(cpu))?;
        if mpidr.fields()[0] >= TARGETS {
            return Err(GicError::Affinity(cpu));
        }
        let (mut redistributor, private) = self
            .redistributor(mpidr)?
            .ok_or(GicError::NoRedistributor(cpu))?;
        // SAFETY: nothing of a guest's GIC is active, and the CPU's ID register says that the register exists.
        unsafe { write_register!("s3_4_c12_c9_5", ICC_SRE | ICC_SRE_NO_BYPASS) }; // ICC_SRE_EL2
        barrier::isb(barrier::SY);
        if read_register!("s3_4_c12_c9_5") & ICC_SRE == 0 {
            return Err(GicError::SystemRegistersOff(cpu));
        }
        GicCpuInterface::enable_system_register_el1();
        barrier::isb(barrier::SY);
        let mut guest = ListRegisters::system();
        guest.switch_off();
        guest.write_vmcr(0);
        // An error says that it is awake already.
        let _ = redistributor.mark_core_awake();
        redistributor.configure_default_settings();
        redistributor.enable_all_interrupts(false);
        let _ = redistributor.set_interrupt_priority(KICK, HIGHEST_NS_PRIORITY);
        let _ = redistributor.enable_interrupt(KICK, true);
        redistributor.wait_for_pending_write();
        if let Some(known) = self.private.get(cpu.index()) {
            known.call_once(|| private);
        }
        // SAFETY: how an interrupt is ended; nothing is active.
        unsafe { write_register!("icc_ctlr_el1", ICC_CTLR_EOI_MODE) };
        GicCpuInterface::set_priority_mask(LOWEST_PRIORITY);
        GicCpuInterface::enable_group1(true);
        Ok(())
    }

    /// The distributor's registers.
    pub fn distributor(&self) -> Option<Registers> {
        self.distributor
    }

    pub fn set_enabled(&self, private: u32, enabled: bool) {
        self.write_private(
            if enabled {
                GICR_ISENABLER0
            } else {
                GICR_ICENABLER0
            },
            private,
        );
    }

    pub fn set_active(&self, private: u32, active: bool) {
        self.write_private(
            if active {
                GICR_ISACTIVER0
            } else {
                GICR_ICACTIVER0
            },
            private,
        );
    }

    fn write_private(&self, register: u64, private: u32) {
        let registers = self.private.get(CpuId::current().index());
        if let Some(registers) = registers.and_then(Once::get) {
            registers.write(register, private);
        }
    }

    /// This CPU's redistributor, found by its affinity: their order is nobody's promise. Also its registers for private
    /// interrupts.
    fn redistributor(
        &self,
        mpidr: Mpidr,
    ) -> Result<Option<(GicRedistributor<'static>, Registers)>, GicError> {
        for region in &self.redistributors {
            let Some(base) = NonNull::new(region.start() as *mut GicrSgi) else {
                continue;
            };
            let frames = region.size() / size_of::<GicrSgi>() as u64;
            if frames == 0 {
                continue;
            }
            // SAFETY: the device tree says that redistributors are here, they are mapped as a device, and no more of them
            // are looked at than the region holds. Each CPU keeps only its own.
            let redistributors = unsafe { GicRedistributorIterator::new(base) }
                .map_err(|_| GicError::UnknownLayout(*region))?;
            let mut start = region.start();
            for redistributor in redistributors.take(frames as usize) {
                let typer = redistributor.typer();
                if typer.core_mpidr() == mpidr.affinity() {
                    let private = PhysicalRange::sized(start + FRAME, FRAME);
                    // SAFETY: as above.
                    let private = private.map(|private| unsafe { Registers::new(private) });
                    return Ok(private.map(|private| (redistributor, private)));
                }
                let frames = if typer.virtual_lpis_supported() { 4 } else { 2 };
                start += frames * FRAME;
            }
        }
        Ok(None)
    }

    pub fn kick(&self, target: Mpidr) {
        send(Targets::of(target));
        complete();
    }

    /// Sends one interrupt for each run of targets that one write can name.
    pub fn kick_each(&self, targets: impl Iterator<Item = Mpidr>) {
        let mut named: Option<Targets> = None;
        for target in targets.map(Targets::of) {
            named = match named {
                Some(targets) if targets.cluster == target.cluster => Some(Targets {
                    list: targets.list | target.list,
                    ..targets
                }),
                Some(targets) => {
                    send(targets);
                    Some(target)
                }
                None => Some(target),
            };
        }
        if let Some(targets) = named {
            send(targets);
        }
        complete();
    }

    pub fn take(&self) -> Option<u32> {
        let taken = GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1)?;
        GicCpuInterface::end_interrupt(taken, InterruptGroup::Group1);
        Some(u32::from(taken))
    }

    pub fn deactivate(&self, taken: u32) {
        // SAFETY: an interrupt that this CPU has taken.
        unsafe { write_register!("s3_0_c12_c11_1", u64::from(taken)) }; // ICC_DIR_EL1
    }
}
