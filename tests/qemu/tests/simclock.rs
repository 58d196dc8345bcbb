//! The simulated clock under QEMU: loops whose time is known, on machines with 1 to 8 CPUs, and the benchmark.
//!
//! An instruction takes a nanosecond, whatever the host does meanwhile; CPUs begin and end a few microseconds apart.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use emulator::boot;
use emulator::effort::Limit;
use emulator::images::build_scaling;
use emulator::qemu::{self, Gic, Machine};
use emulator::simclock::{self, Costs, Simulation};
use emulator::size::mib;
use qemu_tests::{Boot, assert_verified, describe, emulator, images};

/// No machine takes longer, in the emulator's own time.
const LIMIT: Duration = Duration::from_secs(100);
const CPUS: [u32; 4] = [1, 2, 4, 8];
/// Instructions of a round of the guest's work.
const WORK: u64 = 52;
/// Nothing but instructions takes time.
const FREE: Costs = Costs {
    line_ns: 0,
    tlbi_ns: 0,
};

/// The simulation, or nothing where the emulator can't be made to run it.
fn simulation(costs: Costs) -> Option<Simulation> {
    if let Err(reason) = simclock::is_supported(emulator()) {
        eprintln!("skipped: {reason}");
        return None;
    }
    Some(simclock::prepare(emulator(), costs).unwrap_or_else(|error| panic!("{error}")))
}

/// The guest with the loops, and where its instructions are.
fn guest() -> &'static (std::path::PathBuf, Range<u64>) {
    static GUEST: OnceLock<(std::path::PathBuf, Range<u64>)> = OnceLock::new();
    GUEST.get_or_init(|| {
        let (image, symbols) = build_scaling().unwrap_or_else(|error| panic!("{error}"));
        (image, text(&symbols))
    })
}

fn text(symbols: &Path) -> Range<u64> {
    qemu::hypervisor_text(symbols).unwrap_or_else(|error| panic!("{error}"))
}

/// The machine that runs one of the guest's loops.
fn machine(simulation: &Simulation, name: &str, rounds: u64, cpus: u32) -> Machine {
    let (image, text) = guest();
    Machine {
        emulator: emulator().into(),
        cpu: "max".into(),
        gic: Gic::V3,
        cpus,
        memory: mib(256),
        el2: false,
        kernel: Some(image.clone()),
        append: format!("{name} {rounds}"),
        modules: Vec::new(),
        debugger: None,
        simulation: Some((simulation.clone(), text.clone())),
        extra: Vec::new(),
    }
}

/// How many simulated nanoseconds it takes if each CPU goes `rounds` times round one of the guest's loops.
fn time(simulation: &Simulation, name: &str, rounds: u64, cpus: u32) -> u64 {
    let machine = machine(simulation, name, rounds, cpus);
    let outcome = boot::run(
        &mut machine.command(),
        Limit::total(LIMIT),
        |_, _| {},
        |_| {},
    );
    let outcome = outcome.expect("the emulator starts");
    let line = outcome.line_with(&format!("{name} {cpus} "));
    let time = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    time.unwrap_or_else(|| panic!("{}", describe(&outcome)))
}

/// Checks that a time is as expected, to `percent`.
fn assert_near(what: &str, cpus: u32, time: u64, expected: u64, percent: u64) {
    eprintln!("{what}, {cpus} CPUs: {time} ns of {expected}");
    assert!(
        time.abs_diff(expected) * 100 <= expected * percent,
        "{what}, {cpus} CPUs: {time} ns, not {expected} ns to {percent} %"
    );
}

/// The same command with other arguments and another environment.
fn changed(
    command: &Command,
    mut argument: impl FnMut(&OsStr) -> OsString,
    keeps: impl Fn(&OsStr) -> bool,
) -> Command {
    let mut changed = Command::new(command.get_program());
    changed.args(command.get_args().map(&mut argument));
    for (name, value) in command.get_envs() {
        match value {
            Some(value) if keeps(name) => changed.env(name, value),
            _ => changed.env_remove(name),
        };
    }
    changed
}

/// Checks that an emulator ends by itself, with one line of the plugin's that says why.
fn assert_refused(what: &str, mut command: Command, why: &str) {
    let outcome = boot::run(&mut command, Limit::total(LIMIT), |_, _| {}, |_| {});
    let outcome = outcome.expect("the emulator starts");
    let said: Vec<_> = (outcome.complaints.iter())
        .filter(|line| line.starts_with("simclock: "))
        .collect();
    assert!(
        matches!(&said[..], [line] if line.contains(why)),
        "{what}: {}",
        describe(&outcome)
    );
    assert!(
        matches!(outcome.end, boot::End::Ended(status) if !status.success()),
        "{what}: {}",
        describe(&outcome)
    );
}

#[test]
fn without_being_preloaded_it_refuses_to_run() {
    let Some(simulation) = simulation(FREE) else {
        return;
    };
    let with = machine(&simulation, "private", 10, 2).command();
    let without = changed(
        &with,
        |argument| argument.into(),
        |name| name != "LD_PRELOAD",
    );
    assert_refused("not preloaded", without, "not preloaded: LD_PRELOAD");
}

