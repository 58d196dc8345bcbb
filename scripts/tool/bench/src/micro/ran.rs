//! What the console says of a run of the guest that measures operations.

use std::collections::BTreeMap;

/// What the console says of a run.
#[derive(Debug, Default, PartialEq)]
pub struct Ran {
    /// What the guest has measured, by name.
    pub values: BTreeMap<String, f64>,
    /// Parvisor's counters of exits.
    pub counters: BTreeMap<String, u64>,
    /// KVM's, of one run after the other.
    pub kvm_exits: Vec<u64>,
    /// The guest has come to its end.
    pub has_ended: bool,
    /// What it found wrong.
    pub wrong: Option<String>,
}

impl Ran {
    /// Reads the lines of a console.
    pub fn read(lines: &[&str]) -> Self {
        let mut ran = Self::default();
        for line in lines {
            if let Some(counters) = line.strip_prefix("counters: ") {
                let words: Vec<&str> = counters.split_whitespace().collect();
                let pairs = words.chunks_exact(2);
                let pairs = pairs.filter_map(|pair| Some((pair[0], pair[1].parse().ok()?)));
                let exits = pairs.filter_map(|(name, count)| {
                    Some((name.strip_prefix("exits_")?.to_string(), count))
                });
                ran.counters.extend(exits);
            } else if let Some(count) = line.strip_prefix("@kvm exits ") {
                ran.kvm_exits.extend(count.trim().parse::<u64>());
            } else if let Some((_, said)) = line.split_once("@micro ") {
                match said.split_once(' ') {
                    Some(("wrong:", why)) => ran.wrong = Some(why.into()),
                    Some((name, value)) => {
                        if let Ok(value) = value.trim().parse::<f64>() {
                            ran.values.insert(name.into(), value);
                        }
                        ran.has_ended |= name == "init";
                    }
                    None => ran.has_ended |= said.trim() == "end",
                }
            }
        }
        ran
    }

    /// All of Parvisor's exits.
    pub fn exits(&self) -> u64 {
        self.counters.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_console_says_is_read() {
        let ran = Ran::read(&[
            "guest: @micro start 9007888",
            "guest: @micro hypercall 238",
            "counters: device_access 5 exits_hypercall 7 exits_interrupt 2",
            "@micro end",
        ]);
        assert_eq!(ran.values["hypercall"], 238.0);
        assert_eq!(ran.exits(), 9);
        assert!(ran.has_ended && ran.wrong.is_none());
        let kvm = Ran::read(&["@kvm exits 5", "@kvm hypercall 3", "@kvm exits 8"]);
        assert_eq!((kvm.kvm_exits, kvm.has_ended), (vec![5, 8], false));
        let wrong = Ran::read(&["@micro wrong: an exception"]);
        assert_eq!(wrong.wrong.as_deref(), Some("an exception"));
    }
}
