//! Rows of a table of choices, few of them, among which every combination of the choices of any two (or three) columns occurs.

/// Tries for each row, of which the one is taken that has most that is new.
const TRIES: usize = 24;

/// Rows for columns of so many choices each, such that each combination of choices in `strength` columns is in one of them.
/// The same each time.
pub fn covering(strength: usize, sizes: &[usize]) -> Vec<Vec<usize>> {
    let mut missing: Vec<Missing> = (groups(strength, sizes.len()).into_iter())
        .map(|columns| Missing::new(columns, sizes))
        .collect();
    let mut random = 1_u64;
    let mut choose = |count: usize| {
        // Knuth's MMIX generator; the upper bits are the good ones.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % count
    };
    let mut rows = Vec::new();
    while let Some(wanted) = missing.iter().find_map(Missing::first) {
        let candidates = (0..TRIES).map(|_| {
            let mut row: Vec<usize> = sizes.iter().map(|size| choose(*size)).collect();
            wanted
                .iter()
                .for_each(|(column, choice)| row[*column] = *choice);
            row
        });
        let news = |row: &Vec<usize>| missing.iter().filter(|group| group.lacks(row)).count();
        let row = candidates.max_by_key(news).expect("there are several");
        missing.iter_mut().for_each(|group| group.note(&row));
        rows.push(row);
    }
    rows
}

/// All sets of so many of the columns.
fn groups(strength: usize, columns: usize) -> Vec<Vec<usize>> {
    let mut groups = vec![Vec::new()];
    for _ in 0..strength {
        groups = (groups.iter())
            .flat_map(|group: &Vec<usize>| {
                let next = group.last().map_or(0, |last| last + 1);
                (next..columns).map(|column| [group.as_slice(), &[column]].concat())
            })
            .collect();
    }
    groups
}

/// Which combinations of some columns' choices are in no row yet.
struct Missing {
    columns: Vec<usize>,
    sizes: Vec<usize>,
    combinations: Vec<bool>,
    /// Before this all are there.
    from: usize,
}

impl Missing {
    fn new(columns: Vec<usize>, sizes: &[usize]) -> Self {
        let sizes: Vec<usize> = columns.iter().map(|column| sizes[*column]).collect();
        Self {
            combinations: vec![true; sizes.iter().product()],
            columns,
            sizes,
            from: 0,
        }
    }

    fn index(&self, row: &[usize]) -> usize {
        (self.columns.iter().zip(&self.sizes))
            .fold(0, |index, (column, size)| index * size + row[*column])
    }

    fn lacks(&self, row: &[usize]) -> bool {
        self.combinations[self.index(row)]
    }

    fn note(&mut self, row: &[usize]) {
        let index = self.index(row);
        self.combinations[index] = false;
        while self.combinations.get(self.from) == Some(&false) {
            self.from += 1;
        }
    }

    /// Columns and choices of the first combination that is missing.
    fn first(&self) -> Option<Vec<(usize, usize)>> {
        let mut index = self.from;
        if index == self.combinations.len() {
            return None;
        }
        let mut found = Vec::new();
        for (column, size) in self.columns.iter().zip(&self.sizes).rev() {
            found.push((*column, index % size));
            index /= size;
        }
        Some(found)
    }
}

#[test]
fn every_combination_of_two_or_three_columns_is_in_some_row() {
    let sizes = [3, 1, 4, 2, 5];
    for (strength, most) in [(2, 35), (3, 120)] {
        let rows = covering(strength, &sizes);
        assert!(rows.len() < most, "{} rows", rows.len());
        for columns in groups(strength, sizes.len()) {
            let combinations: std::collections::BTreeSet<Vec<usize>> = (rows.iter())
                .map(|row| columns.iter().map(|column| row[*column]).collect())
                .collect();
            let all: usize = columns.iter().map(|column| sizes[*column]).product();
            assert_eq!(combinations.len(), all, "columns {columns:?}");
        }
    }
}
