//! The file system that the measured kernel starts with: three files.
//!
//! Made anew at each [`super::prepare`], as it takes a moment only; replaced as a whole, so that a machine which starts at the
//! same time sees the old one or the new one.

use std::fs;
use std::io::Cursor;
use std::path::PathBuf;

use cpio::{NewcBuilder, write_cpio};

use super::cache::Cache;
use emulator::error::ToolError;
use emulator::files::replace;

/// The first program.
const INIT: &str = include_str!("init.sh");
/// A regular file that everybody may read and run.
const PROGRAM: u32 = 0o100_755;

/// Writes it; gives its path.
///
/// # Errors
///
/// [`ToolError::Io`] if a part can't be read or the file can't be written.
pub fn write(cache: &Cache) -> Result<PathBuf, ToolError> {
    let read = |name: &str| {
        let path = cache.path(name);
        fs::read(&path).map_err(|error| ToolError::unusable(&path, &error))
    };
    let files = vec![
        ("init", INIT.as_bytes().to_vec()),
        ("busybox", read("busybox")?),
        ("dirty_log_perf_test", read("dirty_log_perf_test")?),
    ];
    let path = cache.path("initramfs.cpio");
    archive(files)
        .and_then(|archive| replace(&path, &archive))
        .map_err(|error| ToolError::unusable(&path, &error))?;
    Ok(path)
}

/// An archive of programs by name.
pub fn archive(files: Vec<(&str, Vec<u8>)>) -> std::io::Result<Vec<u8>> {
    let entries = files
        .into_iter()
        .map(|(name, contents)| (NewcBuilder::new(name).mode(PROGRAM), Cursor::new(contents)));
    write_cpio(entries, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_archive_holds_programs_by_name() {
        let archive = archive(vec![
            ("init", b"one".to_vec()),
            ("busybox", b"other".to_vec()),
        ]);
        let archive = archive.expect("nothing to fail");
        let mut reader = cpio::NewcReader::new(&archive[..]).expect("an entry");
        assert_eq!(
            (reader.entry().name(), reader.entry().mode()),
            ("init", PROGRAM)
        );
        let mut contents = String::new();
        reader.read_to_string(&mut contents).expect("contents");
        assert_eq!(contents, "one");
        let reader = cpio::NewcReader::new(reader.finish().expect("more")).expect("an entry");
        assert_eq!(reader.entry().name(), "busybox");
    }
}
