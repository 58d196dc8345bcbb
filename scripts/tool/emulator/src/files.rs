//! Files that are written as a whole: a reader finds the old contents or the new ones, and a file that can't be
//! written is as it was. Several processes may do so at once. And files that are there for one run of a tool ([`RunFile`]).

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::ToolError;

/// Replaces a file as a whole, unless it has these contents already; makes its folder if there is none. What isn't a plain
/// file, a pipe or a terminal, is written to.
///
/// # Errors
///
/// Whatever keeps it from being written.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    // A link stays, and its target is replaced.
    let real = path.canonicalize().unwrap_or_else(|_| path.into());
    if is_special(&real) {
        return OpenOptions::new()
            .append(true)
            .open(real)?
            .write_all(contents);
    }
    if fs::read(&real).is_ok_and(|present| present == contents) {
        return Ok(());
    }
    let partial = beside(&real);
    if let Some(folder) = partial.parent() {
        fs::create_dir_all(folder)?;
    }
    put(&partial, &real, contents)
}

/// Writes a file under the name `partial` first, of which nothing is left.
fn put(partial: &Path, real: &Path, contents: &[u8]) -> io::Result<()> {
    let written = fs::write(partial, contents).and_then(|()| fs::rename(partial, real));
    if written.is_err() {
        let _ = fs::remove_file(partial);
    }
    written
}

/// Checks that [`replace`] can write a file whose folder is there. It is left as it is, or isn't made.
///
/// # Errors
///
/// The reason why it can't be written.
fn check(path: &Path) -> io::Result<()> {
    let real = path.canonicalize().unwrap_or_else(|_| path.into());
    if real.exists() {
        OpenOptions::new().append(true).open(&real)?;
        if is_special(&real) {
            return Ok(());
        }
    }
    let partial = beside(&real);
    fs::write(&partial, [])?;
    fs::remove_file(partial)
}

/// Makes the folder that `option` names, if there is none.
///
/// # Errors
///
/// [`ToolError::Usage`] naming it.
pub fn make_folder(option: &str, folder: &Path) -> Result<(), ToolError> {
    fs::create_dir_all(folder).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AlreadyExists => "this is a file, and a folder is needed".to_string(),
            _ => format!("the folder can't be made: {error}"),
        };
        ToolError::Usage(format!("{option} {}: {why}", folder.display()))
    })
}

/// Checks that [`replace`] can write the file that `option` names.
///
/// # Errors
///
/// [`ToolError::Usage`] naming it.
pub fn check_option(option: &str, file: &Path) -> Result<(), ToolError> {
    check(file).map_err(|error| {
        let file = file.display();
        ToolError::Usage(format!("{option} {file}: it can't be written: {error}"))
    })
}

/// The path of a file for this run of a tool, whose name has the number of this process. Whatever is there is removed when this is
/// dropped.
#[derive(Debug)]
pub struct RunFile(PathBuf);

