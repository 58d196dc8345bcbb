//! Hypercalls: PSCI, and services that a vCPU may have to wait for.

use super::*;
use crate::registers::state::{El1State, FpState, PacKeys};
use crate::vm::power::PowerState;
use std::vec::Vec;

#[test]
fn the_calling_convention_tells_its_version_and_features() {
    let features = |function| call(0x8000_0001, [function, 0, 0]);
    run_alone([
        call(0x8000_0000, [0; 3]),
        returns(0x1_0004),
        features(0x8000_0000),
        returns(0),
        features(0x8000_0001),
        returns(0),
        features(0x8000_0002), // SMCCC_ARCH_SOC_ID
        returns_32(-1),
        call(0x8000_0002, [0; 3]),
        returns_32(-1),
        features(0x8000_0003), // SMCCC_ARCH_FEATURE_AVAILABILITY
        returns_32(-1),
        call(PSCI_FEATURES, [0x8000_0000, 0, 0]),
        returns(0),
    ]);
}

/// PSCI's functions (DEN0022, table 5), without their width, and whether they are there in 32 and in 64 bits.
const PSCI: &[(u64, &str, bool, bool)] = &[
    (0x00, "PSCI_VERSION", true, false),
    (0x01, "CPU_SUSPEND", true, true),
    (0x02, "CPU_OFF", true, false),
    (0x03, "CPU_ON", true, true),
    (0x04, "AFFINITY_INFO", true, true),
    (0x05, "MIGRATE", false, false),
    (0x06, "MIGRATE_INFO_TYPE", true, false),
    (0x07, "MIGRATE_INFO_UP_CPU", false, false),
    (0x08, "SYSTEM_OFF", true, false),
    (0x09, "SYSTEM_RESET", true, false),
    (0x0a, "PSCI_FEATURES", true, false),
    (0x0b, "CPU_FREEZE", false, false),
    (0x0c, "CPU_DEFAULT_SUSPEND", true, true),
    (0x0d, "NODE_HW_STATE", false, false),
    (0x0e, "SYSTEM_SUSPEND", true, true),
    (0x0f, "SET_SUSPEND_MODE", false, false),
    (0x10, "STAT_RESIDENCY", false, false),
    (0x11, "STAT_COUNT", false, false),
    (0x12, "SYSTEM_RESET2", true, true),
    (0x13, "MEM_PROTECT", false, false),
    (0x14, "MEM_PROTECT_CHECK_RANGE", false, false),
    (0x15, "SYSTEM_OFF2", false, false),
    (0x1f, "nothing", false, false),
];

#[test]
fn psci_tells_of_those_functions_that_it_has() {
    run_alone([
        call(PSCI_VERSION, [0; 3]),
        returns(0x1_0001),
        call(0x8400_0006, [0; 3]), // MIGRATE_INFO_TYPE
        returns(2),
    ]);
    for &(number, name, has_32, has_64) in PSCI {
        for (range, has) in [(0x8400_0000, has_32), (0xc400_0000, has_64)] {
            let function = range | number;
            let answer = Arc::new(Mutex::new(None));
            let noted = answer.clone();
            // A vCPU that isn't there, a power state that isn't one, an odd address, a reset of nobody's.
            let argument = match function {
                PSCI_FEATURES => PSCI_VERSION,
                _ => 0x7efe_0001,
            };
            let (asked, called) = (
                call(PSCI_FEATURES, [function, 0, 0]),
                call(function, [argument, 1, 1]),
            );
            let note = check(move |regs| *noted.lock().unwrap() = Some(regs.x[0] as i32));
            run_alone([asked, returns_32(if has { 0 } else { -1 }), called, note]);
            // Those that end the VM don't come back.
            let is_known = *answer.lock().unwrap() != Some(-1);
            assert_eq!(is_known, has, "{name}, {function:#x}");
        }
    }
}

/// SMCCC_ARCH_WORKAROUND_1, 2 and 3.
#[test]
fn a_guest_finds_the_workarounds_and_calls_those_that_it_needs() {
    let features = |function| call(0x8000_0001, [function, 0, 0]);
    let lines = Lines::new(1);
    let turns = [
        features(0x8000_8000),
        returns(1),
        features(0x8000_7fff),
        returns_32(-2),
        features(0x8000_3fff),
        returns(0),
        call(0x8000_8000, [7; 3]),
        check(|regs| assert_eq!(regs.x[..4], [0, 7, 7, 7])),
        call(0x8000_3fff, [0; 3]),
        returns(0),
        call(0x8000_7fff, [0; 3]),
        returns_32(-1),
    ];
    let mut cpu = FakeCpu::new(0, &lines, turns);
    cpu.protections = Protections {
        branch_targets: Protection::Unaffected,
        branch_history: Protection::Mitigated,
        store_bypass: Protection::Mitigated,
    };
    run_on(&vm(1), &FakeService::default(), cpu);
}

