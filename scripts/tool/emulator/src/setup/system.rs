//! The operating system, and its names of the packages that Parvisor needs.

use std::collections::BTreeMap;

/// The packages that the tool may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Package {
    /// The emulator, `qemu-system-aarch64`.
    Qemu,
    /// A debugger that knows arm64.
    Gdb,
    /// The instruction counter and memory tracer.
    Valgrind,
}

/// The package manager of a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// Debian and its derivatives.
    Apt,
    /// Fedora and its relatives.
    Dnf,
    /// Arch Linux.
    Pacman,
    /// openSUSE.
    Zypper,
    /// Alpine.
    Apk,
    /// Homebrew on macOS.
    Brew,
}

/// The system that the tool runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// Its name for people.
    pub name: String,
    /// Its package manager where the tool knows it.
    pub manager: Option<Manager>,
    /// The codename of the release, if this is Debian itself, 12 or later.
    pub debian: Option<String>,
}

impl System {
    /// Reads this machine's description of its system.
    pub fn detect() -> Self {
        if cfg!(target_os = "macos") {
            return Self {
                name: "macOS".into(),
                manager: Some(Manager::Brew),
                debian: None,
            };
        }
        let release = std::fs::read_to_string("/etc/os-release")
            .or_else(|_| std::fs::read_to_string("/usr/lib/os-release"))
            .unwrap_or_default();
        Self::from_os_release(&release)
    }

    /// Reads the text of an os-release(5) file.
    pub fn from_os_release(text: &str) -> Self {
        let fields: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.trim(), value.trim().trim_matches(['"', '\''])))
            .collect();
        let field = |name: &str| fields.get(name).copied().unwrap_or_default();
        let version: u32 = field("VERSION_ID").parse().unwrap_or(0);
        let codename = field("VERSION_CODENAME");
        let is_debian = field("ID") == "debian" && version >= 12 && !codename.is_empty();
        Self {
            name: match (field("PRETTY_NAME"), field("ID")) {
                ("", "") => "an unknown system".into(),
                ("", id) => id.into(),
                (name, _) => name.into(),
            },
            manager: std::iter::once(field("ID"))
                .chain(field("ID_LIKE").split_whitespace())
                .find_map(manager),
            debian: is_debian.then(|| codename.to_string()),
        }
    }

    /// How a person installs `package` here, as the end of a sentence.
    pub fn advice(&self, package: Package) -> String {
        match self.manager {
            Some(manager) => format!("install it with: {}", manager.install_command(package)),
            None => format!("install {}", package.description()),
        }
    }
}

impl Package {
    fn description(self) -> &'static str {
        match self {
            Self::Qemu => "the package that holds qemu-system-aarch64, 7.2 or later",
            Self::Gdb => "a gdb that knows arm64",
            Self::Valgrind => "valgrind",
        }
    }
}

impl Manager {
    fn install_command(self, package: Package) -> String {
        let (command, qemu, gdb) = match self {
            Self::Apt => ("apt-get install", "qemu-system-arm", "gdb-multiarch"),
            Self::Dnf => ("dnf install", "qemu-system-aarch64", "gdb"),
            Self::Pacman => ("pacman -S", "qemu-system-aarch64", "aarch64-linux-gnu-gdb"),
            Self::Zypper => ("zypper install", "qemu-arm", "gdb"),
            Self::Apk => ("apk add", "qemu-system-aarch64", "gdb-multiarch"),
            Self::Brew => ("brew install", "qemu", "aarch64-elf-gdb"),
        };
        let name = match package {
            Package::Qemu => qemu,
            Package::Gdb => gdb,
            Package::Valgrind => "valgrind",
        };
        format!("{command} {name}")
    }
}

/// The package manager of the distribution with this os-release `ID`.
fn manager(id: &str) -> Option<Manager> {
    Some(match id {
        "debian" | "ubuntu" => Manager::Apt,
        "fedora" | "rhel" | "centos" => Manager::Dnf,
        "arch" => Manager::Pacman,
        "suse" | "opensuse" | "opensuse-leap" | "opensuse-tumbleweed" | "sles" => Manager::Zypper,
        "alpine" => Manager::Apk,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_12_is_known_by_its_codename() {
        let system = System::from_os_release(
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n",
        );
        assert_eq!(system.debian.as_deref(), Some("bookworm"));
        assert_eq!(system.manager, Some(Manager::Apt));
    }

    #[test]
    fn older_debian_and_relatives_are_not_installed_on() {
        let old = System::from_os_release("ID=debian\nVERSION_ID=11\nVERSION_CODENAME=bullseye\n");
        let ubuntu = System::from_os_release(
            "ID=ubuntu\nID_LIKE=debian\nVERSION_ID=24.04\nVERSION_CODENAME=noble\n",
        );
        assert_eq!(old.debian, None);
        assert_eq!(ubuntu.debian, None);
        assert_eq!(
            ubuntu.advice(Package::Qemu),
            "install it with: apt-get install qemu-system-arm"
        );
    }

    #[test]
    fn relatives_of_known_distributions_are_advised() {
        let rocky = System::from_os_release("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n");
        assert_eq!(
            rocky.advice(Package::Qemu),
            "install it with: dnf install qemu-system-aarch64"
        );
        let manjaro = System::from_os_release("ID=manjaro\nID_LIKE=arch\n");
        assert_eq!(
            manjaro.advice(Package::Gdb),
            "install it with: pacman -S aarch64-linux-gnu-gdb"
        );
    }

    #[test]
    fn an_unknown_system_is_told_what_is_needed() {
        let system = System::from_os_release("");
        assert_eq!(system.name, "an unknown system");
        assert_eq!(
            system.advice(Package::Qemu),
            "install the package that holds qemu-system-aarch64, 7.2 or later"
        );
    }
}
