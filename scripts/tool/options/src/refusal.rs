//! Why a machine never came to run anything, in the words of the options that it was started with: what the emulator refuses,
//! and machines on which the hypervisor can't do its work.

use std::ffi::OsStr;

use crate::Plan;
use crate::shared::MachineOptions;
use crate::typed::as_typed;
use emulator::boot::Outcome;
use emulator::size::Size;

/// The exit status of the hypervisor for a machine that it can't use.
const UNUSABLE: i32 = 1;
/// The emulator's message if the host lacks the machine's RAM.
const NO_MEMORY: &str = "cannot set up guest memory";

/// The hypervisor's words for the end of a guest that asked for a reset.
const RESET: &str = "the guest asked for a reset";

/// The options of a machine that was started.
#[derive(Clone, Copy, Debug)]
pub struct Started<'o> {
    /// Its plan.
    pub plan: &'o Plan,
    /// The options of the machine.
    pub machine: &'o MachineOptions,
    /// Its RAM, if the user has chosen it.
    pub memory: Option<Size>,
}

impl Started<'_> {
    /// Why nothing ran, if an option is, or most likely is, to blame: one line that names it.
    pub fn why_nothing_ran(&self, outcome: &Outcome) -> Option<String> {
        if let Some(reason) = outcome.refusal() {
            return Some(self.refused(&reason));
        }
        let extra = self.extra();
        if let Some(extra) = &extra
            && let Some(what) = unusable(outcome)
        {
            return Some(format!(
                "{extra}: with these arguments for the emulator the hypervisor doesn't run: {what}"
            ));
        }
        let cpu = self.machine.chosen_cpu()?;
        let silence = outcome.never_spoke()?;
        Some(format!(
            "--cpu {cpu}: the machine doesn't boot: {silence}; it takes an arm64 CPU with EL2"
        ))
    }

    /// An error of the hypervisor's in the words of the options. Of a reset that ends a guest whose kernel was quiet, it says how the
    /// user sees why.
    pub fn as_typed(&self, error: &str) -> String {
        let said = as_typed(error, self.machine.append.as_deref());
        let workload = &self.plan.workload;
        let is_quiet = workload.linux.is_some() && !workload.restarts && !self.machine.verbose;
        match is_quiet && said.contains(RESET) {
            true => format!("{said}; --verbose shows what its kernel said"),
            false => said,
        }
    }

    /// The user's options for the emulator, as typed.
    pub fn extra(&self) -> Option<String> {
        let words: Vec<String> = self.machine.qemu.iter().map(|word| quoted(word)).collect();
        (!words.is_empty()).then(|| format!("-- {}", words.join(" ")))
    }

    /// The option that the emulator has refused for this reason.
    fn refused(&self, reason: &str) -> String {
        let is_extra = |option: &str| self.machine.qemu.iter().any(|word| word == option);
        let cpu = &self.machine.cpu;
        let model = cpu.split(',').next().unwrap_or(cpu);
        let is_of_cpu = ["CPU model", "CPU type", "-cpu option"]
            .iter()
            .any(|words| reason.contains(words))
            || reason.contains(&format!("{model}-arm-cpu"));
        if is_of_cpu && !is_extra("-cpu") {
            return format!("--cpu {cpu}: {reason}");
        }
        if reason.contains(NO_MEMORY) && !is_extra("-m") {
            return format!(
                "{}, which the emulator can't get from this host: {reason}",
                self.memory()
            );
        }
        match self.extra() {
            Some(extra) => {
                format!("{extra}: the emulator refuses to start with these arguments: {reason}")
            }
            None => format!("the emulator refused to start: {reason}"),
        }
    }

    /// How much RAM the machine has, and by which option.
    fn memory(&self) -> String {
        let (ram, workload) = (self.plan.memory, &self.plan.workload);
        let bytes = workload.bytes;
        match self.memory {
            Some(_) => format!("--mem: the machine is to have {ram} of RAM"),
            None if !workload.vms.is_empty() => {
                format!("--vm: the VMs and their files make {ram} of RAM")
            }
            None if workload.program => {
                format!("--bytes: a guest with {bytes} makes {ram} of RAM")
            }
            None => format!(
                "--bytes: --vcpus {} with {bytes} each make {ram} of RAM",
                workload.vcpus
            ),
        }
    }
}

/// The fault of a machine on which the hypervisor printed only that, or nothing.
fn unusable(outcome: &Outcome) -> Option<String> {
    let own = |line: &String| line.starts_with("parvisor: ");
    match outcome.status {
        Some(UNUSABLE) if outcome.fatal.is_empty() && outcome.lines.iter().all(own) => {
            outcome.errors.first().cloned()
        }
        None if outcome.lines.is_empty() => Some(match outcome.never_spoke() {
            Some(silence) => silence.to_string(),
            None => outcome.end_in_words(),
        }),
        _ => None,
    }
}

