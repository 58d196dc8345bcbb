//! Linux for the emulator that Parvisor runs in: the kernel's own `dirty_log_perf_test` under KVM to measure beside
//! ([`prepare`], [`run()`]), and Linux as a guest of Parvisor ([`prepare_guest`]),
//! or U-Boot ([`prepare_firmware`]).
//!
//! What is needed comes from the Debian registry that this machine installs from, through an apt root of its own, and
//! the machine stays as it is: no rights are needed and nothing is installed. [`prepare`] fetches Debian's arm64 kernels,
//! busybox, the kernel's source and a cross compiler, builds the test, and keeps under `target/linux` only what runs
//! (some 70 MB for two kernels); [`prepare_guest`] needs a kernel and busybox alone. Nothing of Linux is in this repository;
//! ours are `init.sh`, the first program of the measured system, `guest-init.sh` and `guest-session.sh`, those of a guest, and
//! `calls.c`, which is linked into the test so that one test runs on all kernels. To have newer kernels fetched, remove
//! `target/linux`.
//!
//! | file | concept |
//! |---|---|
//! | `packages` | the private apt root |
//! | `releases` | which kernel of a series is the newest |
//! | `selftest` | the test, built from the kernel's source |
//! | `initramfs` | the first programs of the measured kernel |
//! | `guest` | those of a guest, and its shell or command |
//! | `cache` | the files that are kept from one run to the next |
//! | `micro` | the guest that measures operations, under KVM |
//! | `test` | a run of the benchmark: its machine and command line |
//! | `run` | one measurement and its record |
//! | `command` | a program that is run to its end, within a limit |
//!
//! Two processes may prepare at the same time: one waits for the other. Any number may [`run()`] at once.
//!
//! # How good the times are
//!
//! Each vCPU and the test's main thread, which spins, have a CPU to themselves (`isolcpus`), and one more is left for the rest of
//! Linux. Threads begin on their own CPU (`calls.c`). Otherwise they share CPUs with threads of the kernel and with each other,
//! and times come in steps of one scheduler tick (4 ms). Even so the first iterations can include work that Linux does once: take
//! the minimum over several iterations. Take enough memory, too, for an iteration to last longer than a tick: 8 MiB for each vCPU
//! on simulated time, 64 MiB without. With manual clearing the log begins with all pages set, so iteration 1 has no faults at all, and
//! iteration 2 is the first one that dirties (and the one that splits blocks).

mod cache;
mod command;
mod guest;
mod initramfs;
mod micro;
mod packages;
mod releases;
mod run;
mod selftest;
mod test;

use std::path::PathBuf;

pub use self::guest::{Session, prepare_guest};
pub use self::micro::{Guest, Micro, prepare_micro};
pub use self::run::run;
pub use self::test::{Backing, Test};

use self::cache::Cache;
use self::packages::Packages;
use emulator::error::ToolError;
pub use options::series::Series;

/// A kernel that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its series, as in `6.12`.
    pub series: String,
    /// Its version, as in `6.12.117`.
    pub version: String,
    /// The file that the emulator starts.
    pub image: PathBuf,
    /// The file system that it starts with: the test, busybox, and our first program.
    pub initramfs: PathBuf,
}

/// Fetches and builds what is missing of the newest kernels of the series `wanted` (as in `6.12`) and of the test; gives
/// the kernels in the order of `wanted`, each once. What is there already needs no network. `progress` is told what is
/// being done, a few words at a time.
///
/// # Errors
///
/// [`ToolError::Usage`] for what isn't to be had, with what is; [`ToolError::Setup`] where this system
/// isn't Debian, the network fails, or the test can't be built.
pub fn prepare(wanted: &[Series], progress: impl Fn(&str)) -> Result<Vec<Kernel>, ToolError> {
    let mut series: Vec<Series> = Vec::new();
    for one in wanted {
        if !series.contains(one) {
            series.push(*one);
        }
    }
    let cache = fetched(&series, true, &progress)?;
    let initramfs = initramfs::write(&cache)?;
    series
        .iter()
        .map(|series| cache.kernel(series, &initramfs))
        .collect()
}

/// Fetches Debian's U-Boot for QEMU's virt machine if it isn't there; gives its path. `progress` is told what is being done.
///
/// # Errors
///
/// [`ToolError::Setup`] where this system isn't Debian, or the network fails.
pub fn prepare_firmware(progress: impl Fn(&str)) -> Result<PathBuf, ToolError> {
    let mut cache = Cache::open()?;
    if cache.firmware().is_none() {
        staged(&mut cache, &progress, |cache, packages| {
            progress("fetching U-Boot");
            cache.keep_firmware(&packages.fetch("u-boot-qemu", None)?)
        })?;
    }
    let firmware = cache.firmware();
    firmware.ok_or_else(|| ToolError::Io("u-boot.bin: it is gone again".into()))
}

/// The cache with the kernels of `series`, with busybox, and with the test if that is wanted.
fn fetched(
    series: &[Series],
    with_test: bool,
    progress: &impl Fn(&str),
) -> Result<Cache, ToolError> {
    let mut cache = Cache::open()?;
    if !(cache.has_system(series) && (cache.has_test() || !with_test)) {
        staged(&mut cache, progress, |cache, packages| {
            fetch(cache, packages, series, with_test, progress)
        })?;
    }
    Ok(cache)
}

/// Fetches by `fetch` what is missing of the cache, with packages in a folder that is there meanwhile.
fn staged(
    cache: &mut Cache,
    progress: &impl Fn(&str),
    fetch: impl FnOnce(&mut Cache, &Packages) -> Result<(), ToolError>,
) -> Result<(), ToolError> {
    progress("reading Debian's package lists");
    let staging = cache.empty_staging()?;
    let fetched = Packages::open(&staging).and_then(|packages| fetch(cache, &packages));
    cache.remove_staging()?;
    fetched
}

/// Fetches the missing parts of the cache. If one fails, the earlier ones are kept.
fn fetch(
    cache: &mut Cache,
    packages: &Packages,
    series: &[Series],
    with_test: bool,
    progress: &impl Fn(&str),
) -> Result<(), ToolError> {
    let kernels = packages.kernels()?;
    let chosen = releases::choose(&kernels, series)?;
    for release in chosen {
        if !cache.has_kernel(&release.series) {
            progress(&format!("fetching Linux {}", release.version));
            let files = packages.fetch(&release.package, Some(&release.package_version))?;
            cache.keep_kernel(release, &files)?;
        }
    }
    if !cache.has_busybox() {
        progress("fetching busybox");
        cache.keep_busybox(&packages.fetch("busybox-static:arm64", None)?)?;
    }
    if with_test && !cache.has_test() {
        let test = selftest::build(packages, progress)?;
        cache.keep_test(&test)?;
    }
    Ok(())
}
