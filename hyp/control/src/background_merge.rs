//! Background page merging: CPUs without a vCPU together merge equal pages of running guests. The options choose their number,
//! the rate and the memory.
//!
//! CPU 0 starts and stops it, and names the VMs to merge; the scanning CPUs do nothing else meanwhile. A VM that ends earlier
//! must be withdrawn first, or its frames might be freed late.

use crate::error::RunError;
use crate::guest::{BackgroundWork, Host, RAM_SLOT, RunningGuest};
use crate::machine::{Machine, OwnCpu};
use crate::options::{Options, merge_policy};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use memory::{MmuLock, PageMerging};
use records::options::MergeOptions;
use records::record::CounterMap;
use records::words::MergeTarget;

/// Pages that are scanned between two checks whether to stop.
const AT_ONCE: u64 = 128;
const NS_PER_MS: u64 = 1_000_000;

/// A scan of guests' memory by CPUs of its own. Ends when this is dropped, at the latest.
pub struct Scanner<'g, M: Machine> {
    scan: Arc<Scan>,
    beside: BackgroundWork<'g, M>,
}

/// The state that CPU 0 and the scanning CPUs share.
struct Scan {
    options: MergeOptions,
    merging: PageMerging,
    scanners: usize,
    start_ns: u64,
    /// How long their steps took, of all scanners, in nanoseconds.
    spent_ns: AtomicU64,
    /// When the last step ended, in nanoseconds from the start.
    last_ns: AtomicU64,
}

impl<'g, M: Machine> Scanner<'g, M> {
    /// Sets CPUs to merge a guest's pages while it runs, if the options say so.
    ///
    /// # Errors
    /// There are too few idle CPUs, or there is no heap.
    pub fn beside<L: MmuLock + 'static>(
        guest: &'g RunningGuest<'_, M, L>,
        options: &Options,
    ) -> Result<Option<Self>, RunError> {
        let start = || Self::start(&[guest], &options.merge, options.merging, u64::MAX);
        options.merges_beside().then(start).transpose()
    }

    /// Sets so many CPUs to merge the pages of these guests, for the given number of complete scans.
    ///
    /// # Errors
    /// As for [`Self::beside`].
    pub fn start<L: MmuLock + 'static>(
        guests: &[&'g RunningGuest<'_, M, L>],
        options: &MergeOptions,
        scanners: usize,
        scans: u64,
    ) -> Result<Self, RunError> {
        let first = guests.first().ok_or(RunError::Stuck)?;
        let scan = Scan::new(first.machine, options, scanners);
        for guest in guests {
            scan.add(guest)?;
        }
        Self::run(first.host(), scan, scans)
    }

    /// Has CPUs do the scan.
    fn run(host: &Host<'_, M>, scan: Scan, scans: u64) -> Result<Self, RunError> {
        let scan = Arc::new(scan);
        let (machine, shared) = (host.machine, scan.clone());
        let beside = host.beside(scan.scanners, move |own, _, stop| {
            shared.run(machine, own, stop, scans);
        });
        Ok(Self {
            scan,
            beside: beside.ok_or(RunError::Stuck)?,
        })
    }

    /// Merges the pages of another guest too, until the returned value is dropped.
    ///
    /// # Errors
    /// There is no heap.
    pub fn add<'a, L: MmuLock>(
        &self,
        guest: &'a RunningGuest<'a, M, L>,
    ) -> Result<Added<'a, M, L>, RunError> {
        self.scan.add(guest)?;
        let scan = self.scan.clone();
        Ok(Added { scan, guest })
    }

    /// Whether all scans are complete.
    pub fn is_done(&self) -> bool {
        self.beside.are_done()
    }

    /// The statistics, named as in Linux.
    pub fn counts(&self) -> CounterMap {
        self.scan.counts()
    }

    /// Ends the scan, and returns its statistics.
    pub fn end(self) -> CounterMap {
        let Self { scan, beside } = self;
        drop(beside);
        scan.counts()
    }
}

