//! Simulated parallel time: builds the emulator plugin `tests/simclock`, checks that the emulator at hand can run it, and
//! adds it to a machine's command line. That crate's README describes the model and its limits.
//!
//! May run in several processes at once: cargo's lock orders the builds, and a plugin that is in use is never written to.

use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::error::ToolError;
use crate::images::without_foreign_flags;
use crate::repository::repository;
use crate::setup::{self, FULL_QEMU, cargo};

/// The crate of the plugin, which is no member of the workspace.
pub const CRATE: &str = "tests/simclock";
/// The target folder of its build.
pub const TARGET_FOLDER: &str = "target/simclock";
/// The library within that folder.
const LIBRARY: &str = "release/libsimclock.so";
/// How far a CPU may run ahead of the slowest one, in simulated nanoseconds.
const QUANTUM_NS: u64 = 1000;
/// The variable of the dynamic linker.
const PRELOAD: &str = "LD_PRELOAD";

/// Costs in simulated time beyond an instruction's nanosecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// Nanoseconds to move a cache line between CPUs; 0: the model is off.
    pub line_ns: u64,
    /// Nanoseconds of a broadcast TLB invalidation; a local one costs a quarter.
    pub tlbi_ns: u64,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            line_ns: 100,
            tlbi_ns: 0,
        }
    }
}

/// A plugin that is built, for an emulator that can run it.
#[derive(Clone, Debug)]
pub struct Simulation {
    library: PathBuf,
    costs: Costs,
    quantum_ns: u64,
}

/// Builds the plugin, and checks that `emulator` runs it.
///
/// # Errors
///
/// One line: the system isn't Linux, the plugin can't be built, or what is wrong with the emulator: too old, built
/// without plugins, or a wrapper that keeps the plugin from it.
pub fn prepare(emulator: &Path, costs: Costs) -> Result<Simulation, ToolError> {
    is_supported(emulator)?;
    let simulation = Simulation {
        library: build()?,
        costs,
        quantum_ns: QUANTUM_NS,
    };
    check(emulator, &simulation.library)?;
    Ok(simulation)
}

impl Simulation {
    /// The costs of the simulation.
    pub fn costs(&self) -> Costs {
        self.costs
    }

    /// How far a CPU may run ahead of the slowest one, in simulated nanoseconds.
    pub fn quantum_ns(&self) -> u64 {
        self.quantum_ns
    }

    /// The same with another [quantum](Self::quantum_ns): a shorter one is slower, and shows what takes less than the usual one.
    #[must_use]
    pub fn with_quantum(self, quantum_ns: u64) -> Self {
        Self { quantum_ns, ..self }
    }

    /// The name of the clock for [`Record::clock`](records::record::Record::clock).
    pub fn clock(&self) -> String {
        format!(
            "simulated time ({} ns per cache line moved, {} ns per broadcast TLBI)",
            self.costs.line_ns, self.costs.tlbi_ns
        )
    }

    /// Makes the machine of `command` run on simulated time. `text` is the range of virtual addresses of the instructions
    /// that take part in the cache-line model.
    pub fn apply(&self, command: &mut Command, text: Range<u64>) {
        preload(command, &self.library);
        command.args(["-accel", "tcg,thread=multi"]);
        command.arg("-plugin").arg(plugin(
            &self.library,
            &format!(
                "quantum={},cost={},tlbi={},lo={:#x},hi={:#x}",
                self.quantum_ns, self.costs.line_ns, self.costs.tlbi_ns, text.start, text.end
            ),
        ));
    }
}

/// Whether this system and `emulator` can have simulated time at all.
///
/// # Errors
///
/// One line that says why not: the system isn't Linux, or QEMU is too old or was built without plugins.
pub fn is_supported(emulator: &Path) -> Result<(), ToolError> {
    if !cfg!(target_os = "linux") {
        return Err(refused("it needs Linux"));
    }
    let name = emulator.display();
    let version = setup::version(emulator)?;
    if version < FULL_QEMU {
        return Err(refused(format!(
            "{name} is QEMU {version}, and it needs {FULL_QEMU} or later"
        )));
    }
    // The help on plugins exists only in an emulator that has them.
    let has_plugins = run(Command::new(emulator).args(["-plugin", "help"]))?;
    if !has_plugins.status.success() {
        return Err(refused(format!("{name} was built without plugins")));
    }
    Ok(())
}

fn refused(reason: impl std::fmt::Display) -> ToolError {
    ToolError::Setup(format!("no simulated time: {reason}"))
}

/// Builds the plugin; gives the library.
fn build() -> Result<PathBuf, ToolError> {
    let mut command = Command::new(cargo());
    command.current_dir(repository()).stdin(Stdio::null());
    command.args(["build", "--quiet", "--release", "--locked"]);
    command.args(["--target-dir", TARGET_FOLDER]);
    command.args(["--manifest-path", &format!("{CRATE}/Cargo.toml")]);
    without_foreign_flags(&mut command);
    let succeeded = command.status().is_ok_and(|status| status.success());
    let library = repository().join(TARGET_FOLDER).join(LIBRARY);
    let library = Some(library).filter(|_| succeeded);
    library.ok_or_else(|| ToolError::Build(format!("the plugin {CRATE} could not be built")))
}

