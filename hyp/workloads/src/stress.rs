//! The stress run: all vCPUs read and write at random, while the harness performs every dirty-log operation at random and
//! migrates the memory meanwhile.
//!
//! The backing changes too: the VM is paused and forked; its fork runs beside it where there are CPUs for that, and both add to
//! memory that they share; slots come, move and go; ranges are pre-faulted; equal pages are merged; cold pages are compressed.
//!
//! vCPUs work in rounds. Meanwhile CPU 0 enables and disables the logs of slots under any policy, harvests them in any way,
//! splits and restores blocks, and writes guest memory itself. It keeps a copy of each logged slot, updated with the pages that
//! the log names. Between rounds it makes the final harvest, as live migration does. Then the copy must equal the memory byte
//! for byte, and the memory must match the vCPUs' journals.

mod act;
mod check;
mod common;
mod fork;
mod frames;
mod running_fork;
mod shuffle;
mod slots;
mod target;

use crate::dirty_log::record;
use crate::harness::error::WorkloadError;
use crate::harness::policy::Choice;
use crate::harness::service::{Bench, needed_journal};
use crate::harness::steps::Step;
use crate::harness::test_memory::guest_ram;
use crate::report;
use abi::step;
use act::Act;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use common::Common;
use control::MAIN_VMS;
use control::Machine;
use control::Request;
use control::RunError;
use control::guest::{GuestPlan, Host, RunningGuest};
use control::options::Options;
use fastrand::Rng;
use fork::Fork;
use memory::{DirtyPages, MmuLock, PageMerging, SlotId, VmId};
use records::record::{CounterMap, PARVISOR, Progress, Record};
use records::words::Backing;
use shuffle::Shuffle;
use slots::Slots;
use stage2::PAGE_SIZE;
use target::Target;

/// How many entries of a ring are taken at once.
const TAKEN_AT_ONCE: usize = 300;
/// The most actions of the harness, once all vCPUs wait, before it checks.
const MOST_LATE_ACTS: u32 = 30;
/// The least number of times that everything is done, even after the run's time: on a slow machine there are few actions. It
/// suffices for every change of slots.
const LEAST_DEALS: u64 = 6;
/// How many of so many logs have rings.
const RINGS: [(bool, usize); 2] = [(true, 1), (false, 4)];
const NS_PER_SECOND: u64 = 1_000_000_000;
/// The longest interval between progress reports, and between reports that the time is over.
const TELL_NS: u64 = 5 * NS_PER_SECOND;

/// Makes one stress run, in one mode.
///
/// # Errors
/// It couldn't be run to its end, or something was lost.
pub(crate) fn run<M: Machine, L: MmuLock + 'static>(
    host: &Host<'_, M>,
    request: &Request<'_>,
    choice: Choice,
    vm: VmId,
) -> Result<(), WorkloadError> {
    let (machine, options) = (host.machine, &request.options);
    let plan = plan(request, vm);
    let bench = Arc::new(Bench::new(machine, options, plan.ram));
    report::stress_heading(machine, options, choice);
    let mut done = CounterMap::new();
    let guest = host.launch::<L, _>(&plan, &bench)?;
    let outcome = stress(host, &guest, &plan, &bench, options, &mut done);
    let (outcome, state) = guest.end_after(outcome);
    bench.flush();
    let outcome = outcome.map_err(|error| bench.explain(error));
    report::stress_done(machine, &done);
    if let Some(state) = state {
        control::report::final_state(machine, vm, &state);
        if outcome.is_ok() {
            let mut record = Record {
                iterations: done.get("rounds").copied().unwrap_or(0),
                ..record(machine, options, choice, Vec::new(), state, true)
            };
            record.system = PARVISOR.into();
            record.counters.append(&mut done);
            report::record(machine, &record)?;
        }
    }
    outcome
}

