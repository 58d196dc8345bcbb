//! Pauses: from outside, for lack of memory, and with a fork.

use super::*;
use crate::registers::state::{El1State, FpState, PacKeys};
use crate::registers::syndrome::Syndrome;
use crate::vm::pause::Pause;
use crate::vm::power::PowerState;
use crate::vm::stop_reason::Starvation;
use std::panic::{self, AssertUnwindSafe};
use std::thread;
use std::time::{Duration, Instant};
use std::vec::Vec;

const START: Start = Start {
    entry: ENTRY,
    context: 7,
};

/// The guest counts in x20.
fn count() -> Turn {
    Box::new(|regs| {
        regs.x[20] += 1;
        thread::yield_now();
        RawExit {
            reason: ExitReason::Interrupt,
            ..exit(0)
        }
    })
}

fn counting(id: usize, lines: &Arc<Lines>) -> FakeCpu {
    let mut cpu = FakeCpu::new(id, lines, []);
    cpu.endless = Some(count());
    cpu
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(600), "it never came");
        thread::yield_now();
    }
}

fn wait_for<S, K: FnMut(CpuId)>(pause: &Pause<'_, S, K>) {
    wait_until(|| pause.is_complete());
}

/// Runs vCPUs of `vm` on the CPUs of the same numbers beside `watch`, and ends the VM if that fails.
fn beside<R>(
    vm: &Vm<FakeSpace>,
    service: &FakeService,
    cpus: Vec<FakeCpu>,
    watch: impl FnOnce() -> R,
) -> (Vec<FakeCpu>, R) {
    let lines = cpus[0].lines.clone();
    thread::scope(|scope| {
        let run = |cpu| scope.spawn(move || run_on(vm, service, cpu));
        let threads: Vec<_> = cpus.into_iter().map(run).collect();
        let result = panic::catch_unwind(AssertUnwindSafe(watch));
        if result.is_err() {
            vm.stop(StopReason::Requested, |cpu| lines.kick(cpu));
        }
        let cpus = threads.into_iter().map(|thread| thread.join().unwrap());
        (
            cpus.collect(),
            result.unwrap_or_else(|failure| panic::resume_unwind(failure)),
        )
    })
}

#[test]
fn a_paused_vms_vcpus_stand_still_and_go_on_where_they_were() {
    let (vm, lines, service) = (vm(3), Lines::new(3), FakeService::default());
    vm.turn_on(VcpuId(1), START).unwrap();
    // The third is off.
    let cpus = (0..3).map(|id| counting(id, &lines)).collect();
    let (cpus, ()) = beside(&vm, &service, cpus, || {
        let mut last = [0; 2];
        let paused = || service.paused.lock().unwrap().clone();
        while last.contains(&0) || (0..3).any(|id| !paused().contains(&VcpuId(id))) {
            let pause = vm.pause(|cpu| lines.kick(cpu));
            wait_for(&pause);
            let counts = || [0, 1].map(|id| pause.state(VcpuId(id)).unwrap().regs.x[20]);
            let before = counts();
            thread::sleep(Duration::from_micros(100));
            assert!(pause.is_complete());
            assert_eq!(counts(), before, "it ran while it was paused");
            assert!(last[0] <= before[0] && last[1] <= before[1], "it went back");
            last = before;
        }
        vm.stop(StopReason::Requested, |cpu| lines.kick(cpu));
    });
    assert!(cpus[2].loads.is_empty());
    assert!(
        cpus[0]
            .loads
            .iter()
            .skip(1)
            .all(|(state, _)| state.regs.x[0] == 0x4800_0000),
        "it was started again"
    );
}

/// The guest does nothing but write to logged pages for the first time, and counts that in x20.
fn only_faulting(lines: &Arc<Lines>) -> FakeCpu {
    let mut cpu = FakeCpu::new(0, lines, []);
    cpu.translation = Some(Ipa::new(ENTRY));
    cpu.endless = Some(Box::new(|regs| {
        regs.x[20] += 1;
        thread::yield_now();
        RawExit {
            far: 0x1_2345,
            ..exit(DATA_ABORT | WRITE | 0x0f)
        }
    }));
    cpu
}

#[test]
fn a_pause_and_a_stop_reach_a_vcpu_that_does_nothing_but_fault() {
    let (vm, lines, service) = (vm(1), Lines::new(1), FakeService::default());
    let (_, ()) = beside(&vm, &service, vec![only_faulting(&lines)], || {
        let mut last = 0;
        for _ in 0..3 {
            wait_until(|| vm.exits().of(ExitKind::PermissionFault) > last);
            let pause = vm.pause(|cpu| lines.kick(cpu));
            wait_for(&pause);
            let faults = vm.exits().of(ExitKind::PermissionFault);
            assert!(faults > last && pause.state(VcpuId(0)).unwrap().regs.x[20] == faults);
            last = faults;
        }
        vm.stop(StopReason::Requested, |cpu| lines.kick(cpu));
    });
    assert_eq!(vm.stop_reason(), Some(StopReason::Requested));
}

