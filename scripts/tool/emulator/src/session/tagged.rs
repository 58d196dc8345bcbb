//! Takes the console of several VMs apart. Each line on it begins with the name of its VM, `[name] `, or `[name]+` where it is
//! the rest of a line within which another one came; or it is the hypervisor's. No VM can end a line without that, so nothing it
//! prints can be taken for another's.

use super::part::Part;
use super::token::Token;
use records::options::{LONGEST_NAME, is_name};

/// The end of a line that the hypervisor has put there to interrupt it.
const INTERRUPTED: &[u8] = b"\r\n";
/// How lines of the hypervisor's begin that the user sees: who has the input, and what becomes of a VM.
const SHOWN: [&[u8]; 2] = [b"parvisor: input goes to ", b"VM "];
/// Those among them that only tell numbers.
const ACCOUNT: &[u8] = b" after its end: ";

/// Takes the console apart.
#[derive(Debug)]
pub struct Tagged {
    at: At,
    /// The beginning of a line.
    held: Vec<u8>,
    vms: Vec<VmOutput>,
    /// By which a guest of ours says that it takes input.
    ready: Option<Vec<u8>>,
}

/// Where in a line the console is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Begin,
    /// Within a line of the hypervisor's.
    Own,
    /// Within the line of this VM.
    Vm(usize),
    /// The same, in what may be its mark.
    Mark(usize),
}

/// What one VM has printed.
#[derive(Debug)]
struct VmOutput {
    name: String,
    /// Whether the end of its last line has to wait: the hypervisor may have put it there.
    has_ended: bool,
    /// Whether a carriage return has to wait: it may be the beginning of such an end.
    has_returned: bool,
}

