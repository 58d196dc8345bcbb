//! Guests that drive their interrupt controller, timers and devices hard, or as nobody should.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use emulator::boot::Outcome;
use emulator::qemu::Gic;
use qemu_tests::{Boot, describe, probe_guest};

/// All that a machine can have of a GIC, on the oldest and on the newest CPU.
const MACHINES: [(&str, Gic); 3] = [
    ("cortex-a53", Gic::V2),
    ("neoverse-n1", Gic::V3),
    ("max", Gic::V3),
];

/// A VM on QEMU's virt with this probe.
fn board(probe: &str, vcpus: u32, timeout: u64) -> Boot {
    let append = format!("guest=linux vcpus={vcpus} bytes=64M console=lines timeout={timeout}");
    let boot = Boot::without_guest(&append).cpus(vcpus + 1);
    boot.guest(probe_guest(), Some(probe)).limit(timeout)
}

fn passes(probe: &str, (cpu, gic): (&str, Gic), vcpus: u32, timeout: u64) -> Outcome {
    let boot = board(probe, vcpus, timeout).cpu(cpu).gic(gic);
    let outcome = boot.run_well();
    let passed = "as it should be";
    let is_told = outcome.lines.iter().any(|line| line.contains(passed));
    assert!(is_told, "{cpu}, {gic:?}: {}", describe(&outcome));
    outcome
}

/// How much more of everything: `PARVISOR_SLOW`, which `scripts/test --slow` sets.
fn factor() -> u64 {
    match env::var_os("PARVISOR_SLOW") {
        Some(_) => 50,
        None => 1,
    }
}

/// With --slow another one each time; the guest prints it.
fn seed() -> u64 {
    if factor() == 1 {
        return 1;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1, |since| since.as_nanos() as u64 >> 10)
}

#[test]
fn every_register_of_every_device_takes_every_access() {
    for machine in MACHINES {
        let every = if factor() == 1 { 1024 } else { 4 };
        let probe = format!("devices every={every} seed={}", seed());
        passes(&probe, machine, 2, 200 * factor());
    }
}

/// All vCPUs do at random whatever they can; then everything works as on the first day.
#[test]
fn whatever_a_guest_does_to_its_interrupts_ends_well() {
    for machine in MACHINES {
        let probe = format!("hostile acts={} seed={}", 20_000 * factor(), seed());
        passes(&probe, machine, 3, 100 * factor());
    }
}

/// Some on several vCPUs, which wait for each other, and many on one.
#[test]
fn no_interrupt_is_lost_and_none_comes_twice() {
    for machine in MACHINES {
        for (vcpus, each) in [(3, 60), (1, 400)] {
            let probe = format!("count each={} seed={}", each * factor(), seed());
            let outcome = board(&probe, vcpus, 200 * factor())
                .cpu(machine.0)
                .gic(machine.1);
            let outcome = outcome.run_well();
            let is_told = outcome.line_with("none lost and none twice").is_some();
            assert!(is_told, "{machine:?}: {}", describe(&outcome));
        }
    }
}

/// Counted ends, evictions, DIR, and a wait with a mask, on the GICs that QEMU has: with four list registers.
#[test]
fn more_interrupts_are_active_than_there_are_list_registers() {
    for machine in MACHINES {
        passes("nested", machine, 1, 100);
    }
}

/// SGIs to all, garbage for the ITS, levels that stay up, interrupts that are never ended, the redistributors of others, routes
/// in halves, and a flood of characters, each beside a VM that counts its interrupts; and everything at once. Those of even
/// numbers power off while their other vCPUs go on.
#[test]
fn a_hostile_vm_costs_its_neighbour_no_interrupt() {
    for kind in 0..=7 {
        let machines = match factor() {
            1 => &MACHINES[kind % 3..][..1],
            _ => &MACHINES[..],
        };
        for machine in machines {
            is_no_danger_to_its_neighbour(kind, *machine);
        }
    }
}

fn is_no_danger_to_its_neighbour(kind: usize, (cpu, gic): (&str, Gic)) {
    let off = (kind + 1) % 2;
    // What doesn't wait for the console or for a look at all list registers is soon done.
    let acts = match kind {
        7 => 300,
        2 | 5 | 6 => 100_000,
        _ => 30_000,
    };
    let (acts, each, seed) = (acts * factor(), 60 * factor(), seed());
    let image = probe_guest();
    let boot = Boot::without_guest("console=lines")
        .cpus(6)
        .guest(image, None);
    let at = boot.machine.modules[0].address;
    let vms = format!(
        "vm=name=hostile,vcpus=3,bytes=64M,kernel={at:#x},cmdline='hostile acts={acts} only={kind} off={off} seed={seed}' \
         vm=name=counts,vcpus=2,bytes=64M,kernel={at:#x},cmdline='count each={each} seed={seed}'"
    );
    let boot = boot.cpu(cpu).gic(gic).append(&vms).limit(300 * factor());
    let outcome = boot.run_well();
    let about = || format!("{kind}, {cpu}, {gic:?}: {}", describe(&outcome));
    let says = |name: &str, what: &str| {
        let mut lines = outcome.lines.iter();
        lines.any(|line| line.starts_with(&format!("[{name}]")) && line.contains(what))
    };
    assert!(says("counts", "none lost and none twice"), "{}", about());
    let end = ["all as it should be", "acts, and off"][off];
    assert!(says("hostile", end), "{}", about());
    let lines = outcome.lines.iter();
    let left = lines.filter(|line| line.ends_with("after its end: table 0 guest 0 pending 0"));
    assert_eq!(left.count(), 2, "{}", about());
}

#[test]
fn a_stack_and_vectors_in_a_device_end_their_own_vm() {
    for probe in ["stack", "vectors"] {
        let outcome = board(probe, 1, 2).limit(60).run();
        let is_clean = outcome.status == Some(1) && outcome.fatal.is_empty();
        let is_named = (outcome.errors.iter()).any(|error| error.contains("no progress for 2 s"));
        assert!(is_clean && is_named, "{probe}: {}", describe(&outcome));
    }
}
