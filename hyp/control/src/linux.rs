//! Runs operating systems that expect QEMU's virt machine, such as Linux, until they power off.
//!
//! While they run, CPU 0 carries the output of their UARTs to the console, and the console's input to a UART.

mod keys;
mod line_watch;
mod restarts;
mod running;
mod shared_console;
mod shared_files;
mod terminal;
mod vms;

pub(crate) use running::planned;
pub use terminal::Terminal;

use crate::error::RunError;
use crate::guest::Host;
use crate::machine::Machine;
use crate::request::Request;
use core::cell::RefCell;
use core::slice;
use memory::MmuLock;
use memory::frames::MAX_VMS;
use vms::LinuxVms;

/// Runs the guest to its end, again after each reset.
///
/// # Errors
/// It couldn't be started, or it ended with a failure.
pub(crate) fn run<M: Machine, L: MmuLock + 'static>(
    host: &Host<'_, M>,
    request: &Request<'_>,
) -> Result<(), RunError> {
    LinuxVms::<M, L>::start(host, slice::from_ref(request), 0)?.wait()
}

/// The VMs of a main guest that others run beside have numbers below this.
pub const MAIN_VMS: usize = MAX_VMS / 2;

/// Runs several guests to their ends, each again after each of its resets, and meanwhile does `main`, if there is something to do,
/// during whose waits they are attended to.
///
/// # Errors
/// That of `main`; else that of the guests, one of which couldn't be started, or ended with a failure.
pub(crate) fn run_beside<M: Machine, L: MmuLock + 'static, E: From<RunError>>(
    host: &Host<'_, M>,
    requests: &[Request<'_>],
    main: Option<impl FnOnce(&Host<'_, M>) -> Result<(), E>>,
) -> Result<(), E> {
    let first = main.as_ref().map_or(0, |_| MAIN_VMS);
    let vms = RefCell::new(LinuxVms::<M, L>::start(host, requests, first)?);
    let outcome = main.map_or(Ok(()), |main| {
        let attend = || vms.borrow_mut().attend().unwrap_or(u64::MAX);
        let beside = Host {
            beside: Some(&attend),
            ..*host
        };
        main(&beside)
    });
    let others = vms.into_inner().wait();
    outcome.and(others.map_err(E::from))
}
