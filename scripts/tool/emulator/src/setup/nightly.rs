//! The additional set-up of slow tests: Rust's nightly toolchain with Miri and the library's sources, and cargo-fuzz with a
//! C++ compiler. As in the rest of the set-up, installed versions stay.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{cargo, find_program, rustup, succeeds};
use crate::error::ToolError;

/// The toolchain that Miri and fuzzing need.
pub const NIGHTLY: &str = "nightly";

/// Makes sure that there is a nightly toolchain with Miri and the library's sources, by rustup where one is missing.
///
/// # Errors
///
/// What is missing and how to get it, if there is no rustup or it fails.
pub fn nightly() -> Result<(), ToolError> {
    if !succeeds(&mut of_nightly(&["rustc", "--version"])) {
        eprintln!("setup: installing Rust's nightly toolchain with miri and rust-src");
        let mut arguments = vec!["toolchain", "install", NIGHTLY, "--profile=minimal"];
        arguments.push("--component=miri,rust-src");
        return rustup(
            &arguments,
            "Rust's nightly toolchain is missing, which Miri and fuzzing need",
        );
    }
    if has_sources() && succeeds(&mut of_nightly(&["cargo", "miri", "--version"])) {
        return Ok(());
    }
    eprintln!("setup: adding miri and rust-src to Rust's nightly toolchain");
    rustup(
        &[
            "component",
            "add",
            "--toolchain",
            NIGHTLY,
            "miri",
            "rust-src",
        ],
        "miri or rust-src is missing in Rust's nightly toolchain",
    )
}

fn of_nightly(arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", NIGHTLY]).args(arguments);
    command
}

fn has_sources() -> bool {
    let sysroot = of_nightly(&["rustc", "--print", "sysroot"]).output();
    sysroot.is_ok_and(|output| {
        let path = String::from_utf8_lossy(&output.stdout);
        Path::new(path.trim())
            .join("lib/rustlib/src/rust/library")
            .is_dir()
    })
}

/// Makes sure that cargo-fuzz is installed, and that there is a C++ compiler to build libFuzzer with.
///
/// # Errors
///
/// What is missing and how to get it.
pub fn cargo_fuzz() -> Result<(), ToolError> {
    if find_program("c++".as_ref()).is_none() {
        return Err(ToolError::Setup(
            "a C++ compiler is missing, which libFuzzer is built with: install g++".into(),
        ));
    }
    if succeeds(Command::new(cargo()).args(["fuzz", "--version"])) {
        return Ok(());
    }
    eprintln!("setup: installing cargo-fuzz");
    let mut install = Command::new(cargo());
    install
        .args(["install", "cargo-fuzz", "--locked"])
        .env_remove("CARGO_BUILD_TARGET")
        .stdin(Stdio::null());
    if install.status().is_ok_and(|status| status.success()) {
        Ok(())
    } else {
        Err(ToolError::Setup(
            "cargo-fuzz is missing, and `cargo install cargo-fuzz --locked` failed".into(),
        ))
    }
}
