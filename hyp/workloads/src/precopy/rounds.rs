//! The rounds, led by CPU 0: each step is shared by the guest's helpers, and CPU 0 looks after rings and console until it is
//! done.

use super::attend;
use super::copy::Copy;
use crate::dirty_log::harvest::{NO_PAGES, TAKEN_AT_ONCE};
use crate::dirty_log::parts::{self, Part};
use crate::harness::error::WorkloadError;
use crate::harness::low_rings::LowRings;
use crate::harness::policy::Choice;
use crate::harness::results::Results;
use crate::harness::test_memory::bitmap;
use crate::harness::verify;
use crate::report;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use control::guest::{Attended, RAM_SLOT, RunningGuest, TestSlot};
use control::options::Options;
use control::{Machine, RunError, Terminal};
use core::sync::atomic::{AtomicU64, Ordering};
use memory::{AddressSpace, CpuMemory, DirtyPages, LogPolicy, MmuLock, SplitAhead, VmId};
use records::record::{PhaseName, Progress};
use records::words::{Clear, Harvest, Restore};
use stage2::PAGE_SIZE;
use vm::{StopReason, VcpuId};

const NS_PER_MS: u64 = 1_000_000;
/// How often restoring is tried: what the guest does at the same time may be in its way.
const RESTORES: usize = 4;

/// The rounds with a running guest.
pub(super) struct Rounds<'r, M: Machine, L: MmuLock> {
    guest: &'r RunningGuest<'r, M, L>,
    low_rings: &'r LowRings,
    options: &'r Options,
    policy: LogPolicy,
    /// The guest's RAM.
    ram: u64,
    /// The RAM in parts, each for one CPU at a time.
    parts: Arc<[Part]>,
    /// Pages harvested from rings since the last round.
    from_rings: Vec<u64>,
    ring_buffer: Vec<DirtyPages>,
    /// Steps of the progress.
    done: u64,
}

/// What the rounds work with, besides the guest.
struct Means<'m, M: Machine, L> {
    terminal: &'m mut Option<Terminal<M>>,
    results: &'m mut Results,
    copy: Arc<Copy<L>>,
}

