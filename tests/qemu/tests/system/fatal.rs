//! Failures of the hypervisor itself, on purpose: a report that leads to the place, then power-off with status 3.

use addr2line::Loader;
use emulator::boot::Outcome;
use qemu_tests::{Boot, describe, images};

/// The functions of a report's backtrace, as `addr2line` resolves them, innermost first.
fn backtrace(outcome: &Outcome) -> Vec<String> {
    let symbols = Loader::new(&images().symbols).expect("the ELF file has symbols");
    let addresses = outcome
        .fatal
        .iter()
        .skip_while(|line| !line.contains("backtrace"))
        .skip(1);
    let offsets =
        addresses.map_while(|line| u64::from_str_radix(line.trim().strip_prefix("0x")?, 16).ok());
    let mut functions = Vec::new();
    for offset in offsets {
        let mut frames = symbols.find_frames(offset).expect("the ELF file is sound");
        while let Ok(Some(frame)) = frames.next() {
            functions.extend(
                frame
                    .function
                    .iter()
                    .filter_map(|name| name.demangle().ok())
                    .map(String::from),
            );
        }
    }
    functions
}

fn fails(kind: &str, words: &[&str]) {
    let outcome = Boot::without_guest(&format!("selftest={kind}")).run();
    assert_eq!(outcome.status, Some(3), "{}", describe(&outcome));
    let first = outcome
        .fatal
        .first()
        .unwrap_or_else(|| panic!("no report: {}", describe(&outcome)));
    assert!(
        words.iter().all(|word| first.contains(word)),
        "expected {words:?}: {}",
        describe(&outcome)
    );
    let functions = backtrace(&outcome);
    let leads_there = functions.iter().any(|name| name.contains("selftest"));
    assert!(leads_there, "{functions:?}: {}", describe(&outcome));
}

#[test]
fn a_panic_is_reported() {
    fails("panic", &["panic", "selftest.rs"]);
}

#[test]
fn an_undefined_instruction_is_reported() {
    fails("undef", &["in the hypervisor"]);
}

#[test]
fn a_stack_overflow_is_reported() {
    fails("stack", &["stack overflow"]);
}

#[test]
fn an_access_to_page_0_is_reported() {
    fails("null", &["data abort"]);
}

#[test]
fn a_write_to_instructions_is_reported() {
    fails("wx", &["permission"]);
}

#[test]
fn an_execution_of_data_is_reported() {
    let outcome = Boot::without_guest("selftest=nx").run();
    assert_eq!(outcome.status, Some(3), "{}", describe(&outcome));
    assert!(
        outcome.fatal[0].contains("instruction abort"),
        "{}",
        describe(&outcome)
    );
}

#[test]
fn a_fault_within_a_report_ends_the_machine() {
    let outcome = Boot::without_guest("selftest=nested").run();
    assert_eq!(outcome.status, Some(3), "{}", describe(&outcome));
    assert!(
        matches!(outcome.end, emulator::boot::End::Ended(_)),
        "{}",
        describe(&outcome)
    );
}