#[test]
fn every_wrong_way_to_turn_a_vcpu_on_has_its_error() {
    let vm = vm(2);
    run(
        &vm,
        [
            call(CPU_ON, [0, ENTRY, 0]),
            returns(-4), // ALREADY_ON
            call(CPU_ON, [2, ENTRY, 0]),
            returns(-2), // INVALID_PARAMETERS: no such vCPU
            call(CPU_ON, [0x8000_0001, ENTRY, 0]),
            returns(-2), // INVALID_PARAMETERS: not an affinity
            call(CPU_ON, [1, ENTRY + 2, 0]),
            returns(-9), // INVALID_ADDRESS: no instruction can be there
            call(CPU_ON, [1, 0x1000, 0]),
            returns(-9), // INVALID_ADDRESS: no memory
            call(AFFINITY_INFO, [1, 0, 0]),
            returns(1), // off
            call(CPU_ON, [1, ENTRY + 4, 7]),
            returns(0),
            call(AFFINITY_INFO, [1, 0, 0]),
            returns(2), // pending
            call(CPU_ON, [1, ENTRY, 8]),
            returns(-5), // ON_PENDING
            call(AFFINITY_INFO, [0, 0, 0]),
            returns(0), // on
            call(AFFINITY_INFO, [0, 1, 0]),
            returns(-2), // INVALID_PARAMETERS: a cluster
        ],
    );
    assert_eq!(vm.power_state(VcpuId(1)), PowerState::OnPending);
    assert_eq!(
        vm.shared(VcpuId(1)).power.take_start(),
        Some(Start {
            entry: ENTRY + 4,
            context: 7
        })
    );
}

#[test]
fn a_32_bit_call_has_32_bit_arguments() {
    let vm = vm(2);
    let garbage = 0xdead_beef_0000_0000;
    run(
        &vm,
        [
            call(0x8400_0003, [garbage | 1, garbage | ENTRY, garbage | 9]),
            returns(0),
        ],
    );
    assert_eq!(
        vm.shared(VcpuId(1)).power.take_start(),
        Some(Start {
            entry: ENTRY,
            context: 9
        })
    );
}

#[test]
fn a_function_number_is_32_bits_of_its_register() {
    run_alone([
        call(0xffff_ffff_0000_0000 | PSCI_VERSION, [0; 3]),
        returns(0x1_0001),
    ]);
}

/// Runs a VM of as many vCPUs on CPU 0, which is kicked once, so that it sleeps once.
fn run_woken(vcpus: usize, script: impl IntoIterator<Item = Turn>) -> FakeCpu {
    let lines = Lines::new(1);
    lines.kick(CpuId(0));
    let cpu = FakeCpu::new(0, &lines, script);
    run_on(&vm(vcpus), &FakeService::default(), cpu)
}

#[test]
fn a_vcpu_in_standby_continues_where_it_was() {
    let script = [
        // The upper half of a 32-bit argument is nobody's; whatever the level, and wherever it would start.
        call(CPU_SUSPEND, [0xdead_0000_0300_0001, 1, 7]),
        check(|regs| assert_eq!(regs.x[..4], [0, 0xdead_0000_0300_0001, 1, 7])),
    ];
    assert_eq!(run_woken(1, script).sleeps, 1);
}

