//! Options that are unknown, malformed, contradictory or can't be served: one line that names the culprit, status 2.

use emulator::size::mib;
use qemu_tests::raw::RawFiles;
use qemu_tests::{Boot, images, probe_guest};

fn refused(append: &str, words: &[&str]) {
    Boot::benchmark(append).run_refused(words);
}

#[test]
fn unknown_options_are_refused() {
    refused("colour=red", &["colour"]);
    refused("vcpus=2 randomly", &["randomly"]);
    refused("selftest=nonsense", &["selftest", "stage2, panic"]);
    refused("help=yes", &["help", "the word alone"]);
    refused("d\u{e9}bit=3", &["'d\u{e9}bit'"]);
}

#[test]
fn malformed_values_are_refused() {
    for option in [
        "mode=fast",
        "mode=",
        "vcpus=many",
        "vcpus=-1",
        "vcpus=99999999999999999999",
        "bytes=64T",
        "bytes=",
        "bytes",
        "backing=8M",
        "iterations=0",
        "write_percent=101",
        "write_percent=x",
        "seed=x",
        "ipa_bits=64",
        "ipa_bits=12",
        "timeout=0",
        "log=loud",
        "guest=nobody",
        "random=maybe",
        "split=half",
        "tracking=eyes",
        "granularity=1G",
        "harvest=basket",
        "ring_entries=100",
        "enable=yes",
        "clear=",
        "restore=later",
        "split_chunk=big",
        "slots=0",
        "exit_times=1",
        "merging=0",
        "console=both",
        "on_reset=maybe",
        "on_crash=maybe",
        "vm=",
        "merge_targets=disk",
        "pages_to_scan=0",
        "sleep_millisecs=-1",
        "max_page_sharing=1",
    ] {
        let name = option.split('=').next().unwrap_or(option);
        refused(option, &[name]);
    }
}

#[test]
fn options_that_are_given_twice_are_refused() {
    refused("vcpus=1 vcpus=1", &["vcpus"]);
    refused("mode=parallel,parallel", &["mode"]);
}

#[test]
fn contradictions_are_refused() {
    refused(
        "guest=program iterations=2",
        &["iterations", "guest=program"],
    );
    refused(
        "guest=program mode=mutex,parallel",
        &["mode", "guest=program"],
    );
    refused("ipa_bits=32 vcpus=2 bytes=2G", &["ipa_bits=32"]);
    for with in ["tracking=hardware", "enable=all_set", "clear=with_get"] {
        refused(&format!("harvest=ring {with}"), &["harvest=ring", with]);
    }
    refused("vcpus=1 bytes=4M slots=3", &["slots=3", "2 pieces of 2M"]);
    refused("slots=501", &["slots=501", "500 slots"]);
    refused("guest=stress split=none", &["split", "guest=stress"]);
    refused("pages_to_scan=9", &["pages_to_scan", "merging"]);
    refused(
        "guest=backing workload=merge merging",
        &["merging", "workload=merge"],
    );
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    refused("bytes=0", &["bytes"]);
    refused("bytes=5000", &["bytes"]);
    refused("bytes=18446744073709551615", &["bytes"]);
    refused("bytes=17179869183G vcpus=2", &["bytes"]);
}

#[test]
fn mitigations_are_on_or_off() {
    refused("mitigations=some", &["mitigations", "auto, on or off"]);
    refused("mitigations=off mitigations=off", &["mitigations", "twice"]);
}

#[test]
fn more_vcpus_than_cpus_are_refused() {
    Boot::benchmark("vcpus=3").cpus(3).run_refused(&["vcpus"]);
    Boot::benchmark("vcpus=1").cpus(1).run_refused(&["vcpus"]);
    Boot::benchmark("vcpus=2 merging")
        .cpus(3)
        .run_refused(&["vcpus=2 merging", "4 CPUs"]);
    refused("vcpus=0", &["vcpus"]);
    refused("vcpus=4294967297", &["vcpus"]);
}

#[test]
fn bytes_that_do_not_fit_are_refused() {
    Boot::benchmark("vcpus=2 bytes=256M").run_refused(&["memory"]);
    Boot::benchmark("vcpus=2 bytes=64G").run_refused(&["memory"]);
}

