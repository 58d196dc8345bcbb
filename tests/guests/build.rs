//! The build script of every guest: passes the linker script and the flags of a position-independent, self-relocating image
//! to the linker.

use std::env;
use std::path::Path;

fn main() {
    let directory = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let script = Path::new(&directory).join("../runtime/guest.ld");
    println!("cargo::rerun-if-changed=../build.rs");
    println!("cargo::rerun-if-changed={}", script.display());
    let arguments = [
        format!("--script={}", script.display()),
        "-pie".into(),
        "--no-dynamic-linker".into(),
        // The prebuilt core library isn't compiled for PIE: its read-only data needs relocations too.
        "-znotext".into(),
        "-zmax-page-size=4096".into(),
        "--gc-sections".into(),
        "--fatal-warnings".into(),
    ];
    for argument in arguments {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
