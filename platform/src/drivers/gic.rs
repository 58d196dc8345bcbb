//! The interrupt controller, as far as the hypervisor itself needs it: one software-generated interrupt, which kicks a CPU out
//! of a guest or a wait, and the timer's interrupt, which ends a wait. All other interrupts are off.
//!
//! The device tree says which GIC is in use: its registers are memory-mapped (GICv2) or system registers (GICv3). The CPU's ID
//! register only says that system registers *may* exist: QEMU's model a64fx has the ID field, but a GICv2 and undefined system
//! registers. While memory-mapped registers are in use, ICC_SRE_EL2.SRE is 0, and ICC_* at EL1 is undefined (IHI 0069,
//! 12.2.20). So only `v3` touches system registers.
//!
//! Interrupts are always masked at EL2, so a kick is never taken there: it ends a WFI, or a guest's run. Any CPU may kick any
//! other at any time.

mod v2;
mod v3;

use crate::cpu::percpu::{self, CpuId};
use crate::discovery;
use crate::drivers::timer;
use crate::range::PhysicalRange;
use aarch64_cpu::asm::barrier;
use arm_gic::IntId;
use core::fmt;
use spin::Once;
use v2::V2;
use v3::V3;

/// The interrupt that kicks.
const KICK: IntId = IntId::sgi(0);
/// No priority masks interrupts.
const LOWEST_PRIORITY: u8 = 0xff;

static GIC: Once<Gic> = Once::new();
/// The interrupt of the timer that ends waits, if it is known.
static TIMER: Once<discovery::Interrupt> = Once::new();

enum Gic {
    V2(V2),
    V3(V3),
}

/// Why the interrupt controller can't be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GicError {
    /// The tree describes a GICv3, but the CPU has no registers for it.
    NoSystemRegisters,
    /// The CPU has registers for a GICv3, but firmware keeps them switched off (ICC_SRE_EL2.SRE stays 0).
    SystemRegistersOff(CpuId),
    /// No redistributor belongs to this CPU.
    NoRedistributor(CpuId),
    /// Redistributors of an unknown layout.
    UnknownLayout(PhysicalRange),
    /// GICv2 serves 8 CPUs.
    TooManyCpus(usize),
    /// The CPU's affinity level 0 is above 15, which kicks don't reach.
    Affinity(CpuId),
}

impl fmt::Display for GicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSystemRegisters => {
                f.write_str("the device tree describes a GICv3 but the CPU can't talk to one")
            }
            Self::SystemRegistersOff(cpu) => write!(
                f,
                "the device tree describes a GICv3 but firmware keeps its system registers off on {cpu}"
            ),
            Self::NoRedistributor(cpu) => write!(f, "no GIC redistributor belongs to {cpu}"),
            Self::UnknownLayout(region) => write!(
                f,
                "the GIC redistributors at {region} have an unknown layout"
            ),
            Self::TooManyCpus(count) => write!(f, "GICv2 can't serve {count} CPUs"),
            Self::Affinity(cpu) => write!(
                f,
                "{cpu} has an affinity that interrupts between CPUs don't reach"
            ),
        }
    }
}

impl core::error::Error for GicError {}

/// Starts the interrupt controller, and this CPU's part of it. Called by the boot CPU, with the registers mapped.
pub(crate) fn init(gic: &discovery::Gic, has_system_registers: bool) -> Result<(), GicError> {
    let gic = match gic {
        discovery::Gic::V2 {
            distributor,
            cpu_interface,
            ..
        } => Gic::V2(V2::new(*distributor, *cpu_interface)?),
        discovery::Gic::V3 { .. } if !has_system_registers => {
            return Err(GicError::NoSystemRegisters);
        }
        discovery::Gic::V3 {
            distributor,
            redistributors,
        } => Gic::V3(V3::new(*distributor, redistributors)),
    };
    GIC.call_once(|| gic);
    init_cpu()
}

