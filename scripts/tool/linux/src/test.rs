//! A run of Linux's benchmark: the options of `dirty_log_perf_test`, its machine, and the kernel's command line.
//! Starts nothing.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use super::Kernel;
use emulator::error::ToolError;
use emulator::qemu::{Gic, Machine};
use emulator::simclock::Simulation;
use emulator::size::{Size, mib};

/// The size of a page.
const PAGE: u64 = 4096;
/// The size of a large page.
const LARGE_PAGE: u64 = 2 << 20;
/// CPUs beside those of the vCPUs: one for the test's main thread, one for all else that Linux does.
const FURTHER_CPUS: u32 = 2;
/// The longest command line of an arm64 kernel.
const LONGEST_COMMAND_LINE: usize = 2047;
/// The fewest iterations that the test accepts.
const FEWEST_ITERATIONS: u32 = 2;
/// How long a machine may take to boot and to end, and how long a page in each iteration. Many CPUs on two are slow.
const BOOT_LIMIT: Duration = Duration::from_secs(1200);
const PAGE_LIMIT: Duration = Duration::from_millis(20);

/// The virtual addresses of an arm64 kernel. On simulated time its instructions take part in the cache-line model, those
/// of the test and of its guest don't.
const KERNEL: Range<u64> = 0xffff_8000_0000_0000..u64::MAX;

/// The backing of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Pages of 4 KiB.
    Pages,
    /// Transparent huge pages of 2 MiB: as large as Linux can make them.
    TransparentHuge,
    /// Huge pages of 2 MiB that are set aside when the kernel starts.
    ReservedHuge,
}

impl Backing {
    /// The test's word for it.
    fn source(self) -> &'static str {
        match self {
            Self::Pages => "anonymous",
            Self::TransparentHuge => "anonymous_thp",
            Self::ReservedHuge => "anonymous_hugetlb_2mb",
        }
    }

    /// The record's word for it.
    pub fn size(self) -> &'static str {
        match self {
            Self::Pages => "4K",
            Self::TransparentHuge | Self::ReservedHuge => "2M",
        }
    }
}

/// One measurement. Without eager splitting, KVM maps single pages at write faults on a logged block.
#[derive(Clone, Debug)]
pub struct Test {
    /// vCPUs.
    pub vcpus: u32,
    /// The memory that each of them accesses, in bytes.
    pub bytes_per_vcpu: u64,
    /// How often it is dirtied and harvested; at least 2.
    pub iterations: u32,
    /// Its backing.
    pub backing: Backing,
    /// How many of 100 accesses write; the others read.
    pub write_percent: u32,
    /// Whether pages are accessed in random order.
    pub random: bool,
    /// Whether the log is cleared by a call of its own, and begins with all pages set; else getting it clears it, and
    /// memory is write-protected when logging is enabled (the test's `-g`).
    pub manual_clear: bool,
    /// How many slots the memory is cut into.
    pub slots: u32,
    /// Whether blocks are split ahead of the faults, and how many bytes at a time; kernels before 6.4 can't. The test has no
    /// option for it; our part of it switches it on.
    pub eager_split: Option<u64>,
    /// The CPU model, with QEMU's properties if any.
    pub cpu: String,
    /// The interrupt controller. A GICv2 serves 8 CPUs, so at most 6 vCPUs.
    pub gic: Gic,
    /// The simulation of time, if it is wanted.
    pub simulation: Option<Simulation>,
    /// The limit after which a machine is ended; if `None`, a generous one for the memory.
    pub limit: Option<Duration>,
}

