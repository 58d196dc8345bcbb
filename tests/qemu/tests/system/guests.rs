//! Guests that misbehave: each ends its own VM at worst, never the machine.

use qemu_tests::{Boot, describe};

/// The guest finds nothing wrong with what it was answered.
fn passes(probe: &str) {
    let outcome = Boot::probe(probe).run();
    let is_well = outcome.status == Some(0) && outcome.fatal.is_empty();
    assert!(is_well, "{probe}: {}", describe(&outcome));
}

/// The VM ends with an error that contains `word`.
fn ends_with(probe: &str, options: &str, word: &str) {
    let outcome = Boot::probe(probe).append(options).run();
    assert_eq!(outcome.status, Some(1), "{probe}: {}", describe(&outcome));
    assert!(outcome.fatal.is_empty(), "{probe}: {}", describe(&outcome));
    assert!(
        outcome.errors.iter().any(|error| error.contains(word)),
        "{probe}: {}",
        describe(&outcome)
    );
}

#[test]
fn accesses_outside_every_slot_are_external_aborts() {
    passes("outside");
}

#[test]
fn system_registers_are_undefined_or_harmless() {
    passes("sysregs");
}

#[test]
fn calls_with_garbage_are_not_supported_or_harmless() {
    passes("hypercalls");
}

#[test]
fn a_jump_to_nowhere_is_an_external_abort() {
    passes("jump");
}

#[test]
fn a_guest_may_power_off() {
    passes("off");
}
