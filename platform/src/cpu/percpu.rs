//! Per-CPU data: number, affinity, stacks.
//!
//! TPIDR_EL2 points to the running CPU's [`PerCpu`]. The boot CPU's is static; the others' are created once, before those CPUs
//! start, and never move. Other CPUs read only constant or atomic fields.

use crate::cpu::register::{read_register, write_register};
use crate::discovery::Mpidr;
use crate::discovery::plan::stack;
use crate::range::{PAGE_SIZE, PhysicalRange};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU64};
use spin::Once;

/// A CPU's number: its index in the machine's list of CPUs. The boot CPU is number 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct CpuId(usize);

impl CpuId {
    /// The CPU that booted.
    pub const BOOT: Self = Self(0);

    /// The CPU at `index` in [`Machine::cpus`](crate::discovery::Machine::cpus).
    pub const fn new(index: usize) -> Self {
        Self(index)
    }

    /// The index in [`Machine::cpus`](crate::discovery::Machine::cpus).
    pub const fn index(self) -> usize {
        self.0
    }

    /// The calling CPU.
    pub fn current() -> Self {
        PerCpu::try_current().map_or(Self::BOOT, |cpu| cpu.id)
    }
}

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu{}", self.0)
    }
}

impl fmt::Debug for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The registers at a fatal exception, as the vector saves them (exceptions.S knows the order).
#[derive(Debug)]
#[repr(C)]
pub(crate) struct FatalFrame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// The stack pointer.
    pub sp: u64,
    /// The address of the exception.
    pub elr: u64,
    /// PSTATE at the exception.
    pub spsr: u64,
    /// The syndrome.
    pub esr: u64,
    /// The fault address.
    pub far: u64,
    /// Which vector.
    pub vector: u64,
}

/// One CPU's own data.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct PerCpu {
    /// The end of the normal stack.
    pub stack_top: u64,
    /// The end of the stack for fatal reports.
    pub emergency_top: u64,
    /// The number of fatal exceptions on this CPU: 1 is reported, 2 powers off, 3 stops here.
    pub fatal_depth: AtomicU64,
    /// The registers at the last one. Written by the vector.
    pub frame: UnsafeCell<FatalFrame>,
    /// The mitigation at exits from guests, if it is a loop or a firmware call: the number of branches, and the function. Read
    /// by the vectors.
    pub loops: AtomicU64,
    pub workaround: AtomicU64,
    /// The CPU's number.
    pub id: CpuId,
    /// The CPU's affinity.
    pub mpidr: Mpidr,
    /// The CPU's progress in starting: one of [`crate::boot::cpus`]'s states.
    pub state: AtomicU8,
}

// SAFETY: `frame` is written by the owning CPU's exception vector and read by the same CPU afterwards; all else is constant
// after construction, or atomic.
unsafe impl Sync for PerCpu {}

impl PerCpu {
    fn new(id: CpuId, mpidr: Mpidr, stacks: u64) -> Self {
        Self {
            stack_top: stacks + stack::NORMAL_TOP,
            emergency_top: stacks + stack::TOTAL,
            fatal_depth: AtomicU64::new(0),
            frame: UnsafeCell::new(FatalFrame {
                x: [0; 31],
                sp: 0,
                elr: 0,
                spsr: 0,
                esr: 0,
                far: 0,
                vector: 0,
            }),
            loops: AtomicU64::new(0),
            workaround: AtomicU64::new(0),
            id,
            mpidr,
            state: AtomicU8::new(0),
        }
    }

    /// The running CPU's data, or `None` before it has any.
    pub fn try_current() -> Option<&'static Self> {
        let pointer = read_register!("tpidr_el2") as *const Self;
        // SAFETY: TPIDR_EL2 is 0, or was set by `set_current` or the secondary entry code to data that lives for ever.
        unsafe { pointer.as_ref() }
    }

    /// Makes this the running CPU's data.
    pub fn set_current(&'static self) {
        // SAFETY: nothing but this module and the fatal vectors uses the register, and the data lives for ever.
        unsafe { write_register!("tpidr_el2", core::ptr::from_ref(self) as u64) }
    }

    /// The memory of this CPU's normal stack.
    pub fn stack(&self) -> Option<PhysicalRange> {
        PhysicalRange::new(self.stack_top - stack::NORMAL, self.stack_top)
    }

    /// The memory of this CPU's emergency stack.
    pub fn emergency_stack(&self) -> Option<PhysicalRange> {
        PhysicalRange::new(self.emergency_top - stack::EMERGENCY, self.emergency_top)
    }

    /// The pages below the stacks, never mapped.
    pub fn guard_pages(&self) -> impl Iterator<Item = PhysicalRange> {
        let start = self.emergency_top - stack::TOTAL;
        stack::GUARDS
            .into_iter()
            .filter_map(move |guard| PhysicalRange::sized(start + guard, PAGE_SIZE))
    }
}

/// The boot CPU's stacks, part of the image.
#[repr(C, align(4096))]
pub(crate) struct BootStacks(UnsafeCell<[u8; stack::TOTAL as usize]>);

// SAFETY: the memory is used as the boot CPU's stacks and never through this value.
unsafe impl Sync for BootStacks {}

pub(crate) static BOOT_STACKS: BootStacks = BootStacks(UnsafeCell::new([0; stack::TOTAL as usize]));

static BOOT_CPU: Once<PerCpu> = Once::new();
static SECONDARY_CPUS: Once<&'static [PerCpu]> = Once::new();

/// Makes the boot CPU's data; it becomes current. Called once, first of all.
pub(crate) fn init_boot_cpu(mpidr: Mpidr) -> &'static PerCpu {
    let cpu =
        BOOT_CPU.call_once(|| PerCpu::new(CpuId::BOOT, mpidr, (&raw const BOOT_STACKS) as u64));
    cpu.set_current();
    cpu
}

/// Makes the data of all other CPUs, with stacks in `stacks`.
pub(crate) fn init_secondary_cpus(
    mpidrs: impl Iterator<Item = Mpidr>,
    stacks: Option<PhysicalRange>,
) {
    let start = stacks.map_or(0, PhysicalRange::start);
    SECONDARY_CPUS.call_once(|| {
        let cpus: Vec<PerCpu> = mpidrs
            .enumerate()
            .map(|(index, mpidr)| {
                PerCpu::new(CpuId(index + 1), mpidr, start + index as u64 * stack::TOTAL)
            })
            .collect();
        Box::leak(cpus.into_boxed_slice())
    });
}

/// All CPUs but the boot CPU.
pub(crate) fn secondaries() -> &'static [PerCpu] {
    SECONDARY_CPUS.get().copied().unwrap_or_default()
}

/// All CPUs that have data, the boot CPU first.
pub(crate) fn all() -> impl Iterator<Item = &'static PerCpu> {
    BOOT_CPU.get().into_iter().chain(secondaries())
}

/// The CPU with this number, if there is one.
pub(crate) fn get(cpu: CpuId) -> Option<&'static PerCpu> {
    match cpu.0.checked_sub(1) {
        None => BOOT_CPU.get(),
        Some(index) => secondaries().get(index),
    }
}