/// Lets the timer's interrupt, which is private to each CPU, end the waits of this CPU, and of CPUs that start later.
pub(crate) fn enable_timer(interrupt: discovery::Interrupt) {
    TIMER.call_once(|| interrupt);
    enable_private(interrupt);
}

/// Lets an interrupt that is private to this CPU end its waits.
fn enable_private(interrupt: discovery::Interrupt) {
    const FIRST_PRIVATE: u32 = 16;
    let Some(number) = interrupt
        .0
        .checked_sub(FIRST_PRIVATE)
        .filter(|number| *number < FIRST_PRIVATE)
    else {
        return;
    };
    match GIC.get() {
        Some(Gic::V2(gic)) => gic.enable_private(IntId::ppi(number)),
        Some(Gic::V3(gic)) => gic.enable_private(IntId::ppi(number)),
        None => {}
    }
}

/// Starts this CPU's part.
pub(crate) fn init_cpu() -> Result<(), GicError> {
    let cpu = CpuId::current();
    match GIC.get() {
        Some(Gic::V2(gic)) => gic.init_cpu(cpu)?,
        Some(Gic::V3(gic)) => gic.init_cpu(cpu)?,
        None => {}
    }
    // After a reset it may ask for the interrupt.
    timer::disarm();
    if let Some(interrupt) = TIMER.get() {
        enable_private(*interrupt);
    }
    Ok(())
}

/// Makes `cpu` leave its guest, or wake up, now or at its next attempt. The caller's earlier writes are visible to it then.
/// Kicks that come before the CPU [acknowledges](acknowledge) merge into one.
pub fn kick(cpu: CpuId) {
    let Some(target) = percpu::get(cpu) else {
        return;
    };
    barrier::dsb(barrier::ISHST);
    match GIC.get() {
        Some(Gic::V2(gic)) => gic.kick(cpu),
        Some(Gic::V3(gic)) => gic.kick(target.mpidr),
        None => {}
    }
}

/// As [`kick`], for several CPUs: by one interrupt for each run of neighbours that the controller can name at once.
pub fn kick_each(cpus: impl Iterator<Item = CpuId>) {
    barrier::dsb(barrier::ISHST);
    match GIC.get() {
        Some(Gic::V2(gic)) => cpus.for_each(|cpu| gic.kick(cpu)),
        Some(Gic::V3(gic)) => {
            let others = percpu::secondaries();
            let data = |cpu: CpuId| match cpu.index().checked_sub(1) {
                None => percpu::get(cpu),
                Some(index) => others.get(index),
            };
            gic.kick_each(cpus.filter_map(|cpu| Some(data(cpu)?.mpidr)));
        }
        None => {}
    }
}

/// Takes and ends the interrupts that are pending for this CPU, so that it can wait, or run a guest, again.
pub fn acknowledge() {
    match GIC.get() {
        Some(Gic::V2(gic)) => gic.acknowledge(),
        Some(Gic::V3(gic)) => gic.acknowledge(),
        None => {}
    }
    // What the kicks announce is read after they have been acknowledged: reads of ICC_IAR1_EL1 order no later loads by
    // themselves (IHI 0069 4.2.1).
    barrier::dsb(barrier::SY);
}

/// As [`wait`], but only until [`timer::now_ns`] reaches `deadline_ns`, if the timer's interrupt is known.
pub fn wait_until(deadline_ns: u64) {
    timer::arm(deadline_ns);
    barrier::dsb(barrier::SY);
    aarch64_cpu::asm::wfi();
    // Before the interrupt is ended: it stays pending for as long as the timer asks for it.
    timer::disarm();
    acknowledge();
}

/// Waits until this CPU is kicked (or was, since it last acknowledged), and acknowledges. May return early.
pub fn wait() {
    barrier::dsb(barrier::SY);
    aarch64_cpu::asm::wfi();
    acknowledge();
}