/// CPU_SUSPEND of all levels, CPU_DEFAULT_SUSPEND and SYSTEM_SUSPEND, by both widths.
#[test]
fn a_vcpu_that_is_powered_down_starts_again_at_its_entry_with_its_timer() {
    let (down, entry) = (1 << 16, ENTRY + 8);
    for (function, args) in [
        (CPU_SUSPEND, [down, entry, 7]),
        (CPU_SUSPEND, [down | 3 << 24 | 5, entry, 7]),
        (0x8400_0001, [down, entry, 7]),
        (0x8400_000c, [entry, 7, 0]),
        (0xc400_000c, [entry, 7, 0]),
        (0x8400_000e, [entry, 7, 0]),
        (0xc400_000e, [entry, 7, 0]),
    ] {
        let suspend = move |regs: &mut GuestRegs| {
            regs.pstate = 5;
            regs.x[0] = function;
            regs.x[1..4].copy_from_slice(&args);
            regs.x[9] = 9;
            exit(HVC)
        };
        let restarted = check(move |regs| {
            assert_eq!((regs.pc, regs.pstate, regs.x[0]), (entry, 0x3c5, 7));
            assert!(regs.x[1..].iter().all(|&register| register == 0));
        });
        let lines = Lines::new(1);
        lines.kick(CpuId(0));
        let mut cpu = FakeCpu::new(0, &lines, [Box::new(suspend) as Turn, restarted]);
        let mut el1 = El1State::reset();
        (el1.cntv_ctl_el0, el1.cntv_cval_el0) = (1, 1000);
        el1.ttbr0_el1 = 0x4100_0000;
        cpu.changed = Some((el1, FpState::default(), PacKeys::default()));
        // The others have never been on.
        let cpu = run_on(&vm(3), &FakeService::default(), cpu);
        assert_eq!((cpu.sleeps, cpu.loads.len()), (1, 2), "{function:#x}");
        let woken = &cpu.loads[1].0.el1;
        assert_eq!((woken.cntv_ctl_el0, woken.cntv_cval_el0), (1, 1000));
        assert_eq!(woken.ttbr0_el1, 0);
    }
}

#[test]
fn every_wrong_way_to_suspend_has_its_error_and_does_nothing() {
    let down = 1 << 16;
    let script = [
        call(CPU_SUSPEND, [down | 1 << 31, ENTRY, 0]),
        returns(-2), // INVALID_PARAMETERS: a reserved bit
        call(CPU_SUSPEND, [1 << 17, ENTRY, 0]),
        returns(-2),
        call(CPU_SUSPEND, [down, ENTRY + 2, 0]),
        returns(-9), // INVALID_ADDRESS
        call(CPU_SUSPEND, [down, 0x1000, 0]),
        returns(-9),
        call(0xc400_000c, [0x1000, 0, 0]),
        returns(-9),
        call(0x8400_000e, [ENTRY | 1, 0, 0]),
        returns_32(-9),
    ];
    let (cpu, _, reason) = run_alone(script);
    assert_eq!((cpu.sleeps, cpu.loads.len()), (0, 1));
    assert_eq!(reason, Some(StopReason::PoweredOff));
}

#[test]
fn a_system_is_suspended_by_its_last_vcpu_only() {
    let vm = vm(2);
    let script = [
        call(CPU_ON, [1, ENTRY, 0]),
        returns(0),
        call(0xc400_000e, [ENTRY, 0, 0]),
        returns(-3), // DENIED
    ];
    assert!(run(&vm, script).script.is_empty());
}

#[test]
fn of_the_resets_of_several_kinds_a_vm_has_the_warm_one() {
    for function in [0x8400_0012, 0xc400_0012] {
        let script = [
            call(function, [0xdead_beef_0000_0001, 0, 0]),
            check(|regs| assert_eq!(regs.x[0] as i32, -2)), // INVALID_PARAMETERS: reserved
            call(function, [0x8000_0000, 0, 0]),
            check(|regs| assert_eq!(regs.x[0] as i32, -1)), // NOT_SUPPORTED: a vendor's
            call(function, [0xdead_beef_0000_0000, 5, 0]),
            check(|_| panic!("the reset returned")),
        ];
        let (_, _, reason) = run_alone(script);
        assert_eq!(reason, Some(StopReason::Reset));
    }
}

#[test]
fn a_result_is_as_wide_as_its_call() {
    run_alone([
        call(0x8400_0001, [1 << 17, 0, 0]),
        check(|regs| assert_eq!(regs.x[0], 0xffff_fffe)),
        call(CPU_SUSPEND, [1 << 17, 0, 0]),
        check(|regs| assert_eq!(regs.x[0], u64::MAX - 1)),
    ]);
}

/// SMCCC 1.3: bit 16 says that nothing is in SVE's registers.
#[test]
fn a_hint_about_sve_makes_no_other_function() {
    run_alone([
        call(PSCI_VERSION | 1 << 16, [0; 3]),
        returns(0x1_0001),
        call(0xc601_0011, [0x4000_0000, 0x1000, 0]),
        returns_bytes(0x1000),
        call(PSCI_VERSION | 1 << 17, [0; 3]),
        returns_32(-1),
    ]);
}

