//! `scripts/run`: set-up, build, one boot that runs every mode, then the comparison.

mod guest;
mod table;

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::guest::Files;
use crate::table::comparison;
use emulator::boot::{self, Outcome};
use emulator::console::{Line, Runs};
use emulator::error::{FAILED, ToolError, USAGE};
use emulator::files;
use emulator::front_end::{self, named};
use emulator::images::{self, Images};
use emulator::process;
use emulator::qemu::{self, LOAD_ADDRESS, Machine, Module, ModuleKind};
use emulator::session::marks::Marks;
use emulator::setup::system::{Package, System};
use emulator::setup::{self, find_program};
use emulator::simclock;
use emulator::standard_output::{self, print_line};
use options::kernel_files::read_whole;
use options::refusal::Started;
use options::{Plan, RunOptions, one_line, typed, usage};
use records::image::GuestImage;
use records::record::Record;

/// How much of the console is shown when the machine ended without an exit status.
const LAST_LINES: usize = 20;

fn main() -> ExitCode {
    front_end::run(|arguments| command(named("scripts/run", arguments)))
}

/// Runs the command with these arguments, the first of which is its name. Gives the exit status.
fn command(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let options = match RunOptions::parse_arguments(arguments) {
        Ok(options) => options,
        Err(error) if !error.use_stderr() => {
            // `--help`.
            standard_output::note(error.print());
            return 0;
        }
        Err(error) => {
            eprintln!("error: {} (see scripts/run --help)", one_line(&error));
            return USAGE;
        }
    };
    run(&options).unwrap_or_else(|error| {
        if !matches!(error, ToolError::Said(_)) {
            eprintln!("error: {error}");
        }
        error.exit_status()
    })
}

fn run(options: &RunOptions) -> Result<u8, ToolError> {
    let plan = options.plan()?;
    check_files(options)?;
    options.gdb.map_or(Ok(()), check_port)?;
    setup::rust_target()?;
    let emulator = setup::emulator()?;
    let has_load = options.linux.dirty_log && options.linux.exec.is_none();
    let load = has_load
        .then(|| images::build_load(options.profile()))
        .transpose()?;
    let linux = match options.linux.is_wanted() {
        true => Some(Files::prepare(&options.linux, load.as_deref())?),
        false => None,
    };
    if let Some(files) = &linux {
        files.check_room(&plan.workload)?;
    }
    let mut marks = linux.as_ref().and_then(Files::token).map(Marks::new);
    let mut images = images::build(options.profile())?;
    if options.check {
        images = images::build_watched(images, options.profile())?;
    }
    let simulation = match options.machine.costs() {
        None => None,
        Some(costs) => Some((
            simclock::prepare(&emulator, costs)?,
            qemu::hypervisor_text(&images.symbols)?,
        )),
    };
    let mut append = plan.append.clone();
    let modules = match &linux {
        Some(files) if !plan.workload.vms.is_empty() => {
            let (modules, words) = files.modules_of(&plan.workload.vms, plan.memory)?;
            append = format!("{append} {words}");
            modules
        }
        Some(files) => {
            let command_line = options.linux.command_line(options.machine.verbose)?;
            let (modules, words) = files.modules(plan.memory, &command_line)?;
            append = [append, words].join(" ").trim_end().into();
            modules
        }
        None => vec![Module {
            kind: ModuleKind::Kernel,
            image: options
                .guest
                .clone()
                .unwrap_or_else(|| images.dirty_log.clone()),
            address: Machine::module_address(plan.memory),
            bootargs: options.guest_append.clone(),
        }],
    };
    if let Some(token) = linux.as_ref().and_then(Files::token)
        && options.linux.dirty_log
    {
        append = format!("{append} log_from=@{token}");
    }
    let machine = Machine {
        emulator,
        cpu: options.machine.cpu.clone(),
        gic: plan.gic,
        cpus: plan.cpus,
        memory: plan.memory,
        el2: true,
        kernel: Some(images.hypervisor.clone()),
        append,
        modules,
        debugger: options.gdb,
        simulation,
        extra: options.machine.qemu.clone(),
    };
    if let Some(port) = options.gdb {
        announce_debugger(&images, port);
    }
    let logged = match linux {
        Some(files) if !options.linux.dirty_log => {
            return guest::run(&machine, files, options, &plan);
        }
        // The machine reads them.
        logged => logged,
    };
    let clock = machine
        .simulation
        .as_ref()
        .map(|(simulation, _)| simulation.clock());
    let mut results = Kept {
        options,
        gic: plan.gic.version(),
        clock,
        records: Vec::new(),
        failed: None,
    };
    let outcome = follow(&machine, &plan, &mut results, &mut marks)?;
    drop(logged);
    let status = finish(&plan, &results, &outcome)?;
    match marks {
        Some(marks) if status == 0 => ended_well(options, &plan, &marks),
        _ => Ok(status),
    }
}

