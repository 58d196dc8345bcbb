//! Statistics of several measurements, and numbers in words.

use std::fmt;

/// The middle and the extremes of some measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Half of the measurements are below; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
    /// How many there are.
    pub count: usize,
}

impl Spread {
    /// Of these measurements; nothing if there are none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, greatest) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self {
            median,
            least,
            greatest,
            count: sorted.len(),
        })
    }

    /// The same measurements in another unit.
    pub fn in_units_of(self, unit: f64) -> Self {
        Self {
            median: self.median / unit,
            least: self.least / unit,
            greatest: self.greatest / unit,
            count: self.count,
        }
    }
}

/// The median, and the extremes where they aren't the same.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, least, greatest] = [self.median, self.least, self.greatest].map(significant);
        f.write_str(&median)?;
        if least != greatest {
            write!(f, " ({least}–{greatest})")?;
        }
        Ok(())
    }
}

/// A number with four significant digits, or all digits before the point.
pub fn significant(number: f64) -> String {
    if number == 0.0 {
        return "0".into();
    }
    let before_point = number.abs().log10().floor() + 1.0;
    let decimals = (4.0 - before_point).clamp(0.0, 6.0);
    format!("{number:.*}", decimals as usize)
}

/// A unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeUnit {
    /// Nanoseconds.
    Nanoseconds,
    /// Microseconds.
    Microseconds,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
}

impl TimeUnit {
    /// The largest unit in which `nanoseconds` is at least 1.
    pub fn for_size(nanoseconds: f64) -> Self {
        let units = [Self::Seconds, Self::Milliseconds, Self::Microseconds];
        let fits = units
            .into_iter()
            .find(|unit| nanoseconds >= unit.nanoseconds());
        fits.unwrap_or(Self::Nanoseconds)
    }

    /// How many nanoseconds it has.
    pub fn nanoseconds(self) -> f64 {
        match self {
            Self::Nanoseconds => 1.0,
            Self::Microseconds => 1e3,
            Self::Milliseconds => 1e6,
            Self::Seconds => 1e9,
        }
    }

    /// Its symbol.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Microseconds => "µs",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        let odd = Spread::of(&[5.0, 1.0, 3.0]).expect("three are some");
        assert_eq!((odd.median, odd.least, odd.greatest), (3.0, 1.0, 5.0));
        let even = Spread::of(&[4.0, 1.0, 2.0, 100.0]).expect("four are some");
        assert_eq!((even.median, even.count), (3.0, 4));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn a_spread_shows_its_extremes_only_where_they_differ() {
        let shown = |samples: &[f64]| Spread::of(samples).expect("some").to_string();
        assert_eq!(shown(&[1.5]), "1.500");
        assert_eq!(shown(&[1.5, 1.5]), "1.500");
        assert_eq!(shown(&[1.0, 2.0, 4.0]), "2.000 (1.000–4.000)");
    }

    #[test]
    fn numbers_have_four_significant_digits() {
        for (number, text) in [
            (0.0, "0"),
            (1.0, "1.000"),
            (12.3456, "12.35"),
            (123456.7, "123457"),
            (0.00048828, "0.000488"),
        ] {
            assert_eq!(significant(number), text);
        }
    }

    #[test]
    fn times_are_shown_in_the_largest_unit_that_fits() {
        assert_eq!(TimeUnit::for_size(2.5e9), TimeUnit::Seconds);
        assert_eq!(TimeUnit::for_size(999_999.0), TimeUnit::Microseconds);
        assert_eq!(TimeUnit::for_size(0.0), TimeUnit::Nanoseconds);
    }
}
