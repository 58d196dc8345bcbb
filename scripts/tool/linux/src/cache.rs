//! The files that are kept under `target/linux` from one run to the next. A complete file is renamed into its place, and then
//! listed with its length in `versions.json`. So a part of a file is never taken for the whole.
//!
//! One process at a time holds the folder; others wait for its lock.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::Kernel;
use super::packages::remove;
use super::releases::Release;
use super::selftest::CALLS;
use emulator::error::ToolError;
use emulator::repository::target_folder;
use options::series::Series;

/// The form of the folder; another one is built anew.
const FORMAT: u32 = 1;

/// The folder, locked.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    versions: Versions,
    /// Unlocks the folder when it is dropped.
    _lock: Flock<File>,
}

/// The contents of `versions.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Versions {
    format: u32,
    kernels: Vec<Kept>,
    busybox: Option<Part>,
    test: Option<Part>,
    #[serde(default)]
    firmware: Option<Part>,
    /// Our own part of the test at its build. If it has changed since, the test is built again.
    calls: String,
}

/// A kernel that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    series: String,
    version: String,
    image: Part,
}

/// A file that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    /// Its name in the folder.
    name: String,
    bytes: u64,
}

impl Default for Versions {
    fn default() -> Self {
        Self {
            format: FORMAT,
            kernels: Vec::new(),
            busybox: None,
            test: None,
            firmware: None,
            calls: String::new(),
        }
    }
}

impl Cache {
    /// Opens `target/linux`, or makes it; waits for others that use it.
    ///
    /// # Errors
    ///
    /// [`ToolError::Io`] if the folder can't be used.
    pub fn open() -> Result<Self, ToolError> {
        Self::open_at(target_folder().join("linux"))
    }

