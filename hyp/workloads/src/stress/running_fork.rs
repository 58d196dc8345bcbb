//! Forks of the VM under stress that run: parent and fork both continue from the same moment, in the middle of their work, on
//! CPUs of their own.
//!
//! Meanwhile the harness continues with the parent. When the fork's vCPUs have finished their step, and another one, its memory
//! must match their journals, which they continued from the moment of the fork.

use super::Stress;
use super::check::TestMemory;
use super::common::counted;
use crate::harness::error::WorkloadError;
use crate::harness::service::Bench;
use crate::harness::steps::Step;
use abi::step;
use alloc::sync::Arc;
use alloc::vec::Vec;
use control::Machine;
use control::RunError;
use control::guest::{GuestPlan, RunningGuest};
use memory::MmuLock;
use stage2::PAGE_SIZE;

/// The steps of a fork, besides the one in which it was made.
const STEPS: u64 = 1;

impl<M: Machine, L: MmuLock + 'static> Stress<'_, M, L> {
    /// Forks the VM and runs both, if there are CPUs for that, and room for the writes of both.
    pub(super) fn run_twin(&mut self) -> Result<(), WorkloadError> {
        let (host, guest, plan) = (self.host, self.guest, self.plan);
        let Some(vm) = self.twin_vm else {
            return Ok(());
        };
        // Both may write all of the test memory, of its copy and of the guest's RAM.
        let needed = 3 * self.written.len() as u64 + plan.ram / PAGE_SIZE;
        if host.cpu_pool.find_idle(plan.vcpus).is_none()
            || guest.own.memory.pool().counts().free < needed
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
        let paused = guest.pause()?;
        let counted = counted(&guest.own.memory, &guest.vm.space, self.bench)?;
        let bench = Arc::new(self.bench.fork());
        let outcome = match host.launch_fork(paused, &plan, &bench) {
            Ok(twin) => {
                let outcome = self.run_beside(&twin, &bench, &written, counted);
                twin.end_after(outcome).0
            }
            Err(error) => Err(error.into()),
        };
        self.twin_vm = Some(vm);
        bench.flush();
        outcome.map_err(|error| bench.explain(error))?;
        self.count("twins", 1);
        Ok(())
    }

    /// Acts on the VM while its fork performs its steps.
    fn run_beside(
        &mut self,
        twin: &RunningGuest<'_, M, L>,
        bench: &Bench<M>,
        written: &[u64],
        counted_before: u64,
    ) -> Result<(), WorkloadError> {
        for left in (0..=STEPS).rev() {
            while !bench.steps().all_arrived() {
                twin.check()?;
                self.act_beside_vcpus()?;
            }
            let memory = TestMemory {
                guest: twin,
                options: self.options,
                written,
            };
            memory.check(bench.journals())?;
            twin.note_progress();
            for arrival in bench.steps().arrivals() {
                self.count("twin_writes", arrival.written);
            }
            if left != 0 {
                bench.steps().post_to(twin, self.step(STEPS - left));
            }
        }
        let counted = counted(&twin.own.memory, &twin.vm.space, bench)?;
        self.note_added(counted - counted_before);
        bench.steps().post_to(twin, Step::new(step::STOP, 0));
        Ok(twin.wait_for_power_off()?)
    }
}