/// Stresses a running guest.
fn stress<M: Machine, L: MmuLock + 'static>(
    host: &Host<'_, M>,
    guest: &RunningGuest<'_, M, L>,
    plan: &GuestPlan<'_>,
    bench: &Bench<M>,
    options: &Options,
    done: &mut CounterMap,
) -> Result<(), WorkloadError> {
    let mut stress = Stress::new(host, guest, plan, bench, options, done)?;
    let outcome = stress.run();
    // In any case: its frames are to go home.
    let outcome = outcome.and(stress.end_fork());
    stress.count_frames();
    outcome
}

fn plan<'p>(request: &Request<'p>, vm: VmId) -> GuestPlan<'p> {
    let options = &request.options;
    let copies = options.test_bytes().unwrap_or(0);
    let ram = guest_ram(options, request.image, needed_journal(options));
    GuestPlan {
        test: crate::harness::test_memory::slots(options),
        unseen: copies.next_multiple_of(Backing::Block2M.bytes()),
        hardware_dirty: true,
        ring_entries: Some(options.ring_entries),
        ..GuestPlan::of(request, vm, ram)
    }
}

/// The stress run while its guest runs.
struct Stress<'s, M: Machine, L: MmuLock> {
    host: &'s Host<'s, M>,
    plan: &'s GuestPlan<'s>,
    guest: &'s RunningGuest<'s, M, L>,
    bench: &'s Bench<M>,
    options: &'s Options,
    /// The number of actions, by name.
    done: &'s mut CounterMap,
    random: Rng,
    acts: Shuffle<Act>,
    /// Whether a log is to have rings.
    rings: Shuffle<bool>,
    targets: Vec<Target>,
    /// Whether the CPUs keep dirty state.
    has_dirty_state: bool,
    /// The last word that the harness has written to each page of the test memory.
    written: Vec<u64>,
    ring_buffer: Vec<DirtyPages>,
    /// The VM number for a fork that doesn't run.
    spare_vm: Option<VmId>,
    /// The VM number for a fork that runs, while there is none.
    twin_vm: Option<VmId>,
    fork: Option<Fork<L>>,
    slots: Slots,
    common: Option<Common>,
    merging: PageMerging,
    clock: Clock,
}

/// Decides when the run ends: at the end of its time, give or take half a round. Time is the machine's, so a slow host means
/// less work, not a longer run.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start_ns: u64,
    end_ns: u64,
    /// The duration of the last round.
    round_ns: u64,
    /// The time of the last progress report.
    told_ns: u64,
}

impl Clock {
    fn new(now_ns: u64, seconds: u64) -> Self {
        Self {
            start_ns: now_ns,
            end_ns: now_ns.saturating_add(seconds.saturating_mul(NS_PER_SECOND)),
            round_ns: 0,
            told_ns: now_ns,
        }
    }

    fn is_over(&self, now_ns: u64) -> bool {
        now_ns >= self.end_ns
    }

    /// Whether there is time for another round, or for most of it.
    fn has_time(&self, now_ns: u64) -> bool {
        now_ns.saturating_add(self.round_ns / 2) < self.end_ns
    }

    /// The progress of a run in which everything was done `deals` times: its seconds, then the required minimum however long
    /// that takes, and its end.
    fn progress(&self, now_ns: u64, deals: u64, has_ended: bool) -> (u64, u64) {
        let seconds = |until_ns: u64| until_ns.saturating_sub(self.start_ns) / NS_PER_SECOND;
        let passed = seconds(now_ns.min(self.end_ns));
        let step = passed + deals.min(LEAST_DEALS) + u64::from(has_ended);
        (step, seconds(self.end_ns) + LEAST_DEALS + 1)
    }

    /// By how many seconds the run is over its time.
    fn late_seconds(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.end_ns) / NS_PER_SECOND
    }
}

