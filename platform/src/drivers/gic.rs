//! The interrupt controller: what the hypervisor itself needs of it, and the physical side of guests' interrupts.
//!
//! The hypervisor has one software-generated interrupt, which kicks a CPU out of a guest or a wait, and the interrupt of EL2's
//! timer, which ends a wait. The boot CPU also takes that of the console's UART, when it wants to know of input. A CPU that has
//! loaded a guest with a virtual GIC also takes the interrupts of EL1's timers, and of the performance monitors if the guest uses them,
//! which are forwarded to the guest, and the maintenance interrupt of the CPU's list registers. A CPU that runs a vCPU of a VM with devices of the machine takes their
//! interrupts (`shared`). All other interrupts are off.
//!
//! The end of an interrupt is in two steps (EOImode 1): the priority is dropped as soon as an interrupt is taken, and it stays
//! active until it is deactivated. What concerns EL2 is deactivated at once, what is forwarded by the guest.
//!
//! The device tree says which GIC is in use: its registers are memory-mapped (GICv2) or system registers (GICv3). The CPU's ID
//! register only says that system registers *may* exist: QEMU's model a64fx has the ID field, but a GICv2 and undefined system
//! registers. While memory-mapped registers are in use, ICC_SRE_EL2.SRE is 0, and ICC_* at EL1 is undefined (IHI 0069,
//! 12.2.20). So only `v3` touches system registers.
//!
//! Interrupts are always masked at EL2, so a kick is never taken there: it ends a WFI, or a guest's run. Any CPU may kick any
//! other at any time.

mod list_registers;
mod registers;
mod shared;
mod v2;
mod v3;

use crate::cpu::percpu::{self, CpuId};
use crate::discovery::{self, Interrupt, Machine, TimerInterrupts};
use crate::drivers::timer;
use crate::range::PhysicalRange;
use aarch64_cpu::asm::barrier;
use arm_gic::IntId;
use core::fmt;
pub use list_registers::ListRegisters;
use registers::Registers;
use spin::Once;
use v2::V2;
use v3::V3;

/// The interrupt that kicks.
const KICK: IntId = IntId::sgi(0);
/// No priority masks interrupts.
const LOWEST_PRIORITY: u8 = 0xff;
/// Interrupts private to each CPU.
const PRIVATE: u32 = 32;

static GIC: Once<Gic> = Once::new();

/// A GIC, and the interrupts that are in use.
struct Gic {
    version: Version,
    /// Those of the timers, if they are known.
    timers: Option<TimerInterrupts>,
    /// That of the list registers, if it is known.
    maintenance: Option<Interrupt>,
    /// That of the performance monitors, if it is known.
    pmu: Option<Interrupt>,
    /// That of the console's UART, if it is known.
    console: Option<Interrupt>,
}

enum Version {
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
pub(crate) fn init(machine: &Machine, has_system_registers: bool) -> Result<(), GicError> {
    let version = match &machine.gic {
        discovery::Gic::V2 {
            distributor,
            cpu_interface,
            virtual_control,
            ..
        } => Version::V2(V2::new(*distributor, *cpu_interface, *virtual_control)?),
        discovery::Gic::V3 { .. } if !has_system_registers => {
            return Err(GicError::NoSystemRegisters);
        }
        discovery::Gic::V3 {
            distributor,
            redistributors,
        } => Version::V3(V3::new(*distributor, redistributors, machine.cpus.len())),
    };
    GIC.call_once(|| Gic {
        version,
        timers: machine.timer,
        maintenance: machine.maintenance,
        pmu: machine.pmu,
        console: machine.console.and_then(|uart| uart.interrupt),
    });
    init_cpu()?;
    if let Some(gic) = GIC.get()
        && let Some(console) = gic.console
    {
        route(console.0, false, CpuId::current());
    }
    Ok(())
}

/// Starts this CPU's part.
pub(crate) fn init_cpu() -> Result<(), GicError> {
    let cpu = CpuId::current();
    let Some(gic) = GIC.get() else {
        return Ok(());
    };
    match &gic.version {
        Version::V2(gic) => gic.init_cpu(cpu)?,
        Version::V3(gic) => gic.init_cpu(cpu)?,
    }
    // After a reset it may ask for the interrupt.
    timer::disarm();
    // What firmware has left active would never be taken.
    gic.set_active(u32::MAX, false);
    gic.set_enabled(gic.own_interrupts(), true);
    Ok(())
}

impl Gic {
    /// Those that this CPU always takes.
    fn own_interrupts(&self) -> u32 {
        let timer = self.timers.map(|timers| timers.hypervisor);
        [timer, self.maintenance].into_iter().flatten().fold(0, add)
    }

    /// Those that go to guests.
    fn forwarded(&self) -> impl Iterator<Item = Interrupt> {
        let timers = self.timers.into_iter();
        timers.flat_map(|timers| [timers.physical, timers.virtual_timer])
    }

