//! Several VMs in one boot: what one does concerns no other, each has its lines of the console, and what can't be is refused.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use dtoolkit::fdt::Fdt;
use emulator::boot::Outcome;
use emulator::qemu::{Machine, Module, ModuleKind};
use emulator::repository::repository;
use emulator::size::mib;
use qemu_tests::pty::OnTerminal;
use qemu_tests::raw::{RawFiles, TREE, load};
use qemu_tests::{Boot, SHORT, assert_verified, describe, probe_guest, quick_images, tree};
use tempfile::TempDir;

use crate::command::{complaints, refused, script};
use crate::debian::{BEGIN, Debian, END, LINUX_LIMIT, QUIET};
use crate::guests::exits;
use crate::linux::{is_available, kernel_like};

/// What the smallest kernels do in the end.
#[derive(Clone, Copy)]
enum End {
    PowerOff,
    Reset,
    /// Without exception vectors it can't go on.
    Crash,
}

/// Prints w2: x1 has the UART's address.
const PRINT_W2: u32 = 0xb900_0022; // str w2, [x1]

/// Sets a lower half of a register: movz w, #value.
fn set_w2(value: u8) -> u32 {
    0x5280_0002 | u32::from(value) << 5
}

/// Sets a register to an address in RAM, in MiB: movz x, #address, lsl #16.
fn set_address(register: u32, mib: u32) -> u32 {
    0xd2a0_0000 | (0x4000 + mib * 16) << 5 | register
}

/// A kernel that prints a text and ends.
fn kernel(text: &str, end: End) -> Vec<u8> {
    let print = text.bytes().flat_map(|byte| [set_w2(byte), PRINT_W2]);
    kernel_that(print, end)
}

