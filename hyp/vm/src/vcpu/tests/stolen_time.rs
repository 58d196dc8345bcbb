//! The time stolen from a vCPU, as its guest finds it in its memory.

use super::*;
use crate::stolen_time::StolenTimes;
use std::vec::Vec;

const TIMES: Ipa = Ipa::new(0x90a_0000);
const ARCH_FEATURES: u64 = 0x8000_0001;
const PV_TIME_FEATURES: u64 = 0xc500_0020;
const PV_TIME_ST: u64 = 0xc500_0021;

/// A VM that tells it.
fn telling(vcpus: usize) -> Vm<FakeSpace> {
    let mut vm = vm(vcpus);
    vm.tell_stolen_time(StolenTimes::new(TIMES));
    vm
}

fn write() -> Turn {
    out(RawExit {
        hpfar: 0x40_0000,
        ..exit(DATA_ABORT | WRITE | 0x06)
    })
}

/// A CPU whose clock says these.
fn cpu(script: impl IntoIterator<Item = Turn>, times: &[u64]) -> FakeCpu {
    let mut cpu = FakeCpu::new(0, &Lines::new(1), script);
    cpu.times = Mutex::new(times.iter().copied().collect());
    cpu
}

/// The times written to vCPU 0's structure.
fn written(vm: &Vm<FakeSpace>) -> Vec<u64> {
    let written = vm.space.written.lock().unwrap();
    let time = |(at, bytes): &(Ipa, Vec<u8>)| {
        assert_eq!(*at, TIMES.offset(8));
        u64::from_le_bytes(bytes.as_slice().try_into().unwrap())
    };
    written.iter().map(time).collect()
}

#[test]
fn a_guest_finds_where_its_vcpus_structures_are() {
    let script = [
        call(ARCH_FEATURES, [PV_TIME_FEATURES, 0, 0]),
        returns(0),
        call(PV_TIME_FEATURES, [0xdead_beef_0000_0000 | PV_TIME_ST, 0, 0]),
        returns(0),
        call(PV_TIME_FEATURES, [PV_TIME_FEATURES, 0, 0]),
        returns(0),
        call(PV_TIME_FEATURES, [0xc500_0022, 0, 0]),
        returns(-1),
        call(PV_TIME_ST, [0; 3]),
        returns(0x90a_0000),
        call(0xc500_0022, [0; 3]),
        returns(-1),
        call(0x8500_0020, [PV_TIME_ST, 0, 0]),
        returns_32(-1),
    ];
    assert!(run(&telling(1), script).script.is_empty());
    let script = [
        call(ARCH_FEATURES, [PV_TIME_FEATURES, 0, 0]),
        returns_32(-1),
        call(PV_TIME_FEATURES, [PV_TIME_ST, 0, 0]),
        returns(-1),
        call(PV_TIME_ST, [0; 3]),
        returns(-1),
    ];
    run_alone(script);
}

#[test]
fn the_time_in_which_a_vm_is_paused_or_lacks_memory_is_stolen_from_those_that_ran() {
    let vm = telling(1);
    let outcomes = [FaultOutcome::OutOfFrames, FaultOutcome::OutOfFrames];
    vm.space.outcomes.lock().unwrap().extend(outcomes);
    let mut cpu = cpu([write(), write()], &[100, 175, 200, 210]);
    let service = FakeService::default();
    let mut vcpu = Vcpu::bind(&vm, VcpuId(0), CpuId(0)).unwrap();
    let mut slice = || vcpu.run_slice(&mut cpu, &(), &service);
    for _ in 0..2 {
        // What it is asked meanwhile changes nothing.
        assert_eq!([slice(), slice()], [SliceEnd::Paused; 2]);
        vm.feed(|_| {});
    }
    assert_eq!(slice(), SliceEnd::Ended);
    assert_eq!(written(&vm), [75, 85]);
    assert!(cpu.times.lock().unwrap().is_empty());
}

#[test]
fn the_time_in_which_a_dirty_ring_is_harvested_is_stolen_too() {
    let vm = telling(1);
    let outcome = FaultOutcome::RingFull;
    vm.space.outcomes.lock().unwrap().push_back(outcome);
    let cpu = cpu([write()], &[10, 30]);
    cpu.lines.kick(CpuId(0));
    run_on(&vm, &FakeService::default(), cpu);
    assert_eq!(written(&vm), [20]);
}

/// The clock isn't asked at all.
#[test]
fn nothing_is_stolen_from_a_vcpu_that_waits() {
    let vm = telling(1);
    let wait = [out(exit(WFI)), call(CPU_SUSPEND, [0; 3])];
    let cpu = cpu(wait, &[]);
    let lines = cpu.lines.clone();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| run_on(&vm, &FakeService::default(), cpu));
        while vm.stop_reason().is_none() {
            lines.kick(CpuId(0));
            std::thread::yield_now();
        }
        thread.join().unwrap();
    });
    assert_eq!(written(&vm), []);
}

#[test]
fn what_of_a_pause_isnt_the_guests_time_isnt_stolen() {
    let vm = telling(1);
    let outcome = FaultOutcome::OutOfFrames;
    vm.space.outcomes.lock().unwrap().push_back(outcome);
    let mut cpu = cpu([write()], &[100, 175]);
    let service = FakeService::default();
    let mut vcpu = Vcpu::bind(&vm, VcpuId(0), CpuId(0)).unwrap();
    let mut slice = || vcpu.run_slice(&mut cpu, &(), &service);
    assert_eq!(slice(), SliceEnd::Paused);
    vm.feed(|_| {});
    let at = |ns| Moment { counter: ns, ns };
    let mut pause = vm.pause(|_| {});
    pause.stop_time(at(110));
    pause.resume(at(160));
    assert_eq!(slice(), SliceEnd::Ended);
    assert_eq!(written(&vm), [25]);
}

#[test]
fn a_fork_goes_on_with_its_parents_time() {
    let vm = telling(1);
    let outcome = FaultOutcome::OutOfFrames;
    vm.space.outcomes.lock().unwrap().push_back(outcome);
    let mut first = cpu([write()], &[100]);
    let service = FakeService::default();
    let mut vcpu = Vcpu::bind(&vm, VcpuId(0), CpuId(0)).unwrap();
    assert_eq!(vcpu.run_slice(&mut first, &(), &service), SliceEnd::Paused);
    let fork = forked(&vm.pause(|_| {}));
    run_on(&fork, &service, cpu([], &[130]));
    assert_eq!(written(&fork), [30]);
}
