//! The build script of every guest: passes the linker script and the flags of a position-independent, self-relocating image
//! to the linker.

use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=../build.rs");
    println!("cargo::rerun-if-changed=../runtime/guest.ld");
    // Cargo knows the path of this folder, and puts it right when a clone is copied together with what was built there.
    let folder = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let script = Path::new(&folder).join("guest.ld");
    fs::copy("../runtime/guest.ld", &script).expect("the linker script can be copied");
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
