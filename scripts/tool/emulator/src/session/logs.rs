//! What guests print, in a file for each.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

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
    /// If one of them can't be written.
    pub fn create<'n>(folder: &Path, names: impl IntoIterator<Item = &'n str>) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut files = BTreeMap::new();
        for name in names {
            files.insert(name.to_string(), File::create(file(folder, name))?);
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
            let path = file(&self.folder, name);
            self.failed = Some(format!("{}: {error}", path.display()));
        }
    }

    /// Why a file is incomplete, if one is.
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }
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
    fn a_folder_that_cant_be_is_an_error() {
        assert!(Logs::create(Path::new("/dev/null/logs"), ["a"]).is_err());
    }
}
