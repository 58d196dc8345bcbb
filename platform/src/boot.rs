//! Boots the hypervisor: early tables, console, discovery of the machine from the device tree, EL2's own address space, heap
//! and interrupt controller. Runs on the boot CPU alone.
//!
//! A CPU that can't even report an error is parked with a [`ParkCode`] in x19.

mod address_space;
mod context;
pub mod cpus;
mod early_map;
pub mod heap;

use crate::boot::address_space::AddressSpace;
use crate::boot::context::{BOOT_CONTEXT, BootContext};
use crate::boot::early_map::Kind;
use crate::console;
use crate::cpu::features::CpuFeatures;
use crate::cpu::percpu;
use crate::cpu::register::read_register;
use crate::discovery::plan::{MemoryPlan, PlanError};
use crate::discovery::{self, DiscoveryError, Machine, Mpidr};
use crate::drivers::gic::{self, GicError};
use crate::drivers::timer::{self, UnknownFrequency};
use crate::el2::exceptions;
use crate::el2::set_up;
use crate::image;
use crate::power::park::{ParkCode, park};
use crate::power::psci;
use crate::range::{PAGE_SIZE, PhysicalRange, RangeSet};
use aarch64_paging::MapError;
use alloc::vec::Vec;
use core::arch::global_asm;
use core::fmt::{self, Write};
use core::mem::offset_of;
use core::ptr::{NonNull, with_exposed_provenance};
use core::slice;
use core::sync::atomic::Ordering;
use dtoolkit::fdt::Fdt;

global_asm!(
    include_str!("boot/boot.S"),
    boot_stacks = sym percpu::BOOT_STACKS,
    boot_stack_top = const crate::discovery::plan::stack::NORMAL_TOP,
    boot_context = sym BOOT_CONTEXT,
    context_ttbr = const offset_of!(BootContext, ttbr),
    context_mair = const offset_of!(BootContext, mair),
    context_sctlr = const offset_of!(BootContext, sctlr),
    percpu_stack_top = const offset_of!(percpu::PerCpu, stack_top),
    hcr_boot = const set_up::HCR_BOOT,
    sctlr_off = const set_up::SCTLR_OFF,
    no_device_tree = const ParkCode::NoDeviceTree as u16,
    bad_relocation = const ParkCode::BadRelocation as u16,
    vhe_only = const ParkCode::VheOnly as u16,
    wrong_level = sym wrong_exception_level,
    build_early_tables = sym build_early_tables,
    boot_main = sym boot_main,
    secondary_main = sym cpus::secondary_main,
);

/// The device tree from the boot loader; the entry code has checked its header.
///
/// # Safety
/// `tree` is the entry code's argument, and its memory is accessible.
unsafe fn blob(tree: *const u8) -> &'static [u8] {
    // SAFETY: by the caller; the second word is the tree's size, at most 2 MiB.
    unsafe {
        let size = u32::from_be(tree.cast::<u32>().add(1).read());
        core::slice::from_raw_parts(tree, size as usize)
    }
}

/// Reports, with the MMU off, that this isn't EL2. Uses no atomic instruction.
extern "C" fn wrong_exception_level(tree: *const u8, level: u64) -> ! {
    let code = if level == 1 {
        ParkCode::EnteredAtEl1
    } else {
        ParkCode::EnteredAtEl3
    };
    // SAFETY: called by the entry code with what it was given.
    let Ok(tree) = discovery::parse(unsafe { blob(tree) }) else {
        park(ParkCode::NoDeviceTree)
    };
    let registers = discovery::find_console(tree)
        .and_then(|uart| NonNull::new(uart.registers.start() as *mut _));
    let Some(registers) = registers else {
        park(code)
    };
    // SAFETY: with the MMU off all is accessible, and this CPU is alone.
    let mut port = unsafe { console::Port::new(registers) };
    let _ = writeln!(
        port,
        "parvisor: error: entered at EL{level}, but a hypervisor runs at EL2"
    );
    let _ = writeln!(port, "parvisor: exit status 1");
    port.flush();
    if level == 1 {
        psci::init(discovery::find_conduit(tree), level);
        psci::power_off();
    }
    park(code)
}

