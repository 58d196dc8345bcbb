//! Guests with a virtual GIC and devices.

use std::vec::Vec;

use super::*;
use crate::machine::cpu::Interrupt;
use crate::registers::pmu::PmuState;
use crate::registers::state::{El1State, FpState, PacKeys};
use crate::vm::devices::Devices;
use crate::vm::pause::ForkError;
use devices::{Bus, Device, RestoreError, Width};
use std::collections::TryReserveError;
use vgic::{Forwarded, Version, Vgic, VgicConfig};

const GICD: u64 = 0x0800_0000;
const GICR: u64 = 0x080a_0000;
const GITS: u64 = 0x0808_0000;
const GICR_SGI: u64 = GICR + 0x1_0000;
const DEVICE: u64 = 0x0900_0000;
/// The device's interrupt.
const SPI: u32 = 33;
const TIMER: u32 = 27;
const PHYSICAL_TIMER: u32 = 30;
const PMU: u32 = 23;
const WFIT: u64 = WFI | 7 << 5 | 0b110;

/// A device that reads as what was written last, and remembers each write.
#[derive(Default)]
struct Latch(Mutex<Vec<(u64, Width, u64)>>);

impl Device for Latch {
    fn read(&self, _: u64, _: Width) -> u64 {
        self.0.lock().unwrap().last().map_or(0, |write| write.2)
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        self.0.lock().unwrap().push((offset, width, value));
    }

    fn save(&self, _: &mut Vec<u8>) -> Result<(), TryReserveError> {
        Ok(())
    }

    fn restore(&self, _: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }
}

struct Board {
    vm: Vm<FakeSpace>,
    gic: Arc<Vgic>,
    device: Arc<Latch>,
}

/// A VM with a GICv3 and a device.
fn board(vcpus: usize) -> Board {
    let forwarded = [TIMER, PHYSICAL_TIMER, PMU].map(|intid| Forwarded {
        virtual_id: intid,
        physical_id: intid,
    });
    let gic = Vgic::new(&VgicConfig {
        version: Version::V3,
        vcpus,
        spis: 32,
        affinity: &|vcpu| VcpuId(vcpu).affinity() as u32,
        distributor: GICD,
        redistributors: GICR,
        its: Some(GITS),
        priority_bits: 5,
        forwarded: &forwarded,
    });
    let (gic, device) = (Arc::new(gic.unwrap()), Arc::new(Latch::default()));
    let bus = Bus::new(Vec::from([(DEVICE..DEVICE + 0x1000, device.clone() as _)])).unwrap();
    let devices = Devices {
        gic: gic.clone(),
        bus,
    };
    let config = VmConfig {
        vcpus,
        ipa_bits: 40,
        counter_offset: 1000,
        times_faults: false,
    };
    let vm = Vm::with_devices(config, Some(devices), FakeSpace::default()).unwrap();
    for vcpu in vm.vcpus() {
        vm.turn_on(vcpu, Start::default()).unwrap();
    }
    Board { vm, gic, device }
}

/// A data abort at `ipa` with these bits of the syndrome. No memory is there.
fn abort(board: &Board, ipa: u64, iss: u64) -> RawExit {
    let devices = board.vm.devices().expect("the board has them");
    if devices.find(Ipa::new(ipa)).is_none() {
        let outcomes = &board.vm.space.outcomes;
        outcomes.lock().unwrap().push_back(FaultOutcome::NoSlot);
    }
    RawExit {
        far: ipa,
        hpfar: (ipa & !0xfff) >> 8,
        ..exit(DATA_ABORT | 0x07 | iss)
    }
}

/// A valid syndrome of an access of 2 to the `size` bytes by register 5, with 64 bits.
fn access(size: u64) -> u64 {
    1 << 24 | size << 22 | 5 << 16 | 1 << 15
}

/// The guest writes 32 bits.
fn store(board: &Board, ipa: u64, value: u32) -> Turn {
    let raw = abort(board, ipa, access(2) | WRITE);
    Box::new(move |regs| {
        regs.x[5] = value.into();
        raw
    })
}

/// The guest switches its GIC on, with these private interrupts, and takes all of group 1.
fn gic_on(board: &Board, cpu: &mut FakeCpu, private: u32) -> Vec<Turn> {
    cpu.unmasked = true;
    Vec::from([
        store(board, GICD, 0b10010),
        store(board, GICR_SGI + 0x80, u32::MAX),
        store(board, GICR_SGI + 0x100, private),
    ])
}

