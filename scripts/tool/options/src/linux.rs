//! The options of a Linux guest, and the checks of its files.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;

use super::kernel_files::{
    INITRD_ROOM, KERNEL_ROOM, check_initrd, check_kernel_file, check_length,
};
use super::series::Series;
use super::usage;
use super::vms::Vm;
use emulator::error::ToolError;
use emulator::size::{Size, mib};

/// The options that mean nothing to a guest that isn't measured.
pub const MEASURED: [&str; 20] = [
    "iterations",
    "write_percent",
    "random",
    "seed",
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
    "slots",
    "exit_times",
    "workload",
    "overcommits",
];
/// The memory of a guest, unless the user chooses it.
pub const USUAL_BYTES: Size = mib(512);
/// Its vCPUs, unless the user chooses them.
pub const USUAL_VCPUS: u32 = 4;
/// The series of Debian's kernel, unless the user chooses it.
const USUAL_SERIES: &str = "6.12";
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
        conflicts_with_all = MEASURED,
        conflicts_with_all = ["guest", "stress"]
    )]
    pub linux: Option<Series>,

    /// Run this command in the guest of --linux instead of the shell, print what it prints, and end with its exit status. Its
    /// standard input is empty.
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true, requires = "linux", conflicts_with_all = ["kernel", "initrd"])]
    pub exec: Option<OsString>,

    /// Boot this kernel, an uncompressed arm64 Image, as a guest on this terminal.
    #[arg(long, value_name = "FILE", conflicts_with_all = MEASURED, conflicts_with_all = ["guest", "stress", "linux"])]
    pub kernel: Option<PathBuf>,

    /// The file system that the kernel of --kernel starts with.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,

    /// The command line of the guest's kernel; with --linux, what is added to it. [default: console=ttyAMA0]
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub cmdline: Option<String>,

    /// Boot several guests with Linux on this terminal, one for each --vm: name=NAME,vcpus=N,bytes=SIZE,kernel=FILE,initrd=FILE,
    /// on_reset=restart or stop, on_crash=stop or restart, and at the end cmdline=STRING, all of which may be left out; without a
    /// kernel it is Debian's with a shell. Each line of theirs begins with [NAME], and one has your input: Ctrl-] n gives it to
    /// the next one. [default: vcpus=1,bytes=512M,on_reset=restart,on_crash=stop]
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
}

impl LinuxOptions {
    /// Whether a Linux guest is wanted.
    pub fn is_wanted(&self) -> bool {
        self.linux.is_some() || self.kernel.is_some() || !self.vms.is_empty()
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
        let quiet = match self.exec {
            Some(_) if verbose => " panic=-1",
            Some(_) => " panic=-1 quiet",
            None => "",
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
        let Some(kernel) = &self.kernel else {
            return Ok(KERNEL_ROOM + INITRD_ROOM);
        };
        let initrd = match &self.initrd {
            None => 0,
            Some(path) => check_initrd("--initrd", path)?,
        };
        let kernel = check_kernel_file("--kernel", kernel, bytes, initrd, "--bytes")?;
        Ok(kernel.saturating_add(initrd))
    }
}

fn series(text: &str) -> Result<Series, String> {
    Series::parse(text).ok_or_else(|| "expected a series of Linux kernels, like 6.12".into())
}