impl<'s, M: Machine, L: MmuLock + 'static> Stress<'s, M, L> {
    fn new(
        host: &'s Host<'s, M>,
        guest: &'s RunningGuest<'s, M, L>,
        plan: &'s GuestPlan<'s>,
        bench: &'s Bench<M>,
        options: &'s Options,
        done: &'s mut CounterMap,
    ) -> Result<Self, WorkloadError> {
        let copies = plan.unseen_start();
        let slots = crate::harness::test_memory::slots(options);
        let targets = slots.iter().map(|slot| Target::new(*slot, copies));
        let targets: Vec<Target> = targets.collect::<Option<_>>().ok_or(RunError::Heap)?;
        let pages = (options.test_bytes().unwrap_or(0) / PAGE_SIZE) as usize;
        let mut written = Vec::new();
        written
            .try_reserve_exact(pages)
            .map_err(|_| RunError::Heap)?;
        written.resize(pages, 0);
        let none = DirtyPages {
            slot: SlotId(0),
            first: 0,
            count: 0,
        };
        let unseen = Slots::behind(copies.offset(pages as u64 * PAGE_SIZE));
        let other_vm = |after| VmId::new((plan.vm.number() + after) % MAIN_VMS);
        Ok(Self {
            host,
            plan,
            guest,
            bench,
            options,
            done,
            random: Rng::with_seed(options.seed),
            acts: Shuffle::of(Act::COUNTS),
            rings: Shuffle::of(&RINGS),
            merging: frames::merging(guest, &targets)?,
            targets,
            has_dirty_state: guest.vm.space.stage2().layout().features().hardware_dirty,
            written,
            ring_buffer: vec![none; TAKEN_AT_ONCE],
            spare_vm: other_vm(1),
            twin_vm: other_vm(2),
            fork: None,
            common: Common::map(guest, unseen.end())?,
            slots: unseen,
            clock: Clock::new(host.machine.now_ns(), options.seconds),
        })
    }

    fn run(&mut self) -> Result<(), WorkloadError> {
        self.progress(false);
        self.wait_for_vcpus()?;
        loop {
            let begun_ns = self.guest.machine.now_ns();
            self.progress(false);
            if !self.clock.has_time(begun_ns) && self.acts.rounds() >= LEAST_DEALS {
                break;
            }
            self.round()?;
            self.clock.round_ns = self.guest.machine.now_ns() - begun_ns;
        }
        self.end_logging()?;
        self.progress(true);
        self.end_guest()
    }

    /// A round: the vCPUs work while the harness acts; when they are done, everything is checked.
    fn round(&mut self) -> Result<(), WorkloadError> {
        let steps = self.bench.steps();
        self.count("rounds", 1);
        let step = self.step(self.done["rounds"]);
        steps.post_to(self.guest, step);
        while !steps.all_arrived() {
            self.act_beside_vcpus()?;
        }
        self.guest.note_progress();
        // What is lost now isn't found by a later write.
        for _ in 0..self.random.u32(..MOST_LATE_ACTS) {
            if self.is_late() {
                break;
            }
            self.act()?;
        }
        // What is missing then is done at once, without another round.
        while self.is_late() && self.acts.rounds() < LEAST_DEALS {
            self.tell();
            self.act()?;
        }
        for arrival in steps.arrivals() {
            self.count("guest_writes", arrival.written);
            self.count("guest_reads", arrival.read);
        }
        self.check_round()
    }

    /// A step of stress.
    fn step(&self, number: u64) -> Step {
        let common = self.common.as_ref();
        Step {
            part: common.map_or((0, 0), Common::part),
            ..Step::new(step::STRESS, number)
        }
    }

    /// Performs one action while vCPUs run; after the run's time only those that let the vCPUs finish.
    fn act_beside_vcpus(&mut self) -> Result<(), WorkloadError> {
        if self.bench.steps().all_arrived() {
            // They wait for the harness, which is busy with a fork of theirs.
            self.guest.note_progress();
        }
        self.guest.check()?;
        self.tell();
        self.serve_rings()?;
        if self.is_late() {
            core::hint::spin_loop();
            return Ok(());
        }
        self.act()
    }

    /// Whether the run's time is over, so that it should end soon.
    fn is_late(&self) -> bool {
        self.clock.is_over(self.guest.machine.now_ns())
    }

    fn wait_for_vcpus(&mut self) -> Result<(), WorkloadError> {
        self.bench.steps().wait(self.guest, || {})
    }

    fn end_guest(&mut self) -> Result<(), WorkloadError> {
        let step = Step::new(step::STOP, 0);
        self.bench.steps().post_to(self.guest, step);
        Ok(self.guest.wait_for_power_off()?)
    }

    fn count(&mut self, name: &str, count: u64) {
        *self.done.entry(name.into()).or_default() += count;
    }

    /// Reports progress after a long interval without a report: on a slow machine a round may take very long.
    fn tell(&mut self) {
        let now_ns = self.guest.machine.now_ns();
        if now_ns < self.clock.told_ns.saturating_add(TELL_NS) {
            return;
        }
        self.progress(false);
        if self.is_late() {
            let late = self.clock.late_seconds(now_ns);
            report::stress_late(self.guest.machine, late, self.acts.rounds(), LEAST_DEALS);
        }
    }

    fn progress(&mut self, has_ended: bool) {
        let now_ns = self.guest.machine.now_ns();
        self.clock.told_ns = now_ns;
        let (step, steps) = self.clock.progress(now_ns, self.acts.rounds(), has_ended);
        let progress = Progress {
            mode: L::NAME.into(),
            step,
            steps,
        };
        report::progress(self.guest.machine, &progress);
    }
}

