//! What the documentation tells a reader to type does what it says.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use emulator::repository::repository;
use qemu_tests::{Boot, emulator, images};
use records::options::{BOOT_OPTIONS, EARLY_OPTIONS};
use tempfile::TempDir;

use crate::command::{complaints, script};

/// The first block of code after `intro` in a page of this tree, which begins with a fence of this kind.
fn block(page: &str, intro: &str, kind: &str) -> String {
    let text = read(page);
    let rest = text.split_once(intro).expect(intro).1;
    let (_, rest) = rest.split_once(&format!("```{kind}\n")).expect(kind);
    rest.split_once("```").expect("the block ends").0.into()
}

fn read(page: &str) -> String {
    fs::read_to_string(repository().join(page)).expect(page)
}

/// Runs lines of a shell in `folder`; gives what they print.
fn shell(lines: &str, folder: &Path) -> String {
    let output = Command::new("sh")
        .args(["-ec", lines])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output();
    let output = output.expect("sh starts");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{lines}\n{printed}\n{complained}");
    printed
}

const GUESTS: &str = "tests/guests/README.md";

#[test]
fn the_guest_of_the_page_is_built_and_run_by_its_commands() {
    let folder = TempDir::new().expect("room for a folder");
    let source = block(GUESTS, "prints a line", "rust");
    assert!(source.lines().count() <= 25, "it is to be short");
    fs::write(folder.path().join("hello.rs"), source).expect("room for a file");
    let commands = block(GUESTS, "build it and run it", "sh");
    let (build, run) = commands.trim().split_once('\n').expect("two commands");
    assert!(build.contains("hello.rs -o hello.img"));
    shell(build, folder.path());
    assert_eq!(run, "scripts/run --guest hello.img");
    let console = ["guest: hello", "program: the guest powered off"];
    for (option, lines) in [(None, &["hello"][..]), (Some("--verbose"), &console[..])] {
        let arguments: Vec<&str> = ["--guest", "hello.img"].into_iter().chain(option).collect();
        let output = script("scripts/run", &arguments, folder.path(), None);
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", complaints(&output));
        for line in lines {
            assert!(read(GUESTS).contains(line));
            assert!(printed.lines().any(|printed| printed == *line), "{printed}");
        }
    }
}

#[test]
fn the_bare_metal_example_of_stage2_boots_as_its_readme_says() {
    const README: &str = "hyp/stage2/README.md";
    let example = repository().join("hyp/stage2/examples/bare-metal");
    let commands = block(README, "Build and boot it from there", "sh");
    let (build, boot) = commands.trim().split_once('\n').expect("two commands");
    shell(build, &example);
    let boot = boot
        .strip_prefix("qemu-system-aarch64")
        .expect("an emulator");
    let expected = block(README, "Build and boot it from there", "text");
    let models = ["-cpu max", "-cpu cortex-a53", "-cpu neoverse-n1"];
    for cpu in models {
        let boot = boot.replace(models[0], cpu);
        // Its own time: a machine that hangs is ended.
        let printed = shell(
            &format!("timeout 60 {}{boot}", emulator().display()),
            &example,
        );
        assert_eq!(printed.replace('\r', ""), expected, "{cpu}");
    }
}

#[test]
fn the_page_has_the_numbers_of_the_calls() {
    let page = read(GUESTS);
    for (function, name) in [
        (abi::CONSOLE_PUT, "CONSOLE_PUT"),
        (abi::REPORT, "REPORT"),
        (abi::BALLOON, "BALLOON"),
        (abi::PREFAULT, "PREFAULT"),
    ] {
        let row = format!("| `{function:#x}` | {name} |");
        assert!(page.contains(&row), "{row}");
    }
    let (uid, revision) = (abi::VENDOR_UID, abi::VENDOR_REVISION);
    let row = format!("| `{uid:#x}`, `{revision:#x}` | VENDOR_UID, VENDOR_REVISION |");
    assert!(page.contains(&row), "{row}");
    let ram = format!("| `{:#x}` | RAM", records::options::RAM);
    assert!(page.contains(&ram), "{ram}");
}

#[test]
fn the_qemu_command_by_hand_runs_the_benchmark() {
    images();
    let text = read("README.md");
    let (_, rest) = text.split_once("by hand:\n\n").expect("the command");
    let (command, _) = rest.split_once("\n\n").expect("its end");
    assert!(command.trim_start().starts_with("qemu-system-aarch64 "));
    let name = emulator().display().to_string();
    let printed = shell(
        &command.replacen("qemu-system-aarch64", &format!("'{name}'"), 1),
        repository(),
    );
    assert!(
        printed.contains("Iteration 2 clear dirty log time: "),
        "{printed}"
    );
    assert!(printed.contains("parvisor: exit status 0"), "{printed}");
}

#[test]
fn help_lists_the_boot_options_and_ends_well() {
    let outcome = Boot::without_guest("vcpus=2 help").run_well();
    for option in BOOT_OPTIONS.iter().chain(&EARLY_OPTIONS) {
        let said = |line: &String| line.split_whitespace().next() == Some(option.key);
        assert!(outcome.lines.iter().any(said), "{}", option.key);
    }
    assert!(outcome.records.is_empty());
}
