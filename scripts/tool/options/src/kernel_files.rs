//! The files that a Linux guest is started from, as far as they can be checked before.

use std::fmt::Display;
use std::fs;
use std::io::Read;
use std::path::Path;

use super::usage;
use emulator::error::ToolError;
use emulator::size::Size;
use records::kernel::{FIRMWARE_BYTES, KernelError, check_firmware, check_kernel};

/// The longest command line of an arm64 kernel.
const LONGEST_COMMAND_LINE: usize = 2047;
/// Room in the machine's RAM for the files of Debian's kernel and busybox.
pub const KERNEL_ROOM: u64 = 64 << 20;
pub const INITRD_ROOM: u64 = 16 << 20;
/// What the hypervisor puts into the guest's memory beside kernel and initrd, at most.
const OTHERS: u64 = 4 << 20;

fn refused(option: &str, path: &Path, why: impl Display) -> ToolError {
    let space = if option.ends_with('=') { "" } else { " " };
    ToolError::Usage(format!("{option}{space}{}: {why}", path.display()))
}

/// Opens the file that `option` names. Gives its size, too.
fn open(option: &str, path: &Path) -> Result<(fs::File, u64), ToolError> {
    let file = fs::File::open(path).map_err(|error| refused(option, path, error))?;
    let found = (file.metadata()).map_err(|error| refused(option, path, error))?;
    match found.is_file() {
        true => Ok((file, found.len())),
        false => Err(refused(option, path, "it isn't a file")),
    }
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

/// Checks the file that `option` names. Gives its size.
pub fn check_initrd(option: &str, path: &Path) -> Result<u64, ToolError> {
    match open(option, path)? {
        (_, 0) => Err(refused(option, path, "it is empty")),
        (_, length) => Ok(length),
    }
}

/// Checks the kernel that `option` names, for a guest with so much memory, which `more` can increase, and an initrd of this size.
/// Gives its size.
pub fn check_kernel_file(
    option: &str,
    path: &Path,
    bytes: Size,
    initrd: u64,
    more: &str,
) -> Result<u64, ToolError> {
    let (image, length) = read(option, path, bytes.0)?;
    let checked = check_kernel(&image);
    // What was read of a kernel that has no room is a part of one.
    if let Ok(_) | Err(KernelError::Truncated { .. }) = checked {
        check_room(option, path, length, bytes.0)?;
    }
    let checked = checked.map_err(|error| refused(option, path, error))?;
    checked
        .check_fits(bytes.0, initrd.saturating_add(OTHERS))
        .map_err(|error| {
            let with = if initrd == 0 {
                ""
            } else {
                " beside the initrd"
            };
            refused(option, path, format!("{error}{with}; {more} gives it more"))
        })?;
    Ok(image.len() as u64)
}

/// Checks the firmware that `option` names. Gives its size.
pub fn check_firmware_file(option: &str, path: &Path) -> Result<u64, ToolError> {
    let (image, length) = read(option, path, FIRMWARE_BYTES)?;
    check_firmware(&image).map_err(|error| refused(option, path, error))?;
    check_room(option, path, length, FIRMWARE_BYTES)?;
    Ok(image.len() as u64)
}
