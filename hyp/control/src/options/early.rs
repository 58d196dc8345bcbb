//! Options that the boot code reads before the others. [`Options::parse`] skips them.

use super::{OptionError, each_word, value};
use records::options::{EARLY_KEYS, HELP, INJECT, MITIGATIONS, SELF_TEST, VM};
use records::words::{Bug, GuestKind, Mitigations, SelfTest};

/// Options that act before any guest runs.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct EarlyOptions {
    /// Whether to list the options and run nothing.
    pub help: bool,
    /// Whether exits from guests apply the CPUs' speculation mitigations.
    pub mitigations: bool,
    /// The self-test to run instead of a guest.
    pub self_test: Option<SelfTest>,
    /// The bug to inject in the debug build.
    pub inject: Option<Bug>,
}

impl EarlyOptions {
    /// Parses these options among the words of `bootargs`. The benchmark's own guest comes with the hypervisor and is trusted:
    /// by default no speculation mitigations are applied for it. `has_vms` says whether there are VMs that `bootargs` don't name.
    ///
    /// # Errors
    /// One of these is malformed, or given twice. Other options aren't checked.
    pub fn parse(bootargs: &str, has_vms: bool) -> Result<Self, OptionError<'_>> {
        let mut options = Self::default();
        let mut mitigations = Mitigations::Auto;
        let mut is_foreign = has_vms;
        let mut given = [false; EARLY_KEYS.len()];
        for (key, text) in each_word(bootargs) {
            if key == "guest" {
                let guest = text.and_then(|text| value::word("guest", text).ok());
                is_foreign |= guest.is_some_and(GuestKind::is_foreign);
            }
            is_foreign |= key == VM;
            let Some(index) = EARLY_KEYS.iter().position(|known| *known == key) else {
                continue;
            };
            let key = EARLY_KEYS[index];
            if core::mem::replace(&mut given[index], true) {
                return Err(OptionError::Twice(key));
            }
            if key == HELP {
                options.help = value::alone(key, text)?;
                continue;
            }
            let text = value::present(key, text)?;
            match key {
                MITIGATIONS => mitigations = value::word(key, text)?,
                SELF_TEST => options.self_test = Some(value::word(key, text)?),
                INJECT => options.inject = Some(value::word(key, text)?),
                _ => return Err(OptionError::Unknown(key)),
            }
        }
        options.mitigations = match mitigations {
            Mitigations::Auto => is_foreign,
            Mitigations::On => true,
            Mitigations::Off => false,
        };
        Ok(options)
    }

    /// Checks that no bug is requested in a build without bugs.
    ///
    /// # Errors
    /// One is.
    pub fn check_no_bug(&self) -> Result<(), OptionError<'static>> {
        match self.inject {
            Some(_) => Err(OptionError::DebugBuildOnly(INJECT)),
            None => Ok(()),
        }
    }
}
