//! `scripts/run` as a user types it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use emulator::cargo::CargoCommand;
use emulator::repository::repository;
use qemu_tests::{images, quick_images};
use records::record::Record;
use tempfile::TempDir;

/// Runs a script of this tree in `folder`, with this emulator if it isn't to be the usual one.
pub(crate) fn script(
    name: &str,
    arguments: &[&str],
    folder: &Path,
    emulator: Option<&Path>,
) -> Output {
    build_beforehand();
    let mut command = Command::new(repository().join(name));
    command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null());
    if let Some(emulator) = emulator {
        command.env("QEMU", emulator);
    }
    command.output().expect("the script can be run")
}

/// Builds what the scripts would, so that they don't while other tests boot, and say nothing of it.
pub(crate) fn build_beforehand() {
    static BUILT: OnceLock<bool> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        images();
        quick_images();
        let packages = ["-p", "run", "-p", "linux", "-p", "bench", "-p", "verify"];
        let build = CargoCommand::new(["build", "--quiet"]);
        build.args(packages).run(|_| {})
    });
    assert!(built, "the commands behind the scripts can't be built");
}

fn run(arguments: &[&str], folder: &Path, emulator: Option<&Path>) -> Output {
    script("scripts/run", arguments, folder, emulator)
}

/// What a command complained about, without cargo's remarks on other cargos that run at the same time.
pub(crate) fn complaints(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("Blocking waiting"));
    lines.map(|line| format!("{line}\n")).collect()
}

pub(crate) fn refused(arguments: &[&str]) -> String {
    let folder = TempDir::new().expect("room for a folder");
    let output = run(arguments, folder.path(), None);
    let text = complaints(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    text
}

#[test]
fn bad_options_are_refused_in_one_line() {
    assert!(refused(&["--frobnicate"]).contains("--frobnicate"));
    assert!(refused(&["--vcpus", "4", "--smp", "4"]).contains("--vcpus"));
    assert!(refused(&["--gic", "2", "--smp", "9"]).contains("--gic"));
    assert!(refused(&["--bytes", "64M", "--mem", "128M"]).contains("--mem"));
    assert!(refused(&["--json", "/nowhere/at/all"]).contains("/nowhere/at/all"));
    assert!(refused(&["--guest", "/nowhere/at/all"]).contains("/nowhere/at/all"));
}

#[test]
fn an_unknown_cpu_model_is_refused() {
    assert!(refused(&["--cpu", "no-such-cpu"]).contains("no-such-cpu"));
}

#[test]
fn a_cpu_that_cant_run_it_is_named() {
    assert!(refused(&["--cpu", "cortex-a15"]).contains("--cpu cortex-a15: a CPU of 32 bits"));
}

#[test]
fn what_the_host_or_the_emulator_refuses_is_named_by_its_option() {
    let text = refused(&["--bytes", "64T"]);
    assert!(text.contains("'64T' for '--bytes <SIZE>'"), "{text}");
    let text = refused(&["--", "-m", "32M"]);
    assert!(text.starts_with("error: -- -m 32M: "), "{text}");
    let text = refused(&["--", "-M", "virtualization=off"]);
    assert!(
        text.contains("-M virtualization=off: ") && text.contains("EL1"),
        "{text}"
    );
    let text = refused(&["--", "-frobnicate"]);
    assert!(
        text.contains("-- -frobnicate: ") && text.contains("invalid option"),
        "{text}"
    );
}

#[test]
fn errors_are_said_once() {
    for append in ["selftest=foo", "help=yes", "inject=local"] {
        let folder = TempDir::new().expect("room for a folder");
        let output = run(&["--append", append], folder.path(), None);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &complaints(&output);
        let key = append.split('=').next().unwrap_or_default();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(
            said.matches(&format!("option '{key}'")).count(),
            1,
            "{said}"
        );
    }
}

#[test]
fn what_the_hypervisor_refuses_is_named_as_typed() {
    let text = refused(&["--vcpus=1", "--bytes=4M", "--slots=3"]);
    assert_eq!(
        text,
        "error: --slots 3 contradicts the memory, which is 2 pieces of 2M\n"
    );
    let text = refused(&["--vcpus=1", "--bytes=4M", "--append=ipa_bits=64"]);
    assert!(text.contains("option 'ipa_bits'"), "{text}");
    assert!(
        refused(&["--tracking=hardware", "--cpu=cortex-a72"]).contains("--tracking hardware needs")
    );
}

#[test]
fn a_guest_that_is_no_image_is_named() {
    let folder = TempDir::new().expect("room for a folder");
    let path = folder.path().join("guest");
    for (contents, says) in [
        (b"no image\n".repeat(99), "the magic number is missing"),
        (b"\x7fELF and more\n".repeat(99), "it is an ELF file"),
        (Vec::new(), "0 bytes are no header"),
    ] {
        fs::write(&path, contents).expect("the folder is ours");
        let text = refused(&["--guest", &path.to_string_lossy()]);
        assert!(text.contains("--guest ") && text.contains(says), "{text}");
    }
}

#[test]
fn a_self_test_that_passes_is_a_success() {
    let folder = TempDir::new().expect("room for a folder");
    let output = run(&["--append", "selftest=stage2"], folder.path(), None);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{text}{}",
        complaints(&output)
    );
    assert!(text.contains("parvisor: exit status 0"), "{text}");
}

/// An emulator that gives one result and then says no more.
fn one_result() -> String {
    let record = Record {
        mode: "mutex".into(),
        verified: true,
        ..Record::default()
    };
    let record = serde_json::to_string(&record).expect("it can be said");
    format!("echo '@record {record}'; sleep 1000")
}

