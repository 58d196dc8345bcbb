//! What the console says of a run of the guest that measures operations.

use std::collections::BTreeMap;

use serde::Serialize;

/// The kinds of exits that Parvisor and KVM both tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A stage-2 fault of an access to memory.
    Fault,
    /// A register of a device or of the interrupt controller.
    Device,
    /// A system register.
    SystemRegister,
    /// HVC or SMC.
    Call,
    /// WFI or WFE.
    Wait,
    /// An interrupt of the machine.
    Interrupt,
    /// Anything else.
    Other,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Fault,
        Self::Device,
        Self::SystemRegister,
        Self::Call,
        Self::Wait,
        Self::Interrupt,
        Self::Other,
    ];

    /// As the user reads it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Fault => "memory faults",
            Self::Device => "device and GIC registers",
            Self::SystemRegister => "system registers",
            Self::Call => "hypercalls",
            Self::Wait => "waiting for interrupts",
            Self::Interrupt => "interrupts",
            Self::Other => "other",
        }
    }

    /// The kind of one of Parvisor's counters.
    fn of_counter(name: &str) -> Option<Self> {
        Some(match name {
            "translation_fault" | "permission_fault" | "access_flag_fault" => Self::Fault,
            "device_access" => Self::Device,
            "system_register" => Self::SystemRegister,
            "hypercall" => Self::Call,
            "wait_for_interrupt" => Self::Wait,
            "interrupt" => Self::Interrupt,
            "other_abort" | "system_error" | "other" => Self::Other,
            _ => return None,
        })
    }

    /// The kind of an exit that KVM has traced: what ended the vCPU's run, and the class of ESR_EL2.
    const fn of_trace(ended_by: u64, class: u64) -> Self {
        const INTERRUPT: u64 = 0;
        const TRAP: u64 = 2;
        match (ended_by, class) {
            (INTERRUPT, _) => Self::Interrupt,
            (TRAP, 0x01) => Self::Wait,
            (TRAP, 0x16 | 0x17) => Self::Call,
            (TRAP, 0x18) => Self::SystemRegister,
            (TRAP, 0x20 | 0x24) => Self::Fault,
            _ => Self::Other,
        }
    }
}

/// What the console says of a run.
#[derive(Debug, Default, PartialEq)]
pub struct Ran {
    /// What the guest has measured, by name.
    pub values: BTreeMap<String, f64>,
    /// Parvisor's counters of exits.
    pub counters: BTreeMap<String, u64>,
    /// KVM's, of one run after the other.
    pub kvm_exits: Vec<u64>,
    /// Those that KVM has traced, by kind: accesses to devices are among the faults.
    pub traced: BTreeMap<Kind, u64>,
    /// KVM's count of those.
    pub kvm_devices: u64,
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
            } else if let Some(exits) = line.strip_prefix("@exit ") {
                let numbers = exits.split_whitespace().map(str::parse);
                if let Ok([ended_by, class, count]) =
                    numbers.collect::<Result<Vec<u64>, _>>().as_deref()
                {
                    *ran.traced
                        .entry(Kind::of_trace(*ended_by, *class))
                        .or_default() += count;
                }
            } else if let Some(count) = line.strip_prefix("@kvm device_") {
                let count = count.split_whitespace().nth(1);
                ran.kvm_devices += count.and_then(|count| count.parse().ok()).unwrap_or(0);
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

    /// Exits by kind, Parvisor's or KVM's.
    pub fn kinds(&self) -> BTreeMap<Kind, u64> {
        let mut kinds = self.traced.clone();
        if let Some(faults) = kinds.get_mut(&Kind::Fault) {
            *faults = faults.saturating_sub(self.kvm_devices);
            kinds.insert(Kind::Device, self.kvm_devices);
        }
        for (name, count) in &self.counters {
            if let Some(kind) = Kind::of_counter(name) {
                *kinds.entry(kind).or_default() += count;
            }
        }
        kinds
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
        let lines = [
            "@kvm device_user 2",
            "@kvm device_kernel 3",
            "@exit 0 0 9",
            "@exit 2 36 12",
        ];
        let linux = Ran::read(&lines);
        let kinds = [(Kind::Fault, 7), (Kind::Device, 5), (Kind::Interrupt, 9)];
        assert_eq!(linux.kinds(), kinds.into());
        let wrong = Ran::read(&["@micro wrong: an exception"]);
        assert_eq!(wrong.wrong.as_deref(), Some("an exception"));
    }
}
