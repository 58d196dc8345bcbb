//! The files that a Linux guest is started from, as far as they can be checked before.

use std::fmt::Display;
use std::fs;
use std::io::Read;
use std::path::Path;

use super::usage;
use emulator::error::ToolError;
use emulator::size::Size;
use records::kernel::{FIRMWARE_BYTES, check_firmware, check_kernel};

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

/// Reads a file that can have so many bytes.
fn read(option: &str, path: &Path, most: u64) -> Result<Vec<u8>, ToolError> {
    let mut file = fs::File::open(path).map_err(|error| refused(option, path, error))?;
    let found = (file.metadata()).map_err(|error| refused(option, path, error))?;
    if !found.is_file() {
        return Err(refused(option, path, "it isn't a file"));
    }
    if found.len() > most {
        let length = found.len();
        let why = format!("it has {length} bytes, and there is room for {most}");
        return Err(refused(option, path, why));
    }
    let mut bytes = Vec::new();
    match file.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(refused(option, path, error)),
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
    match fs::File::open(path).and_then(|file| file.metadata()) {
        Err(error) => Err(refused(option, path, error)),
        Ok(found) if !found.is_file() => Err(refused(option, path, "it isn't a file")),
        Ok(found) if found.len() == 0 => Err(refused(option, path, "it is empty")),
        Ok(found) => Ok(found.len()),
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
    let image = read(option, path, bytes.0)?;
    let checked = check_kernel(&image).map_err(|error| refused(option, path, error))?;
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
    let image = read(option, path, FIRMWARE_BYTES)?;
    check_firmware(&image).map_err(|error| refused(option, path, error))?;
    Ok(image.len() as u64)
}
