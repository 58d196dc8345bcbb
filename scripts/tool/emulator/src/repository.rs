//! Where the repository is: found when the tool runs, from the package that cargo runs it for, and never when it is built. A
//! copy of a clone has the tool's executable too, which cargo needn't build again.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// A file that only the repository has at this path.
const MARK: &str = "scripts/front-end.sh";

/// The root of the repository whose script, or whose test, runs.
///
/// # Panics
///
/// If there is none: the executable was started by hand, outside of every repository.
pub fn repository() -> &'static Path {
    find().expect("the tool runs within the repository")
}

/// The root of the repository, if this is run for one: by cargo, as the scripts and tests are, or from its target folder.
pub fn find() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let executable = env::current_exe().ok();
        let places = [package, executable].into_iter().flatten();
        places.filter_map(|place| root_above(&place)).next()
    });
    found.as_deref()
}

/// The innermost folder above `place`, or `place`, that is a repository.
fn root_above(place: &Path) -> Option<PathBuf> {
    let mut folders = place.ancestors();
    let root = folders.find(|folder| folder.join(MARK).is_file());
    root.map(Path::to_path_buf)
}

/// Cargo's target folder: that of the repository unless the user names another one.
pub fn target_folder() -> PathBuf {
    let named = env::var_os("CARGO_TARGET_DIR").filter(|named| !named.is_empty());
    let target = named.map_or_else(|| "target".into(), PathBuf::from);
    // scripts/front-end.sh has made a relative path of the user's absolute.
    repository().join(target)
}

/// The files of a source tree, by their paths in it.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

/// The files of the repository at `root`: those that git knows, and new ones that it doesn't ignore.
///
/// # Errors
///
/// If git can't list them, or one can't be read.
pub fn snapshot(root: &Path) -> io::Result<Files> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "-co", "--exclude-standard"])
        .current_dir(root)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = git.output()?;
    if !output.status.success() {
        return Err(io::Error::other("git ls-files failed"));
    }
    let mut files = Files::new();
    for path in String::from_utf8_lossy(&output.stdout).split_terminator('\0') {
        match fs::read(root.join(path)) {
            Ok(contents) => drop(files.insert(path.into(), contents)),
            // Git still knows a file that was deleted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    #[test]
    fn a_copy_within_the_repository_is_a_repository_of_its_own() {
        let folder = TempDir::new().expect("room for a folder");
        let original = folder.path().join("with space");
        let copy = original.join("target/mutants/tree");
        for root in [&original, &copy] {
            fs::create_dir_all(root.join("scripts/tool/run")).expect("the folder is ours");
            fs::write(root.join(MARK), "").expect("the folder is ours");
        }
        let of = |place: &Path| root_above(place).expect("it is in a repository");
        assert_eq!(of(&original.join("tests/qemu")), original);
        assert_eq!(of(&original), original);
        assert_eq!(of(&original.join("target/debug/run")), original);
        assert_eq!(of(&copy.join("scripts/tool/run")), copy);
        assert_eq!(root_above(folder.path()), None);
    }

    #[test]
    fn the_repository_holds_the_manifest_of_the_workspace() {
        let manifest = fs::read_to_string(repository().join("Cargo.toml")).expect("it is there");
        assert!(manifest.contains("[workspace]"));
    }

    #[test]
    fn the_snapshot_holds_sources_and_leaves_out_what_git_ignores() {
        let files = snapshot(repository()).expect("git lists the files");
        assert!(files.contains_key(Path::new("scripts/tool/emulator/src/repository.rs")));
        assert!(!files.keys().any(|path| path.starts_with("target")));
    }
}
