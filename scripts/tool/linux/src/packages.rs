//! A private apt root: Debian packages of any architecture, fetched and unpacked below one folder, as any user, with
//! nothing of the machine changed.
//!
//! The sources are derived from the machine's own, so that mirror and keys stay those that its owner chose; of its apt
//! settings only those about the network are taken, as others may name commands that apt runs. apt checks what it
//! fetches against the signed lists. One process at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::command::{Output, failed, finish};
use super::releases::{Release, numbers};
use emulator::error::ToolError;
use emulator::setup::apt::source_files;
use emulator::setup::sources;
use emulator::setup::system::System;

/// How long the package lists may take: some 20 MB.
const LISTS_LIMIT: Duration = Duration::from_secs(600);
/// How long one fetch may take: up to 160 MB.
const FETCH_LIMIT: Duration = Duration::from_secs(3600);
/// How long anything else may take.
const LIMIT: Duration = Duration::from_secs(300);

/// The network settings of the machine's apt that count here too.
const NETWORK_SETTINGS: [&str; 6] = [
    "acquire::http",
    "acquire::forceipv",
    "acquire::retries",
    "acquire::check-date",
    "acquire::check-valid-until",
    "acquire::max-future",
];

/// The private root.
#[derive(Debug)]
pub struct Packages {
    folder: PathBuf,
    architecture: String,
    /// The first that apt had to complain of about the lists, for the case that something isn't in them.
    complaint: Option<String>,
}

impl Packages {
    /// Makes a root in the empty folder `folder` and fetches the package lists.
    ///
    /// # Errors
    ///
    /// [`ToolError::Setup`] where this isn't Debian, or apt can't be used.
    pub fn open(folder: &Path) -> Result<Self, ToolError> {
        let system = System::detect();
        let Some(codename) = &system.debian else {
            return Err(ToolError::Setup(format!(
                "Linux comes from Debian's registry, which needs a machine with Debian 12 or later; this is {}",
                system.name
            )));
        };
        let sources = sources::release(&source_files(), codename).ok_or_else(|| {
            ToolError::Setup(format!(
                "this machine's package sources have no entry of {codename} to fetch Linux from"
            ))
        })?;
        let reading = "apt's settings can't be read";
        let dump = finish(Command::new("apt-config").arg("dump"), LIMIT, reading)?;
        let print = ["--print-architecture"];
        let architecture = finish(Command::new("dpkg").args(print), LIMIT, reading)?;
        let architecture = architecture.lines.first().cloned().unwrap_or_default();
        let settings = settings(folder, &architecture, &dump.lines);
        write_root(folder, &sources, &settings)
            .map_err(|error| failed(&folder.display().to_string(), &error.to_string()))?;
        let mut packages = Self {
            folder: folder.into(),
            architecture,
            complaint: None,
        };
        let what = "Debian's package lists can't be fetched";
        let update = finish(
            packages.apt("apt-get").args(["-q", "update"]),
            LISTS_LIMIT,
            what,
        )?;
        packages.complaint = update.complaints.into_iter().next();
        Ok(packages)
    }

    /// The architecture of this machine, as Debian calls it.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The folder of this root; files that stand beside what it fetches may be put here.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The arm64 cloud kernels that there are.
    ///
    /// # Errors
    ///
    /// [`ToolError::Setup`] if there is none, as without a network, or apt fails.
    pub fn kernels(&self) -> Result<Vec<Release>, ToolError> {
        let what = "Debian's kernels can't be listed";
        let names = self.names("linux-image-", what)?;
        let names = names.iter().filter(|name| name.ends_with("-cloud-arm64"));
        let names: Vec<String> = names.map(|name| format!("{name}:arm64")).collect();
        if names.is_empty() {
            return Err(self.absent("arm64 cloud kernel"));
        }
        let madison = self.ask(&["madison"], &names, what)?;
        let releases: Vec<Release> = madison
            .lines
            .iter()
            .filter_map(|line| Release::parse(line))
            .collect();
        if releases.is_empty() {
            return Err(self.absent("arm64 cloud kernel"));
        }
        Ok(releases)
    }

