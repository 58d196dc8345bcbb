//! The operating systems of a boot, each from its first start over its restarts to its end. CPU 0 attends to all of them in one
//! loop; what becomes of one concerns no other.

use super::running::RunningLinux;
use crate::background_merge::Scanner;
use crate::error::RunError;
use crate::guest::Host;
use crate::machine::Machine;
use crate::report;
use crate::request::Request;
use alloc::boxed::Box;
use alloc::vec::Vec;
use memory::{MmuLock, VmId};
use records::words::OnReset;
use vm::StopReason;

/// The operating systems of a boot.
pub(crate) struct LinuxVms<'r, 'h, M: Machine, L: MmuLock> {
    host: Host<'h, M>,
    /// Merges the pages of all of them, if the options say so. Ends before they do.
    scanner: Option<Scanner<'static, M>>,
    vms: Vec<LinuxVm<'r, 'h, M, L>>,
}

/// One of them.
struct LinuxVm<'r, 'h, M: Machine, L: MmuLock> {
    request: &'r Request<'r>,
    vm: VmId,
    state: State<'h, M, L>,
}

enum State<'h, M: Machine, L: MmuLock> {
    /// Not started yet.
    New,
    Runs(Box<RunningLinux<'h, M, L>>),
    Over(Result<(), RunError>),
}

impl<'r, 'h, M: Machine, L: MmuLock + 'static> LinuxVms<'r, 'h, M, L> {
    /// Starts the guest of each request.
    ///
    /// # Errors
    /// One of them can't be started. The others are stopped then.
    pub fn start(host: &Host<'h, M>, requests: &'r [Request<'r>]) -> Result<Self, RunError> {
        let options = requests.first().map(|request| &request.options);
        let scanner = match options {
            Some(options) => Scanner::of_machine(host, options)?,
            None => None,
        };
        let mut vms = Self {
            host: *host,
            vms: Vec::new(),
            scanner,
        };
        for (number, request) in requests.iter().enumerate() {
            let vm = VmId::new(number).ok_or(RunError::Stuck)?;
            let mut started = LinuxVm {
                request,
                vm,
                state: State::New,
            };
            started.start(host, vms.scanner.as_ref())?;
            vms.vms.push(started);
        }
        Ok(vms)
    }

    /// Attends to all of them, without waiting. Returns when this is to be called again, unless this CPU is woken before; `None`
    /// if all have ended.
    pub fn attend(&mut self) -> Option<u64> {
        let (host, scanner) = (&self.host, self.scanner.as_ref());
        let due = self.vms.iter_mut().map(|vm| vm.attend(host, scanner));
        due.fold(None, |all, one| all.into_iter().chain(one).min())
    }

    /// Attends to all of them until they have ended.
    ///
    /// # Errors
    /// One of them failed.
    pub fn wait(mut self) -> Result<(), RunError> {
        let Host {
            machine,
            cpu_pool,
            own,
            ..
        } = self.host;
        while let Some(due_ns) = self.attend() {
            if !cpu_pool.relieve(own) {
                machine.wait(due_ns);
            }
        }
        let merged = self.scanner.map(Scanner::end);
        report::merged(machine, &merged.unwrap_or_default());
        self.vms.into_iter().try_for_each(|vm| match vm.state {
            State::Over(outcome) => outcome,
            State::New | State::Runs(_) => Err(RunError::Stuck),
        })
    }
}

impl<'h, M: Machine, L: MmuLock + 'static> LinuxVm<'_, 'h, M, L> {
    fn start(
        &mut self,
        host: &Host<'h, M>,
        scanner: Option<&Scanner<'static, M>>,
    ) -> Result<(), RunError> {
        let running = RunningLinux::start(host, self.request, self.vm)?;
        scanner.map_or(Ok(()), |scanner| scanner.take_in(running.guest()))?;
        self.state = State::Runs(Box::new(running));
        Ok(())
    }

    /// Attends to it. Returns when this is to be called again; `None` if it has ended.
    fn attend(&mut self, host: &Host<'h, M>, scanner: Option<&Scanner<'static, M>>) -> Option<u64> {
        let State::Runs(running) = &mut self.state else {
            return None;
        };
        let ended = match running.attend() {
            Ok(due_ns) => return Some(due_ns),
            Err(error) => error,
        };
        let State::Runs(running) = core::mem::replace(&mut self.state, State::New) else {
            return None;
        };
        if let Some(scanner) = scanner {
            scanner.let_go(running.guest());
        }
        let state = running.end();
        if let Ok(state) = &state {
            report::final_state(host.machine, self.vm, state);
        }
        let outcome = match (ended, state) {
            (RunError::Ended(reason), Ok(_)) => self.ended(host, reason),
            (RunError::Ended(_), Err(error)) | (error, _) => Err(error),
        };
        let outcome = match outcome {
            Ok(true) => match self.start(host, scanner) {
                Ok(()) => return Some(0),
                Err(error) => Err(error),
            },
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        self.state = State::Over(outcome);
        None
    }

    /// Says how it has ended, and whether it starts again.
    fn ended(&self, host: &Host<'h, M>, reason: StopReason) -> Result<bool, RunError> {
        let (machine, vm) = (host.machine, self.vm);
        match reason {
            StopReason::PoweredOff => {
                machine.write_line(format_args!("{vm}: {reason}"));
                Ok(false)
            }
            StopReason::Reset if self.request.options.on_reset == OnReset::Restart => {
                machine.write_line(format_args!("{vm}: {reason}, and starts again"));
                Ok(true)
            }
            reason => Err(RunError::Program(reason)),
        }
    }
}