    fn open_at(folder: PathBuf) -> Result<Self, ToolError> {
        let lock = open_lock(&folder).map_err(|error| ToolError::unusable(&folder, &error))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, error)| ToolError::unusable(&folder, &error.into()))?;
        let text = fs::read_to_string(folder.join("versions.json")).unwrap_or_default();
        // A file that can't be read or has another format counts as empty.
        let versions: Versions = serde_json::from_str(&text).unwrap_or_default();
        let versions = if versions.format == FORMAT {
            versions
        } else {
            Versions::default()
        };
        Ok(Self {
            folder,
            versions,
            _lock: lock,
        })
    }

    /// Whether the kernels of `series` and busybox are there.
    pub fn has_system(&self, series: &[Series]) -> bool {
        self.has_busybox() && series.iter().all(|series| self.has_kernel(series))
    }

    /// Whether a kernel of `series` is there.
    pub fn has_kernel(&self, series: &Series) -> bool {
        self.kept(series).is_some_and(|kept| self.has(&kept.image))
    }

    /// Whether busybox is there.
    pub fn has_busybox(&self) -> bool {
        self.versions
            .busybox
            .as_ref()
            .is_some_and(|part| self.has(part))
    }

    /// U-Boot, if it is there.
    pub fn firmware(&self) -> Option<PathBuf> {
        let kept = self.versions.firmware.as_ref();
        kept.filter(|part| self.has(part))
            .map(|part| self.path(&part.name))
    }

    /// Whether the test is there, with our part of it as it is now.
    pub fn has_test(&self) -> bool {
        self.versions.calls == CALLS
            && self
                .versions
                .test
                .as_ref()
                .is_some_and(|part| self.has(part))
    }

    /// A kernel that is there.
    ///
    /// # Errors
    ///
    /// [`ToolError::Io`] if it isn't.
    pub fn kernel(&self, series: &Series, initramfs: &Path) -> Result<Kernel, ToolError> {
        let kept = self.kept(series).ok_or_else(|| {
            ToolError::Io(format!("{}: no Linux {series}", self.folder.display()))
        })?;
        Ok(Kernel {
            series: kept.series.clone(),
            version: kept.version.clone(),
            image: self.folder.join(&kept.image.name),
            initramfs: initramfs.into(),
        })
    }

    /// Keeps the kernel of `release` from the files of its package.
    ///
    /// # Errors
    ///
    /// [`ToolError::Io`] if there is none in them, or it can't be kept.
    pub fn keep_kernel(&mut self, release: &Release, files: &Path) -> Result<(), ToolError> {
        let boot = files.join("boot");
        let entries = fs::read_dir(&boot).map_err(|error| ToolError::unusable(&boot, &error))?;
        let is_kernel = |path: &PathBuf| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        };
        let image = entries.flatten().map(|entry| entry.path()).find(is_kernel);
        let image =
            image.ok_or_else(|| ToolError::Io(format!("{}: no kernel in it", release.package)))?;
        let kept = Kept {
            series: release.series.to_string(),
            version: release.version.clone(),
            image: self.keep(&image, &format!("linux-{}", release.version))?,
        };
        self.versions
            .kernels
            .retain(|other| other.series != kept.series);
        self.versions.kernels.push(kept);
        self.save()
    }

    /// Keeps busybox from the files of its package.
    ///
    /// # Errors
    ///
    /// [`ToolError::Io`] if it isn't in them, or can't be kept.
    pub fn keep_busybox(&mut self, files: &Path) -> Result<(), ToolError> {
        let places = ["bin/busybox", "usr/bin/busybox"].map(|place| files.join(place));
        let busybox = places.iter().find(|path| path.is_file());
        let busybox =
            busybox.ok_or_else(|| ToolError::Io("busybox-static: no busybox in it".into()))?;
        self.versions.busybox = Some(self.keep(busybox, "busybox")?);
        self.save()
    }

    /// Keeps U-Boot from the files of its package.
    ///
    /// # Errors
    ///
    /// [`ToolError::Io`] if it isn't in them, or can't be kept.
    pub fn keep_firmware(&mut self, files: &Path) -> Result<(), ToolError> {
        let firmware = files.join("usr/lib/u-boot/qemu_arm64/u-boot.bin");
        self.versions.firmware = Some(self.keep(&firmware, "u-boot.bin")?);
        self.save()
    }

    /// Keeps the test.
    ///
    /// # Errors
    ///
    /// [`ToolError::Io`] if it can't be kept.
    pub fn keep_test(&mut self, test: &Path) -> Result<(), ToolError> {
        self.versions.test = Some(self.keep(test, "dirty_log_perf_test")?);
        self.versions.calls = CALLS.into();
        self.save()
    }

    /// The path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// An empty folder for fetching and building. The files of earlier processes are removed.
    ///
    /// # Errors
    ///
    /// [`ToolError::Setup`] or [`ToolError::Io`] if there can be none.
    pub fn empty_staging(&self) -> Result<PathBuf, ToolError> {
        self.remove_staging()?;
        let staging = self.folder.join("staging");
        fs::create_dir(&staging).map_err(|error| ToolError::unusable(&staging, &error))?;
        Ok(staging)
    }

    /// Removes that folder.
    ///
    /// # Errors
    ///
    /// [`ToolError::Setup`] if something in it can't be removed.
    pub fn remove_staging(&self) -> Result<(), ToolError> {
        remove(&self.folder.join("staging"))
    }

    fn kept(&self, series: &Series) -> Option<&Kept> {
        let series = series.to_string();
        self.versions
            .kernels
            .iter()
            .find(|kept| kept.series == series)
    }

    fn has(&self, part: &Part) -> bool {
        let metadata = fs::metadata(self.folder.join(&part.name));
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == part.bytes)
    }

    /// Moves a complete file into the folder.
    fn keep(&self, file: &Path, name: &str) -> Result<Part, ToolError> {
        let place = self.folder.join(name);
        let moved = fs::rename(file, &place).and_then(|()| fs::metadata(&place));
        let bytes = moved
            .map_err(|error| ToolError::unusable(file, &error))?
            .len();
        Ok(Part {
            name: name.into(),
            bytes,
        })
    }

    fn save(&self) -> Result<(), ToolError> {
        let place = self.folder.join("versions.json");
        let partial = self.folder.join("versions.json.partial");
        let text = serde_json::to_string_pretty(&self.versions).map_err(io::Error::from);
        text.and_then(|text| fs::write(&partial, text + "\n"))
            .and_then(|()| fs::rename(&partial, &place))
            .map_err(|error| ToolError::unusable(&place, &error))
    }
}

