//! Scales of axes: even or logarithmic, with marks that we choose.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};

use super::super::statistics::{Spread, significant};

/// How much room an axis leaves beyond its first and last point, as a factor.
const ROOM: f64 = 1.15;

/// The scale of an axis.
#[derive(Clone, Debug)]
pub struct Scale {
    low: f64,
    high: f64,
    marks: Vec<f64>,
    logarithmic: bool,
}

impl Scale {
    /// A logarithmic scale from `low` to `high`, both above 0.
    pub fn logarithmic(low: f64, high: f64, marks: Vec<f64>) -> Self {
        Self {
            low,
            high,
            marks,
            logarithmic: true,
        }
    }

    /// A logarithmic scale that shows all of these times.
    pub fn of_times(spreads: &[Spread]) -> Self {
        let (low, high) = bounds(spreads);
        Self::logarithmic(low, high, ticks(low, high))
    }

    /// A logarithmic scale with exactly these marks, which ascend.
    pub fn of_counts(counts: Vec<f64>) -> Self {
        let first = counts.first().copied().unwrap_or(1.0);
        let last = counts.last().copied().unwrap_or(1.0);
        Self::logarithmic(first / ROOM, last * ROOM, counts)
    }

    /// An even scale from `low` to `high`.
    pub fn even(low: f64, high: f64, marks: Vec<f64>) -> Self {
        Self {
            low,
            high,
            marks,
            logarithmic: false,
        }
    }

    /// The marks.
    pub fn marks(&self) -> &[f64] {
        &self.marks
    }

    /// The nearest value on the scale.
    pub fn within(&self, value: f64) -> f64 {
        value.clamp(self.low, self.high)
    }

    /// Where the scale begins.
    pub fn low(&self) -> f64 {
        self.low
    }
}

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let position = |value: f64| {
            if self.logarithmic { value.ln() } else { value }
        };
        let (low, high) = (position(self.low), position(self.high));
        let share = (position(*value) - low) / (high - low);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

/// The bounds of an axis that shows all of these.
fn bounds(spreads: &[Spread]) -> (f64, f64) {
    let positive = spreads.iter().filter(|spread| spread.median > 0.0);
    let least = positive.clone().map(|spread| {
        if spread.least > 0.0 {
            spread.least
        } else {
            spread.median
        }
    });
    let greatest = positive.map(|spread| spread.greatest);
    let low = least.min_by(f64::total_cmp).unwrap_or(1.0);
    let high = greatest.max_by(f64::total_cmp).unwrap_or(1.0);
    // An axis spans at least a factor of 3, so that small differences look small.
    let middle = (low * high).sqrt();
    let (low, high) = (low / ROOM, high * ROOM);
    (low.min(middle / 1.75), high.max(middle * 1.75))
}

/// Round numbers between two bounds, not too many of them.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let within = |steps: &[f64]| -> Vec<f64> {
        let decades = first..=last;
        let all =
            decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
        all.filter(|tick| (low..=high).contains(tick)).collect()
    };
    let choices: [&[f64]; 4] = [
        &[1.0],
        &[1.0, 3.0],
        &[1.0, 2.0, 5.0],
        &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
    ];
    let enough = choices
        .iter()
        .map(|steps| within(steps))
        .find(|ticks| ticks.len() >= 4);
    enough.unwrap_or_else(|| within(choices[3]))
}

/// A tick in words: no digits that say nothing.
pub fn label(tick: f64) -> String {
    let text = significant(tick);
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').into()
    } else {
        text
    }
}

/// Some round numbers from 0 on.
pub fn even_marks(high: f64) -> Vec<f64> {
    let decade = 10f64.powf(high.log10().floor());
    let steps = [0.1, 0.2, 0.25, 0.5, 1.0, 2.0];
    let step = steps
        .map(|step| step * decade)
        .into_iter()
        .find(|step| high / step <= 6.0);
    let step = step.unwrap_or(decade);
    let count = (high / step).floor() as u32;
    (0..=count).map(|index| f64::from(index) * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(0.9, 2100.0), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(ticks(9.0, 31.0), [10.0, 15.0, 20.0, 30.0]);
        for (low, high) in [(1e-9, 1e9), (3.0, 9.5), (0.57, 1.75)] {
            let count = ticks(low, high).len();
            assert!((3..=20).contains(&count), "{low} to {high}: {count}");
        }
    }

    #[test]
    fn values_are_placed_between_the_limits() {
        let scale = Scale::logarithmic(1.0, 100.0, vec![10.0]);
        assert_eq!(scale.map(&10.0, (200, 0)), 100);
        assert_eq!(scale.map(&1.0, (200, 0)), 200);
        let scale = Scale::even(0.0, 4.0, vec![]);
        assert_eq!(scale.map(&1.0, (0, 200)), 50);
    }

    #[test]
    fn labels_have_no_digits_that_say_nothing() {
        assert_eq!(label(1.0), "1");
        assert_eq!(label(0.05), "0.05");
        assert_eq!(label(20000.0), "20000");
        assert_eq!(label(1.5), "1.5");
    }

    #[test]
    fn an_axis_holds_all_points_and_some_room() {
        let flat = Spread::of(&[2.0]).expect("one");
        let (low, high) = bounds(&[flat]);
        assert!(high / low > 3.0 && low < 2.0 && high > 2.0);
        let zero = Spread::of(&[0.0]).expect("one");
        let (low, high) = bounds(&[zero]);
        assert!(low > 0.0 && high > low);
    }

    #[test]
    fn even_marks_begin_at_0_and_are_few() {
        assert_eq!(even_marks(1.15).len(), 6);
        for high in [0.003, 1.0, 7.3, 99.0, 1234.0] {
            let marks = even_marks(high);
            assert!((3..=7).contains(&marks.len()), "{high}: {marks:?}");
            assert!(marks.iter().all(|mark| *mark <= high));
        }
    }
}
