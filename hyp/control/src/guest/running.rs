//! CPU 0's handle to a running guest: waits for its end and its progress, pauses and stops it, and puts other CPUs to work on
//! its memory.
//!
//! Any number of guests run at once, each with its own CPUs, limit and counters. The limit is on time without progress, which
//! is a completed step, a fault that gave a vCPU memory, or a call. It is counted in looks ([`Patience`]), so it judges the
//! guest even where the machine itself is slow or stands still.

use crate::cpu_pool::CpuPool;
use crate::error::RunError;
use crate::guest::counters::Snapshot;
use crate::guest::ending::{Ending, FinalState};
use crate::guest::host::Host;
use crate::guest::patience::Patience;
use crate::guest::plan::{GuestPlan, TestSlot};
use crate::machine::{Machine, OwnCpu};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use memory::{AddressSpace, CpuCounters, MmuLock};
use vm::{CpuId, ExitKind, Pause, Starvation, StopReason, Vm};

const NS_PER_SECOND: u64 = 1_000_000_000;
/// How many times its limit a guest may take for one step while it makes progress: a guest that only seems to progress is ended
/// too.
const MOST_RENEWALS: u32 = 30 * LOOKS;
/// How many looks CPU 0 takes at a guest within its limit.
const LOOKS: u32 = 4;
/// How long vCPUs may take to leave the guest for a snapshot.
const GLANCE_NS: u64 = 1_000_000_000;
const GLANCE_LOOKS: u32 = 20;

/// A running guest. It is stopped when this is dropped, at the latest, and nothing is left of it then.
pub struct RunningGuest<'h, M: Machine, L: MmuLock> {
    /// The machine.
    pub machine: &'static M,
    /// CPU 0's own.
    pub own: &'h OwnCpu<M>,
    /// The guest.
    pub vm: Arc<Vm<AddressSpace<L>>>,
    /// The slots of its test memory.
    pub test_slots: Vec<TestSlot>,
    /// The CPUs that run its vCPUs, in their order.
    pub cpus: Range<usize>,
    /// Whether its vCPUs measure their longest exits.
    pub exit_times: bool,
    /// The time to fill its memory and, for a fork, its vCPUs' state, in nanoseconds.
    pub filled_ns: u64,
    host: Host<'h, M>,
    patience: Patience,
    /// How often in succession its limit was renewed without a completed step.
    renewals: Cell<u32>,
    /// The guest's work counter at the last look.
    seen: Cell<u64>,
    timeout: u64,
    /// The last lack of memory that was relieved.
    relieved: Cell<Option<Starvation>>,
    /// Dropped after `vm`, whose last reference it then holds.
    ending: Ending<'h, M, L>,
}

/// The outcome of a look at what CPU 0 attends to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attended {
    /// What was waited for has come.
    Done,
    /// It hasn't; at this time another look is due.
    Again(u64),
}

/// CPUs that work on a VM's memory beside its vCPUs. They are told to stop, and waited for, when this is dropped, at the
/// latest.
pub struct BackgroundWork<'g, M: Machine> {
    machine: &'static M,
    cpu_pool: &'static CpuPool<M>,
    /// Which CPUs.
    cpus: Range<usize>,
    stop: Arc<AtomicBool>,
    /// The guest doesn't end before.
    guest: PhantomData<&'g ()>,
}

impl<'h, M: Machine, L: MmuLock> RunningGuest<'h, M, L> {
    /// Background work that is about to start on these CPUs.
    pub(super) fn new(
        host: Host<'h, M>,
        plan: &GuestPlan<'_>,
        vm: Arc<Vm<AddressSpace<L>>>,
        cpus: Range<usize>,
        filled_ns: u64,
        ending: Ending<'h, M, L>,
    ) -> Self {
        let limit_ns = plan.timeout.saturating_mul(NS_PER_SECOND);
        Self {
            machine: host.machine,
            own: host.own,
            vm,
            test_slots: plan.test.clone(),
            cpus,
            exit_times: plan.exit_times,
            filled_ns,
            patience: Patience::new(host.machine.now_ns(), limit_ns, LOOKS),
            host,
            renewals: Cell::new(0),
            seen: Cell::new(0),
            timeout: plan.timeout,
            relieved: Cell::new(None),
            ending,
        }
    }