impl<'r, M: Machine, L: MmuLock + 'static> Rounds<'r, M, L> {
    pub fn new(
        guest: &'r RunningGuest<'r, M, L>,
        low_rings: &'r LowRings,
        options: &'r Options,
        choice: Choice,
        ram: u64,
    ) -> Result<Self, WorkloadError> {
        let pages = ram / PAGE_SIZE;
        let slot = TestSlot {
            id: RAM_SLOT,
            first_page: 0,
            pages,
        };
        // More than one for each CPU, as some have more to copy than others.
        let cpus = options.harvesting_cpus().max(2);
        Ok(Self {
            guest,
            low_rings,
            options,
            policy: choice.policy(options),
            ram,
            parts: parts::cut(&[slot], options.backing, cpus).ok_or(RunError::Heap)?,
            from_rings: bitmap(pages).ok_or(RunError::Heap)?,
            ring_buffer: vec![NO_PAGES; TAKEN_AT_ONCE],
            done: 0,
        })
    }

    /// Does all rounds, and waits for the guest's end. The copy is charged to `vm`.
    pub fn run(
        mut self,
        terminal: &mut Option<Terminal<M>>,
        vm: VmId,
        results: &mut Results,
    ) -> Result<(), WorkloadError> {
        let own = &self.guest.own.memory;
        let copy = Arc::new(Copy::new(own, &self.guest.vm.space, vm, self.ram)?);
        let mut means = Means {
            terminal,
            results,
            copy: copy.clone(),
        };
        let outcome = self.all(&mut means);
        drop(means);
        // The helpers are done, or have been waited for.
        if let Some(copy) = Arc::into_inner(copy) {
            copy.destroy(own);
        }
        outcome?;
        self.end(terminal)
    }

    fn all(&mut self, means: &mut Means<'_, M, L>) -> Result<(), WorkloadError> {
        self.progress(0);
        self.attend_until(means, |terminal| match terminal {
            Some(terminal) if !terminal.has_printed_line() => Attended::Again(u64::MAX),
            _ => Attended::Done,
        })?;
        self.phase(means, PhaseName::Enable, 0, Self::enable)?;
        if !self.policy.initially_set {
            self.name_all();
            self.phase(means, PhaseName::Copy, 0, Self::copy)?;
        }
        self.progress(1);
        for iteration in 1..self.options.iterations {
            self.phase(means, PhaseName::Dirty, iteration, Self::let_run)?;
            self.round(means, iteration)?;
            self.progress(1);
        }
        self.last_round(means, self.options.iterations)?;
        self.progress(1);
        self.phase(means, PhaseName::Disable, 0, Self::disable)?;
        if self.options.restore != Restore::Never {
            self.phase(means, PhaseName::Restore, 0, Self::restore)?;
        }
        self.progress(1);
        Ok(())
    }

    /// A round while the guest runs.
    fn round(&mut self, means: &mut Means<'_, M, L>, iteration: u64) -> Result<(), WorkloadError> {
        match (self.options.harvest, self.options.clear) {
            (Harvest::Ring, _) | (Harvest::Bitmap, Clear::WithGet) => {
                self.phase(means, PhaseName::Get, iteration, Self::get_and_clear)?;
            }
            (Harvest::Bitmap, Clear::Manual) => {
                self.phase(means, PhaseName::Get, iteration, Self::get)?;
                self.phase(means, PhaseName::Clear, iteration, Self::clear)?;
            }
        }
        self.phase(means, PhaseName::Copy, iteration, Self::copy)
    }

    /// The round while the guest is stopped, and the comparison.
    fn last_round(
        &mut self,
        means: &mut Means<'_, M, L>,
        iteration: u64,
    ) -> Result<(), WorkloadError> {
        self.phase(means, PhaseName::Dirty, iteration, Self::let_run)?;
        let start = Results::start(self.guest);
        let guest = self.guest;
        let pause = guest.pause()?;
        self.round(means, iteration)?;
        let end_ns = guest.machine.now_ns();
        means
            .results
            .end(guest, (PhaseName::Stop, 0), end_ns, start);
        self.phase(means, PhaseName::Compare, 0, Self::compare)?;
        guest.resume(pause);
        Ok(())
    }

    /// Lets the guest run for an interval.
    fn let_run(&mut self, means: &mut Means<'_, M, L>) -> Result<(), WorkloadError> {
        let machine = self.guest.machine;
        let interval_ns = self.options.interval * NS_PER_MS;
        let until_ns = machine.now_ns().saturating_add(interval_ns);
        self.attend_until(means, |_| match machine.now_ns() >= until_ns {
            true => Attended::Done,
            false => Attended::Again(until_ns),
        })
    }

    fn enable(&mut self, means: &mut Means<'_, M, L>) -> Result<(), WorkloadError> {
        let RunningGuest { own, vm, .. } = self.guest;
        (vm.space).start_dirty_log(&own.memory, RAM_SLOT, &self.policy)?;
        if self.policy.initially_set {
            return Ok(());
        }
        self.splitting(means, |space, memory, part| {
            Ok(space.protect_part(memory, part.slot, part.pages.clone())?)
        })
    }

    fn get(&mut self, means: &mut Means<'_, M, L>) -> Result<(), WorkloadError> {
        self.in_parts(means, |space, memory, part| {
            let mut log = part.log.lock();
            Ok(space.get_dirty_log(memory, part.slot, part.pages.start, &mut log)?)
        })
    }

    fn clear(&mut self, means: &mut Means<'_, M, L>) -> Result<(), WorkloadError> {
        self.splitting(means, |space, memory, part| {
            let mut log = part.log.lock();
            Ok(space.clear_dirty_log(memory, part.slot, part.pages.start, &mut log)?)
        })
    }

    fn get_and_clear(&mut self, means: &mut Means<'_, M, L>) -> Result<(), WorkloadError> {
        (0..self.options.vcpus).for_each(|vcpu| self.take_ring(vcpu));
        self.splitting(means, |space, memory, part| {
            let mut log = part.log.lock();
            Ok(space.get_and_clear_dirty_log(memory, part.slot, part.pages.start, &mut log)?)
        })
    }

    /// Copies the pages that were harvested.
    fn copy(&mut self, means: &mut Means<'_, M, L>) -> Result<(), WorkloadError> {
        let mut named = 0;
        for part in &self.parts[..] {
            let mut log = part.log.lock();
            // A part begins at a whole word.
            let rings = &mut self.from_rings[(part.first_page / 64) as usize..];
            for (word, from_rings) in log.iter_mut().zip(rings) {
                *word |= core::mem::take(from_rings);
                named += u64::from(word.count_ones());
            }
        }
        let copied = Arc::new(AtomicU64::new(0));
        let (copy, sum) = (means.copy.clone(), copied.clone());
        self.in_parts(means, move |space, memory, part| {
            let count = copy.take(memory, space, part)?;
            sum.fetch_add(count, Ordering::Relaxed);
            Ok(())
        })?;
        means.results.count("pages_dirty", named);
        means
            .results
            .count("pages_copied", copied.load(Ordering::Relaxed));
        Ok(())
    }

    /// Has the next copy copy everything.
    fn name_all(&self) {
        for part in &self.parts[..] {
            let pages = part.pages.end - part.pages.start;
            let mut log = part.log.lock();
            log.fill(0);
            verify::add(&mut log, 0, pages);
        }
    }

    fn compare(&mut self, means: &mut Means<'_, M, L>) -> Result<(), WorkloadError> {
        let copy = means.copy.clone();
        self.in_parts(means, move |space, memory, part| {
            copy.compare(memory, space, part)
        })
    }

    fn disable(&mut self, _: &mut Means<'_, M, L>) -> Result<(), WorkloadError> {
        let RunningGuest { own, vm, .. } = self.guest;
        Ok(vm.space.disable_dirty_log(&own.memory, RAM_SLOT)?)
    }

    /// Restores blocks. The guest runs, and may keep some from being restored.
    fn restore(&mut self, means: &mut Means<'_, M, L>) -> Result<(), WorkloadError> {
        let mut left = 0;
        for _ in 0..RESTORES {
            let sums = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
            let adding = sums.clone();
            self.in_parts(means, move |space, memory, part| {
                let restored = space.restore_part(memory, part.slot, part.pages.clone())?;
                adding[0].fetch_add(restored.blocks, Ordering::Relaxed);
                adding[1].fetch_add(restored.left, Ordering::Relaxed);
                Ok(())
            })?;
            let [blocks, tables] = sums.each_ref().map(|sum| sum.load(Ordering::Relaxed));
            means.results.count("restored_blocks", blocks);
            left = tables;
            if left == 0 {
                break;
            }
        }
        means.results.count("tables_left", left);
        Ok(())
    }

    /// Lets the guest know that the rounds are over, and waits until it has powered itself off.
    fn end(&self, terminal: &mut Option<Terminal<M>>) -> Result<(), WorkloadError> {
        if let Some(terminal) = terminal {
            terminal.type_return();
        }
        let attended = || Attended::Again(attend(terminal));
        match self.guest.attend_until(attended) {
            Err(RunError::Ended(StopReason::PoweredOff | StopReason::Reported { code: 0, .. })) => {
                Ok(())
            }
            Err(RunError::Ended(reason)) => Err(RunError::Program(reason).into()),
            outcome => Ok(outcome?),
        }
    }

    /// Measures a step.
    fn phase(
        &mut self,
        means: &mut Means<'_, M, L>,
        name: PhaseName,
        iteration: u64,
        step: impl FnOnce(&mut Self, &mut Means<'_, M, L>) -> Result<(), WorkloadError>,
    ) -> Result<(), WorkloadError> {
        let start = Results::start(self.guest);
        step(self, means)?;
        let end_ns = self.guest.machine.now_ns();
        means
            .results
            .end(self.guest, (name, iteration), end_ns, start);
        Ok(())
    }

    /// As [`Self::in_parts`], for work that may split blocks, which are counted.
    fn splitting(
        &mut self,
        means: &mut Means<'_, M, L>,
        work: impl Fn(
            &AddressSpace<L>,
            &CpuMemory<M::Hardware>,
            &Part,
        ) -> Result<SplitAhead, WorkloadError>
        + Send
        + Sync
        + 'static,
    ) -> Result<(), WorkloadError> {
        let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let adding = counts.clone();
        self.in_parts(means, move |space, memory, part| {
            let split = work(space, memory, part)?;
            adding[0].fetch_add(split.blocks, Ordering::Relaxed);
            adding[1].fetch_or(split.ran_out.into(), Ordering::Relaxed);
            Ok(())
        })?;
        let [blocks, ran_out] = counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        for (name, count) in [("split_blocks", blocks), ("split_ran_out", ran_out)] {
            if count != 0 {
                means.results.count(name, count);
            }
        }
        Ok(())
    }

    /// Has the guest's helpers do `work` for each part, and looks after the guest meanwhile.
    fn in_parts(
        &mut self,
        means: &mut Means<'_, M, L>,
        work: impl Fn(&AddressSpace<L>, &CpuMemory<M::Hardware>, &Part) -> Result<(), WorkloadError>
        + Send
        + Sync
        + 'static,
    ) -> Result<(), WorkloadError> {
        let parts = self.parts.clone();
        let begun = self
            .guest
            .begin_work(parts.len(), move |space, memory, index| {
                work(space, memory, &parts[index])
            });
        self.attend_until(means, |_| match begun.is_over() {
            true => Attended::Done,
            false => Attended::Again(u64::MAX),
        })?;
        begun.end()
    }

    /// Looks after the guest's console and rings until `done` says so.
    fn attend_until(
        &mut self,
        means: &mut Means<'_, M, L>,
        mut done: impl FnMut(&Option<Terminal<M>>) -> Attended,
    ) -> Result<(), WorkloadError> {
        let guest = self.guest;
        let ended = guest.attend_until(|| {
            self.take_low_rings();
            let again_ns = attend(means.terminal);
            match done(means.terminal) {
                Attended::Again(until_ns) => Attended::Again(until_ns.min(again_ns)),
                Attended::Done => Attended::Done,
            }
        });
        Ok(ended?)
    }

    /// Harvests the rings that are nearly full, and wakes the vCPUs that may wait for that.
    fn take_low_rings(&mut self) {
        let RunningGuest { machine, vm, .. } = self.guest;
        let low_rings = self.low_rings;
        low_rings.take(|vcpu| {
            self.take_ring(vcpu);
            if let Some(cpu) = vm.cpu_of(VcpuId(vcpu)) {
                machine.kick(cpu);
            }
        });
    }

    /// Takes all that is in a vCPU's ring.
    fn take_ring(&mut self, vcpu: usize) {
        let RunningGuest { own, vm, .. } = self.guest;
        loop {
            let taken = (vm.space).harvest_ring(&own.memory, vcpu, &mut self.ring_buffer);
            for pages in &self.ring_buffer[..taken] {
                if pages.slot == RAM_SLOT {
                    verify::add(&mut self.from_rings, pages.first, pages.count);
                }
            }
            if taken < self.ring_buffer.len() {
                return;
            }
        }
    }

    fn progress(&mut self, steps: u64) {
        self.done += steps;
        let progress = Progress {
            mode: L::NAME.into(),
            step: self.done,
            steps: self.options.iterations + 2,
        };
        report::progress(self.guest.machine, &progress);
    }
}