impl RunFile {
    /// `NAME-NUMBER.EXTENSION` in a folder. Nothing is written. What is left of runs that a signal has ended, by this name, is
    /// removed, if it can be.
    pub fn new(folder: &Path, name: &str, extension: &str) -> Self {
        let own = |process: u32| format!("{name}-{process}.{extension}");
        let processes = Path::new("/proc");
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries.filter(|_| processes.join("self").exists()) {
            let file = entry.file_name();
            let process = (file.to_str())
                .and_then(|file| file.strip_prefix(name)?.strip_prefix('-'))
                .and_then(|file| file.strip_suffix(extension)?.strip_suffix('.'))
                .and_then(|process| process.parse().ok());
            let is_left = |process: u32| {
                file == *own(process) && !processes.join(process.to_string()).exists()
            };
            if process.is_some_and(is_left) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Self(folder.join(own(std::process::id())))
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RunFile {
    fn drop(&mut self) {
        // If it can't be removed, the next run with the same number replaces it.
        let _ = fs::remove_file(&self.0);
    }
}

fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
}

/// Where a file's new contents are until they are complete.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or(OsStr::new("file"));
    path.with_file_name(format!(
        ".{}.{}",
        name.to_string_lossy(),
        std::process::id()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn a_file_of_a_run_goes_with_it_and_those_of_dead_processes_go_too() {
        let folder = tempfile::TempDir::new().expect("room for a folder");
        let at = |name: &str| folder.path().join(name);
        // No process has this number.
        let dead = u32::MAX;
        let own = format!("guest-{}.cpio", std::process::id());
        let others = [
            format!("guest-{dead}.img"),
            format!("bench-{dead}.cpio"),
            "guest-1.cpio".into(),
            "guest-.cpio".into(),
            "guest-+7.cpio".into(),
        ];
        for name in others.iter().chain([&format!("guest-{dead}.cpio")]) {
            fs::write(at(name), "").expect("the folder is ours");
        }
        let file = RunFile::new(folder.path(), "guest", "cpio");
        assert_eq!(file.path(), at(&own));
        assert!(!at(&format!("guest-{dead}.cpio")).exists());
        fs::write(file.path(), "").expect("the folder is ours");
        drop(file);
        assert!(!at(&own).exists());
        drop(RunFile::new(&at("none"), "guest", "cpio"));
        assert!(others.iter().all(|name| at(name).exists()));
    }

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let folder = TempDir::new().expect("room for a folder");
        let path = folder.path().join("made/file");
        replace(&path, b"one").expect("the folder is ours");
        replace(&path, b"two").expect("the folder is ours");
        assert_eq!(fs::read(&path).expect("it is there"), b"two");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("the folder is ours");
        replace(&link, b"three").expect("the folder is ours");
        assert_eq!(fs::read(&path).expect("it is there"), b"three");
        let count = |folder: &Path| fs::read_dir(folder).expect("it is there").count();
        assert_eq!(
            (count(folder.path()), count(&folder.path().join("made"))),
            (2, 1)
        );
    }

    #[test]
    fn of_a_file_that_cant_be_written_no_part_is_left() {
        let folder = TempDir::new().expect("room for a folder");
        let (partial, real) = (folder.path().join(".file.1"), folder.path().join("file"));
        fs::create_dir(&real).expect("the folder is ours");
        assert!(put(&partial, &real, b"contents").is_err());
        assert!(!partial.exists() && real.is_dir());
    }

    #[test]
    fn what_an_option_names_and_cant_be_is_said_with_it() {
        let folder = TempDir::new().expect("room for a folder");
        let file = folder.path().join("file");
        fs::write(&file, "").expect("the folder is ours");
        let said = make_folder("--out", &file).expect_err("a file").to_string();
        let says = format!(
            "--out {}: this is a file, and a folder is needed",
            file.display()
        );
        assert_eq!(said, says);
        make_folder("--out", &folder.path().join("new/one")).expect("the folder is ours");
        let below = file.join("x");
        let said = make_folder("--out", &below)
            .expect_err("below a file")
            .to_string();
        let says = format!("--out {}: the folder can't be made: ", below.display());
        assert!(said.starts_with(&says), "{said}");
        let said = check_option("--json", &below)
            .expect_err("below a file")
            .to_string();
        let says = format!("--json {}: it can't be written: ", below.display());
        assert!(said.starts_with(&says), "{said}");
    }

    #[test]
    fn a_check_changes_nothing() {
        let folder = TempDir::new().expect("room for a folder");
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        fs::write(&old, "results").expect("the folder is ours");
        check(&old).expect("it can be written");
        check(&new).expect("it can be written");
        check(Path::new("/dev/null")).expect("it can be written");
        assert_eq!(fs::read(&old).expect("it is there"), b"results");
        assert!(!new.exists());
        assert!(check(folder.path()).is_err(), "a folder");
        assert!(check(&folder.path().join("none/file")).is_err());
    }
}