impl VmOutput {
    /// Takes a piece of a line, and gives what is the VM's own for sure. Returns whether the line ends.
    fn take(&mut self, piece: &[u8], part: &mut impl FnMut(Part<'_>)) -> bool {
        let mut own = Vec::new();
        let mut ends = false;
        for &byte in piece {
            let has_returned = std::mem::replace(&mut self.has_returned, byte == b'\r');
            match byte {
                b'\n' if has_returned => (self.has_ended, ends) = (true, true),
                b'\n' => {
                    own.push(byte);
                    ends = true;
                }
                _ => {
                    own.extend(has_returned.then_some(b'\r'));
                    own.extend((byte != b'\r').then_some(byte));
                }
            }
        }
        if !own.is_empty() {
            part(Part::Of(&self.name, &own));
        }
        ends
    }

    /// A line begins, or the last one goes on. What has waited is its own in the one case only.
    fn begin(&mut self, is_rest: bool, part: &mut impl FnMut(Part<'_>)) {
        if std::mem::take(&mut self.has_ended) && !is_rest {
            part(Part::Of(&self.name, INTERRUPTED));
        }
    }

    /// Nothing more comes.
    fn end(&mut self, part: &mut impl FnMut(Part<'_>)) {
        self.begin(false, part);
        if std::mem::take(&mut self.has_returned) {
            part(Part::Of(&self.name, b"\r"));
        }
    }
}

impl Tagged {
    /// Guests of ours mark by `token` that they take input.
    pub fn new(token: Option<&Token>) -> Self {
        Self {
            at: At::Begin,
            held: Vec::new(),
            vms: Vec::new(),
            ready: token.map(|token| [&token.mark("ready")[..], b"\r\n"].concat()),
        }
    }

    /// Takes what the console has printed, and gives its parts.
    pub fn take(&mut self, bytes: &[u8], part: &mut impl FnMut(Part<'_>)) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.take_piece(piece, part);
        }
    }

    /// Takes a piece of one line.
    fn take_piece(&mut self, piece: &[u8], part: &mut impl FnMut(Part<'_>)) {
        let mut rest = piece;
        if self.at == At::Begin {
            for (index, &byte) in piece.iter().enumerate() {
                self.held.push(byte);
                match tag(&self.held) {
                    Tag::Unfinished if byte != b'\n' => continue,
                    Tag::Of { is_rest } => self.begin(is_rest, part),
                    Tag::Unfinished | Tag::None => self.at = At::Own,
                }
                rest = &piece[index + 1..];
                break;
            }
            if self.at == At::Begin {
                return;
            }
        }
        match self.at {
            At::Begin => {}
            At::Own => {
                self.held.extend_from_slice(rest);
                if self.held.ends_with(b"\n") {
                    self.own_line(part);
                }
            }
            At::Mark(vm) => self.take_mark(vm, rest, part),
            At::Vm(vm) => self.take_of(vm, rest, part),
        }
    }

    /// A line of a VM begins, or goes on: its tag is what is held.
    fn begin(&mut self, is_rest: bool, part: &mut impl FnMut(Part<'_>)) {
        let name = String::from_utf8_lossy(&self.held[1..self.held.len() - 2]).into_owned();
        let known = self.vms.iter().position(|vm| vm.name == name);
        let number = known.unwrap_or(self.vms.len());
        if known.is_none() {
            self.vms.push(VmOutput {
                name,
                has_ended: false,
                has_returned: false,
            });
        }
        self.vms[number].begin(is_rest, part);
        match (&self.ready, is_rest) {
            (Some(_), false) => self.at = At::Mark(number),
            _ => {
                part(Part::Shown(&self.held));
                self.held.clear();
                self.at = At::Vm(number);
            }
        }
    }

    /// Takes what may be a VM's mark: that is not shown. Its tag is held.
    fn take_mark(&mut self, vm: usize, rest: &[u8], part: &mut impl FnMut(Part<'_>)) {
        let tag = self.vms[vm].name.len() + 3;
        self.held.extend_from_slice(rest);
        let ready = self.ready.as_deref().unwrap_or_default();
        let said = &self.held[tag..];
        if said == ready {
            self.vms[vm].take(said, part);
            part(Part::Begun);
            self.held.clear();
            self.at = At::Begin;
        } else if !ready.starts_with(said) {
            let held = std::mem::take(&mut self.held);
            part(Part::Shown(&held[..tag]));
            self.take_of(vm, &held[tag..], part);
        }
    }

    /// Takes a piece of a VM's line.
    fn take_of(&mut self, number: usize, piece: &[u8], part: &mut impl FnMut(Part<'_>)) {
        part(Part::Shown(piece));
        self.at = match self.vms[number].take(piece, part) {
            true => At::Begin,
            false => At::Vm(number),
        };
    }

    /// A line of the hypervisor's is complete.
    fn own_line(&mut self, part: &mut impl FnMut(Part<'_>)) {
        let line = std::mem::take(&mut self.held);
        let is_shown = SHOWN.iter().any(|begin| line.starts_with(begin))
            && !line.windows(ACCOUNT.len()).any(|words| words == ACCOUNT);
        if is_shown {
            part(Part::Shown(&line));
        }
        part(Part::Log(&line));
        self.at = At::Begin;
    }

    /// Nothing more comes.
    pub fn end(&mut self, part: &mut impl FnMut(Part<'_>)) {
        match self.at {
            At::Mark(vm) => {
                let tag = self.vms[vm].name.len() + 3;
                let held = std::mem::take(&mut self.held);
                part(Part::Shown(&held[..tag]));
                self.take_of(vm, &held[tag..], part);
            }
            At::Own | At::Begin if !self.held.is_empty() => {
                part(Part::Log(&self.held));
            }
            At::Own | At::Begin | At::Vm(_) => {}
        }
        self.vms.iter_mut().for_each(|vm| vm.end(part));
    }
}

/// What the beginning of a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    /// It may become a tag.
    Unfinished,
    /// A whole tag.
    Of {
        is_rest: bool,
    },
    None,
}

fn tag(begin: &[u8]) -> Tag {
    let Some(inner) = begin.strip_prefix(b"[") else {
        return Tag::None;
    };
    let end = inner.iter().position(|&byte| byte == b']');
    let name = &inner[..end.unwrap_or(inner.len())];
    let is_sound = std::str::from_utf8(name).is_ok_and(is_name);
    match (end, inner.last()) {
        (None, None) => Tag::Unfinished,
        (None, Some(_)) if is_sound && name.len() <= LONGEST_NAME => Tag::Unfinished,
        (Some(end), _) if is_sound && inner.len() == end + 1 => Tag::Unfinished,
        (Some(_), Some(b' ')) if is_sound => Tag::Of { is_rest: false },
        (Some(_), Some(b'+')) if is_sound => Tag::Of { is_rest: true },
        _ => Tag::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Taken {
        shown: String,
        log: String,
        of: BTreeMap<String, String>,
        begun: usize,
    }

    fn taken(token: Option<&Token>, console: &str, size: usize) -> Taken {
        let mut taken = Taken::default();
        let mut tagged = Tagged::new(token);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut part = |part: Part<'_>| match part {
            Part::Shown(bytes) => taken.shown += &text(bytes),
            Part::Log(bytes) => taken.log += &text(bytes),
            Part::Of(name, bytes) => *taken.of.entry(name.into()).or_default() += &text(bytes),
            Part::Begun => taken.begun += 1,
            Part::Status(_) => unreachable!("no command"),
        };
        for piece in console.as_bytes().chunks(size) {
            tagged.take(piece, &mut part);
        }
        tagged.end(&mut part);
        taken
    }

    fn assert_of(console: &str, expected: &[(&str, &str)]) {
        for size in [1, 2, 3, 7, 1000] {
            let of = taken(None, console, size).of;
            let expected = expected.iter();
            let expected: BTreeMap<String, String> = expected
                .map(|(name, bytes)| ((*name).into(), (*bytes).into()))
                .collect();
            assert_eq!(of, expected, "pieces of {size}");
        }
    }

    #[test]
    fn each_vm_has_its_bytes() {
        assert_of(
            "[  0.1 cpu0] INFO hello\r\n[a] one\r\n[b-2] \x1b[1mtwo\n[a] \r\r\n[a] 3",
            &[("a", "one\r\n\r\r\n3"), ("b-2", "\x1b[1mtwo\n")],
        );
    }

    #[test]
    fn the_end_of_an_interrupted_line_is_nobodys() {
        assert_of(
            "[a] ~ # \r\n[b] one\r\n[a]+ls\r\r\nparvisor: x\r\n[a]+\n[a] two\r\n[b] three",
            &[("a", "~ # ls\r\ntwo\r\n"), ("b", "one\r\nthree")],
        );
    }

    #[test]
    fn a_vm_that_prints_anothers_tag_is_itself() {
        assert_of(
            "[a] x\r[b] y\r\n[a] [b] z\r\n[a] parvisor: exit status 0\n",
            &[("a", "x\r[b] y\r\n[b] z\r\nparvisor: exit status 0\n")],
        );
    }

    #[test]
    fn the_hypervisors_lines_are_its_own() {
        let console = "[a] one\r\n[12345.6 cpu0] INFO x\r\nparvisor: input goes to VM b\r\n[1] x\r\n[a b] y\r\n[a]x\r\n\
                       VM 0 after its end: none\r\nVM 0, a: off\r\n\r\nparvisor: exit status 0\r\n";
        for size in [1, 2, 3, 7, 1000] {
            let taken = taken(None, console, size);
            assert_eq!(
                taken.shown,
                "[a] one\r\nparvisor: input goes to VM b\r\nVM 0, a: off\r\n"
            );
            assert_eq!(taken.log, console.replace("[a] one\r\n", ""));
        }
    }

    #[test]
    fn a_guest_that_takes_input_says_so_unseen() {
        let token = Token::random().expect("random bytes");
        let console = format!("[a] @{token} ready\r\n[a] @{token}x\r\n[a]+@{token} ready\r\n");
        for size in [1, 2, 3, 7, 1000] {
            let taken = taken(Some(&token), &console, size);
            assert_eq!(taken.begun, 1);
            let shown = format!("[a] @{token}x\r\n[a]+@{token} ready\r\n");
            assert_eq!(taken.shown, shown);
        }
    }
}