impl Test {
    /// The machine that runs the test on `kernel`.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] for values that the test or the machine can't have.
    pub fn machine(&self, kernel: &Kernel, emulator: &Path) -> Result<Machine, ToolError> {
        self.check()?;
        let append = self.command_line();
        if append.len() > LONGEST_COMMAND_LINE {
            return Err(refused(&format!(
                "{} vCPUs don't fit on the kernel's command line",
                self.vcpus
            )));
        }
        Ok(Machine {
            emulator: emulator.into(),
            cpu: self.cpu.clone(),
            gic: self.gic,
            cpus: self.vcpus + FURTHER_CPUS,
            memory: self.memory(),
            el2: true,
            kernel: Some(kernel.image.clone()),
            append,
            modules: Vec::new(),
            debugger: None,
            simulation: self
                .simulation
                .clone()
                .map(|simulation| (simulation, KERNEL)),
            extra: vec!["-initrd".into(), kernel.initramfs.clone().into()],
        })
    }

    /// When the machine is ended.
    pub fn limit(&self) -> Duration {
        let accesses = (self.bytes() / PAGE).saturating_mul(u64::from(self.iterations) + 1);
        let accesses = u32::try_from(accesses).unwrap_or(u32::MAX);
        self.limit.unwrap_or(BOOT_LIMIT + PAGE_LIMIT * accesses)
    }

    fn check(&self) -> Result<(), ToolError> {
        let most = self.gic.most_cpus().saturating_sub(FURTHER_CPUS);
        if !(1..=most).contains(&self.vcpus) {
            let gic = self.gic.version();
            return Err(refused(&format!(
                "{} vCPUs: with a GICv{gic} there can be 1 to {most} on Linux, which needs {FURTHER_CPUS} more CPUs",
                self.vcpus
            )));
        }
        if self.iterations < FEWEST_ITERATIONS {
            return Err(refused(&format!(
                "Linux's test needs {FEWEST_ITERATIONS} iterations at least"
            )));
        }
        if self.bytes_per_vcpu == 0 || !self.bytes_per_vcpu.is_multiple_of(PAGE) {
            return Err(refused(&format!(
                "{} bytes per vCPU aren't whole pages",
                self.bytes_per_vcpu
            )));
        }
        if self.write_percent > 100 {
            return Err(refused(&format!(
                "{} % writes are more than all",
                self.write_percent
            )));
        }
        if self.slots == 0 {
            return Err(refused("0 slots hold no memory"));
        }
        Ok(())
    }

    /// All memory that is accessed, in bytes.
    fn bytes(&self) -> u64 {
        u64::from(self.vcpus).saturating_mul(self.bytes_per_vcpu)
    }

    /// RAM for the accessed memory, its page tables and other metadata, and the rest of Linux.
    fn memory(&self) -> Size {
        let bytes = self
            .bytes()
            .saturating_add(self.bytes() / 16 + u64::from(self.vcpus) * (4 << 20));
        mib(512 + bytes.div_ceil(1 << 20))
    }

    /// The kernel's command line; behind `--` are the test's options, which `init.sh` passes on.
    fn command_line(&self) -> String {
        let last = self.vcpus + FURTHER_CPUS - 1;
        let mut words = vec![
            "console=ttyAMA0 quiet panic=-1".to_string(),
            format!("isolcpus=1-{last} CPUS=0-{last}"),
        ];
        if let Some(chunk) = self.eager_split {
            words.push(format!("EAGER_SPLIT_CHUNK={chunk}"));
        }
        if self.backing == Backing::ReservedHuge {
            let pages = self.bytes().div_ceil(LARGE_PAGE) + u64::from(self.slots);
            words.push(format!("hugepagesz=2M hugepages={pages}"));
        }
        let pins: Vec<String> = (1..=last).map(|cpu| cpu.to_string()).collect();
        words.push(format!(
            "-- -v {} -b {} -i {} -s {} -w {} -x {} -c {}",
            self.vcpus,
            self.bytes_per_vcpu,
            self.iterations,
            self.backing.source(),
            self.write_percent,
            self.slots,
            pins.join(",")
        ));
        words.extend(self.random.then(|| "-a".into()));
        words.extend((!self.manual_clear).then(|| "-g".into()));
        words.join(" ")
    }
}

