//! Finds the programs that a run needs and installs the missing ones: the Rust target and, on Debian, QEMU; for slow tests,
//! Rust's nightly toolchain and cargo-fuzz. It reports each installation and asks nothing. If it can't install a program, it
//! names the system's package.
//!
//! Installing changes the machine and must not run twice at once; cargo's and apt's own locks see to that.

pub mod apt;
mod nightly;
pub mod sources;
pub mod system;

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use self::nightly::{NIGHTLY, cargo_fuzz, nightly};
use self::system::{Package, System};
use crate::error::ToolError;

/// The target of the hypervisor and its guests.
pub const TARGET: &str = "aarch64-unknown-none-softfloat";
/// The oldest QEMU that Parvisor is run on.
const OLDEST_QEMU: Version = Version { major: 7, minor: 2 };
/// The first QEMU that can do everything: nested virtualization, and the plugins behind simulated time.
pub const FULL_QEMU: Version = Version {
    major: 10,
    minor: 0,
};

/// A QEMU release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The number before the point.
    pub major: u32,
    /// The number behind it.
    pub minor: u32,
}

impl Version {
    /// Reads the output of `qemu-system-aarch64 --version`.
    pub fn parse(text: &str) -> Option<Self> {
        let number = text.strip_prefix("QEMU emulator version ")?;
        let mut parts = number.split(|c: char| !c.is_ascii_digit());
        Some(Self {
            major: parts.next()?.parse().ok()?,
            minor: parts.next()?.parse().ok()?,
        })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Makes sure that the Rust target is installed, by rustup where it is missing.
///
/// # Errors
///
/// What is missing and how to get it, if there is no rustup or it fails.
pub fn rust_target() -> Result<(), ToolError> {
    let libraries = sysroot()?.join("lib/rustlib").join(TARGET).join("lib");
    if libraries.is_dir() {
        return Ok(());
    }
    eprintln!("setup: installing the Rust target {TARGET}");
    rustup(
        &["target", "add", TARGET],
        &format!("the Rust target {TARGET} is missing"),
    )
}

/// Makes sure that cargo's subcommands `fmt` and `clippy` exist, by rustup where one is missing.
///
/// # Errors
///
/// As [`rust_target`].
pub fn rust_components() -> Result<(), ToolError> {
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if !succeeds(Command::new(cargo()).args([subcommand, "--version"])) {
            eprintln!("setup: installing the Rust component {component}");
            rustup(
                &["component", "add", component],
                &format!("the Rust component {component} is missing"),
            )?;
        }
    }
    Ok(())
}

/// The cargo that runs this tool.
pub fn cargo() -> std::ffi::OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Whether a command ends well. Nothing is shown of it.
fn succeeds(probe: &mut Command) -> bool {
    probe
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

fn rustup(arguments: &[&str], missing: &str) -> Result<(), ToolError> {
    let by_hand = format!("rustup {}", arguments.join(" "));
    match Command::new("rustup")
        .args(arguments)
        .stdin(Stdio::null())
        .status()
    {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(ToolError::Setup(format!(
            "{missing}, and `{by_hand}` failed"
        ))),
        Err(_) => Err(ToolError::Setup(format!(
            "{missing}: install the Rust toolchain by rustup, then `{by_hand}`"
        ))),
    }
}

fn sysroot() -> Result<PathBuf, ToolError> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "sysroot"]).output();
    let output =
        output.map_err(|error| ToolError::Setup(format!("rustc can't be run: {error}")))?;
    Ok(PathBuf::from(
        String::from_utf8_lossy(&output.stdout).trim(),
    ))
}