fn run_vcpu(vm: &Vm<FakeSpace>, cpu: &mut FakeCpu) {
    let vcpu = VcpuId(cpu.id.0);
    run_slices(vm, vcpu, cpu, &(), &FakeService::default());
}

#[test]
fn a_device_is_read_and_written_by_general_registers() {
    let board = board(1);
    let script = [
        Box::new({
            let raw = abort(&board, DEVICE + 0x24, access(1) | WRITE);
            move |regs: &mut GuestRegs| {
                regs.x[5] = 0x1234_8765;
                raw
            }
        }) as Turn,
        out(abort(&board, DEVICE, access(1) | 1 << 21)),
        check(|regs| assert_eq!((regs.x[5], regs.pc), (0xffff_ffff_ffff_8765, 8))),
        out(abort(&board, DEVICE, access(1))),
        check(|regs| assert_eq!((regs.x[5], regs.pc), (0x8765, 12))),
    ];
    let mut cpu = FakeCpu::new(0, &Lines::new(1), script);
    run_vcpu(&board.vm, &mut cpu);
    assert_eq!(
        *board.device.0.lock().unwrap(),
        [(0x24, Width::Half, 0x8765)]
    );
    assert_eq!(board.vm.exits().of(ExitKind::DeviceAccess), 3);
    assert!(cpu.records.is_empty());
}

#[test]
fn what_is_no_plain_access_to_a_device_is_an_external_abort() {
    let board = board(1);
    let script = [
        out(abort(&board, DEVICE, 0)), // LDP, say
        out(abort(&board, DEVICE + 0x1000, access(2))),
        out(abort(&board, DEVICE, access(2) | TABLE_WALK)),
        out(RawExit {
            esr: FETCH_ABORT | 0x07,
            ..abort(&board, DEVICE, 0)
        }),
    ];
    let outcomes = &board.vm.space.outcomes;
    outcomes.lock().unwrap().push_back(FaultOutcome::NoSlot);
    let mut cpu = FakeCpu::new(0, &Lines::new(1), script);
    run_vcpu(&board.vm, &mut cpu);
    assert_eq!(cpu.records.len(), 4);
    assert_eq!(board.vm.exits().of(ExitKind::DeviceAccess), 0);
}

#[test]
fn the_gic_is_where_the_guest_was_told() {
    let board = board(2);
    let read = |ipa| out(abort(&board, ipa, access(2)));
    let script = [
        read(GICD + 0x4),
        check(|regs| assert_eq!(regs.x[5] & 0x1f, 1, "64 interrupts")),
        read(GICR + 0x2_0008),
        check(|regs| assert_ne!(regs.x[5] & 1 << 4, 0, "the last redistributor")),
    ];
    let mut cpu = FakeCpu::new(0, &Lines::new(2), script);
    run_vcpu(&board.vm, &mut cpu);
    assert!(cpu.records.is_empty());
}

#[test]
fn a_timer_that_fires_is_forwarded() {
    let board = board(1);
    let mut cpu = FakeCpu::new(0, &Lines::new(1), []);
    let on = gic_on(&board, &mut cpu, 1 << TIMER);
    cpu.script.extend(on);
    let interface = cpu.registers.clone();
    cpu.taken.push_back(Interrupt::VirtualTimer);
    cpu.script.push_back(check(|_| {}));
    cpu.script
        .push_back(check(move |_| assert_eq!(interface.pending(), [TIMER])));
    run_vcpu(&board.vm, &mut cpu);
    assert_eq!(board.vm.stop_reason(), Some(StopReason::PoweredOff));
    assert!(cpu.registers.pending().is_empty(), "the vCPU was put");
}

#[test]
fn an_sgi_reaches_the_other_vcpu_and_kicks_its_cpu() {
    let board = board(2);
    let lines = Lines::new(2);
    let mut other = FakeCpu::new(1, &lines, []);
    // Its own redistributor.
    let mut on = gic_on(&board, &mut other, 0);
    on[2] = store(&board, GICR_SGI + 0x2_0100, 1 << 3);
    on[1] = store(&board, GICR_SGI + 0x2_0080, u32::MAX);
    other.script.extend(on);
    other.script.push_back(out(exit(WFI)));
    let interface = other.registers.clone();
    other
        .script
        .push_back(check(move |_| assert_eq!(interface.pending(), [3])));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            run_vcpu(&board.vm, &mut other);
            other.sleeps
        });
        while board.vm.exits_of(VcpuId(1)).of(ExitKind::WaitForInterrupt) == 0 {
            std::thread::yield_now();
        }
        let send = Box::new(|regs: &mut GuestRegs| {
            // SGI 3 to affinity 1.
            regs.x[5] = 3 << 24 | 1 << 1;
            exit(SYSTEM | 3 << 20 | 5 << 17 | 12 << 10 | 5 << 5 | 11 << 1)
        });
        let mut cpu = FakeCpu::new(0, &lines, [send as Turn, call(CPU_OFF, [0; 3])]);
        run_vcpu(&board.vm, &mut cpu);
        waiter.join().unwrap();
    });
    assert_eq!(board.vm.stop_reason(), Some(StopReason::PoweredOff));
}