/// Maps image and tree, and prepares the registers that switch the MMU on. Runs with the MMU off; returns the root's address.
extern "C" fn build_early_tables(tree: *const u8) -> u64 {
    // SAFETY: called by the entry code with what it was given.
    let tree = unsafe { blob(tree) };
    let tree = PhysicalRange::sized(tree.as_ptr() as u64, tree.len() as u64);
    let Some(tree) = tree else {
        park(ParkCode::NoDeviceTree)
    };
    // SAFETY: this CPU is alone.
    let mapped = unsafe {
        early_map::map(image::whole(), Kind::Memory) && early_map::map(tree, Kind::Memory)
    };
    if !mapped {
        park(ParkCode::NoDeviceTree);
    }
    set_boot_context(early_map::root(), set_up::SCTLR_EARLY);
    early_map::root()
}

fn set_boot_context(ttbr: u64, sctlr: u64) {
    let pa_range = CpuFeatures::probe().pa_range;
    BOOT_CONTEXT.ttbr.store(ttbr, Ordering::Relaxed);
    BOOT_CONTEXT.mair.store(set_up::MAIR, Ordering::Relaxed);
    BOOT_CONTEXT
        .tcr
        .store(set_up::tcr(pa_range), Ordering::Relaxed);
    BOOT_CONTEXT.sctlr.store(sctlr, Ordering::Relaxed);
}

unsafe extern "Rust" {
    safe fn parvisor_main(boot: Boot) -> !;
}

/// Names the function, `fn(Boot) -> !`, that the boot CPU runs.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        fn parvisor_main(boot: $crate::boot::Boot) -> ! {
            const MAIN: fn($crate::boot::Boot) -> ! = $main;
            MAIN(boot)
        }
    };
}

/// The first Rust function with MMU and caches on.
extern "C" fn boot_main(tree: *const u8) -> ! {
    percpu::init_boot_cpu(own_mpidr());
    let features = CpuFeatures::probe();
    set_up::set_registers(&features);
    heap::init_early();
    // SAFETY: called by the entry code with what it was given; the early tables map it.
    let blob = unsafe { blob(tree) };
    let Ok(tree) = discovery::parse(blob) else {
        park(ParkCode::NoDeviceTree)
    };
    psci::init(discovery::find_conduit(tree), 2);
    let clock = timer::init();
    if let Some(uart) = discovery::find_console(tree) {
        // SAFETY: this CPU is alone.
        if unsafe { early_map::map(uart.registers, Kind::Device) } {
            console::init(uart);
        }
    }
    exceptions::unmask_errors();
    parvisor_main(Boot {
        tree,
        features,
        clock,
    })
}

pub(crate) fn own_mpidr() -> Mpidr {
    Mpidr::from_register(read_register!("mpidr_el1"))
}

/// A machine of which only the device tree is known. The console works, if there is one.
pub struct Boot {
    tree: Fdt<'static>,
    features: CpuFeatures,
    clock: Result<(), UnknownFrequency>,
}

/// A machine that is under control: final address space, heap, interrupt controller. One CPU runs.
pub struct System {
    /// The machine's description.
    pub machine: Machine<'static>,
    /// The CPUs' features.
    pub features: CpuFeatures,
    /// Unused memory, in whole pages, mapped at its own address. Its contents are undefined.
    pub memory: RangeSet,
    tree: Fdt<'static>,
}

impl Boot {
    /// Takes the machine over.
    ///
    /// # Errors
    /// The device tree is unusable, or the machine isn't what it says.
    pub fn take_over(self) -> Result<System, BootError> {
        self.clock.map_err(BootError::Clock)?;
        let kept = keep(self.tree)?;
        let mut machine = Machine::discover(kept, own_mpidr()).map_err(BootError::Discovery)?;
        leave_unstartable_cpus(&mut machine);
        let blob = kept.data();
        let Some(tree) = PhysicalRange::sized(blob.as_ptr() as u64, blob.len() as u64) else {
            park(ParkCode::NoDeviceTree)
        };
        let plan = MemoryPlan::new(&machine, self.features.pa_bits, image::whole(), tree)
            .map_err(BootError::Memory)?;
        let sctlr = set_up::sctlr_final(&self.features);
        let root = address_space(&machine, &plan)
            .map_err(BootError::Map)?
            .activate(sctlr);
        // SAFETY: the new tables map the heap, which is no part of `plan.free` nor of anything else.
        unsafe { heap::extend(plan.heap) };
        heap::reserve_for_epoch(machine.cpus.len()).map_err(BootError::Memory)?;
        set_boot_context(root, sctlr);
        percpu::init_secondary_cpus(
            machine.cpus.iter().skip(1).map(|cpu| cpu.mpidr),
            plan.stacks,
        );
        gic::init(&machine, self.features.gic_registers).map_err(BootError::Gic)?;
        console::announce_input();
        cpus::set_features(self.features);
        Ok(System {
            machine,
            features: self.features,
            tree: kept,
            memory: plan.free,
        })
    }
}