/// A kernel that does this and ends.
fn kernel_that(does: impl IntoIterator<Item = u32>, end: End) -> Vec<u8> {
    const HEADER: usize = 64;
    const UART: u32 = 0x0900;
    let mut code = vec![0xd2a0_0001 | UART << 5]; // movz x1, #UART, lsl #16
    code.extend(does);
    code.extend(match end {
        // movz w0, #function; movk w0, #0x8400, lsl #16; hvc #0
        End::PowerOff => vec![0x5280_0100, 0x72b0_8000, 0xd400_0002],
        End::Reset => vec![0x5280_0120, 0x72b0_8000, 0xd400_0002],
        End::Crash => vec![0],
    });
    let mut image = vec![0; HEADER];
    image[..4].copy_from_slice(&0x1400_0010_u32.to_le_bytes()); // b HEADER
    image[16..24].copy_from_slice(&0x40_0000_u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image.extend(code.into_iter().flat_map(u32::to_le_bytes));
    image
}

/// A machine with these kernels, and files that must live as long. Gives their addresses too.
fn machine(append: &str, kernels: &[&[u8]]) -> (Boot, RawFiles, Vec<u64>) {
    let (mut boot, files) = (Boot::quick(append).cpus(6), RawFiles::new());
    let mut addresses = Vec::new();
    for (number, kernel) in kernels.iter().enumerate() {
        let address = Machine::module_address(mib(512)) + ((number as u64) << 21);
        boot.machine.modules.push(Module {
            kind: ModuleKind::Kernel,
            image: files.write(&format!("kernel{number}"), kernel),
            address,
            bootargs: None,
        });
        addresses.push(address);
    }
    (boot, files, addresses)
}

/// What the VM of this name has printed, line by line.
fn lines_of(outcome: &Outcome, name: &str) -> Vec<String> {
    let tag = format!("[{name}] ");
    let lines = outcome.lines.iter();
    let of = lines.filter_map(|line| line.strip_prefix(&tag));
    of.map(String::from).collect()
}

/// How many VMs have ended and left no frame.
fn ends(outcome: &Outcome) -> usize {
    let ends = outcome.lines.iter();
    let ends = ends.filter(|line| line.ends_with("after its end: table 0 guest 0 pending 0"));
    ends.count()
}

#[test]
fn one_vms_end_reset_or_crash_is_no_others() {
    let well = kernel("[b] well\n[a] parvisor: exit status 0\nwell", End::PowerOff);
    let crashes = kernel("crash\n", End::Crash);
    let resets = kernel("reset\n", End::Reset);
    let (boot, _files, at) = machine("console=raw", &[&well, &crashes, &resets]);
    let boot = boot.append(&format!(
        "vm=name=a,bytes=16M,kernel={:#x} vm=name=b,bytes=16M,kernel={:#x},on_crash=restart vm=name=c,bytes=16M,kernel={:#x},on_reset=stop \
         vm=name=d,bytes=16M,kernel={:#x}",
        at[0], at[1], at[2], at[1]
    ));
    let outcome = boot.run();
    let [error] = &outcome.errors[..] else {
        panic!("{}", describe(&outcome));
    };
    assert_eq!(outcome.status, Some(1), "{}", describe(&outcome));
    let says = [
        "VM b: an exception led the guest",
        "5 times soon after its start",
        "VM c: the guest asked for a reset",
        "VM d: an exception led the guest",
    ];
    assert!(says.iter().all(|words| error.contains(words)), "{error}");
    assert!(!error.contains("VM a"), "{error}");
    let of_a = lines_of(&outcome, "a");
    assert_eq!(of_a, ["[b] well", "[a] parvisor: exit status 0", "well"]);
    assert_eq!(lines_of(&outcome, "b"), ["crash"; 5]);
    assert_eq!(lines_of(&outcome, "c"), ["reset"]);
    assert_eq!(lines_of(&outcome, "d"), ["crash"]);
    assert_eq!(ends(&outcome), 8, "{}", describe(&outcome));
}

/// Each reads a byte of its kernel's, writes it, and reads it again. One of them has the same kernel from another address.
#[test]
fn vms_with_the_same_kernel_share_it_until_they_write() {
    let code = [
        set_address(5, 1),
        0x3940_00a2, // ldrb w2, [x5]
        PRINT_W2,
        set_w2(b'y'),
        0x3900_00a2, // strb w2, [x5]
        0x3940_00a2, // ldrb w2, [x5]
        PRINT_W2,
        set_w2(b'\n'),
        PRINT_W2,
    ];
    let mut writes = kernel_that(code, End::PowerOff);
    writes.resize(3 << 20, b'x');
    let well = kernel("well\n", End::PowerOff);
    let (mut boot, _files, mut at) = machine("", &[&writes, &writes, &well]);
    // They need more than the usual 2 MiB.
    for (number, (module, at)) in boot.machine.modules.iter_mut().zip(&mut at).enumerate() {
        module.address += (number as u64) << 22;
        *at = module.address;
    }
    let vm = |name: &str, kernel: u64| format!("vm=name={name},bytes=16M,kernel={kernel:#x}");
    let boot = boot
        .append(&vm("a", at[0]))
        .append(&vm("b", at[0]))
        .append(&vm("c", at[1]))
        .append(&vm("d", at[2]));
    let outcome = boot.run_well();
    for (name, says) in [("a", "xy"), ("b", "xy"), ("c", "xy"), ("d", "well")] {
        assert_eq!(lines_of(&outcome, name), [says], "{}", describe(&outcome));
    }
    let shared = outcome.line_with("3 VMs share a file of 3 MiB until they write it");
    assert!(shared.is_some(), "{}", describe(&outcome));
    let others = outcome
        .lines
        .iter()
        .filter(|line| line.contains(" share a file of "));
    assert_eq!(others.count(), 1, "{}", describe(&outcome));
    assert_eq!(ends(&outcome), 4, "{}", describe(&outcome));
}

/// The accesses to the UART are all exits that are left.
#[test]
fn memory_that_is_populated_ahead_takes_no_faults() {
    const FROM: u32 = 64;
    const TO: u32 = 128;
    let code = [
        set_address(3, FROM),
        set_address(4, TO),
        0xf900_007f, // str xzr, [x3]
        0x9140_0463, // add x3, x3, #1, lsl #12
        0xeb04_007f, // cmp x3, x4
        0x54ff_ffa3, // b.lo to the store
    ];
    let touches = kernel_that(code, End::PowerOff);
    let (boot, _files, at) = machine("", &[&touches]);
    let boot = boot.append(&format!("vm=name=a,bytes=160M,kernel={:#x}", at[0]));
    let faults = |boot: &Boot| {
        let outcome = boot.run_well();
        exits(&outcome, "exits_translation_fault")
    };
    let (touched, ahead) = (faults(&boot), faults(&boot.clone().append("prefault")));
    // With blocks of 2 MiB.
    let expected = u64::from(TO - FROM) / 2;
    assert!(touched >= ahead + expected, "{touched} {ahead}");
    let refused = boot.append("prefault overcommit=150");
    refused.run_refused(&["'prefault'", "overcommit"]);
}

#[test]
fn a_benchmark_runs_beside_vms() {
    let well = kernel("well\n", End::PowerOff);
    let (boot, _files, at) = machine(
        &format!("guest=dirty_log mode=mutex,parallel {SHORT}"),
        &[&well],
    );
    let benchmark = Module {
        kind: ModuleKind::Kernel,
        image: quick_images().dirty_log.clone(),
        address: at[0] + (1 << 21),
        bootargs: None,
    };
    let mut boot = boot.append(&format!(
        "vm=name=a,bytes=16M,kernel={:#x} vm=name=b,bytes=16M,kernel={:#x}",
        at[0], at[0]
    ));
    boot.machine.modules.push(benchmark);
    let outcome = boot.run_well();
    assert_verified(&outcome, &["mutex", "parallel"]);
    for name in ["a", "b"] {
        assert_eq!(lines_of(&outcome, name), ["well"]);
    }
}

#[test]
fn a_benchmark_runs_beside_two_debians() {
    let command = "echo up $(nproc) $(cat /proc/cmdline); sleep 1; \
        dd if=/dev/urandom of=/dev/shm/a bs=1M count=8 2>/dev/null; cp /dev/shm/a /dev/shm/b; cmp /dev/shm/a /dev/shm/b";
    let Some(debian) = Debian::with(command) else {
        return;
    };
    let options = "guest=dirty_log mode=mutex,rwlock,parallel vcpus=2 bytes=16M iterations=30";
    let boot = Boot::quick(options).cpus(6).memory(mib(1024));
    let boot = boot.limit(LINUX_LIMIT);
    let (boot, [kernel, initrd]) = debian.load(boot, None, &[&quick_images().dirty_log]);
    let vm = |name: &str, vcpus: u32| {
        format!(
            "vm=name={name},vcpus={vcpus},bytes=192M,kernel={kernel:#x},initrd={initrd:#x},cmdline='{QUIET} i_am={name}'"
        )
    };
    let outcome = boot.append(&vm("a", 2)).append(&vm("b", 1)).run_well();
    assert_verified(&outcome, &["mutex", "rwlock", "parallel"]);
    for (name, cpus) in [("a", 2), ("b", 1)] {
        let lines = lines_of(&outcome, name);
        let begin = lines.iter().position(|line| line == BEGIN);
        let printed = begin.map(|at| &lines[at + 1..]).unwrap_or_default();
        let up = format!("up {cpus} {QUIET} i_am={name}");
        assert!(
            printed.contains(&up) && printed.iter().any(|line| line == END),
            "{name}: {lines:?} {}",
            describe(&outcome)
        );
    }
    // They ran when the benchmark began, and it ran when they had begun.
    let at = |text: &str| outcome.lines.iter().position(|line| line.starts_with(text));
    let begins = at("== mode mutex").expect("a heading");
    for (name, vm) in [("a", 8), ("b", 9)] {
        let started = at(&format!("VM {vm} is {name}: "));
        let ended = at(&format!("VM {vm}, {name}: the guest powered off"));
        let beside = started.is_some_and(|at| at < begins) && ended.is_some_and(|at| at > begins);
        assert!(beside, "{name}: {}", describe(&outcome));
    }
    assert_eq!(ends(&outcome), 2 + 3, "{}", describe(&outcome));
}

/// It has it again after its reset.
#[test]
fn one_of_several_vms_has_a_device_and_its_interrupt() {
    let well = kernel("well\n", End::PowerOff);
    let (mut boot, _files, at) = machine("", &[&well]);
    let probe = at[0] + (1 << 21);
    boot.machine.modules.push(Module {
        kind: ModuleKind::Kernel,
        image: probe_guest().into(),
        address: probe,
        bootargs: None,
    });
    let boot = boot
        .append(&format!(
            "vm=name=a,bytes=16M,device=/pl061@9030000,kernel={:#x}",
            at[0]
        ))
        .append(&format!(
            "vm=name=b,vcpus=2,bytes=64M,kernel={probe:#x},device=/pl031@9010000,cmdline=alarm"
        ));
    let outcome = boot.run_well();
    assert_eq!(lines_of(&outcome, "a"), ["well"]);
    let says = "alarm: interrupt 95, all as it should be";
    assert!(
        lines_of(&outcome, "b").iter().any(|line| line == says),
        "{}",
        describe(&outcome)
    );
}

/// A tree with these VMs of dom0less, each with the kernel at an address.
fn with_domains(boot: &Boot, domains: &[(&str, Option<u32>, u64)], size: u64) -> Vec<u8> {
    let mut tree = tree::of_machine(boot);
    for (name, cpus, kernel) in domains {
        tree::add_domain(&mut tree, name, *cpus, 16 << 10, (*kernel, size));
    }
    tree.to_dtb()
}

#[test]
fn the_trees_vms_are_run_as_xen_runs_them() {
    let files = RawFiles::new();
    let well = kernel("well\n", End::PowerOff);
    let (file, at) = (files.write("kernel", &well), TREE + (32 << 20));
    let boot = || load(Boot::without_guest(""), &file, at, false);
    let boots = |domains: &[(&str, Option<u32>, u64)]| {
        let tree = with_domains(&Boot::without_guest(""), domains, well.len() as u64);
        assert!(Fdt::new(&tree).is_ok());
        files.machine(boot(), TREE, Some(&tree))
    };
    let outcome = boots(&[("domU1", Some(1), at), ("domU2", Some(1), at)]).run_well();
    for name in ["domU1", "domU2"] {
        assert_eq!(lines_of(&outcome, name), ["well"], "{}", describe(&outcome));
    }
    boots(&[("domU1", Some(1), at), ("domU2", None, at)])
        .run_refused(&["VM domU2: ", "property 'cpus'"]);
    boots(&[("domU1", Some(1), at), ("domU2", Some(2), at)]).run_refused(&[
        "VM domU2: ",
        "2 vCPUs",
        "of 3 there are 1 left",
    ]);
    boots(&[("domU1", Some(1), at), ("domU2", Some(1), at + 16)])
        .run_failed(&["guest module", "overlaps guest module"]);
}

#[test]
fn vms_that_cant_be_are_refused_by_name() {
    let well = kernel("", End::PowerOff);
    let (boot, _files, at) = machine(
        "",
        &[
            &well,
            b"no kernel, but long enough to have the header of one, which this isn't",
        ],
    );
    let refuses = |vms: &str, says: &[&str]| {
        let vms = vms.replace("GOOD", &format!("{:#x}", at[0]));
        let vms = vms.replace("BAD", &format!("{:#x}", at[1]));
        boot.clone().append(&vms).run_refused(says);
    };
    let a = "vm=name=a,bytes=16M,kernel=GOOD";
    refuses(&format!("{a},colour=red"), &["VM 'a'", "'colour'"]);
    refuses(&format!("{a} {a}"), &["VM a", "given twice"]);
    refuses(
        &format!("{a} vm=name=b,kernel=0x1000"),
        &["VM b", "no module", "0x1000"],
    );
    refuses(
        &format!("{a} vm=name=b,kernel=BAD"),
        &["VM b", "magic number"],
    );
    refuses(
        &format!("{a} vm=name=b,vcpus=5,kernel=GOOD"),
        &["VM b", "5 vCPUs", "of 6 there are 4 left"],
    );
    refuses(
        &format!("{a} vm=name=b,bytes=1G,kernel=GOOD"),
        &["VM b", "memory", "1 GiB"],
    );
    refuses(&format!("{a} vcpus=2"), &["'vcpus'"]);
    let b = "vm=name=b,bytes=16M,kernel=GOOD";
    refuses(
        &format!("device=/pl031@9010000 {a} {b}"),
        &["'device'", "each of which has its own"],
    );
    refuses(
        &format!("{a},device=/pl031@9010000 {b},device=/pl061@9030000,/pl031@9010000"),
        &["VM b", "/pl031@9010000", "another guest has it"],
    );
    refuses(
        &format!("{a} {b},device=/pl031@9010000,/pl031@9010000"),
        &["VM 'b'", "'/pl031@9010000' twice"],
    );
    refuses(
        &format!("{a} {b},device=/nothing@9010000"),
        &["VM b", "/nothing@9010000", "no such node"],
    );
    refuses(&format!("fork=1 {a}"), &["'fork'"]);
}

#[test]
fn what_is_wrong_with_a_vm_is_said_before_anything_is_built() {
    let folder = TempDir::new().expect("room for a folder");
    let sound = kernel_like(folder.path());
    let with = |vm: &str| vm.replace("KERNEL", &sound.to_string_lossy());
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["--vm", "name=a,colour=red"],
            &["--vm", "colour=red: expected name="],
        ),
        (&["--vm", "name=1"], &["--vm", "a letter first"]),
        (
            &["--vm", "name=a", "--vm", "name=a"],
            &["--vm", "the name a is there twice"],
        ),
        (
            &["--vm", "name=a,kernel=/nowhere/at/all"],
            &["--vm a: kernel=/nowhere/at/all: "],
        ),
        (
            &["--vm", "name=a,kernel=KERNEL,initrd=/"],
            &["--vm a: initrd=/: ", "isn't a file"],
        ),
        (
            &["--vm", "name=a,kernel=KERNEL,bytes=4K"],
            &["--vm a: kernel=", "bytes= gives it more"],
        ),
        (
            &["--vm", "vcpus=4", "--vm", "vcpus=4", "--gic=2"],
            &["--vm need 8 CPUs", "--gic 2 serves at most 8"],
        ),
        (
            &["--vm", "vcpus=4", "--smp=4"],
            &["--smp 4: too few CPUs", "--vm"],
        ),
        (
            &["--vm", "bytes=512M", "--mem=512M"],
            &["--mem: the VMs of --vm"],
        ),
        (&["--vm", "name=a", "--kernel", "x"], &["--kernel"]),
        (&["--vm", "name=a", "--vcpus=2"], &["--vcpus"]),
        (
            &["--console-log", "/tmp/x"],
            &["--console-log: needs --linux"],
        ),
        (
            &[
                "--vm",
                "name=a,kernel=KERNEL",
                "--console-log",
                "/dev/null/x",
            ],
            &["--console-log /dev/null/x: "],
        ),
        (
            &["--vm", "name=a,kernel=KERNEL", "--console-log", "KERNEL"],
            &["--console-log ", "this is a file"],
        ),
    ];
    for (arguments, says) in cases {
        let arguments: Vec<String> = arguments.iter().map(|word| with(word)).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let text = refused(&arguments);
        assert!(
            says.iter().all(|words| text.contains(words)),
            "{arguments:?}: {text}"
        );
    }
}

