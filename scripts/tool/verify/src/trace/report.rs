//! What was counted beside its bars: a table for each path, and a verdict for each of its columns.

use comfy_table::{CellAlignment, Table, presets};

use super::Finding;
use super::bars::{Bars, PathBars, REST, TOTAL};
use super::parts::Counts;

/// The commonest path of a kind of exit.
#[derive(Debug)]
pub struct Counted {
    /// Its instructions by part.
    pub parts: Counts,
    /// How many exits took it.
    pub alike: usize,
    /// How many exits of the kind there were.
    pub all: usize,
}

impl Counted {
    fn total(&self) -> u64 {
        self.parts.values().sum()
    }

    fn of(&self, part: &str) -> u64 {
        match part {
            TOTAL => self.total(),
            part => self.parts.get(part).copied().unwrap_or_default(),
        }
    }
}

/// The parts of a path, with a column of counts and one of bars for each CPU.
pub fn table(path: &PathBars, bars: &Bars, columns: &[Counted]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let heads = bars
        .cpus
        .iter()
        .flat_map(|cpu| [cpu.clone(), "at most".into()]);
    table.set_header(std::iter::once(path.name.clone()).chain(heads));
    let parts = bars.parts.iter().map(|part| part.name.as_str());
    for part in parts.chain([REST, TOTAL]) {
        let limits = path.most.get(part);
        if limits.is_none() && columns.iter().all(|counted| counted.of(part) == 0) {
            continue;
        }
        let cells = columns.iter().enumerate().flat_map(|(index, counted)| {
            let limit = limits.map_or_else(String::new, |most| most[index].to_string());
            [counted.of(part).to_string(), limit]
        });
        table.add_row(std::iter::once(part.to_string()).chain(cells));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}")
}

/// Compares the path on the CPU of this index with its bars.
pub fn judge(path: &PathBars, cpu: &str, index: usize, counted: &Counted) -> Finding {
    let above = path.most.iter().filter_map(|(part, most)| {
        let (count, most) = (counted.of(part), most[index]);
        (count > most).then(|| format!("{part}: {count}, at most {most}"))
    });
    let above: Vec<String> = above.collect();
    let (name, total) = (&path.name, counted.total());
    let mut text = format!(
        "{name} on {cpu}: {total} instructions for {}, {} of {} alike",
        path.about, counted.alike, counted.all
    );
    if !above.is_empty() {
        text = format!("{text}; above the bar: {}", above.join("; "));
    }
    Finding {
        text,
        holds: Some(above.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::bars::{Kind, Part};

    fn path() -> PathBars {
        let most = [("total", 5), ("walk", 2)];
        PathBars {
            name: "logged".into(),
            about: "a write".into(),
            boot: "x".into(),
            exit: Kind::Call,
            runs: None,
            most: most.map(|(part, most)| (part.into(), vec![most, 9])).into(),
        }
    }

    fn counted(walk: u64, log: u64) -> Counted {
        Counted {
            parts: [("walk".into(), walk), ("log".into(), log)].into(),
            alike: 3,
            all: 4,
        }
    }

    #[test]
    fn a_part_or_a_total_above_its_bar_is_named() {
        let text = |counted: Counted| {
            let finding = judge(&path(), "a", 0, &counted);
            (finding.holds, finding.text)
        };
        let (holds, said) = text(counted(2, 3));
        assert!(holds == Some(true) && said.contains("5 instructions for a write, 3 of 4 alike"));
        let (holds, said) = text(counted(3, 1));
        assert!(
            holds == Some(false) && said.ends_with("above the bar: walk: 3, at most 2"),
            "{said}"
        );
        let (holds, said) = text(counted(1, 5));
        assert!(
            holds == Some(false) && said.ends_with("above the bar: total: 6, at most 5"),
            "{said}"
        );
        assert_eq!(judge(&path(), "b", 1, &counted(3, 5)).holds, Some(true));
    }

    #[test]
    fn the_table_has_the_parts_that_there_are() {
        let part = |name: &str| Part {
            name: name.into(),
            files: Vec::new(),
            symbols: Vec::new(),
        };
        let bars = Bars {
            cpus: vec!["a".into(), "b".into()],
            boots: Vec::new(),
            parts: ["walk", "log", "epoch"].map(part).into(),
            paths: Vec::new(),
        };
        let table = table(&path(), &bars, &[counted(2, 3), counted(2, 4)]);
        let rows: Vec<_> = table.lines().map(|line| line.replace(' ', "")).collect();
        let expected = [
            "|logged|a|atmost|b|atmost|",
            "|walk|2|2|2|9|",
            "|log|3||4||",
            "|total|5|5|6|9|",
        ];
        assert_eq!([&rows[0], &rows[2], &rows[3], &rows[4]], expected);
        assert_eq!(rows.len(), 5);
    }
}