#[test]
fn results_are_kept_when_a_run_fails_and_nothing_is_lost_where_there_are_none() {
    let folder = TempDir::new().expect("room for a folder");
    let file = folder.path().join("out.json");
    let json = ["--json", "out.json", "--host-timeout", "1"];
    fs::write(&file, "[]\n").expect("the folder is ours");
    let emulator = wrapper(folder.path(), "echo hello; exit 1");
    let output = run(&json, folder.path(), Some(&emulator));
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "[]\n");
    let emulator = wrapper(folder.path(), &one_result());
    let output = run(&json, folder.path(), Some(&emulator));
    assert_eq!(output.status.code(), Some(4), "{}", complaints(&output));
    assert_eq!(records(&file), 1);
}

#[test]
fn results_are_kept_when_the_user_ends_a_run() {
    let folder = TempDir::new().expect("room for a folder");
    let emulator = wrapper(folder.path(), &one_result());
    build_beforehand();
    let child = Command::new(repository().join("scripts/run"))
        .args(["--json", "out.json"])
        .current_dir(folder.path())
        .env("QEMU", &emulator)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let child = child.expect("the script can be run");
    let file = folder.path().join("out.json");
    while !file.exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // The script has become cargo, and that the tool.
    let interrupt = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(interrupt.expect("kill is there").success());
    let output = child.wait_with_output().expect("it ends");
    let text = complaints(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("what was measured is in out.json"), "{text}");
    assert_eq!(records(&file), 1);
}

/// Nobody can handle SIGKILL: the emulator is ended by what waits for the tool's end.
#[test]
fn the_emulator_ends_with_a_tool_that_is_killed() {
    let folder = TempDir::new().expect("room for a folder");
    let held = folder.path().join("held");
    let made = Command::new("mkfifo").arg(&held).status();
    assert!(made.expect("mkfifo is there").success());
    let emulator = wrapper(folder.path(), "exec 9> held; sleep 1000");
    build_beforehand();
    let mut child = Command::new(repository().join("scripts/run"))
        .current_dir(folder.path())
        .env("QEMU", &emulator)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("the script can be run");
    // Opened when the emulator has done so, it ends when the last of its processes has gone.
    let mut held = fs::File::open(&held).expect("it was made");
    // The script has become cargo, and that the tool.
    child.kill().expect("it is ours");
    child.wait().expect("it ends");
    held.read_to_end(&mut Vec::new()).expect("the end of it");
}

fn records(file: &Path) -> usize {
    let text = fs::read_to_string(file).expect("the file was written");
    let records: Vec<Record> = serde_json::from_str(&text).expect("an array of records");
    records.len()
}

#[test]
fn the_results_are_compared_and_written_as_json() {
    let folder = TempDir::new().expect("room for a folder");
    let arguments = [
        "--vcpus",
        "2",
        "--bytes",
        "4M",
        "--iterations",
        "2",
        "--mode",
        "rwlock",
        "--mode",
        "parallel",
        "--cpu",
        "max",
        "--json",
        "out.json",
    ];
    let output = run(&arguments, folder.path(), None);
    let (text, complaints) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(0), "{text}{complaints}");
    for words in [
        "Populate memory time: ",
        "| rwlock | parallel |",
        "| dirty 2 ",
        "| verified ",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let json = fs::read_to_string(folder.path().join("out.json")).expect("the file was written");
    let records: Vec<Record> = serde_json::from_str(&json).expect("an array of records");
    let modes: Vec<&str> = records.iter().map(|record| record.mode.as_str()).collect();
    assert_eq!(modes, ["rwlock", "parallel"]);
    assert!(
        records
            .iter()
            .all(|record| record.verified && record.cpu == "max" && record.gic == 3)
    );
}

/// A wrapper that stands in for the emulator and says these lines.
pub(crate) fn wrapper(folder: &Path, script: &str) -> PathBuf {
    let path = folder.join("emulator");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("room for a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    path
}

fn status_with(script_text: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let folder = TempDir::new().expect("room for a folder");
    let emulator = wrapper(folder.path(), script_text);
    let output = run(arguments, folder.path(), Some(&emulator));
    (output.status.code(), complaints(&output))
}

#[test]
fn the_exit_status_is_the_hypervisors() {
    assert_eq!(
        status_with("echo 'parvisor: exit status 3'", &[]).0,
        Some(3)
    );
    let (status, text) = status_with(
        "echo 'parvisor: error: x=1: bad'; echo 'parvisor: exit status 1'",
        &[],
    );
    assert_eq!((status, text.as_str()), (Some(1), "error: x=1: bad\n"));
}

#[test]
fn an_emulator_that_dies_is_status_4() {
    let (status, text) = status_with("echo hello; exit 1", &[]);
    assert_eq!(status, Some(4), "{text}");
    assert!(text.contains("hello"), "{text}");
}

#[test]
fn an_emulator_that_hangs_is_ended() {
    let (status, text) = status_with("echo hello; sleep 1000", &["--host-timeout", "1"]);
    assert_eq!(status, Some(4), "{text}");
}

#[test]
fn a_run_that_claims_to_be_good_without_results_fails() {
    assert_eq!(
        status_with("echo 'parvisor: exit status 0'", &[]).0,
        Some(1)
    );
}

#[test]
fn a_missing_emulator_is_named() {
    let folder = TempDir::new().expect("room for a folder");
    let output = run(&[], folder.path(), Some(Path::new("/nowhere/qemu")));
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/qemu"));
}
