//! The checker, told of sequences that are right and of the same sequences with one thing wrong.

mod ends;
mod leaves;
mod machine;
mod promises;
mod regimes;
mod sizes;
mod tables;

use crate::machine::{LOCKED, MOVED, Machine, PAGES};

#[test]
fn a_report_names_the_rule_the_entry_the_values_and_the_cpus() {
    let text = Machine::new()
        .write(PAGES, LOCKED)
        .write(PAGES, MOVED)
        .finds()
        .to_string();
    assert_eq!(
        text,
        "rule 2, break-before-make: CPU 0 made entry 0x300000 (level 3, IPA 0x0, root 0x100000, VMID 7) 0x90007ff, but \
         every CPU may hold 0x80007ff of level 3 for IPA 0x0 (as a stage-2 entry); the output addresses differ"
    );
}
