//! The guest that measures operations under KVM, and a Linux that only boots: their file systems and machines. Starts nothing.

use std::fs;
use std::path::Path;

use super::cache::Cache;
use super::initramfs::archive;
use super::{Kernel, Series, fetched};
use emulator::error::ToolError;
use emulator::files::replace;
use emulator::qemu::{Gic, Machine};
use emulator::simclock::Simulation;
use emulator::size::mib;

/// The first program where KVM is measured.
const INIT: &str = include_str!("micro-init.sh");
/// CPUs beside those of the vCPUs: for all else that Linux does.
const FURTHER_CPUS: u32 = 1;
/// Where QEMU puts an initial file system, whose tree is the guest's, in a machine with 256 MiB of RAM or more.
const INITRD: u64 = 0x4800_0000;
/// RAM of the machine in which KVM boots Linux.
const BOOT_MACHINE_MIB: u64 = 1536;

/// What is measured under KVM.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'g> {
    /// The user of KVM that runs it.
    pub vmm: &'g Path,
    /// Its image.
    pub image: &'g Path,
    /// Its device trees by their names, which end with `.dtb`: it runs once with each, in the order of these.
    pub trees: &'g [(String, Vec<u8>)],
    /// Its vCPUs.
    pub vcpus: u32,
}

/// The kernel of a series with two file systems.
#[derive(Clone, Debug)]
pub struct Micro {
    /// For measuring KVM.
    pub measuring: Kernel,
    /// The first program tells the time and switches off.
    pub booting: Kernel,
}

/// Fetches what is missing of the newest kernel of `series`, and writes the file systems.
///
/// # Errors
///
/// As [`super::prepare`], but nothing is built.
pub fn prepare_micro(
    series: Series,
    guest: &Guest<'_>,
    progress: impl Fn(&str),
) -> Result<Micro, ToolError> {
    let cache = fetched(&[series], false, &progress)?;
    let read = |path: &Path| fs::read(path).map_err(|error| ToolError::unusable(path, &error));
    let vmm = read(guest.vmm)?;
    let mut files = vec![
        ("init", INIT.into()),
        ("busybox", read(&cache.path("busybox"))?),
        ("vmm", vmm.clone()),
        ("guest", read(guest.image)?),
    ];
    let trees = guest.trees.iter();
    files.extend(trees.map(|(name, tree)| (name.as_str(), tree.clone())));
    let name = format!("micro-{}.cpio", guest.vcpus);
    Ok(Micro {
        measuring: keep(&cache, series, &name, files)?,
        booting: keep(&cache, series, "boot.cpio", vec![("init", vmm)])?,
    })
}

fn keep(
    cache: &Cache,
    series: Series,
    name: &str,
    files: Vec<(&str, Vec<u8>)>,
) -> Result<Kernel, ToolError> {
    let path = cache.path(name);
    archive(files)
        .and_then(|archive| replace(&path, &archive))
        .map_err(|error| ToolError::unusable(&path, &error))?;
    cache.kernel(&series, &path)
}

impl Micro {
    /// The machine on which KVM boots [`booting`](Self::booting) as a guest with one vCPU, with this device tree and `mebibytes` of
    /// RAM, and counts its exits.
    ///
    /// # Errors
    ///
    /// [`ToolError::Io`] if a file can't be read or written.
    pub fn boot_machine(
        &self,
        series: Series,
        vmm: &Path,
        tree: &[u8],
        mebibytes: u64,
        like: Machine,
    ) -> Result<Machine, ToolError> {
        let cache = fetched(&[series], false, &|_: &str| {})?;
        let read = |path: &Path| fs::read(path).map_err(|error| ToolError::unusable(path, &error));
        let files = vec![
            ("init", INIT.into()),
            ("busybox", read(&cache.path("busybox"))?),
            ("vmm", read(vmm)?),
            ("linux", read(&self.booting.image)?),
            ("boot.cpio", read(&self.booting.initramfs)?),
            ("linux.dtb", tree.to_vec()),
        ];
        let kernel = keep(&cache, series, "micro-boot.cpio", files)?;
        let words = format!("LINUX=/linux.dtb MIB={mebibytes} INITRD={INITRD}");
        Ok(Machine {
            cpus: 1 + FURTHER_CPUS,
            memory: mib(BOOT_MACHINE_MIB),
            append: format!("console=ttyAMA0 quiet panic=-1 isolcpus=1 {words}"),
            extra: vec!["-initrd".into(), kernel.initramfs.into()],
            ..like
        })
    }

    /// The machine on which KVM runs guests of so many vCPUs, each on a CPU of its own.
    pub fn machine(
        &self,
        emulator: &Path,
        cpu: &str,
        vcpus: u32,
        simulation: &Simulation,
    ) -> Machine {
        Machine {
            emulator: emulator.into(),
            cpu: cpu.into(),
            gic: Gic::V3,
            cpus: vcpus + FURTHER_CPUS,
            memory: mib(768),
            el2: true,
            kernel: Some(self.measuring.image.clone()),
            append: format!("console=ttyAMA0 quiet panic=-1 isolcpus=1-{vcpus} VCPUS={vcpus}"),
            modules: Vec::new(),
            debugger: None,
            // Without a cost of cache lines it doesn't matter whose instructions take part.
            simulation: Some((simulation.clone(), 0..0)),
            extra: vec!["-initrd".into(), self.measuring.initramfs.clone().into()],
        }
    }
}