/// Runs the emulator with the plugin, which tells whether it would work, and ends it.
fn check(emulator: &Path, library: &Path) -> Result<(), ToolError> {
    if library.to_string_lossy().contains([' ', ':']) {
        return Err(refused(format!(
            "the path {} has a space or a colon, which {PRELOAD} can't hold",
            library.display()
        )));
    }
    let mut command = Command::new(emulator);
    preload(&mut command, library);
    command.args(["-M", "none", "-nodefaults", "-display", "none"]);
    command.args(["-accel", "tcg", "-plugin"]);
    let loaded = run(command.arg(plugin(library, "check=on")))?;
    if loaded.status.success() {
        return Ok(());
    }
    let complaints = String::from_utf8_lossy(&loaded.stderr);
    let name = emulator.display().to_string();
    Err(refused(verdict(&name, &complaints)))
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Result<Output, ToolError> {
    let output = command.stdin(Stdio::null()).output();
    output.map_err(|error| {
        let name = command.get_program().to_string_lossy();
        ToolError::Setup(format!("{name} can't be run: {error}"))
    })
}

/// The reason why an emulator that has plugins doesn't run this one.
fn verdict(name: &str, complaints: &str) -> String {
    // A script's shell that the library was loaded into, or a QEMU that it wasn't.
    if complaints.contains("undefined symbol: qemu_plugin") || complaints.contains("not preloaded")
    {
        return format!(
            "{name} is a wrapper, which {PRELOAD} doesn't get through: name QEMU itself"
        );
    }
    let last = complaints.lines().rfind(|line| !line.trim().is_empty());
    let reason = last.unwrap_or("it gave no reason");
    format!("{name} doesn't run the plugin: {reason}")
}

/// Lets the dynamic linker load the plugin before any other preloaded library.
fn preload(command: &mut Command, library: &Path) {
    let mut libraries = OsString::from(library);
    if let Some(others) = std::env::var_os(PRELOAD).filter(|others| !others.is_empty()) {
        libraries.push(":");
        libraries.push(others);
    }
    command.env(PRELOAD, libraries);
}

/// The argument of `-plugin`. QEMU separates options by commas; one that belongs to a path is doubled.
fn plugin(library: &Path, options: &str) -> String {
    format!("{},{options}", library.to_string_lossy().replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const COSTS: Costs = Costs {
        line_ns: 50,
        tlbi_ns: 400,
    };

    fn simulation() -> Simulation {
        Simulation {
            library: "/a,b/libsimclock.so".into(),
            costs: COSTS,
            quantum_ns: QUANTUM_NS,
        }
    }

    /// The refusal of an emulator that is this shell script.
    fn refused(name: &str, script: &str) -> String {
        let path = std::env::temp_dir().join(format!("simclock-{name}-{}", std::process::id()));
        // Written by another process: one that this one forks meanwhile must not hold it open, or it couldn't be run.
        let written = Command::new("sh")
            .args([
                "-c",
                "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod +x \"$2\"",
                "sh",
                script,
            ])
            .arg(&path)
            .status();
        assert!(written.expect("sh starts").success());
        let checked =
            is_supported(&path).and_then(|()| check(&path, Path::new("/a/libsimclock.so")));
        fs::remove_file(&path).expect("it is ours");
        match checked {
            Err(ToolError::Setup(text)) if !text.contains('\n') => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_preloads_and_loads_the_plugin() {
        let mut command = Command::new("qemu");
        simulation().apply(&mut command, 0x4020_0000..0x4027_0000);
        let arguments: Vec<_> = command
            .get_args()
            .map(|text| text.to_string_lossy())
            .collect();
        assert_eq!(
            arguments.join(" "),
            "-accel tcg,thread=multi -plugin \
             /a,,b/libsimclock.so,quantum=1000,cost=50,tlbi=400,lo=0x40200000,hi=0x40270000"
        );
        let preloaded = command.get_envs().find(|(name, _)| *name == PRELOAD);
        let libraries = preloaded.and_then(|(_, value)| value).expect("it is set");
        assert!(
            libraries
                .to_string_lossy()
                .starts_with("/a,b/libsimclock.so")
        );
        assert!(simulation().clock().contains("50 ns per cache line"));
    }

    #[test]
    fn emulators_that_can_t_are_refused_in_one_line() {
        let version = "case $1 in --version) echo 'QEMU emulator version 10.0.2'; exit;; esac;";
        assert!(refused("old", "echo 'QEMU emulator version 9.2.4'").contains("9.2"));
        assert!(refused("other", "echo hello").contains("version"));
        let without = refused("without", &format!("{version} exit 1"));
        assert!(without.contains("without plugins"), "{without}");
        let wrapper = "case $2 in help) exit;; esac;";
        let text =
            "echo 'simclock: not preloaded: LD_PRELOAD must name this library too' >&2; exit 1";
        let wrapped = refused("wrapper", &format!("{version} {wrapper} {text}"));
        assert!(wrapped.contains("is a wrapper"), "{wrapped}");
        let broken = refused(
            "broken",
            &format!("{version} {wrapper} echo 'no room' >&2; exit 1"),
        );
        assert!(
            broken.ends_with("doesn't run the plugin: no room"),
            "{broken}"
        );
    }

    #[test]
    fn a_path_that_ld_preload_can_t_hold_is_refused() {
        let spaced = check(Path::new("qemu"), Path::new("/a b/libsimclock.so"));
        assert!(spaced.is_err_and(|error| error.to_string().contains("a space or a colon")));
    }
}
