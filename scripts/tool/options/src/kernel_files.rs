//! The files that a Linux guest is started from, as far as they can be checked before.

use std::fmt::Display;
use std::fs;
use std::io::Read;
use std::path::Path;

use super::usage;
use emulator::error::ToolError;
use emulator::size::{Size, mib};
use records::kernel::{FIRMWARE_BYTES, KernelError, check_firmware, check_kernel};

/// The longest command line of an arm64 kernel.
const LONGEST_COMMAND_LINE: usize = 2047;
/// Room in the machine's RAM for the file of Debian's kernel.
pub const KERNEL_ROOM: u64 = 64 << 20;
/// The same for busybox.
pub const INITRD_ROOM: u64 = 16 << 20;
/// What the hypervisor puts into the guest's memory beside kernel and initrd, at most.
const OTHERS: u64 = 4 << 20;

fn refused(option: &str, path: &Path, why: impl Display) -> ToolError {
    let space = if option.ends_with('=') { "" } else { " " };
    ToolError::Usage(format!("{option}{space}{}: {why}", path.display()))
}

/// Opens the file that `option` names. Gives its size, too. Anything else isn't opened: a pipe that nobody writes to would hold up
/// who opens it.
fn open(option: &str, path: &Path) -> Result<(fs::File, u64), ToolError> {
    let found = fs::metadata(path).map_err(|error| refused(option, path, error))?;
    if !found.is_file() {
        return Err(refused(option, path, "it isn't a file"));
    }
    let file = fs::File::open(path).map_err(|error| refused(option, path, error))?;
    Ok((file, found.len()))
}

/// Reads the whole file that `option` names.
///
/// # Errors
///
/// [`ToolError::Usage`] naming it.
pub fn read_whole(option: &str, path: &Path) -> Result<Vec<u8>, ToolError> {
    read(option, path, u64::MAX).map(|(bytes, _)| bytes)
}

/// Reads a file as far as there is room for it. Gives its size, too.
fn read(option: &str, path: &Path, room: u64) -> Result<(Vec<u8>, u64), ToolError> {
    let (file, length) = open(option, path)?;
    let mut bytes = Vec::new();
    match file.take(room).read_to_end(&mut bytes) {
        Ok(_) => Ok((bytes, length)),
        Err(error) => Err(refused(option, path, error)),
    }
}

/// Checks that a file of this size was read to its end. What was read of it is what it should be.
fn check_room(option: &str, path: &Path, length: u64, room: u64) -> Result<(), ToolError> {
    match length <= room {
        true => Ok(()),
        false => {
            let why = format!("it has {length} bytes, and there is room for {room}");
            Err(refused(option, path, why))
        }
    }
}

/// Checks that a kernel wouldn't cut its command line.
pub fn check_length(option: &str, line: &str) -> Result<(), ToolError> {
    match line.len() {
        ..=LONGEST_COMMAND_LINE => Ok(()),
        length => usage(format!(
            "{option}: {length} bytes: a kernel's command line has at most {LONGEST_COMMAND_LINE}"
        )),
    }
}

/// An initrd that there is.
#[derive(Clone, Debug)]
pub struct Initrd<'p> {
    option: String,
    path: &'p Path,
    /// Its size.
    pub length: u64,
}

impl<'p> Initrd<'p> {
    /// Checks the file that `option` names.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming it.
    pub fn check(option: &str, path: &'p Path) -> Result<Self, ToolError> {
        match open(option, path)? {
            (_, 0) => Err(refused(option, path, "it is empty")),
            (_, length) => Ok(Self {
                option: option.into(),
                path,
                length,
            }),
        }
    }
}

/// Checks the kernel that `option` names, for a guest with so much memory, which `more` can increase, and this initrd. Gives its
/// size.
pub fn check_kernel_file(
    option: &str,
    path: &Path,
    bytes: Size,
    initrd: Option<&Initrd<'_>>,
    more: &str,
) -> Result<u64, ToolError> {
    let (image, length) = read(option, path, bytes.0)?;
    let checked = check_kernel(&image);
    // What was read of a kernel that has no room is a part of one.
    if let Ok(_) | Err(KernelError::Truncated { .. }) = checked {
        check_room(option, path, length, bytes.0)?;
    }
    let checked = checked.map_err(|error| refused(option, path, error))?;
    (checked.check_fits(bytes.0, OTHERS))
        .map_err(|error| refused(option, path, format!("{error}; {more} gives it more")))?;
    if let Some(Initrd {
        option,
        path,
        length,
    }) = initrd
        && checked
            .check_fits(bytes.0, length.saturating_add(OTHERS))
            .is_err()
    {
        let why = format!(
            "the initrd has {length} bytes, which don't fit beside the kernel into the guest's {bytes} of memory; {more} gives \
             it more"
        );
        return Err(refused(option, path, why));
    }
    Ok(image.len() as u64)
}

