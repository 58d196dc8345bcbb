//! Sets of CPUs.

use core::fmt;
use core::ops::{BitAnd, BitOr, Not};

/// How many CPUs there may be.
pub const MAX_CPUS: usize = 128;

/// Some of the machine's CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuSet(u128);

impl CpuSet {
    /// No CPU.
    pub const NONE: Self = Self(0);
    /// Every CPU that there could be.
    pub const ALL: Self = Self(u128::MAX);

    /// Just this one.
    pub const fn only(cpu: usize) -> Self {
        assert!(cpu < MAX_CPUS);
        Self(1 << cpu)
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `cpu` is one of them.
    pub const fn contains(self, cpu: usize) -> bool {
        cpu < MAX_CPUS && self.0 & (1 << cpu) != 0
    }

    /// Whether all of `other` are among them.
    pub const fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }
}

impl BitAnd for CpuSet {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for CpuSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Not for CpuSet {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0)
    }
}

impl fmt::Display for CpuSet {
    /// `CPU 3`, `CPUs 0-2 and 5`, `every CPU but 1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.count_ones(), self.0.count_zeros()) {
            (0, _) => f.write_str("no CPU"),
            (_, 0) => f.write_str("every CPU"),
            (1, _) => write!(f, "CPU {}", self.0.trailing_zeros()),
            (_, 1..64) => {
                f.write_str("every CPU but ")?;
                runs(!self.0, f)
            }
            _ => {
                f.write_str("CPUs ")?;
                runs(self.0, f)
            }
        }
    }
}

fn runs(mut bits: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut separator = "";
    while bits != 0 {
        let first = bits.trailing_zeros();
        let length = (!(bits >> first)).trailing_zeros();
        write!(f, "{separator}{first}")?;
        if length > 1 {
            write!(f, "-{}", first + length - 1)?;
        }
        bits = bits
            .checked_shr(first + length)
            .unwrap_or(0)
            .checked_shl(first + length)
            .unwrap_or(0);
        separator = ", ";
    }
    Ok(())
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn sets_read_as_a_person_would_write_them() {
        let set = |cpus: &[usize]| {
            cpus.iter()
                .fold(CpuSet::NONE, |set, &cpu| set | CpuSet::only(cpu))
        };
        for (cpus, text) in [
            (CpuSet::NONE, "no CPU"),
            (CpuSet::ALL, "every CPU"),
            (set(&[3]), "CPU 3"),
            (set(&[0, 1, 2, 5]), "CPUs 0-2, 5"),
            (set(&[0, 127]), "CPUs 0, 127"),
            (!set(&[1]), "every CPU but 1"),
            (!set(&[126, 127]), "every CPU but 126-127"),
        ] {
            assert_eq!(cpus.to_string(), text);
        }
    }
}