#[test]
fn a_ring_that_gets_low_or_is_full_reaches_a_vcpu_that_does_nothing_but_fault() {
    let (vm, lines, service) = (vm(1), Lines::new(1), FakeService::default());
    let outcomes = [
        FaultOutcome::Resolved,
        FaultOutcome::RingLow,
        FaultOutcome::RingFull,
    ];
    vm.space.outcomes.lock().unwrap().extend(outcomes);
    let (_, ()) = beside(&vm, &service, vec![only_faulting(&lines)], || {
        // The third one waits for its harvester.
        wait_until(|| vm.exits().of(ExitKind::RingFull) == 1);
        assert_eq!(*service.low_rings.lock().unwrap(), [VcpuId(0); 2]);
        lines.kick(CpuId(0));
        wait_until(|| vm.exits().of(ExitKind::PermissionFault) > 3);
        vm.stop(StopReason::Requested, |cpu| lines.kick(cpu));
    });
    let written = vm.space.faults.lock().unwrap()[0];
    assert_eq!((written.ipa, written.va), (Ipa::new(ENTRY), Some(0x1_2345)));
    assert_eq!(
        (written.access, written.kind),
        (Access::Write, FaultKind::Permission)
    );
}

#[test]
fn a_pause_is_complete_only_when_handlers_are() {
    let (vm, lines, service) = (vm(1), Lines::new(1), FakeService::default());
    let held = service.calls.lock().unwrap();
    let cpu = FakeCpu::new(0, &lines, [call(0xc600_0002, [7, 8, 9])]);
    beside(&vm, &service, vec![cpu], || {
        // Given back if this fails, too.
        let held = held;
        let runs = || vm.exits().of(ExitKind::Hypercall) == 1;
        wait_until(runs);
        let pause = vm.pause(|cpu| lines.kick(cpu));
        thread::sleep(Duration::from_millis(5));
        assert!(!pause.is_complete(), "a handler is in the middle of a call");
        drop(held);
        wait_for(&pause);
        let x = pause.state(VcpuId(0)).unwrap().regs.x;
        assert_eq!(x[..3], [NOT_SUPPORTED, 7, 8], "the call was finished");
    });
    assert_eq!(vm.stop_reason(), Some(StopReason::PoweredOff));
}

#[test]
fn a_vm_goes_on_when_the_last_pause_ends() {
    let (vm, lines, service) = (vm(1), Lines::new(1), FakeService::default());
    let first = vm.pause(|cpu| lines.kick(cpu));
    beside(&vm, &service, vec![FakeCpu::new(0, &lines, [])], || {
        let second = vm.pause(|cpu| lines.kick(cpu));
        wait_until(|| vm.cpu_of(VcpuId(0)).is_some());
        drop(first);
        thread::sleep(Duration::from_millis(5));
        assert_eq!(vm.stop_reason(), None);
        assert!(second.is_complete());
        drop(second);
    });
    assert_eq!(vm.stop_reason(), Some(StopReason::PoweredOff));
}

#[test]
fn a_paused_vm_can_be_ended() {
    let (vm, lines, service) = (vm(1), Lines::new(1), FakeService::default());
    let cpus = vec![counting(0, &lines)];
    let (cpus, _pause) = beside(&vm, &service, cpus, || {
        let pause = vm.pause(|cpu| lines.kick(cpu));
        wait_for(&pause);
        vm.stop(StopReason::TimedOut, |cpu| lines.kick(cpu));
        pause
    });
    assert!(cpus[0].loads.len() <= 1);
}

#[test]
fn a_vcpu_that_is_turned_on_in_a_pause_starts_after_it() {
    let (vm, lines, service) = (vm(2), Lines::new(2), FakeService::default());
    let cpu = FakeCpu::new(1, &lines, []);
    beside(&vm, &service, vec![cpu], || {
        let pause = vm.pause(|cpu| lines.kick(cpu));
        vm.turn_on(VcpuId(1), START).unwrap();
        lines.kick(CpuId(1));
        thread::sleep(Duration::from_millis(5));
        assert_eq!(vm.power_state(VcpuId(1)), PowerState::OnPending);
        drop(pause);
    });
    assert_eq!(vm.stop_reason(), Some(StopReason::PoweredOff));
}