#[test]
fn a_wrapper_that_the_library_does_not_get_through_is_named() {
    if simulation(FREE).is_none() {
        return;
    }
    let folder = tempfile::TempDir::new().expect("room for a folder");
    let wrapper = folder.path().join("wrapper");
    let text = format!("#!/bin/sh\nexec '{}' \"$@\"\n", emulator().display());
    // Written by another process: one that this one forks meanwhile must not hold it open, or it couldn't be run.
    let written = Command::new("sh")
        .args([
            "-c",
            "printf %s \"$1\" > \"$2\" && chmod +x \"$2\"",
            "sh",
            &text,
        ])
        .arg(&wrapper)
        .status();
    assert!(written.expect("sh starts").success());
    let refused = simclock::prepare(&wrapper, FREE).expect_err("the shell can't load it");
    assert!(refused.to_string().contains("is a wrapper"), "{refused}");
}

#[test]
fn one_thread_for_all_cpus_is_refused() {
    let Some(simulation) = simulation(FREE) else {
        return;
    };
    for cpus in [1, 2] {
        let with = machine(&simulation, "private", 10, cpus).command();
        let single = |argument: &OsStr| match argument.to_str() {
            Some("tcg,thread=multi") => "tcg,thread=single".into(),
            _ => argument.into(),
        };
        let what = format!("thread=single, {cpus} CPUs");
        assert_refused(
            &what,
            changed(&with, single, |_| true),
            "thread for each CPU",
        );
        let plain = |argument: &OsStr| match argument.to_str() {
            Some("tcg,thread=multi") => "tcg".into(),
            _ => argument.into(),
        };
        let mut counted = changed(&with, plain, |_| true);
        counted.args(["-icount", "shift=0"]);
        let what = format!("-icount, {cpus} CPUs");
        assert_refused(
            &what,
            counted,
            "-icount: simulated time needs a thread for each CPU",
        );
    }
}

#[test]
fn private_loops_take_as_long_on_many_cpus_as_on_one() {
    let Some(simulation) = simulation(Costs::default()) else {
        return;
    };
    const ROUNDS: u64 = 20_000;
    for cpus in CPUS {
        let time = time(&simulation, "private", ROUNDS, cpus);
        assert_near("private", cpus, time, ROUNDS * WORK, 2);
    }
}

#[test]
fn a_loop_under_one_lock_takes_the_sum_of_all_cpus() {
    let Some(simulation) = simulation(FREE) else {
        return;
    };
    const ROUNDS: u64 = 400;
    let alone = time(&simulation, "locked", ROUNDS, 1);
    for cpus in [2, 4, 8] {
        let time = time(&simulation, "locked", ROUNDS, cpus);
        assert_near("locked", cpus, time, u64::from(cpus) * alone, 5);
    }
}

#[test]
fn a_shared_counter_costs_its_line_s_moves() {
    let costs = Costs {
        line_ns: 100,
        tlbi_ns: 0,
    };
    let Some(simulation) = simulation(costs) else {
        return;
    };
    const ROUNDS: u64 = 30_000;
    for cpus in [2, 4, 8] {
        let time = time(&simulation, "counter", ROUNDS, cpus);
        let moves = u64::from(cpus) * ROUNDS;
        // Whoever begins first has the line for itself until the others come, and the last one at the end.
        assert_near("counter", cpus, time, moves * costs.line_ns, 6);
    }
    let alone = time(&simulation, "counter", ROUNDS, 1);
    assert!(
        alone < ROUNDS * 10,
        "one CPU alone waits for nothing: {alone} ns"
    );
}

#[test]
fn tlb_invalidations_cost_what_they_are_said_to() {
    let costs = Costs {
        line_ns: 0,
        tlbi_ns: 600,
    };
    let Some(simulation) = simulation(costs) else {
        return;
    };
    const ROUNDS: u64 = 300;
    /// The invalidation, the barrier, and two that count.
    const INSTRUCTIONS: u64 = 4;
    for cpus in [1, 2, 4] {
        let all = time(&simulation, "broadcast", ROUNDS, cpus);
        let queue = u64::from(cpus) * ROUNDS * costs.tlbi_ns;
        assert_near("broadcast", cpus, all, queue, 2);
    }
    for cpus in [1, 4] {
        let own = time(&simulation, "local", 10 * ROUNDS, cpus);
        let expected = 10 * ROUNDS * (costs.tlbi_ns / 4 + INSTRUCTIONS);
        assert_near("local", cpus, own, expected, 2);
    }
}

#[test]
fn the_benchmark_runs_on_simulated_time() {
    let Some(simulation) = simulation(Costs::default()) else {
        return;
    };
    let text = text(&images().symbols);
    let dirty = |vcpus: u32| {
        let append = format!("mode=parallel vcpus={vcpus} bytes=2M iterations=2 timeout=40");
        let mut boot = Boot::benchmark(&append)
            .cpus(vcpus + 1)
            .limit(LIMIT.as_secs());
        boot.machine.simulation = Some((simulation.clone(), text.clone()));
        let outcome = boot.run_well();
        assert_verified(&outcome, &["parallel"]);
        let summary = outcome
            .complaints
            .iter()
            .find(|line| line.contains("line moves"));
        let summary = summary.unwrap_or_else(|| panic!("{}", describe(&outcome)));
        assert!(!summary.contains("; 0 line moves"), "{summary}");
        let phases = &outcome.records[0].phases;
        let dirty = phases
            .iter()
            .filter(|phase| phase.name == records::record::PhaseName::Dirty);
        dirty
            .map(|phase| phase.ns)
            .min()
            .expect("it has iterations")
    };
    let (one, four) = (dirty(1), dirty(4));
    assert!(four * 100 <= one * 115, "1 vCPU: {one} ns, 4: {four} ns");
}