    /// Stops the guest if it hasn't ended by itself, and frees its memory.
    ///
    /// # Errors
    /// Its CPUs don't come back, or frames of it remain.
    pub fn end(self) -> Result<FinalState, RunError> {
        let Self { vm, mut ending, .. } = self;
        drop(vm);
        ending.end()
    }

    /// As [`Self::end`], after work with the guest that returned `outcome`. An error in `outcome` takes precedence over one of
    /// the end.
    pub fn end_after<R, E: From<RunError>>(
        self,
        outcome: Result<R, E>,
    ) -> (Result<R, E>, Option<FinalState>) {
        match self.end() {
            Ok(state) => (outcome, Some(state)),
            Err(error) => (outcome.and(Err(error.into())), None),
        }
    }

    /// The current counters: the VM's exits, and the counters of its vCPUs' CPUs, its helpers and CPU 0.
    pub fn snapshot(&self) -> Snapshot {
        let cpus = [&self.cpus, &self.helpers()];
        Snapshot::of_guest(&self.host, &self.vm, cpus)
    }

    /// Sets `count` more CPUs to work on the VM. Each calls `work` once, with its number among them and a flag that says when
    /// to stop. `None` if there are too few idle CPUs.
    pub fn beside(
        &self,
        count: usize,
        work: impl Fn(&Vm<AddressSpace<L>>, &OwnCpu<M>, usize, &AtomicBool) + Send + Sync + 'static,
    ) -> Option<BackgroundWork<'_, M>>
    where
        L: 'static,
    {
        let vm = self.vm.clone();
        let work = move |own: &OwnCpu<M>, index, stop: &_| work(&vm, own, index, stop);
        self.host.beside(count, work)
    }

    /// The CPUs that share this CPU's work on the guest's memory.
    pub(super) fn helpers(&self) -> Range<usize> {
        self.ending.helpers()
    }

    /// Has each of the guest's helpers call `work` once. None of them has a job.
    pub(super) fn call_helpers(
        &self,
        work: impl Fn(&Vm<AddressSpace<L>>, &OwnCpu<M>) + Send + Sync + 'static,
    ) -> BackgroundWork<'_, M>
    where
        L: 'static,
    {
        let vm = self.vm.clone();
        let work = move |own: &OwnCpu<M>| work(&vm, own);
        self.host.post(self.helpers(), Arc::default(), work)
    }