fn refused(why: &str) -> ToolError {
    ToolError::Usage(why.into())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// The options of the README's figures.
    pub fn test() -> Test {
        Test {
            vcpus: 4,
            bytes_per_vcpu: 8 << 20,
            iterations: 3,
            backing: Backing::TransparentHuge,
            write_percent: 100,
            random: false,
            manual_clear: true,
            slots: 1,
            eager_split: None,
            cpu: "neoverse-n1".into(),
            gic: Gic::V3,
            simulation: None,
            limit: None,
        }
    }

    /// A kernel that isn't there.
    pub fn kernel() -> Kernel {
        Kernel {
            series: "6.12".into(),
            version: "6.12.117".into(),
            image: "linux-6.12.117".into(),
            initramfs: "initramfs.cpio".into(),
        }
    }

    fn machine(test: &Test) -> Result<Machine, String> {
        test.machine(&kernel(), Path::new("qemu"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn each_vcpu_and_the_main_thread_have_a_cpu_of_their_own() {
        let machine = machine(&test()).expect("a machine");
        assert_eq!(machine.cpus, 6);
        assert!(machine.el2);
        assert_eq!(machine.kernel.as_deref(), Some(Path::new("linux-6.12.117")));
        assert_eq!(machine.extra, ["-initrd", "initramfs.cpio"]);
        assert_eq!(
            machine.append,
            "console=ttyAMA0 quiet panic=-1 isolcpus=1-5 CPUS=0-5 \
             -- -v 4 -b 8388608 -i 3 -s anonymous_thp -w 100 -x 1 -c 1,2,3,4,5"
        );
    }

    #[test]
    fn every_option_reaches_the_test() {
        let options = Test {
            vcpus: 1,
            backing: Backing::ReservedHuge,
            write_percent: 20,
            random: true,
            manual_clear: false,
            slots: 2,
            eager_split: Some(2 << 20),
            ..test()
        };
        assert_eq!(
            machine(&options).expect("a machine").append,
            "console=ttyAMA0 quiet panic=-1 isolcpus=1-2 CPUS=0-2 EAGER_SPLIT_CHUNK=2097152 \
             hugepagesz=2M hugepages=6 \
             -- -v 1 -b 8388608 -i 3 -s anonymous_hugetlb_2mb -w 20 -x 2 -c 1,2 -a -g"
        );
    }

    #[test]
    fn ram_holds_what_is_accessed() {
        let many = Test {
            vcpus: 48,
            bytes_per_vcpu: 64 << 20,
            ..test()
        };
        for options in [test(), many] {
            let memory = machine(&options).expect("a machine").memory;
            assert!(memory.0 >= options.bytes() + (512 << 20), "{memory:?}");
            assert_eq!(memory.0 % (1 << 20), 0);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_in_one_line() {
        let refused = |options: Test| machine(&options).expect_err("it can't be");
        let gic = Test {
            vcpus: 7,
            gic: Gic::V2,
            ..test()
        };
        assert_eq!(
            refused(gic),
            "7 vCPUs: with a GICv2 there can be 1 to 6 on Linux, which needs 2 more CPUs"
        );
        refused(Test { vcpus: 0, ..test() });
        refused(Test {
            iterations: 1,
            ..test()
        });
        refused(Test {
            bytes_per_vcpu: 0,
            ..test()
        });
        refused(Test {
            bytes_per_vcpu: 5000,
            ..test()
        });
        refused(Test {
            write_percent: 101,
            ..test()
        });
        refused(Test { slots: 0, ..test() });
    }

    #[test]
    fn the_limit_grows_with_the_work() {
        let more = Test {
            vcpus: 16,
            ..test()
        };
        assert!(test().limit() > BOOT_LIMIT && more.limit() > test().limit());
        let endless = Test {
            iterations: u32::MAX,
            bytes_per_vcpu: u64::MAX - 4095,
            ..test()
        };
        assert!(endless.limit() > more.limit() && machine(&endless).is_ok());
        let limit = Some(Duration::from_secs(7));
        assert_eq!(Test { limit, ..test() }.limit(), Duration::from_secs(7));
    }
}
