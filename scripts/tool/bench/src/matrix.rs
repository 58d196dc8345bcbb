//! The boots of a matrix. One boot runs every mode with every way to split and to track, or with all lists of a workload that
//! changes backing memory. Every other value takes a boot of its own. Impossible combinations are left out with a notice, unless
//! none is left.

use ::options::backing::BackingOptions;
use ::options::linux::DEBIAN_ROOM;
use ::options::shared::{MachineOptions, WorkloadOptions};
use ::options::words::{Enable, Harvest, Tracking};
use ::options::workload::Workload;
use ::options::{Plan, usage};
use emulator::error::ToolError;

/// The boots of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// The boots of one repetition, in their order.
    pub boots: Vec<Plan>,
    /// The combinations that were left out, and why.
    pub notices: Vec<String>,
}

impl Matrix {
    /// The matrix that the options span. With an interval in milliseconds, Linux is measured, and logged after each of them.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option that can't be, or why no combination is possible.
    pub fn new(
        options: &WorkloadOptions,
        backing: &BackingOptions,
        machine: &MachineOptions,
        logged: Option<u32>,
    ) -> Result<Self, ToolError> {
        let mut matrix = Self {
            boots: Vec::new(),
            notices: Vec::new(),
        };
        for mut workload in workloads(options, backing, machine.simulated)? {
            if logged.is_some() {
                workload.program = true;
                workload.linux = Some(DEBIAN_ROOM);
                workload.logged = logged;
            }
            matrix.add(workload, machine)?;
        }
        match (matrix.boots.is_empty(), matrix.notices.first()) {
            (true, Some(why)) => usage(why),
            (true, None) => usage("nothing to measure"),
            (false, _) => Ok(matrix),
        }
    }

    /// Adds the possible boots of a workload.
    fn add(&mut self, workload: Workload, machine: &MachineOptions) -> Result<(), ToolError> {
        let Some(why) = workload.contradiction() else {
            self.boots.push(machine.plan(workload, None, None)?);
            return Ok(());
        };
        if !self.notices.iter().any(|notice| notice == why) {
            self.notices.push(why.into());
        }
        let mut without_hardware = workload;
        let kinds = &mut without_hardware.trackings;
        kinds.retain(|tracking| *tracking != Tracking::Hardware);
        if !kinds.is_empty() && without_hardware.contradiction().is_none() {
            self.boots.push(machine.plan(without_hardware, None, None)?);
        }
        Ok(())
    }
}

/// Every combination, possible or not; the number of vCPUs changes fastest, so that a series is measured at a stretch.
fn workloads(
    options: &WorkloadOptions,
    backing: &BackingOptions,
    simulated: bool,
) -> Result<Vec<Workload>, ToolError> {
    let mut first = Workload::of(options, backing, simulated)?;
    if first.modes.is_empty() {
        first.modes = first.usual_modes();
    }
    let is_benchmark = first.compared.is_none();
    let mut all = vec![first];
    vary(&mut all, &options.backings, |workload, value| {
        workload.backing = value
    });
    vary(&mut all, &options.write_percents, |workload, value| {
        workload.write_percent = value
    });
    vary(&mut all, &options.granularities, |workload, value| {
        workload.granularity = value
    });
    vary(&mut all, &options.harvests, |workload, value| {
        workload.harvest = value
    });
    vary(&mut all, &options.harvesters, |workload, value| {
        workload.harvesters = value
    });
    if is_benchmark {
        // The other workloads have this list in one boot.
        vary(&mut all, &backing.overcommits, |workload, value| {
            workload.overcommit = value
        });
    }
    if options.enables.is_empty() && is_benchmark {
        for workload in &mut all {
            workload.enable = usual_enable(workload.harvest);
        }
    }
    vary(&mut all, &options.enables, |workload, value| {
        workload.enable = value
    });
    vary(&mut all, &options.vcpus, |workload, value| {
        workload.vcpus = value
    });
    Ok(all)
}

/// How the log is enabled unless the user chooses: as in Linux's benchmark, if the other options allow that.
fn usual_enable(harvest: Harvest) -> Enable {
    match harvest {
        Harvest::Bitmap => Enable::AllSet,
        Harvest::Ring => Enable::Protect,
    }
}

