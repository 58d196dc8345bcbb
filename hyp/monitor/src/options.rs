//! The hypervisor's options: its own `bootargs`, words of `key=value` as on a Linux command line.
//!
//! They come from outside, so whatever isn't understood is an error that names it. Read once at boot.

mod error;
mod value;

pub use error::OptionError;
pub use value::{Backing, GuestKind, Mode};

use crate::size::Size;
use alloc::vec::Vec;
use log::LevelFilter;
use stage2::PAGE_SIZE;

/// Where a guest's RAM begins.
pub const RAM: u64 = 0x4000_0000;
/// Where the guest's test memory begins: the start of the slot that is logged.
pub const TEST_MEMORY: u64 = 0x8000_0000;
/// The most vCPUs.
const MOST_VCPUS: u64 = vm::MAX_VCPUS as u64;
/// The most iterations: the guest's pattern has 16 bits for them.
pub const MOST_ITERATIONS: u64 = u16::MAX as u64;

/// What the user wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// What the guest is.
    pub guest: GuestKind,
    /// In which modes to run it, one after the other.
    pub modes: Vec<Mode>,
    /// vCPUs.
    pub vcpus: usize,
    /// Memory: the benchmark's per vCPU, or a guest program's.
    pub bytes: Size,
    /// What guest memory is made of.
    pub backing: Backing,
    /// How often to dirty and harvest.
    pub iterations: u64,
    /// How many of 100 accesses write.
    pub write_percent: u64,
    /// Whether the guest picks pages at random instead of one after the other.
    pub random: bool,
    /// Where the guest's random numbers start.
    pub seed: u64,
    /// The size of the guest's physical address space, or `None` for the machine's choice.
    pub ipa_bits: Option<u32>,
    /// How long a VM may take, in seconds.
    pub timeout: u64,
    /// What to log.
    pub log: LevelFilter,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            guest: GuestKind::DirtyLog,
            modes: [Mode::Parallel].into(),
            vcpus: 4,
            bytes: Size(64 << 20),
            backing: Backing::Block2M,
            iterations: 3,
            write_percent: 100,
            random: false,
            seed: 1,
            ipa_bits: None,
            timeout: 120,
            log: LevelFilter::Info,
        }
    }
}

/// The options, in the order in which errors list them.
const KEYS: [&str; 12] = [
    "guest",
    "mode",
    "vcpus",
    "bytes",
    "backing",
    "iterations",
    "write_percent",
    "random",
    "seed",
    "ipa_bits",
    "timeout",
    "log",
];
/// The options that only the benchmark has.
const BENCHMARK_ONLY: [&str; 4] = ["iterations", "write_percent", "random", "seed"];

impl Options {
    /// Reads the words of `bootargs`.
    pub fn parse(bootargs: &str) -> Result<Self, OptionError<'_>> {
        let mut options = Self::default();
        let mut given = [false; KEYS.len()];
        for word in bootargs.split_ascii_whitespace() {
            let (key, text) = match word.split_once('=') {
                Some((key, text)) => (key, Some(text)),
                None => (word, None),
            };
            let index = KEYS
                .iter()
                .position(|known| *known == key)
                .ok_or(OptionError::Unknown(key))?;
            if core::mem::replace(&mut given[index], true) {
                return Err(OptionError::Twice(KEYS[index]));
            }
            options.set(KEYS[index], text)?;
        }
        let is_given = |key: &str| {
            KEYS.iter()
                .zip(given)
                .any(|(known, given)| given && *known == key)
        };
        options.check(is_given)?;
        Ok(options)
    }

    fn set<'t>(&mut self, key: &'static str, text: Option<&'t str>) -> Result<(), OptionError<'t>> {
        if key == "random" {
            if let Some(text) = text {
                return Err(OptionError::Malformed {
                    key,
                    text,
                    expected: "the word alone",
                });
            }
            self.random = true;
            return Ok(());
        }
        let text = text
            .filter(|text| !text.is_empty())
            .ok_or(OptionError::NoValue(key))?;
        match key {
            "guest" => self.guest = value::guest(key, text)?,
            "mode" => self.modes = value::modes(key, text)?,
            "vcpus" => {
                self.vcpus = value::number(key, text, 1, MOST_VCPUS, "a number from 1 on")? as usize
            }
            "bytes" => self.bytes = value::size(key, text)?,
            "backing" => self.backing = value::backing(key, text)?,
            "iterations" => {
                self.iterations =
                    value::number(key, text, 1, MOST_ITERATIONS, "a number from 1 to 65535")?
            }
            "write_percent" => {
                self.write_percent = value::number(key, text, 0, 100, "a number from 0 to 100")?
            }
            "seed" => self.seed = value::number(key, text, 0, u64::MAX, "a number")?,
            "ipa_bits" => {
                self.ipa_bits =
                    Some(value::number(key, text, 32, 52, "a number from 32 to 52")? as u32)
            }
            "timeout" => {
                self.timeout = value::number(key, text, 1, 1_000_000, "seconds, from 1 to 1000000")?
            }
            "log" => self.log = value::level(key, text)?,
            _ => return Err(OptionError::Unknown(key)),
        }
        Ok(())
    }

    fn check<'t>(&self, is_given: impl Fn(&str) -> bool) -> Result<(), OptionError<'t>> {
        if self.guest == GuestKind::Program {
            if let Some(key) = BENCHMARK_ONLY.into_iter().find(|key| is_given(key)) {
                return Err(OptionError::BenchmarkOnly(key));
            }
            if self.modes.len() > 1 {
                return Err(OptionError::OneMode);
            }
        }
        if !self.bytes.0.is_multiple_of(PAGE_SIZE) || self.bytes.0 == 0 {
            return Err(OptionError::NotWholePages(self.bytes));
        }
        let (vcpus, bytes) = (self.vcpus, self.bytes);
        let end = self
            .memory_end()
            .ok_or(OptionError::TooMuchMemory { vcpus, bytes })?;
        match self.ipa_bits {
            Some(bits) if end > 1 << bits => {
                Err(OptionError::BeyondIpaSpace { vcpus, bytes, bits })
            }
            _ => Ok(()),
        }
    }

    fn memory_end(&self) -> Option<u64> {
        match self.guest {
            GuestKind::DirtyLog => self.test_bytes()?.checked_add(TEST_MEMORY),
            GuestKind::Program => self.program_bytes()?.checked_add(RAM),
        }
    }

    /// The size of the benchmark's slot of test memory: all vCPUs' shares, rounded up to what backs it. `None` beyond 64
    /// bits, which [`Self::parse`] refuses.
    pub fn test_bytes(&self) -> Option<u64> {
        self.bytes
            .0
            .checked_mul(self.vcpus as u64)?
            .checked_next_multiple_of(self.backing.bytes())
    }

    /// The size of a guest program's RAM: rounded up to what backs it. `None` beyond 64 bits, which [`Self::parse`] refuses.
    pub fn program_bytes(&self) -> Option<u64> {
        self.bytes.0.checked_next_multiple_of(self.backing.bytes())
    }
}

#[cfg(test)]
mod tests;
