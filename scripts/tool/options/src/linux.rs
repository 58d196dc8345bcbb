//! The options of a Linux guest, and the checks of its files.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;

use super::kernel_files::{
    INITRD_ROOM, Initrd, KERNEL_ROOM, check_firmware_file, check_kernel_file, check_length,
};
use super::series::Series;
use super::usage;
use super::vms::Vm;
use emulator::error::ToolError;
use emulator::size::{Size, mib};

/// The options that mean nothing to a guest that isn't measured.
pub const MEASURED: [&str; LOGGED.len() + UNLOGGED.len() + 1] = {
    let mut all = ["overcommits"; LOGGED.len() + UNLOGGED.len() + 1];
    let (logged, others) = all.split_at_mut(LOGGED.len());
    logged.copy_from_slice(&LOGGED);
    others
        .split_at_mut(UNLOGGED.len())
        .0
        .copy_from_slice(&UNLOGGED);
    all
};
/// Those of them that mean something if its memory is logged.
pub const LOGGED: [&str; 14] = [
    "iterations",
    "json",
    "split",
    "tracking",
    "granularity",
    "harvest",
    "harvesters",
    "ring_entries",
    "enable",
    "clear",
    "restore",
    "split_chunk",
    "split_reserve",
    "exit_times",
];
/// Those that mean nothing to Linux in any case.
const UNLOGGED: [&str; 5] = ["write_percent", "random", "seed", "slots", "workload"];
/// How long a guest runs between two rounds in which its memory is logged and copied, unless the user chooses, in milliseconds.
pub const USUAL_INTERVAL: u32 = 100;
/// The memory of a guest, unless the user chooses it.
pub const USUAL_BYTES: Size = mib(512);
/// Its vCPUs, unless the user chooses them.
pub const USUAL_VCPUS: u32 = 4;
/// The series of Debian's kernel, unless the user chooses it.
const USUAL_SERIES: &str = "6.12";
/// Room for both.
pub const DEBIAN_ROOM: u64 = KERNEL_ROOM + INITRD_ROOM;
/// Room for Debian's U-Boot.
const U_BOOT_ROOM: u64 = 4 << 20;

/// What starts in flash memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// Debian's U-Boot.
    UBoot,
    /// The user's.
    File(PathBuf),
}

impl Firmware {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            U_BOOT => Self::UBoot,
            path => Self::File(path.into()),
        })
    }
}

/// Debian's U-Boot as a value of the option.
const U_BOOT: &str = "u-boot";

/// A Linux guest.
#[derive(Args, Clone, Debug, Default)]
pub struct LinuxOptions {
    /// Boot Debian's Linux as a guest, to a busybox shell on this terminal; its kernel is of this series, 6.12 or 6.1. Fetched
    /// once from Debian's registry; nothing of the system is changed. It has --vcpus and --bytes of memory in all. Ctrl-A x
    /// ends it, Ctrl-A h explains the keys. [default series: 6.12]
    #[arg(
        long,
        value_name = "SERIES",
        num_args = 0..=1,
        default_missing_value = USUAL_SERIES,
        value_parser = series,
        conflicts_with_all = UNLOGGED,
        conflicts_with_all = ["guest", "stress"]
    )]
    pub linux: Option<Series>,

    /// Run this command in the guest of --linux instead of the shell, print what it prints, and end with its exit status. Its
    /// standard input is empty.
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true, requires = "linux", conflicts_with_all = ["kernel", "initrd"])]
    pub exec: Option<OsString>,

    /// Boot this kernel, an uncompressed arm64 Image, as a guest on this terminal.
    #[arg(long, value_name = "FILE", conflicts_with_all = UNLOGGED, conflicts_with_all = ["guest", "stress", "linux"])]
    pub kernel: Option<PathBuf>,

    /// The file system that the kernel of --kernel starts with.
    #[arg(
        long,
        value_name = "FILE",
        requires = "kernel",
        conflicts_with = "linux"
    )]
    pub initrd: Option<PathBuf>,

    /// The command line of the guest's kernel; with --linux, what is added to it. [default: console=ttyAMA0]
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub cmdline: Option<String>,

    /// Start firmware for QEMU's virt machine, a flat file, as a guest on this terminal: u-boot is Debian's U-Boot. The kernel and
    /// the file system of --linux or --kernel lie where U-Boot looks for them: its command `booti 40400000 - ${fdtcontroladdr}`
    /// boots them. [default value: u-boot]
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        default_missing_value = U_BOOT,
        value_parser = Firmware::parse,
        conflicts_with_all = MEASURED,
        conflicts_with_all = ["guest", "stress", "exec", "vms", "dirty_log"]
    )]
    pub firmware: Option<Firmware>,

    /// Boot several guests with Linux on this terminal, one for each --vm: name=NAME,vcpus=N,bytes=SIZE,kernel=FILE,initrd=FILE,
    /// device=PATH,PATH (of the machine's device tree), on_reset=restart or stop, on_crash=stop or restart, and at the end cmdline=STRING, all of which may be left out; without a
    /// kernel it is Debian's with a shell. Each line of theirs begins with the name, and one has your input: Ctrl-] n gives it to
    /// the next one. [default: name=vm1, vm2 and so on, vcpus=1,bytes=512M,on_reset=restart,on_crash=stop]
    #[arg(
        long = "vm",
        value_name = "PARTS",
        value_parser = Vm::parse,
        conflicts_with_all = MEASURED,
        conflicts_with_all = ["guest", "stress", "exec", "kernel", "initrd", "cmdline", "vcpus", "bytes"]
    )]
    pub vms: Vec<Vm>,

    /// Write what each guest prints to DIR/NAME.log too, byte for byte; without --vm, to DIR/guest.log.
    #[arg(long, value_name = "DIR")]
    pub console_log: Option<PathBuf>,

    /// Log what the guest of --linux writes while it runs, and copy it round by round, as a migration does: --iterations rounds,
    /// for the last of which it is stopped. Then its whole memory must equal the copy. It runs a load meanwhile, or the command
    /// of --exec. The options of the benchmark's log go with it, and so do --json and lists that are compared.
    #[arg(long, requires = "linux", conflicts_with_all = ["kernel", "initrd"])]
    pub dirty_log: bool,

    /// With --dirty-log, how long the guest runs between two rounds, in milliseconds. [default: 100]
    #[arg(long, value_name = "MS", requires = "dirty_log")]
    pub interval: Option<u32>,
}

