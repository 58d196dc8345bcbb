//! Links the program for the RAM of QEMU's `virt`.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo says it");
    println!("cargo:rustc-link-arg-bins=-T{folder}/image.ld");
    println!("cargo:rerun-if-changed=image.ld");
}
