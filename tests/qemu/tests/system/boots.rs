//! One image for every CPU model, interrupt controller, load address and number of CPUs.

use std::fs;

use emulator::qemu::{Gic, Module, ModuleKind};
use emulator::size::mib;
use qemu_tests::raw::RawFiles;
use qemu_tests::{Boot, SHORT, assert_verified, describe, emulates, images};

fn benchmark_on(cpu: &str, gic: Gic) {
    if !emulates(cpu) {
        eprintln!("this QEMU has no {cpu}");
        return;
    }
    let outcome = Boot::benchmark(SHORT).cpu(cpu).gic(gic).run_well();
    assert_verified(&outcome, &["parallel"]);
    let gics = outcome
        .records
        .iter()
        .map(|record| record.gic)
        .collect::<Vec<_>>();
    assert_eq!(gics, [gic.version()], "{}", describe(&outcome));
}

#[test]
fn cortex_a53_runs_it() {
    benchmark_on("cortex-a53", Gic::V2);
    benchmark_on("cortex-a53", Gic::V3);
}

#[test]
fn cortex_a72_runs_it() {
    benchmark_on("cortex-a72", Gic::V2);
    benchmark_on("cortex-a72", Gic::V3);
}

/// Its ID register says that there are GICv3 registers, also where the machine has a GICv2.
#[test]
fn a64fx_runs_it() {
    benchmark_on("a64fx", Gic::V2);
    benchmark_on("a64fx", Gic::V3);
}

#[test]
fn neoverse_n1_runs_it() {
    benchmark_on("neoverse-n1", Gic::V2);
    benchmark_on("neoverse-n1", Gic::V3);
}

#[test]
fn neoverse_n2_runs_it() {
    benchmark_on("neoverse-n2", Gic::V2);
    benchmark_on("neoverse-n2", Gic::V3);
}

#[test]
fn max_runs_it() {
    benchmark_on("max", Gic::V2);
    benchmark_on("max", Gic::V3);
}

/// The arm64 Image header has the offset from the start of RAM, at which QEMU then loads it, in its second word.
#[test]
fn it_runs_wherever_it_is_loaded() {
    let image = fs::read(&images().hypervisor).expect("the image was built");
    for offset in [0x20_0000_u64, 0x460_0000, 0x1000_0000] {
        let mut moved = image.clone();
        moved[8..16].copy_from_slice(&offset.to_le_bytes());
        let files = RawFiles::new();
        let boot = Boot::benchmark(SHORT).kernel(&files.write("moved.img", &moved));
        let outcome = boot.append("log=info").run_well();
        assert_verified(&outcome, &["parallel"]);
    }
}

#[test]
fn all_of_128_cpus_come_up() {
    let boot = Boot::benchmark(SHORT)
        .cpus(128)
        .memory(mib(1024))
        .append("log=info")
        .limit(180);
    let outcome = boot.run_well();
    assert!(
        outcome.line_with("128 CPUs").is_some(),
        "{}",
        describe(&outcome)
    );
    assert_verified(&outcome, &["parallel"]);
}

/// At a VMID rollover each CPU may hold one of the 255, and there has to be another one.
#[test]
fn as_many_cpus_as_vmids_are_refused() {
    let boot = Boot::benchmark(SHORT).cpu("cortex-a53").cpus(255);
    boot.memory(mib(1024))
        .run_refused(&["255 CPUs", "VMIDs of 8 bits", "254"]);
}

#[test]
fn eight_cpus_come_up_with_gicv2() {
    let outcome = Boot::benchmark(SHORT)
        .cpus(8)
        .gic(Gic::V2)
        .append("log=info")
        .run_well();
    assert!(
        outcome.line_with("8 CPUs").is_some(),
        "{}",
        describe(&outcome)
    );
}

#[test]
fn more_than_4_gigabytes_of_memory_are_used() {
    let outcome = Boot::benchmark(SHORT).memory(mib(6144)).run_well();
    assert_verified(&outcome, &["parallel"]);
}

#[test]
fn little_memory_is_enough() {
    let mut boot = Boot::without_guest(SHORT).memory(mib(128));
    boot = boot.guest(&images().dirty_log, None);
    assert_verified(&boot.run_well(), &["parallel"]);
}

/// As long as an argument of a program may be on Linux.
#[test]
fn long_arguments_of_many_modules_are_no_matter() {
    const MODULE: u64 = 8 << 20;
    let long = "x".repeat(120_000);
    let mut boot = Boot::benchmark(SHORT);
    let first = boot.machine.modules[0].clone();
    boot.machine.modules = (0..4)
        .map(|index| Module {
            kind: ModuleKind::Kernel,
            address: first.address + index * MODULE,
            bootargs: Some(long.clone()),
            ..first.clone()
        })
        .collect();
    assert_verified(&boot.run_well(), &["parallel"]);
    Boot::benchmark(&long).run_refused(&["'xxxxxxxx", "...'"]);
}
