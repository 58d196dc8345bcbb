//! Linux guests by `scripts/run`: a terminal, a command, and files that aren't what they should be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use emulator::repository::repository;
use qemu_tests::pty::OnTerminal;
use tempfile::TempDir;

use crate::command::{build_beforehand, complaints, refused, script, wrapper};

/// A file with the header of an arm64 kernel, as far as it is checked.
pub(crate) fn kernel_like(folder: &Path) -> PathBuf {
    let mut image = vec![0; 4096];
    image[16..24].copy_from_slice(&4096_u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    let path = folder.join("Image");
    fs::write(&path, image).expect("the folder is ours");
    path
}

/// `scripts/run` with a kernel of the user's, on a terminal, with this instead of the emulator.
fn on_terminal(folder: &Path, emulator: &str) -> OnTerminal {
    build_beforehand();
    // A test that a shell has started in the background ignores these two, and so would the tool.
    let mut command = Command::new("env");
    command
        .arg("--default-signal=INT,QUIT")
        .arg(repository().join("scripts/run"))
        .arg("--kernel")
        .arg(kernel_like(folder))
        .env("QEMU", wrapper(folder, emulator))
        .current_dir(folder);
    OnTerminal::start(&mut command)
}

/// A machine that echoes what is typed, byte by byte.
const ECHO: &str = "echo begin; exec cat";

#[test]
fn each_key_goes_to_the_guest_and_ctrl_a_x_ends_it() {
    let folder = TempDir::new().expect("room for a folder");
    let mut run = on_terminal(folder.path(), ECHO);
    run.wait_for("begin");
    run.wait_until("raw mode", OnTerminal::is_raw);
    // Ctrl-C, Ctrl-Z, Ctrl-D and Ctrl-\ are the guest's, and a line needn't end.
    run.types(b"one\x03\x1a\x04\x1ctwo");
    run.wait_for("one\x03\x1a\x04\x1ctwo");
    run.types(b"\x01\x01.");
    run.wait_for("\x01.");
    run.types(b"\x01h");
    run.wait_for("Ctrl-A x");
    run.types(b"\x01x");
    let (status, complaints, as_before) = run.ends();
    assert_eq!(status.code(), Some(0), "{complaints}");
    assert!(as_before && !complaints.contains("error"), "{complaints}");
}

#[test]
fn a_guest_that_takes_no_input_is_ended_too() {
    let folder = TempDir::new().expect("room for a folder");
    let mut run = on_terminal(folder.path(), "echo begin; sleep 1000");
    run.wait_for("begin");
    run.wait_until("raw mode", OnTerminal::is_raw);
    for _ in 0..100 {
        run.types(&[b'x'; 2000]);
    }
    run.types(b"\x01x");
    let (status, complaints, as_before) = run.ends();
    assert_eq!((status.code(), as_before), (Some(0), true), "{complaints}");
}

#[test]
fn the_terminal_is_as_before_when_the_machine_has_ended() {
    let folder = TempDir::new().expect("room for a folder");
    for (says, status) in [
        ("echo begin; sleep 1; echo 'parvisor: exit status 0'", 0),
        ("echo begin; sleep 1; echo 'parvisor: exit status 1'", 1),
        ("echo begin; sleep 1; exit 1", 4),
    ] {
        let mut run = on_terminal(folder.path(), says);
        run.wait_for("begin");
        run.wait_until("raw mode", OnTerminal::is_raw);
        let (ended, complaints, as_before) = run.ends();
        assert_eq!(ended.code(), Some(status), "{says}: {complaints}");
        assert!(as_before, "{says}");
    }
}

/// SIGKILL too, which nobody can handle.
#[test]
fn the_terminal_is_as_before_when_a_signal_ends_the_tool() {
    let folder = TempDir::new().expect("room for a folder");
    for (signal, expected) in [
        ("-TERM", Some(143)),
        ("-HUP", Some(129)),
        ("-INT", Some(130)),
        ("-QUIT", None),
        ("-KILL", None),
    ] {
        let mut run = on_terminal(folder.path(), ECHO);
        run.wait_for("begin");
        run.wait_until("raw mode", OnTerminal::is_raw);
        // What restores it after a signal that can't be handled starts when the mode has changed.
        run.types(b"go");
        run.wait_for("go");
        let tool = run.child.id().to_string();
        let sent = Command::new("kill").args([signal, &tool]).status();
        assert!(sent.expect("kill is there").success());
        run.wait_until(signal, OnTerminal::is_as_before);
        let (status, complaints, as_before) = run.ends();
        assert_eq!(status.code(), expected, "{signal}: {complaints}");
        assert!(as_before, "{signal}");
    }
}

/// What a failed test does.
#[test]
fn a_program_on_a_terminal_that_is_given_up_leaves_no_emulator() {
    let folder = TempDir::new().expect("room for a folder");
    let number = folder.path().join("number");
    let says = format!("echo $$ > {}; echo begin; sleep 1000", number.display());
    let mut run = on_terminal(folder.path(), &says);
    run.wait_for("begin");
    drop(run);
    let number = fs::read_to_string(number).expect("the emulator has written it");
    let lives = || {
        let mut ask = Command::new("kill");
        ask.args(["-0", number.trim()]).stderr(Stdio::null());
        ask.status().expect("kill is there").success()
    };
    let end = Instant::now() + Duration::from_secs(60);
    while lives() {
        assert!(Instant::now() < end, "it lives on");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_comes_from_elsewhere_is_typed_and_its_end_ends_nothing() {
    let folder = TempDir::new().expect("room for a folder");
    let emulator = wrapper(
        folder.path(),
        "read -r line; echo \"got $line\"; sleep 1; echo 'parvisor: exit status 0'",
    );
    build_beforehand();
    let mut child = Command::new(repository().join("scripts/run"))
        .arg("--kernel")
        .arg(kernel_like(folder.path()))
        .env("QEMU", emulator)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the script can be run");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut stdin, b"hello\n").expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"got hello\n");
}

#[test]
fn files_that_are_no_kernel_or_missing_are_named() {
    let folder = TempDir::new().expect("room for a folder");
    let path = |name: &str, contents: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, contents).expect("the folder is ours");
        path.to_string_lossy().into_owned()
    };
    let sound = kernel_like(folder.path()).to_string_lossy().into_owned();
    let gzip = path("vmlinuz.gz", &[0x1f, 0x8b, 8, 0].repeat(99));
    let text = path("text", &b"no kernel\n".repeat(99));
    let nothing = path("nothing", b"");
    let initrd = path("initrd", &[1; 64 << 10]);
    let archive = path("cpio", &b"070701".repeat(20 << 10));
    let large = path(
        "large",
        &[fs::read(&sound).expect("ours"), vec![0; 128 << 10]].concat(),
    );
    let none = "/nowhere/at/all";
    let cases: &[(&[&str], &[&str])] = &[
        (&["--kernel", none], &["--kernel /nowhere/at/all: "]),
        (&["--kernel", "/"], &["--kernel /: "]),
        (
            &["--kernel", &gzip],
            &["vmlinuz.gz: ", "compressed with gzip"],
        ),
        (&["--kernel", &text], &["text: ", "magic number"]),
        (&["--kernel", &nothing], &["nothing: ", "0 bytes"]),
        (
            &["--kernel", &archive, "--bytes=64K"],
            &["cpio: ", "a cpio archive, as an initial ramdisk is"],
        ),
        (
            &["--kernel", &initrd, "--bytes=16K"],
            &["initrd: ", "magic number"],
        ),
        (
            &["--kernel", &large, "--bytes=64K"],
            &["large: it has 135168 bytes, and there is room for 65536"],
        ),
        (&["--firmware", &archive], &["cpio: ", "a cpio archive"]),
        (
            &["--kernel", &sound, "--initrd", none],
            &["--initrd /nowhere/at/all: "],
        ),
        (
            &["--kernel", &sound, "--initrd", "/"],
            &["--initrd /: ", "isn't a file"],
        ),
        (
            &["--kernel", &sound, "--initrd", &nothing],
            &["--initrd ", "empty"],
        ),
        (
            &["--kernel", &sound, "--initrd", &initrd, "--bytes=64K"],
            &["--kernel ", "64 KiB", "--bytes"],
        ),
        (
            &["--kernel", &sound, "--exec", "true"],
            &["--exec", "--kernel"],
        ),
        (&["--initrd", &initrd], &["--kernel"]),
        (&["--linux", "--initrd", &initrd], &["--linux", "--initrd"]),
        (&["--kernel", "/dev/zero"], &["/dev/zero: it isn't a file"]),
        (
            &["--firmware", "/dev/zero"],
            &["/dev/zero: it isn't a file"],
        ),
        (&["--exec", "true"], &["--linux"]),
        (&["--linux", "--exec", " "], &["--exec: ", "empty"]),
        (&["--cmdline", "quiet"], &["--cmdline: ", "--linux"]),
        (
            &["--kernel", &sound, "--cmdline", &"x".repeat(2048)],
            &["--cmdline: 2048 bytes"],
        ),
        (&["--firmware", none], &["--firmware /nowhere/at/all: "]),
        (
            &["--firmware", &nothing],
            &["--firmware ", "nothing: ", "is empty"],
        ),
        (
            &["--firmware", &gzip],
            &["vmlinuz.gz: ", "compressed with gzip"],
        ),
        (
            &["--firmware", &sound],
            &["Image: ", "which starts as a kernel"],
        ),
        (
            &["--linux", "--firmware", "--exec=true"],
            &["--firmware", "--exec"],
        ),
        (&["--linux=6"], &["'6' for '--linux", "like 6.12"]),
        (&["--linux", "--kernel", &sound], &["--linux", "--kernel"]),
        (&["--linux", "--iterations=2"], &["--linux", "--iterations"]),
        (
            &["--linux", "--gic=2", "--vcpus=8"],
            &["--vcpus 8", "--gic 2 serves at most 8"],
        ),
        (&["--linux", "--mode=mutex,parallel"], &["one mode"]),
        (
            &["--linux", "--append=console=lines"],
            &["option 'console' is given twice"],
        ),
    ];
    for (arguments, says) in cases {
        let text = refused(arguments);
        assert!(
            says.iter().all(|words| text.contains(words)),
            "{arguments:?}: {text}"
        );
    }
}

fn exec(arguments: &[&str], command: &str) -> Option<Output> {
    exec_in("--linux", arguments, command)
}

/// Runs a command in the guest of Debian's that `linux` names, unless this machine can't have one.
pub(crate) fn exec_in(linux: &str, arguments: &[&str], command: &str) -> Option<Output> {
    let folder = TempDir::new().expect("room for a folder");
    let all = [&[linux, "--exec", command], arguments].concat();
    let output = script("scripts/run", &all, folder.path(), None);
    if is_unavailable(&output) {
        eprintln!("skipped: {}", complaints(&output));
        return None;
    }
    Some(output)
}

/// Whether this machine can have Debian's Linux. Nothing is booted.
pub(crate) fn is_available() -> bool {
    let folder = TempDir::new().expect("room for a folder");
    let nothing = wrapper(folder.path(), "exit 1");
    let arguments = ["--linux", "--exec", "true"];
    let output = script("scripts/run", &arguments, folder.path(), Some(&nothing));
    let is_missing = is_unavailable(&output);
    if is_missing {
        eprintln!("skipped: {}", complaints(&output));
    }
    !is_missing
}

/// Whether Linux couldn't be fetched.
pub fn is_unavailable(output: &Output) -> bool {
    let text = complaints(output);
    let reasons = ["Debian's registry", "package lists can't be fetched"];
    output.status.code() == Some(1) && reasons.iter().any(|reason| text.contains(reason))
}

#[test]
fn a_command_prints_what_it_prints_and_its_status_is_the_scripts() {
    let command =
        "nproc; uname -m; printf 'a\\000\\001@\\r\\nparvisor: exit status 3\\nend'; exit 41";
    let Some(output) = exec(&["--vcpus=3"], command) else {
        return;
    };
    let text = complaints(&output);
    assert_eq!(output.status.code(), Some(41), "{text}");
    let expected = b"3\naarch64\na\0\x01@\r\nparvisor: exit status 3\nend";
    assert_eq!(output.stdout, expected, "{text}");
    let lines = text.lines().filter(|line| !line.starts_with("setup: "));
    assert_eq!(lines.count(), 0, "{text}");
}

#[test]
fn a_guest_that_ends_before_its_command_is_no_success() {
    let Some(output) = exec(&[], "poweroff -f") else {
        return;
    };
    let text = complaints(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("--exec: the guest ended before"), "{text}");
}

#[test]
fn a_shell_on_the_terminal_powers_the_guest_off() {
    if exec(&[], "true").is_none() {
        return;
    }
    let folder = TempDir::new().expect("room for a folder");
    let mut command = Command::new(repository().join("scripts/run"));
    command.arg("--linux").current_dir(folder.path());
    let mut run = OnTerminal::start(&mut command);
    run.wait_for("Booting Linux on physical CPU");
    run.wait_for("~ # ");
    run.types(b"echo $((6 * 7))\r");
    run.wait_for("\r\n42\r\n");
    run.wait_for("~ # ");
    // A command that prints has the terminal, and Ctrl-C is its own.
    run.types(b"sh -c 'echo go; exec sleep 1000'\r");
    run.wait_for("\r\ngo\r\n");
    run.types(b"\x03");
    run.wait_for("~ # ");
    run.types(b"poweroff\r");
    let (status, complaints, as_before) = run.ends();
    assert_eq!(status.code(), Some(0), "{complaints}");
    assert!(as_before);
}

#[test]
fn u_boot_boots_the_kernel_that_lies_beside_it() {
    if exec(&[], "true").is_none() {
        return;
    }
    let folder = TempDir::new().expect("room for a folder");
    let mut command = Command::new(repository().join("scripts/run"));
    command
        .args(["--linux", "--firmware"])
        .current_dir(folder.path());
    let mut run = OnTerminal::start(&mut command);
    run.wait_for("Hit any key to stop autoboot");
    run.types(b"\r");
    run.wait_for("=> ");
    run.types(b"booti 40400000 - ${fdtcontroladdr}\r");
    run.wait_for("Booting Linux on physical CPU");
    run.wait_for("~ # ");
    run.types(b"poweroff\r");
    let (status, complaints, as_before) = run.ends();
    assert_eq!((status.code(), as_before), (Some(0), true), "{complaints}");
}

#[test]
fn a_shell_ends_with_its_input() {
    if exec(&[], "true").is_none() {
        return;
    }
    let folder = TempDir::new().expect("room for a folder");
    let output = script("scripts/run", &["--linux"], folder.path(), None);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{text}{}",
        complaints(&output)
    );
    assert!(text.contains("~ # "), "{text}");
}