#[test]
fn turning_off_the_last_vcpu_ends_the_vm() {
    let (_, _, reason) = run_alone([call(CPU_OFF, [0; 3])]);
    assert_eq!(reason, Some(StopReason::AllVcpusOff));
}

#[test]
fn a_reset_ends_the_vm() {
    let (_, _, reason) = run_alone([call(0x8400_0009, [0; 3])]);
    assert_eq!(reason, Some(StopReason::Reset));
}

#[test]
fn an_smc_is_a_hypercall_that_the_program_counter_goes_past() {
    let turn = |regs: &mut GuestRegs| {
        regs.x[0] = PSCI_VERSION;
        exit(SMC)
    };
    run_alone([
        Box::new(turn) as Turn,
        check(|regs| assert_eq!((regs.x[0], regs.pc), (0x1_0001, ENTRY + 4))),
    ]);
}

#[test]
fn an_immediate_other_than_0_is_no_known_call() {
    let turn = |regs: &mut GuestRegs| {
        regs.x[0] = SYSTEM_OFF;
        exit(HVC | 1)
    };
    run_alone([Box::new(turn) as Turn, returns_32(-1)]);
}

#[test]
fn an_unknown_call_changes_nothing_but_x0() {
    let turn = |regs: &mut GuestRegs| {
        regs.x = core::array::from_fn(|index| 0x100 + index as u64);
        regs.x[0] = 0xc300_1234;
        exit(HVC)
    };
    run_alone([
        Box::new(turn) as Turn,
        check(|regs| {
            assert_eq!(regs.x[0], NOT_SUPPORTED);
            assert!((1..31).all(|index| regs.x[index] == 0x100 + index as u64));
        }),
    ]);
}

#[test]
fn the_vendor_range_names_itself_and_goes_to_the_service() {
    let vm = vm(1);
    let service = FakeService::answering([ServiceReply::Return([1, 2, 3, 4])]);
    let script = [
        call(0x8600_ff01, [0; 3]),
        check(|regs| assert_eq!(regs.x[..4], abi::UID.map(u64::from))),
        call(0x8600_ff03, [0; 3]),
        check(|regs| assert_eq!(regs.x[..2], abi::REVISION.map(u64::from))),
        call(0xc600_0002, [7, 8, 9]),
        check(|regs| assert_eq!(regs.x[..4], [1, 2, 3, 4])),
        call(0xc600_1234, [7, 8, 9]),
        check(|regs| assert_eq!(regs.x[..4], [NOT_SUPPORTED, 7, 8, 9])),
    ];
    run_on(&vm, &service, FakeCpu::new(0, &Lines::new(1), script));
    let calls = service.calls.lock().unwrap();
    assert_eq!(
        calls.iter().map(|call| call.0).collect::<Vec<_>>(),
        [0xc600_0002, 0xc600_1234]
    );
    assert_eq!(calls[0].1[..3], [7, 8, 9]);
}

#[test]
fn a_service_may_end_the_vm() {
    let vm = vm(1);
    let verdict = StopReason::Reported {
        vcpu: VcpuId(0),
        code: 3,
        details: [1, 2],
    };
    let service = FakeService::answering([ServiceReply::Stop(verdict)]);
    run_on(
        &vm,
        &service,
        FakeCpu::new(0, &Lines::new(1), [call(0xc600_0003, [3, 1, 2])]),
    );
    assert_eq!(vm.stop_reason(), Some(verdict));
}

#[test]
fn a_waiting_vcpu_sleeps_until_it_is_kicked_and_its_condition_holds() {
    let vm = vm(1);
    let service = FakeService::answering([ServiceReply::Wait, ServiceReply::Wait]);
    let lines = Lines::new(1);
    let script = [
        call(0xc600_0002, [0; 3]),
        check(|regs| assert_eq!(regs.x[..2], [2, 1])),
    ];
    let cpu = FakeCpu::new(0, &lines, script);
    let cpu = std::thread::scope(|scope| {
        let thread = scope.spawn(|| run_on(&vm, &service, cpu));
        while service.left() > 1 {
            std::thread::yield_now();
        }
        service
            .replies
            .lock()
            .unwrap()
            .push_back(ServiceReply::Return([2, 1, 0, 0]));
        while service.left() > 0 {
            lines.kick(CpuId(0));
            std::thread::yield_now();
        }
        thread.join().unwrap()
    });
    assert!(
        cpu.sleeps >= 2,
        "one sleep for each time that it had to wait"
    );
    assert_eq!(vm.stop_reason(), Some(StopReason::PoweredOff));
}

