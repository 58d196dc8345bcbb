//! The file system that a Linux guest starts with: busybox, the first programs, and what the session is for. Made for each
//! run, as the session's token is in it.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use cpio::{NewcBuilder, write_cpio};

use super::{Kernel, Series, fetched};
use emulator::error::ToolError;
use emulator::files::replace;

/// The first program.
const INIT: &str = include_str!("guest-init.sh");
/// The second: the user's command or shell.
const SESSION: &str = include_str!("guest-session.sh");
/// The command of a guest whose memory is logged.
const LOAD: &str = include_str!("guest-load.sh");
/// The actions of busybox's init: the session is the only one.
const ACTIONS: &str = "::once:/session\n";
/// The user, for the programs that tell names.
const USERS: &str = "root:x:0:0:root:/root:/bin/sh\n";
const GROUPS: &str = "root:x:0:\n";
/// The shell's prompt.
const PROFILE: &str = "PS1='\\w # '\n";

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// What a guest is started for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Session {
    /// A shell on the console, whose terminal has these settings, as stty takes them; none are usual.
    Shell(String),
    /// A command of the shell's, of whatever bytes.
    Command(Vec<u8>),
    /// The load of a guest whose memory is logged; its writers are this program.
    Load(Vec<u8>),
}

/// Fetches what is missing of the newest kernel of `series`, and writes the file system for one run to `initrd`. `token` is
/// how the guest marks its lines for the tool. `progress` is told what is being done.
///
/// # Errors
///
/// As [`super::prepare`], but nothing is built.
pub fn prepare_guest(
    series: Series,
    session: &Session,
    token: &str,
    initrd: &Path,
    progress: impl Fn(&str),
) -> Result<Kernel, ToolError> {
    let cache = fetched(&[series], false, &progress)?;
    let busybox = cache.path("busybox");
    let busybox = fs::read(&busybox).map_err(|error| ToolError::unusable(&busybox, &error))?;
    archive(busybox, session, token)
        .and_then(|archive| replace(initrd, &archive))
        .map_err(|error| ToolError::unusable(initrd, &error))?;
    cache.kernel(&series, initrd)
}

fn archive(busybox: Vec<u8>, session: &Session, token: &str) -> std::io::Result<Vec<u8>> {
    let (name, purpose) = match session {
        Session::Shell(settings) => ("run/terminal", settings.as_bytes()),
        Session::Command(command) => ("run/command", command.as_slice()),
        Session::Load(_) => ("run/command", LOAD.as_bytes()),
    };
    let load = match session {
        Session::Load(program) => Some(("bin/load", PROGRAM, program.clone())),
        Session::Shell(_) | Session::Command(_) => None,
    };
    let entries = [
        ("bin", FOLDER, Vec::new()),
        ("etc", FOLDER, Vec::new()),
        ("root", FOLDER, Vec::new()),
        ("run", FOLDER, Vec::new()),
        ("bin/busybox", PROGRAM, busybox),
        ("init", PROGRAM, INIT.into()),
        ("session", PROGRAM, SESSION.into()),
        ("etc/inittab", FILE, ACTIONS.into()),
        ("etc/passwd", FILE, USERS.into()),
        ("etc/group", FILE, GROUPS.into()),
        ("etc/profile", FILE, PROFILE.into()),
        ("run/token", FILE, token.into()),
        (name, FILE, purpose.into()),
    ];
    let entries = entries
        .into_iter()
        .chain(load)
        .map(|(name, mode, contents)| (NewcBuilder::new(name).mode(mode), Cursor::new(contents)));
    write_cpio(entries, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    fn unpacked(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut files = BTreeMap::new();
        let mut rest = archive;
        loop {
            let mut reader = cpio::NewcReader::new(rest).expect("an entry");
            if reader.entry().is_trailer() {
                return files;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut contents = Vec::new();
            reader.read_to_end(&mut contents).expect("contents");
            files.insert(name, (mode, contents));
            rest = reader.finish().expect("more");
        }
    }

    #[test]
    fn a_command_is_in_the_archive_byte_by_byte() {
        let command = b"echo \"$HOME\"\n\xff'\\".to_vec();
        let made = archive(b"busybox".into(), &Session::Command(command.clone()), "t0");
        let files = unpacked(&made.expect("nothing to fail"));
        assert_eq!(files["run/command"], (FILE, command));
        assert_eq!(files["run/token"], (FILE, b"t0".to_vec()));
        assert_eq!(files["init"].0, PROGRAM);
        assert_eq!(files["run"], (FOLDER, Vec::new()));
        assert!(!files.contains_key("run/terminal"));
    }

    #[test]
    fn a_load_has_its_program() {
        let made = archive(Vec::new(), &Session::Load(b"elf".into()), "t0");
        let files = unpacked(&made.expect("nothing to fail"));
        assert_eq!(files["bin/load"], (PROGRAM, b"elf".to_vec()));
        assert!(files["run/command"].1.starts_with(b"# The load of a guest"));
    }

    #[test]
    fn a_shell_has_the_settings_of_its_terminal() {
        let made = archive(Vec::new(), &Session::Shell("rows 3 cols 9".into()), "t0");
        let files = unpacked(&made.expect("nothing to fail"));
        assert_eq!(files["run/terminal"].1, b"rows 3 cols 9");
        assert!(!files.contains_key("run/command"));
    }
}
