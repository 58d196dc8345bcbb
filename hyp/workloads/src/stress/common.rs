//! Memory that the VM under stress deliberately shares with its forks: what one of them writes there, all read.
//!
//! The vCPUs of the VM and of a running fork add to the same words, and each counts its additions. So the sum of the words must
//! equal the sum of all counts, however their backing changes. A vCPU counts before it adds; so each vCPU of a fork may add
//! once what it had already counted before the fork, and the sum may be larger by that many.

use super::Stress;
use crate::harness::error::WorkloadError;
use crate::harness::service::Bench;
use control::Machine;
use control::guest::RunningGuest;
use memory::{AddressSpace, Caches, CpuMemory, MmuLock, Object, SlotConfig, SlotError, SlotId};
use stage2::{Ipa, Level, PAGE_SIZE};

const SLOT: SlotId = SlotId(0x7fff);
const PAGES: u64 = 8;

/// The shared memory, and its expected contents.
#[derive(Debug)]
pub(super) struct Common {
    start: Ipa,
    /// The additions that vCPUs of forks have counted since they were forked.
    by_forks: u64,
    /// Further additions that they may have made uncounted.
    uncounted: u64,
}

impl Common {
    /// Maps the memory as a slot of the VM from `start` on. `None` if its address space ends before.
    pub(super) fn map<M: Machine, L: MmuLock>(
        guest: &RunningGuest<'_, M, L>,
        start: Ipa,
    ) -> Result<Option<Self>, WorkloadError> {
        let bytes = PAGES * PAGE_SIZE;
        let (own, space) = (&guest.own.memory, &guest.vm.space);
        let layout = space.stage2().layout();
        if !layout.contains(&(start..start.offset(bytes))) {
            return Ok(None);
        }
        let object = Object::shared(own, bytes, Level::L3).map_err(SlotError::from)?;
        let config = SlotConfig {
            id: SLOT,
            start,
            object,
            offset: 0,
            bytes,
            read_only: false,
            write_faults: false,
        };
        space.map_object(own, config)?;
        Ok(Some(Self {
            start,
            by_forks: 0,
            uncounted: 0,
        }))
    }

    /// Its address and number of pages, for the guest.
    pub(super) fn part(&self) -> (u64, u64) {
        (self.start.get(), PAGES)
    }

    /// The sum of its words, as a VM sees them.
    pub(super) fn sum<T: Caches, L: MmuLock>(
        &self,
        own: &CpuMemory<T>,
        space: &AddressSpace<L>,
    ) -> Result<u64, WorkloadError> {
        let words = (0..PAGES).map(|page| word(own, space, self.start.offset(page * PAGE_SIZE)));
        words.sum()
    }

    /// Checks that a fork reads the same there as its parent, whose vCPUs may be adding.
    pub(super) fn check_fork<M: Machine, L: MmuLock>(
        &self,
        guest: &RunningGuest<'_, M, L>,
        fork: &AddressSpace<L>,
    ) -> Result<(), WorkloadError> {
        let own = &guest.own.memory;
        let least = self.sum(own, &guest.vm.space)?;
        let found = self.sum(own, fork)?;
        let most = self.sum(own, &guest.vm.space)?;
        self.expect(found, least, most)
    }

    fn expect(&self, found: u64, least: u64, most: u64) -> Result<(), WorkloadError> {
        if (least..=most).contains(&found) {
            return Ok(());
        }
        Err(WorkloadError::WrongWord {
            ipa: self.start,
            found,
            expected: least,
        })
    }
}

/// How many additions a VM's vCPUs have counted, since that or its parent was started.
pub(super) fn counted<M: Machine, L: MmuLock>(
    own: &CpuMemory<M::Hardware>,
    space: &AddressSpace<L>,
    bench: &Bench<M>,
) -> Result<u64, WorkloadError> {
    let journals = bench.journals();
    let of_vcpu = |vcpu| journals.map_or(Ok(0), |all| word(own, space, all.end_of(vcpu)));
    (0..bench.steps().seats()).map(of_vcpu).sum()
}

fn word<T: Caches, L: MmuLock>(
    own: &CpuMemory<T>,
    space: &AddressSpace<L>,
    at: Ipa,
) -> Result<u64, WorkloadError> {
    let mut word = [0; 8];
    space.read_guest(own, at, &mut word)?;
    Ok(u64::from_le_bytes(word))
}

impl<M: Machine, L: MmuLock + 'static> Stress<'_, M, L> {
    /// Notes the additions that a fork's vCPUs have counted since they were forked.
    pub(super) fn note_added(&mut self, counted: u64) {
        if let Some(common) = &mut self.common {
            common.by_forks += counted;
            common.uncounted += self.options.vcpus as u64;
        }
        self.count("added_by_twins", counted);
    }

    /// Checks the sum, while no vCPU runs.
    pub(super) fn check_common(&self) -> Result<(), WorkloadError> {
        let Some(common) = &self.common else {
            return Ok(());
        };
        let (own, space) = (&self.guest.own.memory, &self.guest.vm.space);
        let least = counted(own, space, self.bench)? + common.by_forks;
        common.expect(common.sum(own, space)?, least, least + common.uncounted)
    }
}
