//! Takes the console apart: what the guest prints for the user, byte by byte as it comes, and what is said to the tool.
//!
//! The hypervisor has the console before the guest starts and after it has ended. Lines in its forms are its own there; within
//! the guest's output they are the guest's. So a line that looks like the hypervisor's is held back until more comes.

use std::time::Duration;

use super::part::Part;
use super::tagged::Tagged;
use super::token::Token;

/// What runs in the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guest {
    /// A guest of ours with a shell for the user.
    Shell(Token),
    /// A guest of ours that runs one command; only what this prints is shown.
    Command(Token),
    /// A kernel of the user's, or firmware. Behind firmware there may be a shell of ours, which says nothing to the tool.
    Own {
        /// Whether there may be such a shell.
        has_shell: bool,
    },
    /// Several VMs. Guests of ours among them have this token.
    Several(Option<Token>),
}

impl Guest {
    /// Whether there is a shell of ours, which ends with its input.
    pub fn has_shell(&self) -> bool {
        match self {
            Self::Shell(_) | Self::Several(Some(_)) => true,
            Self::Own { has_shell } => *has_shell,
            Self::Command(_) | Self::Several(None) => false,
        }
    }
}

/// Takes the console apart.
#[derive(Debug)]
pub struct Output {
    stage: Stage,
    lines: Lines,
}

#[derive(Debug)]
enum Stage {
    /// The user's kernel.
    Own,
    /// Several VMs.
    Several(Tagged),
    /// The user's shell. At the mark it takes input, once more after each restart.
    Shell(Mark),
    /// The guest boots, up to the first mark, where its command begins. The second one is that of its end.
    Boots([Mark; 2]),
    /// The command, up to that mark.
    Runs(Mark),
    /// The command has ended.
    Over,
}

impl Output {
    /// Of this guest.
    pub fn new(guest: &Guest) -> Self {
        let stage = match guest {
            Guest::Own { .. } => Stage::Own,
            Guest::Several(token) => Stage::Several(Tagged::new(token.as_ref())),
            Guest::Shell(token) => Stage::Shell(Mark::new(token, "ready")),
            Guest::Command(token) => {
                Stage::Boots(["begin", "end"].map(|what| Mark::new(token, what)))
            }
        };
        Self {
            stage,
            lines: Lines::default(),
        }
    }

