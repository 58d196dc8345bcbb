//! The results in order: a section for each workload, a series in it for each configuration, and a point in that for each number
//! of vCPUs, with the spread of its measurements.

use std::collections::BTreeMap;

use records::record::Record;

use super::label;
use super::metric::Metric;
use super::results::Results;
use super::statistics::Spread;

/// All that was measured with one workload on one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// The workload: memory, backing, share of writes.
    pub workload: String,
    /// The machine that did it.
    pub machine: String,
    /// The policies that Parvisor's series have in common.
    pub common: String,
    /// The clock of the measurements.
    pub clock: String,
    /// The configurations, in the order of their first measurements.
    pub series: Vec<Series>,
}

/// One configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its place among all series of the section, which decides on its looks in every plot.
    pub order: usize,
    /// Its name among the others.
    pub label: String,
    /// Whether it is Parvisor, and not a system to compare with.
    pub is_parvisor: bool,
    /// The measurements, by the number of vCPUs.
    pub points: BTreeMap<u64, Point>,
}

/// The measurements of one configuration with one number of vCPUs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    /// The measurements.
    pub spreads: BTreeMap<Metric, Spread>,
}

impl Section {
    /// The sections of some results.
    pub fn all(results: &Results) -> Vec<Self> {
        let mut groups: Vec<((String, String), Vec<&Record>)> = Vec::new();
        for run in &results.runs {
            let key = (label::workload(&run.record), label::machine(&run.record));
            match groups.iter_mut().find(|(other, _)| *other == key) {
                Some((_, records)) => records.push(&run.record),
                None => groups.push((key, vec![&run.record])),
            }
        }
        let sections = groups.into_iter();
        sections
            .map(|((workload, machine), records)| Self {
                workload,
                machine,
                common: label::common_policies(&records),
                clock: records
                    .first()
                    .map_or_else(String::new, |first| first.clock.clone()),
                series: series(&records),
            })
            .collect()
    }

    /// The numbers of vCPUs that anything was measured with, ascending.
    pub fn vcpus(&self) -> Vec<u64> {
        let all = self.series.iter().flat_map(|series| series.points.keys());
        let mut vcpus: Vec<u64> = all.copied().collect();
        vcpus.sort_unstable();
        vcpus.dedup();
        vcpus
    }

    /// The section with only those series that have a measurement of one of `metrics`.
    pub fn with(&self, metrics: &[Metric]) -> Self {
        let has = |series: &&Series| {
            let mut points = series.points.values();
            points.any(|point| {
                metrics
                    .iter()
                    .any(|metric| point.spreads.contains_key(metric))
            })
        };
        Self {
            series: self.series.iter().filter(has).cloned().collect(),
            ..self.clone()
        }
    }

    /// Whether anything was measured of `metric`.
    pub fn has(&self, metric: Metric) -> bool {
        self.spreads(metric).next().is_some()
    }

    /// All that was measured of `metric`.
    pub fn spreads(&self, metric: Metric) -> impl Iterator<Item = &Spread> {
        let points = self.series.iter().flat_map(|series| series.points.values());
        points.filter_map(move |point| point.spreads.get(&metric))
    }
}

impl Series {
    /// The measurements of `metric` with so many vCPUs.
    pub fn spread(&self, metric: Metric, vcpus: u64) -> Option<Spread> {
        self.points.get(&vcpus)?.spreads.get(&metric).copied()
    }
}

fn series(records: &[&Record]) -> Vec<Series> {
    let labels = label::labels(records);
    let mut order = Vec::new();
    let mut groups: BTreeMap<_, BTreeMap<u64, Vec<&Record>>> = BTreeMap::new();
    for (record, label) in records.iter().zip(labels) {
        let key = label::key(record);
        if !groups.contains_key(&key) {
            order.push((key.clone(), label, label::is_parvisor(record)));
        }
        let points = groups.entry(key).or_default();
        points.entry(record.vcpus).or_default().push(record);
    }
    let all = order.into_iter().enumerate();
    all.map(|(order, (key, label, is_parvisor))| {
        let points = groups.remove(&key).unwrap_or_default().into_iter();
        Series {
            order,
            label,
            is_parvisor,
            points: points
                .map(|(vcpus, records)| (vcpus, point(&records)))
                .collect(),
        }
    })
    .collect()
}