#[test]
fn a_waiting_vcpu_comes_back_when_the_vm_ends() {
    let vm = vm(1);
    let service = FakeService::answering([ServiceReply::Wait; 1000]);
    let lines = Lines::new(1);
    let cpu = FakeCpu::new(0, &lines, [call(0xc600_0002, [0; 3])]);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| run_on(&vm, &service, cpu));
        while service.left() > 999 {
            std::thread::yield_now();
        }
        vm.stop(StopReason::TimedOut, |cpu| lines.kick(cpu));
        thread.join().unwrap();
    });
    assert_eq!(vm.stop_reason(), Some(StopReason::TimedOut));
    assert!(
        service.left() > 900,
        "it slept instead of asking all the time"
    );
}

#[test]
fn a_vcpu_that_is_off_sleeps_until_it_is_turned_on_or_the_vm_ends() {
    let vm = vm(2);
    let lines = Lines::new(2);
    let idle = FakeCpu::new(1, &lines, []);
    let (done, caller) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| run_on(&vm, &FakeService::default(), idle));
        let caller = FakeCpu::new(0, &lines, [call(CPU_ON, [9, ENTRY, 0]), returns(-2)]);
        let caller = run_on(&vm, &FakeService::default(), caller);
        (thread.join().unwrap(), caller)
    });
    assert_eq!((done.loads.len(), caller.loads.len()), (0, 1));
    assert_eq!(vm.stop_reason(), Some(StopReason::PoweredOff));
}

