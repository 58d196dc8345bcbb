//! What `scripts/run --linux` starts for a guest of Debian's: fetches the kernel and busybox, and makes the file system. A
//! program of its own, so that who runs no Linux needn't build it.
//!
//! Arguments: the series, the path of the file system to write, the guest's token, and `shell` with the settings of its
//! terminal, `command` with the command on standard input, or `load` with the path of the writing program. Prints the path of
//! the kernel. Or `firmware` alone: fetches U-Boot and prints its path.

use std::env;
use std::fs;
use std::io::{Read, stdin};
use std::path::Path;
use std::process::ExitCode;

use emulator::error::ToolError;
use emulator::process;
use linux::{Session, prepare_firmware, prepare_guest};
use options::series::Series;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match prepare(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

fn prepare(arguments: &[String]) -> Result<(), ToolError> {
    process::end_groups_on_signals()
        .map_err(|error| ToolError::Setup(format!("signals can't be handled: {error}")))?;
    let wrong = || ToolError::Usage("this is for scripts/run --linux".into());
    let progress = |what: &str| eprintln!("setup: {what}");
    let (series, initrd, token, session) = match arguments {
        [word] if word == "firmware" => {
            println!("{}", prepare_firmware(progress)?.display());
            return Ok(());
        }
        [series, initrd, token, kind, settings] if kind == "shell" => {
            (series, initrd, token, Session::Shell(settings.clone()))
        }
        [series, initrd, token, kind] if kind == "command" => {
            let mut command = Vec::new();
            stdin()
                .read_to_end(&mut command)
                .map_err(|error| ToolError::Io(format!("the command can't be read: {error}")))?;
            (series, initrd, token, Session::Command(command))
        }
        [series, initrd, token, kind, path] if kind == "load" => {
            let program =
                fs::read(path).map_err(|error| ToolError::unusable(Path::new(path), &error))?;
            (series, initrd, token, Session::Load(program))
        }
        _ => return Err(wrong()),
    };
    let series = Series::parse(series).ok_or_else(wrong)?;
    let kernel = prepare_guest(series, &session, token, initrd.as_ref(), progress)?;
    println!("{}", kernel.image.display());
    Ok(())
}
