//! A guest of the user's as its options describe it, for those who run it with work of their own beside it.

use crate::error::RunError;
use crate::guest::{GuestPlan, Host};
use crate::linux::{self, Terminal};
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
        if request.options.guest == GuestKind::Linux {
            let (plan, terminal) = linux::planned(host, request, vm)?;
            return Ok(Self {
                plan,
                terminal: Some(terminal),
            });
        }
        Ok(Self {
            plan: program::plan(host, request, vm)?,
            terminal: None,
        })
    }
}