#[test]
fn a_vcpu_that_waits_is_woken_by_its_timers_and_timeouts() {
    let board = board(1);
    let mut cpu = FakeCpu::new(0, &Lines::new(1), []);
    cpu.changed = Some(timers((1, 500), (1, 1700)));
    let on = gic_on(&board, &mut cpu, 1 << TIMER | 1 << PHYSICAL_TIMER);
    cpu.script.extend(on);
    cpu.script.extend([
        out(exit(WFI)),
        call(CPU_SUSPEND, [0; 3]),
        returns(0),
        Box::new(|regs: &mut GuestRegs| {
            regs.x[7] = 400;
            exit(WFIT)
        }),
    ]);
    run_vcpu(&board.vm, &mut cpu);
    assert_eq!(cpu.ticks, [Some(1500), Some(1500), Some(1400)]);
}

/// The registers of a guest with its virtual and its physical timer so: CTL, CVAL.
fn timers(virtual_timer: (u64, u64), physical: (u64, u64)) -> (El1State, FpState, PacKeys) {
    let mut el1 = El1State::reset();
    (el1.cntv_ctl_el0, el1.cntv_cval_el0) = virtual_timer;
    (el1.cntp_ctl_el0, el1.cntp_cval_el0) = physical;
    (el1, FpState::default(), PacKeys::default())
}

/// A WFI with an expired timer that the GIC doesn't forward would end at once, again and again.
#[test]
fn a_vcpu_that_waits_is_not_woken_by_timers_whose_interrupts_dont_come() {
    let board = board(1);
    let lines = Lines::new(1);
    let mut cpu = FakeCpu::new(0, &lines, []);
    cpu.changed = Some(timers((1, 0), (1, 7)));
    let on = gic_on(&board, &mut cpu, 1 << PHYSICAL_TIMER);
    cpu.unmasked = false;
    cpu.script.extend(on);
    cpu.script.push_back(out(exit(WFI)));
    // It has come, and isn't ended: no other comes.
    cpu.fires.push_back(Some(Interrupt::PhysicalTimer));
    cpu.script.push_back(check(|_| {}));
    cpu.script.push_back(Box::new(move |_: &mut GuestRegs| {
        // So that the wait has an end.
        lines.kick(CpuId(0));
        exit(WFI)
    }));
    run_vcpu(&board.vm, &mut cpu);
    assert_eq!(cpu.ticks, [Some(7), None]);
}

/// It may have come after the guest was entered last, and isn't taken any more once the vCPU is put.
#[test]
fn a_vcpu_that_waits_with_an_overflow_goes_on_at_once() {
    let overflow = PmuState {
        is_used: true,
        pmcr: 1,
        overflowed: 1 << 31,
        interrupting: 1 << 31,
        ..PmuState::default()
    };
    let off = PmuState {
        pmcr: 0,
        ..overflow.clone()
    };
    for (pmu, enabled, ticks) in [
        (&overflow, 1 << PMU, [Some(0), None]),
        (&overflow, 1 << TIMER, [None, None]),
        (&off, 1 << PMU, [None, None]),
    ] {
        let board = board(1);
        let lines = Lines::new(1);
        let mut cpu = FakeCpu::new(0, &lines, []);
        cpu.pmu = Some(pmu.clone());
        let on = gic_on(&board, &mut cpu, enabled);
        cpu.unmasked = false;
        cpu.script.extend(on);
        let kick = move || lines.kick(CpuId(0));
        let once = kick.clone();
        cpu.script.push_back(Box::new(move |_: &mut GuestRegs| {
            once();
            exit(WFI)
        }));
        // It has come, and isn't ended: no other comes.
        cpu.fires.push_back(Some(Interrupt::Pmu));
        cpu.script.push_back(check(|_| {}));
        cpu.script.push_back(Box::new(move |_: &mut GuestRegs| {
            kick();
            exit(WFI)
        }));
        run_vcpu(&board.vm, &mut cpu);
        assert_eq!(cpu.ticks, ticks, "{pmu:?}");
    }
}

