//! Clones that were copied with all that was built in them, and scripts that are reached by other names: each works with the
//! repository that it is in.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use emulator::repository::{repository, snapshot, target_folder};
use tempfile::TempDir;

use crate::command::complaints;

/// A copy of this repository's sources with their times, as `cp -a` makes one.
fn copy_to(root: &Path) {
    let files = snapshot(repository()).expect("git lists the files");
    for path in files.keys() {
        let (from, to) = (repository().join(path), root.join(path));
        fs::create_dir_all(to.parent().expect("it is in a folder")).expect("room for it");
        fs::copy(&from, &to).expect("room for it");
        let modified = fs::metadata(&from).and_then(|from| from.modified());
        let file = File::options().append(true).open(to).expect("it is ours");
        file.set_modified(modified.expect("files have times"))
            .expect("it is ours");
    }
}

fn listed(script: &Path, target: &Path) -> Output {
    let mut command = Command::new(script);
    command.arg("--list").stdin(Stdio::null());
    // What was built here is what the copy would have got: cargo finds nothing to build.
    command.env("CARGO_TARGET_DIR", target);
    command.output().expect("the script can be run")
}

/// A mutant that only the copy has is what the tool lists there, in a path with a space, by a link too.
#[test]
fn a_copied_clone_works_with_itself() {
    let folder = TempDir::new().expect("room for a folder");
    let root = folder.path().join("a copy");
    copy_to(&root);
    // The tool asks git for the sources.
    let made = Command::new("git").args(["init", "-q"]).arg(&root).status();
    assert!(made.expect("git is there").success());
    let mutants = root.join("tests/model/mutants");
    let one = fs::read_dir(&mutants).expect("there are mutants").next();
    let one = one.expect("there is one").expect("it can be read").path();
    fs::copy(one, mutants.join("only-in-the-copy.toml")).expect("the folder is ours");
    let link = folder.path().join("mutate");
    let script = root.join("scripts/mutate");
    std::os::unix::fs::symlink(&script, &link).expect("the folder is ours");
    for script in [&script, &link] {
        let output = listed(script, &target_folder());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", complaints(&output));
        assert!(
            text.contains("only-in-the-copy"),
            "{}: {text}",
            script.display()
        );
    }
    let here = listed(&repository().join("scripts/mutate"), &target_folder());
    assert!(!String::from_utf8_lossy(&here.stdout).contains("only-in-the-copy"));
}