    /// The package with the source of a kernel of `series`, else with the newest source that there is.
    ///
    /// # Errors
    ///
    /// [`ToolError::Setup`] if there is none, or apt fails.
    pub fn kernel_source(&self, series: &str) -> Result<String, ToolError> {
        let prefix = "linux-source-";
        let names = self.names(prefix, "Debian's kernel sources can't be listed")?;
        newest_source(&names, prefix, series).ok_or_else(|| self.absent("kernel source"))
    }

    /// Fetches one package, in that version or the one that apt prefers, and unpacks it; gives the folder with its files.
    ///
    /// # Errors
    ///
    /// [`ToolError::Setup`] with apt's last lines.
    pub fn fetch(&self, package: &str, version: Option<&str>) -> Result<PathBuf, ToolError> {
        let name = package.split(':').next().unwrap_or(package);
        let what = format!("{name} can't be fetched");
        let wanted = match version {
            Some(version) => format!("{package}={version}"),
            None => package.into(),
        };
        let fetched = self.fresh(&format!("{name}.fetched"))?;
        let mut command = self.apt("apt-get");
        command
            .args(["-q", "download", &wanted])
            .current_dir(&fetched);
        finish(&mut command, FETCH_LIMIT, &what)?;
        let files = self.fresh(name)?;
        for archive in archives(&fetched, &what)? {
            unpack(&archive, &files)?;
        }
        remove(&fetched)?;
        Ok(files)
    }

    /// Fetches packages with all that they depend on, and unpacks them into one folder, but for those whose file begins
    /// with one of `without`; gives that folder.
    ///
    /// # Errors
    ///
    /// [`ToolError::Setup`] with apt's last lines.
    pub fn fetch_with_dependencies(
        &self,
        packages: &[&str],
        without: &[&str],
        name: &str,
    ) -> Result<PathBuf, ToolError> {
        let what = format!("the {name} can't be fetched");
        let arguments = [
            "-q",
            "-y",
            "--no-install-recommends",
            "--download-only",
            "install",
        ];
        let mut command = self.apt("apt-get");
        command.args(arguments).args(packages);
        finish(&mut command, FETCH_LIMIT, &what)?;
        let files = self.fresh(name)?;
        for archive in archives(&self.folder.join("cache/archives"), &what)? {
            let file = archive.file_name().unwrap_or_default().to_string_lossy();
            if !without.iter().any(|prefix| file.starts_with(prefix)) {
                unpack(&archive, &files)?;
            }
        }
        Ok(files)
    }

    /// The names of all packages that begin with `prefix`.
    fn names(&self, prefix: &str, what: &str) -> Result<Vec<String>, ToolError> {
        Ok(self.ask(&["pkgnames", prefix], &[], what)?.lines)
    }

    fn ask(&self, question: &[&str], names: &[String], what: &str) -> Result<Output, ToolError> {
        finish(
            self.apt("apt-cache").args(question).args(names),
            LIMIT,
            what,
        )
    }

    /// A program of apt's that works on this root.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.folder.join("apt.conf"))
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// An empty folder of this root.
    fn fresh(&self, name: &str) -> Result<PathBuf, ToolError> {
        let folder = self.folder.join(name);
        let made = remove(&folder).and_then(|()| {
            fs::create_dir_all(&folder)
                .map_err(|error| failed(&folder.display().to_string(), &error.to_string()))
        });
        made.map(|()| folder)
    }

    /// The error that there is no `what`: where apt had something to say about the lists, that is why.
    fn absent(&self, what: &str) -> ToolError {
        ToolError::Setup(match &self.complaint {
            Some(complaint) => format!("Debian's package lists can't be fetched: {complaint}"),
            None => format!("this machine's Debian sources have no {what}"),
        })
    }
}

/// Of the packages `names`, the one of `series`, else the one of the newest series.
fn newest_source(names: &[String], prefix: &str, series: &str) -> Option<String> {
    let series_of = |name: &String| name.strip_prefix(prefix).map(str::to_string);
    let is_series = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    let all = names
        .iter()
        .filter_map(series_of)
        .filter(|text| is_series(text));
    let newest = all.max_by_key(|text| (text == series, numbers(text)));
    newest.map(|series| format!("{prefix}{series}"))
}

