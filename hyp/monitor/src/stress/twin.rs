//! Forks of the VM under stress whose vCPUs run: both go on from the same moment, in the middle of whatever they did, on CPUs of
//! their own.
//!
//! The harness goes on with the parent meanwhile. When the fork's vCPUs are done with their step, and with another one, its
//! memory must be what their journals say: those that they had in that moment, and have gone on with.

use super::Stress;
use super::check::TestMemory;
use super::common::counted;
use crate::bench::Bench;
use crate::error::RunError;
use crate::guest::{GuestPlan, Watch};
use crate::machine::Machine;
use crate::steps::Step;
use abi::step;
use alloc::sync::Arc;
use alloc::vec::Vec;
use memory::MmuLock;
use stage2::PAGE_SIZE;
use vm::StopReason;

/// How many steps a fork does beside the one in which it was made.
const STEPS: u64 = 1;

impl<M: Machine, L: MmuLock + 'static> Stress<'_, M, L> {
    /// Forks the VM and has both run, if there are CPUs for that, and room for what both may write.
    pub(super) fn run_twin(&mut self) -> Result<(), RunError> {
        let (host, watch, plan) = (self.host, self.watch, self.plan);
        let Some(vm) = self.twin_vm else {
            return Ok(());
        };
        // Both may write all of the test memory, of its copy and of the guest's RAM.
        let needed = 3 * self.written.len() as u64 + plan.ram / PAGE_SIZE;
        if host.crew.find_idle(plan.vcpus).is_none()
            || watch.own.memory.pool().counts().free < needed
        {
            self.count("twins_without_room", 1);
            return Ok(());
        }
        let mut written = Vec::new();
        (written.try_reserve_exact(self.written.len())).map_err(|_| RunError::Heap)?;
        written.extend_from_slice(&self.written);
        let plan = GuestPlan {
            vm,
            // Its slots aren't logged.
            ring_entries: None,
            ..plan.clone()
        };
        // There is one at a time.
        self.twin_vm = None;
        let paused = watch.pause()?;
        let counted = counted(&watch.own.memory, &watch.vm.space, self.bench)?;
        let bench = Arc::new(self.bench.fork());
        let (outcome, _) = host.run_fork(paused, &plan, &bench, |twin| {
            self.run_beside(twin, &bench, &written, counted)
        });
        self.twin_vm = Some(vm);
        bench.flush();
        outcome.map_err(|error| bench.explain(error))?;
        self.count("twins", 1);
        Ok(())
    }

    /// Does things to the VM while its fork does its steps.
    fn run_beside(
        &mut self,
        twin: &Watch<'_, M, L>,
        bench: &Bench<M>,
        written: &[u64],
        counted_before: u64,
    ) -> Result<(), RunError> {
        for left in (0..=STEPS).rev() {
            while !bench.steps().all_arrived() {
                twin.check()?;
                self.act_beside_vcpus()?;
            }
            let memory = TestMemory {
                watch: twin,
                options: self.options,
                written,
            };
            memory.check(bench.journals())?;
            twin.note_progress();
            for arrival in bench.steps().arrivals() {
                self.count("twin_writes", arrival.written);
            }
            if left != 0 {
                twin.post(bench.steps(), self.step(STEPS - left));
            }
        }
        let counted = counted(&twin.own.memory, &twin.vm.space, bench)?;
        self.note_added(counted - counted_before);
        twin.post(bench.steps(), Step::new(step::STOP, 0));
        match twin.wait_for_end()? {
            StopReason::PoweredOff | StopReason::AllVcpusOff => Ok(()),
            reason => Err(RunError::Ended(reason)),
        }
    }
}