fn open_lock(folder: &Path) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release() -> Release {
        let line = "linux-image-6.12.117+deb12-cloud-arm64:arm64 | 6.12.117-1~deb12u1 | here";
        Release::parse(line).expect("a kernel")
    }

    fn file(folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
        fs::write(&path, "contents").expect("it can be written");
        path
    }

    fn full(folder: &Path) -> Cache {
        let mut cache = Cache::open_at(folder.into()).expect("it can be made");
        let staging = cache.empty_staging().expect("it can be made");
        file(&staging, "kernel/boot/vmlinuz-6.12.117+deb12-cloud-arm64");
        file(&staging, "kernel/boot/config-6.12.117+deb12-cloud-arm64");
        file(&staging, "busybox/usr/bin/busybox");
        cache
            .keep_kernel(&release(), &staging.join("kernel"))
            .expect("it is there");
        cache
            .keep_busybox(&staging.join("busybox"))
            .expect("it is there");
        cache
            .keep_test(&file(&staging, "test"))
            .expect("it is there");
        cache.remove_staging().expect("it can be removed");
        cache
    }

    #[test]
    fn what_was_kept_is_there_the_next_time() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(full(folder.path()));
        let cache = Cache::open_at(folder.path().into()).expect("it is there");
        assert!(cache.has_test() && cache.has_system(&[release().series]));
        let kernel = cache
            .kernel(&release().series, Path::new("i"))
            .expect("it is there");
        assert_eq!((&*kernel.series, &*kernel.version), ("6.12", "6.12.117"));
        assert_eq!(
            fs::read_to_string(kernel.image).expect("it is there"),
            "contents"
        );
        let other = Series::parse("6.1").expect("a series");
        assert!(!cache.has_system(&[release().series, other]));
        assert!(cache.kernel(&other, Path::new("i")).is_err());
    }

    #[test]
    fn firmware_is_kept_beside_what_an_older_list_names() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(full(folder.path()));
        let versions = folder.path().join("versions.json");
        let text = fs::read_to_string(&versions).expect("it is there");
        let older = text.replace("\"firmware\": null,", "");
        assert_ne!(text, older);
        fs::write(&versions, older).expect("it can be written");
        let mut cache = Cache::open_at(folder.path().into()).expect("it is there");
        assert!(cache.has_busybox() && cache.firmware().is_none());
        assert!(cache.keep_firmware(folder.path()).is_err());
        let files = cache.empty_staging().expect("it can be made");
        file(&files, "usr/lib/u-boot/qemu_arm64/u-boot.bin");
        cache.keep_firmware(&files).expect("it is there");
        drop(cache);
        let cache = Cache::open_at(folder.path().into()).expect("it is there");
        let kept = cache.firmware().expect("it is there");
        assert_eq!(fs::read_to_string(kept).expect("a file"), "contents");
    }

    #[test]
    fn a_part_that_was_cut_short_or_lost_is_missing() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = full(folder.path());
        fs::write(cache.path("busybox"), "cont").expect("it can be written");
        assert!(!cache.has_busybox() && cache.has_test() && cache.has_kernel(&release().series));
        fs::remove_file(cache.path("dirty_log_perf_test")).expect("it is there");
        assert!(!cache.has_test());
    }

    #[test]
    fn a_test_with_another_part_of_ours_is_built_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut cache = full(folder.path());
        cache.versions.calls.push('x');
        assert!(!cache.has_test());
    }

    #[test]
    fn versions_that_cannot_be_read_count_as_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(full(folder.path()));
        let versions = folder.path().join("versions.json");
        let text = fs::read_to_string(&versions).expect("it is there");
        for text in ["", "{", &text.replace("\"format\": 1", "\"format\": 0")] {
            fs::write(&versions, text).expect("it can be written");
            let cache = Cache::open_at(folder.path().into()).expect("it is there");
            assert!(
                !cache.has_busybox() && !cache.has_kernel(&release().series),
                "{text}"
            );
        }
    }

    #[test]
    fn what_was_left_of_a_fetch_is_gone_before_the_next() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open_at(folder.path().into()).expect("it can be made");
        let left = file(
            &cache.empty_staging().expect("it can be made"),
            "a/partial.deb",
        );
        cache.empty_staging().expect("it can be made");
        assert!(!left.exists());
    }
}
