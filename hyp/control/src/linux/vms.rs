//! The operating systems of a boot, each from its first start over its restarts to its end. CPU 0 attends to all of them in one
//! loop; what becomes of one concerns no other.

use super::restarts::{MOST_CRASHES, Restarts};
use super::running::RunningLinux;
use super::shared_console::SharedConsole;
use super::shared_files::SharedFiles;
use crate::background_merge::Scanner;
use crate::board;
use crate::error::RunError;
use crate::guest::{Host, ReservedCpus};
use crate::machine::Machine;
use crate::report;
use crate::request::Request;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::mem;
use devices::Pl011;
use memory::frames::MAX_VMS;
use memory::{MmuLock, VmId};
use records::size::Size;
use records::words::{ConsoleMode, OnCrash, OnReset};
use stage2::PAGE_SIZE;
use vm::StopReason;

/// The operating systems of a boot.
pub(super) struct LinuxVms<'r, 'h, M: Machine, L: MmuLock> {
    host: Host<'h, M>,
    /// Merges the pages of all of them, if the options say so. Ends before they do.
    scanner: Option<Scanner<'static, M>>,
    vms: Vec<LinuxVm<'r, 'h, M, L>>,
    /// The files that several of them start from.
    files: SharedFiles<'r>,
    /// The console that they share, if they have names. Else there is one VM, with a terminal of its own, and its fork.
    console: Option<SharedConsole>,
    /// When the one VM is forked, if the options say so and it hasn't been.
    fork_at_ns: Option<u64>,
}

/// One of them.
struct LinuxVm<'r, 'h, M: Machine, L: MmuLock> {
    request: &'r Request<'r>,
    vm: VmId,
    cpus: ReservedCpus<M>,
    restarts: Restarts,
    state: State<'h, M, L>,
}

/// What one of them does.
enum State<'h, M: Machine, L: MmuLock> {
    /// It starts at this time.
    Waits(u64),
    Runs(Box<RunningLinux<'h, M, L>>),
    /// It has ended, and the rest of its output is being shown, until this time at the latest.
    Shows(Arc<Pl011>, u64, Next),
    Over(Result<(), RunError>),
}

/// What becomes of one that has ended.
enum Next {
    /// It starts again at this time.
    Start(u64),
    Over(Result<(), RunError>),
}

const NS_PER_SECOND: u64 = 1_000_000_000;
/// How long the rest of the output may take.
const SHOW_NS: u64 = 30_000_000_000;

