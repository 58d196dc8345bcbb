//! QEMU's log of what it executes, read into exits.
//!
//! | line of the log | meaning |
//! |---|---|
//! | `Trace 1: 0x7f… [00000000/0000000040202924/…]` | CPU 1 is about to execute the instruction at this address |
//! | `Stopped execution of TB chain before …` | it didn't: it does so later, and says so again |
//! | `Taking exception 4 [Data Abort] on CPU 1` | an exception, of which the next lines tell more |
//! | `...from EL1 to EL2`, `...with ESR 0x24/0x9200004f`, `...to EL2 PC …` | … |
//! | `Exception return from AArch64 EL2 to AArch64 EL1 PC …` | the CPU that was named last enters its guest |
//!
//! All CPUs are emulated by one thread, so that the lines about an exception aren't mixed with another CPU's.

use std::collections::HashMap;
use std::io::{self, BufRead};

/// How many exits of a log are read: where it is cut differs from run to run.
const MOST_EXITS: usize = 1000;

/// What a guest's exit was for, and what the hypervisor executed until it returned to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// ESR_EL2, or nothing if it was for an interrupt.
    pub syndrome: Option<u64>,
    /// The address of each instruction, from the vector to the exception return.
    pub instructions: Vec<u64>,
}

/// What is known of an exception while its lines are read.
#[derive(Default)]
struct Exception {
    cpu: u64,
    from_guest: bool,
    syndrome: Option<u64>,
    is_interrupt: bool,
}

/// The first exits of a log, those of all CPUs. An exit that is cut off isn't one.
pub fn read(mut log: impl BufRead) -> io::Result<Vec<Exit>> {
    let mut exits = Vec::new();
    let mut open = HashMap::<u64, Exit>::new();
    let mut exception = Exception::default();
    let mut last_cpu = None;
    let mut line = Vec::new();
    loop {
        line.clear();
        if exits.len() == MOST_EXITS || log.read_until(b'\n', &mut line)? == 0 {
            return Ok(exits);
        }
        // A line that isn't text is none of those that count.
        let text = std::str::from_utf8(&line).unwrap_or_default().trim_end();
        if let Some((cpu, address)) = executed(text) {
            last_cpu = Some(cpu);
            if let Some(exit) = open.get_mut(&cpu) {
                exit.instructions.push(address);
            }
        } else if text.starts_with("Stopped execution") {
            let exit = last_cpu.and_then(|cpu| open.get_mut(&cpu));
            exit.map(|exit| exit.instructions.pop());
        } else if text.starts_with("Taking exception") {
            exception = Exception {
                cpu: number(text, " on CPU ", 10).unwrap_or(u64::MAX),
                is_interrupt: text.contains("[IRQ]"),
                ..Exception::default()
            };
        } else if let Some(levels) = text.strip_prefix("...from ") {
            exception.from_guest = matches!(levels, "EL0 to EL2" | "EL1 to EL2");
        } else if text.starts_with("...with ESR ") {
            // With an interrupt QEMU shows that of the last exception.
            let syndrome = number(text, "/0x", 16).unwrap_or(0);
            exception.syndrome = (!exception.is_interrupt).then_some(syndrome);
        } else if text.starts_with("...to EL2 ") && exception.from_guest {
            let exit = Exit {
                syndrome: exception.syndrome,
                instructions: Vec::new(),
            };
            open.insert(exception.cpu, exit);
        } else if text.starts_with("Exception return from AArch64 EL2 to AArch64 EL1 ") {
            exits.extend(last_cpu.and_then(|cpu| open.remove(&cpu)));
        }
    }
}

/// The CPU and the address of a line about an instruction.
fn executed(text: &str) -> Option<(u64, u64)> {
    let (cpu, rest) = text.strip_prefix("Trace ")?.split_once(':')?;
    let address = rest.split('/').nth(1)?;
    Some((cpu.parse().ok()?, u64::from_str_radix(address, 16).ok()?))
}