/// Finds the emulator, or installs it if it can. `QEMU` in the environment names another one, or a
/// wrapper, which is used as it is.
///
/// # Errors
///
/// What is missing and how to get it.
pub fn emulator() -> Result<PathBuf, ToolError> {
    if let Some(named) = env::var_os("QEMU").filter(|value| !value.is_empty()) {
        return find_program(&named).ok_or_else(|| {
            let named = named.to_string_lossy();
            ToolError::Usage(format!(
                "the emulator that the variable QEMU names can't be run: {named}"
            ))
        });
    }
    let name = OsStr::new("qemu-system-aarch64");
    if let Some(path) = find_program(name) {
        check_version(&path)?;
        return Ok(path);
    }
    install("qemu-system-aarch64", Package::Qemu, apt::install_qemu)?;
    let path = find_program(name).ok_or_else(|| {
        ToolError::Setup("QEMU was installed, but qemu-system-aarch64 isn't in PATH".into())
    })?;
    eprintln!("setup: installed QEMU {}", check_version(&path)?);
    Ok(path)
}

/// Finds valgrind, or installs it if it can.
///
/// # Errors
///
/// What is missing and how to get it.
pub fn valgrind() -> Result<(), ToolError> {
    if find_program(OsStr::new("valgrind")).is_some() {
        return Ok(());
    }
    install("valgrind", Package::Valgrind, apt::install_valgrind)
}

/// Installs `program`, which `package` holds, by `by_apt` on Debian.
fn install(
    program: &str,
    package: Package,
    by_apt: impl Fn(apt::Rights, &str) -> Result<(), String>,
) -> Result<(), ToolError> {
    let system = System::detect();
    let missing = |why: &str| {
        let advice = system.advice(package);
        ToolError::Setup(format!("{program} is missing{why}; {advice}"))
    };
    let Some(codename) = &system.debian else {
        return Err(missing(&format!(
            " and isn't installed by this script on {}",
            system.name
        )));
    };
    let Some(rights) = apt::Rights::detect() else {
        return Err(missing(
            " and installing it needs root or sudo without a password",
        ));
    };
    by_apt(rights, codename)
        .map_err(|reason| missing(&format!(" and couldn't be installed ({reason})")))
}

/// The version of the QEMU at `path`.
///
/// # Errors
///
/// If it can't be run or doesn't tell.
pub fn version(path: &Path) -> Result<Version, ToolError> {
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let output = output
        .map_err(|error| ToolError::Setup(format!("{} can't be run: {error}", path.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Version::parse(&text)
        .ok_or_else(|| ToolError::Setup(format!("{} doesn't tell its version", path.display())))
}

/// The version of the QEMU at `path`. Warns of a version that lacks something, and refuses one that is too old.
fn check_version(path: &Path) -> Result<Version, ToolError> {
    let version = version(path)?;
    if version < OLDEST_QEMU {
        return Err(ToolError::Setup(format!(
            "{} is QEMU {version}; Parvisor needs {OLDEST_QEMU} or later",
            path.display()
        )));
    }
    if version < FULL_QEMU {
        eprintln!(
            "setup: this is QEMU {version}; nested virtualization and simulated time need {FULL_QEMU}"
        );
    }
    Ok(version)
}

/// The path of a program: looked up in `PATH` unless `name` itself is a path.
pub fn find_program(name: &OsStr) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
    };
    let path = Path::new(name);
    if path.components().count() > 1 || path.is_absolute() {
        return Some(path.to_path_buf()).filter(is_program);
    }
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(path))
        .find(is_program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_qemus_first_line() {
        let debian =
            Version::parse("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright");
        assert_eq!(
            debian,
            Some(Version {
                major: 10,
                minor: 0
            })
        );
        assert_eq!(
            Version::parse("QEMU emulator version 7.2\n"),
            Some(Version { major: 7, minor: 2 })
        );
        assert_eq!(Version::parse("something else"), None);
        assert!(
            Version {
                major: 10,
                minor: 0
            } > Version { major: 7, minor: 2 }
        );
    }

    #[test]
    fn programs_are_found_by_name_and_by_path() {
        let shell = find_program(OsStr::new("sh")).expect("sh is in PATH");
        assert_eq!(find_program(shell.as_os_str()), Some(shell));
        assert_eq!(find_program(OsStr::new("no-such-program-here")), None);
        assert_eq!(find_program(OsStr::new("/")), None);
    }
}
