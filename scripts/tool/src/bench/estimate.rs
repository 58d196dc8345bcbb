//! How long a matrix will still take: the work that is left, at the speed that was measured.
//!
//! Work is what the vCPUs do: pages times iterations. How long a unit of it takes differs between configurations by far more
//! than between sizes, so each configuration has a speed of its own once it has run; until then it has that of all.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::options::workload::{Run, Workload};

/// What a unit of work takes before anything was measured. An emulator on two cores takes some 20 µs for a fault.
const GUESSED_SECONDS: f64 = 25e-6;
/// What a boot takes before one was measured.
const GUESSED_BOOT: f64 = 1.0;
/// The size of a page.
const PAGE: u64 = 4096;

/// The work of one run.
pub fn work(workload: &Workload) -> f64 {
    let pages = u64::from(workload.vcpus) * (workload.bytes.0 / PAGE);
    // Populating is as much as an iteration, and verifying both is less.
    pages as f64 * (workload.iterations as f64 + 1.0)
}

/// What is known of the speed.
#[derive(Clone, Debug, Default)]
pub struct Estimate {
    runs: BTreeMap<Run, Measured>,
    boots: Measured,
}

/// A sum of work and the time that it took.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    work: f64,
    seconds: f64,
}

impl Measured {
    fn add(&mut self, work: f64, took: Duration) {
        self.work += work;
        self.seconds += took.as_secs_f64();
    }

    fn speed(self) -> Option<f64> {
        (self.work > 0.0).then(|| self.seconds / self.work)
    }
}

impl Estimate {
    /// Takes note that a run of this workload took so long.
    pub fn ran(&mut self, workload: &Workload, run: Run, took: Duration) {
        let measured = self.runs.entry(run).or_default();
        measured.add(work(workload), took);
    }

    /// Takes note that it took so long until the first run of a boot began.
    pub fn booted(&mut self, took: Duration) {
        self.boots.add(1.0, took);
    }

    /// How many seconds a run of this workload takes.
    pub fn run_seconds(&self, workload: &Workload, run: Run) -> f64 {
        let all = self
            .runs
            .values()
            .fold(Measured::default(), |sum, one| Measured {
                work: sum.work + one.work,
                seconds: sum.seconds + one.seconds,
            });
        let own = self.runs.get(&run).and_then(|measured| measured.speed());
        work(workload) * own.or(all.speed()).unwrap_or(GUESSED_SECONDS)
    }

    /// How many seconds a boot takes before its first run.
    pub fn boot_seconds(&self) -> f64 {
        self.boots.speed().unwrap_or(GUESSED_BOOT)
    }

    /// How many seconds a boot with all its runs takes.
    pub fn seconds(&self, workload: &Workload) -> f64 {
        let runs = workload.each().map(|run| self.run_seconds(workload, run));
        self.boot_seconds() + runs.sum::<f64>()
    }
}

/// A number of seconds as people say it.
pub fn in_words(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match (seconds / 3600, seconds / 60, seconds) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {:02} s", seconds % 60),
        (hours, minutes, _) => format!("{hours} h {:02} min", minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::Matrix;
    use super::super::options::BenchOptions;
    use super::*;
    use std::ffi::OsString;

    fn workloads() -> Vec<Workload> {
        let arguments = [
            "scripts/bench",
            "--vcpus=1,4",
            "--mode=mutex,parallel",
            "--iterations=3",
        ];
        let options = BenchOptions::parse_arguments(arguments.map(OsString::from));
        let options = options.expect("sound options");
        let matrix = Matrix::new(&options.workload, &options.machine).expect("sound options");
        matrix.boots.into_iter().map(|boot| boot.workload).collect()
    }

    #[test]
    fn work_grows_with_vcpus_and_iterations() {
        let workloads = workloads();
        assert_eq!(work(&workloads[0]), 2048.0 * 4.0);
        assert_eq!(work(&workloads[1]), 2048.0 * 16.0);
    }

    #[test]
    fn what_was_measured_replaces_what_was_guessed() {
        let workloads = workloads();
        let runs: Vec<Run> = workloads[0].each().collect();
        let mut estimate = Estimate::default();
        let guessed = estimate.seconds(&workloads[1]);
        assert!(guessed > 1.0);
        estimate.booted(Duration::from_secs(3));
        estimate.ran(&workloads[0], runs[0], Duration::from_secs(8));
        // Four times the work, and the other mode is as fast as all that is known.
        assert_eq!(estimate.seconds(&workloads[1]), 3.0 + 32.0 + 32.0);
        estimate.ran(&workloads[0], runs[1], Duration::from_secs(2));
        assert_eq!(estimate.seconds(&workloads[1]), 3.0 + 32.0 + 8.0);
    }

    #[test]
    fn durations_are_said_in_their_largest_units() {
        assert_eq!(in_words(0.4), "0 s");
        assert_eq!(in_words(75.0), "1 min 15 s");
        assert_eq!(in_words(7320.0), "2 h 02 min");
    }
}
