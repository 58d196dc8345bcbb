//! All counters of a running VM, by name: exits of its vCPUs, faults of its CPUs, and their work on tables and TLBs.
//!
//! Each counter has one writer. Counters are read here at any time and never reset: a phase is measured by a difference.

use crate::guest::host::Host;
use crate::machine::Machine;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use memory::AddressSpace;
use memory::CpuCounters;
use records::record::CounterMap;
use vm::ExitCounts;
use vm::Vm;

/// The sum of all CPUs' counters at some moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    exits: ExitCounts,
    cpus: Vec<(&'static str, u64)>,
}

impl Snapshot {
    /// A guest's current counters: the VM's exits, and the counters of its vCPUs' CPUs, its helpers and CPU 0.
    pub(super) fn of_guest<M: Machine, L>(
        host: &Host<'_, M>,
        vm: &Vm<AddressSpace<L>>,
        cpus: [&Range<usize>; 2],
    ) -> Self {
        let own = cpus
            .into_iter()
            .flat_map(|cpus| &host.counters[cpus.clone()]);
        Self::take(vm.exits(), own.chain(host.counters.first()))
    }

    /// Reads the current counters of these CPUs.
    fn take<'c>(exits: ExitCounts, cpus: impl IntoIterator<Item = &'c CpuCounters>) -> Self {
        let mut sums = Vec::new();
        for counters in cpus {
            let mut index = 0;
            let mut add = |name, count| {
                match sums.get_mut(index) {
                    None => sums.push((name, count)),
                    Some((_, sum)) => *sum = u64::wrapping_add(*sum, count),
                }
                index += 1;
            };
            counters.for_each(&mut add);
        }
        Self { exits, cpus: sums }
    }

    /// The differences since `earlier`, without those that are 0.
    pub fn since(&self, earlier: &Self) -> CounterMap {
        let exits = self.exits.since(&earlier.exits);
        let exits = exits.iter().map(|(kind, count)| {
            let name = kind.name();
            match kind.is_exit() {
                true => (format!("exits_{name}"), count),
                false => (name.to_string(), count),
            }
        });
        let before = |index: usize| earlier.cpus.get(index).map_or(0, |(_, count)| *count);
        let cpus = self.cpus.iter().enumerate();
        let cpus = cpus
            .map(|(index, (name, count))| (name.to_string(), count.wrapping_sub(before(index))));
        exits.chain(cpus).filter(|(_, count)| *count != 0).collect()
    }
}

/// Counters on one line.
#[derive(Debug)]
pub struct Listed<'c>(pub &'c CounterMap);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("counters:")?;
        self.0
            .iter()
            .try_for_each(|(name, count): (&String, &u64)| write!(f, " {name} {count}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_what_has_moved() {
        let cpus = [CpuCounters::default(), CpuCounters::default()];
        cpus[1].faults.split.add(2);
        let before = Snapshot::take(ExitCounts::default(), &cpus);
        cpus[0].faults.mapped.add(5);
        cpus[1].faults.mapped.add(6);
        cpus[1].stage2.tlbi_broadcast.add(1);
        let after = Snapshot::take(ExitCounts::default(), &cpus);
        let moved = after.since(&before);
        assert_eq!(
            Listed(&moved).to_string(),
            "counters: faults_mapped 11 tlbi_broadcast 1"
        );
        assert_eq!(after.since(&Snapshot::default())["faults_split"], 2);
    }
}