/// The number behind `mark`, to the end of the line.
fn number(text: &str, mark: &str, radix: u32) -> Option<u64> {
    let (_, digits) = text.split_once(mark)?;
    u64::from_str_radix(digits.trim(), radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exits(lines: &[&str]) -> Vec<Exit> {
        read(lines.join("\n").as_bytes()).expect("a slice can be read")
    }

    /// Two CPUs' exits, one after the other; one CPU takes an exception of its own, and is told to stop once.
    const LOG: [&str; 24] = [
        "Trace 1: 0x7f00 [00000000/0000000040200000/00000461/ff028201] ",
        "Taking exception 4 [Data Abort] on CPU 1",
        "...from EL1 to EL2",
        "...with ESR 0x24/0x9200004f",
        "...with FAR 0x80000000",
        "...with SPSR 0x3c5",
        "...to EL2 PC 0x40200c00 PSTATE 0x3c9",
        "Trace 1: 0x7f00 [00000000/0000000040200c00/00000461/ff028201] ",
        "Stopped execution of TB chain before 0x7f00 [0000000040200c00] ",
        "Trace 2: 0x7f00 [00000000/0000000040300000/00000461/ff028201] ",
        "Trace 1: 0x7f00 [00000000/0000000040200c00/00000461/ff028201] ",
        "Taking exception 4 [Data Abort] on CPU 1",
        "...from EL2 to EL2",
        "...with ESR 0x25/0x96000006",
        "...to EL2 PC 0x40200a00 PSTATE 0x3c9",
        "Trace 1: 0x7f00 [00000000/0000000040200a00/00000461/ff028201] ",
        "Exception return from AArch64 EL2 to AArch64 EL2 PC 0x40200c04",
        "Trace 1: 0x7f00 [00000000/0000000040200c04/00000461/ff028201] ",
        "Exception return from AArch64 EL2 to AArch64 EL1 PC 0x40000000",
        "Taking exception 11 [Hypervisor Call] on CPU 2",
        "...from EL1 to EL2",
        "...with ESR 0x16/0x5a000000",
        "...to EL2 PC 0x40200c00 PSTATE 0x3c9",
        "Trace 2: 0x7f00 [00000000/0000000040200c00/00000461/ff028201] ",
    ];

    #[test]
    fn an_exit_has_every_instruction_once() {
        let exit = Exit {
            syndrome: Some(0x9200_004f),
            instructions: vec![0x4020_0c00, 0x4020_0a00, 0x4020_0c04],
        };
        assert_eq!(
            exits(&LOG),
            std::slice::from_ref(&exit),
            "cut off is no exit"
        );
        let end = ["Exception return from AArch64 EL2 to AArch64 EL1 PC 0x40000000"];
        let call = Exit {
            syndrome: Some(0x5a00_0000),
            instructions: vec![0x4020_0c00],
        };
        assert_eq!(exits(&[&LOG[..], &end].concat()), [exit, call]);
    }

    #[test]
    fn the_exit_of_an_interrupt_has_no_syndrome() {
        let log = [
            "Taking exception 5 [IRQ] on CPU 1",
            "...from EL1 to EL2",
            "...with ESR 0x24/0x9200004f",
            "...to EL2 PC 0x40200c80 PSTATE 0x3c9",
            "Trace 1: 0x7f00 [00000000/0000000040200c80/00000461/ff028201] ",
            "Exception return from AArch64 EL2 to AArch64 EL1 PC 0x40000000",
        ];
        let exit = Exit {
            syndrome: None,
            instructions: vec![0x4020_0c80],
        };
        assert_eq!(exits(&log), [exit]);
    }

    #[test]
    fn other_lines_are_none_of_it() {
        assert!(exits(&["", "Trace", "Trace x: [0/1/2]", "IN: "]).is_empty());
        assert_eq!(read(&b"\xff\xfe\n"[..]).expect("it can be read"), []);
    }
}