/// Makes each workload several, one for each value; an empty list leaves them as they are.
fn vary<T: Copy>(all: &mut Vec<Workload>, values: &[T], set: impl Fn(&mut Workload, T)) {
    if values.is_empty() {
        return;
    }
    let each = std::mem::take(all).into_iter();
    *all = each
        .flat_map(|workload| values.iter().map(move |value| (workload.clone(), *value)))
        .map(|(mut workload, value)| {
            set(&mut workload, value);
            workload
        })
        .collect();
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::options::BenchOptions;
    use super::*;
    use ::options::one_line;

    fn matrix(arguments: &[&str]) -> Result<Matrix, String> {
        let all = std::iter::once("scripts/bench").chain(arguments.iter().copied());
        let options = BenchOptions::parse_arguments(all.map(OsString::from));
        let options = options.map_err(|error| one_line(&error))?;
        Matrix::new(
            &options.workload,
            &options.backing,
            &options.machine,
            options.logged(),
        )
        .map_err(|error| error.to_string())
    }

    fn sound(arguments: &[&str]) -> Matrix {
        matrix(arguments).expect("sound options")
    }

    fn refused(arguments: &[&str]) -> String {
        let refusal = matrix(arguments).expect_err("it can't be");
        assert!(!refusal.contains('\n'), "{refusal}");
        refusal
    }

    /// How many runs one repetition makes.
    fn runs(matrix: &Matrix) -> usize {
        matrix.boots.iter().map(|boot| boot.workload.runs()).sum()
    }

    #[test]
    fn one_boot_runs_all_modes_and_policies() {
        let matrix = sound(&[
            "--vcpus=1,8",
            "--split=fault,eager",
            "--tracking=writeprotect,hardware",
        ]);
        assert_eq!((matrix.boots.len(), runs(&matrix)), (2, 24));
        let words = &matrix.boots[1].append;
        assert!(
            words.starts_with("mode=mutex,rwlock,parallel vcpus=8 bytes=8192K backing=2M"),
            "{words}"
        );
        assert!(
            words.ends_with("split=fault,eager tracking=writeprotect,hardware enable=all_set"),
            "{words}"
        );
        assert_eq!(matrix.boots[1].cpus, 9);
    }

    #[test]
    fn linux_is_measured_in_every_mode_with_two_ways_to_split_and_to_track() {
        let matrix = sound(&["--linux", "--interval=50"]);
        assert_eq!((matrix.boots.len(), runs(&matrix)), (1, 12));
        assert_eq!(
            matrix.boots[0].append,
            "mode=mutex,rwlock,parallel vcpus=2 bytes=262144K backing=2M guest=linux dirty_log iterations=4 interval=50 \
             on_reset=stop rtc=0 split=none,eager tracking=writeprotect,hardware"
                .replace("rtc=0", matrix.boots[0].append.split(' ').find(|word| word.starts_with("rtc=")).expect("a time"))
        );
        // Two vCPUs, one that harvests, and the hypervisor's own.
        assert_eq!(matrix.boots[0].cpus, 4);
        let chosen = sound(&[
            "--linux=6.1",
            "--vcpus=1,4",
            "--bytes=512M",
            "--split=fault",
            "--harvesters=2",
        ]);
        assert_eq!((chosen.boots.len(), runs(&chosen)), (2, 12));
        assert_eq!(chosen.boots[1].cpus, 7);
        assert!(refused(&["--linux", "--write-percent=20"]).contains("--write-percent"));
        assert!(refused(&["--linux", "--with-kvm=6.1"]).contains("--with-kvm"));
        assert!(refused(&["--interval=5"]).contains("--linux"));
    }

    #[test]
    fn everything_else_is_a_boot_of_its_own() {
        let matrix = sound(&[
            "--vcpus=1,2,4",
            "--backing=4K,2M",
            "--write-percent=100,20",
            "--enable=protect,all_set",
        ]);
        assert_eq!(matrix.boots.len(), 24);
        let vcpus: Vec<u32> = matrix
            .boots
            .iter()
            .map(|boot| boot.workload.vcpus)
            .collect();
        assert_eq!(vcpus[..6], [1, 2, 4, 1, 2, 4]);
    }

    #[test]
    fn what_is_the_hypervisors_own_choice_isnt_said() {
        let matrix = sound(&["--enable=protect", "--mode=parallel", "--vcpus=1"]);
        assert_eq!(
            matrix.boots[0].append,
            "mode=parallel vcpus=1 bytes=8192K backing=2M timeout=120 iterations=4 write_percent=100"
        );
    }

    #[test]
    fn every_policy_reaches_the_hypervisor() {
        let matrix = sound(&[
            "--vcpus=1",
            "--mode=parallel",
            "--granularity=2m",
            "--clear=with_get",
            "--restore=never",
            "--slots=4",
            "--split=eager",
            "--split-chunk=2M",
            "--split-reserve=64K",
            "--exit-times",
            "--harvesters=3",
            "--random",
            "--seed=3",
            "--iterations=2",
            "--write-percent=20",
            "--append=log=debug",
        ]);
        assert_eq!(
            matrix.boots[0].append,
            "mode=parallel vcpus=1 bytes=8192K backing=2M timeout=120 iterations=2 write_percent=20 random seed=3 \
             split=eager granularity=2M harvesters=3 enable=all_set clear=with_get restore=never slots=4 split_chunk=2048K \
             split_reserve=64K exit_times log=debug"
        );
        let ring = sound(&["--vcpus=1", "--harvest=ring", "--ring-entries=256"]);
        assert!(
            ring.boots[0]
                .append
                .ends_with("harvest=ring ring_entries=256")
        );
    }

    #[test]
    fn a_workload_compares_in_one_boot_and_has_a_boot_for_each_number_of_vcpus() {
        let matrix = sound(&[
            "--workload=cow",
            "--vcpus=1,4",
            "--workers=0,2",
            "--backing=4K,2M",
        ]);
        assert_eq!((matrix.boots.len(), runs(&matrix)), (4, 16));
        assert_eq!(
            matrix.boots[1].append,
            "mode=parallel vcpus=4 bytes=8192K backing=4K timeout=120 guest=backing workload=cow tracker=ranges \
             change=direct,unmap overcommit=100 workers=0,2 iterations=4"
        );
        assert_eq!(matrix.boots[1].cpus, 11);
        let usual = sound(&["--workload=reclaim", "--vcpus=1"]);
        assert!(usual.boots[0].append.contains(" backing=4K "));
        assert_eq!(runs(&usual), 2);
    }

    #[test]
    fn the_benchmark_has_a_boot_for_each_overcommit_and_may_merge() {
        let matrix = sound(&["--vcpus=1", "--overcommit=100,150", "--merging"]);
        assert_eq!(matrix.boots.len(), 2);
        let words = &matrix.boots[1].append;
        assert!(
            words.contains(" overcommit=150 merging enable=all_set"),
            "{words}"
        );
        assert!(refused(&["--overcommit=100,100"]).contains("100 is given twice"));
        assert!(refused(&["--tracker=ranges"]).contains("--workload"));
        assert!(refused(&["--workload=cow", "--with-kvm=6.1"]).contains("--with-kvm"));
        assert!(refused(&["--workload=cow", "--split=none"]).contains("--split"));
    }

    #[test]
    fn what_cant_be_is_left_out_of_a_matrix() {
        let matrix = sound(&[
            "--vcpus=1",
            "--harvest=bitmap,ring",
            "--tracking=writeprotect,hardware",
        ]);
        assert_eq!(matrix.boots.len(), 2);
        assert_eq!(matrix.boots[0].workload.trackings.len(), 2);
        assert_eq!(matrix.boots[1].workload.trackings, [Tracking::WriteProtect]);
        assert_eq!(matrix.boots[1].workload.enable, Enable::Protect);
        assert_eq!(matrix.notices.len(), 1);
        let matrix = sound(&["--vcpus=1,2", "--harvest=bitmap,ring", "--enable=all_set"]);
        assert_eq!((matrix.boots.len(), matrix.notices.len()), (2, 1));
    }

    #[test]
    fn what_cant_be_is_refused_alone() {
        assert!(refused(&["--harvest=ring", "--tracking=hardware"]).contains("hardware"));
        assert!(refused(&["--harvest=ring", "--enable=all_set"]).contains("all_set"));
        assert!(refused(&["--harvest=ring", "--clear=with_get"]).contains("with_get"));
    }

    #[test]
    fn bad_lists_are_refused_in_one_line() {
        assert!(refused(&["--vcpus=1,2,1"]).contains("--vcpus: 1 is given twice"));
        assert!(refused(&["--mode=mutex,mutex"]).contains("mutex is given twice"));
        assert!(refused(&["--vcpus="]).contains("--vcpus"));
        assert!(refused(&["--vcpus=1,,2"]).contains("--vcpus"));
        assert!(refused(&["--vcpus=1,many"]).contains("many"));
        assert!(refused(&["--split=never"]).contains("never"));
        assert!(refused(&["--backing=4K,3M"]).contains("3M"));
        assert!(refused(&["--ring-entries=1000", "--harvest=ring"]).contains("power of two"));
        assert!(refused(&["--vcpus=8", "--gic=2"]).contains("--gic 2"));
        assert!(refused(&["--bytes=5000"]).contains("--bytes"));
        assert!(refused(&["--repeat=0"]).contains("--repeat"));
    }
}
