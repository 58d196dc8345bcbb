//! The boot option `mitigations=auto|on|off`: whether exits from guests do what the CPUs need against speculation. By default
//! they do where a guest is somebody's program; the benchmark's own guest is built with the hypervisor and trusted, so that
//! nothing is paid there. `on` is for measuring what it costs, `off` for programs that are trusted.

use alloc::borrow::Cow;
use alloc::string::String;

const KEY: &str = "mitigations=";

/// Takes the option out of the others.
///
/// # Errors
/// It is given twice, has no such value, or there is no memory for the others.
pub fn choose(bootargs: &str) -> Result<(Cow<'_, str>, bool), &'static str> {
    let words = || bootargs.split_ascii_whitespace();
    let mut values = words().filter_map(|word| word.strip_prefix(KEY));
    let mitigations = match (values.next(), values.next()) {
        (None, _) => return Ok((Cow::Borrowed(bootargs), is_program(bootargs))),
        (Some("auto"), None) => is_program(bootargs),
        (Some("on"), None) => true,
        (Some("off"), None) => false,
        (_, Some(_)) => return Err("option 'mitigations' is given twice"),
        _ => return Err("option 'mitigations' is one of auto, on, off"),
    };
    let mut rest = String::new();
    rest.try_reserve_exact(bootargs.len() + 1)
        .map_err(|_| "there is no memory for a copy of bootargs")?;
    for word in words().filter(|word| !word.starts_with(KEY)) {
        rest.push_str(word);
        rest.push(' ');
    }
    Ok((Cow::Owned(rest), mitigations))
}

/// Whether the guest that runs isn't the hypervisor's own.
fn is_program(bootargs: &str) -> bool {
    bootargs
        .split_ascii_whitespace()
        .any(|word| word == "guest=program")
}
