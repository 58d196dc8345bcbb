//! A Linux guest on the user's terminal, or one that runs a command.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use emulator::error::{FAILED, ToolError};
use emulator::files::RunFile;
use emulator::images::without_foreign_flags;
use emulator::process::Group;
use emulator::qemu::{Machine, Module, ModuleKind, PlacedModules};
use emulator::repository::{repository, target_folder};
use emulator::session::logs::Logs;
use emulator::session::output::Guest;
use emulator::session::token::Token;
use emulator::session::{self, Ended, ONLY_GUEST, terminal};
use emulator::setup::cargo;
use emulator::size::Size;
use options::Plan;
use options::RunOptions;
use options::kernel_files::check_room_for_debian;
use options::linux::{Firmware, LinuxOptions};
use options::refusal::Started;
use options::vms::Vm;
use options::workload::Workload;

/// The program that fetches Debian's kernel and makes the file system, and its package.
const MAKER: &str = "linux-guest";
const PACKAGE: &str = "linux";

/// The files that a guest is started from.
#[derive(Debug)]
pub struct Files {
    firmware: Option<PathBuf>,
    /// There may be none beside firmware, and where each of several VMs has its own.
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    guest: Guest,
    token: Option<Token>,
    /// The one of them that was made for this run.
    made: Option<RunFile>,
}

impl Files {
    /// The user's files, or Debian's kernel with a file system of ours, which has the program of a `load` if there is one.
    ///
    /// # Errors
    ///
    /// What is missing and couldn't be fetched.
    pub fn prepare(options: &LinuxOptions, load: Option<&Path>) -> Result<Self, ToolError> {
        let firmware = options
            .firmware
            .as_ref()
            .map(prepare_firmware)
            .transpose()?;
        let has_own = |vm: &Vm| vm.kernel.is_some();
        let is_own = |guest| Self {
            firmware: firmware.clone(),
            kernel: options.kernel.clone(),
            initrd: options.initrd.clone(),
            guest,
            token: None,
            made: None,
        };
        if !options.vms.is_empty() && options.vms.iter().all(has_own) {
            return Ok(is_own(Guest::Several(None)));
        }
        if options.vms.is_empty() && options.linux.is_none() {
            return Ok(is_own(Guest::Own { has_shell: false }));
        }
        // Firmware takes input before the guest of ours does, which marks nothing for the tool then.
        let token = match firmware {
            Some(_) => None,
            None => Some(
                Token::random().map_err(|error| ToolError::Io(format!("/dev/urandom: {error}")))?,
            ),
        };
        let made = RunFile::new(&target_folder().join("linux"), "guest", "cpio");
        let kernel = make(options, token.as_ref(), made.path(), load)?;
        let guest = match (&options.exec, token.clone()) {
            (_, None) => Guest::Own { has_shell: true },
            (Some(_), Some(token)) => Guest::Command(token),
            (None, token) if !options.vms.is_empty() => Guest::Several(token),
            (None, Some(token)) => Guest::Shell(token),
        };
        Ok(Self {
            firmware,
            kernel: Some(kernel),
            initrd: Some(made.path().into()),
            guest,
            token,
            made: Some(made),
        })
    }

    /// How the guest marks its lines for the tool, if it is one of ours.
    pub fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// Checks that Debian's kernel has room in the guests that have it.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option of their memory.
    pub fn check_room(&self, workload: &Workload) -> Result<(), ToolError> {
        // Beside firmware the files have places of their own.
        let (Some(made), Some(kernel), None) = (&self.made, &self.kernel, &self.firmware) else {
            return Ok(());
        };
        let check = |option: &str, bytes| check_room_for_debian(option, bytes, kernel, made.path());
        if workload.vms.is_empty() {
            return check("--bytes ", workload.bytes);
        }
        let mut debians = workload.vms.iter().filter(|vm| vm.kernel.is_none());
        debians.try_for_each(|vm| check(&format!("--vm {}: bytes=", vm.name()), vm.bytes))
    }

    /// The modules that the hypervisor finds them as, in a machine with so much RAM, and its words for them.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] if they have no room in it.
    pub fn modules(
        &self,
        memory: Size,
        command_line: &str,
    ) -> Result<(Vec<Module>, String), ToolError> {
        let mut placed = PlacedModules::new(memory);
        if let Some(kernel) = &self.kernel {
            placed.place(ModuleKind::Kernel, kernel, Some(command_line))?;
        }
        if let Some(initrd) = &self.initrd {
            placed.place(ModuleKind::Ramdisk, initrd, None)?;
        }
        let mut words = String::new();
        if let Some(firmware) = &self.firmware {
            // The loader has no kind for it. The hypervisor goes by the address.
            let address = placed.place(ModuleKind::Kernel, firmware, None)?;
            words = format!("firmware={address:#x}");
        }
        Ok((fitting(placed)?, words))
    }

    /// The modules of several VMs, each file once, and the hypervisor's words for them.
    ///
    /// # Errors
    ///
    /// As for [`Self::modules`].
    pub fn modules_of(&self, vms: &[Vm], memory: Size) -> Result<(Vec<Module>, String), ToolError> {
        let mut placed = PlacedModules::new(memory);
        let mut words = Vec::new();
        for vm in vms {
            let (kernel, initrd) = match &vm.kernel {
                Some(kernel) => (Some(kernel), &vm.initrd),
                None => (self.kernel.as_ref(), &self.initrd),
            };
            let kernel = kernel.ok_or_else(|| ToolError::Usage("--vm: no kernel".into()))?;
            let kernel = placed.place(ModuleKind::Kernel, kernel, None)?;
            let initrd = initrd.as_ref();
            let initrd = initrd.map(|initrd| placed.place(ModuleKind::Ramdisk, initrd, None));
            words.push(vm.word(kernel, initrd.transpose()?)?);
        }
        Ok((fitting(placed)?, words.join(" ")))
    }
}

