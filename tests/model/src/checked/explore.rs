//! How the model checker is run: what comes before, what races, what has to hold afterwards.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::{Cpu, Machine, locked};
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
    let race = race.map(|act| move |machine: &Machine, cpu| act(machine.cpu(cpu)));
    every_execution(preemptions, race, move |run| {
        let machine = Arc::new(Machine::new(layout));
        prepare(machine.cpu(0));
        run(&machine);
        check(&machine);
        machine.finish();
    });
}

/// Tries every execution with at most so many preemptions. Each is one call of `execution`, which makes something, has each of
/// `race` run with it at once with the others, on CPU 1, 2 and so on, by the function that it is given, and looks at it again.
/// When that returns, nobody else has it any more.
pub fn every_execution<W: Send + Sync + 'static, A, const N: usize>(
    preemptions: usize,
    race: [A; N],
    execution: impl Fn(&dyn Fn(&Arc<W>)) + Send + Sync + 'static,
) where
    A: Fn(&W, usize) + Send + Sync + 'static,
{
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    let executions = Arc::new(AtomicUsize::new(0));
    let (count, began) = (executions.clone(), Instant::now());
    let race = Arc::new(race);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        execution(&|world| {
            let threads = (0..N).map(|index| {
                let (world, race) = (world.clone(), race.clone());
                thread::spawn(move || race[index](&world, index + 1))
            });
            for thread in threads.collect::<Vec<_>>() {
                thread
                    .join()
                    .expect("the model checker reports panics itself");
            }
        });
    });
    let executions = executions.load(Ordering::Relaxed);
    let name = std::thread::current();
    let name = name.name().unwrap_or_default();
    println!(
        "{name}: {N} CPUs, {preemptions} preemptions, {executions} executions in {:.1?}",
        began.elapsed()
    );
}

/// For tests that share a pool, which run one at a time: until it is let go.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    locked(&ONE)
}

/// For [`explore`]: no more than that is to be done or checked.
pub fn nothing(_: Cpu<'_>) {}

/// As [`nothing`].
pub fn no_more(_: &Machine) {}
