use super::*;
use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use core::cell::{Cell, RefCell};
use devices::{Device, DeviceHost, IrqLine, Width};

/// A console that does what the platform's does.
struct FakeWire {
    now_ns: Cell<u64>,
    text: RefCell<String>,
    within: Cell<Option<usize>>,
    /// How many bytes it has room for.
    room: Cell<usize>,
    typed: RefCell<VecDeque<u8>>,
}

impl FakeWire {
    fn new() -> Self {
        Self {
            now_ns: Cell::new(0),
            text: RefCell::default(),
            within: Cell::new(None),
            room: Cell::new(usize::MAX),
            typed: RefCell::default(),
        }
    }

    fn pass(&self, ns: u64) {
        self.now_ns.set(self.now_ns.get() + ns);
    }

    fn types(&self, bytes: &[u8]) {
        self.typed.borrow_mut().extend(bytes);
    }

    fn end_line(&self) {
        if self.within.take().is_some() {
            self.text.borrow_mut().push_str("\r\n");
        }
    }

    fn taken(&self) -> String {
        self.text.take()
    }
}

impl Wire for FakeWire {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn wakes_for_input(&self) -> bool {
        true
    }

    fn write_line(&self, line: fmt::Arguments<'_>) {
        self.end_line();
        let line = line.to_string();
        self.text.borrow_mut().push_str(&format!("{line}\r\n"));
    }

    fn write_as(&self, speaker: &Speaker<'_>, bytes: &[u8]) -> usize {
        let mut is_within = speaker.is_within;
        let count = bytes.len().min(self.room.get());
        for byte in &bytes[..count] {
            if self.within.get() != Some(speaker.number) {
                self.end_line();
                let mark = if is_within { '+' } else { ' ' };
                let name = speaker.name;
                self.text.borrow_mut().push_str(&format!("[{name}]{mark}"));
                self.within.set(Some(speaker.number));
            }
            self.text.borrow_mut().push(char::from(*byte));
            is_within = *byte != b'\n';
            if !is_within {
                self.within.set(None);
            }
        }
        self.room.set(self.room.get() - count);
        count
    }

    fn read(&self, bytes: &mut [u8]) -> usize {
        let mut typed = self.typed.borrow_mut();
        let count = bytes.len().min(typed.len());
        for (to, byte) in bytes.iter_mut().zip(typed.drain(..count)) {
            *to = byte;
        }
        count
    }
}

struct Nobody;

impl DeviceHost for Nobody {
    fn now_ns(&self) -> u64 {
        0
    }

    fn wake(&self) {}
}

impl IrqLine for Nobody {
    fn set(&self, _: bool) {}
}

/// The registers of data and flags, and of control with the receiver and all else enabled.
const DR: u64 = 0;
const FR: u64 = 0x18;
const FR_RXFE: u64 = 1 << 4;
const LCR_H: u64 = 0x2c;
const LCR_H_FEN: u64 = 1 << 4;
const CR: u64 = 0x30;
const CR_ENABLED: u64 = 0x301;

struct Vms {
    uarts: Vec<Pl011>,
    console: SharedConsole,
    wire: FakeWire,
}

impl Vms {
    fn new(mode: ConsoleMode) -> Self {
        let names = ["a", "b", "c"];
        let uart = |_| {
            let uart = Pl011::new(Arc::new(Nobody), Arc::new(Nobody)).unwrap();
            uart.write(LCR_H, Width::Word, LCR_H_FEN);
            uart.write(CR, Width::Word, CR_ENABLED);
            uart
        };
        Self {
            uarts: names.iter().map(uart).collect(),
            console: SharedConsole::new(names.into_iter(), mode).unwrap(),
            wire: FakeWire::new(),
        }
    }

    fn says(&self, vm: usize, text: &str) {
        for byte in text.bytes() {
            self.uarts[vm].write(DR, Width::Word, byte.into());
        }
    }

    fn hears(&self, vm: usize) -> String {
        let uart = &self.uarts[vm];
        let next = || {
            let has = uart.read(FR, Width::Word) & FR_RXFE == 0;
            has.then(|| char::from(uart.read(DR, Width::Word) as u8))
        };
        core::iter::from_fn(next).collect()
    }

    fn attend(&mut self) -> u64 {
        let uarts = &self.uarts;
        self.console
            .attend(&self.wire, |number| Some(&uarts[number]))
    }

    /// What is on the console once CPU 0 has done all that there is to do now.
    fn shown(&mut self) -> String {
        while self.attend() <= self.wire.now_ns() {}
        self.wire.taken()
    }
}

#[test]
fn each_line_has_the_name_of_its_vm() {
    let mut vms = Vms::new(ConsoleMode::Raw);
    vms.says(0, "one\r\ntwo\r\nth");
    vms.says(1, "[a] x\nfo");
    assert_eq!(vms.shown(), "[a] one\r\n[a] two\r\n[b] [a] x\n");
    vms.says(0, "ree\n");
    vms.says(1, "ur\n");
    assert_eq!(vms.shown(), "[a] three\n[b] four\n");
}

