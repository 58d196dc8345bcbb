//! Whatever guests do to UART and clock, and whatever comes from outside: lines are as the registers say, no byte is made up, and
//! a state that is saved and restored is the same.
#![no_main]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use devices::{Device, DeviceHost, IrqLine, Pl011, Pl031, Width};
use libfuzzer_sys::fuzz_target;

/// A machine whose clock is set by the test.
#[derive(Default)]
struct Machine {
    now_ns: AtomicU64,
    level: AtomicBool,
}

impl DeviceHost for Machine {
    fn now_ns(&self) -> u64 {
        self.now_ns.load(Ordering::Relaxed)
    }

    fn wake(&self) {}
}

impl IrqLine for Machine {
    fn set(&self, level: bool) {
        self.level.store(level, Ordering::Relaxed);
    }
}

/// What is done, at which offset, with which value.
type Step = (u8, u16, u64);

fuzz_target!(|steps: Vec<Step>| {
    uart(&steps);
    clock(&steps);
});

/// Registers that are read without an effect: masked interrupts.
const UART_MIS: u64 = 0x40;
const CLOCK_MIS: u64 = 0x18;

fn uart(steps: &[Step]) {
    let machine = Arc::new(Machine::default());
    let Ok(uart) = Pl011::new(machine.clone(), machine.clone()) else {
        return;
    };
    let (mut sent, mut taken) = (0, 0);
    for &(what, offset, value) in steps {
        let bytes = value.to_le_bytes();
        match what % 8 {
            0..6 => {
                sent += usize::from(what % 8 < 4);
                access(&uart, what, offset, value);
            }
            6 => {
                let mut room = vec![0; (value % 5000) as usize];
                taken += uart.take_output(&mut room);
            }
            _ => assert!(uart.give_input(&bytes.repeat(4)) <= 16),
        }
        assert!(taken <= sent, "{taken} bytes of {sent} writes");
        let is_raised = uart.read(UART_MIS, Width::Word) != 0;
        assert_eq!(machine.level.load(Ordering::Relaxed), is_raised);
    }
    check_saved(&uart);
    let bytes: Vec<u8> = steps.iter().map(|step| step.0).collect();
    let _ = uart.restore(&bytes);
}

fn clock(steps: &[Step]) {
    let machine = Arc::new(Machine::default());
    let clock = Pl031::new(u32::MAX, machine.clone(), machine.clone());
    for &(what, offset, value) in steps {
        match what % 8 {
            0..6 => access(&clock, what, offset, value),
            6 => {
                // It may come near the end of time, and doesn't go back.
                let passed = value >> (offset % 64);
                let now = machine.now_ns.load(Ordering::Relaxed);
                machine
                    .now_ns
                    .store(now.saturating_add(passed), Ordering::Relaxed);
                clock.attend();
                let deadline = clock.deadline_ns();
                assert!(deadline.is_none_or(|deadline| deadline > machine.now_ns()));
            }
            _ => check_saved(&clock),
        }
        let is_raised = clock.read(CLOCK_MIS, Width::Word) != 0;
        assert_eq!(machine.level.load(Ordering::Relaxed), is_raised);
    }
    let bytes: Vec<u8> = steps.iter().map(|step| step.0).collect();
    let _ = clock.restore(&bytes);
}

fn access(device: &dyn Device, what: u8, offset: u16, value: u64) {
    let width = Width::ALL[usize::from(what) / 8 % 4];
    // Mostly a register; also what is beyond the end.
    let offset = u64::from(offset);
    let offset = if what >= 128 {
        offset
    } else {
        offset % 0x20 * 4
    };
    match what % 8 {
        0..4 => device.write(offset, width, value),
        _ => {
            let value = device.read(offset, width);
            assert_eq!(value, width.of(value), "bits beyond the width");
        }
    }
}

/// What is saved is restored, and saved as the same.
fn check_saved(device: &dyn Device) {
    let mut saved = Vec::new();
    device.save(&mut saved).expect("memory");
    device.restore(&saved).expect("its own state");
    let mut again = Vec::new();
    device.save(&mut again).expect("memory");
    assert_eq!(saved, again);
}