/// First that of the VM which has the input, then the other one's.
#[test]
fn the_shells_of_several_vms_end_with_their_input() {
    if !is_available() {
        return;
    }
    let folder = TempDir::new().expect("room for a folder");
    let arguments = [
        "--vm",
        "name=one,bytes=192M,cmdline=quiet",
        "--vm",
        "name=other,bytes=192M,cmdline=quiet",
    ];
    let output = script("scripts/run", &arguments, folder.path(), None);
    let text = String::from_utf8_lossy(&output.stdout);
    let complaints = complaints(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{complaints}");
    let at = |line: &str| text.find(line).unwrap_or_else(|| panic!("{line}: {text}"));
    assert!(at("one: the guest powered off") < at("other: the guest powered off"));
}

#[test]
fn a_linux_vm_panics_and_starts_again_while_another_goes_on() {
    if !is_available() {
        return;
    }
    let folder = TempDir::new().expect("room for a folder");
    let mut command = Command::new(repository().join("scripts/run"));
    command
        .args(["--vm", "name=steady,bytes=192M,cmdline=quiet"])
        .args(["--vm", "name=shaky,bytes=192M,cmdline=quiet panic=-1"])
        .args(["--console-log", "logs"])
        .current_dir(folder.path());
    let mut run = OnTerminal::start(&mut command);
    run.wait_for("parvisor: input goes to VM steady");
    run.wait_for("[steady] ~ # ");
    run.types(b"i=0; while sleep 0.1; do i=$((i + 1)); done & echo begun\r");
    run.wait_for("\r\n[steady] begun\r\n");
    run.types(b"\x1dn");
    run.wait_for("parvisor: input goes to VM shaky");
    run.wait_for("[shaky] ~ # ");
    run.types(b"echo c >/proc/sysrq-trigger\r");
    run.wait_for("shaky: the guest asked for a reset, and starts again");
    run.wait_for("[shaky] ~ # ");
    run.types(b"poweroff -f\r");
    run.wait_for("shaky: the guest powered off");
    run.wait_for("parvisor: input goes to VM steady");
    run.types(b"kill $!; echo $((6 * 7))\r");
    run.wait_for("[steady] 42\r\n");
    run.types(b"poweroff -f\r");
    let (status, complaints, as_before) = run.ends();
    assert_eq!(status.code(), Some(0), "{complaints}");
    assert!(as_before);
    let log = |name: &str| {
        let path: PathBuf = folder.path().join("logs").join(name);
        String::from_utf8_lossy(&fs::read(path).expect("a log")).into_owned()
    };
    let (steady, shaky) = (log("steady.log"), log("shaky.log"));
    assert!(
        steady.contains("\r\n42\r\n") && !steady.contains("sysrq"),
        "{steady}"
    );
    let panic = "Kernel panic - not syncing: sysrq triggered crash";
    assert!(shaky.contains(panic), "{shaky}");
    assert!(
        !shaky.contains("[shaky]") && !shaky.contains("\r\n42\r\n"),
        "{shaky}"
    );
}
