//! Installs packages on Debian. QEMU: 10.0 from the backports suite where the release needs it and the suite can be had, else
//! what the release itself carries.
//!
//! Needs root or sudo without a password. Adds at most one file to the machine's package sources, and takes it away
//! again if it turns out to be of no use. What apt prints is shown only when it fails.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::unistd::Uid;

use super::sources::{Backports, Form, SourcesFile, backports};

/// The package that holds `qemu-system-aarch64`.
const PACKAGE: &str = "qemu-system-arm";
/// The only file that is ever added to the machine's package sources.
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/parvisor-backports.sources";
/// The first line of that file.
const BACKPORTS_ORIGIN: &str = "# Written by scripts/run: QEMU 10.0 is in this suite. Derived from this machine's own package sources.\n";
/// The Debian release whose own QEMU is too old for everything that Parvisor does.
const RELEASE_WITH_BACKPORT: &str = "bookworm";

/// How this user may become root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// It is root.
    Root,
    /// By sudo, without a password.
    Sudo,
}

impl Rights {
    /// The rights of this user; `None` if it can't install packages.
    pub fn detect() -> Option<Self> {
        if Uid::effective().is_root() {
            return Some(Self::Root);
        }
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        sudo.status()
            .is_ok_and(|status| status.success())
            .then_some(Self::Sudo)
    }

    fn command(self, program: &str) -> Command {
        let mut command = match self {
            Self::Root => Command::new(program),
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.args(["-n", program]);
                command
            }
        };
        command.stdin(Stdio::null());
        command
    }

    fn apt_get(self, arguments: &[&str]) -> Result<(), String> {
        let mut command = self.command("env");
        command.args([
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-y",
            "-q",
            "-o",
            "DPkg::Lock::Timeout=120",
        ]);
        command.args(arguments);
        succeed(command.output(), "apt-get")
    }

    fn write(self, path: &str, text: &str) -> Result<(), String> {
        let mut command = self.command("tee");
        command
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|error| format!("tee can't be run: {error}"))?;
        if let Some(mut input) = child.stdin.take() {
            input
                .write_all(text.as_bytes())
                .map_err(|error| format!("{path} can't be written: {error}"))?;
        }
        succeed(child.wait_with_output(), "tee")
    }

    fn remove(self, path: &str) {
        // The file is of no use; whoever can't remove it finds in it who wrote it.
        let _ = self.command("rm").args(["-f", path]).status();
    }
}

/// The last lines of a finished command, if it failed.
fn succeed(output: std::io::Result<Output>, program: &str) -> Result<(), String> {
    let output = output.map_err(|error| format!("{program} can't be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    Err(format!(
        "{program} failed: {}",
        lines[lines.len().saturating_sub(3)..].join("; ")
    ))
}

/// Installs QEMU on the Debian release `codename`, and reports its steps on standard error.
///
/// # Errors
///
/// A sentence with apt's last lines if no QEMU could be installed.
pub fn install_qemu(rights: Rights, codename: &str) -> Result<(), String> {
    update(rights);
    if codename == RELEASE_WITH_BACKPORT {
        match install_from_backports(rights, codename) {
            Ok(()) => return Ok(()),
            Err(reason) => {
                eprintln!("setup: QEMU 10.0 can't be had from {codename}-backports: {reason}")
            }
        }
    }
    install(rights, codename, PACKAGE)
}

/// Installs valgrind on the Debian release `codename`, and reports its steps on standard error.
///
/// # Errors
///
/// A sentence with apt's last lines if it couldn't be installed.
pub fn install_valgrind(rights: Rights, codename: &str) -> Result<(), String> {
    update(rights);
    install(rights, codename, "valgrind")
}

fn update(rights: Rights) {
    eprintln!("setup: updating the package lists");
    if let Err(reason) = rights.apt_get(&["update"]) {
        eprintln!("setup: {reason}; going on with the lists that are there");
    }
}

fn install(rights: Rights, codename: &str, package: &str) -> Result<(), String> {
    eprintln!("setup: installing {package} from {codename}");
    rights.apt_get(&["install", "--no-install-recommends", package])
}

fn install_from_backports(rights: Rights, codename: &str) -> Result<(), String> {
    let added = match backports(&source_files(), codename) {
        Backports::Listed => false,
        Backports::NoModel => {
            return Err(format!("no package source of {codename} to derive it from"));
        }
        Backports::Entry(text) => {
            eprintln!("setup: adding the suite {codename}-backports in {BACKPORTS_FILE}");
            rights.write(BACKPORTS_FILE, &format!("{BACKPORTS_ORIGIN}{text}"))?;
            true
        }
    };
    let result = update_backports(rights, added).and_then(|()| {
        eprintln!("setup: installing {PACKAGE} from {codename}-backports");
        let suite = format!("{codename}-backports");
        rights.apt_get(&["install", "--no-install-recommends", "-t", &suite, PACKAGE])
    });
    if result.is_err() && added {
        rights.remove(BACKPORTS_FILE);
    }
    result
}

/// Fetches the lists of the added file alone, so that a fault in another of the machine's sources doesn't count.
fn update_backports(rights: Rights, added: bool) -> Result<(), String> {
    if !added {
        return Ok(());
    }
    let only = format!("Dir::Etc::SourceList={BACKPORTS_FILE}");
    rights.apt_get(&[
        "update",
        "-o",
        &only,
        "-o",
        "Dir::Etc::SourceParts=-",
        "-o",
        "APT::Get::List-Cleanup=0",
        "-o",
        "APT::Update::Error-Mode=any",
    ])
}

/// The machine's package sources; files that can't be read are left out.
pub fn source_files() -> Vec<SourcesFile> {
    let mut paths = vec![Path::new("/etc/apt/sources.list").to_path_buf()];
    if let Ok(directory) = fs::read_dir("/etc/apt/sources.list.d") {
        paths.extend(directory.flatten().map(|entry| entry.path()));
    }
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let form = match path.extension()?.to_str()? {
            "sources" => Form::Deb822,
            "list" => Form::OneLine,
            _ => return None,
        };
        Some(SourcesFile {
            form,
            text: fs::read_to_string(path).ok()?,
        })
    };
    paths.iter().filter_map(read).collect()
}
