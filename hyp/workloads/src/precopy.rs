//! Logs the writes of a running guest of the user's and copies what it writes, round by round, as the pre-copy phase of a live
//! migration does.
//!
//! Logging is enabled while the guest runs, and everything is copied. Then it runs for an interval, its log is harvested, and
//! the pages that this names are copied; and again. For the last round it is stopped. Then the whole of its memory must equal
//! the copy, byte by byte. Logging is disabled, and the guest goes on to its end. CPU 0 looks after the guest's console all the
//! while: the guest's helpers do the work.

mod copy;
mod rounds;

use crate::harness::error::WorkloadError;
use crate::harness::low_rings::LowRings;
use crate::harness::policy::Choice;
use crate::harness::results::Results;
use crate::report;
use alloc::sync::Arc;
use control::background_merge::Scanner;
use control::guest::common_calls;
use control::guest::console::GuestConsole;
use control::guest::{GuestPlan, Host};
use control::{BOOT_CPU, Foreign, MAIN_VMS, Machine, Request, Terminal};
use memory::{MmuLock, VmId};
use records::record::{CounterMap, Record};
use records::words::{GuestKind, Harvest, Tracking};
use rounds::Rounds;
use vm::{Service, ServiceReply, VcpuId};

/// Runs the guest once, with the rounds, and prints the results.
///
/// # Errors
/// It couldn't be run to its end, or the copy differs from its memory.
pub(crate) fn run<M: Machine, L: MmuLock + 'static>(
    host: &Host<'_, M>,
    request: &Request<'_>,
    choice: Choice,
    vm: VmId,
) -> Result<(), WorkloadError> {
    let (machine, options) = (host.machine, &request.options);
    let Foreign { plan, mut terminal } = Foreign::of(host, request, vm)?;
    let plan = GuestPlan {
        helpers: options.harvesting_cpus(),
        hardware_dirty: choice.tracking == Tracking::Hardware,
        ring_entries: (options.harvest == Harvest::Ring).then_some(options.ring_entries),
        exit_times: options.exit_times,
        ..plan
    };
    report::live_heading(machine, options, choice);
    let calls = Arc::new(Calls::new(machine, options.guest, options.vcpus));
    let guest = host.launch::<L, _>(&plan, &calls)?;
    let mut results = Results::default();
    let mut merged = CounterMap::new();
    let outcome = Scanner::beside(&guest, options)
        .map_err(WorkloadError::from)
        .and_then(|scanner| {
            let copy = VmId::new((vm.number() + 1) % MAIN_VMS).unwrap_or(vm);
            let rounds = Rounds::new(&guest, &calls.low_rings, options, choice, plan.ram);
            let outcome = rounds?.run(&mut terminal, copy, &mut results);
            merged = scanner.map(Scanner::end).unwrap_or_default();
            outcome
        });
    let (outcome, state) = guest.end_after(outcome);
    calls.console.flush(|line| machine.write_line(line));
    if let Some(terminal) = &mut terminal {
        terminal.finish();
    }
    let Some(mut state) = state else {
        return outcome;
    };
    control::report::final_state(machine, vm, &state);
    control::report::merged(machine, &merged);
    state.counters.append(&mut merged);
    let verified = outcome.is_ok();
    if verified || outcome.as_ref().is_err_and(WorkloadError::is_mismatch) {
        let phases = results.phases;
        let record = crate::dirty_log::record(machine, options, choice, phases, state, verified);
        let record = Record {
            guest: options.guest.name().into(),
            interval: options.interval,
            bytes_per_vcpu: plan.ram,
            write_percent: 0,
            seed: 0,
            ..record
        };
        report::record(machine, &record)?;
    }
    outcome
}

/// What such a guest may call, and the vCPUs whose rings are nearly full.
struct Calls<M: Machine> {
    machine: &'static M,
    kind: GuestKind,
    console: GuestConsole,
    low_rings: LowRings,
}

impl<M: Machine> Calls<M> {
    fn new(machine: &'static M, kind: GuestKind, vcpus: usize) -> Self {
        Self {
            machine,
            kind,
            console: GuestConsole::new(),
            low_rings: LowRings::new(vcpus),
        }
    }
}

impl<M: Machine> Service for Calls<M> {
    fn call(&self, vcpu: VcpuId, function: u32, args: [u64; 6]) -> ServiceReply {
        let answer = match self.kind {
            GuestKind::Program => {
                common_calls::answer(self.machine, &self.console, vcpu, function, args)
            }
            _ => None,
        };
        answer.unwrap_or(ServiceReply::NotSupported)
    }

    fn ring_low(&self, vcpu: VcpuId) {
        self.low_rings.note(vcpu.0);
        self.machine.kick(BOOT_CPU);
    }

    fn poll(&self, _: VcpuId) -> ServiceReply {
        // No call waits.
        ServiceReply::NotSupported
    }
}

/// What there is to do for a guest's console, and when again.
fn attend<M: Machine>(terminal: &mut Option<Terminal<M>>) -> u64 {
    terminal.as_mut().map_or(u64::MAX, Terminal::attend)
}