/// A word as a shell takes it.
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=,.:/+@%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.into_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunOptions;
    use emulator::boot;
    use emulator::effort::Limit;
    use std::ffi::OsString;
    use std::process::Command;
    use std::time::Duration;

    /// Why nothing ran on a machine that is this shell script.
    fn why(script: &str, arguments: &[&str]) -> Option<String> {
        let all = std::iter::once("scripts/run").chain(arguments.iter().copied());
        let options = RunOptions::parse_arguments(all.map(OsString::from)).expect("sound options");
        let plan = options.plan().expect("sound options");
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let limit = Limit {
            first_line: Some(Duration::from_secs(1)),
            ..Limit::total(Duration::from_secs(60))
        };
        let outcome = boot::run(&mut command, limit, |_, _| {}, |_| {}).expect("sh starts");
        let started = Started {
            plan: &plan,
            machine: &options.machine,
            memory: options.mem,
        };
        started.why_nothing_ran(&outcome)
    }

    #[test]
    fn a_reset_of_a_quiet_kernel_is_explained_by_another_option() {
        let said = |error: &str, arguments: &[&str]| {
            let all = ["scripts/run"].iter().chain(arguments);
            let options = RunOptions::parse_arguments(all.map(OsString::from));
            let options = options.expect("sound options");
            let started = Started {
                plan: &options.plan().expect("sound options"),
                machine: &options.machine,
                memory: options.mem,
            };
            started.as_typed(error)
        };
        let reset = "the guest ended too early: the guest asked for a reset";
        let explained = format!("{reset}; --verbose shows what its kernel said");
        assert_eq!(said(reset, &["--linux", "--exec=ls"]), explained);
        assert_eq!(said(reset, &["--linux", "--dirty-log"]), explained);
        assert_eq!(said(reset, &["--linux", "--exec=ls", "--verbose"]), reset);
        assert_eq!(said(reset, &["--linux"]), reset);
        assert_eq!(said(reset, &[]), reset);
        let other = "the guest ended too early: the guest crashed";
        assert_eq!(said(other, &["--linux", "--exec=ls"]), other);
    }

    const NO_RAM: &str =
        "echo \"qemu: cannot set up guest memory 'ram': Cannot allocate memory\" >&2; exit 1";

    #[test]
    fn ram_that_the_host_hasnt_got_is_said_by_its_option() {
        assert_eq!(
            why(NO_RAM, &["--vcpus=4", "--bytes=64G"]).expect("refused"),
            "--bytes: --vcpus 4 with 64 GiB each make 266496 MiB of RAM, which the emulator can't get from this host: \
             cannot set up guest memory 'ram': Cannot allocate memory"
        );
        let says = why(NO_RAM, &["--mem=512G"]).expect("refused");
        assert!(
            says.starts_with("--mem: the machine is to have 512 GiB"),
            "{says}"
        );
        let says = why(NO_RAM, &["--", "-m", "512G"]).expect("refused");
        assert!(
            says.starts_with("-- -m 512G: the emulator refuses"),
            "{says}"
        );
    }

    #[test]
    fn a_cpu_that_the_emulator_refuses_is_named_with_those_that_it_takes() {
        let script = "printf 'qemu: warning: slow\\nqemu: Invalid CPU model: x\\nThe valid models are: y, z\\n' >&2; exit 1";
        assert_eq!(
            why(script, &["--cpu=x,sve=off"]).expect("refused"),
            "--cpu x,sve=off: Invalid CPU model: x; The valid models are: y, z"
        );
    }

    #[test]
    fn what_was_handed_to_the_emulator_is_named_if_nothing_runs() {
        let script = "echo 'parvisor: error: entered at EL1'; echo 'parvisor: exit status 1'";
        let extra = ["--", "-M", "virtualization=off"];
        assert_eq!(
            why(script, &extra).expect("unusable"),
            "-- -M virtualization=off: with these arguments for the emulator the hypervisor doesn't run: entered at EL1"
        );
        assert_eq!(why(script, &[]), None);
        let says = why("sleep 1000", &["--", "-append", "a b"]).expect("unusable");
        assert!(
            says.starts_with("-- -append 'a b': ") && says.contains("printed nothing"),
            "{says}"
        );
        let says = why("exit 3", &["--", "-d", "int"]).expect("unusable");
        assert!(
            says.contains("-d int") && says.contains("exit status: 3"),
            "{says}"
        );
        let went_on = format!("echo '[ 0.1 cpu0] INFO 5 CPUs'; {script}");
        assert_eq!(why(&went_on, &extra), None);
    }

    #[test]
    fn a_cpu_that_never_says_a_word_is_named() {
        let says = why("sleep 1000", &["--cpu=max"]).expect("mute");
        assert!(
            says.starts_with("--cpu max: the machine doesn't boot: it printed nothing"),
            "{says}"
        );
        assert_eq!(why("sleep 1000", &[]), None);
        assert_eq!(why("echo hello", &["--cpu=max"]), None);
    }
}
