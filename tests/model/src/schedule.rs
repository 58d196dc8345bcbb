//! Random schedules, each from a seed that brings it back.
//!
//! All threads of a scenario run on one thread of the host, and switch only where the scheduler says so: before every
//! access to a shared entry, before every TLB instruction and barrier, and while waiting. So a seed decides all of a run.
//!
//! `PARVISOR_SEED=…` runs the schedule of that seed alone, `PARVISOR_SCHEDULES=…` so many; `PARVISOR_TRACE=1` prints what the
//! CPUs do.

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, Runner};
use std::cell::Cell;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, OnceLock};

/// The seed to begin with; alone, if no number of schedules is given.
const SEED: &str = "PARVISOR_SEED";
/// How many schedules to try.
const SCHEDULES: &str = "PARVISOR_SCHEDULES";
/// Deep enough for the engine's walks and the checker's recursion in builds that don't optimise.
const STACK: usize = 1 << 18;

/// Whether to print what each CPU does.
const TRACE: &str = "PARVISOR_TRACE";

/// Prints what happens, if the environment asks for it.
pub(crate) fn trace(cpu: usize, what: impl FnOnce() -> String) {
    static WANTED: OnceLock<bool> = OnceLock::new();
    if *WANTED.get_or_init(|| env::var_os(TRACE).is_some()) {
        eprintln!("CPU {cpu}: {}", what());
    }
}

/// A moment in which others may run.
pub fn pause() {
    if !std::thread::panicking() && shuttle::current::try_get_current_task().is_some() {
        shuttle::thread::yield_now();
    }
}

thread_local! {
    /// For threads that no scheduler runs.
    static CHOICES: Cell<u64> = const { Cell::new(1) };
}

/// One of `count` possibilities, as the schedule has it.
pub fn choose(count: usize) -> usize {
    use shuttle::rand::RngCore;
    let random = if shuttle::current::try_get_current_task().is_some() {
        shuttle::rand::thread_rng().next_u64()
    } else {
        let next = mixed(CHOICES.get());
        CHOICES.set(next);
        next
    };
    (random % count as u64) as usize
}

/// Runs `scenario` under schedule after schedule, with the seed of each: `usual` of them, or what the environment says. On
/// failure says how to see the same schedule again.
pub fn explore(usual: u64, scenario: impl Fn(u64) + Send + Sync + 'static) {
    let number = |name| -> Option<u64> {
        let value = env::var(name).ok()?;
        Some(
            value
                .parse()
                .unwrap_or_else(|_| panic!("{name} is not a number: {value}")),
        )
    };
    let first = number(SEED);
    let count = number(SCHEDULES).unwrap_or(if first.is_some() { 1 } else { usual });
    let first = first.unwrap_or(0);
    let scenario = Arc::new(scenario);
    for seed in first..first + count {
        let scenario = scenario.clone();
        let run = || runner(seed).run(move || scenario(seed));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            eprintln!("To see this again: {SEED}={seed} {}", command());
            resume_unwind(panic);
        }
    }
}

fn runner(seed: u64) -> Runner<Seeded> {
    let mut config = Config::new();
    config.stack_size = STACK;
    config.failure_persistence = FailurePersistence::None;
    Runner::new(Seeded::new(seed), config)
}

/// What runs the test that this is in.
fn command() -> String {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let program = env::current_exe().unwrap_or_default();
    let file = program
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let (target, _) = file.rsplit_once('-').unwrap_or((&file, ""));
    format!(
        "cargo test -p {} --test {target} -- --exact {test}",
        env!("CARGO_PKG_NAME")
    )
}

/// Chooses at random; some seeds keep a thread running for longer than others, as some bugs want many switches and some
/// want few.
struct Seeded {
    state: u64,
    /// A thread goes on with a chance of one less one in this.
    patience: u64,
    runs: bool,
}

impl Seeded {
    fn new(seed: u64) -> Self {
        let state = mixed(seed.wrapping_add(1));
        Self {
            state,
            patience: [1, 2, 8, 32][(state >> 60) as usize % 4],
            runs: false,
        }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.state)
    }
}

/// The finaliser of SplitMix64.
fn mixed(mut word: u64) -> u64 {
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

impl Scheduler for Seeded {
    fn new_execution(&mut self) -> Option<Schedule> {
        let first = !self.runs;
        self.runs = true;
        first.then(|| Schedule::new(self.state))
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        _: bool,
    ) -> Option<TaskId> {
        let goes_on = current.filter(|current| runnable.iter().any(|task| task.id() == *current));
        let random = self.next();
        match goes_on {
            Some(current) if !random.is_multiple_of(self.patience) => Some(current),
            _ => Some(runnable[(random >> 32) as usize % runnable.len()].id()),
        }
    }

    fn next_u64(&mut self) -> u64 {
        self.next()
    }
}
