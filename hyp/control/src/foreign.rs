//! A guest of the user's as its options describe it, for those who run it with work of their own beside it.

use crate::board::GuestBoard;
use crate::error::RunError;
use crate::guest::{GuestPlan, Host};
use crate::linux::Terminal;
use crate::machine::Machine;
use crate::program;
use crate::request::Request;
use memory::VmId;
use records::words::GuestKind;

/// A guest of the user's that isn't started yet.
pub struct Foreign<'p, M: Machine> {
    /// Its plan.
    pub plan: GuestPlan<'p>,
    /// The way between its UART and the console, if it has one.
    pub terminal: Option<Terminal<M>>,
}

impl<'p, M: Machine> Foreign<'p, M> {
    /// The guest of a request.
    ///
    /// # Errors
    /// The machine can't give it what it needs.
    pub fn of(host: &Host<'_, M>, request: &Request<'p>, vm: VmId) -> Result<Self, RunError> {
        match request.options.guest {
            GuestKind::Linux => Self::operating_system(host, request, vm),
            _ => Ok(Self {
                plan: program::plan(host, request, vm)?,
                terminal: None,
            }),
        }
    }

    fn operating_system(
        host: &Host<'_, M>,
        request: &Request<'p>,
        vm: VmId,
    ) -> Result<Self, RunError> {
        let (machine, options) = (host.machine, &request.options);
        let board = GuestBoard::new(machine, &host.own.memory, request)?;
        let terminal = Terminal::new(machine, &board, options);
        let bytes = options.program_bytes().unwrap_or(0);
        let plan = GuestPlan {
            ram_backing: options.backing,
            board: Some(board),
            ..GuestPlan::of(request, vm, bytes)
        };
        Ok(Self {
            plan: plan.limited_to(options.overcommits[0]),
            terminal: Some(terminal),
        })
    }
}
