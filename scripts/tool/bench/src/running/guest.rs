//! Linux as the guest that is measured: its files, and what it tells of its load.

use std::fs;
use std::path::PathBuf;

use emulator::error::ToolError;
use emulator::files::RunFile;
use emulator::images;
use emulator::qemu::{Module, ModuleKind, PlacedModules};
use emulator::repository::target_folder;
use emulator::session::marks::Marks;
use emulator::session::token::Token;
use emulator::size::Size;
use linux::{Series, Session, prepare_guest};
use records::words::Profile;

/// The kernel's command line: it says little, ends when it panics, and doesn't mind being stopped for a while.
const COMMAND_LINE: &str = "console=ttyAMA0 panic=-1 quiet nowatchdog";

/// A Linux guest with a load. The file system is removed when this is dropped.
#[derive(Debug)]
pub struct LinuxGuest {
    kernel: PathBuf,
    initrd: RunFile,
    token: Token,
}

impl LinuxGuest {
    /// Fetches the newest kernel of the series, if it isn't there, and makes the file system.
    ///
    /// # Errors
    ///
    /// What is missing and can't be fetched or built.
    pub fn prepare(series: Series, profile: Profile) -> Result<Self, ToolError> {
        let load = images::build_load(profile)?;
        let program = fs::read(&load).map_err(|error| ToolError::unusable(&load, &error))?;
        let token =
            Token::random().map_err(|error| ToolError::Io(format!("/dev/urandom: {error}")))?;
        let initrd = RunFile::new(&target_folder().join("linux"), "bench", "cpio");
        let session = Session::Load(program);
        let progress = |what: &str| eprintln!("setup: {what}");
        let kernel = prepare_guest(
            series,
            &session,
            &token.to_string(),
            initrd.path(),
            progress,
        )?;
        Ok(Self {
            kernel: kernel.image,
            initrd,
            token,
        })
    }

    /// The modules that the hypervisor finds it as, in a machine with so much RAM.
    ///
    /// # Errors
    ///
    /// A file has gone, or they have no room.
    pub fn modules(&self, memory: Size) -> Result<Vec<Module>, ToolError> {
        let mut placed = PlacedModules::new(memory);
        placed.place(ModuleKind::Kernel, &self.kernel, Some(COMMAND_LINE))?;
        placed.place(ModuleKind::Ramdisk, self.initrd.path(), None)?;
        placed.fitting().ok_or_else(|| {
            ToolError::Usage(format!(
                "--bytes: kernel and initrd don't fit into {memory}"
            ))
        })
    }

    /// The hypervisor's options, with the line that begins the measurement.
    pub fn words(&self, append: &str) -> String {
        format!("{append} log_from=@{}", self.token)
    }

    /// What is to be heard of the loads of one boot.
    pub fn marks(&self) -> Marks {
        Marks::new(&self.token)
    }
}