#[test]
fn a_vcpu_that_waits_for_an_answer_gets_it_after_the_pause() {
    let (vm, lines) = (vm(1), Lines::new(1));
    let service = FakeService::answering([ServiceReply::Wait; 3]);
    let answered = check(|regs| assert_eq!(regs.x[..4], [1, 2, 3, 4]));
    let cpu = FakeCpu::new(0, &lines, [call(0xc600_0002, [7, 8, 9]), answered]);
    let (cpus, ()) = beside(&vm, &service, vec![cpu], || {
        wait_until(|| service.left() < 3);
        let pause = vm.pause(|cpu| lines.kick(cpu));
        wait_for(&pause);
        assert_eq!(
            pause.state(VcpuId(0)).unwrap().regs.x[1..4],
            [7, 8, 9],
            "no answer"
        );
        *service.replies.lock().unwrap() = [ServiceReply::Return([1, 2, 3, 4])].into();
        drop(pause);
    });
    assert!(cpus[0].script.is_empty());
    assert_eq!(service.calls.lock().unwrap().len(), 1, "it called again");
}

#[test]
fn a_vm_that_lacks_memory_is_paused_and_tries_again_when_it_is_fed() {
    let vm = vm(2);
    vm.turn_on(VcpuId(1), START).unwrap();
    let outcomes = [FaultOutcome::OutOfFrames, FaultOutcome::OutOfFrames];
    vm.space.outcomes.lock().unwrap().extend(outcomes);
    let (lines, service) = (Lines::new(2), FakeService::default());
    let write = RawExit {
        hpfar: 0x40_0000,
        ..exit(DATA_ABORT | WRITE | 0x06)
    };
    let cpus = vec![
        FakeCpu::new(0, &lines, [out(write), out(write), out(write)]),
        counting(1, &lines),
    ];
    let lack = Some(Starvation {
        vcpu: VcpuId(0),
        ipa: Ipa::new(0x4000_0000),
    });
    beside(&vm, &service, cpus, || {
        for faults in 1..=2 {
            wait_until(|| vm.starvation().is_some());
            assert_eq!((vm.starvation(), vm.stop_reason()), (lack, None));
            {
                let pause = vm.pause(|cpu| lines.kick(cpu));
                wait_for(&pause);
                assert_eq!(
                    pause.state(VcpuId(0)).unwrap().regs.pc,
                    ENTRY,
                    "it went past it"
                );
            }
            thread::sleep(Duration::from_millis(5));
            assert_eq!(vm.starvation(), lack, "another pause's end fed it");
            assert_eq!(vm.space.faults.lock().unwrap().len(), faults);
            vm.feed(|cpu| lines.kick(cpu));
        }
    });
    assert_eq!(vm.starvation(), None);
    assert_eq!(vm.space.faults.lock().unwrap().len(), 3);
    assert!(service.paused.lock().unwrap().contains(&VcpuId(0)));
    assert!(service.paused.lock().unwrap().contains(&VcpuId(1)));
}

#[test]
fn time_stands_still_in_a_pause_from_when_all_vcpus_are_out() {
    let parent = vm(2);
    let before = parent.counter_offset();
    let at = |counter| Moment { counter, ns: 0 };
    let context = parent.shared(VcpuId(1)).context.lock();
    let mut pause = parent.pause(|_| {});
    pause.stop_time(at(10));
    drop(context);
    pause.resume(at(100));
    assert_eq!(parent.counter_offset(), before, "a vCPU wasn't out yet");

    let mut pause = parent.pause(|_| {});
    pause.stop_time(at(110));
    let mut other = parent.pause(|_| {});
    other.stop_time(at(120));
    other.resume(at(130));
    assert_eq!(parent.counter_offset(), before, "it was paused already");
    pause.resume(at(140));
    assert_eq!(parent.counter_offset(), before + 30);
    parent.pause(|_| {}).resume(at(1000));
    assert_eq!(parent.counter_offset(), before + 30, "it wasn't stopped");
}

