//! The comparison at the end of a run: one column per run, headed by its values that differ; one row per phase, then
//! counters, then whether the run was verified. A pure function of the records.

mod backing;
mod live;

use comfy_table::{CellAlignment, Table, presets};

use emulator::size::Size;
use records::record::{PhaseName, Record};
use records::words::Profile;

/// Up to this many iterations each has a row of its own; beyond it, the first one and the median of the others.
const MOST_DIRTY_ROWS: u64 = 8;

/// The counters that are worth a row, where one of them isn't 0. A name that ends in `_` is the sum of those that begin
/// with it.
const COUNTERS: [(&str, &str); 23] = [
    ("exits", "exits_"),
    ("waits for a dirty ring", "ring_full"),
    ("faults", "faults_"),
    ("... mapped", "faults_mapped"),
    ("... made writable", "faults_relaxed"),
    ("... split a block", "faults_split"),
    ("... of reads", "read_faults"),
    ("... retried", "faults_retried"),
    ("... met a lock too long", "faults_busy"),
    ("entries met locked", "met_locked"),
    ("exchanges lost", "lost_exchanges"),
    ("TLBIs, broadcast", "tlbi_broadcast"),
    ("TLBIs, local", "tlbi_local"),
    ("tables linked", "tables_linked"),
    ("tables unlinked", "tables_unlinked"),
    ("pages_shared", "pages_shared"),
    ("pages_sharing", "pages_sharing"),
    ("pages_unshared", "pages_unshared"),
    ("pages_volatile", "pages_volatile"),
    ("ksm_zero_pages", "ksm_zero_pages"),
    ("pages_scanned", "pages_scanned"),
    ("full_scans", "full_scans"),
    ("CPUs that merge", "scanners"),
];

/// The table, with a line above it that names the workload.
pub fn comparison(records: &[Record]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(std::iter::once(String::new()).chain(headers(records)));
    let is_measured = records.iter().any(|record| !record.phases.is_empty());
    let phases = match is_measured {
        true if is_of_backing(records) => backing::rows(records),
        true if is_of_guest(records) => live::rows(records),
        true => phase_rows(records),
        false => Vec::new(),
    };
    for (label, cells) in phases.into_iter().chain(counter_rows(records)) {
        table.add_row(std::iter::once(label).chain(cells));
    }
    let verified = records
        .iter()
        .map(|record| if record.verified { "yes" } else { "NO" }.to_string());
    table.add_row(std::iter::once("verified".to_string()).chain(verified));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{}\n\n{table}", heading(records))
}

type Row = (String, Vec<String>);

/// Whether these are runs of a workload that changes backing memory.
fn is_of_backing(records: &[Record]) -> bool {
    records
        .first()
        .is_some_and(|record| !record.workload.is_empty())
}

/// Whether these are runs with a guest of the user's, whose memory was logged while it ran.
fn is_of_guest(records: &[Record]) -> bool {
    records
        .first()
        .is_some_and(|record| !record.guest.is_empty())
}

/// The mode of each record, with the policies that aren't the same for all.
fn headers(records: &[Record]) -> impl Iterator<Item = String> + '_ {
    let policies: [fn(&Record) -> String; 6] = [
        |record| record.split.clone(),
        |record| record.tracking.clone(),
        |record| record.tracker.clone(),
        |record| record.change.clone(),
        |record| format!("{} workers", record.workers),
        |record| format!("overcommit {} %", record.overcommit),
    ];
    let differing = policies.map(|policy| {
        let first = records.first().map(policy);
        records
            .iter()
            .any(|record| Some(policy(record)) != first)
            .then_some(policy)
    });
    records.iter().map(move |record| {
        let words = differing.iter().flatten().map(|policy| policy(record));
        let words: Vec<String> = std::iter::once(record.mode.clone()).chain(words).collect();
        words.join("\n")
    })
}

fn heading(records: &[Record]) -> String {
    let Some(record) = records.first() else {
        return "nothing was measured".into();
    };
    let merging = match record.scanners {
        0 => String::new(),
        1 => ", merged by a CPU".to_string(),
        several => format!(", merged by {several} CPUs"),
    };
    if is_of_backing(records) {
        return format!(
            "{}: {} vCPUs x {}, backing {}{merging}; {}, GICv{}; measured with {}{}",
            record.workload,
            record.vcpus,
            Size(record.bytes_per_vcpu),
            record.backing,
            record.cpu,
            record.gic,
            record.clock,
            built(record)
        );
    }
    let harvesters = match record.harvesters {
        0 | 1 => String::new(),
        several => format!(", {several} harvesters"),
    };
    if is_of_guest(records) {
        return format!(
            "{}: {} vCPUs, {}, {} rounds after {} ms each, backing {}{harvesters}{merging}; {}, GICv{}; times in ms, measured with {}{}",
            record.guest,
            record.vcpus,
            Size(record.bytes_per_vcpu),
            record.iterations,
            record.interval,
            record.backing,
            record.cpu,
            record.gic,
            record.clock,
            built(record)
        );
    }
    format!(
        "{} vCPUs x {}, {} iterations, backing {}, {} % writes{harvesters}{merging}; {}, GICv{}; times in ms, measured with {}{}",
        record.vcpus,
        Size(record.bytes_per_vcpu),
        record.iterations,
        record.backing,
        record.write_percent,
        record.cpu,
        record.gic,
        record.clock,
        built(record)
    )
}