fn point(records: &[&Record]) -> Point {
    let spread = |metric: Metric| {
        let all = records.iter().flat_map(|record| metric.samples(record));
        let spread = Spread::of(&all.collect::<Vec<f64>>())?;
        Some((metric, spread))
    };
    Point {
        spreads: Metric::ALL.into_iter().filter_map(spread).collect(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::results::Run;
    use super::*;
    use records::record::{Phase, PhaseName};

    /// A record of `mode` whose later iterations take `ns` each.
    pub(crate) fn record(mode: &str, vcpus: u64, ns: u64) -> Record {
        let phase = |name, iteration, ns| Phase {
            name,
            iteration,
            ns,
            counters: [("exits_permission_fault".to_string(), 2048 * vcpus)].into(),
        };
        Record {
            mode: mode.into(),
            split: "fault".into(),
            vcpus,
            bytes_per_vcpu: 8 << 20,
            backing: "2M".into(),
            write_percent: 100,
            iterations: 3,
            cpu: "neoverse-n1".into(),
            gic: 3,
            clock: "cntpct".into(),
            phases: vec![
                phase(PhaseName::Populate, 0, ns / 4),
                phase(PhaseName::Enable, 0, 12_000),
                phase(PhaseName::Dirty, 1, ns * 2),
                phase(PhaseName::Get, 1, 9_000),
                phase(PhaseName::Clear, 1, 40_000),
                phase(PhaseName::Dirty, 2, ns),
                phase(PhaseName::Clear, 2, 30_000),
                phase(PhaseName::Dirty, 3, ns + ns / 10),
                phase(PhaseName::Disable, 0, 70_000),
            ],
            verified: true,
            ..Record::default()
        }
    }

    /// Results with these records, each a repetition of its own if it occurs again.
    pub(crate) fn results(records: impl IntoIterator<Item = Record>) -> Results {
        let runs = records.into_iter().map(|record| Run { repeat: 1, record });
        Results {
            format: super::super::results::FORMAT,
            command: vec!["scripts/bench".into()],
            runs: runs.collect(),
            ..Results::default()
        }
    }

    #[test]
    fn records_are_sorted_into_sections_series_and_points() {
        let mut other = record("parallel", 1, 5_000_000);
        other.backing = "4K".into();
        let sections = Section::all(&results([
            record("mutex", 1, 1_000_000),
            record("mutex", 4, 4_000_000),
            record("parallel", 4, 1_000_000),
            record("mutex", 4, 4_200_000),
            other,
        ]));
        assert_eq!(sections.len(), 2);
        let [first, second] = [&sections[0], &sections[1]];
        assert_eq!(first.workload, "8 MiB per vCPU, backing 2M, 100 % writes");
        assert_eq!(second.workload, "8 MiB per vCPU, backing 4K, 100 % writes");
        assert_eq!(first.vcpus(), [1, 4]);
        let labels: Vec<&str> = first
            .series
            .iter()
            .map(|series| series.label.as_str())
            .collect();
        assert_eq!(labels, ["mutex", "parallel"]);
        let later = first.series[0]
            .spread(Metric::LaterDirty, 4)
            .expect("it was measured");
        assert_eq!(later.count, 4);
        assert_eq!((later.least, later.greatest), (4_000_000.0, 4_620_000.0));
        assert_eq!(first.series[1].spread(Metric::LaterDirty, 1), None);
        assert!(!first.has(Metric::LongestExit));
        let one = first.with(&[Metric::LaterDirty, Metric::LongestExit]);
        assert_eq!(one.series.len(), 2);
        assert!(first.with(&[Metric::LongestExit]).series.is_empty());
    }
}
