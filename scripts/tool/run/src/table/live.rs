//! The rows of runs in which the memory of a running guest of the user's was logged and copied.

use records::record::{Phase, PhaseName, Record};

use super::{Row, phase, row};

/// Up to this many rounds each has rows of its own; beyond it, the median of all.
const MOST_ROUNDS: u64 = 8;

/// The rows of the phases.
pub fn rows(records: &[Record]) -> Vec<Row> {
    let rounds = records.iter().map(|record| record.iterations).max();
    let rounds = rounds.unwrap_or(0);
    let time = |label: &str, name, wanted: &dyn Fn(u64) -> bool| {
        row(records, label, |record| phase(record, name, wanted))
    };
    let any = |_| true;
    let in_rounds = |iteration| iteration != 0;
    let mut rows = vec![
        time("enable logging", PhaseName::Enable, &any),
        time("copy all", PhaseName::Copy, &|iteration| iteration == 0),
        time("get log, median", PhaseName::Get, &any),
        time("clear log, median", PhaseName::Clear, &any),
        time("copy, median", PhaseName::Copy, &in_rounds),
        time("guest stopped", PhaseName::Stop, &any),
        time("compare", PhaseName::Compare, &any),
        time("disable logging", PhaseName::Disable, &any),
        time("restore blocks", PhaseName::Restore, &any),
    ];
    rows.retain(|(_, cells)| cells.iter().any(|cell| cell != "-"));
    if rounds <= MOST_ROUNDS {
        rows.extend((1..=rounds).map(|round| pages(records, round)));
    }
    rows
}

/// The pages that were written in a round.
fn pages(records: &[Record], round: u64) -> Row {
    let count = |record: &Record| {
        let is_meant = |phase: &&Phase| phase.name == PhaseName::Copy && phase.iteration == round;
        let copy = record.phases.iter().find(is_meant)?;
        copy.counters.get("pages_dirty").map(u64::to_string)
    };
    let cells = records
        .iter()
        .map(|record| count(record).unwrap_or_else(|| "-".into()));
    (format!("pages in round {round}"), cells.collect())
}
