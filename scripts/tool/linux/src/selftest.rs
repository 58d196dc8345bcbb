//! Builds `dirty_log_perf_test` of the Linux KVM selftests from Debian's package of the kernel's source, for arm64, with a
//! cross compiler that is unpacked beside it. Our own part, `calls.c`, wraps some functions that the test
//! calls; the source stays as it is.
//!
//! Works in the folder of the private apt root, which one process has for itself.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use lzma_rust2::XzReader;

use super::command::{failed, finish};
use super::packages::{Packages, remove};
use emulator::error::ToolError;

/// Our part of the test.
pub const CALLS: &str = include_str!("calls.c");
/// The series whose source is preferred: its test has all the options that are used.
const SERIES: &str = "6.12";
/// How long a step of the build may take: a few seconds usually.
const LIMIT: Duration = Duration::from_secs(900);
/// The functions that `calls.c` stands in front of.
const WRAPPED: &str = "-Wl,--wrap=ioctl,--wrap=memstress_set_random_access,--wrap=pthread_create";
/// The message when a step fails.
const WHAT: &str = "Linux's dirty_log_perf_test can't be built";
/// The folders at the top of the source that the test isn't built from: nine tenths of it.
const UNUSED: [&str; 15] = [
    "Documentation",
    "block",
    "certs",
    "crypto",
    "drivers",
    "fs",
    "io_uring",
    "ipc",
    "kernel",
    "lib",
    "mm",
    "net",
    "samples",
    "security",
    "sound",
];
/// The prefix of the names of the compiler's programs.
const CROSS: &str = "aarch64-linux-gnu-";
/// Packages that aren't unpacked with the compiler: every machine has its C library, which must fit its loader.
const NOT_UNPACKED: [&str; 1] = ["libc6_"];

/// Fetches the sources and the compiler, and builds the test. Returns its path.
///
/// # Errors
///
/// [`ToolError::Setup`] or [`ToolError::Io`], one line, if something can't be fetched, unpacked or compiled.
pub fn build(packages: &Packages, progress: &impl Fn(&str)) -> Result<PathBuf, ToolError> {
    let folder = packages.folder();
    check_name(folder)?;
    progress("fetching a cross compiler");
    let compiler = packages.fetch_with_dependencies(
        compiler_packages(packages.architecture()),
        &NOT_UNPACKED,
        "cross-compiler",
    )?;
    let tools = Tools::wrap(folder, &compiler)?;
    let package = packages.kernel_source(SERIES)?;
    progress(&format!("fetching {package}"));
    let files = packages.fetch(&package, None)?;
    progress(&format!("unpacking {package}"));
    let source = unpack(
        &files.join(format!("usr/src/{package}.tar.xz")),
        &folder.join("source"),
    )?;
    remove(&files)?;
    progress("building dirty_log_perf_test");
    tools.build(&source, folder)
}

/// The packages of the compiler for arm64, its C library and make, on a machine of that architecture.
fn compiler_packages(architecture: &str) -> &'static [&'static str] {
    match architecture {
        "arm64" => &["gcc", "libc6-dev", "make"],
        _ => &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "make"],
    }
}

/// make can't work in every folder.
fn check_name(folder: &Path) -> Result<(), ToolError> {
    let name = folder.to_string_lossy();
    if name.contains(|c: char| c.is_whitespace() || ":'\"$#%\\".contains(c)) {
        return Err(failed(
            WHAT,
            &format!(
                "make can't work in {name}; let CARGO_TARGET_DIR name a folder without special characters"
            ),
        ));
    }
    Ok(())
}

/// Unpacks the files of the kernel's source that the test needs, from an archive with one folder. Returns that folder.
fn unpack(archive: &Path, folder: &Path) -> Result<PathBuf, ToolError> {
    let opened = File::open(archive).map_err(|error| ToolError::unusable(archive, &error))?;
    let reader = XzReader::new(BufReader::with_capacity(1 << 20, opened), true);
    unpack_used(reader, folder).map_err(|error| ToolError::unusable(archive, &error))?;
    let top = fs::read_dir(folder).and_then(|mut entries| entries.next().transpose());
    let top = top.map_err(|error| ToolError::unusable(folder, &error))?;
    top.map(|entry| entry.path())
        .ok_or_else(|| failed(WHAT, &format!("{} is empty", archive.display())))
}

fn unpack_used(reader: impl io::Read, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if is_used(&entry.path()?) {
            entry.unpack_in(folder)?;
        }
    }
    Ok(())
}

/// Whether the file at this path, which begins with the archive's one folder, is used.
fn is_used(path: &Path) -> bool {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    match &names.skip(1).take(2).collect::<Vec<_>>()[..] {
        ["arch", architecture] => ["arm64", "Kconfig"].contains(architecture),
        [top, ..] => !UNUSED.contains(top),
        [] => true,
    }
}

/// The compiler and make, as they are called.
#[derive(Debug)]
struct Tools {
    /// The prefix of the compiler's programs, with its folder.
    prefix: String,
    make: PathBuf,
}

