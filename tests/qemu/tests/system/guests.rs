//! Guests that misbehave: each ends its own VM at worst, never the machine.

use std::ffi::OsStr;

use emulator::boot::Outcome;
use emulator::qemu::Gic;
use qemu_tests::raw::RawFiles;
use qemu_tests::{Boot, describe, emulates, probe_guest, tree};

/// What a guest gets to find that all is well.
const PATIENCE: u64 = 120;

/// The guest finds nothing wrong with what it was answered.
fn passes(probe: &str) {
    Boot::probe(probe, PATIENCE).run_well();
}

/// The guest's VM is ended with an error that contains `word`.
fn ends_with(probe: &str, seconds: u64, word: &str) {
    let outcome = Boot::probe(probe, seconds).run();
    let is_clean = outcome.status == Some(1) && outcome.fatal.is_empty();
    assert!(is_clean, "{probe}: {}", describe(&outcome));
    let is_named = outcome.errors.iter().any(|error| error.contains(word));
    assert!(is_named, "{probe}: {}", describe(&outcome));
}

#[test]
fn accesses_outside_every_slot_are_external_aborts() {
    passes("outside");
}

#[test]
fn system_registers_are_undefined_or_harmless() {
    passes("sysregs");
}

#[test]
fn calls_with_garbage_are_not_supported_or_harmless() {
    passes("hypercalls");
}

#[test]
fn a_jump_to_nowhere_is_an_external_abort() {
    passes("jump");
}

#[test]
fn a_guest_may_power_off() {
    passes("off");
}

#[test]
fn a_guest_that_resets_itself_ends() {
    ends_with("reset", PATIENCE, "reset");
}

#[test]
fn a_guest_that_never_ends_is_ended() {
    for probe in ["spin", "storm", "wfi"] {
        ends_with(probe, 2, "no progress for 2 s");
    }
}

/// Whoever prints gets the console in turn, the hypervisor too.
#[test]
fn guests_that_print_without_end_keep_nobody_from_the_console() {
    let append = "guest=program vcpus=4 bytes=16M timeout=2";
    let boot = Boot::without_guest(append).cpus(5);
    let outcome = boot.guest(probe_guest(), Some("flood")).run();
    let is_clean = outcome.status == Some(1) && outcome.fatal.is_empty();
    let is_named = outcome
        .errors
        .iter()
        .any(|error| error.contains("timeout=2"));
    assert!(is_clean && is_named, "{}", describe(&outcome));
}

#[test]
fn a_guest_that_is_ended_for_want_of_progress_is_shown() {
    for (probe, words) in [
        (
            "spin",
            ["vCPU 0: runs at EL1, pc 0x4", "last exit: data abort at"],
        ),
        (
            "wfi",
            ["vCPU 0: waits for an interrupt at EL1", "last exit: WFI"],
        ),
    ] {
        let outcome = Boot::probe(probe, 2).run();
        let line = outcome.line_with("VM 0, vCPU 0: ").unwrap_or_default();
        let is_shown = words.iter().all(|word| line.contains(word));
        assert!(is_shown, "{words:?}: {}", describe(&outcome));
    }
}

