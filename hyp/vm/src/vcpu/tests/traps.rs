//! Aborts, and instructions that trap.

use super::*;
use crate::registers::debug::DebugState;
use crate::registers::offer::OfferedFeatures;
use crate::registers::pmu::PmuState;

#[test]
fn a_translation_fault_is_told_with_its_address() {
    let vm = vm(1);
    let far = 0xffff_8000_0000_1238;
    let write = RawExit {
        far,
        hpfar: 0x80_0010,
        ..exit(DATA_ABORT | WRITE | 0x06)
    };
    let fetch = RawExit {
        far,
        hpfar: 0x80_0010,
        ..exit(FETCH_ABORT | 0x07)
    };
    run(&vm, [out(write), out(fetch)]);
    let faults = vm.space.faults.lock().unwrap();
    let expected = |access| Fault {
        vcpu: 0,
        ipa: Ipa::new(0x8000_1238),
        va: Some(far),
        access,
        kind: FaultKind::Translation,
    };
    assert_eq!(
        *faults,
        [expected(Access::Write), expected(Access::Execute)]
    );
    assert_eq!(vm.exits().of(ExitKind::TranslationFault), 2);
}

#[test]
fn a_permission_faults_address_is_looked_up_in_stage_1() {
    let vm = vm(1);
    let write = RawExit {
        far: 0x1238,
        hpfar: u64::MAX,
        ..exit(DATA_ABORT | WRITE | 0x0f)
    };
    let mut cpu = FakeCpu::new(0, &Lines::new(1), [out(write)]);
    let ipa = Ipa::new(0x9000_0238);
    cpu.translation = Some(ipa);
    run_on(&vm, &FakeService::default(), cpu);
    let expected = Fault {
        vcpu: 0,
        ipa,
        va: Some(0x1238),
        access: Access::Write,
        kind: FaultKind::Permission,
    };
    assert_eq!(*vm.space.faults.lock().unwrap(), [expected]);
}

#[test]
fn a_permission_fault_whose_translation_has_gone_is_tried_again() {
    let (cpu, exits, _) = run_alone([out(RawExit {
        far: 0x1238,
        ..exit(DATA_ABORT | WRITE | 0x0f)
    })]);
    assert_eq!(
        (
            exits.of(ExitKind::PermissionFault),
            exits.of(ExitKind::LostTranslation)
        ),
        (1, 1)
    );
    assert!(cpu.records.is_empty());
}

#[test]
fn a_fault_of_the_guests_table_walk_tells_the_tables_page() {
    let vm = vm(1);
    run(
        &vm,
        [out(RawExit {
            far: 0x1238,
            hpfar: 0x80_0010,
            ..exit(DATA_ABORT | TABLE_WALK | 0x0f)
        })],
    );
    let fault = vm.space.faults.lock().unwrap()[0];
    assert_eq!(fault.ipa.align_down(PAGE_SIZE), Ipa::new(0x8000_1000));
    assert_eq!(
        (fault.va, fault.access, fault.kind),
        (None, Access::Write, FaultKind::Permission)
    );
}

#[test]
fn an_access_to_nothing_is_an_external_abort_at_el1() {
    let vm = vm(1);
    vm.space
        .outcomes
        .lock()
        .unwrap()
        .extend([FaultOutcome::NoSlot, FaultOutcome::NotPermitted]);
    let write = RawExit {
        far: 0xdead_0008,
        ..exit(0x9343_0046)
    };
    let fetch_at_el0 = |regs: &mut GuestRegs| {
        (regs.pc, regs.pstate) = (0xdead_0000, 0xf000_0000);
        RawExit {
            far: 0xdead_0000,
            ..exit(FETCH_ABORT | 0x06)
        }
    };
    let cpu = run(
        &vm,
        [
            out(write),
            check(|regs| assert_eq!((regs.pc, regs.pstate), (VBAR + 0x200, 0x3c5))),
            Box::new(fetch_at_el0),
            check(|regs| assert_eq!((regs.pc, regs.pstate), (VBAR + 0x400, 0xf000_03c5))),
        ],
    );
    let abort = |esr, elr, spsr, far| ExceptionRecord {
        elr,
        spsr,
        esr,
        far: Some(far),
    };
    assert_eq!(
        cpu.records[0],
        abort(0x25 << 26 | IL | WRITE | 0x10, ENTRY, 0x3c5, 0xdead_0008)
    );
    assert_eq!(
        cpu.records[1],
        abort(
            0x20 << 26 | IL | 0x10,
            0xdead_0000,
            0xf000_0000,
            0xdead_0000
        )
    );
    assert_eq!(vm.exits().of(ExitKind::InjectedAbort), 2);
}