/// PSCI: the wake request comes from the distributor; the CPU interface is off, too.
#[test]
fn a_vcpu_that_is_powered_down_is_woken_by_an_interrupt_that_its_interface_masks() {
    for (function, args) in [
        (CPU_SUSPEND, [1 << 16, ENTRY, 7]),
        (SYSTEM_SUSPEND, [ENTRY, 7, 0]),
    ] {
        let board = board(1);
        let mut cpu = FakeCpu::new(0, &Lines::new(1), []);
        let on = gic_on(&board, &mut cpu, 1 << 3);
        cpu.unmasked = false;
        cpu.script.extend(on);
        cpu.script.extend([
            store(&board, GICR_SGI + 0x200, 1 << 3),
            call(function, args),
            check(|regs| assert_eq!((regs.pc, regs.x[0]), (ENTRY, 7))),
        ]);
        run_vcpu(&board.vm, &mut cpu);
        assert_eq!(cpu.ticks, [Some(0)], "{function:#x}");
    }
}

#[test]
fn a_vcpu_that_is_powered_down_is_woken_by_no_kick_but_by_a_timer() {
    for (function, args) in [
        (CPU_SUSPEND, [1 << 16, ENTRY, 7]),
        (SYSTEM_SUSPEND, [ENTRY, 7, 0]),
    ] {
        let board = board(1);
        let mut cpu = FakeCpu::new(0, &Lines::new(1), []);
        let on = gic_on(&board, &mut cpu, 1 << TIMER);
        cpu.script.extend(on);
        cpu.changed = Some(timers((1, 500), (0, 0)));
        cpu.script.push_back(call(function, args));
        // Kicks that are about something else come before.
        cpu.fires = [None, Some(Interrupt::Kick), Some(Interrupt::VirtualTimer)].into();
        cpu.script
            .push_back(check(|regs| assert_eq!((regs.pc, regs.x[0]), (ENTRY, 7))));
        run_vcpu(&board.vm, &mut cpu);
        assert_eq!(cpu.ticks, [Some(1500); 3], "{function:#x}");
        assert_eq!(board.vm.stop_reason(), Some(StopReason::PoweredOff));
    }
}

#[test]
fn a_vcpu_with_an_interrupt_doesnt_wait() {
    let board = board(1);
    let mut cpu = FakeCpu::new(0, &Lines::new(1), []);
    let on = gic_on(&board, &mut cpu, 0);
    cpu.script.extend(on);
    cpu.script.extend([
        store(&board, GICD + 0x84, u32::MAX),
        store(&board, GICD + 0x104, 1 << (SPI - 32)),
        check(|_| {}),
    ]);
    let gic = board.gic.clone();
    cpu.script.push_back(Box::new(move |_| {
        gic.set_spi_level(SPI, true, |cpu| assert_eq!(cpu, 0));
        exit(WFI)
    }));
    cpu.script.push_back(call(CPU_SUSPEND, [0; 3]));
    cpu.script.push_back(returns(0));
    run_vcpu(&board.vm, &mut cpu);
    assert!(cpu.ticks.is_empty(), "it slept");
}

/// The parts of a fork of this board.
fn parts(gic: Vgic) -> ForkParts<FakeSpace> {
    ForkParts {
        space: FakeSpace::default(),
        devices: Some(Devices {
            gic: Arc::new(gic),
            bus: Bus::default(),
        }),
    }
}

