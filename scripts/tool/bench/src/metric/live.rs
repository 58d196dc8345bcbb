//! The metrics of a run in which the memory of a running guest of the user's was logged and copied.

use records::record::{Phase, PhaseName, Record};

use super::{LAST, Metric, phases, time};

/// The metrics of the benchmark that mean nothing here: the guest runs for a fixed time between two rounds.
const FIXED: [Metric; 6] = [
    Metric::FreeDirty,
    Metric::FirstDirty,
    Metric::LaterDirty,
    Metric::LaterDirtyPerPage,
    Metric::FirstExits,
    Metric::LaterExits,
];

/// Whether a metric means nothing for a record.
pub fn excludes(metric: Metric, record: &Record) -> bool {
    !record.guest.is_empty() && FIXED.contains(&metric)
}

/// The measurements of a metric that a record holds.
pub fn samples(metric: Metric, record: &Record) -> Vec<f64> {
    let times = |name, from, to| phases(record, name, from..=to).map(time).collect();
    let rounds = || phases(record, PhaseName::Copy, 1..=LAST);
    match metric {
        Metric::CopyAll => times(PhaseName::Copy, 0, 0),
        Metric::CopyRound => times(PhaseName::Copy, 1, LAST),
        Metric::Stop => times(PhaseName::Stop, 0, LAST),
        Metric::Compare => times(PhaseName::Compare, 0, LAST),
        Metric::DirtyPages => rounds().filter_map(dirty_pages).collect(),
        Metric::HarvestPerPage => rounds()
            .filter_map(|copy| {
                let of_round = |name| phases(record, name, copy.iteration..=copy.iteration);
                let harvest = of_round(PhaseName::Get).chain(of_round(PhaseName::Clear));
                let pages = dirty_pages(copy).filter(|pages| *pages > 0.0)?;
                Some(harvest.map(time).sum::<f64>() / pages)
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// The pages that were written in a round.
fn dirty_pages(copy: &Phase) -> Option<f64> {
    let pages = copy.counters.get("pages_dirty");
    pages.map(|pages| *pages as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_measured_by_their_pages() {
        let phase = |name, iteration, ns| Phase {
            name,
            iteration,
            ns,
            counters: [("pages_dirty".to_string(), 100 * iteration)].into(),
        };
        let record = Record {
            guest: "linux".into(),
            phases: vec![
                phase(PhaseName::Copy, 0, 9000),
                phase(PhaseName::Dirty, 1, 1),
                phase(PhaseName::Get, 1, 100),
                phase(PhaseName::Clear, 1, 300),
                phase(PhaseName::Copy, 1, 5000),
                phase(PhaseName::Dirty, 2, 1),
                phase(PhaseName::Get, 2, 200),
                phase(PhaseName::Copy, 2, 6000),
                phase(PhaseName::Stop, 0, 7000),
            ],
            ..Record::default()
        };
        assert_eq!(Metric::CopyAll.samples(&record), [9000.0]);
        assert_eq!(Metric::CopyRound.samples(&record), [5000.0, 6000.0]);
        assert_eq!(Metric::DirtyPages.samples(&record), [100.0, 200.0]);
        assert_eq!(Metric::HarvestPerPage.samples(&record), [4.0, 1.0]);
        assert_eq!(Metric::Stop.samples(&record), [7000.0]);
        assert!(Metric::LaterDirty.samples(&record).is_empty());
    }
}