#[test]
fn an_address_beyond_the_ipa_space_is_an_external_abort_too() {
    let (cpu, exits, _) = run_alone([out(RawExit {
        far: 8,
        ..exit(DATA_ABORT)
    })]);
    assert_eq!(cpu.records[0].esr, 0x25 << 26 | IL | 0x10);
    assert_eq!(
        (
            exits.of(ExitKind::OtherAbort),
            exits.of(ExitKind::InjectedAbort)
        ),
        (1, 1)
    );
}

#[test]
fn a_vcpu_with_a_full_ring_has_it_harvested_and_tries_again() {
    let vm = vm(1);
    let outcomes = [FaultOutcome::RingLow, FaultOutcome::RingFull];
    vm.space.outcomes.lock().unwrap().extend(outcomes);
    let write = || {
        out(RawExit {
            hpfar: 0x40_0000,
            ..exit(DATA_ABORT | WRITE | 0x06)
        })
    };
    let service = FakeService::default();
    let lines = Lines::new(1);
    // What harvests the ring kicks.
    lines.kick(CpuId(0));
    run_on(
        &vm,
        &service,
        FakeCpu::new(0, &lines, [write(), write(), write()]),
    );
    assert_eq!(*service.low_rings.lock().unwrap(), [VcpuId(0); 2]);
    assert_eq!(vm.exits().of(ExitKind::RingFull), 1);
    assert_eq!(vm.space.faults.lock().unwrap().len(), 3);
}

#[test]
fn the_longest_fault_of_a_period_is_measured_where_that_is_wanted_and_sleep_does_not_count() {
    let vm = vm_with(1, true);
    let outcomes = [FaultOutcome::Resolved, FaultOutcome::RingFull];
    vm.space.outcomes.lock().unwrap().extend(outcomes);
    let write = || {
        out(RawExit {
            hpfar: 0x40_0000,
            ..exit(DATA_ABORT | WRITE | 0x06)
        })
    };
    let read = out(RawExit {
        hpfar: 0x40_0000,
        ..exit(DATA_ABORT | 0x06)
    });
    let lines = Lines::new(1);
    lines.kick(CpuId(0));
    let cpu = FakeCpu::new(0, &lines, [write(), write(), read]);
    // From 100 to 140; then 7 before the sleep; then 30.
    *cpu.times.lock().unwrap() = [100, 140, 200, 207, 900, 930].into();
    vm.begin_hold_period();
    let cpu = run_on(&vm, &FakeService::default(), cpu);
    assert_eq!(cpu.times.lock().unwrap().len(), 0);
    assert_eq!(vm.longest_hold_ns(), 40);
    assert_eq!(vm.exits().of(ExitKind::ReadFault), 1);
    vm.begin_hold_period();
    assert_eq!(vm.longest_hold_ns(), 0);
}

#[test]
fn what_cannot_be_resolved_ends_the_vm() {
    let vcpu = VcpuId(0);
    let (_, _, reason) = run_alone([out(RawExit {
        far: 5,
        ..exit(DATA_ABORT | 0x30)
    })]);
    assert_eq!(reason, Some(StopReason::TlbConflict { vcpu, va: 5 }));
    let (_, _, reason) = run_alone([out(RawExit {
        reason: ExitReason::SystemError,
        ..exit(7)
    })]);
    assert_eq!(reason, Some(StopReason::SystemError { vcpu, esr: 7 }));
}

#[test]
fn an_error_that_did_no_harm_is_survived() {
    let corrected = 0x2f << 26 | IL | 0b110 << 10 | 0x11;
    let error = RawExit {
        reason: ExitReason::SystemError,
        ..exit(corrected)
    };
    let (_, exits, reason) = run_alone([out(error), check(|regs| assert_eq!(regs.pc, ENTRY))]);
    assert_eq!(exits.of(ExitKind::SystemError), 1);
    assert_eq!(reason, Some(StopReason::PoweredOff));
}

