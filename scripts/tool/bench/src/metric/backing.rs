//! The metrics of a workload that changes backing memory, and of a run beside which a CPU merges. The meaning of a phase depends
//! on the workload.

use records::record::{Phase, PhaseName, Record};

use super::{LAST, Metric, exits_per_page, pages, phases, share, time};

const SECOND: f64 = 1e9;

/// The measurements of a metric that a record holds.
pub fn samples(metric: Metric, record: &Record) -> Vec<f64> {
    let per_page = |(name, from, to): Kind| -> Vec<f64> {
        let meant = phases(record, name, from..=to);
        meant.map(|phase| time(phase) / share(record)).collect()
    };
    let exits = |(name, from, to): Kind| exits_per_page(record, name, from..=to);
    let of_check = |counter: &str| -> Vec<f64> {
        let checks = phases(record, PhaseName::Check, 1..=LAST);
        let rate = |phase: &Phase| Some(count(phase, counter)? * SECOND / time(phase).max(1.0));
        checks.filter_map(rate).collect()
    };
    let merge = || phases(record, PhaseName::Merge, 0..=0);
    let in_the_end = |counter: &str| -> Vec<f64> {
        let count = record.counters.get(counter);
        count.map(|count| *count as f64).into_iter().collect()
    };
    match metric {
        Metric::Fill => per_page((PhaseName::Fill, 0, 0)),
        Metric::Fork => phases(record, PhaseName::Fork, 0..=LAST)
            .map(time)
            .collect(),
        Metric::Read => per_page((PhaseName::Read, 0, LAST)),
        Metric::ReadExits => exits((PhaseName::Read, 0, LAST)),
        Metric::FirstWrite => written_first(record).map_or_else(Vec::new, per_page),
        Metric::Write => written(record).map_or_else(Vec::new, per_page),
        Metric::WriteExits => written(record).map_or_else(Vec::new, exits),
        Metric::WriteAgain => written_again(record).map_or_else(Vec::new, per_page),
        Metric::WriteAgainExits => written_again(record).map_or_else(Vec::new, exits),
        Metric::Check => per_page((PhaseName::Check, 0, LAST)),
        Metric::CheckExits => exits((PhaseName::Check, 0, LAST)),
        Metric::Ahead => {
            let ahead = phases(record, PhaseName::Prefault, 0..=0);
            ahead.map(|phase| time(phase) / pages(record)).collect()
        }
        Metric::AheadByGuest => per_page((PhaseName::Prefault, 1, LAST)),
        Metric::Merge => merge().map(time).collect(),
        Metric::ScanPerPage => {
            let each = merge().filter_map(|phase| {
                Some(count(phase, "scanner_ns")? / count(phase, "pages_scanned")?.max(1.0))
            });
            each.collect()
        }
        Metric::FramesLeft => {
            let filled = phases(record, PhaseName::Fill, 0..=0);
            let before = filled.filter_map(frames).next();
            let left = merge().filter_map(|phase| Some(frames(phase)? * 100.0 / before?));
            left.collect()
        }
        Metric::Retries => {
            let (name, from, to) = match written(record) {
                Some(kind) if record.workload == "invalidate" => kind,
                _ => return Vec::new(),
            };
            let retries = |phase: &Phase| count(phase, "faults_retried").unwrap_or(0.0);
            let meant = phases(record, name, from..=to);
            meant.map(|phase| retries(phase) / pages(record)).collect()
        }
        Metric::Compressed => of_check("reclaim_compressed"),
        Metric::BroughtBack => of_check("brought_back"),
        Metric::Sharing => in_the_end("pages_sharing"),
        Metric::FullScans => in_the_end("full_scans"),
        _ => Vec::new(),
    }
}

/// Phases: their name, and their first and last iteration.
type Kind = (PhaseName, u64, u64);

/// The phases of the first writes, which back the memory.
fn written_first(record: &Record) -> Option<Kind> {
    match record.workload.as_str() {
        "invalidate" | "cow" => Some((PhaseName::Write, 1, 1)),
        _ => None,
    }
}