#[test]
fn a_missing_guest_is_named() {
    Boot::without_guest("vcpus=2 bytes=4M").run_refused(&["no guest"]);
    Boot::without_guest("guest=program vcpus=1").run_refused(&["no guest"]);
}

#[test]
fn a_truncated_guest_is_refused() {
    let whole = std::fs::read(&images().dirty_log).expect("the image was built");
    for length in [whole.len() / 2, 64, 63, 1] {
        let files = RawFiles::new();
        let image = files.write("short.img", &whole[..length]);
        let boot = Boot::without_guest("vcpus=1 bytes=4M timeout=20").guest(&image, None);
        boot.run_refused(&["guest"]);
    }
}

#[test]
fn a_guest_that_is_no_image_is_refused() {
    let files = RawFiles::new();
    let image = files.write("text.img", &b"not an image at all\n".repeat(500));
    Boot::without_guest("vcpus=1 bytes=4M timeout=20")
        .guest(&image, None)
        .run_refused(&["guest"]);
}

#[test]
fn a_guest_program_must_fit_into_its_memory() {
    let boot = Boot::without_guest("guest=program vcpus=1 bytes=4K backing=4K").memory(mib(512));
    boot.guest(probe_guest(), None).run_refused(&["guest"]);
}

/// The hypervisor with these options for Linux, a kernel, and an initial ramdisk if there is to be one.
fn refused_files(options: &str, kernel: &[u8], ramdisk: Option<&[u8]>, words: &[&str]) {
    let files = RawFiles::new();
    let append = format!("guest=linux vcpus=1 bytes=64M {options}");
    let boot = Boot::without_guest(&append).guest(&files.write("kernel", kernel), None);
    let ramdisk = ramdisk.map(|bytes| files.write("ramdisk", bytes));
    let loader =
        ramdisk.map(|path| format!("guest-loader,addr={RAMDISK:#x},initrd={}", path.display()));
    boot.arguments(loader.iter().flat_map(|loader| ["-device", loader]))
        .run_refused(words);
}

/// Where the ramdisk is: behind the kernel.
const RAMDISK: u64 = 0x5000_0000;

/// A kernel that takes so much memory.
fn kernel(size: u64) -> Vec<u8> {
    let mut kernel = vec![0; 4096];
    kernel[16..24].copy_from_slice(&size.to_le_bytes());
    kernel[56..60].copy_from_slice(b"ARM\x64");
    kernel
}

#[test]
fn a_fork_without_cpus_of_its_own_is_refused() {
    let files = RawFiles::new();
    let boot = Boot::without_guest("guest=linux vcpus=2 bytes=64M fork=7").cpus(4);
    boot.guest(&files.write("kernel", &kernel(1 << 20)), None)
        .run_refused(&[
            "vcpus=2 fork=7 needs 5 CPUs",
            "2 for the fork",
            "there are 4",
        ]);
}

#[test]
fn a_kernel_that_cant_be_started_is_named() {
    let all = |kernel: &[u8], words: &[&str]| refused_files("", kernel, None, words);
    all(&kernel(1 << 20)[..63], &["the guest's kernel is truncated"]);
    all(&[b'x'; 4096], &["the guest's kernel isn't an arm64 Image"]);
    for (magic, word) in [
        (&b"\x1f\x8b"[..], "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"MZ\0\0zimg", "zboot"),
        (b"\x7fELF", "ELF"),
    ] {
        let mut file = kernel(1 << 20);
        file[..magic.len()].copy_from_slice(magic);
        all(&file, &["the guest's kernel is ", word]);
    }
    all(
        &kernel(63 << 20),
        &["the guest's kernel is too large for its 64 MiB of memory"],
    );
}

#[test]
fn a_ramdisk_that_doesnt_fit_is_named() {
    let words = ["the guest's initial ramdisk is too large for its 64 MiB of memory"];
    refused_files("", &kernel(60 << 20), Some(&[1; 3 << 20]), &words);
}

#[test]
fn options_that_arent_for_linux_are_refused() {
    refused("guest=linux iterations=2", &["iterations", "guest=linux"]);
    refused("guest=program console=raw", &["console", "guest=program"]);
    refused("guest=linux mode=mutex,parallel", &["guest=linux"]);
    refused("guest=linux vcpus=200", &["vcpus=200"]);
}