/// An SPI waits, the timer's interrupt is active, and the vCPU sleeps: so it is in the fork, and each goes on alone.
#[test]
fn a_fork_has_its_parents_interrupts() {
    let board = board(1);
    let mut cpu = FakeCpu::new(0, &Lines::new(1), []);
    let on = gic_on(&board, &mut cpu, 1 << TIMER);
    cpu.script.extend(on);
    cpu.taken.push_back(Interrupt::VirtualTimer);
    let acknowledging = cpu.registers.clone();
    cpu.script.extend([
        check(|_| {}),
        check(move |_| acknowledging.acknowledge(TIMER)),
        store(&board, GICD + 0x84, u32::MAX),
        store(&board, GICD + 0x104, 1 << (SPI - 32)),
        out(exit(WFI)),
    ]);
    let mut vcpu = Vcpu::bind(&board.vm, VcpuId(0), CpuId(0)).unwrap();
    let service = FakeService::default();
    let end = vcpu.run_slice(&mut cpu, &(), &service);
    assert_eq!(end, SliceEnd::Waiting);
    drop(vcpu);
    board.gic.set_spi_level(SPI, true, |_| {});

    let mut pause = board.vm.pause(|_| {});
    pause.stop_time(Moment {
        counter: 5000,
        ns: 0,
    });
    let now = Moment {
        counter: 5070,
        ns: 70,
    };
    let fork = pause.fork(parts(board.gic.snapshot().unwrap()), now);
    let fork = fork.unwrap_or_else(|(error, _)| panic!("{error}"));
    pause.resume(Moment {
        counter: 5100,
        ns: 100,
    });
    assert_eq!(fork.counter_offset(), 1070);
    assert_eq!(board.vm.counter_offset(), 1100);
    // The parent's line falls, the fork's stays.
    board.gic.set_spi_level(SPI, false, |_| {});
    for (vm, pending) in [(&board.vm, &[][..]), (&fork, &[SPI])] {
        let mut cpu = FakeCpu::new(1, &Lines::new(2), []);
        cpu.unmasked = true;
        let interface = cpu.registers.clone();
        cpu.script.push_back(check(move |_| {
            assert_eq!(interface.pending(), pending);
            assert_eq!(interface.active(), [TIMER]);
            let physical = interface.physically_active();
            assert_eq!(physical, [TIMER], "its timer would fire again");
        }));
        run_slices(vm, VcpuId(0), &mut cpu, &(), &FakeService::default());
        assert_eq!(cpu.loads[0].1.counter_offset, vm.counter_offset());
        assert!(cpu.registers.physically_active().is_empty());
    }
}

#[test]
fn a_forks_interrupt_controller_is_its_parents() {
    let (other, of_program) = (board(2), vm(1));
    let board = board(1);
    let refused = [
        board.vm.pause(|_| {}).fork(
            ForkParts {
                space: FakeSpace::default(),
                devices: None,
            },
            Moment::default(),
        ),
        board
            .vm
            .pause(|_| {})
            .fork(parts(other.gic.snapshot().unwrap()), Moment::default()),
        of_program
            .pause(|_| {})
            .fork(parts(other.gic.snapshot().unwrap()), Moment::default()),
    ];
    for refused in refused {
        assert!(matches!(refused, Err((ForkError::Devices, _))));
    }
}

/// More than an access executes.
#[test]
fn all_commands_of_the_its_are_executed_before_the_guest_goes_on() {
    const QUEUE: u32 = 0x4010_0000;
    const PROPERTIES: u32 = 0x4020_0000;
    const VALID: u64 = 1 << 63;
    let board = board(1);
    // MAPC, MAPD, MAPTI; CLEAR of an event that isn't mapped; INT.
    let mut commands = Vec::from([[9, 0, VALID, 0], [8, 1, VALID, 0], [0xa, 8192 << 32, 0, 0]]);
    commands.extend([[4_u64, 1, 0, 0]; 100]);
    commands.push([3, 0, 0, 0]);
    let mut written = board.vm.space.written.lock().unwrap();
    for (index, words) in commands.iter().enumerate() {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        written.push((Ipa::new(u64::from(QUEUE) + 32 * index as u64), bytes));
    }
    written.push((Ipa::new(PROPERTIES.into()), Vec::from([0xa1])));
    drop(written);
    let mut cpu = FakeCpu::new(0, &Lines::new(1), []);
    let on = gic_on(&board, &mut cpu, 0);
    cpu.script.extend(on);
    for (register, value) in [
        (GICR + 0x70, PROPERTIES | 13),
        (GICR, 1),
        (GITS + 0x104, 1 << 31),
        (GITS + 0x10c, 1 << 31),
        (GITS + 0x80, QUEUE),
        (GITS + 0x84, 1 << 31),
        (GITS, 1),
        (GITS + 0x88, 32 * commands.len() as u32),
    ] {
        cpu.script.push_back(store(&board, register, value));
    }
    let interface = cpu.registers.clone();
    cpu.script
        .push_back(check(move |_| assert_eq!(interface.pending(), [8192])));
    run_vcpu(&board.vm, &mut cpu);
    assert_eq!(board.vm.stop_reason(), Some(StopReason::PoweredOff));
}
