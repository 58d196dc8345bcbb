//! The progress bar over a whole matrix: which run is on, and how long the rest will take. Silent where nobody watches.
//!
//! The bar redraws itself from a thread of its own; its contents are behind a lock.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::estimate::{Estimate, Job};
use emulator::console::{Progress, Runs};
use emulator::effort::in_words;

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

/// The state of the matrix.
#[derive(Debug)]
struct State {
    estimate: Estimate,
    started: Instant,
    /// The jobs that haven't begun.
    waiting: VecDeque<Job>,
    current: Option<Current>,
}

/// The job that is on.
#[derive(Debug)]
struct Current {
    job: Job,
    counter: Runs,
    /// The run that is on, from 0; none before the first.
    run: Option<usize>,
    /// When the run began, or the job where none has.
    since: Instant,
}

impl MatrixProgress {
    /// For these jobs, in their order.
    pub fn new(jobs: impl Iterator<Item = Job>, silent: bool) -> Self {
        let state = Arc::new(Mutex::new(State {
            estimate: Estimate::default(),
            started: Instant::now(),
            waiting: jobs.collect(),
            current: None,
        }));
        let bar = if silent || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            visible_bar(&state)
        };
        Self { bar, state }
    }

    /// The next job begins.
    pub fn begin(&self) {
        let name = self.change(|state| {
            let job = state.waiting.pop_front()?;
            let name = job.name.clone();
            state.current = Some(Current {
                job,
                counter: Runs::default(),
                run: None,
                since: Instant::now(),
            });
            Some(name)
        });
        self.bar.set_message(name.unwrap_or_default());
    }

    /// A run of the job says how far it has come.
    pub fn run(&self, progress: &Progress) {
        if let Some(what) = self.change(|state| state.progress(progress)) {
            self.bar.set_message(what);
        }
    }

    /// The job has ended, well or not.
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
    /// The current run's next step; says which run it is.
    fn progress(&mut self, progress: &Progress) -> Option<String> {
        let current = self.current.as_mut()?;
        let index = usize::try_from(current.counter.take(progress)).ok()?;
        if current.run != Some(index) {
            current.note(&mut self.estimate);
            current.run = Some(index);
            current.since = Instant::now();
        }
        let (run, _) = current.job.runs.get(index)?;
        Some(format!("{run}; {}", current.job.name))
    }

    fn ended(&mut self, well: bool) {
        if let (Some(mut current), true) = (self.current.take(), well) {
            // A job that never reported progress counts as one run from its start.
            current.run.get_or_insert(0);
            current.note(&mut self.estimate);
        }
    }

    /// How many seconds are left.
    fn left(&self) -> f64 {
        let waiting = self.waiting.iter().map(|job| self.estimate.seconds(job));
        let current = self.current.as_ref();
        waiting.sum::<f64>() + current.map_or(0.0, |current| current.left(&self.estimate))
    }
}

impl Current {
    /// Takes note of how long it took until now: the boot, or the run that is on.
    fn note(&self, estimate: &mut Estimate) {
        let took = self.since.elapsed();
        match self.run.map(|run| self.job.runs.get(run)) {
            None => estimate.booted(took),
            Some(Some((name, work))) => estimate.ran(name, *work, took),
            Some(None) => {}
        }
    }

    fn left(&self, estimate: &Estimate) -> f64 {
        let expected = |run: &(String, f64)| estimate.run_seconds(&run.0, run.1);
        let (now, next) = match self.run {
            None => (estimate.boot_seconds(), 0),
            Some(run) => (self.job.runs.get(run).map_or(0.0, expected), run + 1),
        };
        let after: f64 = self.job.runs.iter().skip(next).map(expected).sum();
        (now - self.since.elapsed().as_secs_f64()).max(0.0) + after
    }
}

fn visible_bar(state: &Arc<Mutex<State>>) -> ProgressBar {
    let bar = ProgressBar::new(LENGTH);
    let state = Arc::clone(state);
    let left = move |_: &ProgressState, text: &mut dyn std::fmt::Write| {
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        // A bar that can't be drawn is no failure.
        let _ = text.write_str(&in_words(state.left()));
    };
    let style =
        ProgressStyle::with_template("[{elapsed_precise}] {bar:16} {left} left  {wide_msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.with_key("left", left));
    bar.enable_steady_tick(TICK);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_is_left_shrinks_with_every_run() {
        let job = |name: &str| Job {
            name: name.into(),
            runs: vec![("mutex".into(), 1e5), ("parallel".into(), 1e5)],
        };
        let jobs = [job("1 vCPU"), job("4 vCPUs")];
        let progress = MatrixProgress::new(jobs.into_iter(), true);
        let left = || progress.state.lock().expect("no panic").left();
        let step = |mode: &str, step| {
            progress.run(&Progress {
                mode: mode.into(),
                step,
                steps: 6,
            });
        };
        let mut last = left();
        let mut shrinks = |what: &str| {
            let now = left();
            assert!(now < last + 0.1, "{what}: {now} after {last}");
            last = now;
        };
        progress.begin();
        step("mutex", 0);
        shrinks("a boot that took no time");
        step("mutex", 6);
        step("parallel", 0);
        shrinks("a run that took no time");
        progress.ended(true);
        shrinks("the end of a job");
        progress.begin();
        progress.ended(false);
        assert_eq!(left(), 0.0);
    }
}
