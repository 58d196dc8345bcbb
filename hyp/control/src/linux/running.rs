//! CPU 0's handle to a running operating system: the guest together with its terminal.

use super::shared_files::SharedFiles;
use super::terminal::Terminal;
use crate::board::GuestBoard;
use crate::error::RunError;
use crate::guest::{FinalState, GuestPlan, Host, RunningGuest};
use crate::machine::Machine;
use crate::options::Options;
use crate::request::Request;
use alloc::sync::Arc;
use core::ops::Range;
use devices::Pl011;
use memory::{MmuLock, VmId};
use records::words::ConsoleMode;
use vm::{Service, ServiceReply, VcpuId};

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

/// The plan of an operating system, and its terminal.
///
/// # Errors
/// The machine can't give it what it needs.
pub(crate) fn planned<'p, M: Machine>(
    host: &Host<'_, M>,
    request: &Request<'p>,
    vm: VmId,
) -> Result<(GuestPlan<'p>, Terminal<M>), RunError> {
    let board = GuestBoard::new(host.machine, &host.own.memory, request)?;
    let terminal = Terminal::new(host.machine, &board, &request.options);
    Ok((plan(request, vm, board), terminal))
}

/// The plan of a request's guest.
fn plan<'p>(request: &Request<'p>, vm: VmId, board: GuestBoard<'p>) -> GuestPlan<'p> {
    let options = &request.options;
    let plan = GuestPlan {
        ram_backing: options.backing,
        prefault: options.prefault,
        board: Some(board),
        ..GuestPlan::of(request, vm, options.program_bytes().unwrap_or(0))
    };
    plan.limited_to(options.overcommits[0])
}

/// A running operating system. It is stopped when this is dropped, at the latest.
pub(crate) struct RunningLinux<'h, M: Machine, L: MmuLock> {
    guest: RunningGuest<'h, M, L>,
    terminal: Terminal<M>,
    board: GuestBoard<'static>,
}

impl<'h, M: Machine, L: MmuLock + 'static> RunningLinux<'h, M, L> {
    /// Starts the guest of a request on these CPUs, which are idle, with the files that it shares with others.
    ///
    /// # Errors
    /// It can't be started. Nothing is left of it then.
    pub fn start(
        host: &Host<'h, M>,
        request: &Request<'_>,
        vm: VmId,
        cpus: Range<usize>,
        files: &SharedFiles<'_>,
    ) -> Result<Self, RunError> {
        let board = GuestBoard::new(host.machine, &host.own.memory, request)?;
        let terminal = Terminal::new(host.machine, &board, &request.options);
        let started = board.started();
        let plan = GuestPlan {
            cpus: Some(cpus),
            kernel: files.object(request.image.bytes),
            ramdisk: request.ramdisk.and_then(|ramdisk| files.object(ramdisk)),
            ..plan(request, vm, board)
        };
        let guest = host.launch::<L, _>(&plan, &Arc::new(NoCalls))?;
        Ok(Self {
            guest,
            terminal,
            board: started,
        })
    }

    /// Starts a fork of the guest, which is of this request, on these CPUs, which are idle. Both go on where the guest was.
    ///
    /// # Errors
    /// It can't be started. Nothing is left of it then, and the guest goes on.
    pub fn fork(
        &self,
        host: &Host<'h, M>,
        request: &Request<'_>,
        vm: VmId,
        cpus: Range<usize>,
    ) -> Result<Self, RunError> {
        let paused = self.guest.pause()?;
        let board = match self.board.fork(host.machine) {
            Ok(board) => board,
            Err(error) => {
                self.guest.resume(paused);
                return Err(error);
            }
        };
        // The console's input is the parent's, and whole lines of the fork's are told apart from what the parent prints.
        let options = Options {
            console: ConsoleMode::Lines,
            ..request.options.clone()
        };
        let terminal = Terminal::new(host.machine, &board, &options);
        // It has its parent's pages.
        let plan = GuestPlan {
            cpus: Some(cpus),
            prefault: false,
            ..plan(request, vm, board.clone())
        };
        let guest = host.launch_fork(paused, &plan, &Arc::new(NoCalls))?;
        Ok(Self {
            guest,
            terminal,
            board,
        })
    }

    /// The guest.
    pub fn guest(&self) -> &RunningGuest<'h, M, L> {
        &self.guest
    }

    /// Its UART.
    pub fn uart(&self) -> &Pl011 {
        self.terminal.uart()
    }

    /// Attends to the guest and its terminal, without waiting. Returns when this is to be called again, unless this CPU is woken
    /// before.
    ///
    /// # Errors
    /// The guest has ended, which is [`RunError::Ended`], or its time is up.
    pub fn attend(&mut self) -> Result<u64, RunError> {
        let due_ns = self.terminal.attend();
        self.guest.check()?;
        Ok(due_ns.min(self.guest.due_ns()))
    }

    /// As [`Self::attend`], where somebody else attends to its UART.
    ///
    /// # Errors
    /// As for [`Self::attend`].
    pub fn look(&self) -> Result<u64, RunError> {
        let due_ns = self.terminal.attend_clock();
        self.guest.check()?;
        Ok(due_ns.min(self.guest.due_ns()))
    }

    /// Stops the guest if it hasn't ended by itself, and frees its memory. Returns its terminal, which may hold output.
    ///
    /// # Errors
    /// As for [`RunningGuest::end`].
    pub fn end(self) -> (Result<FinalState, RunError>, Terminal<M>) {
        let Self {
            guest, terminal, ..
        } = self;
        (guest.end(), terminal)
    }
}