/// What the guest accessed last comes to an error only when it is out, because it goes off, and has the CPU no more.
#[test]
fn an_error_that_comes_after_the_last_exit_ends_the_vm_that_it_is_of() {
    let vcpu = VcpuId(0);
    let esr = 0x2f << 26 | IL;
    let vm = vm(2);
    let lines = Lines::new(1);
    let mut cpu = FakeCpu::new(0, &lines, [call(CPU_OFF, [0; 3])]);
    cpu.late_error = Some(esr);
    run_on(&vm, &FakeService::default(), cpu);
    assert_eq!(
        vm.stop_reason(),
        Some(StopReason::SystemError { vcpu, esr })
    );
    assert_eq!(vm.exits().of(ExitKind::SystemError), 1);
}

#[test]
fn id_registers_are_filtered_and_what_is_not_offered_is_undefined() {
    let (id_aa64pfr1, mdscr, pmcr) = ((3, 0, 0, 4, 1), (2, 0, 0, 2, 2), (3, 3, 9, 12, 0));
    let (cpu, exits, _) = run_alone([
        system(id_aa64pfr1, true),
        check(|regs| assert_eq!((regs.x[5], regs.pc), (0xff, ENTRY + 4))),
        system(mdscr, false),
        check(|regs| assert_eq!((regs.x[5], regs.pc), (0xff, ENTRY + 8))),
        system(pmcr, true),
        check(|regs| assert_eq!((regs.x[5], regs.pc), (0xff, VBAR + 0x200))),
        out(exit(SVE)),
    ]);
    assert_eq!(
        cpu.records[0],
        ExceptionRecord {
            elr: ENTRY + 8,
            spsr: 0x3c5,
            esr: IL,
            far: None
        }
    );
    assert_eq!(cpu.records[1].esr, IL);
    assert_eq!(
        (
            exits.of(ExitKind::SystemRegister),
            exits.of(ExitKind::InjectedUndefined)
        ),
        (3, 2)
    );
}

#[test]
fn features_that_a_vm_offers_are_its_guests() {
    let mut vm = vm(1);
    let offered = OfferedFeatures {
        debug: true,
        vector_bytes: 32,
        ..OfferedFeatures::default()
    };
    vm.offer_features(offered).unwrap();
    let (mdscr, bcr3, bcr16) = ((2, 0, 0, 2, 2), (2, 0, 0, 3, 5), (2, 0, 0, 15, 7));
    let write = |register, value: u64| -> Turn {
        let mut turn = system(register, false);
        Box::new(move |regs| {
            regs.x[5] = value;
            turn(regs)
        })
    };
    let cpu = run(
        &vm,
        [
            write(bcr3, 0x1e5),
            write(mdscr, 1 << 15),
            system(bcr3, true),
            check(|regs| assert_eq!((regs.x[5], regs.pc), (0x1e5, ENTRY + 12))),
            out(exit(SVE)),
            check(|regs| assert_eq!(regs.pc, ENTRY + 12, "it tries again")),
            // The CPU has as many as there can be.
            write(bcr16, 1),
        ],
    );
    assert_eq!(cpu.debug, [0, 1 << 15, 1 << 15]);
    assert!(cpu.records.is_empty());
    let state = vm.pause(|_| {}).state(VcpuId(0)).unwrap();
    assert_eq!(state.debug.breakpoints[3].control, 0x1e5);
    assert!(state.sve.is_some_and(|sve| sve.is_used));

    // Turned on again, it has none of it.
    let mut context = vm.shared(VcpuId(0)).context.lock();
    context.start(Start::default());
    assert_eq!(context.state.debug, DebugState::default());
    assert!(context.state.sve.as_ref().is_some_and(|sve| !sve.is_used));
}