/// The modules, if they have room.
fn fitting(placed: PlacedModules) -> Result<Vec<Module>, ToolError> {
    let memory = placed.memory();
    let modules = placed.fitting();
    modules.ok_or_else(|| {
        ToolError::Usage(format!("--mem: kernel and initrd don't fit into {memory}"))
    })
}

/// The path of the firmware, which is fetched if it is Debian's.
fn prepare_firmware(firmware: &Firmware) -> Result<PathBuf, ToolError> {
    match firmware {
        Firmware::File(path) => Ok(path.clone()),
        Firmware::UBoot => {
            let mut command = maker();
            command.arg("firmware");
            path_from(command, None)
        }
    }
}

/// Has Debian's kernel fetched and the file system made. Gives the kernel's path.
fn make(
    options: &LinuxOptions,
    token: Option<&Token>,
    initrd: &Path,
    load: Option<&Path>,
) -> Result<PathBuf, ToolError> {
    let mut command = maker();
    command.arg(options.series()).arg(initrd);
    command.arg(token.map(ToString::to_string).unwrap_or_default());
    match (&options.exec, load) {
        (Some(_), _) => command.arg("command"),
        (None, Some(program)) => command.arg("load").arg(program),
        (None, None) => command.arg("shell").arg(terminal::size()),
    };
    path_from(command, options.exec.as_deref())
}

/// The command of the program that fetches and makes.
fn maker() -> Command {
    let mut command = Command::new(cargo());
    command.current_dir(repository()).arg("run");
    // Cargo is silent unless it builds the package for the first time, which takes a while.
    if target_folder().join("debug").join(MAKER).is_file() {
        command.arg("--quiet");
    }
    command.args(["-p", PACKAGE, "--bin", MAKER, "--"]);
    without_foreign_flags(&mut command);
    command
}

/// The path that the command prints, with this as its input.
fn path_from(mut command: Command, input: Option<&OsStr>) -> Result<PathBuf, ToolError> {
    let failed = |why: &dyn std::fmt::Display| ToolError::Build(format!("{MAKER}: {why}"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut group = Group::spawn(&mut command).map_err(|error| failed(&error))?;
    if let (Some(mut stdin), Some(input)) = (group.child().stdin.take(), input) {
        // If it ends before it has read it, it says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let stdout = group.child().stdout.take();
    let mut lines = stdout
        .map(|stdout| BufReader::new(stdout).lines())
        .into_iter()
        .flatten()
        .map_while(Result::ok);
    let path = lines.next();
    let status = group.child().wait().map_err(|error| failed(&error))?;
    match (path, status.code()) {
        (Some(path), Some(0)) => Ok(path.into()),
        // It has said why.
        (_, Some(code @ 1..)) => Err(ToolError::Said(u8::try_from(code).unwrap_or(FAILED))),
        _ => Err(failed(&status)),
    }
}

/// Runs the guest to its end. Gives the exit status.
///
/// # Errors
///
/// Why the guest didn't run, or its command didn't come to an end.
pub fn run(
    machine: &Machine,
    files: Files,
    options: &RunOptions,
    plan: &Plan,
) -> Result<u8, ToolError> {
    let Files { guest, made, .. } = files;
    let verbose = options.machine.verbose;
    let logs = logs(options, plan)?;
    let ended = session::run(&mut machine.command(), &guest, plan.limit, verbose, logs);
    drop(made);
    let ended = ended?;
    if ended.by_user {
        return Ok(0);
    }
    finish(&ended, &guest, options, plan)
}

/// The files that get what guests print, if the user wants them.
fn logs(options: &RunOptions, plan: &Plan) -> Result<Option<Logs>, ToolError> {
    let Some(folder) = &options.linux.console_log else {
        return Ok(None);
    };
    let vms = &plan.workload.vms;
    let only = vms.is_empty().then_some(ONLY_GUEST);
    Logs::create(folder, vms.iter().map(Vm::name).chain(only)).map(Some)
}

/// Tells how it ended, and decides on the exit status.
fn finish(
    ended: &Ended,
    guest: &Guest,
    options: &RunOptions,
    plan: &Plan,
) -> Result<u8, ToolError> {
    let outcome = &ended.outcome;
    let started = Started {
        plan,
        machine: &options.machine,
        memory: options.mem,
    };
    crate::show_errors(&started, outcome)?;
    let has_command = matches!(guest, Guest::Command(_));
    match (outcome.status, ended.command) {
        (Some(0), Some(status)) => Ok(status),
        (Some(0), None) if !has_command => Ok(0),
        (Some(0), None) => {
            crate::show_last_lines(outcome);
            Err(ToolError::Io(
                "--exec: the guest ended before the command had ended".into(),
            ))
        }
        (Some(status), _) => Ok(u8::try_from(status).unwrap_or(FAILED)),
        (None, _) => Err(crate::no_status(outcome, &started)),
    }
}
