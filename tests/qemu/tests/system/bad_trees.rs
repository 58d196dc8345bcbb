//! Entered where it can't run, or with a device tree that can't be true: a clear message where there is a console,
//! else a parked CPU with a code in x19.

use std::sync::mpsc;
use std::thread;

use emulator::boot::Outcome;
use emulator::qemu::Machine;
use qemu_tests::qmp::Socket;
use qemu_tests::raw::{IMAGE, RawFiles, TREE};
use qemu_tests::{Boot, SHORT, describe, images, tree};

/// What x19 of a parked CPU begins with: "PARV".
const PARKED: u64 = 0x5041_5256_0000_0000;
/// Why a CPU is parked, as the README lists it.
const ENTERED_AT_EL3: u64 = 3;
const NO_DEVICE_TREE: u64 = 0x10;
/// An address at which the machine has nothing.
const OUTSIDE_MEMORY: u64 = 0x1_0000_0000_0000;

/// Boots a machine that is expected to park its CPU, and gives the code.
fn park_code(boot: &Boot) -> (u64, Outcome) {
    let socket = Socket::new().expect("room for a socket");
    let boot = boot.clone().arguments(socket.arguments());
    let (sender, receiver) = mpsc::channel();
    let runner = thread::spawn(move || {
        // The receiver waits for it.
        let _ = sender.send(boot.run());
    });
    let mut machine = socket.connect().expect("the machine listens");
    let x19 = machine
        .wait_for_register("X19", |x19| x19 >> 32 == PARKED >> 32)
        .expect("it has registers");
    machine.quit().expect("the machine ends");
    runner.join().expect("the machine was started");
    let outcome = receiver.recv().expect("an outcome");
    assert_eq!(
        x19 & !0xffff_ffff,
        PARKED,
        "x19 is {x19:#x}; {}",
        describe(&outcome)
    );
    (x19 & 0xffff_ffff, outcome)
}

fn good_tree(boot: &Boot) -> Vec<u8> {
    tree::of_machine(boot).to_dtb()
}

#[test]
fn without_el2_it_says_so() {
    let mut boot = Boot::benchmark(SHORT);
    boot.machine.el2 = false;
    boot.run_failed(&["EL1"]);
}

#[test]
fn entered_at_el3_it_says_so_and_parks() {
    let files = RawFiles::new();
    let boot = Boot::without_guest("").arguments(["-machine", "secure=on"]);
    let good = good_tree(&boot);
    let (code, outcome) = park_code(&files.machine(boot, TREE, Some(&good)));
    assert_eq!(code, ENTERED_AT_EL3);
    assert!(
        outcome.errors.iter().any(|error| error.contains("EL3")),
        "{}",
        describe(&outcome)
    );
}

#[test]
fn a_good_tree_from_any_boot_loader_is_enough() {
    let files = RawFiles::new();
    let boot = Boot::without_guest("");
    let mut good = tree::of_machine(&boot);
    tree::set_chosen(&mut good, "bootargs", &format!("{SHORT} log=info"));
    let module = Machine::module_address(boot.machine.memory);
    let guest = images().dirty_log.clone();
    let size = std::fs::metadata(&guest)
        .expect("the image was built")
        .len();
    tree::add_module(&mut good, module, size);
    let boot = files.machine(boot, TREE, Some(&good.to_dtb()));
    let outcome = qemu_tests::raw::load(boot, &guest, module, false).run_well();
    qemu_tests::assert_verified(&outcome, &["parallel"]);
}

#[test]
fn without_a_tree_it_parks() {
    let files = RawFiles::new();
    for x0 in [0, TREE, TREE + 4, OUTSIDE_MEMORY] {
        let (code, _) = park_code(&files.machine(Boot::without_guest(""), x0, None));
        assert_eq!(code, NO_DEVICE_TREE, "x0 = {x0:#x}");
    }
}

/// What is wrong with a tree, and how it is made so.
type Corruption = (&'static str, fn(&mut Vec<u8>));

#[test]
fn a_corrupt_tree_does_no_harm() {
    let boot = Boot::without_guest("");
    let good = good_tree(&boot);
    let corruptions: [Corruption; 5] = [
        ("another magic number", |tree| tree[0] ^= 0xff),
        ("a size beyond any tree", |tree| {
            tree[4..8].copy_from_slice(&u32::MAX.to_be_bytes())
        }),
        ("a size that cuts the tree", |tree| {
            tree[4..8].copy_from_slice(&64_u32.to_be_bytes())
        }),
        ("a structure block beyond the end", |tree| {
            tree[8..12].copy_from_slice(&0x7fff_0000_u32.to_be_bytes())
        }),
        ("a structure block of nonsense", |tree| {
            let start = u32::from_be_bytes([tree[8], tree[9], tree[10], tree[11]]) as usize;
            tree[start..start + 256].fill(0xa5);
        }),
    ];
    for (what, corrupt) in corruptions {
        let files = RawFiles::new();
        let mut bad = good.clone();
        corrupt(&mut bad);
        let (code, _) = park_code(&files.machine(boot.clone(), TREE, Some(&bad)));
        assert_eq!(code, NO_DEVICE_TREE, "{what}");
    }
}

fn refused_with(change: impl Fn(&mut dtoolkit::model::DeviceTree), words: &[&str]) {
    let files = RawFiles::new();
    let boot = Boot::without_guest("");
    let mut changed = tree::of_machine(&boot);
    change(&mut changed);
    files
        .machine(boot, TREE, Some(&changed.to_dtb()))
        .run_failed(words);
}

#[test]
fn a_tree_without_memory_is_refused() {
    refused_with(tree::remove_memory, &["memory"]);
}

#[test]
fn memory_that_does_not_hold_the_image_is_refused() {
    refused_with(
        |tree| tree::set_memory(tree, 0x5000_0000, 0x1000_0000),
        &["memory", "image"],
    );
}

#[test]
fn memory_that_wraps_around_is_refused() {
    refused_with(
        |tree| tree::set_memory(tree, 0x4000_0000, u64::MAX),
        &["memory"],
    );
}

#[test]
fn a_tree_without_cpus_or_interrupt_controller_is_refused() {
    refused_with(|tree| drop(tree.root.remove_child("cpus")), &["CPU"]);
    refused_with(
        |tree| drop(tree.root.remove_child("intc@8000000")),
        &["interrupt controller"],
    );
}

#[test]
fn a_guest_that_overlaps_the_hypervisor_is_refused() {
    refused_with(
        |tree| tree::add_module(tree, IMAGE + 0x1000, 0x10000),
        &["guest", "overlap"],
    );
    refused_with(
        |tree| tree::add_module(tree, TREE, 0x10000),
        &["guest", "overlap"],
    );
    refused_with(
        |tree| tree::add_module(tree, u64::MAX - 0xfff, 0x10000),
        &["module"],
    );
    refused_with(
        |tree| tree::add_module(tree, 0x1000, 0x10000),
        &["guest", "memory"],
    );
}
