//! The progress bar over a whole matrix: which run is on, and how long the rest will take. Silent where nobody watches.
//!
//! The bar redraws itself from a thread of its own; what it shows is behind a lock.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::estimate::{Estimate, in_words};
use crate::console::{Progress, Runs};
use crate::options::workload::{Run, Workload};

/// How often the bar is redrawn.
const TICK: Duration = Duration::from_millis(250);
/// The length of the bar: its position is the share of the expected time, in thousandths.
const LENGTH: u64 = 1000;

/// The progress of a matrix.
#[derive(Debug)]
pub struct MatrixProgress {
    bar: ProgressBar,
    state: Arc<Mutex<State>>,
}

/// What is known of the matrix.
#[derive(Debug)]
struct State {
    estimate: Estimate,
    started: Instant,
    /// The boots that haven't begun.
    waiting: VecDeque<Workload>,
    current: Option<Current>,
}

/// The boot that is on.
#[derive(Debug)]
struct Current {
    workload: Workload,
    runs: Vec<Run>,
    counter: Runs,
    /// The run that is on, from 0; none before the first.
    run: Option<usize>,
    /// When the run began, or the boot where none has.
    since: Instant,
}

impl MatrixProgress {
    /// For these boots, in their order.
    pub fn new(boots: impl Iterator<Item = Workload>, silent: bool) -> Self {
        let state = Arc::new(Mutex::new(State {
            estimate: Estimate::default(),
            started: Instant::now(),
            waiting: boots.collect(),
            current: None,
        }));
        let bar = if silent || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            visible_bar(&state)
        };
        Self { bar, state }
    }

    /// The next boot begins; `name` says which.
    pub fn boot(&self, name: &str) {
        self.change(|state| {
            if let Some(workload) = state.waiting.pop_front() {
                state.current = Some(Current {
                    runs: workload.each().collect(),
                    workload,
                    counter: Runs::default(),
                    run: None,
                    since: Instant::now(),
                });
            }
        });
        self.bar.set_message(format!("{name}: booting"));
    }

    /// A run of the boot called `name` says how far it has come.
    pub fn run(&self, name: &str, progress: &Progress) {
        let run = self.change(|state| state.progress(progress));
        if let Some(run) = run {
            self.bar.set_message(format!("{name}: {run}"));
        }
    }

    /// The boot has ended, well or not.
    pub fn ended(&self, well: bool) {
        self.change(|state| state.ended(well));
    }

    /// Prints something without spoiling the bar.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Changes the state and moves the bar. The bar reads the state when it draws, so the lock is released before.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut state);
        let (left, passed) = (state.left(), state.started.elapsed().as_secs_f64());
        drop(state);
        let share = passed / (passed + left).max(f64::MIN_POSITIVE);
        self.bar.set_position((share * LENGTH as f64) as u64);
        changed
    }
}

impl State {
    /// The current run's next step; gives the run.
    fn progress(&mut self, progress: &Progress) -> Option<Run> {
        let current = self.current.as_mut()?;
        let index = usize::try_from(current.counter.take(progress)).ok()?;
        if current.run != Some(index) {
            let took = current.since.elapsed();
            match current.run.and_then(|before| current.runs.get(before)) {
                Some(before) => self.estimate.ran(&current.workload, *before, took),
                None => self.estimate.booted(took),
            }
            current.run = Some(index);
            current.since = Instant::now();
        }
        current.runs.get(index).copied()
    }

    fn ended(&mut self, well: bool) {
        let Some(current) = self.current.take() else {
            return;
        };
        let last = current.run.and_then(|run| current.runs.get(run));
        if let (true, Some(run)) = (well, last) {
            self.estimate
                .ran(&current.workload, *run, current.since.elapsed());
        }
    }

    /// How many seconds are left.
    fn left(&self) -> f64 {
        let waiting = self.waiting.iter();
        let waiting: f64 = waiting
            .map(|workload| self.estimate.seconds(workload))
            .sum();
        waiting
            + self
                .current
                .as_ref()
                .map_or(0.0, |current| current.left(&self.estimate))
    }
}

impl Current {
    fn left(&self, estimate: &Estimate) -> f64 {
        let (workload, passed) = (&self.workload, self.since.elapsed().as_secs_f64());
        let expected = |run: &Run| estimate.run_seconds(workload, *run);
        let (now, next) = match self.run {
            None => (estimate.boot_seconds(), 0),
            Some(run) => (self.runs.get(run).map_or(0.0, expected), run + 1),
        };
        let after: f64 = self.runs.iter().skip(next).map(expected).sum();
        (now - passed).max(0.0) + after
    }
}

fn visible_bar(state: &Arc<Mutex<State>>) -> ProgressBar {
    let bar = ProgressBar::new(LENGTH);
    let state = Arc::clone(state);
    let left = move |_: &ProgressState, text: &mut dyn std::fmt::Write| {
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        // What can't be shown isn't missed.
        let _ = text.write_str(&in_words(state.left()));
    };
    let style =
        ProgressStyle::with_template("[{elapsed_precise}] {bar:30} about {left} left  {wide_msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.with_key("left", left));
    bar.enable_steady_tick(TICK);
    bar
}

#[cfg(test)]
mod tests {
    use super::super::matrix::Matrix;
    use super::super::options::BenchOptions;
    use super::*;
    use std::ffi::OsString;

    #[test]
    fn the_time_that_is_left_shrinks_with_every_run() {
        let arguments = ["scripts/bench", "--vcpus=1,4", "--mode=mutex,parallel"];
        let options = BenchOptions::parse_arguments(arguments.map(OsString::from));
        let options = options.expect("sound options");
        let matrix = Matrix::new(&options.workload, &options.machine).expect("sound options");
        let boots = matrix.boots.into_iter().map(|boot| boot.workload);
        let progress = MatrixProgress::new(boots, true);
        let left = || progress.state.lock().expect("no panic").left();
        let step = |mode: &str, step| {
            progress.run(
                "a boot",
                &Progress {
                    mode: mode.into(),
                    step,
                    steps: 6,
                },
            );
        };
        let mut last = left();
        let mut shrinks = |what: &str| {
            let now = left();
            assert!(now < last + 0.1, "{what}: {now} after {last}");
            last = now;
        };
        progress.boot("1 vCPU");
        step("mutex", 0);
        shrinks("a boot that took no time");
        step("mutex", 6);
        step("parallel", 0);
        shrinks("a run that took no time");
        progress.ended(true);
        shrinks("the end of a boot");
        progress.boot("4 vCPUs");
        progress.ended(false);
        assert_eq!(left(), 0.0);
    }
}
