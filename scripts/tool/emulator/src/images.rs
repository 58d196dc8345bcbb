//! Builds the hypervisor and its guests for the bare-metal target and lays out what is booted under
//! `target/parvisor`, and what is built quickly in the folder `quick` there. Cargo decides what is to be done; its messages are
//! shown as they are.
//!
//! May run in several processes at once: cargo's lock orders the builds, and each file is replaced as a whole.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use crate::error::ToolError;
use crate::files;
use crate::flat::flat_binary;
use crate::repository::repository;
use crate::setup::{TARGET, cargo};
use records::words::Profile;

/// A warning of rustc at every crate: the names of target features in `.cargo/config.toml` may change.
const EXPECTED_WARNING: &str = "feature specified for `-Ctarget-feature`";

/// The package of the hypervisor.
const HYPERVISOR: &str = "firmware";

/// The files that a build leaves.
#[derive(Clone, Debug)]
pub struct Images {
    /// The hypervisor as a flat image.
    pub hypervisor: PathBuf,
    /// The hypervisor with symbols, for debuggers and `addr2line`.
    pub symbols: PathBuf,
    /// The guest of the dirty-log benchmark.
    pub dirty_log: PathBuf,
}

/// The profile of `Cargo.toml` that `profile` stands for.
const fn cargo_profile(profile: Profile) -> &'static str {
    match profile {
        Profile::Quick => "quick",
        Profile::Best => "firmware",
    }
}

/// Removes from `command` the variables that would override `.cargo/config.toml` for the bare-metal target.
pub fn without_foreign_flags(command: &mut Command) -> &mut Command {
    for variable in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(variable);
    }
    command
}

/// Builds the hypervisor and the guest of its benchmark.
///
/// # Errors
///
/// [`ToolError::Build`] after cargo has said why.
pub fn build(profile: Profile) -> Result<Images, ToolError> {
    let (hypervisor, symbols) = build_image(HYPERVISOR, "parvisor", profile)?;
    let (dirty_log, _) = build_image("dirty-log-guest", "dirty_log", profile)?;
    Ok(Images {
        hypervisor,
        symbols,
        dirty_log,
    })
}

/// Builds the guest that misbehaves on request.
///
/// # Errors
///
/// [`ToolError::Build`] after cargo has said why.
pub fn build_probe() -> Result<PathBuf, ToolError> {
    build_image("probe-guest", "probe", Profile::Best).map(|(image, _)| image)
}

/// Builds the guest whose loops take a known time on many CPUs; gives the flat image and the one with symbols.
///
/// # Errors
///
/// [`ToolError::Build`] after cargo has said why.
pub fn build_scaling() -> Result<(PathBuf, PathBuf), ToolError> {
    build_image("scaling-guest", "scaling", Profile::Best)
}

/// Builds the load of a Linux guest whose memory is logged: a program for Linux.
///
/// # Errors
///
/// [`ToolError::Build`] after cargo has said why.
pub fn build_load(profile: Profile) -> Result<PathBuf, ToolError> {
    run_cargo("load", "load", profile, &[])
}

/// Builds the guest that measures what operations cost.
///
/// # Errors
///
/// [`ToolError::Build`] after cargo has said why.
pub fn build_micro() -> Result<PathBuf, ToolError> {
    build_image("micro-guest", "micro", Profile::Best).map(|(image, _)| image)
}

/// Builds the user of Linux's KVM that runs this guest; gives the program.
///
/// # Errors
///
/// [`ToolError::Build`] after cargo has said why.
pub fn build_vmm() -> Result<PathBuf, ToolError> {
    run_cargo("vmm", "vmm", Profile::Best, &[])
}

/// Builds the hypervisor with the break-before-make checker; gives the images with that in its place. It has a target folder
/// of its own, as cargo would replace the other executable.
///
/// # Errors
///
/// [`ToolError::Build`] after cargo has said why.
pub fn build_watched(images: Images, profile: Profile) -> Result<Images, ToolError> {
    let usual = images.hypervisor.parent().unwrap_or(Path::new("."));
    let target = usual.join("checker");
    let folder = OsStr::new("--target-dir");
    let assertions = format!(
        "--config=profile.{}.debug-assertions=true",
        cargo_profile(profile)
    );
    let arguments = [
        folder,
        target.as_os_str(),
        "--features=checker".as_ref(),
        assertions.as_ref(),
    ];
    let executable = run_cargo(HYPERVISOR, "parvisor", profile, &arguments)?;
    let (hypervisor, symbols) = install(&executable, usual, "parvisor-checker")?;
    Ok(Images {
        hypervisor,
        symbols,
        ..images
    })
}

/// Builds one package and lays out its image; gives the flat image and the one with symbols.
fn build_image(
    package: &str,
    name: &str,
    profile: Profile,
) -> Result<(PathBuf, PathBuf), ToolError> {
    let executable = run_cargo(package, name, profile, &[])?;
    // <target folder>/<triple>/<profile>/<executable>
    let target = executable.ancestors().nth(3).unwrap_or(&executable);
    let folder = match profile {
        Profile::Quick => target.join("parvisor/quick"),
        Profile::Best => target.join("parvisor"),
    };
    install(&executable, &folder, name)
}