    /// The machine as CPU 0 sees it.
    pub(crate) fn host(&self) -> &Host<'h, M> {
        &self.host
    }

    /// When a look at the guest is due.
    pub(crate) fn due_ns(&self) -> u64 {
        self.patience.next_ns()
    }

    /// Wakes all vCPUs, so that those that wait in a call check whether it can be answered.
    pub fn kick_vcpus(&self) {
        // CPUs without a bound vCPU are kicked too, which spares the look at where each vCPU runs.
        self.machine.kick_each(self.cpus.clone().map(CpuId));
    }

    /// Notes progress: the guest has done a step, or waits for this CPU. Its limit starts again.
    pub fn note_progress(&self) {
        self.renewals.set(0);
        self.patience.renew(self.machine.now_ns());
    }

    /// Waits until `done` returns true, which happens before this CPU is kicked. Compresses cold pages meanwhile, if memory is
    /// short.
    ///
    /// # Errors
    /// The guest has ended before, or its time is up.
    pub fn wait_until(&self, mut done: impl FnMut() -> bool) -> Result<(), RunError> {
        self.attend_until(|| {
            if done() {
                Attended::Done
            } else {
                Attended::Again(u64::MAX)
            }
        })
    }

    /// As [`Self::wait_until`], while this CPU attends to something: calls `attend` whenever it was kicked, and at the time that
    /// it returned last.
    ///
    /// # Errors
    /// As for [`Self::wait_until`].
    pub fn attend_until(&self, mut attend: impl FnMut() -> Attended) -> Result<(), RunError> {
        loop {
            let Attended::Again(deadline_ns) = attend() else {
                return Ok(());
            };
            self.check()?;
            if !self.host.cpu_pool.relieve(self.own) {
                self.host.wait(self.patience.next_ns().min(deadline_ns));
            }
        }
    }

    /// Pauses the guest, and returns when all its vCPUs have left it. Its time stands still then until [`Self::resume`].
    ///
    /// # Errors
    /// As for [`Self::check`].
    pub fn pause(
        &self,
    ) -> Result<Pause<'_, AddressSpace<L>, impl FnMut(CpuId) + use<'_, 'h, M, L>>, RunError> {
        let mut pause = self.vm.pause(|cpu| self.machine.kick(cpu));
        while !pause.is_complete() {
            self.check()?;
            self.host.wait(self.patience.next_ns());
        }
        pause.stop_time(self.machine.moment());
        Ok(pause)
    }

    /// Ends the guest's pause.
    pub fn resume<K: FnMut(CpuId)>(&self, pause: Pause<'_, AddressSpace<L>, K>) {
        pause.resume(self.machine.moment());
    }

    /// Checks that the guest runs on.
    ///
    /// # Errors
    /// It has ended, it is paused because no memory is left, or its time is up.
    pub fn check(&self) -> Result<(), RunError> {
        if let Some(starvation) = self.vm.starvation() {
            self.relieve(starvation)?;
        }
        if let Some(reason) = self.vm.stop_reason() {
            return Err(RunError::Ended(reason));
        }
        let now_ns = self.machine.now_ns();
        if self.patience.is_due(now_ns) {
            self.look(now_ns)?;
        }
        Ok(())
    }

    /// Checks whether the guest has made progress.
    ///
    /// # Errors
    /// It has made none for its whole limit.
    #[cold]
    fn look(&self, now_ns: u64) -> Result<(), RunError> {
        let done = self.work_done();
        let before = self.seen.replace(done);
        let vm = self.vm.space.vm();
        if done != before && self.renewals.get() < MOST_RENEWALS {
            self.renewals.set(self.renewals.get() + 1);
            self.patience.renew(now_ns);
            let served = done.wrapping_sub(before);
            // Whoever guests the console sees that it goes on.
            self.machine.write_line(format_args!(
                "{vm} goes on: {served} faults and calls served"
            ));
        } else if self.patience.is_over(now_ns) {
            self.show_vcpus();
            return Err(RunError::TimedOut {
                seconds: self.timeout,
            });
        }
        Ok(())
    }

    /// Counts the work done for the guest: faults that gave it memory or a permission, and its calls. Retries don't count.
    fn work_done(&self) -> u64 {
        let of_cpu = |counters: &CpuCounters| {
            let faults = &counters.faults;
            let served = [faults.mapped.get(), counters.relaxed(), faults.split.get()];
            served.into_iter().fold(0, u64::wrapping_add)
        };
        let cpus = self.host.counters[self.cpus.clone()].iter();
        let calls = self.vm.exits().of(ExitKind::Hypercall);
        cpus.fold(calls, |sum, counters| sum.wrapping_add(of_cpu(counters)))
    }

    /// Prints the state of each vCPU.
    fn show_vcpus(&self) {
        let pause = self.vm.pause(|cpu| self.machine.kick(cpu));
        let patience = Patience::new(self.machine.now_ns(), GLANCE_NS, GLANCE_LOOKS);
        while !pause.is_complete() && !patience.is_over(self.machine.now_ns()) {
            self.machine.wait(patience.next_ns());
        }
        let vm = self.vm.space.vm();
        for vcpu in self.vm.vcpus() {
            let glance = pause.glance(vcpu);
            self.machine.write_line(format_args!("{vm}, {glance}"));
        }
    }

    /// Resumes a guest that was paused for lack of memory, if there is some by now.
    ///
    /// # Errors
    /// There is none, or not enough was freed for the same access before.
    fn relieve(&self, starvation: Starvation) -> Result<(), RunError> {
        let vm = self.vm.space.vm();
        self.machine
            .write_line(format_args!("{vm} is paused: {starvation}"));
        let memory = &self.own.memory;
        while memory.relieve() && memory.pool().counts().free == 0 {}
        memory.idle();
        let is_first = self.relieved.replace(Some(starvation)) != Some(starvation);
        if !is_first || memory.pool().counts().free == 0 {
            return Err(RunError::Ended(starvation.into()));
        }
        self.machine
            .write_line(format_args!("{vm} goes on, as memory was freed"));
        self.vm.feed(|cpu| self.machine.kick(cpu));
        Ok(())
    }

    /// Waits until the guest has ended by itself.
    ///
    /// # Errors
    /// Its time is up.
    pub fn wait_for_end(&self) -> Result<StopReason, RunError> {
        match self.wait_until(|| false) {
            Err(RunError::Ended(reason)) => Ok(reason),
            Err(error) => Err(error),
            Ok(()) => Ok(StopReason::Requested),
        }
    }

    /// Waits until the guest has powered itself off.
    ///
    /// # Errors
    /// It ends in another way, or its time is up.
    pub fn wait_for_power_off(&self) -> Result<(), RunError> {
        match self.wait_for_end()? {
            StopReason::PoweredOff | StopReason::AllVcpusOff => Ok(()),
            reason => Err(RunError::Ended(reason)),
        }
    }
}