/// The text of the root's apt.conf: where it lies, which architectures it serves, and how the machine reaches the network.
fn settings(folder: &Path, architecture: &str, dump: &[String]) -> String {
    let network = dump.iter().filter(|line| {
        let line = line.to_ascii_lowercase();
        NETWORK_SETTINGS.iter().any(|name| line.starts_with(name))
    });
    let mut text: String = network.map(|line| format!("{line}\n")).collect();
    let folder = folder.display();
    text.push_str(&format!(
        r#"APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; "arm64"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}/log";
Dir::Etc "{folder}/etc";
Dir::Etc::trusted "/etc/apt/trusted.gpg";
Dir::Etc::trustedparts "/etc/apt/trusted.gpg.d";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d";
"#
    ));
    text
}

fn write_root(folder: &Path, sources: &str, settings: &str) -> std::io::Result<()> {
    for part in [
        "etc/sources.list.d",
        "etc/apt.conf.d",
        "etc/preferences.d",
        "state/lists/partial",
        "cache/archives/partial",
        "log",
    ] {
        fs::create_dir_all(folder.join(part))?;
    }
    fs::write(folder.join("etc/sources.list.d/debian.sources"), sources)?;
    fs::write(folder.join("state/status"), "")?;
    fs::write(folder.join("apt.conf"), settings)
}

/// The package files in a folder.
fn archives(folder: &Path, what: &str) -> Result<Vec<PathBuf>, ToolError> {
    let entries = fs::read_dir(folder).map_err(|error| failed(what, &error.to_string()))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut archives: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
        .collect();
    archives.sort();
    if archives.is_empty() {
        return Err(failed(what, "apt-get left no package"));
    }
    Ok(archives)
}

/// Unpacks a package into `folder`.
fn unpack(archive: &Path, folder: &Path) -> Result<(), ToolError> {
    let name = archive.file_name().unwrap_or_default().to_string_lossy();
    let mut command = Command::new("dpkg-deb");
    command.arg("-x").arg(archive).arg(folder);
    finish(&mut command, LIMIT, &format!("{name} can't be unpacked")).map(drop)
}

/// Removes a folder, which may be missing, with all that is in it.
pub fn remove(folder: &Path) -> Result<(), ToolError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed(&folder.display().to_string(), &error.to_string()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_lies_in_its_folder_and_keeps_how_the_machine_reaches_the_network() {
        let dump = [
            r#"APT::Update::Post-Invoke:: "rm -f /var/cache/apt/archives/*.deb";"#,
            r#"Acquire::http::Proxy "http://proxy.example:3128";"#,
            r#"Acquire::Languages:: "en";"#,
            r#"Dir::Cache "var/cache/apt";"#,
        ];
        let text = settings(Path::new("/t/staging"), "amd64", &dump.map(String::from));
        assert!(
            text.contains("Proxy \"http://proxy.example:3128\";\n"),
            "{text}"
        );
        assert!(
            text.contains("APT::Architectures { \"amd64\"; \"arm64\"; };\n"),
            "{text}"
        );
        assert!(
            !text.contains("Post-Invoke") && !text.contains("var/cache"),
            "{text}"
        );
        let folders = text.lines().filter(|line| line.starts_with("Dir::"));
        let elsewhere: Vec<&str> = folders
            .filter(|line| !line.contains("\"/t/staging/"))
            .collect();
        assert!(
            elsewhere.iter().all(|line| line.contains("/etc/apt/")),
            "{elsewhere:?}"
        );
    }

    #[test]
    fn the_source_of_a_series_is_preferred_to_the_newest() {
        let names = [
            "linux-source-6.1",
            "linux-source-6.12",
            "linux-source-6.19",
            "linux-source-6.9",
            "linux-source-rt",
        ];
        let names = names.map(String::from);
        let source = |series| newest_source(&names, "linux-source-", series);
        assert_eq!(source("6.12").as_deref(), Some("linux-source-6.12"));
        assert_eq!(source("6.13").as_deref(), Some("linux-source-6.19"));
        assert_eq!(newest_source(&[], "linux-source-", "6.12"), None);
    }
}
