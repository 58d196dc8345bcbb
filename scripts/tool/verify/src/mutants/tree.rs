//! The copy of the repository's sources that mutants are put into. The working tree itself is never changed, and what
//! happens in it after the copy was made doesn't matter.
//!
//! A file is written only if it differs, so that cargo builds again only what a mutant touches. Only one process at a
//! time works with a copy; a copy that an interrupted one left behind is put right when it is opened.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use emulator::repository::Files;

/// A copy of a source tree.
#[derive(Debug)]
pub struct Tree {
    folder: PathBuf,
    files: Files,
    _lock: Flock<File>,
}

impl Tree {
    /// A copy of `files` at `folder`.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] if another process has it; else whatever keeps files from being written.
    pub fn open(folder: &Path, files: Files) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let lock = File::create(folder.with_extension("lock"))?;
        let lock =
            Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)?;
        let tree = Self {
            folder: folder.into(),
            files,
            _lock: lock,
        };
        tree.hold(&Files::new())?;
        Ok(tree)
    }

    /// Its path.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The files as they were copied.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Makes the copy hold `changed` in the place of the files that were copied, and nothing that isn't a source: what
    /// tests have written there goes.
    ///
    /// # Errors
    ///
    /// Whatever keeps a file from being written or removed.
    pub fn hold(&self, changed: &Files) -> io::Result<()> {
        self.remove_others(&self.folder)?;
        for (path, original) in &self.files {
            let wanted = changed.get(path).unwrap_or(original);
            let copy = self.folder.join(path);
            if fs::read(&copy).is_ok_and(|present| present == *wanted) {
                continue;
            }
            if let Some(parent) = copy.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(copy, wanted)?;
        }
        Ok(())
    }

    fn remove_others(&self, folder: &Path) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                self.remove_others(&path)?;
            } else if !path
                .strip_prefix(&self.folder)
                .is_ok_and(|path| self.files.contains_key(path))
            {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that goes when the test ends.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let id = std::process::id();
            let folder = std::env::temp_dir().join(format!("parvisor-mutants-{name}-{id}"));
            Self(folder)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            // Left behind, it is in nobody's way.
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn files(contents: &[(&str, &str)]) -> Files {
        let file = |(path, text): &(&str, &str)| (PathBuf::from(path), text.as_bytes().to_vec());
        contents.iter().map(file).collect()
    }

    #[test]
    fn a_change_is_there_until_the_next_and_touches_no_other_file() {
        let scratch = Scratch::new("change");
        let folder = scratch.0.join("tree");
        let tree = Tree::open(&folder, files(&[("a.rs", "a"), ("b/c.rs", "c")])).expect("a copy");
        let read = |path: &str| fs::read_to_string(folder.join(path)).expect("it is there");
        let written = |path: &str| {
            let metadata = fs::metadata(folder.join(path)).expect("it is there");
            metadata.modified().expect("files have times")
        };
        let before = written("a.rs");
        tree.hold(&files(&[("b/c.rs", "mutated")]))
            .expect("a mutant");
        assert_eq!(
            (read("a.rs").as_str(), read("b/c.rs").as_str()),
            ("a", "mutated")
        );
        fs::write(folder.join("b/regressions"), "x").expect("tests may write");
        tree.hold(&Files::new()).expect("the original");
        assert_eq!(read("b/c.rs"), "c");
        assert!(!folder.join("b/regressions").exists());
        assert_eq!(written("a.rs"), before);
    }

    #[test]
    fn a_copy_belongs_to_one_process_and_is_put_right_for_the_next() {
        let scratch = Scratch::new("lock");
        let folder = scratch.0.join("tree");
        let tree = Tree::open(&folder, files(&[("a.rs", "a")])).expect("a copy");
        tree.hold(&files(&[("a.rs", "mutated")])).expect("a mutant");
        let second = Tree::open(&folder, Files::new()).expect_err("it is taken");
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        drop(tree);
        let _next = Tree::open(&folder, files(&[("b.rs", "b")])).expect("it is free");
        assert!(!folder.join("a.rs").exists() && folder.join("b.rs").exists());
    }
}