#[test]
fn an_image_that_cant_run_is_ended_at_once() {
    let files = RawFiles::new();
    // A header without instructions behind it: its first word is undefined, and so are its vectors.
    let mut image = vec![0; 4096];
    image[16..24].copy_from_slice(&4096_u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    let image = files.write("empty.img", &image);
    let options = "guest=program vcpus=1 bytes=16M timeout=1000";
    let outcome = Boot::without_guest(options).guest(&image, None).run();
    let says = "an exception led the guest on vCPU 0 to 0x200, where it has no memory";
    let is_said = outcome.errors.iter().any(|error| error.contains(says));
    assert!(
        is_said && outcome.status == Some(1),
        "{}",
        describe(&outcome)
    );
}

#[test]
fn interrupts_of_timers_and_of_other_vcpus_reach_a_guest() {
    let append = "guest=linux vcpus=3 bytes=64M console=lines timeout=100";
    for (cpu, gic) in [
        ("neoverse-n1", Gic::V3),
        ("cortex-a72", Gic::V3),
        ("max", Gic::V3),
        ("cortex-a53", Gic::V2),
    ] {
        let boot = Boot::without_guest(append).cpus(4).cpu(cpu).gic(gic);
        let outcome = boot.guest(probe_guest(), Some("interrupts")).run_well();
        let passed = "interrupts: 3 vCPUs, all as it should be";
        let says = |words| outcome.lines.iter().any(|line| line.contains(words));
        let has_lpis = says("LPIs: done") == (gic == Gic::V3);
        assert!(
            says(passed) && has_lpis,
            "{cpu}, {gic:?}: {}",
            describe(&outcome)
        );
    }
}

#[test]
fn an_unknown_probe_is_a_failure() {
    ends_with("no-such-probe", PATIENCE, "fail");
}

/// On the oldest and on the newest CPU, and with both interrupt controllers.
fn passes_with_all_vcpus(probe: &str) {
    for (cpu, gic) in [
        ("cortex-a53", Gic::V2),
        ("cortex-a53", Gic::V3),
        ("max", Gic::V2),
        ("max", Gic::V3),
    ] {
        let boot = Boot::without_guest("guest=program vcpus=4 bytes=16M timeout=40").cpus(5);
        boot.cpu(cpu)
            .gic(gic)
            .guest(probe_guest(), Some(probe))
            .run_well();
    }
}

#[test]
fn vcpus_start_and_stop() {
    passes_with_all_vcpus("smp");
}

/// What one vCPU leaves in its CPU's registers, no other finds there.
#[test]
fn a_vcpu_starts_with_fresh_registers_after_another_left_its_dirty() {
    for (cpu, gic) in [
        ("cortex-a53", Gic::V2),
        ("cortex-a72", Gic::V3),
        ("neoverse-n2", Gic::V3),
        ("a64fx", Gic::V2),
        ("a64fx", Gic::V3),
        ("max", Gic::V2),
        ("max", Gic::V3),
    ] {
        if emulates(cpu) {
            let boot = Boot::without_guest("guest=program vcpus=2 bytes=16M timeout=40");
            let boot = boot.cpu(cpu).gic(gic);
            boot.guest(probe_guest(), Some("dirty")).run_well();
        }
    }
}

#[test]
fn fp_registers_survive_exits() {
    passes_with_all_vcpus("fp");
}

#[test]
fn memory_is_given_up_and_populated_ahead_and_every_wrong_range_is_refused() {
    for cpu in ["cortex-a53", "max"] {
        for backing in ["4K", "2M"] {
            let boot = Boot::probe("memory", PATIENCE).cpu(cpu);
            boot.append(&format!("backing={backing}")).run_well();
        }
    }
}

/// Exits of a kind, by the counters that were printed at the end.
pub(crate) fn exits(outcome: &Outcome, kind: &str) -> u64 {
    let counters = outcome.line_with("counters: ").unwrap_or_default();
    let mut words = counters.split_whitespace();
    let count = words.find(|word| *word == kind).and_then(|_| words.next());
    count.map_or(0, |count| count.parse().expect("a number"))
}

#[test]
fn a_clock_that_a_guest_is_given_is_read_without_an_exit() {
    for cpu in ["cortex-a53", "max"] {
        let boot = Boot::probe("clock", PATIENCE).cpu(cpu);
        let outcome = boot.append("device=/pl031@9010000").run_well();
        let line = outcome.line_with("the clock ticked after");
        let reads = line.and_then(|line| line.split_whitespace().rev().nth(1));
        let reads: u64 = reads.and_then(|reads| reads.parse().ok()).expect("reads");
        let faults = exits(&outcome, "exits_translation_fault");
        assert!(reads > 1000 && faults < 50, "{}", describe(&outcome));
    }
    // It is there for whom it is given to only.
    ends_with("clock", PATIENCE, "fail");
}

/// A guest that takes ticks and calls its other vCPUs is forked in the middle of it: both find all as it was, and end well.
#[test]
fn a_guest_with_interrupts_and_its_fork_go_on() {
    let append = "guest=linux vcpus=2 bytes=64M console=lines timeout=100 fork=1";
    for (cpu, gic) in [("neoverse-n1", Gic::V3), ("cortex-a53", Gic::V2)] {
        let boot = Boot::without_guest(append).cpus(5).cpu(cpu).gic(gic);
        let outcome = boot.guest(probe_guest(), Some("forked")).run_well();
        let count = |text: &str| {
            let lines = outcome.lines.iter();
            lines.filter(|line| line.contains(text)).count()
        };
        let counts = (
            count("VM 1 is a fork of VM 0"),
            count("all as it should be"),
        );
        assert_eq!(counts, (1, 2), "{cpu}, {gic:?}: {}", describe(&outcome));
    }
}

#[test]
fn features_with_state_are_switched_for_guests_that_are_offered_them_and_hidden_from_others() {
    let append = "guest=linux vcpus=2 bytes=64M console=lines timeout=100";
    for (cpu, probe, features, says) in [
        (
            "max",
            "sve",
            "cpu_features=sve",
            "sve: 256 bytes, all as it should be",
        ),
        ("max", "sve", "cpu_features=debug", "sve: hidden"),
        (
            "max",
            "debug",
            "cpu_features=sve,debug",
            "debug: 4 watchpoints, all as it should be",
        ),
        (
            "cortex-a53",
            "debug",
            "cpu_features=debug",
            "debug: 4 watchpoints, all as it should be",
        ),
        ("max", "debug", "", "debug: hidden"),
    ] {
        let boot = Boot::without_guest(append).append(features).cpu(cpu);
        let outcome = boot.guest(probe_guest(), Some(probe)).run_well();
        let found = outcome.line_with(says);
        assert!(found.is_some(), "{cpu} {features}: {}", describe(&outcome));
    }
    let options = "guest=program vcpus=2 bytes=16M timeout=40 cpu_features=sve,debug,pmu";
    let boot = Boot::without_guest(options).cpu("max");
    boot.guest(probe_guest(), Some("dirty")).run_well();
    let boot = Boot::probe("off", PATIENCE).append("cpu_features=sve");
    boot.run_refused(&["cpu_features=sve", "the CPUs don't have it"]);
    let boot = Boot::probe("off", PATIENCE).append("cpu_features=mte");
    boot.run_refused(&["malformed value 'mte'", "sve, debug or pmu"]);
}

/// An emulator that counts instructions counts them for guests too. PMUv3 and v3p1 keep EL2 out by
/// filters and have counters of 32 bits, v3p5 does by itself and has 64.
#[test]
fn a_guest_has_performance_monitors_that_count_what_it_does_and_nothing_else() {
    let append = "guest=linux vcpus=2 bytes=64M console=lines timeout=100";
    const EXACTLY: &str = "pmu exactly";
    let counts = ["-icount", "shift=0,sleep=off"];
    for (cpu, gic, features, probe, says) in [
        ("neoverse-n1", Gic::V3, "pmu", EXACTLY, "version 4, instr"),
        ("max", Gic::V3, "sve,debug,pmu", EXACTLY, "version 6, instr"),
        ("neoverse-n1", Gic::V3, "pmu", "pmu", "version 4, incr"),
        ("max", Gic::V3, "sve,debug,pmu", "pmu", "version 6, incr"),
        ("max", Gic::V3, "sve,debug", "pmu", "hidden"),
    ] {
        let boot = Boot::without_guest(append).cpu(cpu).gic(gic);
        let boot = boot.append(&format!("cpu_features={features}"));
        let boot = boot.guest(probe_guest(), Some(probe));
        let outcome = match probe {
            EXACTLY => boot.arguments(counts).run_well(),
            _ => boot.run_well(),
        };
        let found = outcome.line_with(&format!("pmu: {says}"));
        assert!(found.is_some(), "{cpu} {features}: {}", describe(&outcome));
    }
    for cpu in ["cortex-a53", "max"] {
        let boot = Boot::probe("sysregs", PATIENCE).cpu(cpu);
        boot.append("cpu_features=pmu").run_well();
    }
    let boot = Boot::probe("off", PATIENCE).cpu("max,pmu=off");
    let boot = boot.append("cpu_features=pmu");
    boot.run_refused(&["cpu_features=pmu: the CPUs don't have it"]);
}

/// Also after a start that has left it active.
#[test]
fn the_interrupt_of_a_device_reaches_the_guest_that_has_it() {
    let append = "guest=linux vcpus=2 bytes=64M console=lines timeout=100 device=/pl061@9030000,/pl031@9010000";
    for (cpu, gic) in [("neoverse-n1", Gic::V3), ("cortex-a53", Gic::V2)] {
        let boot = Boot::without_guest(append).cpu(cpu).gic(gic);
        let outcome = boot.guest(probe_guest(), Some("alarm")).run_well();
        // The guest's numbers aren't the machine's: its board has a clock's there.
        let passed = outcome.line_with("alarm: interrupt 95, all as it should be");
        let again = outcome.line_with("starts again");
        assert!(
            passed.is_some() && again.is_some(),
            "{cpu}, {gic:?}: {}",
            describe(&outcome)
        );
    }
}

#[test]
fn devices_that_an_operating_system_cant_have_are_refused() {
    for (path, why) in [
        ("/nothing@9010000", "no such node"),
        (
            "/pl031@9010000,/pl031@9010000",
            "names '/pl031@9010000' twice",
        ),
        ("/timer", "no registers"),
    ] {
        let append = "guest=linux vcpus=1 bytes=64M console=lines";
        let boot = Boot::without_guest(append).guest(probe_guest(), Some("alarm"));
        boot.append(&format!("device={path}")).run_refused(&[why]);
    }
}

/// Where no device answers: what reads there gets an external abort.
const NOTHING: u64 = 0x0b00_0000;

/// Two vCPUs have the hypervisor walk their tables, which are the registers of a device that doesn't answer every now
/// and then.
#[test]
fn walks_of_tables_that_become_a_device_harm_nobody() {
    for cpu in ["max", "cortex-a72", "neoverse-n1"] {
        let folder = tempfile::TempDir::new().expect("room for a file");
        let file = folder.path().join("tree");
        let attack = |seconds| {
            let options = "guest=program vcpus=2 bytes=16M device=/pl031@9010000";
            let boot = Boot::without_guest(&format!("{options} timeout={seconds}")).cpu(cpu);
            let boot = boot.guest(probe_guest(), Some("walks"));
            let mut tree = tree::of_machine(&boot);
            tree::move_device(&mut tree, "/pl031@9010000", NOTHING);
            std::fs::write(&file, tree.to_dtb()).expect("the folder is ours");
            boot.arguments([OsStr::new("-dtb"), file.as_os_str()])
        };
        let outcome = attack(PATIENCE).run_well();
        let lost = exits(&outcome, "lost_translation");
        assert!(lost > 0, "{cpu}: {}", describe(&outcome));
        // In the middle of it the VM can be stopped.
        let outcome = attack(1).run();
        let stopped = |error: &String| error.contains("timeout=1");
        let is_clean = outcome.status == Some(1) && outcome.fatal.is_empty();
        assert!(
            is_clean && outcome.errors.iter().any(stopped),
            "{cpu}: {}",
            describe(&outcome)
        );
    }
}

/// What SMCCC_ARCH_FEATURES answers about workarounds 1, 2 and 3, where firmware has none: 0 where a call helps, 1
/// where none is needed, -2 where there is nothing to call for, -1 where nothing helps, or the guest helps itself.
#[test]
fn a_guest_finds_out_what_its_cpu_needs_against_speculation() {
    for (cpu, more, answers) in [
        ("cortex-a53", "", "1 -2 1"),
        ("cortex-a72", "", "-1 -1 -1"),
        ("neoverse-n1", "", "1 -1 0"),
        ("neoverse-n1", "mitigations=off", "1 -1 -1"),
        ("neoverse-n1", "mitigations=auto", "1 -1 0"),
        ("max", "", "1 -1 1"),
    ] {
        let boot = Boot::probe("workarounds", PATIENCE).cpu(cpu).append(more);
        let outcome = boot.run_well();
        let found = outcome.line_with(&format!("workarounds: {answers}"));
        assert!(found.is_some(), "{cpu} {more}: {}", describe(&outcome));
    }
}

/// The emulator's tree has a seed for CPUs without a generator of their own; without it they have no random numbers.
#[test]
fn a_guest_gets_random_numbers_where_there_is_entropy() {
    for (cpu, seeded, answer) in [
        ("cortex-a53", true, "some"),
        ("cortex-a53", false, "none"),
        ("max", true, "some"),
        ("max", false, "some"),
    ] {
        let boot = Boot::probe("random", PATIENCE).cpu(cpu);
        let without = ["-machine", "dtb-randomness=off"];
        let outcome = match seeded {
            true => boot.run_well(),
            false => boot.arguments(without).run_well(),
        };
        let found = outcome.line_with(&format!("random numbers: {answer}"));
        assert!(found.is_some(), "{cpu}, {seeded}: {}", describe(&outcome));
    }
}

#[test]
fn a_guest_has_the_features_that_its_id_registers_show_and_no_others() {
    for (cpu, features) in [
        ("cortex-a53", "MOPS 0, ECV 0, RNG 0"),
        ("cortex-a72", "MOPS 0, ECV 0, RNG 0"),
        ("neoverse-n1", "MOPS 0, ECV 0, RNG 0"),
        ("max", "MOPS 1, ECV 1, RNG 1"),
    ] {
        let outcome = Boot::probe("features", PATIENCE).cpu(cpu).run_well();
        let found = outcome.line_with(&format!("features: {features}"));
        assert!(found.is_some(), "{cpu}: {}", describe(&outcome));
    }
}

#[test]
fn devices_that_no_guest_may_have_are_refused() {
    for (path, why) in [
        ("/nothing@9010000", "no such node"),
        ("/chosen", "no registers"),
        ("/cpus/cpu@0", "no registers"),
        ("/memory@40000000", "overlap memory"),
        ("/pl011@9000000", "overlap console UART"),
        ("/intc@8000000", "overlap GIC distributor"),
        ("/fw-cfg@9020000", "aren't whole pages"),
    ] {
        let boot = Boot::probe("clock", PATIENCE).append(&format!("device={path}"));
        boot.run_refused(&[path, why]);
    }
    let its = "/intc@8000000/its@8080000";
    let boot = Boot::probe("clock", PATIENCE).append(&format!("device={its}"));
    boot.run_refused(&[its, "overlap MSI controller"]);
    let smmu = "/smmuv3@9050000";
    let boot = Boot::probe("clock", PATIENCE).append(&format!("device={smmu}"));
    let boot = boot.arguments(["-machine", "iommu=smmuv3"]);
    boot.run_refused(&[smmu, "overlap IOMMU"]);
    let frame = "/intc@8000000/v2m@8020000";
    let boot = Boot::probe("clock", PATIENCE).append(&format!("device={frame}"));
    let boot = boot.gic(Gic::V2);
    boot.run_refused(&[frame, "overlap MSI controller"]);
    let boot = Boot::benchmark("device=/pl031@9010000");
    boot.run_refused(&["device", "guest=dirty_log"]);
}

#[test]
fn a_guest_that_gives_up_what_its_other_vcpus_use_harms_nobody() {
    passes_with_all_vcpus("race");
}

/// A fork that writes every page needs as many frames as its parent has, and there aren't any.
#[test]
fn a_vm_that_finds_no_memory_is_paused_with_a_message_and_then_ended() {
    let options = "mode=parallel guest=backing workload=cow vcpus=1 bytes=288M timeout=60";
    let outcome = Boot::benchmark(options).limit(120).run();
    let said = outcome.line_with("VM 1 is paused: no memory was left for the guest's access to");
    let is_ended = outcome.status == Some(1) && outcome.fatal.is_empty();
    let is_named = outcome
        .errors
        .iter()
        .any(|error| error.contains("no memory was left"));
    assert!(
        said.is_some() && is_ended && is_named,
        "{}",
        describe(&outcome)
    );
}

#[test]
fn registers_and_calls_are_harmless_on_every_cpu() {
    for cpu in ["cortex-a53", "cortex-a72", "a64fx", "neoverse-n2", "max"] {
        if emulates(cpu) {
            for probe in ["sysregs", "hypercalls", "outside", "jump"] {
                Boot::probe(probe, PATIENCE).cpu(cpu).run_well();
            }
        }
    }
}

#[test]
fn a_guest_that_fails_is_a_failure() {
    ends_with("fail", PATIENCE, "fail");
}