/// The phases of the measured writes: all iterations but the first, if there are more; those of the fork while its pages are
/// shared; those to memory that may have been populated ahead.
fn written(record: &Record) -> Option<Kind> {
    match record.workload.as_str() {
        "invalidate" => Some((PhaseName::Write, record.iterations.clamp(1, 2), LAST)),
        "cow" => Some((PhaseName::Write, 2, 2)),
        "prefault" => Some((PhaseName::Write, 1, 1)),
        _ => None,
    }
}

/// The phases of later writes: those of the forked VM, whose pages aren't shared any more; those to memory that the guest has
/// populated ahead.
fn written_again(record: &Record) -> Option<Kind> {
    match record.workload.as_str() {
        "cow" => Some((PhaseName::Write, 3, 3)),
        "prefault" => Some((PhaseName::Write, 2, 2)),
        _ => None,
    }
}

fn count(phase: &Phase, counter: &str) -> Option<f64> {
    phase.counters.get(counter).map(|count| *count as f64)
}

fn frames(phase: &Phase) -> Option<f64> {
    count(phase, "frames_guest").filter(|frames| *frames > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(name: PhaseName, iteration: u64, ns: u64, counters: &[(&str, u64)]) -> Phase {
        let counters = counters.iter();
        Phase {
            name,
            iteration,
            ns,
            counters: counters
                .map(|(name, count)| (name.to_string(), *count))
                .collect(),
        }
    }

    fn record(workload: &str, phases: Vec<Phase>) -> Record {
        Record {
            workload: workload.into(),
            iterations: 3,
            vcpus: 2,
            bytes_per_vcpu: 8 * 4096,
            phases,
            ..Record::default()
        }
    }

    #[test]
    fn writes_stand_for_what_their_workload_measures() {
        let write = |iteration| {
            let counters = [
                ("exits_permission_fault", 16 * iteration),
                ("faults_retried", 8),
            ];
            phase(PhaseName::Write, iteration, iteration * 80, &counters)
        };
        let writes = || vec![write(1), write(2), write(3)];
        let invalidate = record("invalidate", writes());
        assert_eq!(samples(Metric::FirstWrite, &invalidate), [10.0]);
        assert_eq!(samples(Metric::Write, &invalidate), [20.0, 30.0]);
        assert_eq!(samples(Metric::Retries, &invalidate), [0.5, 0.5]);
        assert!(samples(Metric::WriteAgain, &invalidate).is_empty());
        let cow = record("cow", writes());
        assert_eq!(samples(Metric::Write, &cow), [20.0]);
        assert_eq!(samples(Metric::WriteExits, &cow), [2.0]);
        assert_eq!(samples(Metric::WriteAgainExits, &cow), [3.0]);
        let prefault = record("prefault", writes());
        assert_eq!(samples(Metric::Write, &prefault), [10.0]);
        assert_eq!(samples(Metric::WriteAgain, &prefault), [20.0]);
    }

    #[test]
    fn merging_and_reclaim_have_figures_of_their_own() {
        let fill = phase(PhaseName::Fill, 0, 800, &[("frames_guest", 200)]);
        let counters = [
            ("frames_guest", 120),
            ("scanner_ns", 900),
            ("pages_scanned", 60),
        ];
        let merge = phase(PhaseName::Merge, 0, 5000, &counters);
        let merging = record("merge", vec![fill, merge]);
        assert_eq!(samples(Metric::FramesLeft, &merging), [60.0]);
        assert_eq!(samples(Metric::ScanPerPage, &merging), [15.0]);
        let counters = [("reclaim_compressed", 3), ("brought_back", 5)];
        let check = phase(PhaseName::Check, 1, 1_000_000, &counters);
        let reclaim = record("reclaim", vec![check]);
        assert_eq!(samples(Metric::Compressed, &reclaim), [3000.0]);
        assert_eq!(samples(Metric::BroughtBack, &reclaim), [5000.0]);
        let mut benchmark = record("", Vec::new());
        benchmark.counters.insert("pages_sharing".into(), 7);
        assert_eq!(samples(Metric::Sharing, &benchmark), [7.0]);
    }
}