impl<'r, 'h, M: Machine, L: MmuLock + 'static> LinuxVms<'r, 'h, M, L> {
    /// Starts the guest of each request. Their VMs are numbered from `first_vm` on.
    ///
    /// # Errors
    /// One of them can't be started. The others are stopped then.
    pub fn start(
        host: &Host<'h, M>,
        requests: &'r [Request<'r>],
        first_vm: usize,
    ) -> Result<Self, RunError> {
        let free = check_memory(host, requests)?;
        check_devices(host, requests)?;
        let first = requests.first().map(|request| &request.options);
        let scanner = first.map_or(Ok(None), |options| Scanner::of_machine(host, options))?;
        let mode = first.map_or(ConsoleMode::Lines, |options| options.console);
        let names = || requests.iter().filter_map(|request| request.name);
        let console = match names().next() {
            None => None,
            Some(_) => Some(SharedConsole::new(names(), mode).map_err(|_| RunError::Heap)?),
        };
        let mut all = Self {
            host: *host,
            scanner,
            vms: Vec::new(),
            files: SharedFiles::of(host, requests, free),
            console,
            fork_at_ns: None,
        };
        if let Some(console) = &all.console {
            console.greet(host.machine);
        }
        for (number, request) in requests.iter().enumerate() {
            let most = MAX_VMS.saturating_sub(first_vm);
            let vm = VmId::new(first_vm + number).ok_or(RunError::TooManyVms { most })?;
            let cpus = host.cpu_pool.find_idle(request.options.vcpus);
            let mut started = LinuxVm {
                request,
                vm,
                cpus: ReservedCpus::reserve(host, cpus.ok_or(RunError::Stuck)?),
                restarts: Restarts::default(),
                state: State::Waits(0),
            };
            started.announce(host.machine);
            let outcome = started.start(host, &all.files, all.scanner.as_ref());
            outcome.map_err(|error| request.named(error))?;
            all.vms.push(started);
        }
        let fork_after = first.and_then(|options| options.fork);
        let after_ns = fork_after.map(|seconds| seconds.saturating_mul(NS_PER_SECOND));
        all.fork_at_ns = after_ns.map(|ns| host.machine.now_ns().saturating_add(ns));
        Ok(all)
    }

    /// Forks the one VM, if its time has come. Returns when it comes else.
    fn fork_if_due(&mut self) -> Option<u64> {
        let at_ns = self.fork_at_ns?;
        if self.host.machine.now_ns() < at_ns {
            return Some(at_ns);
        }
        self.fork_at_ns = None;
        if let Some(Err(error)) = self.fork() {
            let machine = self.host.machine;
            machine.write_line(format_args!("parvisor: error: fork: {error}"));
        }
        None
    }

    /// Forks the one VM, if it runs.
    fn fork(&mut self) -> Option<Result<(), RunError>> {
        let parent = self.vms.first()?;
        let State::Runs(running) = &parent.state else {
            return None;
        };
        let (host, request) = (&self.host, parent.request);
        let vm = VmId::new(parent.vm.number() + self.vms.len());
        let cpus = host.cpu_pool.find_idle(request.options.vcpus);
        let Some((vm, cpus)) = vm.zip(cpus) else {
            return Some(Err(RunError::Stuck));
        };
        let cpus = ReservedCpus::reserve(host, cpus);
        let fork = match running.fork(host, request, vm, cpus.cpus()) {
            Ok(fork) => fork,
            Err(error) => return Some(Err(error)),
        };
        let parent = parent.vm;
        (host.machine).write_line(format_args!("{vm} is a fork of {parent}"));
        let mut restarts = Restarts::default();
        restarts.start(host.machine.now_ns());
        self.vms.push(LinuxVm {
            request,
            vm,
            cpus,
            restarts,
            state: State::Runs(Box::new(fork)),
        });
        Some(Ok(()))
    }

    /// Attends to all of them, without waiting. Returns when this is to be called again, unless this CPU is woken before; `None`
    /// if all have ended.
    pub fn attend(&mut self) -> Option<u64> {
        let mut due_ns = None;
        let fork_ns = self.fork_if_due();
        let (host, files, scanner) = (&self.host, &self.files, self.scanner.as_ref());
        for (number, vm) in self.vms.iter_mut().enumerate() {
            let console = self.console.as_mut().map(|console| (console, number));
            let one = vm.attend(host, files, scanner, console);
            due_ns = due_ns.into_iter().chain(one).min();
        }
        if let Some(console) = &mut self.console {
            let vms = &self.vms;
            let uart = |number: usize| vms[number].uart();
            let console_ns = console.attend(host.machine, uart);
            due_ns = due_ns.map(|due_ns| due_ns.min(console_ns));
        }
        due_ns.map(|due_ns| fork_ns.map_or(due_ns, |fork_ns| due_ns.min(fork_ns)))
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
        let mut errors = Vec::new();
        for vm in self.vms {
            if let State::Over(Err(error)) = vm.state {
                errors.push(vm.request.named(error));
            }
        }
        match errors.len() {
            0 => Ok(()),
            1 => errors.pop().map_or(Ok(()), Err),
            _ => Err(RunError::InVms(errors)),
        }
    }
}

/// Checks that the memory of all of them is there before any of it is used. Returns how much they leave.
fn check_memory<M: Machine>(host: &Host<'_, M>, requests: &[Request<'_>]) -> Result<u64, RunError> {
    let mut free = host.own.memory.pool().counts().free * PAGE_SIZE;
    for request in requests {
        let wanted = request.options.program_bytes().unwrap_or(u64::MAX);
        free = free.checked_sub(wanted).ok_or_else(|| {
            request.named(RunError::TooLittleMemory {
                wanted: Size(wanted),
                free: Size(free),
            })
        })?;
    }
    Ok(free)
}

/// Checks that the machine's devices that they are given are there, each for one of them, before any of them starts.
fn check_devices<M: Machine>(host: &Host<'_, M>, requests: &[Request<'_>]) -> Result<(), RunError> {
    // Whoever holds a device keeps it from the next one.
    let mut held = Vec::new();
    held.try_reserve_exact(requests.len())
        .map_err(|_| RunError::Heap)?;
    for request in requests {
        let devices = board::assigned(host.machine, &host.own.memory, request);
        held.push(devices.map_err(|error| request.named(error))?);
    }
    Ok(())
}

impl<'h, M: Machine, L: MmuLock + 'static> LinuxVm<'_, 'h, M, L> {
    fn uart(&self) -> Option<&Pl011> {
        match &self.state {
            State::Runs(running) => Some(running.uart()),
            State::Shows(uart, ..) => Some(uart),
            State::Waits(_) | State::Over(_) => None,
        }
    }

    /// Says which VM has this name.
    fn announce(&self, machine: &M) {
        if let Some(name) = self.request.name {
            let (vm, vcpus) = (self.vm, self.request.options.vcpus);
            let bytes = self.request.options.bytes;
            machine.write_line(format_args!("{vm} is {name}: {vcpus} vCPUs, {bytes}"));
        }
    }