/// Checks that a guest whose memory `option` says has room for Debian's kernel with this file system.
///
/// # Errors
///
/// [`ToolError::Usage`] naming the option and that memory.
pub fn check_room_for_debian(
    option: &str,
    bytes: Size,
    kernel: &Path,
    initrd: &Path,
) -> Result<(), ToolError> {
    let image = fs::read(kernel).map_err(|error| ToolError::unusable(kernel, &error))?;
    let found = fs::metadata(initrd).map_err(|error| ToolError::unusable(initrd, &error))?;
    let checked = check_kernel(&image)
        .map_err(|error| ToolError::Io(format!("{}: {error}", kernel.display())))?;
    let others = found.len().saturating_add(OTHERS);
    match checked.check_fits(bytes.0, others) {
        Ok(()) => Ok(()),
        Err(_) => {
            let end = checked.end().unwrap_or(u64::MAX).saturating_add(others);
            let least = Size(end.checked_next_multiple_of(mib(1).0).unwrap_or(end));
            usage(format!(
                "{option}{bytes}: Debian's kernel and its file system take at least {least} of memory"
            ))
        }
    }
}

/// Checks the firmware that `option` names. Gives its size.
pub fn check_firmware_file(option: &str, path: &Path) -> Result<u64, ToolError> {
    let (image, length) = read(option, path, FIRMWARE_BYTES)?;
    check_firmware(&image).map_err(|error| refused(option, path, error))?;
    check_room(option, path, length, FIRMWARE_BYTES)?;
    Ok(image.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use tempfile::TempDir;

    fn kernel(folder: &TempDir) -> PathBuf {
        let mut image = vec![0; 4096];
        image[16..24].copy_from_slice(&(8u64 << 20).to_le_bytes());
        image[56..60].copy_from_slice(b"ARM\x64");
        let path = folder.path().join("Image");
        fs::write(&path, image).expect("the folder is ours");
        path
    }

    #[test]
    fn a_pipe_is_refused_before_anybody_waits_for_its_writer() {
        let folder = TempDir::new().expect("room for a folder");
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("mkfifo starts").success());
        let says = |option: &str| format!("{option} {}: it isn't a file", pipe.display());
        let initrd = Initrd::check("--initrd", &pipe).expect_err("a pipe");
        assert_eq!(initrd.to_string(), says("--initrd"));
        let kernel = check_kernel_file("--kernel", &pipe, mib(64), None, "--bytes");
        assert_eq!(kernel.expect_err("a pipe").to_string(), says("--kernel"));
        let firmware = check_firmware_file("--firmware", &pipe).expect_err("a pipe");
        assert_eq!(firmware.to_string(), says("--firmware"));
        let guest = read_whole("--guest", &pipe).expect_err("a pipe");
        assert_eq!(guest.to_string(), says("--guest"));
    }

    #[test]
    fn what_has_no_room_is_named_whether_kernel_or_initrd() {
        let folder = TempDir::new().expect("room for a folder");
        let (kernel, large) = (kernel(&folder), folder.path().join("initrd"));
        let file = fs::File::create(&large).expect("the folder is ours");
        file.set_len(20 << 30).expect("it is sparse");
        let large = Initrd::check("--initrd", &large).expect("a file");
        let check =
            |bytes, initrd| check_kernel_file("--kernel", &kernel, bytes, initrd, "--bytes");
        let said = check(mib(512), Some(&large)).expect_err("20 GiB");
        let says = format!(
            "--initrd {}: the initrd has 21474836480 bytes, which don't fit beside the kernel into the guest's 512 MiB of memory; \
             --bytes gives it more",
            large.path.display()
        );
        assert_eq!(said.to_string(), says);
        for initrd in [None, Some(&large)] {
            let said = check(mib(8), initrd).expect_err("no room").to_string();
            assert!(
                said.starts_with(&format!("--kernel {}: ", kernel.display())),
                "{said}"
            );
        }
        assert_eq!(check(mib(12), None), Ok(4096));
    }

    #[test]
    fn memory_that_is_too_little_for_debian_is_said_as_the_user_chose_it() {
        let folder = TempDir::new().expect("room for a folder");
        let (kernel, initrd) = (kernel(&folder), folder.path().join("initrd"));
        fs::write(&initrd, [0; 4096]).expect("the folder is ours");
        let check = |bytes| check_room_for_debian("--bytes ", bytes, &kernel, &initrd);
        let said = check(mib(1)).expect_err("too little").to_string();
        let says =
            "--bytes 1 MiB: Debian's kernel and its file system take at least 13 MiB of memory";
        assert_eq!(said, says);
        assert!(check(Size((12 << 20) + 4095)).is_err());
        assert_eq!(check(Size((12 << 20) + 4096)), Ok(()));
    }
}
