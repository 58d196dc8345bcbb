//! GICv3 and v4, by system registers.

use super::{GicError, KICK, LOWEST_PRIORITY};
use crate::discovery::Mpidr;
use crate::percpu::{CpuId, PerCpu};
use crate::range::PhysicalRange;
use crate::register::write_register;
use aarch64_cpu::asm::barrier;
use alloc::vec::Vec;
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{
    GicCpuInterface, GicDistributor, GicRedistributor, GicRedistributorIterator,
    HIGHEST_NS_PRIORITY, SgiTarget, SgiTargetGroup,
};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};
use core::ptr::NonNull;

/// The targets that one write to ICC_SGI1R_EL1 can list.
const TARGETS: u8 = 16;

pub struct V3 {
    redistributors: Vec<PhysicalRange>,
}

impl V3 {
    pub fn new(distributor: PhysicalRange, redistributors: &[PhysicalRange]) -> Self {
        if let Some(registers) = NonNull::new(distributor.start() as *mut Gicd) {
            // SAFETY: the device tree says that this is a distributor; it is mapped as a device and only used here.
            let mut distributor = GicDistributor::new(unsafe { UniqueMmioPointer::new(registers) });
            distributor.configure_default_settings();
            distributor.enable_all_interrupts(false);
        }
        Self {
            redistributors: redistributors.to_vec(),
        }
    }

    pub fn init_cpu(&self, cpu: CpuId) -> Result<(), GicError> {
        let mpidr = PerCpu::try_current()
            .map(|data| data.mpidr)
            .ok_or(GicError::NoRedistributor(cpu))?;
        if mpidr.fields()[0] >= TARGETS {
            return Err(GicError::Affinity(cpu));
        }
        let mut redistributor = self
            .redistributor(mpidr)?
            .ok_or(GicError::NoRedistributor(cpu))?;
        GicCpuInterface::disable_legacy_interrupt_bypass_el2(true);
        GicCpuInterface::enable_system_register_el2(true);
        barrier::isb(barrier::SY);
        GicCpuInterface::enable_system_register_el1();
        barrier::isb(barrier::SY);
        // SAFETY: nothing of a guest's GIC is active.
        unsafe {
            write_register!("ich_hcr_el2", 0);
            write_register!("ich_vmcr_el2", 0);
        }
        // An error says that it is awake already.
        let _ = redistributor.mark_core_awake();
        redistributor.configure_default_settings();
        redistributor.enable_all_interrupts(false);
        let _ = redistributor.set_interrupt_priority(KICK, HIGHEST_NS_PRIORITY);
        let _ = redistributor.enable_interrupt(KICK, true);
        redistributor.wait_for_pending_write();
        // SAFETY: the end of an interrupt also deactivates it; nothing is active.
        unsafe { write_register!("icc_ctlr_el1", 0) };
        GicCpuInterface::set_priority_mask(LOWEST_PRIORITY);
        GicCpuInterface::enable_group1(true);
        Ok(())
    }

    pub fn enable_private(&self, interrupt: IntId) {
        let Some(mpidr) = PerCpu::try_current().map(|data| data.mpidr) else {
            return;
        };
        if let Ok(Some(mut redistributor)) = self.redistributor(mpidr) {
            let _ = redistributor.set_interrupt_priority(interrupt, HIGHEST_NS_PRIORITY);
            let _ = redistributor.enable_interrupt(interrupt, true);
        }
    }

    /// This CPU's redistributor, found by its affinity: their order is nobody's promise.
    fn redistributor(&self, mpidr: Mpidr) -> Result<Option<GicRedistributor<'static>>, GicError> {
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
            let found = redistributors
                .take(frames as usize)
                .find(|redistributor| redistributor.typer().core_mpidr() == mpidr.affinity());
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    pub fn kick(&self, target: Mpidr) {
        let [affinity0, affinity1, affinity2, affinity3] = target.fields();
        let target = SgiTarget::List {
            affinity3,
            affinity2,
            affinity1,
            target_list: 1 << (affinity0 % TARGETS),
        };
        // Fails only for what isn't an SGI.
        let _ = GicCpuInterface::send_sgi(KICK, target, SgiTargetGroup::CurrentGroup1);
    }

    pub fn acknowledge(&self) {
        while let Some(interrupt) =
            GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1)
        {
            GicCpuInterface::end_interrupt(interrupt, InterruptGroup::Group1);
        }
    }
}