#[cfg(test)]
mod tests {
    use super::slots::Change;
    use super::*;

    #[test]
    fn every_change_of_slots_is_among_the_least_acts() {
        let dealt = Act::COUNTS
            .iter()
            .find(|(act, _)| matches!(act, Act::Slots));
        let least = LEAST_DEALS as usize * dealt.map_or(0, |(_, count)| *count);
        let changes: usize = Change::COUNTS.iter().map(|(_, count)| count).sum();
        // The first one is no card, nor the one that follows when the last slot has gone, which happens once a deal.
        assert!(least >= changes + 2, "{least} acts for {changes} changes");
    }

    #[test]
    fn the_run_ends_when_its_time_is_over_to_half_a_round() {
        let mut clock = Clock::new(NS_PER_SECOND, 10);
        assert!(clock.has_time(NS_PER_SECOND), "the first round begins");
        clock.round_ns = 4 * NS_PER_SECOND;
        assert!(clock.has_time(8 * NS_PER_SECOND));
        assert!(
            !clock.has_time(9 * NS_PER_SECOND),
            "it would end two seconds late"
        );
        assert!(!clock.is_over(10 * NS_PER_SECOND) && clock.is_over(11 * NS_PER_SECOND));
    }

    #[test]
    fn progress_goes_on_when_the_time_is_over_until_everything_was_done() {
        let clock = Clock::new(NS_PER_SECOND, 3);
        let steps = 3 + LEAST_DEALS + 1;
        let progress = |second: u64, deals, has_ended| {
            clock.progress(second * NS_PER_SECOND, deals, has_ended)
        };
        assert_eq!(progress(1, 0, false), (0, steps));
        assert_eq!(progress(3, 1, false), (3, steps));
        assert_eq!(progress(40, 1, false), (4, steps));
        assert_eq!(progress(80, LEAST_DEALS, false), (steps - 1, steps));
        assert_eq!(progress(80, LEAST_DEALS + 9, true), (steps, steps));
        assert_eq!(clock.late_seconds(3 * NS_PER_SECOND), 0);
        assert_eq!(clock.late_seconds(9 * NS_PER_SECOND), 5);
    }
}
