//! Long random sequences of all operations, against a plain map from page to what it should be; for every combination of
//! features that changes what the engine does, on tables of four entries and of real size.

use model::strategies::{is_quick, operation};
use model::{Ground, Operation, Replay, real_grounds, small_grounds};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// Takes a machine through the operations, and compares it after each one.
fn agree(ground: &Ground, operations: &[Operation]) {
    let mut replay = Replay::new(ground);
    for operation in operations {
        replay.step(*operation);
        replay.compare();
    }
    replay.finish();
}

/// Runs `cases` sequences on each ground for the usual 256 of PROPTEST_CASES.
fn check(cases: u32, length: usize, grounds: &[Ground]) {
    let usual = ProptestConfig::default();
    let (cases, length) = if cfg!(miri) {
        (1, 10)
    } else {
        ((usual.cases * cases).div_ceil(256), length)
    };
    for ground in grounds.iter().filter(|ground| is_quick(ground)) {
        let mut runner = TestRunner::new(ProptestConfig {
            cases,
            failure_persistence: None,
            max_shrink_iters: 4096,
            ..usual.clone()
        });
        let operations = prop::collection::vec(operation(), 1..length);
        let result = runner.run(&operations, |operations| {
            agree(ground, &operations);
            Ok(())
        });
        if let Err(error) = result {
            panic!("{:?}: {error}", ground.layout().features());
        }
    }
}

#[test]
fn small_tables_agree_with_the_map() {
    check(256, 60, &small_grounds());
}

#[test]
#[cfg_attr(miri, ignore = "thousands of entries for each step")]
fn tables_of_real_size_agree_with_the_map() {
    check(4, 30, &real_grounds());
}
