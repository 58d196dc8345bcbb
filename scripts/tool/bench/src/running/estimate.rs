//! The remaining time of a matrix: the work that is left, at the measured speed.
//!
//! Work is pages times iterations. The time of a unit differs more between configurations than between sizes. So a configuration
//! has a speed of its own once it has run, and the common one until then.

use std::collections::BTreeMap;
use std::time::Duration;

use ::options::workload::Workload;

/// The time of a unit of work until one is measured. An emulator on two cores takes some 20 µs for a fault.
const GUESSED_SECONDS: f64 = 25e-6;
/// The time of a boot until one is measured.
const GUESSED_BOOT: f64 = 1.0;
/// The size of a page.
const PAGE: u64 = 4096;

/// One start of the emulator, and the runs that it makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The words that its runs share.
    pub name: String,
    /// The name and the work of each run.
    pub runs: Vec<(String, f64)>,
}

/// The work of one run.
pub fn work(workload: &Workload) -> f64 {
    let pages = u64::from(workload.vcpus) * (workload.bytes.0 / PAGE);
    // Populating is as much as an iteration, and verifying both is less.
    pages as f64 * (workload.iterations as f64 + 1.0)
}

/// The speed as measured so far.
#[derive(Clone, Debug, Default)]
pub struct Estimate {
    runs: BTreeMap<String, Measured>,
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
    /// Takes note that a run of this name with this work took so long.
    pub fn ran(&mut self, name: &str, work: f64, took: Duration) {
        let measured = self.runs.entry(name.into()).or_default();
        measured.add(work, took);
    }

    /// Takes note that it took so long until the first run of a job began.
    pub fn booted(&mut self, took: Duration) {
        self.boots.add(1.0, took);
    }

    /// How many seconds a run takes.
    pub fn run_seconds(&self, name: &str, work: f64) -> f64 {
        let all = self.runs.values();
        let all = all.fold(Measured::default(), |sum, one| Measured {
            work: sum.work + one.work,
            seconds: sum.seconds + one.seconds,
        });
        let own = self.runs.get(name).and_then(|measured| measured.speed());
        work * own.or(all.speed()).unwrap_or(GUESSED_SECONDS)
    }

    /// How many seconds it takes before the first run.
    pub fn boot_seconds(&self) -> f64 {
        self.boots.speed().unwrap_or(GUESSED_BOOT)
    }

    /// How many seconds a job takes.
    pub fn seconds(&self, job: &Job) -> f64 {
        let runs = job.runs.iter();
        let runs = runs.map(|(name, work)| self.run_seconds(name, *work));
        self.boot_seconds() + runs.sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::matrix::Matrix;
    use super::super::super::options::BenchOptions;
    use super::*;
    use std::ffi::OsString;

    #[test]
    fn work_grows_with_vcpus_and_iterations() {
        let arguments = ["scripts/bench", "--vcpus=1,4", "--iterations=3"];
        let options = BenchOptions::parse_arguments(arguments.map(OsString::from));
        let options = options.expect("sound options");
        let matrix = Matrix::new(&options.workload, &options.backing, &options.machine, None)
            .expect("sound options");
        let works = matrix.boots.iter().map(|boot| work(&boot.workload));
        assert_eq!(works.collect::<Vec<_>>(), [2048.0 * 4.0, 2048.0 * 16.0]);
    }

    #[test]
    fn what_was_measured_replaces_what_was_guessed() {
        let job = Job {
            name: "4 vCPUs".into(),
            runs: vec![("mutex".into(), 400.0), ("parallel".into(), 400.0)],
        };
        let mut estimate = Estimate::default();
        assert!(estimate.seconds(&job) > 1.0);
        estimate.booted(Duration::from_secs(3));
        estimate.ran("mutex", 100.0, Duration::from_secs(8));
        // The other mode is as fast as all that is known.
        assert_eq!(estimate.seconds(&job), 3.0 + 32.0 + 32.0);
        estimate.ran("parallel", 100.0, Duration::from_secs(2));
        assert_eq!(estimate.seconds(&job), 3.0 + 32.0 + 8.0);
    }
}
