//! Forks of the VM under stress that never run. Fork and parent share every page until the guest or the harness writes it.
//!
//! The VM is paused for a moment, and its fork is kept for a while. Some pages' contents at that moment are recorded: the fork
//! must hold them as long as it lives, whatever its parent writes. The parent must never see what the harness writes into the
//! fork, which [`check_round`](super::Stress::check_round) checks.

use super::Stress;
use super::act::OWN_WORD;
use super::target::Page;
use crate::harness::error::WorkloadError;
use alloc::vec::Vec;
use control::Machine;
use control::RunError;
use control::guest::RunningGuest;
use control::options::TEST_MEMORY;
use fastrand::Rng;
use memory::{AddressSpace, MmuLock, VmId};
use stage2::{Ipa, PAGE_SIZE};
use vm::{ForkParts, Vm};

/// How many pages are recorded.
const REMEMBERED: usize = 64;
const WORDS: u64 = PAGE_SIZE / 8;
/// How many pages are looked at in a pause, and its longest duration.
const LOOKED_AT: usize = 16;
const LONGEST_PAUSE_NS: u64 = 20_000;

/// A fork of the VM.
pub(super) struct Fork<L> {
    vm: Vm<AddressSpace<L>>,
    remembered: Vec<Remembered>,
    /// Whether it was written to.
    is_written: bool,
}

/// A page as the fork holds it.
struct Remembered {
    page: u64,
    bytes: Page,
}

impl<L: MmuLock> Fork<L> {
    /// Pauses the VM, forks it, and resumes it.
    pub(super) fn new<M: Machine>(
        guest: &RunningGuest<'_, M, L>,
        vm: VmId,
        pages: u64,
        random: &mut Rng,
    ) -> Result<Self, WorkloadError> {
        let own = &guest.own.memory;
        let space = &guest.vm.space;
        let child = AddressSpace::<L>::new(own, vm, *space.stage2().layout())?;
        let mut remembered = Vec::new();
        let taken = (|| {
            remembered
                .try_reserve_exact(REMEMBERED)
                .map_err(|_| RunError::Heap)?;
            let pause = guest.pause()?;
            space.fork(own, &child)?;
            for _ in 0..REMEMBERED {
                let mut page = Remembered {
                    page: random.u64(..pages),
                    bytes: [0; PAGE_SIZE as usize],
                };
                space.read_guest(own, page_at(page.page), &mut page.bytes)?;
                remembered.push(page);
            }
            Ok(pause)
        })();
        let pause = match taken {
            Ok(pause) => pause,
            Err(error) => {
                child.destroy(own);
                return Err(error);
            }
        };
        // Its vCPUs go nowhere, but are there.
        let parts = ForkParts {
            space: child,
            devices: None,
        };
        let vm = pause.fork(parts, guest.machine.moment());
        let vm = vm.map_err(|(error, child)| {
            child.destroy(own);
            RunError::from(error)
        })?;
        guest.resume(pause);
        Ok(Self {
            vm,
            remembered,
            is_written: false,
        })
    }

    /// Checks the recorded pages.
    pub(super) fn check<M: Machine>(
        &self,
        guest: &RunningGuest<'_, M, L>,
        seed: u64,
    ) -> Result<(), WorkloadError> {
        for Remembered { page, bytes } in &self.remembered {
            let mut found: Page = [0; PAGE_SIZE as usize];
            let own = &guest.own.memory;
            self.vm.space.read_guest(own, page_at(*page), &mut found)?;
            let differing = words(bytes)
                .zip(words(&found))
                .find(|(expected, found)| expected != found);
            if let Some((expected, found)) = differing {
                return Err(WorkloadError::Inconsistent {
                    page: *page,
                    found,
                    expected: Some(expected),
                    seed,
                });
            }
        }
        Ok(())
    }

