//! Runs an operating system that expects QEMU's virt machine, such as Linux, until it powers off.
//!
//! While it runs, CPU 0 carries the output of its UART to the console, and the console's input to its UART.

mod line_watch;
mod terminal;

pub use terminal::Terminal;

use crate::background_merge::Scanner;
use crate::error::RunError;
use crate::foreign::Foreign;
use crate::guest::Host;
use crate::machine::Machine;
use crate::report;
use crate::request::Request;
use alloc::sync::Arc;
use memory::{MmuLock, VmId};
use records::words::OnReset;
use vm::{Service, ServiceReply, StopReason, VcpuId};

/// Such guests make no hypercalls of Parvisor's own.
struct NoCalls;

impl Service for NoCalls {
    fn call(&self, _: VcpuId, _: u32, _: [u64; 6]) -> ServiceReply {
        ServiceReply::NotSupported
    }

    fn ring_low(&self, _: VcpuId) {}

    fn poll(&self, _: VcpuId) -> ServiceReply {
        ServiceReply::NotSupported
    }
}

/// Runs the guest to its end, again after each reset.
///
/// # Errors
/// It couldn't be started, or it ended with a failure.
pub(crate) fn run<M: Machine, L: MmuLock + 'static>(
    host: &Host<'_, M>,
    request: &Request<'_>,
    vm: VmId,
) -> Result<(), RunError> {
    loop {
        match run_once::<M, L>(host, request, vm)? {
            reason @ StopReason::PoweredOff => {
                host.machine.write_line(format_args!("{vm}: {reason}"));
                return Ok(());
            }
            reason @ StopReason::Reset if request.options.on_reset == OnReset::Restart => {
                let machine = host.machine;
                machine.write_line(format_args!("{vm}: {reason}, and starts again"));
            }
            reason => return Err(RunError::Program(reason)),
        }
    }
}

/// Runs the guest until it ends in whatever way.
fn run_once<M: Machine, L: MmuLock + 'static>(
    host: &Host<'_, M>,
    request: &Request<'_>,
    vm: VmId,
) -> Result<StopReason, RunError> {
    let (machine, options) = (host.machine, &request.options);
    let Foreign { plan, mut terminal } = Foreign::of(host, request, vm)?;
    let guest = host.launch::<L, _>(&plan, &Arc::new(NoCalls))?;
    let ended = Scanner::beside(&guest, options).and_then(|scanner| {
        let reason =
            guest.attend_until_end(|| terminal.as_mut().map_or(u64::MAX, Terminal::attend))?;
        Ok((reason, scanner.map(Scanner::end)))
    });
    let (ended, state) = guest.end_after(ended);
    if let Some(terminal) = &mut terminal {
        terminal.finish();
    }
    if let Some(state) = state {
        report::final_state(machine, vm, &state);
    }
    let (reason, merged) = ended?;
    report::merged(machine, &merged.unwrap_or_default());
    Ok(reason)
}