/// The exit status of runs that have verified what the guests wrote: that of their commands, or of a load that has failed.
fn ended_well(options: &RunOptions, plan: &Plan, marks: &Marks) -> Result<u8, ToolError> {
    let failed = |text: String| Err(ToolError::Io(text));
    let bad = marks.statuses().iter().find(|status| **status != 0);
    match (bad, &options.linux.exec) {
        (Some(status), Some(_)) => Ok(*status),
        (Some(status), None) => failed(format!("the guest's load failed with status {status}")),
        (None, _) if marks.statuses().len() < plan.workload.runs() => {
            failed("a guest ended before its command had ended".into())
        }
        (None, _) => Ok(0),
    }
}

/// Checks the files that the user named before anything is built.
fn check_files(options: &RunOptions) -> Result<(), ToolError> {
    if let Some(guest) = &options.guest {
        let refused = |why: String| ToolError::Usage(format!("--guest {}: {why}", guest.display()));
        let bytes = read_whole("--guest", guest)?;
        check_image(&bytes).map_err(refused)?;
    }
    if let Some(folder) = &options.linux.console_log {
        files::make_folder("--console-log", folder)?;
    }
    if let Some(json) = &options.json {
        files::check_option("--json", json)?;
    }
    Ok(())
}

/// Checks that the emulator can wait at this port, as it does at every address of the host. If it can at some only, it says
/// nothing, and gdb finds somebody else.
fn check_port(port: u16) -> Result<(), ToolError> {
    let addresses = [
        IpAddr::from(Ipv6Addr::UNSPECIFIED),
        Ipv4Addr::UNSPECIFIED.into(),
    ];
    for address in addresses {
        let refused = TcpListener::bind((address, port)).err();
        // Hosts without IPv6 have no such address.
        let refused = refused.filter(|error| {
            matches!(
                error.kind(),
                ErrorKind::AddrInUse | ErrorKind::PermissionDenied
            )
        });
        if let Some(error) = refused {
            return usage(format!("--gdb {port}: the port can't be had: {error}"));
        }
    }
    Ok(())
}

/// Checks a guest's image; else says why it isn't one.
fn check_image(bytes: &[u8]) -> Result<(), String> {
    let error = match GuestImage::check(bytes, false) {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    let advice = match bytes {
        [0x7f, b'E', b'L', b'F', ..] => {
            "; it is an ELF file, of which objcopy -O binary makes an image"
        }
        [0x1f, 0x8b, ..] => "; it is compressed, and has to be unpacked by gunzip",
        _ => "",
    };
    Err(format!("{error}{advice}"))
}

/// Says how to attach gdb; the emulator then waits for it.
fn announce_debugger(images: &Images, port: u16) {
    let symbols = images.symbols.display();
    let gdb = [
        "gdb-multiarch",
        "aarch64-linux-gnu-gdb",
        "aarch64-elf-gdb",
        "aarch64-none-elf-gdb",
        "gdb",
    ]
    .into_iter()
    .find(|name| find_program(name.as_ref()).is_some());
    if gdb.is_none_or(|name| name == "gdb") {
        let advice = System::detect().advice(Package::Gdb);
        eprintln!("note: gdb must know arm64; if this system's doesn't, {advice}");
    }
    eprintln!("The machine waits for gdb on port {port}. Attach with:\n");
    eprintln!(
        "  {} -ex 'set architecture aarch64' -ex 'target remote :{port}' -ex 'add-symbol-file {symbols} -o {LOAD_ADDRESS:#x}'\n",
        gdb.unwrap_or("gdb-multiarch")
    );
}

/// The records of the runs that have ended. After each they are written, so that neither Ctrl-C nor a run that fails loses
/// what was measured; before the first, what the file held is left alone.
struct Kept<'o> {
    options: &'o RunOptions,
    gic: u64,
    /// The clock of the times, unless it is the machine's own.
    clock: Option<String>,
    records: Vec<Record>,
    /// Why they couldn't be written, if so.
    failed: Option<ToolError>,
}

