//! The rows of workloads that change backing memory: each phase's time, what a page of it takes, and what the vCPUs had to do
//! for a page.

use records::record::{Phase, PhaseName, Record, exits};

use super::{Row, milliseconds};

const PAGE: u64 = 4096;
/// The counter that must be 0 while other CPUs work, and is shown then.
const RETRIED: &str = "faults_retried";
/// The counters of a phase that have a row of their own where one of them isn't 0, and what the row is called.
const COUNTERS: [(&str, &str); 21] = [
    (RETRIED, "faults retried"),
    ("faults_busy", "faults that met a lock too long"),
    ("invalidations", "invalidations beside"),
    ("populated", "pages populated ahead"),
    ("frames_guest", "frames of guest memory"),
    ("pages_shared", "pages_shared"),
    ("pages_sharing", "pages_sharing"),
    ("pages_unshared", "pages_unshared"),
    ("pages_volatile", "pages_volatile"),
    ("ksm_zero_pages", "ksm_zero_pages"),
    ("full_scans", "full_scans"),
    ("pages_scanned", "pages_scanned"),
    ("scanners", "CPUs that scan"),
    ("scanner_ns", "time of the scanners, ns"),
    ("scan_ns", "time from their start to their last step, ns"),
    ("reclaim_compressed", "pages compressed"),
    ("reclaim_zeros", "pages of zeros dropped"),
    ("brought_back", "pages brought back"),
    ("compressed", "pages that are away"),
    ("compressed_bytes", "bytes that they take"),
    ("longest_exit_ns", "longest exit, ns"),
];

/// A phase's name and its iteration.
type Kind = (PhaseName, u64);

/// The rows of all phases of any record, in the order of the runs.
pub fn rows(records: &[Record]) -> Vec<Row> {
    let mut kinds: Vec<Kind> = Vec::new();
    for phase in records.iter().flat_map(|record| &record.phases) {
        if !kinds.contains(&kind(phase)) {
            kinds.push(kind(phase));
        }
    }
    kinds.sort_by_key(|kind| first_place(records, *kind));
    kinds
        .into_iter()
        .flat_map(|kind| of_phase(records, kind))
        .collect()
}

fn kind(phase: &Phase) -> Kind {
    (phase.name, phase.iteration)
}

/// How early a phase comes in the first record that has it.
fn first_place(records: &[Record], wanted: Kind) -> usize {
    let places = records
        .iter()
        .filter_map(|record| record.phases.iter().position(|phase| kind(phase) == wanted));
    places.max().unwrap_or(0)
}

fn of_phase(records: &[Record], wanted: Kind) -> Vec<Row> {
    let name = in_words(wanted);
    let cells = |cell: &dyn Fn(&Record, &Phase) -> String| -> Vec<String> {
        let of = |record: &Record| {
            let phase = record.phases.iter().find(|phase| kind(phase) == wanted);
            phase.map_or_else(|| "-".into(), |phase| cell(record, phase))
        };
        records.iter().map(of).collect()
    };
    let share = |record: &Record| (record.bytes_per_vcpu / PAGE).max(1);
    let mut rows = vec![
        (
            format!("{name}, ms"),
            cells(&|_, phase| milliseconds(phase.ns)),
        ),
        (
            "... per page of a share, ns".into(),
            cells(&|record, phase| hundredths(phase.ns, share(record))),
        ),
        (
            "... exits per page".into(),
            cells(&|record, phase| {
                hundredths(exits(&phase.counters), share(record) * record.vcpus.max(1))
            }),
        ),
    ];
    for (counter, label) in COUNTERS {
        let count = |phase: &Phase| phase.counters.get(counter).copied();
        let all = records.iter().flat_map(|record| &record.phases);
        let mut meant = all.filter(|phase| kind(phase) == wanted);
        let is_awaited = counter == RETRIED && records.iter().any(|record| record.workers != 0);
        if is_awaited || meant.any(|phase| count(phase).is_some_and(|count| count != 0)) {
            let cells = cells(&|_, phase| count(phase).unwrap_or(0).to_string());
            rows.push((format!("... {label}"), cells));
        }
    }
    rows
}

fn in_words((name, iteration): Kind) -> String {
    let name = match name {
        PhaseName::Fork => "fork",
        PhaseName::Prefault => "populate ahead",
        PhaseName::Write => "write",
        PhaseName::Read => "read",
        PhaseName::Fill => "fill",
        PhaseName::Check => "check",
        PhaseName::Merge => "merge",
        _ => "other",
    };
    match iteration {
        0 => name.into(),
        _ => format!("{name} {iteration}"),
    }
}

/// A quotient with two decimals.
fn hundredths(sum: u64, count: u64) -> String {
    format!("{:.2}", sum as f64 / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_shows_what_a_page_takes() {
        let phase = |retried| Phase {
            name: PhaseName::Write,
            iteration: 1,
            ns: 20_480,
            counters: [
                ("exits_permission_fault".to_string(), 80),
                ("faults_retried".to_string(), retried),
            ]
            .into(),
        };
        let record = |retried| Record {
            vcpus: 2,
            bytes_per_vcpu: 20 * PAGE,
            phases: vec![phase(retried)],
            ..Record::default()
        };
        let rows = rows(&[record(0), record(7), Record::default()]);
        let row = |label: &str| {
            let row = rows.iter().find(|(name, _)| name == label);
            row.map(|(_, cells)| cells.join(" ")).unwrap_or_default()
        };
        assert_eq!(row("write 1, ms"), "0.020 0.020 -");
        assert_eq!(row("... per page of a share, ns"), "1024.00 1024.00 -");
        assert_eq!(row("... exits per page"), "2.00 2.00 -");
        assert_eq!(row("... faults retried"), "0 7 -");
        assert_eq!(row("... pages_shared"), "");
    }
}
