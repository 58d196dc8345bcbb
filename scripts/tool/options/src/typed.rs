//! The hypervisor's options as the user types them: its message about `bytes=4096` is one about `--bytes`.
//!
//! What the user has given by `--append` is typed as the hypervisor has it, and stays so.

use crate::usage;
use emulator::error::ToolError;
use records::options::each_word;

/// The hypervisor's options for which the scripts' options have another name.
const RENAMED: [(&str, &str); 1] = [("seconds", "--stress")];
/// The others: theirs is the same, with dashes.
const NAMED: [&str; 35] = [
    "mode",
    "split",
    "tracking",
    "granularity",
    "harvest",
    "harvesters",
    "ring_entries",
    "enable",
    "clear",
    "restore",
    "split_chunk",
    "split_reserve",
    "slots",
    "exit_times",
    "vcpus",
    "bytes",
    "backing",
    "iterations",
    "dirty_log",
    "interval",
    "write_percent",
    "random",
    "seed",
    "workload",
    "tracker",
    "change",
    "workers",
    "overcommit",
    "merging",
    "merge_targets",
    "pages_to_scan",
    "sleep_millisecs",
    "max_page_sharing",
    "timeout",
    "cpu_features",
];
/// The hypervisor's options that name addresses, with the script's option that loads files there. Nobody can type the address.
const PLACED: [(&str, &str); 2] = [("vm", "--vm"), ("firmware", "--firmware")];
/// The words that an option stands for, beside one with its own value.
const CHOSEN: [(&str, &str); 4] = [
    ("guest=linux", "--linux"),
    ("guest=program", "--guest"),
    ("guest=stress", "--stress"),
    ("guest=backing", "--workload"),
];

/// The script's option for the hypervisor's, if there is one.
fn option(key: &str) -> Option<String> {
    let renamed = RENAMED.iter().find(|(own, _)| *own == key);
    let renamed = renamed.map(|(_, option)| (*option).to_string());
    renamed.or_else(|| {
        let named = NAMED.contains(&key);
        named.then(|| format!("--{}", key.replace('_', "-")))
    })
}

fn key_of(word: &str) -> &str {
    word.split_once('=').map_or(word, |(key, _)| key)
}

/// The keys of the options that the user has appended.
fn appended(append: Option<&str>) -> impl Iterator<Item = &str> {
    append.into_iter().flat_map(each_word).map(key_of)
}

/// Whether the user has appended the hypervisor's option `key`.
pub fn appends(append: Option<&str>, key: &str) -> bool {
    appended(append).any(|theirs| theirs == key)
}

/// Whether nothing is measured, because the appended options ask for something else.
pub fn measures_nothing(append: Option<&str>) -> bool {
    appended(append).any(|key| ["selftest", "help"].contains(&key))
}

/// Checks that nothing is appended that `words`, which the script's own options come to, say already, or that only the script
/// can say.
///
/// # Errors
///
/// [`ToolError::Usage`] naming what is appended and the option to use instead.
pub fn check_appended(words: &str, append: Option<&str>) -> Result<(), ToolError> {
    let said = |key: &str| each_word(words).any(|word| key_of(word) == key);
    let words = append.into_iter().flat_map(each_word);
    for word in words {
        let key = key_of(word);
        let placed = PLACED.iter().find(|(own, _)| *own == key);
        let placed = placed.map(|(_, option)| (*option).to_string());
        if let Some(option) = placed.or_else(|| option(key).filter(|_| said(key))) {
            return usage(format!("--append {word}: say it by {option}"));
        }
    }
    Ok(())
}

/// How the hypervisor's error about an option begins that it doesn't have: it can only be an appended one.
const UNKNOWN: &str = "unknown option ";

/// An error of the hypervisor in the words of the user, who has appended `append`.
pub fn as_typed(error: &str, append: Option<&str>) -> String {
    if error.starts_with(UNKNOWN) {
        return format!("--append: {error} (--append help lists them)");
    }
    let is_theirs = |key: &str| appends(append, key);
    let mut text = error.to_string();
    let keys = NAMED.iter().chain(RENAMED.iter().map(|(own, _)| own));
    for key in keys.filter(|key| !is_theirs(key)) {
        if let Some(option) = option(key) {
            text = text.replace(&format!("option '{key}'"), &option);
        }
    }
    let words = text.split(' ').map(|word| {
        let begin = word.len() - word.trim_start_matches('(').len();
        let end = word.trim_end_matches([',', ':', ';', ')']).len().max(begin);
        let (before, typed, after) = (&word[..begin], &word[begin..end], &word[end..]);
        let (key, value) = typed.split_once('=').unwrap_or((typed, ""));
        let chosen = CHOSEN.iter().find(|(own, _)| *own == typed);
        let spelled = match (chosen, option(key)) {
            _ if is_theirs(key) => None,
            (Some((_, option)), _) => Some((*option).to_string()),
            (None, Some(option)) if typed.contains('=') => Some(format!("{option} {value}")),
            _ => None,
        };
        spelled.map_or_else(
            || word.into(),
            |spelled| format!("{before}{spelled}{after}"),
        )
    });
    words.collect::<Vec<String>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn self_tests_and_help_measure_nothing() {
        assert!(measures_nothing(Some("log=debug selftest=stage2")));
        assert!(measures_nothing(Some("help")));
        assert!(!measures_nothing(Some("slots=2")));
        assert!(!measures_nothing(None));
    }
}