impl Tools {
    /// Makes the compiler that is unpacked in `compiler` callable: by a script that lets it find its own libraries.
    fn wrap(folder: &Path, compiler: &Path) -> Result<Self, ToolError> {
        let libraries: Vec<String> = ["usr/lib", "lib"]
            .iter()
            .filter_map(|parent| fs::read_dir(compiler.join(parent)).ok())
            .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
            .filter(|path| path.to_string_lossy().ends_with("-linux-gnu"))
            .map(|path| path.display().to_string())
            .collect();
        let program = compiler.join("usr/bin").join(format!("{CROSS}gcc"));
        let script = format!(
            "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' --sysroot='{}' \"$@\"\n",
            libraries.join(":"),
            program.display(),
            compiler.display()
        );
        let bin = folder.join("bin");
        let path = bin.join(format!("{CROSS}gcc"));
        fs::create_dir_all(&bin)
            .and_then(|()| fs::write(&path, script))
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
            .map_err(|error| ToolError::unusable(&path, &error))?;
        Ok(Self {
            prefix: bin.join(CROSS).display().to_string(),
            make: compiler.join("usr/bin/make"),
        })
    }

    /// Builds the test; gives its path.
    fn build(&self, source: &Path, folder: &Path) -> Result<PathBuf, ToolError> {
        finish(self.make(source).arg("headers"), LIMIT, WHAT)?;
        let calls = folder.join("calls.c");
        let object = folder.join("calls.o");
        fs::write(&calls, CALLS).map_err(|error| ToolError::unusable(&calls, &error))?;
        let mut compile = Command::new(format!("{}gcc", self.prefix));
        compile.args(["-O2", "-I"]).arg(source.join("usr/include"));
        compile.arg("-c").arg(&calls).arg("-o").arg(&object);
        finish(&mut compile, LIMIT, WHAT)?;
        let output = folder.join("test");
        let test = output.join("dirty_log_perf_test");
        let mut link = self.make(&source.join("tools/testing/selftests/kvm"));
        link.arg(format!("OUTPUT={}", output.display()))
            .arg(format!(
                "LDFLAGS=-static -pthread {WRAPPED} {}",
                object.display()
            ))
            .arg(&test);
        finish(&mut link, LIMIT, WHAT)?;
        Ok(test)
    }

    /// make for arm64 in a folder of the source, with as many jobs as there are CPUs.
    fn make(&self, folder: &Path) -> Command {
        let jobs = thread::available_parallelism().map_or(1, |count| count.get());
        let mut command = Command::new(&self.make);
        command
            .arg("-s")
            .arg(format!("-j{jobs}"))
            .arg("-C")
            .arg(folder);
        command
            .args(["ARCH=arm64", "HOSTCC=cc"])
            .arg(format!("CROSS_COMPILE={}", self.prefix));
        // Variables of an outer make or of the user are for other builds.
        for variable in [
            "MAKEFLAGS",
            "MAKELEVEL",
            "CFLAGS",
            "CPPFLAGS",
            "LDFLAGS",
            "LDLIBS",
            "CC",
            "KBUILD_OUTPUT",
            "O",
        ] {
            command.env_remove(variable);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_test_is_built_from_is_unpacked() {
        let used = |path| is_used(Path::new(path));
        for path in [
            "linux-source-6.12",
            "linux-source-6.12/Makefile",
            "./linux-source-6.12/arch",
            "linux-source-6.12/arch/arm64/include/uapi/asm/kvm.h",
            "linux-source-6.12/tools/lib/x.c",
            "linux-source-6.12/include/uapi/sound/asound.h",
        ] {
            assert!(used(path), "{path}");
        }
        for path in [
            "linux-source-6.12/drivers",
            "linux-source-6.12/sound/core/x.c",
            "linux-source-6.12/arch/x86/Makefile",
        ] {
            assert!(!used(path), "{path}");
        }
    }

    #[test]
    fn the_compiler_is_called_with_its_own_libraries_and_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let compiler = folder.path().join("compiler");
        for name in [
            "usr/lib/x86_64-linux-gnu",
            "usr/lib/gcc-cross",
            "lib/x86_64-linux-gnu",
            "usr/bin",
        ] {
            fs::create_dir_all(compiler.join(name)).expect("it can be made");
        }
        let program = compiler.join("usr/bin/aarch64-linux-gnu-gcc");
        fs::write(
            &program,
            "#!/bin/sh\necho \"$LD_LIBRARY_PATH\"; for i; do echo \"$i\"; done\n",
        )
        .expect("it can be written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .expect("it can be changed");
        let tools = Tools::wrap(folder.path(), &compiler).expect("it can be written");
        let mut command = Command::new(format!("{}gcc", tools.prefix));
        let output = finish(command.args(["-c", "a b.c"]), LIMIT, "").expect("it ends well");
        let compiler = compiler.display();
        let libraries =
            format!("{compiler}/usr/lib/x86_64-linux-gnu:{compiler}/lib/x86_64-linux-gnu");
        assert_eq!(
            output.lines,
            [&libraries, &format!("--sysroot={compiler}"), "-c", "a b.c"]
        );
    }

    #[test]
    fn a_folder_that_make_cannot_work_in_is_named() {
        assert!(check_name(Path::new("/home/user/parvisor/target/linux")).is_ok());
        for name in ["/home/a b", "/home/a:b", "/home/a'b", "/home/a$b"] {
            let error = check_name(Path::new(name))
                .expect_err("make can't")
                .to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