    fn start(
        &mut self,
        host: &Host<'h, M>,
        files: &SharedFiles<'_>,
        scanner: Option<&Scanner<'static, M>>,
    ) -> Result<(), RunError> {
        self.restarts.start(host.machine.now_ns());
        let running = RunningLinux::start(host, self.request, self.vm, self.cpus.cpus(), files)?;
        scanner.map_or(Ok(()), |scanner| scanner.take_in(running.guest()))?;
        self.state = State::Runs(Box::new(running));
        Ok(())
    }

    /// Attends to it. Returns when this is to be called again; `None` if it has ended. It shares the console as the VM of this
    /// number, if it does.
    fn attend(
        &mut self,
        host: &Host<'h, M>,
        files: &SharedFiles<'_>,
        scanner: Option<&Scanner<'static, M>>,
        console: Option<(&mut SharedConsole, usize)>,
    ) -> Option<u64> {
        let machine = host.machine;
        match &mut self.state {
            State::Over(_) => return None,
            State::Waits(at_ns) => {
                if machine.now_ns() < *at_ns {
                    return Some(*at_ns);
                }
                match (self.start(host, files, scanner), console) {
                    (Ok(()), Some((console, number))) => console.begin(number),
                    (Ok(()), None) => {}
                    (Err(error), console) => {
                        self.go_on(Next::Over(Err(error)), machine, console);
                    }
                }
            }
            State::Shows(_, until_ns, next) => {
                let until_ns = *until_ns;
                let has_shown_all = |(console, number): &(&mut SharedConsole, usize)| {
                    console.has_shown_all(*number)
                };
                if !console.as_ref().is_none_or(has_shown_all) && machine.now_ns() < until_ns {
                    return Some(until_ns);
                }
                let next = mem::replace(next, Next::Start(0));
                self.go_on(next, machine, console);
            }
            State::Runs(running) => {
                let looked = match &console {
                    None => running.attend(),
                    Some(_) => running.look(),
                };
                match looked {
                    Ok(due_ns) => return Some(due_ns),
                    Err(ended) => self.end(ended, host, scanner, console),
                }
            }
        }
        // Whoever else has something for this CPU may have kicked it meanwhile.
        Some(0)
    }

    /// It has ended, in this way.
    fn end(
        &mut self,
        ended: RunError,
        host: &Host<'h, M>,
        scanner: Option<&Scanner<'static, M>>,
        console: Option<(&mut SharedConsole, usize)>,
    ) {
        let State::Runs(running) = mem::replace(&mut self.state, State::Waits(0)) else {
            return;
        };
        if let Some(scanner) = scanner {
            scanner.let_go(running.guest());
        }
        let machine = host.machine;
        let (state, mut terminal) = running.end();
        if console.is_none() {
            terminal.finish();
        }
        let next = match state {
            Ok(state) => {
                report::final_state(machine, self.vm, &state);
                self.after(ended, machine)
            }
            Err(error) => Next::Over(Err(error)),
        };
        match console {
            None => self.go_on(next, machine, None),
            Some((console, number)) => {
                console.end(number);
                let until_ns = machine.now_ns().saturating_add(SHOW_NS);
                self.state = State::Shows(terminal.uart().clone(), until_ns, next);
            }
        }
    }

    /// Decides what becomes of it, and says so.
    fn after(&mut self, ended: RunError, machine: &M) -> Next {
        let options = &self.request.options;
        let (restarts, has_crashed) = match &ended {
            RunError::Ended(StopReason::PoweredOff) => {
                self.say(machine, &StopReason::PoweredOff, "");
                return Next::Over(Ok(()));
            }
            RunError::Ended(StopReason::Reset) => (options.on_reset == OnReset::Restart, false),
            _ => (options.on_crash == OnCrash::Restart, true),
        };
        let error = match ended {
            RunError::Ended(reason) => RunError::Program(reason),
            error => error,
        };
        if !restarts {
            return Next::Over(Err(error));
        }
        match self.restarts.end(machine.now_ns(), has_crashed) {
            Some(at_ns) => {
                self.say(machine, &error, ", and starts again");
                Next::Start(at_ns)
            }
            None => Next::Over(Err(RunError::CrashedAgain {
                times: MOST_CRASHES,
                error: Box::new(error),
            })),
        }
    }

    fn go_on(&mut self, next: Next, machine: &M, console: Option<(&mut SharedConsole, usize)>) {
        self.state = match next {
            Next::Start(at_ns) => State::Waits(at_ns),
            Next::Over(outcome) => {
                if let (Err(error), Some(_)) = (&outcome, self.request.name) {
                    self.say(machine, error, "");
                }
                if let Some((console, number)) = console {
                    console.retire(number, machine);
                }
                State::Over(outcome)
            }
        };
    }

    fn say(&self, machine: &M, what: &dyn fmt::Display, more: &str) {
        let vm = self.vm;
        match self.request.name {
            Some(name) => machine.write_line(format_args!("{vm}, {name}: {what}{more}")),
            None => machine.write_line(format_args!("{vm}: {what}{more}")),
        }
    }
}
