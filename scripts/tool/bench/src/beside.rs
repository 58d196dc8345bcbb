//! Linux's runs beside a matrix: the kernel's own benchmark for each workload that it has too.

use ::options::Plan;
use ::options::shared::MachineOptions;
use ::options::words::{Backing, Clear, Enable, Granularity, Harvest, Split};
use ::options::workload::Workload;
use emulator::simclock::Simulation;
use emulator::size::mib;
use linux::{self, Kernel};

/// How much Linux splits at a time, unless the user chooses.
const USUAL_CHUNK: u64 = mib(2).0;
/// The first kernel that splits ahead.
const FIRST_EAGER: (u32, u32) = (6, 4);

/// One run of Linux.
#[derive(Clone, Debug)]
pub struct Beside {
    /// The kernel.
    pub kernel: Kernel,
    /// Its benchmark.
    pub test: linux::Test,
    /// The same in words.
    pub name: String,
    /// The workload of Parvisor that it stands beside.
    pub workload: Workload,
}

/// The kernels' runs beside these boots, and the boots that they have no run for.
pub fn tests(
    boots: &[Plan],
    kernels: &[Kernel],
    machine: &MachineOptions,
    simulation: Option<&Simulation>,
) -> (Vec<Beside>, Vec<String>) {
    let mut tests: Vec<Beside> = Vec::new();
    let mut notices: Vec<String> = Vec::new();
    if kernels.is_empty() {
        return (tests, notices);
    }
    for boot in boots {
        let workload = &boot.workload;
        if let Some(why) = impossible(workload) {
            note(&mut notices, why.into());
            continue;
        }
        for (kernel, is_eager) in each(kernels, workload) {
            if is_eager && !splits_ahead(kernel) {
                note(
                    &mut notices,
                    format!("Linux {} can't split blocks ahead", kernel.series),
                );
                continue;
            }
            let split = if is_eager { ", split eager" } else { "" };
            let together = if clears_with_get(workload) {
                ", clear with_get"
            } else {
                ""
            };
            let name = format!("Linux {}{split}{together}", kernel.version);
            let is_there =
                |other: &Beside| other.name == name && is_same(&other.workload, workload);
            if !tests.iter().any(is_there) {
                tests.push(Beside {
                    kernel: kernel.clone(),
                    test: test(workload, is_eager, boot, machine, simulation),
                    name,
                    workload: workload.clone(),
                });
            }
        }
    }
    (tests, notices)
}

/// Every kernel, without and with splitting ahead if Parvisor does so.
fn each<'k>(
    kernels: &'k [Kernel],
    workload: &Workload,
) -> impl Iterator<Item = (&'k Kernel, bool)> {
    let is_eager = workload.splits.contains(&Split::Eager);
    let is_lazy = workload.splits.iter().any(|split| *split != Split::Eager);
    let kernels = kernels.iter();
    kernels.flat_map(move |kernel| {
        let lazy = is_lazy.then_some((kernel, false));
        lazy.into_iter().chain(is_eager.then_some((kernel, true)))
    })
}

/// Why Linux can't do the same, if so.
fn impossible(workload: &Workload) -> Option<&'static str> {
    if workload.backing == Backing::Block1G {
        Some("Linux is not measured with --backing 1G, which it has no memory for")
    } else if workload.granularity != Granularity::Page4K {
        Some("Linux is not measured with --granularity 2M: it logs pages")
    } else if workload.harvest != Harvest::Bitmap {
        Some("Linux is not measured with --harvest ring: its benchmark reads bitmaps")
    } else if workload.overcommit != 100 {
        Some(
            "Linux is not measured with --overcommit: its benchmark has all the memory that it uses",
        )
    } else if workload.merging.beside > 0 {
        Some("Linux is not measured with --merging: its benchmark has it off")
    } else if workload.iterations < 2 {
        Some("Linux is not measured with fewer than 2 iterations: its benchmark refuses")
    } else {
        None
    }
}

/// Whether Linux is to clear together with getting the log, and to write-protect at first: the one comes with the other.
fn clears_with_get(workload: &Workload) -> bool {
    workload.clear == Clear::WithGet || workload.enable != Enable::AllSet
}