    /// Switches interrupts that are private to this CPU on or off: a bit for each.
    fn set_enabled(&self, interrupts: u32, enabled: bool) {
        match &self.version {
            Version::V2(gic) => gic.set_enabled(interrupts, enabled),
            Version::V3(gic) => gic.set_enabled(interrupts, enabled),
        }
    }

    /// Makes interrupts that are private to this CPU active, or ends that: a bit for each.
    fn set_active(&self, interrupts: u32, active: bool) {
        match &self.version {
            Version::V2(gic) => gic.set_active(interrupts, active),
            Version::V3(gic) => gic.set_active(interrupts, active),
        }
    }

    /// Takes the pending interrupt of the highest priority, and drops the priority again. Returns it as the GIC names it.
    fn take(&self) -> Option<u32> {
        match &self.version {
            Version::V2(gic) => gic.take(),
            Version::V3(gic) => gic.take(),
        }
    }

    /// The interrupt that [`Self::take`] has returned.
    fn interrupt(&self, taken: u32) -> Interrupt {
        match &self.version {
            Version::V2(_) => Interrupt(taken & v2::INTID),
            Version::V3(_) => Interrupt(taken),
        }
    }

    /// The number of an interrupt that is of a device which a guest has.
    fn of_device(&self, interrupt: Interrupt) -> Option<u32> {
        let is_ours = interrupt.0 < PRIVATE || self.console == Some(interrupt);
        (!is_ours).then_some(interrupt.0)
    }

    /// The distributor's registers.
    fn distributor(&self) -> Option<Registers> {
        match &self.version {
            Version::V2(gic) => Some(gic.distributor()),
            Version::V3(gic) => gic.distributor(),
        }
    }