impl Kept<'_> {
    /// Takes a record, and adds the facts that the hypervisor doesn't know.
    fn take(&mut self, record: &Record) {
        let mut record = record.clone();
        record.profile = self.options.profile().to_string();
        record.cpu.clone_from(&self.options.machine.cpu);
        record.gic = self.gic;
        if let Some(clock) = &self.clock {
            record.clock.clone_from(clock);
        }
        self.records.push(record);
        let Some(path) = &self.options.json else {
            return;
        };
        match write_records(path, &self.records) {
            Ok(()) => process::say_when_ended(format!(
                "ended early; what was measured is in {}",
                path.display()
            )),
            Err(error) => self.failed = Some(error),
        }
    }
}

/// Starts the machine and shows the user how it comes on.
fn follow(
    machine: &Machine,
    plan: &Plan,
    results: &mut Kept<'_>,
    marks: &mut Option<Marks>,
) -> Result<Outcome, ToolError> {
    let options = results.options;
    let bar = progress_bar(options, plan);
    let mut runs = Runs::default();
    let mut is_reporting = false;
    let observe = |line: &Line, text: &str| {
        is_reporting |= matches!(line, Line::Fatal(_));
        if let Line::Progress(progress) = line {
            let done = runs.take(progress) * progress.steps;
            bar.set_length(progress.steps * plan.workload.runs() as u64);
            bar.set_position(done + progress.step.min(progress.steps));
            bar.set_message(progress.mode.clone());
        }
        if let Line::Record(record) = line {
            results.take(record);
        }
        let printed = match (line, &mut *marks) {
            (Line::Guest(printed), Some(marks)) => marks.take(printed),
            _ => None,
        };
        if let Some(shown) = shown(line, text, options, is_reporting) {
            bar.suspend(|| print_line(shown));
        } else if let Some(printed) = printed {
            bar.suspend(|| print_line(format_args!("guest: {printed}")));
        }
    };
    let complain = |text: &str| {
        if options.machine.verbose {
            bar.suspend(|| eprintln!("{text}"));
        }
    };
    let outcome = boot::run(&mut machine.command(), plan.limit, observe, complain);
    bar.finish_and_clear();
    outcome.map_err(|error| {
        ToolError::Io(format!(
            "{} can't be run: {error}",
            machine.emulator.display()
        ))
    })
}

fn progress_bar(options: &RunOptions, plan: &Plan) -> ProgressBar {
    if options.machine.verbose || options.gdb.is_some() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(plan.workload.runs() as u64);
    let style =
        ProgressStyle::with_template("[{elapsed_precise}] {bar:40} {pos}/{len}, {eta} left {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message("booting");
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// What the user sees of a line when it comes, if anything. Errors and the report on a failure, of which it may be a part, are
/// shown at the end.
fn shown<'a>(
    line: &'a Line,
    text: &'a str,
    options: &RunOptions,
    is_reporting: bool,
) -> Option<&'a str> {
    match line {
        _ if options.machine.verbose => Some(text),
        Line::Error(_) | Line::Unreadable(_) => None,
        Line::ExitStatus(_) if measures_nothing(options) => Some(text),
        _ if is_reporting => None,
        _ if measures_nothing(options) => Some(text),
        Line::Result(result) => Some(result),
        Line::Guest(printed) if options.guest.is_some() => Some(printed),
        _ => None,
    }
}

/// Whether the user asks the hypervisor for something else than a measurement.
fn measures_nothing(options: &RunOptions) -> bool {
    typed::measures_nothing(options.machine.append.as_deref())
}

/// Shows the hypervisor's errors, in the words of the scripts' options.
///
/// # Errors
///
/// [`ToolError::Usage`] if nothing has run because of the options.
fn show_errors(started: &Started<'_>, outcome: &Outcome) -> Result<(), ToolError> {
    if let Some(why) = started.why_nothing_ran(outcome) {
        return Err(ToolError::Usage(why));
    }
    for line in &outcome.errors {
        eprintln!("error: {}", started.as_typed(line));
    }
    // All of the console has been shown if that is wanted.
    let fatal = outcome.fatal.iter().filter(|_| !started.machine.verbose);
    for line in fatal {
        eprintln!("{line}");
    }
    Ok(())
}

