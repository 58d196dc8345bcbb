//! Runs operating systems that expect QEMU's virt machine, such as Linux, until they power off.
//!
//! While they run, CPU 0 carries the output of their UARTs to the console, and the console's input to a UART.

mod line_watch;
mod running;
mod terminal;
mod vms;

pub(crate) use running::planned;
pub use terminal::Terminal;

use crate::error::RunError;
use crate::guest::Host;
use crate::machine::Machine;
use crate::request::Request;
use core::slice;
use memory::MmuLock;
use vms::LinuxVms;

/// Runs the guest to its end, again after each reset.
///
/// # Errors
/// It couldn't be started, or it ended with a failure.
pub(crate) fn run<M: Machine, L: MmuLock + 'static>(
    host: &Host<'_, M>,
    request: &Request<'_>,
) -> Result<(), RunError> {
    LinuxVms::<M, L>::start(host, slice::from_ref(request))?.wait()
}