/// How the hypervisor was built, unless it is as best it can be.
fn built(record: &Record) -> &'static str {
    match record.profile == Profile::Quick.name() {
        true => "; built with --profile quick",
        false => "",
    }
}

fn phase_rows(records: &[Record]) -> Vec<Row> {
    let iterations = records
        .iter()
        .map(|record| record.iterations)
        .max()
        .unwrap_or(0);
    let mut rows = vec![row(records, "populate", |record| {
        phase(record, PhaseName::Populate, |_| true)
    })];
    rows.push(row(records, "enable logging", |record| {
        phase(record, PhaseName::Enable, |_| true)
    }));
    if iterations <= MOST_DIRTY_ROWS {
        for iteration in 1..=iterations {
            let dirty =
                |record: &Record| phase(record, PhaseName::Dirty, |other| other == iteration);
            rows.push(row(records, &format!("dirty {iteration}"), dirty));
        }
    } else {
        rows.push(row(records, "dirty 1", |record| {
            phase(record, PhaseName::Dirty, |iteration| iteration == 1)
        }));
        let label = format!("dirty 2 to {iterations}, median");
        rows.push(row(records, &label, |record| {
            phase(record, PhaseName::Dirty, |iteration| iteration > 1)
        }));
    }
    let several = if iterations > 1 { ", median" } else { "" };
    for (name, label) in [(PhaseName::Get, "get"), (PhaseName::Clear, "clear")] {
        rows.push(row(records, &format!("{label} log{several}"), |record| {
            phase(record, name, |_| true)
        }));
    }
    rows.push(row(records, "disable logging", |record| {
        phase(record, PhaseName::Disable, |_| true)
    }));
    let restored = |record: &Record| phase(record, PhaseName::Restore, |_| true);
    if records.iter().any(|record| restored(record).is_some()) {
        rows.push(row(records, "restore blocks", restored));
    }
    rows
}

fn row(records: &[Record], label: &str, nanoseconds: impl Fn(&Record) -> Option<u64>) -> Row {
    let cell = |record| nanoseconds(record).map_or_else(|| "-".into(), milliseconds);
    (label.to_string(), records.iter().map(cell).collect())
}

/// The median of the phases called `name` whose iteration is wanted.
fn phase(record: &Record, name: PhaseName, wanted: impl Fn(u64) -> bool) -> Option<u64> {
    let chosen = record
        .phases
        .iter()
        .filter(|phase| phase.name == name && wanted(phase.iteration));
    let mut times: Vec<u64> = chosen.map(|phase| phase.ns).collect();
    times.sort_unstable();
    let middle = times.len() / 2;
    match times.len() {
        0 => None,
        length if length % 2 == 1 => Some(times[middle]),
        _ => Some(times[middle - 1].midpoint(times[middle])),
    }
}

fn milliseconds(nanoseconds: u64) -> String {
    format!(
        "{}.{:03}",
        nanoseconds / 1_000_000,
        nanoseconds / 1000 % 1000
    )
}

fn counter_rows(records: &[Record]) -> Vec<Row> {
    let row = |(label, name): (&str, &str)| {
        let counts: Vec<u64> = records.iter().map(|record| count(record, name)).collect();
        let is_of_note = counts.iter().any(|count| *count != 0);
        is_of_note.then(|| {
            (
                label.to_string(),
                counts.iter().map(u64::to_string).collect(),
            )
        })
    };
    COUNTERS.into_iter().filter_map(row).collect()
}

