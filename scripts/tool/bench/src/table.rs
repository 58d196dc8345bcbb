//! The results as tables: where several numbers of vCPUs were measured, a table for each metric with a row for each of
//! them; else one table with a row for each metric.

use comfy_table::{CellAlignment, Table, presets};

use super::metric::{Metric, Quantity};
use super::section::{Section, Series};
use super::statistics::{Spread, TimeUnit, significant};

/// A table and its heading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Titled {
    /// The heading, with the unit.
    pub title: String,
    /// The table in Markdown's form.
    pub table: String,
}

/// The tables of a section, for a page. A table that would be wider than `most` columns shows medians alone.
pub fn tables(section: &Section, most: usize) -> Vec<Titled> {
    let whole = tables_in(section, Detail::Spread).into_iter();
    let width = |titled: &Titled| titled.table.lines().map(|line| line.chars().count()).max();
    let medians = tables_in(section, Detail::Median).into_iter();
    whole
        .zip(medians)
        .map(|(whole, median)| {
            let is_wide = width(&whole).is_some_and(|width| width > most);
            if is_wide { median } else { whole }
        })
        .collect()
}

/// The contents of a cell for several measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    /// Median and extremes.
    Spread,
    /// The median alone.
    Median,
}

impl Detail {
    fn shown(self, spread: Spread) -> String {
        match self {
            Self::Spread => spread.to_string(),
            Self::Median => significant(spread.median),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Spread => "median (least–greatest)",
            Self::Median => "median",
        }
    }
}

fn tables_in(section: &Section, detail: Detail) -> Vec<Titled> {
    let vcpus = section.vcpus();
    let metrics = Metric::ALL.into_iter();
    let metrics = metrics.filter(|metric| section.has(*metric));
    match vcpus.as_slice() {
        [] => Vec::new(),
        [alone] => vec![by_metric(section, metrics, *alone, detail)],
        several => metrics
            .map(|metric| by_vcpus(section, metric, several, detail))
            .collect(),
    }
}

/// One row for each metric.
fn by_metric(
    section: &Section,
    metrics: impl Iterator<Item = Metric>,
    vcpus: u64,
    detail: Detail,
) -> Titled {
    let mut table = empty("", section.series.iter().map(|series| series.label.clone()));
    for metric in metrics {
        let unit = Unit::of(section, metric);
        let cells = section.series.iter().map(|series| {
            let spread = series.spread(metric, vcpus);
            spread.map_or_else(missing, |spread| {
                detail.shown(spread.in_units_of(unit.size()))
            })
        });
        let label = format!("{}{}", metric.name(), unit.suffix());
        table.add_row(std::iter::once(label).chain(cells));
    }
    Titled {
        title: format!("{}: {}", counted(vcpus), detail.name()),
        table: aligned(table),
    }
}

/// One row for each number of vCPUs, and one column for each series; the other way round if that is narrower.
fn by_vcpus(section: &Section, metric: Metric, vcpus: &[u64], detail: Detail) -> Titled {
    let unit = Unit::of(section, metric);
    let base = vcpus[0];
    let cell = |series: &Series, vcpus: u64| cell(series, metric, vcpus, base, &unit, detail);
    let labels = section.series.iter().map(|series| series.label.clone());
    let table = if section.series.len() > vcpus.len().max(4) {
        let mut table = empty("", vcpus.iter().map(|count| counted(*count)));
        for series in &section.series {
            let cells = vcpus.iter().map(|count| cell(series, *count));
            table.add_row(std::iter::once(series.label.clone()).chain(cells));
        }
        table
    } else {
        let mut table = empty("vCPUs", labels);
        for count in vcpus {
            let cells = section.series.iter().map(|series| cell(series, *count));
            table.add_row(std::iter::once(count.to_string()).chain(cells));
        }
        table
    };
    let ratio = match metric.quantity() {
        Quantity::Time => format!(", × its median with {}", counted(base)),
        Quantity::Number => String::new(),
    };
    Titled {
        title: format!(
            "{}{}: {}{ratio}",
            metric.name(),
            unit.suffix(),
            detail.name()
        ),
        table: aligned(table),
    }
}

fn cell(
    series: &Series,
    metric: Metric,
    vcpus: u64,
    base: u64,
    unit: &Unit,
    detail: Detail,
) -> String {
    let Some(spread) = series.spread(metric, vcpus) else {
        return missing();
    };
    let shown = detail.shown(spread.in_units_of(unit.size()));
    let first = series
        .spread(metric, base)
        .filter(|first| first.median > 0.0);
    match (metric.quantity(), first) {
        (Quantity::Time, Some(first)) if vcpus != base => {
            format!("{shown} ×{:.2}", spread.median / first.median)
        }
        _ => shown,
    }
}

