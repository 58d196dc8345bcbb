//! What the monitor needs of the machine that it runs on. The firmware implements it by the platform, tests by threads.
//!
//! One value for the whole machine; every CPU calls at any time.

use core::fmt;
use memory::{Caches, CpuMemory};
use stage2::{Features, Tlb};
use vm::{Cpu, CpuId};

/// A machine with CPUs that run guests.
pub trait Machine: Sync + 'static {
    /// A CPU's world switch.
    type Cpu: Cpu;
    /// A CPU's TLB and cache instructions.
    type Hardware: Tlb + Caches;

    /// What it consists of.
    fn facts(&self) -> &Facts;

    /// Nanoseconds since some moment, the same for all CPUs.
    fn now_ns(&self) -> u64;

    /// The counter that guests see, less their offset, in ticks.
    fn counter(&self) -> u64;

    /// Prints one line on the console.
    fn write_line(&self, line: fmt::Arguments<'_>);

    /// Makes CPU `cpu` leave its guest or its wait, now or the next time it tries.
    fn kick(&self, cpu: CpuId);

    /// Waits on the calling CPU until it is kicked (or was, since it last waited), or until [`Self::now_ns`] reaches
    /// `deadline_ns`. May return early.
    fn wait(&self, deadline_ns: u64);
}

/// What a machine consists of.
#[derive(Clone, Debug)]
pub struct Facts {
    /// CPUs, all of them up. CPU 0 runs the monitor.
    pub cpus: usize,
    /// All that stage 2 can use with pages of 4 KiB, with the largest address space.
    pub stage2: Features,
    /// The most instructions that one TLB invalidation is made of; beyond, all of a VM's entries go.
    pub most_tlbi: u32,
    /// The CPUs' model.
    pub cpu_model: &'static str,
    /// The version of the interrupt controller's architecture.
    pub gic: u64,
    /// What [`Machine::now_ns`] reads.
    pub clock: &'static str,
}

/// What a CPU has for itself.
pub struct OwnCpu<M: Machine> {
    /// Its number.
    pub id: CpuId,
    /// Its world switch.
    pub cpu: M::Cpu,
    /// Its means to work on the memory of VMs.
    pub memory: CpuMemory<M::Hardware>,
}