#[test]
fn the_prompt_of_the_vm_with_the_input_shows_soon_and_only_that() {
    let mut vms = Vms::new(ConsoleMode::Raw);
    vms.says(0, "a # ");
    vms.says(1, "b # ");
    assert_eq!(vms.attend(), REST_NS);
    assert_eq!(vms.wire.taken(), "");
    vms.wire.pass(REST_NS);
    assert_eq!(vms.shown(), "[a] a # ");
    // What follows it shows at once, and what comes between interrupts it.
    vms.says(0, "l");
    assert_eq!(vms.shown(), "l");
    vms.says(2, "hello\n");
    assert_eq!(vms.shown(), "\r\n[c] hello\n");
    vms.says(0, "s\n");
    assert_eq!(vms.shown(), "[a]+s\n");
    vms.wire.types(b"\x1dn");
    assert_eq!(vms.shown(), "parvisor: input goes to VM b\r\n[b] b # ");
}

#[test]
fn a_flood_gets_no_more_than_its_turns() {
    let mut vms = Vms::new(ConsoleMode::Raw);
    let line = "x".repeat(63) + "\n";
    vms.says(0, &line.repeat(12));
    vms.says(1, "here\n");
    vms.wire.room.set(10);
    assert_eq!(vms.attend(), ROOM_NS);
    // Little by little, as on a slow line.
    let mut before = 0;
    while !vms.wire.text.borrow().contains("[b] here\n") {
        vms.wire.room.set(16);
        vms.attend();
        before += 1;
        assert!(before < 20, "{}", vms.wire.taken());
    }
    let text = vms.wire.taken();
    let of_a = text.matches("[a] ").count();
    assert!(of_a <= PIECE / 64 + 1 && !text.contains('+'), "{text}");
}

/// Each of its bytes is a line with its name.
#[test]
fn a_flood_of_empty_lines_gets_no_more_than_its_turns() {
    for mode in [ConsoleMode::Raw, ConsoleMode::Lines] {
        let mut vms = Vms::new(mode);
        vms.says(0, &"\n".repeat(3000));
        vms.says(1, "here\n");
        vms.attend();
        let text = vms.wire.taken();
        let before = text.find("[b] here").expect("its turn has come");
        assert!(before < 600, "{before} bytes of the flood");
        assert!(text.len() < TURNS * 600, "{} bytes in one go", text.len());
    }
}

#[test]
fn input_goes_to_one_vm_by_name_or_number() {
    let mut vms = Vms::new(ConsoleMode::Raw);
    vms.wire.types(b"to a\x1dnto b\x1d3to c\x1dnand a\x1d\x1d");
    let said = ["b", "c", "a"].map(|name| format!("parvisor: input goes to VM {name}\r\n"));
    assert_eq!(vms.shown(), said.concat());
    assert_eq!(vms.hears(0), "to aand a\x1d");
    assert_eq!((vms.hears(1), vms.hears(2)), ("to b".into(), "to c".into()));
    vms.wire.types(b"\x1d9\x1d?x");
    let help = vms.shown();
    assert_eq!(help.matches(HELP).count(), 2, "{help}");
    assert!(help.starts_with("parvisor: input goes to VM a; Ctrl-] n"));
    assert_eq!(vms.hears(0), "x");
}

#[test]
fn a_vm_that_takes_no_input_keeps_the_keys_from_nobody() {
    let mut vms = Vms::new(ConsoleMode::Raw);
    vms.wire.types(&[b'x'; 3 * TYPED]);
    vms.wire.types(b"\x1dnhello");
    assert_eq!(vms.attend(), INPUT_NS);
    assert!(vms.wire.typed.borrow().len() > TYPED, "flow control");
    assert_eq!(vms.hears(1), "");
    vms.wire.pass(STUCK_NS);
    vms.shown();
    assert_eq!(vms.hears(1), "hello");
    // What the other has not taken is still there.
    assert!(vms.hears(0).starts_with("xxx"));
}

#[test]
fn input_follows_the_vms_that_there_are() {
    let mut vms = Vms::new(ConsoleMode::Raw);
    vms.console.retire(0, &vms.wire);
    assert_eq!(vms.shown(), "parvisor: input goes to VM b\r\n");
    vms.wire.types(b"\x1d1\x1dn\x1dn");
    let said = vms.shown();
    assert!(said.ends_with("input goes to VM c\r\nparvisor: input goes to VM b\r\n"));
    vms.console.retire(1, &vms.wire);
    vms.console.retire(2, &vms.wire);
    vms.wire.types(b"x\x1dn");
    assert_eq!(vms.shown(), "parvisor: input goes to VM c\r\n");
}

#[test]
fn all_that_a_vm_has_said_is_shown_at_its_end() {
    let mut vms = Vms::new(ConsoleMode::Raw);
    vms.says(1, "last words");
    assert_eq!(vms.shown(), "");
    vms.console.end(1);
    assert!(!vms.console.has_shown_all(1));
    assert_eq!(vms.shown(), "[b] last words");
    assert!(vms.console.has_shown_all(1));
    vms.console.begin(1);
    vms.says(1, ", and more\n");
    assert_eq!(vms.shown(), ", and more\n");
}

#[test]
fn without_input_lines_are_whole_and_printable() {
    let mut vms = Vms::new(ConsoleMode::Lines);
    vms.wire.types(b"x");
    vms.says(0, "one\r\ntwo\x1b\nprompt");
    assert_eq!(vms.shown(), "[a] one\r\n[a] two\\x1b\r\n");
    assert_eq!(vms.hears(0), "");
    vms.console.end(0);
    assert_eq!(vms.shown(), "");
    vms.console.retire(0, &vms.wire);
    assert_eq!(vms.wire.taken(), "[a] prompt\r\n");
}