/// Each way: the guest's accesses trap on, or they don't.
#[test]
fn the_first_access_to_performance_monitors_gives_them_to_the_guest() {
    let (pmcr, counter, overflow) = ((3, 3, 9, 12, 0), (3, 3, 14, 8, 2), (3, 0, 9, 14, 1));
    for traps in [true, false] {
        for first in [pmcr, counter, overflow] {
            let mut vm = vm(1);
            let pmu = true;
            vm.offer_features(OfferedFeatures {
                pmu,
                ..OfferedFeatures::default()
            })
            .unwrap();
            let lines = Lines::new(1);
            let mut write = system(pmcr, false);
            let mut cpu = FakeCpu::new(
                0,
                &lines,
                [
                    system(first, true),
                    check(|regs| assert_eq!(regs.pc, ENTRY, "it tries again")),
                    Box::new(move |regs: &mut GuestRegs| {
                        regs.x[5] = 0x27;
                        write(regs)
                    }),
                    system(pmcr, true),
                    check(move |regs| match traps {
                        true => assert_eq!((regs.x[5], regs.pc), (0x27, ENTRY + 8)),
                        false => assert_eq!(regs.pc, VBAR + 0x200),
                    }),
                    // The CPU has no such counter.
                    system(counter, true),
                    check(|regs| assert_eq!(regs.pc, VBAR + 0x200)),
                ],
            );
            cpu.pmu_registers.extend(traps.then_some(((12, 0), 0)));
            let cpu = run_on(&vm, &FakeService::default(), cpu);
            assert_eq!(cpu.pmus_begun, 1);
            let state = vm.pause(|_| {}).state(VcpuId(0));
            assert!(state.is_some_and(|state| state.pmu.is_used));

            // Turned on again, it has none of it.
            let mut context = vm.shared(VcpuId(0)).context.lock();
            context.start(Start::default());
            assert_eq!(context.state.pmu, PmuState::default());
        }
    }
}

#[test]
fn wfi_sleeps_until_the_cpu_is_kicked() {
    let vm = vm(1);
    let lines = Lines::new(1);
    lines.kick(CpuId(0));
    let script = [out(exit(WFI)), check(|regs| assert_eq!(regs.pc, ENTRY + 4))];
    let cpu = run_on(
        &vm,
        &FakeService::default(),
        FakeCpu::new(0, &lines, script),
    );
    assert_eq!(
        (cpu.sleeps, vm.exits().of(ExitKind::WaitForInterrupt)),
        (1, 1)
    );
}

#[test]
fn what_traps_in_aarch32_is_undefined() {
    let wait = |regs: &mut GuestRegs| {
        (regs.pc, regs.pstate) = (0x1000, 0x10);
        exit(0x01 << 26)
    };
    let (cpu, exits, _) = run_alone([
        Box::new(wait) as Turn,
        check(|regs| assert_eq!(regs.pc, VBAR + 0x600)),
    ]);
    assert_eq!(
        cpu.records[0],
        ExceptionRecord {
            elr: 0x1000,
            spsr: 0x10,
            esr: 0,
            far: None
        }
    );
    assert_eq!((cpu.sleeps, exits.of(ExitKind::Other)), (0, 1));
}

/// A guest that fetches from its vector, where it has no memory, and what follows if its SCTLR_EL1 is this.
fn fetches_from_its_vector(sctlr: u64) -> Option<StopReason> {
    let vm = vm(1);
    let outcomes = [FaultOutcome::NoSlot; 3];
    vm.space.outcomes.lock().unwrap().extend(outcomes);
    let fetch = || -> Turn {
        Box::new(|regs: &mut GuestRegs| RawExit {
            far: regs.pc,
            ..exit(FETCH_ABORT | 0x06)
        })
    };
    let mut cpu = FakeCpu::new(0, &Lines::new(1), [fetch(), fetch(), fetch()]);
    cpu.sctlr = sctlr;
    run_on(&vm, &FakeService::default(), cpu);
    vm.stop_reason()
}

#[test]
fn a_guest_without_vectors_is_ended_where_nobody_else_can_help_it() {
    let pc = VBAR + 0x200;
    let vcpu = VcpuId(0);
    assert_eq!(
        fetches_from_its_vector(SPAN),
        Some(StopReason::NoVectors { vcpu, pc })
    );
    // Another vCPU may be about to map something there.
    assert_eq!(
        fetches_from_its_vector(SPAN | 1),
        Some(StopReason::PoweredOff)
    );
}
