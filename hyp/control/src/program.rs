//! Runs a guest program until it powers off, reports its verdict, or times out.

use crate::background_merge::Scanner;
use crate::error::RunError;
use crate::guest::common_calls;
use crate::guest::console::GuestConsole;
use crate::guest::{GuestPlan, Host, RunningGuest};
use crate::machine::{Device, Machine};
use crate::options::Options;
use crate::report;
use crate::request::Request;
use alloc::sync::Arc;
use memory::{MmuLock, VmId};
use records::record::CounterMap;
use vm::{Service, ServiceReply, StopReason, VcpuId};

/// The hypercalls of a guest program.
pub(crate) struct ProgramService<M: Machine> {
    machine: &'static M,
    console: GuestConsole,
}

impl<M: Machine> Service for ProgramService<M> {
    fn call(&self, vcpu: VcpuId, function: u32, args: [u64; 6]) -> ServiceReply {
        common_calls::answer(self.machine, &self.console, vcpu, function, args)
            .unwrap_or(ServiceReply::NotSupported)
    }

    /// A program's memory isn't logged.
    fn ring_low(&self, _: VcpuId) {}

    fn poll(&self, _vcpu: VcpuId) -> ServiceReply {
        // No call waits.
        ServiceReply::NotSupported
    }
}

/// Runs the program to its end.
///
/// # Errors
/// It couldn't be started, or it ended with a failure.
pub(crate) fn run<M: Machine, L: MmuLock + 'static>(
    host: &Host<'_, M>,
    request: &Request<'_>,
    vm: VmId,
) -> Result<(), RunError> {
    let options = &request.options;
    let plan = plan(host, request, vm)?;
    let machine = host.machine;
    let service = Arc::new(ProgramService {
        machine,
        console: GuestConsole::new(),
    });
    let guest = host.launch::<L, _>(&plan, &service)?;
    let ended = wait(&guest, options);
    let (ended, state) = guest.end_after(ended);
    service.console.flush(|line| machine.write_line(line));
    if let Some(state) = state {
        report::final_state(machine, vm, &state);
    }
    let (reason, merged) = ended?;
    report::merged(machine, &merged.unwrap_or_default());
    match reason {
        reason @ (StopReason::PoweredOff | StopReason::Reported { code: 0, .. }) => {
            machine.write_line(format_args!("program: {reason}"));
            Ok(())
        }
        reason => Err(RunError::Program(reason)),
    }
}

/// The plan of a program.
///
/// # Errors
/// It can't be given its device.
pub(crate) fn plan<'p, M: Machine>(
    host: &Host<'_, M>,
    request: &Request<'p>,
    vm: VmId,
) -> Result<GuestPlan<'p>, RunError> {
    let options = &request.options;
    let devices = options.devices.iter().map(|path| device(host, path));
    let devices = devices.collect::<Result<_, _>>()?;
    Ok(GuestPlan {
        ram_backing: options.backing,
        devices,
        ..GuestPlan::of(request, vm, options.program_bytes().unwrap_or(0))
    })
}

/// Waits for the program's end, and merges its memory meanwhile if the options say so. Returns the reason of the end, and
/// merging's statistics.
fn wait<M: Machine, L: MmuLock + 'static>(
    guest: &RunningGuest<'_, M, L>,
    options: &Options,
) -> Result<(StopReason, Option<CounterMap>), RunError> {
    let scanner = Scanner::beside(guest, options)?;
    let reason = guest.wait_for_end()?;
    Ok((reason, scanner.map(Scanner::end)))
}

/// The device to assign to the guest.
fn device<M: Machine>(host: &Host<'_, M>, path: &str) -> Result<Device, RunError> {
    let found = host.machine.device(&host.own.memory, path);
    found.map_err(|error| RunError::Device {
        path: path.into(),
        error,
    })
}