    /// Ends an interrupt that was taken.
    fn deactivate(&self, taken: u32) {
        match &self.version {
            Version::V2(gic) => gic.deactivate(taken),
            Version::V3(gic) => gic.deactivate(taken),
        }
    }
}

fn add(interrupts: u32, interrupt: Interrupt) -> u32 {
    interrupts | 1 << (interrupt.0 % PRIVATE)
}

/// Makes `cpu` leave its guest, or wake up, now or at its next attempt. The caller's earlier writes are visible to it then.
/// Kicks that come before the CPU [acknowledges](acknowledge) merge into one.
pub fn kick(cpu: CpuId) {
    let Some(target) = percpu::get(cpu) else {
        return;
    };
    barrier::dsb(barrier::ISHST);
    match GIC.get().map(|gic| &gic.version) {
        Some(Version::V2(gic)) => gic.kick(cpu),
        Some(Version::V3(gic)) => gic.kick(target.mpidr),
        None => {}
    }
}

/// As [`kick`], for several CPUs: by one interrupt for each run of neighbours that the controller can name at once.
pub fn kick_each(cpus: impl Iterator<Item = CpuId>) {
    barrier::dsb(barrier::ISHST);
    match GIC.get().map(|gic| &gic.version) {
        Some(Version::V2(gic)) => cpus.for_each(|cpu| gic.kick(cpu)),
        Some(Version::V3(gic)) => {
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

/// Takes and ends the interrupts that are pending for this CPU, so that it can wait, or run a guest, again. Returns when it has
/// taken a device's, which is active then; there may be more.
pub fn acknowledge() -> Option<u32> {
    let mut device = None;
    if let Some(gic) = GIC.get() {
        while device.is_none()
            && let Some(taken) = gic.take()
        {
            let interrupt = gic.interrupt(taken);
            device = gic.of_device(interrupt);
            if gic.console == Some(interrupt)
                && let Some(distributor) = gic.distributor()
            {
                // The UART asks for it until its input has been read.
                shared::disable(distributor, interrupt.0);
            }
            if device.is_none() {
                gic.deactivate(taken);
            }
        }
    }
    // What the kicks announce is read after they have been acknowledged: reads of ICC_IAR1_EL1 order no later loads by
    // themselves (IHI 0069 4.2.1).
    barrier::dsb(barrier::SY);
    device
}

/// As [`acknowledge`], for a CPU that runs no vCPU: a device's interrupt stays active, until its VM has ended.
fn acknowledge_all() {
    while acknowledge().is_some() {}
}

/// Wakes the boot CPU, once, when the console's UART asks for its interrupt.
pub(crate) fn await_console() {
    if let Some(gic) = GIC.get()
        && let Some(console) = gic.console
    {
        unmask(console.0);
    }
}

/// Takes one of the interrupts that are pending for this CPU, while a guest with a virtual GIC is loaded.
pub fn take() -> Option<vm::Interrupt> {
    let gic = GIC.get()?;
    let taken = gic.take()?;
    let interrupt = gic.interrupt(taken);
    if interrupt.0 == u32::from(KICK) {
        // What comes most, before all else.
        gic.deactivate(taken);
        // As in `acknowledge`.
        barrier::dsb(barrier::SY);
        return Some(vm::Interrupt::Kick);
    }
    if let Some(timers) = &gic.timers {
        if timers.virtual_timer == interrupt {
            return Some(vm::Interrupt::VirtualTimer);
        }
        if timers.physical == interrupt {
            return Some(vm::Interrupt::PhysicalTimer);
        }
    }
    if gic.pmu == Some(interrupt) {
        return Some(vm::Interrupt::Pmu);
    }
    if let Some(interrupt) = gic.of_device(interrupt) {
        return Some(vm::Interrupt::Device(interrupt));
    }
    gic.deactivate(taken);
    if gic.maintenance == Some(interrupt) {
        return Some(vm::Interrupt::Maintenance);
    }
    // As in `acknowledge`.
    barrier::dsb(barrier::SY);
    Some(vm::Interrupt::Kick)
}

/// Switches on or off that this CPU takes the interrupts that are forwarded to guests.
pub(crate) fn set_forwarding(enabled: bool) {
    if let Some(gic) = GIC.get() {
        gic.set_enabled(gic.forwarded().fold(0, add), enabled);
    }
}

/// The same of the interrupt of the performance monitors.
pub(crate) fn set_pmu_forwarding(enabled: bool) {
    if let Some(gic) = GIC.get()
        && let Some(pmu) = gic.pmu
    {
        gic.set_enabled(add(0, pmu), enabled);
    }
}

/// Whether the interrupt of the performance monitors can be forwarded: it has the number that a guest expects.
pub fn can_forward_pmu() -> bool {
    let pmu = GIC.get().and_then(|gic| gic.pmu);
    pmu == Some(Interrupt(vm::PMU_INTERRUPT))
}

/// The calling CPU's list registers, if it has any, and can forward interrupts.
pub fn list_registers() -> Option<ListRegisters> {
    let gic = GIC.get()?;
    let timers = gic.timers?;
    let (virtual_timer, physical) = (timers.virtual_timer.0, timers.physical.0);
    if (virtual_timer, physical) != (vm::VIRTUAL_TIMER, vm::PHYSICAL_TIMER)
        || gic.maintenance.is_none()
    {
        return None;
    }
    match &gic.version {
        Version::V2(gic) => gic.list_registers(),
        Version::V3(_) => Some(ListRegisters::system()),
    }
}

/// Makes a forwarded interrupt active, in which state it isn't taken, or ends that: of this CPU, or a device's.
pub(crate) fn set_active(interrupt: u32, active: bool) {
    let Some(gic) = GIC.get() else { return };
    if interrupt < PRIVATE {
        gic.set_active(add(0, Interrupt(interrupt)), active);
    } else if let Some(distributor) = gic.distributor() {
        shared::set_active(distributor, interrupt, active);
    }
}

/// The level of the line of a device's interrupt that is active; `None` for an edge.
pub(crate) fn line(interrupt: u32) -> Option<bool> {
    let distributor = GIC.get()?.distributor()?;
    (interrupt >= PRIVATE).then(|| shared::line(distributor, interrupt))?
}

/// Has `cpu` take a device's interrupt, which is an edge or a level, once it is [unmasked](unmask). What was pending is forgotten.
/// Called by the boot CPU.
pub fn route(interrupt: u32, is_edge: bool, cpu: CpuId) {
    let (Some(gic), Some(target)) = (GIC.get(), percpu::get(cpu)) else {
        return;
    };
    match &gic.version {
        Version::V2(gic) => {
            let target = shared::Target::List(gic.target(cpu));
            shared::route(gic.distributor(), interrupt, is_edge, target);
        }
        Version::V3(gic) => {
            if let Some(distributor) = gic.distributor() {
                let target = shared::Target::Affinity(target.mpidr.affinity());
                shared::route(distributor, interrupt, is_edge, target);
            }
        }
    }
}

/// Unmasks a device's interrupt that was [routed](route).
pub fn unmask(interrupt: u32) {
    if let Some(distributor) = GIC.get().and_then(Gic::distributor) {
        shared::unmask(distributor, interrupt);
    }
}

/// Masks a device's interrupt, and then ends it if it is active. Nobody takes it any more when this returns. Called by the boot
/// CPU, when no guest that it is forwarded to runs.
pub fn mask(interrupt: u32) {
    if let Some(distributor) = GIC.get().and_then(Gic::distributor) {
        shared::mask(distributor, interrupt);
    }
}

/// As [`wait`], but only until [`timer::now_ns`] reaches `deadline_ns`, if the timer's interrupt is known.
pub fn wait_until(deadline_ns: u64) {
    wait_until_tick(timer::ticks(deadline_ns));
    acknowledge_all();
}

/// Waits until this CPU is kicked (or was, since it last acknowledged), or the counter reaches `tick`, if the timer's interrupt
/// is known. Acknowledges nothing. May return early.
pub fn wait_until_tick(tick: u64) {
    timer::arm(tick);
    barrier::dsb(barrier::SY);
    aarch64_cpu::asm::wfi();
    // Before the interrupt is ended: it stays pending for as long as the timer asks for it.
    timer::disarm();
}

/// Waits until this CPU is kicked (or was, since it last acknowledged), and acknowledges. May return early.
pub fn wait() {
    barrier::dsb(barrier::SY);
    aarch64_cpu::asm::wfi();
    acknowledge_all();
}