impl<M: Machine> Scanner<'static, M> {
    /// Sets CPUs to merge the pages of guests that come and go, if the options say so. There are none yet.
    ///
    /// # Errors
    /// There are too few idle CPUs.
    pub(crate) fn of_machine(
        host: &Host<'_, M>,
        options: &Options,
    ) -> Result<Option<Self>, RunError> {
        let start = || {
            let scan = Scan::new(host.machine, &options.merge, options.merging);
            Self::run(host, scan, u64::MAX)
        };
        options.merges_beside().then(start).transpose()
    }

    /// Merges the pages of this guest from now on. Before it ends, [`Self::let_go`] is called for it.
    ///
    /// # Errors
    /// There is no heap.
    pub(crate) fn take_in<L: MmuLock>(
        &self,
        guest: &RunningGuest<'_, M, L>,
    ) -> Result<(), RunError> {
        self.scan.add(guest)
    }

    /// Merges the pages of this guest no more.
    pub(crate) fn let_go<L: MmuLock>(&self, guest: &RunningGuest<'_, M, L>) {
        self.scan.remove(guest);
    }
}

/// Keeps a guest's pages merged until it is dropped.
pub struct Added<'a, M: Machine, L: MmuLock> {
    scan: Arc<Scan>,
    guest: &'a RunningGuest<'a, M, L>,
}

impl<M: Machine, L: MmuLock> Drop for Added<'_, M, L> {
    fn drop(&mut self) {
        self.scan.remove(self.guest);
    }
}

impl Scan {
    fn new<M: Machine>(machine: &M, options: &MergeOptions, scanners: usize) -> Self {
        Self {
            options: options.clone(),
            merging: PageMerging::new(merge_policy(options, scanners)),
            scanners,
            start_ns: machine.now_ns(),
            spent_ns: AtomicU64::new(0),
            last_ns: AtomicU64::new(0),
        }
    }

    fn remove<M: Machine, L: MmuLock>(&self, guest: &RunningGuest<'_, M, L>) {
        let (own, vm) = (guest.own, &guest.vm);
        self.merging.remove_vm(&own.memory, &vm.space);
    }

    fn add<M: Machine, L: MmuLock>(&self, guest: &RunningGuest<'_, M, L>) -> Result<(), RunError> {
        let (own, space) = (&guest.own.memory, &guest.vm.space);
        let test = guest.test_slots.iter().map(|slot| slot.id);
        let is_target = |target| self.options.targets.contains(&target);
        let test = test.filter(|_| is_target(MergeTarget::Test));
        let ram = is_target(MergeTarget::Ram).then_some(RAM_SLOT);
        for slot in test.chain(ram) {
            self.merging.add(&space.object_of(own, slot)?)?;
        }
        Ok(())
    }

    fn run<M: Machine>(&self, machine: &M, own: &OwnCpu<M>, stop: &AtomicBool, scans: u64) {
        let is_over =
            || stop.load(Ordering::Relaxed) || self.merging.statistics().full_scans >= scans;
        while !is_over() {
            let mut left = self.options.pages_to_scan;
            while left != 0 && !is_over() {
                let start_ns = machine.now_ns();
                let scanned = self.merging.scan(&own.memory, left.min(AT_ONCE));
                let end_ns = machine.now_ns();
                self.spent_ns
                    .fetch_add(end_ns - start_ns, Ordering::Relaxed);
                if scanned != 0 {
                    let last_ns = end_ns.saturating_sub(self.start_ns);
                    self.last_ns.fetch_max(last_ns, Ordering::Relaxed);
                }
                // What was given up goes home.
                own.memory.idle();
                left = if scanned == 0 { 0 } else { left - scanned };
            }
            self.pause(machine, own, stop);
        }
    }

    fn pause<M: Machine>(&self, machine: &M, own: &OwnCpu<M>, stop: &AtomicBool) {
        let pause_ns = self.options.sleep_millisecs * NS_PER_MS;
        let deadline_ns = machine.now_ns().saturating_add(pause_ns);
        while machine.now_ns() < deadline_ns && !stop.load(Ordering::Relaxed) {
            machine.wait(deadline_ns);
            // As every CPU does that is idle and is kicked.
            own.memory.idle();
        }
    }

    fn counts(&self) -> CounterMap {
        let mut counts = CounterMap::new();
        self.merging.statistics().for_each(|name, count| {
            counts.insert(name.into(), count);
        });
        let spent_ns = self.spent_ns.load(Ordering::Relaxed);
        let last_ns = self.last_ns.load(Ordering::Relaxed);
        counts.insert("scanners".into(), self.scanners as u64);
        counts.insert("scanner_ns".into(), spent_ns);
        counts.insert("scan_ns".into(), last_ns);
        counts
    }
}