    /// Takes what the console has printed, and gives its parts.
    pub fn take(&mut self, bytes: &[u8], part: &mut impl FnMut(Part<'_>)) {
        let rest = match &mut self.stage {
            Stage::Own => return self.lines.take(bytes, part),
            Stage::Several(tagged) => return tagged.take(bytes, part),
            Stage::Over => return part(Part::Log(bytes)),
            Stage::Shell(ready) => {
                let (before, found) = ready.search(bytes);
                self.lines.take(&before, part);
                let Some((_, rest)) = found else { return };
                part(Part::Begun);
                rest
            }
            Stage::Boots([begin, end]) => {
                let (before, found) = begin.search(bytes);
                part(Part::Log(&before));
                let Some((_, rest)) = found else { return };
                part(Part::Begun);
                self.lines.begun = true;
                self.stage = Stage::Runs(end.clone());
                rest
            }
            Stage::Runs(end) => {
                let (before, found) = end.search(bytes);
                self.lines.take(&before, part);
                let Some((status, rest)) = found else { return };
                self.lines.show(part);
                // The shell's statuses have eight bits.
                part(Part::Status(status.trim().parse().unwrap_or(u8::MAX)));
                self.stage = Stage::Over;
                rest
            }
        };
        self.take(&rest, part);
    }

    /// Nothing has come for so long: what is held back of a user's session is shown. It may still become a line of another kind.
    pub fn pause(&mut self, silent: Duration, part: &mut impl FnMut(Part<'_>)) {
        if let Stage::Shell(mark) = &mut self.stage {
            self.lines.take(&mark.pause(), part);
        }
        if matches!(self.stage, Stage::Shell(_) | Stage::Own) {
            self.lines.pause(silent, part);
        }
    }

    /// Nothing comes any more.
    pub fn end(&mut self, part: &mut impl FnMut(Part<'_>)) {
        match &mut self.stage {
            Stage::Boots([begin, _]) => part(Part::Log(&begin.held)),
            Stage::Shell(mark) | Stage::Runs(mark) => {
                let rest = mark.held.split_off(mark.shown);
                self.lines.take(&rest, part);
            }
            Stage::Several(tagged) => tagged.end(part),
            Stage::Own | Stage::Over => {}
        }
        self.lines.end(part);
    }
}

/// Looks for a line of the guest's for the tool: a mark, a value, the end of the line.
#[derive(Clone, Debug)]
struct Mark {
    mark: Vec<u8>,
    /// What may be the beginning of such a line.
    held: Vec<u8>,
    /// How much of it has been given away all the same.
    shown: usize,
}

impl Mark {
    fn new(token: &Token, what: &str) -> Self {
        Self {
            mark: token.mark(what),
            held: Vec::new(),
            shown: 0,
        }
    }

    /// Takes what comes next: gives what stands before the line, and its value and what stands behind it if it is there.
    fn search(&mut self, bytes: &[u8]) -> (Vec<u8>, Option<(String, Vec<u8>)>) {
        self.held.extend_from_slice(bytes);
        let begin = self.begin();
        let before = self.held[self.shown.min(begin)..begin].to_vec();
        self.held.drain(..begin);
        self.shown = self.shown.saturating_sub(begin);
        if !self.held.starts_with(&self.mark) {
            return (before, None);
        }
        let Some(length) = self.held.iter().position(|&byte| byte == b'\n') else {
            return (before, None);
        };
        let rest = self.held.split_off(length + 1);
        let line = std::mem::take(&mut self.held);
        self.shown = 0;
        let value = String::from_utf8_lossy(&line[self.mark.len()..]).into_owned();
        (before, Some((value, rest)))
    }

    /// Nothing has come for a while: gives the few bytes that are held back, which somebody may just have typed.
    fn pause(&mut self) -> Vec<u8> {
        const TYPED: usize = 8;
        if self.held.len() > TYPED {
            return Vec::new();
        }
        let shown = std::mem::replace(&mut self.shown, self.held.len());
        self.held[shown..].to_vec()
    }

    /// Where the mark, or what may be its beginning, begins.
    fn begin(&self) -> usize {
        let places = (0..self.held.len()).filter(|&place| self.held[place] == self.mark[0]);
        let fits = |place: &usize| {
            let rest = &self.held[*place..];
            let common = rest.len().min(self.mark.len());
            rest[..common] == self.mark[..common]
        };
        places.into_iter().find(fits).unwrap_or(self.held.len())
    }
}

/// Tells the hypervisor's lines from the guest's.
#[derive(Debug, Default)]
struct Lines {
    /// Whether the guest has printed something.
    begun: bool,
    /// Whether the line that comes is the guest's.
    within: bool,
    /// Lines in the hypervisor's forms, which are the last ones so far.
    held: Vec<u8>,
    /// Where in it the line begins that comes.
    line: usize,
    /// How much of it has been shown all the same.
    shown: usize,
}

/// How long whole lines are held back that may be the hypervisor's last ones.
const HELD: Duration = Duration::from_secs(2);

impl Lines {
    fn take(&mut self, bytes: &[u8], part: &mut impl FnMut(Part<'_>)) {
        let mut shown = Vec::new();
        for &byte in bytes {
            if self.within {
                shown.push(byte);
                self.within = byte != b'\n';
                continue;
            }
            self.held.push(byte);
            if !is_begun(&self.held[self.line..]) {
                if !self.begun {
                    // Before the guest's first line these were the hypervisor's.
                    part(Part::Log(&self.held[..self.line]));
                    self.shown = self.line;
                    self.begun = true;
                }
                shown.extend_from_slice(&self.held[self.shown..]);
                self.forget();
                self.within = byte != b'\n';
            } else if byte == b'\n' {
                self.line = self.held.len();
            }
        }
        if !shown.is_empty() {
            part(Part::Shown(&shown));
        }
    }

    fn forget(&mut self) {
        self.held.clear();
        (self.line, self.shown) = (0, 0);
    }

    /// What is held back is the guest's.
    fn show(&mut self, part: &mut impl FnMut(Part<'_>)) {
        part(Part::Shown(&self.held[self.shown..]));
        self.within = self.line < self.held.len();
        self.forget();
    }

    /// Nothing has come for so long.
    fn pause(&mut self, silent: Duration, part: &mut impl FnMut(Part<'_>)) {
        // Before the guest's first line the hypervisor may be silent for a while.
        let is_typed = self.line == 0 && !is_certain(&self.held);
        if self.begun && (is_typed || silent >= HELD) {
            part(Part::Shown(&self.held[self.shown..]));
            self.shown = self.held.len();
        }
    }

    fn end(&mut self, part: &mut impl FnMut(Part<'_>)) {
        part(Part::Log(&self.held));
        self.forget();
    }
}

/// How the hypervisor's lines begin, beside those of its log.
const BEGINNINGS: [&[u8]; 5] = [
    b"parvisor: ",
    b"VM ",
    b"frames: ",
    b"counters: ",
    b"merging counters: ",
];

/// Whether a line that begins so can be the hypervisor's.
fn is_begun(line: &[u8]) -> bool {
    let begins = |beginning: &&[u8]| {
        let common = beginning.len().min(line.len());
        beginning[..common] == line[..common]
    };
    BEGINNINGS.iter().any(begins) || is_log(line)
}

/// Whether a line that begins so has more of the hypervisor's forms than somebody may just have typed.
fn is_certain(line: &[u8]) -> bool {
    BEGINNINGS
        .iter()
        .any(|beginning| line.starts_with(beginning))
        || (line.starts_with(b"[") && line.windows(3).any(|word| word == b"cpu"))
}

/// Whether a line that begins so can be one of the log: `[  0.123456 cpu0] INFO`.
fn is_log(line: &[u8]) -> bool {
    let Some(line) = line.strip_prefix(b"[") else {
        return line.is_empty();
    };
    let is_time = |&byte: &u8| byte.is_ascii_digit() || matches!(byte, b' ' | b'.');
    let name: Vec<u8> = line.iter().copied().skip_while(is_time).collect();
    let common = name.len().min(3);
    name[..common] == b"cpu"[..common]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a console that comes in pieces of this size, neighbours of one kind as one.
    fn parts(guest: &Guest, console: &[u8], size: usize) -> Vec<String> {
        let mut parts: Vec<(&str, Vec<u8>)> = Vec::new();
        let mut output = Output::new(guest);
        let mut add = |part: Part<'_>| {
            let (kind, bytes) = match part {
                Part::Shown([]) | Part::Log([]) => return,
                Part::Shown(bytes) => ("shown", bytes.to_vec()),
                Part::Log(bytes) => ("log", bytes.to_vec()),
                Part::Begun => ("begun", Vec::new()),
                Part::Status(status) => ("status", vec![b'0' + status]),
                Part::Of(..) => unreachable!("one guest"),
            };
            match parts.last_mut() {
                Some((last, whole)) if *last == kind => whole.extend(bytes),
                _ => parts.push((kind, bytes)),
            }
        };
        for piece in console.chunks(size) {
            output.take(piece, &mut add);
        }
        output.end(&mut add);
        let text =
            |(kind, bytes): (&str, Vec<u8>)| format!("{kind} {}", String::from_utf8_lossy(&bytes));
        parts.into_iter().map(text).collect()
    }

    fn assert_parts(guest: &Guest, console: &[u8], expected: &[&str]) {
        for size in [1, 2, 3, 7, 1000] {
            assert_eq!(parts(guest, console, size), expected, "pieces of {size}");
        }
    }

    fn token() -> Token {
        Token::random().expect("random bytes")
    }

    #[test]
    fn of_a_command_its_output_and_status_are_found() {
        let token = token();
        let console = format!(
            "[ 0.1 cpu0] INFO hello\r\nLinux\r\n@{token} begin\none\ntwo@{token} end 7\ngone\n"
        );
        assert_parts(
            &Guest::Command(token),
            console.as_bytes(),
            &[
                "log [ 0.1 cpu0] INFO hello\r\nLinux\r\n",
                "begun ",
                "shown one\ntwo",
                "status 7",
                "log gone\n",
            ],
        );
    }

    #[test]
    fn nothing_that_a_command_prints_is_taken_for_a_mark() {
        let (token, other) = (token(), token());
        let said = format!("@@{other} end 0\n@{other}\nparvisor: exit status 3\n@@");
        let console = format!("@{token} begin\n{said}@{token} end 1\n");
        assert_parts(
            &Guest::Command(token),
            console.as_bytes(),
            &["begun ", &format!("shown {said}"), "status 1"],
        );
    }

    #[test]
    fn a_command_that_never_ends_has_printed_what_it_has() {
        let token = token();
        let console = format!("@{token} begin\nhalf@{}", &token.to_string()[..9]);
        let shown = format!("shown half@{}", &token.to_string()[..9]);
        assert_parts(
            &Guest::Command(token),
            console.as_bytes(),
            &["begun ", &shown],
        );
    }

    #[test]
    fn a_shell_is_shown_from_the_kernels_first_line_to_its_last() {
        let token = token();
        let boots = "[ 0.1 cpu0] INFO hello\r\nparvisor: one\r\n[    0.000000] Booting Linux\r\n";
        let console = format!("{boots}@{token} ready\r\n~ # p\r\np\r\nparvisor: exit status 0\r\n");
        assert_parts(
            &Guest::Shell(token),
            console.as_bytes(),
            &[
                "log [ 0.1 cpu0] INFO hello\r\nparvisor: one\r\n",
                "shown [    0.000000] Booting Linux\r\n",
                "begun ",
                "shown ~ # p\r\np\r\n",
                "log parvisor: exit status 0\r\n",
            ],
        );
    }

    #[test]
    fn within_the_guests_output_the_hypervisors_forms_are_the_guests() {
        let console = b"hello\r\nparvisor: exit status 5\r\nVM 0\r\n# \r\nVM 0 after its end: none\r\nparvisor: exit status 0\r\n";
        assert_parts(
            &Guest::Own { has_shell: false },
            console,
            &[
                "shown hello\r\nparvisor: exit status 5\r\nVM 0\r\n# \r\n",
                "log VM 0 after its end: none\r\nparvisor: exit status 0\r\n",
            ],
        );
    }

    #[test]
    fn a_command_that_ends_the_machine_has_no_status_and_the_hypervisors_lines_arent_its() {
        let token = token();
        let console = format!("@{token} begin\nbye\nVM 0: off\nparvisor: exit status 0\n");
        assert_parts(
            &Guest::Command(token),
            console.as_bytes(),
            &[
                "begun ",
                "shown bye\n",
                "log VM 0: off\nparvisor: exit status 0\n",
            ],
        );
    }

    #[test]
    fn a_shell_takes_input_again_after_a_restart() {
        let token = token();
        let once = format!("Linux\r\n@{token} ready\r\n");
        assert_parts(
            &Guest::Shell(token),
            once.repeat(2).as_bytes(),
            &["shown Linux\r\n", "begun ", "shown Linux\r\n", "begun "],
        );
    }

    #[test]
    fn what_is_held_back_is_shown_when_nothing_more_comes() {
        let mut output = Output::new(&Guest::Own { has_shell: false });
        let mut shown = Vec::new();
        let mut show = |part: Part<'_>| {
            if let Part::Shown(bytes) = part {
                shown.extend_from_slice(bytes);
            }
        };
        let moment = Duration::from_millis(100);
        output.take(b"# \r\nparvi", &mut show);
        output.pause(moment, &mut show);
        output.take(b"sor: x\r\n", &mut show);
        output.pause(moment, &mut show);
        output.take(b"# \r\nparvisor: y\r\n", &mut show);
        output.pause(HELD, &mut show);
        output.pause(HELD, &mut show);
        assert_eq!(shown, b"# \r\nparvisor: x\r\n# \r\nparvisor: y\r\n");
    }

    /// As on a busy host, where the machine may stop within any line.
    #[test]
    fn no_line_is_lost_by_a_pause() {
        let token = token();
        let console =
            format!("Linux\r\n@{token} ready\r\n# \r\nVM 0: off\r\nparvisor: exit status 0\r\n");
        for silent in [Duration::from_millis(100), HELD] {
            let mut output = Output::new(&Guest::Shell(token.clone()));
            let (mut begun, mut log) = (0, Vec::new());
            let mut take = |part: Part<'_>| match part {
                Part::Begun => begun += 1,
                Part::Log(bytes) => log.extend_from_slice(bytes),
                Part::Shown(_) | Part::Status(_) | Part::Of(..) => {}
            };
            for byte in console.bytes() {
                output.take(&[byte], &mut take);
                output.pause(silent, &mut take);
            }
            output.end(&mut take);
            assert_eq!(begun, 1);
            assert_eq!(log, b"VM 0: off\r\nparvisor: exit status 0\r\n");
        }
    }
}
