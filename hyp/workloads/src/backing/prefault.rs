//! The pre-faulting workload: other CPUs populate memory before the vCPUs use it, or (baseline) the vCPUs fault it in. Then the
//! guest gives the memory back, reads zeros in its place, and populates it by its own hypercalls.

use super::{Outcome, Run, range_of};
use crate::harness::error::WorkloadError;
use crate::harness::results::Results;
use abi::step;
use alloc::sync::Arc;
use control::Machine;
use control::RunError;
use control::guest::RunningGuest;
use core::sync::atomic::{AtomicU64, Ordering};
use memory::{Access, MmuLock, NotPopulated, PrefaultError};
use records::record::PhaseName;
use spin::Once;

/// Pages that a worker populates between two checks whether to stop.
const AT_ONCE: u64 = 256;
/// The value that the vCPUs write first, and the one after they have populated their memory themselves.
const FIRST: u64 = 1;
const SECOND: u64 = 2;

/// The workers' progress and results.
#[derive(Default)]
struct Ended {
    pages: AtomicU64,
    last_ns: AtomicU64,
    error: Once<PrefaultError>,
}

impl<M: Machine> Run<'_, M> {
    pub(super) fn prefault<L: MmuLock + 'static>(
        &self,
        outcome: &mut Outcome,
    ) -> Result<(), WorkloadError> {
        self.alone::<L>(outcome, |stage, results| {
            if self.case.workers != 0 {
                self.populate(stage.guest, stage.share, results)?;
            }
            let write = |iteration| stage.whole(step::WRITE, iteration);
            stage.measure(results, (PhaseName::Write, FIRST), write(FIRST))?;
            stage.perform(stage.whole(step::READ, FIRST))?;
            stage.perform(stage.whole(step::GIVE_UP, 0))?;
            stage.perform(stage.whole(step::READ_ZEROS, 0))?;
            let ahead = stage.whole(step::POPULATE_AHEAD, 0);
            stage.measure(results, (PhaseName::Prefault, SECOND), ahead)?;
            stage.measure(results, (PhaseName::Write, SECOND), write(SECOND))?;
            stage.perform(stage.whole(step::READ, SECOND))
        })
    }

    /// Has the workers populate all of the test memory, each an equal part of it.
    fn populate<L: MmuLock + 'static>(
        &self,
        guest: &RunningGuest<'_, M, L>,
        share: u64,
        results: &mut Results,
    ) -> Result<(), WorkloadError> {
        let (machine, workers) = (guest.machine, self.case.workers);
        let pages = share * self.options.vcpus as u64;
        let ended = Arc::new(Ended::default());
        let start = Results::start(guest);
        let beside = {
            let ended = ended.clone();
            guest.beside(workers as usize, move |vm, own, index, stop| {
                let index = index as u64;
                let (mut at, end) = (pages * index / workers, pages * (index + 1) / workers);
                while at < end && !stop.load(Ordering::Relaxed) {
                    let next = end.min(at + AT_ONCE);
                    let range = range_of(at..next);
                    match vm.space.prefault(&own.memory, 0, range, Access::Write) {
                        Ok(()) => {}
                        Err(error) if error.reason == NotPopulated::Busy => continue,
                        Err(error) => {
                            ended.error.call_once(|| error);
                            break;
                        }
                    }
                    ended.pages.fetch_add(next - at, Ordering::Relaxed);
                    at = next;
                }
                ended.last_ns.fetch_max(machine.now_ns(), Ordering::Relaxed);
            })
        };
        let beside = beside.ok_or(RunError::Stuck)?;
        let mut seen = 0;
        guest.wait_until(|| {
            // The guest waits for the workers: their progress is its.
            let populated = ended.pages.load(Ordering::Relaxed);
            if core::mem::replace(&mut seen, populated) != populated {
                guest.note_progress();
            }
            beside.are_done()
        })?;
        let last_ns = ended.last_ns.load(Ordering::Relaxed);
        results.end(guest, (PhaseName::Prefault, 0), last_ns, start);
        match ended.error.get() {
            Some(error) => Err((*error).into()),
            None => {
                results.note("populated", pages);
                Ok(())
            }
        }
    }
}
