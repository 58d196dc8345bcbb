//! How the model checker is run: what comes before, what races, what has to hold afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::{Cpu, Machine};
use loom::thread;
use stage2::Layout;

/// What a CPU does.
pub type Act = fn(Cpu<'_>);

/// Tries every execution, with at most so many preemptions, in which `prepare` runs on CPU 0, then each of `race` at once
/// with the others, on CPU 1, 2 and so on, then `check`, and the machine's own checks.
pub fn explore<const N: usize>(
    preemptions: usize,
    layout: Layout,
    prepare: Act,
    race: [Act; N],
    check: fn(&Machine),
) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    let executions = Arc::new(AtomicUsize::new(0));
    let (count, began) = (executions.clone(), Instant::now());
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        let machine = Arc::new(Machine::new(layout));
        prepare(machine.cpu(0));
        let threads = race.into_iter().enumerate().map(|(index, act)| {
            let machine = machine.clone();
            thread::spawn(move || act(machine.cpu(index + 1)))
        });
        for thread in threads.collect::<Vec<_>>() {
            thread
                .join()
                .expect("the model checker reports panics itself");
        }
        check(&machine);
        machine.finish();
    });
    let executions = executions.load(Ordering::Relaxed);
    let name = std::thread::current();
    let name = name.name().unwrap_or_default();
    println!(
        "{name}: {N} CPUs, {preemptions} preemptions, {executions} executions in {:.1?}",
        began.elapsed()
    );
}

/// For [`explore`]: no more than that is to be done or checked.
pub fn nothing(_: Cpu<'_>) {}

/// As [`nothing`].
pub fn no_more(_: &Machine) {}