/// A counter of the whole run; one that isn't in the record is 0.
fn count(record: &Record, name: &str) -> u64 {
    let is_meant =
        |counter: &str| counter == name || (name.ends_with('_') && counter.starts_with(name));
    record
        .counters
        .iter()
        .filter(|(counter, _)| is_meant(counter))
        .map(|(_, count)| count)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use records::record::Phase;

    const RECORD: &str = include_str!("../../emulator/samples/record.json");

    fn record(mode: &str) -> Record {
        let record: Record = serde_json::from_str(RECORD).expect("the sample is a record");
        Record {
            mode: mode.into(),
            ..record
        }
    }

    fn cells(table: &str, label: &str) -> Vec<String> {
        let line = table
            .lines()
            .find(|line| line.starts_with(&format!("| {label} ")))
            .expect(label);
        line.split('|')
            .map(|cell| cell.trim().to_string())
            .filter(|cell| !cell.is_empty())
            .skip(1)
            .collect()
    }

    #[test]
    fn the_table_says_how_many_cpus_merged_and_harvested() {
        let mut merged = record("parallel");
        merged.scanners = 2;
        merged.harvesters = 3;
        merged.counters.insert("scanners".into(), 2);
        let table = comparison(&[merged]);
        assert_eq!(cells(&table, "CPUs that merge"), ["2"]);
        assert!(
            table.contains("% writes, 3 harvesters, merged by 2 CPUs; "),
            "{table}"
        );
    }

    #[test]
    fn the_table_has_a_column_per_mode_and_a_row_per_phase() {
        let mut slow = record("mutex");
        slow.phases[2].ns = 400_500_000;
        slow.verified = false;
        let table = comparison(&[slow, record("parallel")]);
        assert!(
            table.starts_with("4 vCPUs x 64 MiB, 1 iterations, backing 2M"),
            "{table}"
        );
        assert_eq!(cells(&table, "populate"), ["100.000", "100.000"]);
        assert_eq!(cells(&table, "dirty 1"), ["400.500", "40.000"]);
        assert_eq!(cells(&table, "exits"), ["70000", "70000"]);
        assert_eq!(cells(&table, "faults"), ["65539", "65539"]);
        assert_eq!(cells(&table, "... retried"), ["3", "3"]);
        assert_eq!(cells(&table, "verified"), ["NO", "yes"]);
        assert!(!table.contains("TLBI"), "{table}");
    }

    #[test]
    fn a_quick_build_is_called_one() {
        let of = |profile: &str| Record {
            profile: profile.into(),
            ..record("parallel")
        };
        assert!(heading(&[of("quick")]).ends_with("; built with --profile quick"));
        assert!(!heading(&[of("best")]).contains("profile"));
    }

    #[test]
    fn what_tells_runs_apart_heads_their_columns() {
        let run = |split: &str| Record {
            split: split.into(),
            tracking: "writeprotect".into(),
            ..record("parallel")
        };
        let heads: Vec<String> = headers(&[run("none"), run("eager")]).collect();
        assert_eq!(heads, ["parallel\nnone", "parallel\neager"]);
        let heads: Vec<String> = headers(&[run("none")]).collect();
        assert_eq!(heads, ["parallel"]);
    }

    #[test]
    fn what_is_compared_of_backing_heads_its_columns_too() {
        let run = |workers| Record {
            workload: "invalidate".into(),
            tracker: "ranges".into(),
            workers,
            ..record("parallel")
        };
        let heads: Vec<String> = headers(&[run(0), run(4)]).collect();
        assert_eq!(heads, ["parallel\n0 workers", "parallel\n4 workers"]);
    }

    #[test]
    fn of_many_iterations_the_median_is_shown() {
        let mut long = record("parallel");
        long.iterations = 10;
        let dirty = |iteration| Phase {
            name: PhaseName::Dirty,
            iteration,
            ns: iteration * 1_000_000,
            counters: [].into(),
        };
        long.phases = (1..=10).map(dirty).collect();
        let table = comparison(&[long]);
        assert_eq!(cells(&table, "dirty 1"), ["1.000"]);
        assert_eq!(cells(&table, "dirty 2 to 10, median"), ["6.000"]);
        assert_eq!(cells(&table, "populate"), ["-"]);
    }

    #[test]
    fn a_guest_of_the_users_has_rows_of_its_rounds() {
        let mut run = record("parallel");
        (run.guest, run.interval, run.iterations) = ("linux".into(), 50, 2);
        let copy = |iteration: u64| Phase {
            name: PhaseName::Copy,
            iteration,
            ns: (iteration + 1) * 1_000_000,
            counters: [("pages_dirty".to_string(), 100 - iteration)].into(),
        };
        run.phases = (0..=2).map(copy).collect();
        let table = comparison(&[run]);
        assert!(
            table.starts_with("linux: 4 vCPUs, 64 MiB, 2 rounds after 50 ms each, backing 2M; "),
            "{table}"
        );
        assert_eq!(cells(&table, "copy all"), ["1.000"]);
        assert_eq!(cells(&table, "copy, median"), ["2.500"]);
        assert_eq!(cells(&table, "pages in round 2"), ["98"]);
        assert!(!table.contains("dirty 1"), "{table}");
    }

    #[test]
    fn no_records_make_no_panic() {
        assert!(comparison(&[]).contains("nothing was measured"));
    }
}