/// Tells how it ended, and decides on the exit status.
fn finish(plan: &Plan, results: &Kept<'_>, outcome: &Outcome) -> Result<u8, ToolError> {
    let options = results.options;
    if !results.records.is_empty() {
        print_line(format_args!("\n{}", comparison(&results.records)));
    }
    let started = Started {
        plan,
        machine: &options.machine,
        memory: options.mem,
    };
    show_errors(&started, outcome)?;
    if let Some(error) = &results.failed {
        return Err(error.clone());
    }
    match outcome.status {
        Some(0) => complete(options, plan, outcome).map(|()| 0),
        Some(status) => Ok(u8::try_from(status).unwrap_or(FAILED)),
        None => Err(no_status(outcome, &started)),
    }
}

fn write_records(path: &Path, records: &[Record]) -> Result<(), ToolError> {
    let failed = |error: &dyn std::fmt::Display| {
        ToolError::Io(format!("--json {}: {error}", path.display()))
    };
    let mut text = serde_json::to_string_pretty(records).map_err(|error| failed(&error))?;
    text.push('\n');
    files::replace(path, text.as_bytes()).map_err(|error| failed(&error))
}

/// Checks that a run which calls itself good has brought all that it should.
fn complete(options: &RunOptions, plan: &Plan, outcome: &Outcome) -> Result<(), ToolError> {
    let failed = |text: String| Err(ToolError::Io(text));
    if options.guest.is_some() || measures_nothing(options) {
        return Ok(());
    }
    for run in plan.workload.each() {
        match outcome.records.iter().find(|record| run.is(record)) {
            None => return failed(format!("{run}: the hypervisor gave no result")),
            Some(record) if !record.verified => {
                return failed(format!("{run}: the result isn't verified"));
            }
            Some(_) => {}
        }
    }
    match outcome.errors.first() {
        Some(_) => failed("the hypervisor ended well in spite of its errors".into()),
        None => Ok(()),
    }
}

/// Shows the last lines of a machine.
fn show_last_lines(outcome: &Outcome) {
    for line in outcome
        .last_lines(LAST_LINES)
        .filter(|line| !line.starts_with('@'))
        .chain(outcome.complaints.iter().map(String::as_str))
    {
        eprintln!("  | {line}");
    }
}

/// The account of a machine that gave no exit status. Shows its last lines.
fn no_status(outcome: &Outcome, started: &Started<'_>) -> ToolError {
    show_last_lines(outcome);
    let extra = started.extra();
    let extra = extra.map_or_else(String::new, |extra| {
        format!("; the emulator's arguments may be the cause: {extra}")
    });
    ToolError::NoStatus(outcome.end_in_words() + &extra)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> RunOptions {
        let all = std::iter::once("scripts/run").chain(arguments.iter().copied());
        RunOptions::parse_arguments(all.map(OsString::from)).expect("sound options")
    }

    /// The lines of a console that are shown at once.
    fn seen(console: &[&str], options: &RunOptions) -> Vec<String> {
        let mut is_reporting = false;
        let mut seen = Vec::new();
        for text in console {
            let line = Line::parse(text);
            is_reporting |= matches!(line, Line::Fatal(_));
            seen.extend(shown(&line, text, options, is_reporting).map(String::from));
        }
        seen
    }

    #[test]
    fn what_is_said_at_the_end_isnt_shown_before() {
        let console = [
            "[ 0.1 cpu0] INFO hello",
            "parvisor: error: option 'x'",
            "parvisor: FATAL panic",
            "x0 0",
            "parvisor: exit status 3",
        ];
        let usual = seen(&console, &options(&["--append", "selftest=panic"]));
        assert_eq!(usual, [console[0], console[4]]);
        assert_eq!(seen(&console, &options(&["--verbose"])), console);
        assert!(seen(&console, &options(&[])).is_empty());
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let other = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("some port is free");
        let port = other.local_addr().expect("it has one").port();
        let error = check_port(port).expect_err("it is taken");
        assert_eq!(error.exit_status(), USAGE);
        let says = format!("--gdb {port}: the port can't be had: ");
        assert!(error.to_string().starts_with(&says), "{error}");
        drop(other);
        assert_eq!(check_port(port), Ok(()));
    }
}