/// The third turns itself off each time. Every answer is one that was true.
#[test]
fn of_two_that_turn_a_vcpu_on_at_once_one_succeeds() {
    for round in 0..200 {
        let vm = vm(3);
        vm.turn_on(
            VcpuId(1),
            Start {
                entry: ENTRY,
                context: 0,
            },
        )
        .unwrap();
        let lines = Lines::new(3);
        let answers = Arc::new(Mutex::new(Vec::new()));
        let caller = |id: usize| {
            let answers = answers.clone();
            let note = check(move |regs| answers.lock().unwrap().push(regs.x[0] as i64));
            FakeCpu::new(
                id,
                &lines,
                [
                    call(CPU_ON, [2, ENTRY, 40 + id as u64]),
                    note,
                    call(CPU_OFF, [0; 3]),
                ],
            )
        };
        let target = FakeCpu::new(2, &lines, (0..2).map(|_| call(CPU_OFF, [0; 3])));
        let done = std::thread::scope(|scope| {
            let vm = &vm;
            let threads = [caller(0), caller(1), target]
                .map(|cpu| scope.spawn(|| run_on(vm, &FakeService::default(), cpu)));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(
            vm.stop_reason(),
            Some(StopReason::AllVcpusOff),
            "round {round}"
        );
        let answers = answers.lock().unwrap();
        let successes = answers.iter().filter(|&&answer| answer == 0).count();
        assert!(
            answers.iter().all(|answer| [0, -4, -5].contains(answer)),
            "{answers:?}"
        );
        assert!(
            successes >= 1 && done[2].loads.len() == successes,
            "{answers:?}"
        );
        assert!(
            done[2]
                .loads
                .iter()
                .all(|(state, _)| [40, 41].contains(&state.regs.x[0]))
        );
    }
}

const TRNG_VERSION: u64 = 0x8400_0050;
const TRNG_RND32: u64 = 0x8400_0053;
const TRNG_RND64: u64 = 0xc400_0053;

#[test]
fn a_vm_on_a_cpu_without_random_numbers_and_without_a_seed_has_none() {
    run_alone([
        call(TRNG_VERSION, [0; 3]),
        returns_32(-1),
        call(TRNG_RND64, [64, 0, 0]),
        returns(-1),
    ]);
}

#[test]
fn a_cpus_random_numbers_are_a_guests_until_it_has_no_more() {
    let script = [
        call(TRNG_VERSION, [0; 3]),
        returns(0x1_0000),
        call(TRNG_RND64, [0xdead_0000_0000_0081, 0, 0]),
        check(|regs| assert_eq!(regs.x[..4], [0, 1, 12, 11])),
        call(TRNG_RND32, [0xdead_0000_0000_0021, 0, 0]),
        check(|regs| assert_eq!(regs.x[..4], [0, 0, 1, 21])),
        call(TRNG_RND64, [64, 5, 5]),
        check(|regs| assert_eq!(regs.x[..4], [-3i64 as u64, 0, 0, 0])),
        call(TRNG_RND32, [97, 5, 5]),
        check(|regs| assert_eq!(regs.x[..4], [0xffff_fffe, 0, 0, 0])),
    ];
    let mut cpu = FakeCpu::new(0, &Lines::new(1), script);
    cpu.random = Some([11, 12, 13, 21 | 3 << 32].into());
    let cpu = run_on(&vm(1), &FakeService::default(), cpu);
    assert!(cpu.script.is_empty());
}

/// What vCPUs 0 of these VMs are given by as many calls, one after the other.
fn random_numbers(vm: &Vm<FakeSpace>, calls: usize) -> Vec<[u64; 3]> {
    let given = Arc::new(Mutex::new(Vec::new()));
    let script = (0..calls).flat_map(|_| {
        let given = given.clone();
        let note = check(move |regs| {
            assert_eq!(regs.x[0], 0);
            given
                .lock()
                .unwrap()
                .push([regs.x[1], regs.x[2], regs.x[3]]);
        });
        [call(TRNG_RND64, [192, 0, 0]), note]
    });
    let script: Vec<_> = script.collect();
    let mut cpu = FakeCpu::new(0, &Lines::new(1), script);
    cpu.times = Mutex::new((0..calls as u64).collect());
    run_on(vm, &FakeService::default(), cpu);
    let given = given.lock().unwrap();
    given.clone()
}

/// Of two VMs, of a vCPU that is turned on again, and of a fork.
#[test]
fn no_random_numbers_of_a_seeded_vm_are_given_twice() {
    let machine = crate::random::Seed::new([1; 32]);
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..2 {
        let mut vm = vm(1);
        vm.set_seed(machine.child(number));
        let fork = forked(&vm.pause(|_| {}));
        for vm in [vm, fork] {
            seen.extend(random_numbers(&vm, 4));
        }
    }
    assert_eq!(seen.len(), 2 * 2 * 4);
}

#[test]
fn a_vcpu_that_is_turned_on_again_goes_on_with_its_random_numbers() {
    let mut vm = vm(1);
    vm.set_seed(crate::random::Seed::new([1; 32]));
    let shared = vm.shared(VcpuId(0));
    let next = || {
        let mut context = shared.context.lock();
        context.start(Start::default());
        context.generator.as_mut().unwrap().next(0)
    };
    assert_ne!(next(), next());
}

const BALLOON: u64 = 0xc600_0010;
const PREFAULT: u64 = 0xc600_0011;
const INVALID_PARAMETERS: i64 = -3;

/// The guest finds these in x0 and x1 after a call.
fn returns_bytes(bytes: u64) -> Turn {
    check(move |regs| assert_eq!(regs.x[..2], [0, bytes]))
}

#[test]
fn a_guest_may_populate_and_give_up_its_memory() {
    let vm = vm(1);
    let range = |start, bytes| Ipa::new(start)..Ipa::new(start + bytes);
    run(
        &vm,
        [
            call(PREFAULT, [0x4000_1000, 0x3000, 0]),
            returns_bytes(0x3000),
            call(PREFAULT, [0x4000_1000, 0x1000, 1]),
            returns_bytes(0x1000),
            call(BALLOON, [0, 1 << 40, 0]),
            // The first part of it, to begin with.
            returns_bytes(2 << 20),
            call(BALLOON, [(1 << 40) - 0x1000, 0x1000, 5]),
            returns_bytes(0x1000),
        ],
    );
    let asked = vm.space.ranges.lock().unwrap();
    assert_eq!(
        *asked,
        [
            (range(0x4000_1000, 0x3000), Some(Access::Read)),
            (range(0x4000_1000, 0x1000), Some(Access::Write)),
            (range(0, 1 << 40), None),
            (range((1 << 40) - 0x1000, 0x1000), None),
        ]
    );
}

#[test]
fn ranges_that_make_no_sense_dont_reach_the_memory() {
    let vm = vm(1);
    let top = 1 << 40;
    let wrong = [
        [0x4000_0000, 0],
        [0x4000_0800, 0x1000],
        [0x4000_0000, 0x1800],
        [0x4000_0001, 0xfff],
        [top - 0x1000, 0x2000],
        [top, 0x1000],
        [0x1000, u64::MAX - 0xfff],
        [u64::MAX - 0xfff, 0x1000],
        [u64::MAX - 0xfff, 0x2000],
        [u64::MAX, u64::MAX],
        [0, 1 << 63],
    ];
    let calls = wrong.into_iter().flat_map(|[start, bytes]| {
        [
            call(PREFAULT, [start, bytes, 0]),
            returns(INVALID_PARAMETERS),
            call(PREFAULT, [start, bytes, 1]),
            returns(INVALID_PARAMETERS),
            call(BALLOON, [start, bytes, 0]),
            returns(INVALID_PARAMETERS),
        ]
    });
    let accesses = [2, 1 << 32, u64::MAX].into_iter().flat_map(|access| {
        [
            call(PREFAULT, [0x4000_0000, 0x1000, access]),
            returns(INVALID_PARAMETERS),
        ]
    });
    let cpu = run(&vm, calls.chain(accesses).collect::<Vec<_>>());
    assert!(cpu.script.is_empty());
    assert!(vm.space.ranges.lock().unwrap().is_empty());
}

#[test]
fn what_memory_refuses_has_an_error_of_its_own() {
    use crate::machine::guest_memory::Refusal::{NotBacked, NotPermitted, OutOfFrames};
    for (refusal, error) in [(OutOfFrames, -4), (NotBacked, -5), (NotPermitted, -6)] {
        for function in [BALLOON, PREFAULT] {
            let vm = vm(1);
            vm.space.answers.lock().unwrap().push_back(Err(refusal));
            let nothing = check(|regs| assert_eq!(regs.x[1], 0));
            let script = [
                call(function, [0x4000_0000, 0x1000, 1]),
                returns(error),
                nothing,
            ];
            assert!(run(&vm, script).script.is_empty());
        }
    }
}

#[test]
fn a_vcpu_that_populates_more_than_its_ring_holds_waits_for_its_harvest_and_calls_again() {
    let vm = vm(1);
    let full = Err(crate::machine::guest_memory::Refusal::RingFull);
    vm.space.answers.lock().unwrap().push_back(full);
    let (lines, service) = (Lines::new(1), FakeService::default());
    lines.kick(CpuId(0));
    // A CPU leaves the program counter behind an HVC.
    let after_call = |regs: &mut GuestRegs| {
        regs.pc = ENTRY + 4;
        (regs.x[0], regs.x[1], regs.x[2], regs.x[3]) = (PREFAULT, 0x4000_0000, 0x1000, 1);
        exit(HVC)
    };
    let again = check(|regs| {
        assert_eq!(regs.pc, ENTRY);
        assert_eq!(regs.x[..4], [PREFAULT, 0x4000_0000, 0x1000, 1]);
    });
    let script = [
        Box::new(after_call) as Turn,
        again,
        call(PREFAULT, [0x4000_0000, 0x1000, 1]),
        returns_bytes(0x1000),
    ];
    let cpu = run_on(&vm, &service, FakeCpu::new(0, &lines, script));
    assert_eq!((cpu.sleeps, cpu.script.len()), (1, 0));
    assert_eq!(*service.low_rings.lock().unwrap(), [VcpuId(0)]);
    assert_eq!(vm.exits().of(ExitKind::RingFull), 1);
}

#[test]
fn a_vcpu_that_populates_what_others_change_makes_the_call_again_and_sees_its_vm_end() {
    let vm = vm(1);
    let busy = || Err(crate::machine::guest_memory::Refusal::Busy);
    vm.space.answers.lock().unwrap().extend([busy(), busy()]);
    let (lines, service) = (Lines::new(1), FakeService::default());
    let call = |regs: &mut GuestRegs| {
        assert_eq!(regs.pc, ENTRY);
        regs.pc = ENTRY + 4;
        (regs.x[0], regs.x[1], regs.x[2], regs.x[3]) = (PREFAULT, 0x4000_0000, 0x1000, 1);
        exit(HVC)
    };
    let done = returns_bytes(0x1000);
    let script = [Box::new(call) as Turn, Box::new(call), Box::new(call), done];
    let cpu = run_on(&vm, &service, FakeCpu::new(0, &lines, script));
    assert_eq!((cpu.sleeps, cpu.script.len()), (0, 0));
}
