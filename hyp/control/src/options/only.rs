//! Options that not every guest has.

use super::{OptionError, Options, merging};
use records::options::{DEVICE, PREFAULT};
use records::words::GuestKind;

/// Options of the benchmark only: the stress run chooses at random.
const BENCHMARK_ONLY: [&str; 13] = [
    "iterations",
    "write_percent",
    "random",
    "split",
    "tracking",
    "granularity",
    "harvest",
    "harvesters",
    "enable",
    "clear",
    "restore",
    "split_reserve",
    "exit_times",
];
/// Options of workloads that change backing memory; the benchmark also has the last of them.
pub(super) const BACKING_ONLY: [&str; 5] =
    ["workload", "tracker", "change", "workers", "overcommit"];
/// Options of the benchmark that those workloads have too.
const BACKING_TOO: [&str; 2] = ["iterations", "exit_times"];
/// Options of the stress run that those workloads don't have.
const NOT_BACKING: [&str; 4] = ["slots", "ring_entries", "split_chunk", "seconds"];
/// Options of the benchmark that other guests don't have when their writes are logged.
const ACCESSES_ONLY: [&str; 2] = ["write_percent", "random"];
/// Options that they don't have either.
const NOT_LOGGED: [&str; 3] = ["seed", "slots", "seconds"];
/// Options of such logging only.
const LIVE_ONLY: [&str; 2] = ["log_from", "interval"];
/// Further options that a program doesn't have, unless its writes are logged.
const LOGGED_ONLY: [&str; 5] = ["seed", "slots", "ring_entries", "split_chunk", "seconds"];

impl Options {
    /// Checks that the options given are those of the guest.
    pub(super) fn check_guest<'t>(
        &self,
        is_given: impl Fn(&str) -> bool,
        has_vms: bool,
    ) -> Result<(), OptionError<'t>> {
        let guest = self.guest.name();
        let given = |keys: &[&'static str]| keys.iter().copied().find(|key| is_given(key));
        let of_logging = || {
            let mut keys = BENCHMARK_ONLY.iter().chain(&NOT_BACKING).copied();
            keys.find(|key| !BACKING_TOO.contains(key) && is_given(key))
        };
        let has_linux = has_vms || self.guest == GuestKind::Linux;
        let of_foreign = given(&[DEVICE, "cpu_features"])
            .filter(|_| !has_linux && self.guest != GuestKind::Program);
        // Where there are VMs with names, a benchmark beside them has no use for it either.
        let of_foreign = of_foreign.or(given(&[DEVICE]).filter(|_| !self.guest.is_foreign()));
        let of_linux = given(&[
            "console", "firmware", "on_reset", "on_crash", "rtc", "log_from", PREFAULT,
        ])
        .filter(|_| !has_linux);
        let of_one = given(&["fork"])
            .filter(|_| has_vms || self.guest != GuestKind::Linux || self.merging != 0);
        let of_logged = given(&["dirty_log"])
            .filter(|_| !self.guest.is_foreign())
            .or(given(&LIVE_ONLY).filter(|_| !self.logs_foreign()));
        let of_users = of_foreign.or(of_linux).or(of_one).or(of_logged);
        let foreign = of_users.or(match self.guest {
            GuestKind::DirtyLog => given(&["seconds"]).or(given(&BACKING_ONLY[..4])),
            GuestKind::Stress => given(&BENCHMARK_ONLY)
                .or(given(&BACKING_ONLY))
                .or(given(&["merging"]))
                .or(given(&merging::KEYS)),
            GuestKind::Backing => of_logging(),
            GuestKind::Program | GuestKind::Linux => {
                let logged = match self.dirty_log {
                    true => given(&ACCESSES_ONLY).or(given(&NOT_LOGGED)),
                    false => given(&BENCHMARK_ONLY).or(given(&LOGGED_ONLY)),
                };
                // A program has all of its memory from the start.
                let last = usize::from(self.guest == GuestKind::Program);
                logged.or(given(&BACKING_ONLY[..4 + last]))
            }
        });
        let of_each = given(&["vcpus", "bytes", "firmware", DEVICE])
            .filter(|_| has_vms && self.guest == GuestKind::Linux);
        match foreign {
            Some(key) => Err(OptionError::NotForGuest { key, guest }),
            None if let Some(key) = of_each => Err(OptionError::OfEachVm(key)),
            None if has_vms && self.guest == GuestKind::Linux && self.dirty_log => {
                Err(OptionError::LoggedVms)
            }
            None if self.prefault && self.overcommits.iter().any(|percent| *percent > 100) => {
                Err(OptionError::PrefaultLimited)
            }
            None if self.firmware.is_some() && self.dirty_log => Err(OptionError::LoggedFirmware),
            None if self.guest.is_foreign() && self.modes.len() > 1 && !self.dirty_log => {
                Err(OptionError::OneMode(guest))
            }
            None if self.guest != GuestKind::Backing && self.overcommits.len() > 1 => {
                Err(OptionError::OneOvercommit(guest))
            }
            None => Ok(()),
        }
    }
}
