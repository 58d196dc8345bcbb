//! The debug build, in which the break-before-make checker watches the live tables: it finds nothing, unless there is a bug.

use qemu_tests::{Boot, SHORT, assert_verified, describe, watched_hypervisor};

fn watched(options: &str) -> Boot {
    Boot::benchmark(&format!("mode=parallel {options} {SHORT}"))
        .kernel(watched_hypervisor())
        .append("log=info")
        .limit(240)
}

#[test]
fn the_checker_has_nothing_to_say_of_the_benchmark() {
    for (cpu, backing) in [("neoverse-n1", "2M"), ("max", "2M"), ("cortex-a72", "4K")] {
        let options = format!("backing={backing}");
        let outcome = watched(&options).cpu(cpu).run_well();
        assert_verified(&outcome, &["parallel"]);
        assert!(
            outcome.line_with("break-before-make checker: on").is_some(),
            "{}",
            describe(&outcome)
        );
    }
}

#[test]
fn every_injected_bug_is_reported() {
    // A CPU that replaces blocks without a break shows by its dirty log what it lacks.
    for (bug, cpu, rule) in [
        ("no-flush", "neoverse-n1", "rule"),
        ("no-flush", "max", "rules 3 and 9"),
        ("no-break", "neoverse-n1", "rule 2"),
        ("local", "neoverse-n1", "rule"),
        ("local", "max", "rules 3 and 9"),
        ("no-publish", "neoverse-n1", "rule 11"),
    ] {
        let outcome = watched(&format!("inject={bug}")).cpu(cpu).run();
        let first = outcome.errors.first();
        let is_reported = first
            .is_some_and(|error| error.starts_with("break-before-make: ") && error.contains(rule));
        assert!(
            outcome.status == Some(1) && is_reported && outcome.fatal.is_empty(),
            "{bug} on {cpu}: {}",
            describe(&outcome)
        );
    }
}

#[test]
fn bugs_are_injected_on_request_only_and_in_the_debug_build_only() {
    watched("inject=everything").run_refused(&["inject", "no-flush, no-break"]);
    Boot::benchmark(&format!("inject=no-flush {SHORT}")).run_refused(&["inject", "--check"]);
}
