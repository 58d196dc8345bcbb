//! Guests that misbehave: each ends its own VM at worst, never the machine.

use qemu_tests::{Boot, describe};

/// What a guest gets to find that all is well.
const PATIENCE: u64 = 20;

/// The guest finds nothing wrong with what it was answered.
fn passes(probe: &str) {
    Boot::probe(probe, PATIENCE).run_well();
}

/// The guest's VM is ended with an error that contains `word`.
fn ends_with(probe: &str, seconds: u64, word: &str) {
    let outcome = Boot::probe(probe, seconds).run();
    let is_clean = outcome.status == Some(1) && outcome.fatal.is_empty();
    assert!(is_clean, "{probe}: {}", describe(&outcome));
    let is_named = outcome.errors.iter().any(|error| error.contains(word));
    assert!(is_named, "{probe}: {}", describe(&outcome));
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

#[test]
fn a_guest_that_never_ends_is_ended() {
    ends_with("spin", 2, "time");
}

#[test]
fn a_guest_that_fails_is_a_failure() {
    ends_with("fail", PATIENCE, "fail");
}