/// Whether two workloads are the same to Linux.
fn is_same(one: &Workload, other: &Workload) -> bool {
    let facts = |workload: &Workload| (workload.vcpus, workload.backing, workload.write_percent);
    facts(one) == facts(other)
}

fn splits_ahead(kernel: &Kernel) -> bool {
    let mut numbers = kernel
        .series
        .split('.')
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= FIRST_EAGER
}

fn test(
    workload: &Workload,
    is_eager: bool,
    boot: &Plan,
    machine: &MachineOptions,
    simulation: Option<&Simulation>,
) -> linux::Test {
    let chunk = workload.split_chunk.map_or(USUAL_CHUNK, |chunk| chunk.0);
    linux::Test {
        vcpus: workload.vcpus,
        bytes_per_vcpu: workload.bytes.0,
        // More than the benchmark's 32 bits would take for years.
        iterations: u32::try_from(workload.iterations).unwrap_or(u32::MAX),
        backing: match workload.backing {
            Backing::Page4K => linux::Backing::Pages,
            Backing::Block2M | Backing::Block1G => linux::Backing::TransparentHuge,
        },
        write_percent: workload.write_percent.into(),
        random: workload.random,
        manual_clear: !clears_with_get(workload),
        slots: workload.slots,
        eager_split: is_eager.then_some(chunk),
        cpu: machine.cpu.clone(),
        gic: boot.gic,
        simulation: simulation.cloned(),
        limit: machine.host_timeout.map(std::time::Duration::from_secs),
    }
}

fn note(notices: &mut Vec<String>, notice: String) {
    if !notices.contains(&notice) {
        notices.push(notice);
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::Matrix;
    use super::super::options::BenchOptions;
    use super::*;
    use std::ffi::OsString;

    fn beside(arguments: &[&str]) -> (Vec<Beside>, Vec<String>) {
        let all = std::iter::once("scripts/bench").chain(arguments.iter().copied());
        let options =
            BenchOptions::parse_arguments(all.map(OsString::from)).expect("sound options");
        let matrix = Matrix::new(&options.workload, &options.backing, &options.machine, None)
            .expect("sound options");
        let kernel = |series: &str| Kernel {
            series: series.into(),
            version: format!("{series}.7"),
            image: "image".into(),
            initramfs: "initramfs".into(),
        };
        tests(
            &matrix.boots,
            &[kernel("6.1"), kernel("6.12")],
            &options.machine,
            None,
        )
    }

    #[test]
    fn each_workload_is_measured_once_for_each_kernel() {
        let (tests, notices) = beside(&[
            "--vcpus=1,2",
            "--split=none,fault",
            "--tracking=writeprotect,hardware",
        ]);
        let names: Vec<(&str, u32)> = tests
            .iter()
            .map(|test| (test.name.as_str(), test.test.vcpus))
            .collect();
        assert_eq!(
            names,
            [
                ("Linux 6.1.7", 1),
                ("Linux 6.12.7", 1),
                ("Linux 6.1.7", 2),
                ("Linux 6.12.7", 2)
            ]
        );
        assert!(
            tests
                .iter()
                .all(|test| test.test.manual_clear && test.test.eager_split.is_none())
        );
        assert!(notices.is_empty());
    }

    #[test]
    fn splitting_ahead_is_measured_where_the_kernel_can() {
        let (tests, notices) = beside(&["--vcpus=1", "--split=fault,eager"]);
        let names: Vec<&str> = tests.iter().map(|test| test.name.as_str()).collect();
        assert_eq!(
            names,
            ["Linux 6.1.7", "Linux 6.12.7", "Linux 6.12.7, split eager"]
        );
        assert_eq!(notices, ["Linux 6.1 can't split blocks ahead"]);
    }

    #[test]
    fn write_protection_at_first_comes_with_clearing_together() {
        let (tests, _) = beside(&["--vcpus=1", "--enable=all_set,protect"]);
        let together: Vec<bool> = tests.iter().map(|test| test.test.manual_clear).collect();
        assert_eq!(together, [true, true, false, false]);
    }

    #[test]
    fn what_linux_cant_do_is_left_out() {
        let (tests, notices) = beside(&["--vcpus=1", "--backing=2M,1G", "--granularity=4K,2M"]);
        assert_eq!((tests.len(), notices.len()), (2, 2));
    }
}
