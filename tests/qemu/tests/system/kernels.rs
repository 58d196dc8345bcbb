//! Debian's kernels as guests on machines of many kinds, from their first instruction until they power off.

use crate::linux::exec_in;

/// A machine and the kernel that runs on it.
struct Boot {
    series: &'static str,
    gic: &'static str,
    cpu: &'static str,
    vcpus: usize,
}

impl Boot {
    const fn new(series: &'static str, gic: &'static str, cpu: &'static str, vcpus: usize) -> Self {
        Self {
            series,
            gic,
            cpu,
            vcpus,
        }
    }

    /// What the kernel says of itself, unless it can't be had: its version, its CPUs, and that each of them has ticks and none
    /// is without messages from another.
    fn check(&self) {
        self.check_with(&[]);
    }

    /// The same, with more options of the script.
    fn check_with(&self, more: &[&str]) {
        let vcpus = self.vcpus.to_string();
        let series = format!("--linux={}", self.series);
        let machine = ["--gic", self.gic, "--cpu", self.cpu, "--vcpus", &vcpus];
        let command = "uname -r; nproc; cat /proc/interrupts";
        let options = [&machine, more].concat();
        let Some(output) = exec_in(&series, &options, command) else {
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaints = String::from_utf8_lossy(&output.stderr);
        let seen = format!("{series} {machine:?}: {complaints}{text}");
        assert_eq!(output.status.code(), Some(0), "{seen}");
        let mut lines = text.lines();
        let version = lines.next().unwrap_or_default();
        assert!(version.starts_with(&format!("{}.", self.series)), "{seen}");
        assert_eq!(lines.next(), Some(vcpus.as_str()), "{seen}");
        let controller = if self.gic == "2" { "GIC-0" } else { "GICv3" };
        let ticks = self.counts(&text, "arch_timer");
        assert!(ticks.iter().all(|count| *count > 0), "{seen}");
        let line = text.lines().find(|line| line.contains("arch_timer"));
        assert!(line.is_some_and(|line| line.contains(controller)), "{seen}");
        if self.vcpus > 1 {
            let calls = self.counts(&text, "Function call interrupts");
            assert!(calls.iter().all(|count| *count > 0), "{seen}");
        }
    }

    /// How often each CPU took the interrupt that is called so.
    fn counts(&self, interrupts: &str, name: &str) -> Vec<u64> {
        let line = interrupts.lines().find(|line| line.contains(name));
        let words = line.unwrap_or_default().split_whitespace().skip(1);
        let counts = words.take(self.vcpus).map(|count| count.parse());
        let counts: Result<Vec<u64>, _> = counts.collect();
        counts.unwrap_or_else(|_| panic!("{name}: {interrupts}"))
    }
}

// Together these have each kernel on each GIC, CPU and number of vCPUs, and each CPU on each GIC.

#[test]
fn max_runs_sixteen_of_the_new_kernel_s_cpus() {
    Boot::new("6.12", "3", "max", 16).check();
    Boot::new("6.1", "2", "max", 4).check();
}

#[test]
fn neoverse_n1_runs_sixteen_of_the_old_kernel_s_cpus() {
    Boot::new("6.1", "3", "neoverse-n1", 16).check();
    Boot::new("6.12", "2", "neoverse-n1", 1).check();
}

#[test]
fn cortex_a72_runs_kernels_with_one_cpu() {
    Boot::new("6.1", "2", "cortex-a72", 1).check();
    Boot::new("6.12", "3", "cortex-a72", 4).check();
}

#[test]
fn cortex_a53_runs_kernels_on_either_gic() {
    Boot::new("6.12", "2", "cortex-a53", 4).check();
    Boot::new("6.1", "3", "cortex-a53", 1).check();
}

/// Each kernel on each GIC of this CPU, with each number of vCPUs.
fn check_all_on(cpu: &'static str) {
    for series in ["6.1", "6.12"] {
        // A GICv2 serves eight CPUs, one of which is the hypervisor's own.
        for (gic, vcpus) in [("3", [1, 4, 16]), ("2", [1, 4, 7])] {
            for vcpus in vcpus {
                Boot::new(series, gic, cpu, vcpus).check();
            }
        }
    }
}

/// On a host with a few cores so many starve each other by their ticks alone: on simulated time they don't.
#[test]
#[ignore = "slow"]
fn neoverse_n1_runs_forty_eight_cpus_on_simulated_time() {
    Boot::new("6.12", "3", "neoverse-n1", 48).check_with(&["--simulated"]);
}

#[test]
#[ignore = "slow"]
fn max_runs_all() {
    check_all_on("max");
}

#[test]
#[ignore = "slow"]
fn neoverse_n1_runs_all() {
    check_all_on("neoverse-n1");
}

#[test]
#[ignore = "slow"]
fn cortex_a72_runs_all() {
    check_all_on("cortex-a72");
}

#[test]
#[ignore = "slow"]
fn cortex_a53_runs_all() {
    check_all_on("cortex-a53");
}