fn missing() -> String {
    "-".into()
}

/// A number of vCPUs in words.
pub fn counted(vcpus: u64) -> String {
    match vcpus {
        1 => "1 vCPU".into(),
        several => format!("{several} vCPUs"),
    }
}

/// The unit of the numbers of a table or a plot.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    /// A time.
    Time(TimeUnit),
    /// None.
    Number,
}

impl Unit {
    /// The unit in which the smallest median of a metric is at least 1, so that no digits are lost.
    pub fn of(section: &Section, metric: Metric) -> Self {
        match metric.quantity() {
            Quantity::Number => Self::Number,
            Quantity::Time => {
                let medians = section.spreads(metric).map(|spread| spread.median);
                let least = medians
                    .filter(|median| *median > 0.0)
                    .min_by(f64::total_cmp);
                Self::Time(TimeUnit::for_size(least.unwrap_or(1e6)))
            }
        }
    }

    /// The unit that suits most measurements of some times.
    pub fn typical(section: &Section, metrics: &[Metric]) -> Self {
        let spreads = metrics.iter().flat_map(|metric| section.spreads(*metric));
        let medians: Vec<f64> = spreads.map(|spread| spread.median).collect();
        let typical = Spread::of(&medians).map_or(0.0, |spread| spread.median);
        Self::Time(TimeUnit::for_size(typical))
    }

    /// The divisor of a number.
    pub fn size(&self) -> f64 {
        match self {
            Self::Time(unit) => unit.nanoseconds(),
            Self::Number => 1.0,
        }
    }

    /// The text after the name of a metric.
    pub fn suffix(&self) -> String {
        match self {
            Self::Time(unit) => format!(", {}", unit.symbol()),
            Self::Number => String::new(),
        }
    }
}

fn empty(corner: &str, columns: impl Iterator<Item = String>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(std::iter::once(corner.to_string()).chain(columns));
    table
}

fn aligned(mut table: Table) -> String {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::section::tests::{record, results};
    use super::*;

    #[test]
    fn several_numbers_of_vcpus_make_a_table_for_each_metric() {
        let sections = Section::all(&results([
            record("mutex", 1, 1_000_000),
            record("mutex", 4, 4_000_000),
            record("parallel", 1, 1_000_000),
        ]));
        let tables = tables(&sections[0], usize::MAX);
        let later = tables
            .iter()
            .find(|table| table.title.starts_with("Later dirty iterations, ms"))
            .expect("dirty times");
        assert_eq!(
            later.title,
            "Later dirty iterations, ms: median (least–greatest), × its median with 1 vCPU"
        );
        let row = later.table.lines().last().expect("rows");
        assert!(row.contains("4.200 (4.000–4.400) ×4.00"), "{row}");
        assert!(row.ends_with(" - |"), "{row}");
        assert!(
            tables
                .iter()
                .all(|table| !table.title.starts_with("Longest exit"))
        );
    }

    #[test]
    fn one_number_of_vcpus_makes_one_table() {
        let sections = Section::all(&results([record("mutex", 2, 1_000_000)]));
        let tables = tables(&sections[0], usize::MAX);
        assert_eq!(tables.len(), 1);
        assert_eq!(tables[0].title, "2 vCPUs: median (least–greatest)");
        assert!(
            tables[0].table.contains("| Enable logging, µs "),
            "{}",
            tables[0].table
        );
    }

    #[test]
    fn many_series_become_rows() {
        let modes = ["a", "b", "c", "d", "e"];
        let records = modes
            .into_iter()
            .flat_map(|mode| [record(mode, 1, 9000), record(mode, 2, 9000)]);
        let sections = Section::all(&results(records));
        let tables = tables(&sections[0], usize::MAX);
        assert!(tables[0].table.starts_with("|   |"), "{}", tables[0].table);
        assert!(
            tables[0].table.contains(" 2 vCPUs |"),
            "{}",
            tables[0].table
        );
    }

    #[test]
    fn a_table_that_is_too_wide_shows_medians_alone() {
        let records = [1, 2].map(|vcpus| record("mutex", vcpus, 1_000_000));
        let sections = Section::all(&results(records));
        let later = |most| {
            let mut tables = tables(&sections[0], most).into_iter();
            tables.find(|table| table.title.starts_with("Later dirty iterations, ms"))
        };
        let (wide, narrow) = (later(1000).expect("one"), later(20).expect("one"));
        assert!(wide.table.contains("(1.000–1.100)") && wide.title.contains("least"));
        assert!(!narrow.table.contains('–') && !narrow.title.contains("least"));
    }
}