impl LinuxOptions {
    /// Whether a Linux guest is wanted.
    pub fn is_wanted(&self) -> bool {
        self.has_kernel() || self.firmware.is_some() || !self.vms.is_empty()
    }

    /// Whether it is one guest with a kernel.
    fn has_kernel(&self) -> bool {
        self.linux.is_some() || self.kernel.is_some()
    }

    /// The series of Debian's kernel.
    pub fn series(&self) -> String {
        self.linux
            .map_or_else(|| USUAL_SERIES.into(), |series| series.to_string())
    }

    /// The kernel's command line. A kernel of Debian's with a command ends at once when it panics, and says little.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] if a kernel would cut it, or there is no kernel.
    pub fn command_line(&self, verbose: bool) -> Result<String, ToolError> {
        let given = self.cmdline.as_deref();
        if given.is_some() && !self.is_wanted() {
            return usage("--cmdline: needs --linux or --kernel");
        }
        if self.console_log.is_some() && !self.is_wanted() {
            return usage("--console-log: needs --linux, --kernel or --vm");
        }
        let quiet = match self.exec.is_some() || self.dirty_log {
            true if verbose => " panic=-1",
            true => " panic=-1 quiet",
            false => "",
        };
        // A guest that is stopped for the last round has no reason to bark.
        let quiet = match self.dirty_log {
            true => format!("{quiet} nowatchdog"),
            false => quiet.into(),
        };
        let line = match (given, self.linux) {
            (Some(given), None) => given.to_string(),
            (Some(given), Some(_)) => format!("console=ttyAMA0{quiet} {given}"),
            (None, _) => format!("console=ttyAMA0{quiet}"),
        };
        check_length("--cmdline", &line).map(|()| line)
    }

    /// Checks the user's files for a guest with so much memory. Gives how much room kernel and initrd need in the machine's
    /// RAM before the guest starts.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the file.
    pub fn check_files(&self, bytes: Size) -> Result<u64, ToolError> {
        if let Some(exec) = &self.exec
            && exec.as_bytes().trim_ascii().is_empty()
        {
            return usage("--exec: the command is empty");
        }
        let firmware = match &self.firmware {
            None => 0,
            Some(Firmware::UBoot) => U_BOOT_ROOM,
            Some(Firmware::File(path)) => check_firmware_file("--firmware", path)?,
        };
        let Some(kernel) = &self.kernel else {
            let debians = if self.has_kernel() { DEBIAN_ROOM } else { 0 };
            return Ok(firmware + debians);
        };
        let initrd = self.initrd.as_deref();
        let initrd = initrd.map(|path| Initrd::check("--initrd", path));
        let initrd = initrd.transpose()?;
        let kernel = check_kernel_file("--kernel", kernel, bytes, initrd.as_ref(), "--bytes")?;
        let initrd = initrd.map_or(0, |initrd| initrd.length);
        Ok(kernel.saturating_add(initrd).saturating_add(firmware))
    }
}

fn series(text: &str) -> Result<Series, String> {
    Series::parse(text).ok_or_else(|| "expected a series of Linux kernels, like 6.12".into())
}