/// A parent of which vCPU 0 runs, 1 waits for a service, 2 is about to start, and 3 is off.
#[test]
fn a_forks_vcpus_go_on_where_the_parents_were_paused() {
    let (parent, lines) = (vm(4), Lines::new(4));
    parent.turn_on(VcpuId(1), START).unwrap();
    parent.turn_on(VcpuId(2), START).unwrap();
    let service = FakeService::answering([ServiceReply::Wait; 50]);
    let marks = marks();
    let mut running = counting(0, &lines);
    running.changed = Some(marks.clone());
    let waiting = FakeCpu::new(1, &lines, [call(0xc600_0002, [7, 8, 9])]);
    let (_, (child, state)) = beside(&parent, &service, vec![running, waiting], || {
        wait_until(|| {
            service.left() < 50 && parent.exits_of(VcpuId(0)).of(ExitKind::Interrupt) > 5
        });
        let pause = parent.pause(|cpu| lines.kick(cpu));
        wait_for(&pause);
        let child = forked(&pause);
        let state = pause.state(VcpuId(0)).unwrap();
        drop(pause);
        parent.stop(StopReason::Requested, |cpu| lines.kick(cpu));
        (child, state)
    });
    assert!(state.regs.x[20] > 5);
    assert_eq!(
        (child.stop_reason(), child.exits()),
        (None, ExitCounts::default())
    );
    let states = child.vcpus().map(|vcpu| child.power_state(vcpu));
    let expected = [
        PowerState::On,
        PowerState::On,
        PowerState::OnPending,
        PowerState::Off,
    ];
    assert_eq!(states.collect::<Vec<_>>(), expected);

    // On other CPUs, in another order.
    let lines = Lines::new(8);
    let service = FakeService::answering([ServiceReply::Return([1, 2, 3, 4])]);
    let script = |vcpu: usize| -> Vec<Turn> {
        let off = call(CPU_OFF, [0; 3]);
        match vcpu {
            0 => vec![off],
            1 => vec![check(|regs| assert_eq!(regs.x[..4], [1, 2, 3, 4])), off],
            _ => vec![
                check(|regs| assert_eq!((regs.pc, regs.x[0]), (ENTRY, 7))),
                off,
            ],
        }
    };
    let cpus = thread::scope(|scope| {
        let threads = [3, 2, 1, 0].map(|vcpu| {
            let mut cpu = FakeCpu::new(7 - vcpu, &lines, script(vcpu));
            let (child, service) = (&child, &service);
            scope.spawn(move || {
                run_slices(child, VcpuId(vcpu), &mut cpu, &(), service);
                cpu
            })
        });
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(
        child.stop_reason(),
        Some(StopReason::AllVcpusOff),
        "three were on"
    );
    let [third, second, first, zeroth] = cpus;
    assert!(third.loads.is_empty());
    assert_eq!((first.loads.len(), second.loads.len()), (1, 1));
    let (loaded, controls) = &zeroth.loads[0];
    assert_eq!(*loaded, state);
    assert_eq!(
        (loaded.el1.clone(), loaded.fp.clone(), loaded.pac.clone()),
        marks
    );
    assert_eq!((controls.counter_offset, controls.mpidr), (5, 0x8000_0000));
    assert!(service.calls.lock().unwrap().is_empty(), "it called again");
}

/// Registers beside the general ones, unlike those of a vCPU that has just been started.
fn marks() -> (El1State, FpState, PacKeys) {
    let mut fp = FpState::default();
    fp.q[31] = u128::MAX / 3;
    (fp.fpcr, fp.fpsr) = (0x100, 0x200);
    let el1 = El1State {
        ttbr0_el1: 0x4123_0000,
        cntv_cval_el0: 77,
        ..El1State::reset()
    };
    let pac = PacKeys {
        apga: [5, 6],
        ..PacKeys::default()
    };
    (el1, fp, pac)
}

#[test]
fn a_glance_tells_where_a_vcpu_is_and_how_it_came_out_last() {
    let (vm, lines, service) = (vm(2), Lines::new(2), FakeService::default());
    let mut cpu = counting(0, &lines);
    let abort = RawExit {
        far: 0x1238,
        ..exit(0x9200_0006)
    };
    cpu.script.push_back(Box::new(move |regs| {
        regs.pc = 0x77;
        abort
    }));
    let cpus = vec![cpu, FakeCpu::new(1, &lines, [])];
    beside(&vm, &service, cpus, || {
        wait_until(|| vm.exits().of(ExitKind::Interrupt) != 0);
        let pause = vm.pause(|cpu| lines.kick(cpu));
        wait_for(&pause);
        let seen = pause.glance(VcpuId(0)).seen.expect("it is out");
        let last_exit = Syndrome {
            esr: abort.esr,
            far: abort.far,
        };
        assert_eq!(
            (seen.pc, seen.last_exit),
            (0x77, last_exit),
            "interrupts don't count"
        );
        let other = pause.glance(VcpuId(1));
        assert_eq!((other.power, other.exits), (PowerState::Off, 0));
        vm.stop(StopReason::Requested, |cpu| lines.kick(cpu));
    });
}

#[test]
fn a_glance_at_a_vcpu_that_is_being_served_waits_for_nobody() {
    let (vm, lines, service) = (vm(1), Lines::new(1), FakeService::default());
    let held = service.calls.lock().unwrap();
    let cpu = FakeCpu::new(0, &lines, [call(0xc600_0002, [7, 8, 9])]);
    beside(&vm, &service, vec![cpu], || {
        // Given back if this fails, too.
        let held = held;
        wait_until(|| vm.exits().of(ExitKind::Hypercall) == 1);
        let pause = vm.pause(|cpu| lines.kick(cpu));
        let glance = pause.glance(VcpuId(0));
        assert_eq!((glance.seen, glance.exits), (None, 1));
        drop(held);
    });
}