/// Builds one package and gives its executable. The hypervisor is built beside each guest: a crate that both use is then
/// compiled once, with the features that either wants. A guest has no heap, so it doesn't link if one of them needs it.
fn run_cargo(
    package: &str,
    name: &str,
    profile: Profile,
    arguments: &[&OsStr],
) -> Result<PathBuf, ToolError> {
    let mut command = Command::new(cargo());
    command.current_dir(repository()).args([
        "build",
        "--profile",
        cargo_profile(profile),
        "--target",
        TARGET,
        "-p",
        HYPERVISOR,
    ]);
    if package != HYPERVISOR {
        command.args(["-p", package]);
    }
    command.args(arguments);
    without_foreign_flags(&mut command);
    // The same warning about target features, as a report on what a future rustc may refuse.
    command.env("CARGO_FUTURE_INCOMPAT_REPORT_FREQUENCY", "never");
    if std::io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
        command.arg("--message-format=json-diagnostic-rendered-ansi");
    } else {
        command.arg("--message-format=json");
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let lost = |error| ToolError::Build(format!("cargo can't be run: {error}"));
    let mut child = command.spawn().map_err(lost)?;
    let messages = child
        .stderr
        .take()
        .map(|stderr| thread::spawn(move || show_messages(BufReader::new(stderr))));
    let reports = child
        .stdout
        .take()
        .map(|stdout| BufReader::new(stdout).lines())
        .into_iter()
        .flatten();
    let mut executable = None;
    for report in reports.map_while(Result::ok) {
        match parse_report(&report) {
            Some(Report::Executable(of, path)) if of == name => executable = Some(path),
            Some(Report::Diagnostic(text)) => eprint!("{text}"),
            Some(Report::Executable(..)) | None => {}
        }
    }
    let status = child.wait().map_err(lost)?;
    if let Some(messages) = messages {
        // A thread that only copies lines has no result.
        let _ = messages.join();
    }
    let executable = executable.filter(|_| status.success());
    executable.ok_or_else(|| ToolError::Build(format!("the package {package} could not be built")))
}

/// Shows cargo's output without the lines that only sum up its success or its warnings.
fn show_messages(messages: impl BufRead) {
    let sums_up = |line: &str| {
        line.contains("Finished") || (line.contains(" generated ") && line.contains(" warning"))
    };
    for line in messages
        .lines()
        .map_while(Result::ok)
        .filter(|line| !sums_up(line))
    {
        eprintln!("{line}");
    }
}

/// How a line of cargo's reports is treated.
enum Report {
    /// An executable's name and path.
    Executable(String, PathBuf),
    Diagnostic(String),
}

fn parse_report(line: &str) -> Option<Report> {
    let report: serde_json::Value = serde_json::from_str(line).ok()?;
    if let Some(rendered) = report
        .pointer("/message/rendered")
        .and_then(|text| text.as_str())
    {
        return (!rendered.contains(EXPECTED_WARNING)).then(|| Report::Diagnostic(rendered.into()));
    }
    let text = |pointer| report.pointer(pointer).and_then(|text| text.as_str());
    let (name, path) = (text("/target/name")?, text("/executable")?);
    Some(Report::Executable(name.into(), path.into()))
}

/// Writes `<name>.img` and `<name>.elf` of an executable into `folder`.
fn install(executable: &Path, folder: &Path, name: &str) -> Result<(PathBuf, PathBuf), ToolError> {
    let elf = fs::read(executable)
        .map_err(|error| ToolError::Build(format!("{}: {error}", executable.display())))?;
    let flat = flat_binary(&elf)
        .map_err(|error| ToolError::Build(format!("{}: {error}", executable.display())))?;
    let image = folder.join(name).with_extension("img");
    let symbols = folder.join(name).with_extension("elf");
    for (path, contents) in [(&image, &flat), (&symbols, &elf)] {
        files::replace(path, contents)
            .map_err(|error| ToolError::Build(format!("{}: {error}", path.display())))?;
    }
    Ok((image, symbols))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_read_from_cargos_reports() {
        let artifact = |executable: Option<&str>| {
            let target = serde_json::json!({ "kind": ["bin"], "name": "parvisor" });
            let report = serde_json::json!({ "target": target, "executable": executable });
            parse_report(&report.to_string())
        };
        let Some(Report::Executable(name, path)) = artifact(Some("/t/a/firmware/parvisor")) else {
            panic!("no executable");
        };
        assert_eq!(
            (name.as_str(), path.as_path()),
            ("parvisor", Path::new("/t/a/firmware/parvisor"))
        );
        assert!(artifact(None).is_none());
        assert!(parse_report(r#"{"reason":"build-finished","success":true}"#).is_none());
    }

    #[test]
    fn diagnostics_are_shown_but_for_the_expected_one() {
        let report = |text: &str| {
            parse_report(&serde_json::json!({ "message": { "rendered": text } }).to_string())
        };
        assert!(
            matches!(report("warning: unused"), Some(Report::Diagnostic(text)) if text == "warning: unused")
        );
        assert!(
            report("warning: unstable feature specified for `-Ctarget-feature`: `x`").is_none()
        );
    }
}