    /// Writes a word into a recorded page: anywhere, as the guest would, or at the harness's own offset.
    pub(super) fn write<M: Machine>(
        &mut self,
        guest: &RunningGuest<'_, M, L>,
        random: &mut Rng,
    ) -> Result<(), WorkloadError> {
        let index = random.usize(..self.remembered.len());
        let at = match random.bool() {
            true => OWN_WORD,
            false => random.u64(..WORDS) * 8,
        };
        let word = random.u64(..).to_le_bytes();
        let page = self.remembered[index].page;
        let ipa = page_at(page).offset(at);
        self.vm.space.write_guest(&guest.own.memory, ipa, &word)?;
        // A page may be remembered twice.
        let same = self
            .remembered
            .iter_mut()
            .filter(|other| other.page == page);
        same.for_each(|page| page.bytes[at as usize..][..8].copy_from_slice(&word));
        self.is_written = true;
        Ok(())
    }

    /// Destroys the fork.
    pub(super) fn destroy<M: Machine>(self, guest: &RunningGuest<'_, M, L>) {
        self.vm.space.destroy(&guest.own.memory);
    }
}

impl<M: Machine, L: MmuLock + 'static> Stress<'_, M, L> {
    /// Forks the VM, if there is room for the writes of both; or checks the fork, and writes to it or ends it.
    pub(super) fn fork(&mut self) -> Result<(), WorkloadError> {
        let Some(fork) = &mut self.fork else {
            return self.begin_fork();
        };
        fork.check(self.guest, self.options.seed)?;
        if let Some(common) = &self.common {
            common.check_fork(self.guest, &fork.vm.space)?;
        }
        if fork.is_written && self.random.u32(..4) == 0 {
            return self.end_fork();
        }
        fork.write(self.guest, &mut self.random)?;
        self.count("fork_writes", 1);
        Ok(())
    }

    fn begin_fork(&mut self) -> Result<(), WorkloadError> {
        let pages = self.written.len() as u64;
        // Both may write all of the test memory and of its copy.
        let needed = 3 * pages;
        let Some(vm) = self.spare_vm else {
            return Ok(());
        };
        if self.guest.own.memory.pool().counts().free < needed {
            self.count("forks_without_room", 1);
            return Ok(());
        }
        self.fork = Some(Fork::new(self.guest, vm, pages, &mut self.random)?);
        self.count("forks", 1);
        Ok(())
    }

    /// Ends the fork, if there is one, after checking its recorded pages.
    pub(super) fn end_fork(&mut self) -> Result<(), WorkloadError> {
        let Some(fork) = self.fork.take() else {
            return Ok(());
        };
        let checked = fork.check(self.guest, self.options.seed);
        fork.destroy(self.guest);
        checked
    }

    /// Pauses the VM for a moment, and checks that the test memory doesn't change.
    pub(super) fn pause(&mut self) -> Result<(), WorkloadError> {
        let pages = self.written.len() as u64;
        let looked_at: Vec<u64> = (0..LOOKED_AT).map(|_| self.random.u64(..pages)).collect();
        let pause = self.guest.pause()?;
        let words = |page: &u64| first_word(self.guest, *page);
        let before: Vec<u64> = looked_at.iter().map(words).collect::<Result<_, _>>()?;
        let machine = self.guest.machine;
        let end = machine.now_ns() + self.random.u64(..LONGEST_PAUSE_NS);
        while machine.now_ns() < end {
            core::hint::spin_loop();
        }
        for (page, expected) in looked_at.iter().zip(before) {
            let found = words(page)?;
            if found != expected || !pause.is_complete() {
                return Err(WorkloadError::Inconsistent {
                    page: *page,
                    found,
                    expected: Some(expected),
                    seed: self.options.seed,
                });
            }
        }
        self.guest.resume(pause);
        self.count("pauses", 1);
        Ok(())
    }
}

/// The word that the guest writes first to a page of the test memory.
fn first_word<M: Machine, L: MmuLock>(
    guest: &RunningGuest<'_, M, L>,
    page: u64,
) -> Result<u64, WorkloadError> {
    let mut bytes = [0; 8];
    let own = &guest.own.memory;
    guest.vm.space.read_guest(own, page_at(page), &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn page_at(page: u64) -> Ipa {
    Ipa::new(TEST_MEMORY).offset(page * PAGE_SIZE)
}

fn words(page: &Page) -> impl Iterator<Item = u64> + '_ {
    let (words, _) = page.as_chunks();
    words.iter().copied().map(u64::from_le_bytes)
}
