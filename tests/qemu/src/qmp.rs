//! Looks into a running machine by QEMU's machine protocol, as at the registers of a CPU that is parked and can say nothing, and
//! presses its power button.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Error, ErrorKind, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long the emulator may take to open its socket, and to answer.
const PATIENCE: Duration = Duration::from_secs(300);

/// A socket on which a machine that will be started listens.
#[derive(Debug)]
pub struct Socket {
    folder: TempDir,
}

impl Socket {
    /// A socket that nobody else uses.
    ///
    /// # Errors
    ///
    /// If there is no room for it.
    pub fn new() -> Result<Self> {
        Ok(Self {
            folder: TempDir::new()?,
        })
    }

    /// QEMU's arguments that make it listen.
    pub fn arguments(&self) -> [OsString; 2] {
        [
            "-qmp".into(),
            format!("unix:{},server=on,wait=off", self.path().display()).into(),
        ]
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// Connects, as soon as the machine listens.
    ///
    /// # Errors
    ///
    /// If it doesn't, or doesn't speak the protocol.
    pub fn connect(&self) -> Result<Connection> {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(self.path()) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut connection = Connection {
            reader: BufReader::new(stream),
        };
        connection.read()?;
        connection.execute("qmp_capabilities", json!({}))?;
        Ok(connection)
    }
}

/// A conversation with a running machine.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<UnixStream>,
}

impl Connection {
    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(|error| Error::new(ErrorKind::InvalidData, error))
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        // In one write: QEMU acts on the closing brace, and after `quit` it isn't there for a line's end that comes late.
        let line = format!("{request}\n");
        self.reader.get_mut().write_all(line.as_bytes())?;
        loop {
            let answer = self.read()?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                return Err(Error::other(error.to_string()));
            }
        }
    }

    /// The value of register `name` (`X19`, `PC`) of the first CPU.
    ///
    /// # Errors
    ///
    /// If the machine doesn't tell.
    pub fn register(&mut self, name: &str) -> Result<u64> {
        let arguments = json!({ "command-line": "info registers" });
        let answer = self.execute("human-monitor-command", arguments)?;
        let text = answer.as_str().unwrap_or_default();
        let value = text
            .split_whitespace()
            .find_map(|word| word.strip_prefix(&format!("{name}=")));
        let number = value.and_then(|value| u64::from_str_radix(value, 16).ok());
        number.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidData,
                format!("no register {name} in: {text}"),
            )
        })
    }

    /// Waits until register `name` satisfies `wanted`; gives its last value in any case.
    ///
    /// # Errors
    ///
    /// If the machine doesn't tell.
    pub fn wait_for_register(&mut self, name: &str, wanted: impl Fn(u64) -> bool) -> Result<u64> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.register(name)?;
            if wanted(value) || Instant::now() > deadline {
                return Ok(value);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses the power button, and lets it go.
    ///
    /// # Errors
    ///
    /// If the machine has none, or has ended.
    pub fn press_power_button(&mut self) -> Result<()> {
        self.execute("system_powerdown", json!({})).map(|_| ())
    }

    /// Ends the machine. It may go before its answer is out, which is well too.
    ///
    /// # Errors
    ///
    /// If it didn't listen, or refused.
    pub fn quit(mut self) -> Result<()> {
        match self.execute("quit", json!({})) {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                ) =>
            {
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }
}
