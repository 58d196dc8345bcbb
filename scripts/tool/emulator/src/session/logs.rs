//! What guests print, in a file for each.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::ToolError;

/// The files in a folder.
#[derive(Debug)]
pub struct Logs {
    folder: PathBuf,
    files: BTreeMap<String, File>,
    /// Why one couldn't be written.
    failed: Option<String>,
}

impl Logs {
    /// Those of the guests of these names. The folder is made if there is none, and what the files held is gone.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the one of them, or the folder, that can't be written.
    pub fn create<'n>(
        folder: &Path,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<Self, ToolError> {
        let refused = |path: &Path, error| ToolError::Usage(unwritable(path, &error));
        fs::create_dir_all(folder).map_err(|error| refused(folder, error))?;
        let mut files = BTreeMap::new();
        for name in names {
            let path = file(folder, name);
            let made = File::create(&path).map_err(|error| refused(&path, error))?;
            files.insert(name.to_string(), made);
        }
        Ok(Self {
            folder: folder.into(),
            files,
            failed: None,
        })
    }

    /// Adds what a guest has printed.
    pub fn add(&mut self, name: &str, bytes: &[u8]) {
        let Some(log) = self.files.get_mut(name) else {
            return;
        };
        if let Err(error) = log.write_all(bytes) {
            self.failed = Some(unwritable(&file(&self.folder, name), &error));
        }
    }

    /// Why a file is incomplete, if one is.
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }
}

fn unwritable(path: &Path, error: &io::Error) -> String {
    format!("--console-log {}: {error}", path.display())
}

fn file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn each_guest_has_a_file_of_its_own() {
        let folder = TempDir::new().expect("room for a folder");
        let logs = folder.path().join("made");
        fs::create_dir(&logs).expect("the folder is ours");
        fs::write(logs.join("a.log"), "old").expect("the folder is ours");
        let mut logs = Logs::create(&logs, ["a", "b"]).expect("the folder is ours");
        logs.add("b", b"one\0");
        logs.add("b", b"\xff\n");
        logs.add("../c", b"nowhere");
        assert_eq!(logs.failure(), None);
        let read = |name: &str| fs::read(folder.path().join("made").join(name)).expect("a file");
        assert_eq!(
            (read("a.log"), read("b.log")),
            (b"".into(), b"one\0\xff\n".into())
        );
        assert!(!folder.path().join("c.log").exists());
    }

    #[test]
    fn what_cant_be_written_is_named_with_its_option() {
        let said = Logs::create(Path::new("/dev/null/logs"), ["a"]).expect_err("no folder");
        let said = said.to_string();
        assert!(said.starts_with("--console-log /dev/null/logs: "), "{said}");
        let folder = TempDir::new().expect("room for a folder");
        let taken = folder.path().join("a.log");
        fs::create_dir(&taken).expect("the folder is ours");
        let said = Logs::create(folder.path(), ["b", "a"]).expect_err("a folder");
        let says = format!("--console-log {}: Is a directory", taken.display());
        assert!(said.to_string().starts_with(&says), "{said}");
    }

    #[test]
    fn a_full_disk_is_said_of_the_file_and_its_option() {
        let folder = TempDir::new().expect("room for a folder");
        let full = folder.path().join("a.log");
        std::os::unix::fs::symlink("/dev/full", &full).expect("the folder is ours");
        let mut logs = Logs::create(folder.path(), ["a"]).expect("it can be opened");
        logs.add("a", b"lost");
        let says = format!("--console-log {}: No space left", full.display());
        let said = logs.failure().expect("it is full");
        assert!(said.starts_with(&says), "{said}");
    }
}
