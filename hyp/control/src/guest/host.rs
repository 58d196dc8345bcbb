//! The machine as CPU 0 sees it.

use crate::cpu_pool::CpuPool;
use crate::error::RunError;
use crate::machine::{Machine, OwnCpu};
use crate::options::Options;
use memory::CpuCounters;

/// The machine, as CPU 0 works with it.
pub struct Host<'h, M: Machine> {
    /// The machine.
    pub machine: &'static M,
    /// The CPUs that run vCPUs.
    pub cpu_pool: &'static CpuPool<M>,
    /// What each CPU counts.
    pub counters: &'static [CpuCounters],
    /// CPU 0's own.
    pub own: &'h OwnCpu<M>,
    /// Attends to what runs beside the guests of this host, without waiting. Returns when it is to be called again.
    pub beside: Option<&'h dyn Fn() -> u64>,
}

impl<M: Machine> Clone for Host<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Machine> Copy for Host<'_, M> {}

impl<M: Machine> Host<'_, M> {
    /// Waits as [`Machine::wait`] does, and attends to what runs beside before.
    pub(crate) fn wait(&self, deadline_ns: u64) {
        let due_ns = self.beside.map_or(u64::MAX, |attend| attend());
        self.machine.wait(deadline_ns.min(due_ns));
    }

    /// Checks that there is a CPU for every vCPU and for all background work.
    pub fn check_cpus(&self, options: &Options) -> Result<(), RunError> {
        let cpus = self.machine.facts().cpus;
        let needed = options.busy_cpus().saturating_add(1);
        if needed <= cpus {
            Ok(())
        } else {
            Err(RunError::TooFewCpus {
                vcpus: options.vcpus,
                needed,
                cpus,
                merging: options.merging,
                harvesters: options.harvesters,
                fork: options.fork,
            })
        }
    }
}
