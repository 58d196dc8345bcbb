//! The plugin's arguments, `name=value` each, as `-plugin library,quantum=1000,cost=100` gives them. Pure.

use std::ops::Range;

/// What the plugin is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// How far a CPU may be ahead of the slowest one when it goes on for as much again, in simulated nanoseconds.
    pub quantum: u64,
    /// Simulated nanoseconds to move a cache line; 0: the model is off.
    pub line_cost: u64,
    /// Simulated nanoseconds of a broadcast TLB invalidation.
    pub tlbi_cost: u64,
    /// The virtual addresses of the instructions that take part in the cache-line model.
    pub text: Range<u64>,
    /// Only tell whether the emulator is sound, and end it.
    pub is_check: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            quantum: 1000,
            line_cost: 0,
            tlbi_cost: 0,
            text: 0..u64::MAX,
            is_check: false,
        }
    }
}

impl Options {
    /// Reads the arguments.
    ///
    /// # Errors
    ///
    /// A sentence that names the first one that is wrong.
    pub fn parse<S: AsRef<str>>(arguments: impl IntoIterator<Item = S>) -> Result<Self, String> {
        let mut options = Self::default();
        for argument in arguments {
            let argument = argument.as_ref();
            options.set(argument).ok_or_else(|| {
                format!(
                    "'{argument}': expected quantum=N, cost=N, tlbi=N, lo=ADDRESS, hi=ADDRESS or check=on"
                )
            })?;
        }
        if options.quantum == 0 {
            return Err("quantum=0: expected 1 or more".into());
        }
        Ok(options)
    }

    fn set(&mut self, argument: &str) -> Option<()> {
        let (name, value) = argument.split_once('=')?;
        let place = match name {
            "quantum" => &mut self.quantum,
            "cost" => &mut self.line_cost,
            "tlbi" => &mut self.tlbi_cost,
            "lo" => &mut self.text.start,
            "hi" => &mut self.text.end,
            "check" => {
                self.is_check = value == "on";
                return Some(());
            }
            _ => return None,
        };
        *place = number(value)?;
        Some(())
    }
}

/// A decimal number, or a hexadecimal one behind `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The option of the emulator's command line (arguments ended by zero bytes) by which one thread runs all CPUs, if there is
/// one.
pub fn one_thread_for_all(command_line: &[u8]) -> Option<&'static str> {
    let arguments = || command_line.split(|byte| *byte == 0).skip(1);
    let mut pairs = arguments().zip(arguments().skip(1));
    // One dash or two.
    pairs.find_map(|(name, value)| match name.strip_prefix(b"-")? {
        b"icount" | b"-icount" => Some("-icount"),
        b"accel" | b"-accel" => {
            let mut parts = value.split(|byte| *byte == b',');
            let is_single = parts.any(|part| part == b"thread=single");
            is_single.then_some("-accel tcg,thread=single")
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_for_one_thread_are_found_in_the_command_line() {
        let found = |line: &str| one_thread_for_all(line.replace(' ', "\0").as_bytes());
        let single = Some("-accel tcg,thread=single");
        assert_eq!(
            found("qemu -smp 4 -accel tcg,thread=multi -plugin x "),
            None
        );
        assert_eq!(found("qemu -accel tcg,thread=single "), single);
        assert_eq!(found("qemu --accel thread=single,tcg -smp 4 "), single);
        assert_eq!(
            found("qemu -smp 1 -icount shift=0 -kernel x "),
            Some("-icount")
        );
        assert_eq!(found("qemu --icount auto "), Some("-icount"));
        assert_eq!(found("qemu -append thread=single -name icount "), None);
        assert_eq!(found(""), None);
    }

    #[test]
    fn every_option_is_read() {
        let options = Options::parse([
            "quantum=500",
            "cost=100",
            "tlbi=400",
            "lo=0x40200000",
            "hi=0xffffffffffffffff",
        ]);
        assert_eq!(
            options,
            Ok(Options {
                quantum: 500,
                line_cost: 100,
                tlbi_cost: 400,
                text: 0x4020_0000..u64::MAX,
                is_check: false,
            })
        );
        assert_eq!(Options::parse([""; 0]), Ok(Options::default()));
        assert!(Options::parse(["check=on"]).is_ok_and(|options| options.is_check));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for argument in ["cost", "cost=", "cost=x", "cost=-1", "lo=0x", "price=1"] {
            let error = Options::parse(["quantum=1", argument]).expect_err(argument);
            assert!(error.contains(&format!("'{argument}'")), "{error}");
        }
        assert!(Options::parse(["quantum=0"]).is_err());
    }
}
