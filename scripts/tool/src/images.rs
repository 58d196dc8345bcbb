//! Builds the hypervisor and its guests for the bare-metal target and lays out what is booted under
//! `target/parvisor`. Cargo decides what is to be done; its messages are shown as they are.
//!
//! May run in several processes at once: cargo's lock orders the builds, and each file is replaced as a whole.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use crate::error::ToolError;
use crate::flat::flat_binary;
use crate::setup::{TARGET, cargo};

/// The packages that are built, the folders that hold them, and the names of their images.
const PACKAGES: [(&str, &str, &str); 3] = [
    ("firmware", "hyp/firmware", "parvisor"),
    ("dirty-log-guest", "tests/guests/dirty_log", "dirty_log"),
    ("probe-guest", "tests/guests/probe", "probe"),
];

/// rustc says of the target features in `.cargo/config.toml`, at every crate, that their names may change one day.
const EXPECTED_WARNING: &str = "feature specified for `-Ctarget-feature`";

/// The files that a build leaves.
#[derive(Clone, Debug)]
pub struct Images {
    /// The hypervisor as a flat image.
    pub hypervisor: PathBuf,
    /// The hypervisor with symbols, for debuggers and `addr2line`.
    pub symbols: PathBuf,
    /// The guest of the dirty-log benchmark.
    pub dirty_log: PathBuf,
    /// The guest that misbehaves on request.
    pub probe: PathBuf,
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest)
}

/// Removes from `command` the variables that would replace what `.cargo/config.toml` says of the bare-metal target.
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

/// Builds everything that is booted.
///
/// # Errors
///
/// [`ToolError::Build`] after cargo has said why.
pub fn build() -> Result<Images, ToolError> {
    let executables = run_cargo()?;
    let mut folder = PathBuf::new();
    let mut lay_out =
        |name: &str, manifest_folder: &str| -> Result<(PathBuf, PathBuf), ToolError> {
            let executable = executables
                .iter()
                .find(|built| {
                    built
                        .manifest
                        .ends_with(Path::new(manifest_folder).join("Cargo.toml"))
                })
                .map(|built| &built.executable)
                .ok_or_else(|| ToolError::Build(format!("cargo built no {name} image")))?;
            // <target folder>/<triple>/<profile>/<executable>
            let target = executable.ancestors().nth(3).unwrap_or(executable);
            folder = target.join("parvisor");
            install(executable, &folder, name)
        };
    let (mut images, mut elves) = (Vec::new(), Vec::new());
    for (_, manifest_folder, name) in PACKAGES {
        let (image, elf) = lay_out(name, manifest_folder)?;
        images.push(image);
        elves.push(elf);
    }
    let [hypervisor, dirty_log, probe] = images
        .try_into()
        .map_err(|_| ToolError::Build("cargo built too few images".into()))?;
    Ok(Images {
        hypervisor,
        symbols: elves.swap_remove(0),
        dirty_log,
        probe,
    })
}

/// An executable that cargo reported.
struct Built {
    manifest: PathBuf,
    executable: PathBuf,
}

fn run_cargo() -> Result<Vec<Built>, ToolError> {
    let mut command = Command::new(cargo());
    command
        .current_dir(repository())
        .args(["build", "--profile", "firmware", "--target", TARGET]);
    for (package, _, _) in PACKAGES {
        command.args(["-p", package]);
    }
    without_foreign_flags(&mut command);
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
    let mut child = command
        .spawn()
        .map_err(|error| ToolError::Build(format!("cargo can't be run: {error}")))?;
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
    let mut executables = Vec::new();
    for report in reports.map_while(Result::ok) {
        match parse_report(&report) {
            Some(Report::Built(built)) => executables.push(built),
            Some(Report::Diagnostic(text)) => eprint!("{text}"),
            None => {}
        }
    }
    let status = child
        .wait()
        .map_err(|error| ToolError::Build(format!("cargo was lost: {error}")))?;
    if let Some(messages) = messages {
        // A thread that only copies lines has no result.
        let _ = messages.join();
    }
    if status.success() {
        Ok(executables)
    } else {
        Err(ToolError::Build("the images could not be built".into()))
    }
}

/// Shows what cargo prints, except the lines that only sum up: that all is well, or how many warnings there were.
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

/// What a line of cargo's reports is good for.
enum Report {
    Built(Built),
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
    let path = |field: &str| {
        report
            .get(field)
            .and_then(|value| value.as_str())
            .map(PathBuf::from)
    };
    Some(Report::Built(Built {
        manifest: path("manifest_path")?,
        executable: path("executable")?,
    }))
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
        replace(path, contents)
            .map_err(|error| ToolError::Build(format!("{}: {error}", path.display())))?;
    }
    Ok((image, symbols))
}

/// Replaces a file as a whole, unless it has these contents already.
fn replace(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    if fs::read(path).is_ok_and(|present| present == contents) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let name = path
        .file_name()
        .unwrap_or(OsStr::new("image"))
        .to_string_lossy();
    let partial = folder.join(format!(".{name}.{}", std::process::id()));
    let mut file = fs::File::create(&partial)?;
    file.write_all(contents)?;
    fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_read_from_cargos_reports() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/r/hyp/firmware/Cargo.toml","executable":"/t/a/firmware/parvisor"}"#;
        let Some(Report::Built(built)) = parse_report(line) else {
            panic!("not an artifact")
        };
        assert_eq!(built.executable, Path::new("/t/a/firmware/parvisor"));
        assert!(built.manifest.ends_with("hyp/firmware/Cargo.toml"));
        assert!(parse_report(r#"{"reason":"compiler-artifact","executable":null}"#).is_none());
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

    #[test]
    fn the_repository_holds_the_manifest_of_the_workspace() {
        assert!(repository().join("scripts/tool/Cargo.toml").is_file());
    }
}