impl System {
    /// A device of this machine, by its node's path in the device tree. `None` if there is none, or it is switched off.
    ///
    /// # Errors
    /// There is no memory for its description.
    pub fn device(
        &self,
        path: &str,
    ) -> Option<Result<discovery::Device<'static>, discovery::NoRoom>> {
        discovery::device(self.tree, path)
    }

    /// The bytes of a module of this machine: a file that a boot loader left in memory reserved for it.
    pub fn module(&self, index: usize) -> Option<&'static [u8]> {
        let range = self.machine.modules.get(index)?.range;
        // SAFETY: the memory plan has found the module to lie in RAM, mapped, and has kept it out of what is free; nobody
        // writes to it.
        Some(unsafe {
            slice::from_raw_parts(
                with_exposed_provenance(range.start() as usize),
                range.size() as usize,
            )
        })
    }
}

/// A one-line summary.
impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gic = match self.machine.gic {
            discovery::Gic::V2 { .. } => "GICv2",
            discovery::Gic::V3 { .. } => "GICv3",
        };
        let mib = |bytes| bytes >> 20;
        let (all, free) = (mib(self.machine.memory.bytes()), mib(self.memory.bytes()));
        write!(
            f,
            "{} CPUs, {all} MiB of memory ({free} free), {gic}",
            self.machine.cpus.len()
        )?;
        if let Some(version) = psci::version() {
            write!(f, ", PSCI {version}")?;
        }
        write!(f, ", timer at {} Hz, {}", timer::frequency(), self.features)
    }
}

fn address_space(machine: &Machine<'_>, plan: &MemoryPlan) -> Result<AddressSpace, MapError> {
    let boot_guards = percpu::all().flat_map(|cpu| cpu.guard_pages());
    let devices = machine
        .devices()
        .into_iter()
        .map(|(_, registers)| registers);
    AddressSpace::new(
        plan.mapped.ranges(),
        devices,
        boot_guards.chain(plan.guard_pages()),
    )
}

/// The tree, in memory that stays readable: page 0 is never mapped, so a tree there is moved.
fn keep(tree: Fdt<'static>) -> Result<Fdt<'static>, BootError> {
    let blob = tree.data();
    if blob.as_ptr().addr() >= PAGE_SIZE as usize {
        return Ok(tree);
    }
    let mut copy = Vec::new();
    let bytes = blob.len();
    copy.try_reserve_exact(bytes)
        .map_err(|_| BootError::TreeTooLarge { bytes })?;
    copy.extend_from_slice(blob);
    discovery::parse(copy.leak()).map_err(BootError::Discovery)
}

/// CPUs that need another method than PSCI stay off, and don't count.
fn leave_unstartable_cpus(machine: &mut Machine<'_>) {
    let psci = psci::version().is_some();
    let boot = own_mpidr();
    let before = machine.cpus.len();
    machine
        .cpus
        .retain(|cpu| cpu.mpidr == boot || cpu.by_psci && psci);
    let left = before - machine.cpus.len();
    if left != 0 {
        log::warn!("{left} CPUs stay off: the device tree doesn't start them by PSCI");
    }
}

/// Why a machine can't be taken over.
#[derive(Debug)]
pub enum BootError {
    /// By its device tree.
    Discovery(DiscoveryError),
    /// Its device tree lies in page 0, and there is no room to keep it anywhere else.
    TreeTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// By its memory.
    Memory(PlanError),
    /// By its clock.
    Clock(UnknownFrequency),
    /// By its interrupt controller.
    Gic(GicError),
    /// The tables of the hypervisor's address space can't be built.
    Map(MapError),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discovery(error) => error.fmt(f),
            Self::TreeTooLarge { bytes } => write!(
                f,
                "the device tree of {bytes} bytes lies in page 0, and there is no room to move it"
            ),
            Self::Memory(error) => error.fmt(f),
            Self::Clock(error) => error.fmt(f),
            Self::Gic(error) => error.fmt(f),
            Self::Map(error) => write!(f, "the hypervisor's tables can't be built: {error}"),
        }
    }
}

impl core::error::Error for BootError {}