impl<M: Machine> Host<'_, M> {
    /// Sets `count` CPUs to work. Each calls `work` once, with its number among them and a flag that says when to stop. `None`
    /// if there are too few idle CPUs.
    pub(crate) fn beside<'g>(
        &self,
        count: usize,
        work: impl Fn(&OwnCpu<M>, usize, &AtomicBool) + Send + Sync + 'static,
    ) -> Option<BackgroundWork<'g, M>> {
        let cpus = self.cpu_pool.find_idle(count)?;
        let (stop, first) = (Arc::new(AtomicBool::new(false)), cpus.start);
        let seen = stop.clone();
        let work = move |own: &OwnCpu<M>| work(own, own.id.0 - first, &seen);
        Some(self.post(cpus, stop, work))
    }

    fn post<'g>(
        &self,
        cpus: Range<usize>,
        stop: Arc<AtomicBool>,
        work: impl Fn(&OwnCpu<M>) + Send + Sync + 'static,
    ) -> BackgroundWork<'g, M> {
        let job = move |own: &mut OwnCpu<M>| work(own);
        (self.cpu_pool).post(self.machine, cpus.clone(), Arc::new(job));
        BackgroundWork {
            machine: self.machine,
            cpu_pool: self.cpu_pool,
            cpus,
            stop,
            guest: PhantomData,
        }
    }
}

impl<M: Machine> BackgroundWork<'_, M> {
    /// Whether all of these CPUs have finished.
    pub fn are_done(&self) -> bool {
        self.cpu_pool.are_idle(self.cpus.clone())
    }

    /// Waits until all of these CPUs have finished by themselves.
    pub(super) fn wait(&self) {
        while !self.are_done() {
            // They kick this CPU when they are done.
            self.machine.wait(u64::MAX);
        }
    }
}

impl<M: Machine> Drop for BackgroundWork<'_, M> {
    fn drop(&mut self) {
        if self.are_done() {
            return;
        }
        self.stop.store(true, Ordering::Relaxed);
        // Those that wait in the middle of their work see it now.
        for cpu in self.cpus.clone() {
            self.machine.kick(CpuId(cpu));
        }
        self.wait();
    }
}
