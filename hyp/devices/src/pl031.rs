//! A PL031 real-time clock (Arm DDI 0224): it counts seconds, and raises its interrupt at one of them.
//!
//! Nothing ticks: the count is computed from the machine's clock. Somebody has to call [`Pl031::attend`] at
//! [`Pl031::deadline_ns`], so that the alarm comes without the guest looking.

use crate::device::{Device, DeviceHost, IrqLine, Width, read_words, write_words};
use crate::identification::{self, IDENTIFICATION};
use crate::saved::{Reader, RestoreError, Writer};
use alloc::collections::TryReserveError;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use spin::mutex::TicketMutex;

const PERIPHERAL: [u8; 4] = [0x31, 0x10, 0x04, 0x00];
const DR: u64 = 0x00;
const MR: u64 = 0x04;
const LR: u64 = 0x08;
const CR: u64 = 0x0c;
const IMSC: u64 = 0x10;
const RIS: u64 = 0x14;
const MIS: u64 = 0x18;
const ICR: u64 = 0x1c;

const NS_PER_SECOND: u64 = 1_000_000_000;
/// The kind and version of a saved state.
const SAVED: u32 = 0x0031_0001;

/// A real-time clock of a VM.
pub struct Pl031 {
    state: TicketMutex<State>,
    host: Arc<dyn DeviceHost>,
    irq: Arc<dyn IrqLine>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// The count at `since_ns`.
    loaded: u32,
    since_ns: u64,
    load: u32,
    match_at: u32,
    /// The time of the next match, unless it has come.
    alarm_ns: Option<u64>,
    raised: bool,
    unmasked: bool,
}

impl Pl031 {
    /// The length of its registers.
    pub const BYTES: u64 = 0x1000;

    /// A running clock at so many seconds.
    pub fn new(seconds: u32, host: Arc<dyn DeviceHost>, irq: Arc<dyn IrqLine>) -> Self {
        let state = State {
            loaded: seconds,
            since_ns: host.now_ns(),
            load: 0,
            match_at: 0,
            alarm_ns: None,
            raised: false,
            unmasked: false,
        };
        Self {
            state: TicketMutex::new(state),
            host,
            irq,
        }
    }

    /// When [`Self::attend`] is to be called, by the machine's clock. [`DeviceHost::wake`] is called when this changes.
    pub fn deadline_ns(&self) -> Option<u64> {
        let state = self.state.lock();
        state.alarm_ns.filter(|_| state.unmasked)
    }

    /// Raises the interrupt if its time has come.
    pub fn attend(&self) {
        self.change(|_, _| ());
    }

    /// Changes the state as of now, and tells the others what follows from it.
    fn change<R>(&self, change: impl FnOnce(&mut State, u64) -> R) -> R {
        let mut state = self.state.lock();
        let before = *state;
        let now_ns = self.host.now_ns();
        state.match_due(now_ns);
        let result = change(&mut state, now_ns);
        state.match_due(now_ns);
        let after = *state;
        if before.line() != after.line() {
            self.irq.set(after.line());
        }
        drop(state);
        let deadline = |state: &State| state.alarm_ns.filter(|_| state.unmasked);
        if deadline(&after).is_some() && deadline(&before) != deadline(&after) {
            self.host.wake();
        }
        result
    }
}

impl State {
    fn line(&self) -> bool {
        self.raised && self.unmasked
    }

    fn count(&self, now_ns: u64) -> u32 {
        let seconds = now_ns.saturating_sub(self.since_ns) / NS_PER_SECOND;
        self.loaded.wrapping_add(seconds as u32)
    }

    /// Sets the alarm for when the count will be that of the match register.
    fn arm(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.since_ns) / NS_PER_SECOND;
        let left = self.match_at.wrapping_sub(self.count(now_ns));
        let seconds = passed.saturating_add(left.into());
        let at_ns = seconds.saturating_mul(NS_PER_SECOND);
        self.alarm_ns = Some(self.since_ns.saturating_add(at_ns));
    }

    fn match_due(&mut self, now_ns: u64) {
        if self.alarm_ns.is_some_and(|alarm_ns| alarm_ns <= now_ns) {
            self.alarm_ns = None;
            self.raised = true;
        }
    }

    fn read(&self, register: u64, now_ns: u64) -> u32 {
        match register {
            DR => self.count(now_ns),
            MR => self.match_at,
            LR => self.load,
            // It can't be stopped.
            CR => 1,
            IMSC => self.unmasked.into(),
            RIS => self.raised.into(),
            MIS => self.line().into(),
            IDENTIFICATION.. => identification::read(PERIPHERAL, register),
            _ => 0,
        }
    }

    fn write(&mut self, register: u64, value: u32, now_ns: u64) {
        match register {
            MR => {
                self.match_at = value;
                self.arm(now_ns);
            }
            LR => {
                (self.load, self.loaded, self.since_ns) = (value, value, now_ns);
                self.arm(now_ns);
            }
            IMSC => self.unmasked = value & 1 != 0,
            ICR if value & 1 != 0 => self.raised = false,
            _ => {}
        }
    }
}

impl Device for Pl031 {
    fn read(&self, offset: u64, width: Width) -> u64 {
        self.change(|state, now_ns| {
            read_words(offset, width, |register| state.read(register, now_ns))
        })
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        self.change(|state, now_ns| {
            write_words(offset, width, value, |register, value| {
                state.write(register, value, now_ns);
            });
        });
    }

    /// The time that a VM is saved for doesn't count.
    fn save(&self, saved: &mut Vec<u8>) -> Result<(), TryReserveError> {
        let mut state = *self.state.lock();
        let now_ns = self.host.now_ns();
        // An alarm whose time has come may not have been attended to yet. Armed again it would come 2^32 seconds later.
        state.match_due(now_ns);
        let passed_ns = now_ns.saturating_sub(state.since_ns);
        let mut writer = Writer::begin(saved, SAVED, 4 * size_of::<u64>() + size_of::<u32>())?;
        writer.word(state.count(now_ns));
        writer.double(passed_ns % NS_PER_SECOND);
        writer.word(state.load);
        writer.word(state.match_at);
        writer.word(state.alarm_ns.is_some().into());
        writer.word(state.raised.into());
        writer.word(state.unmasked.into());
        Ok(())
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        fn flag(value: u32) -> Result<bool, RestoreError> {
            match value {
                0 | 1 => Ok(value == 1),
                _ => Err(RestoreError::Field("flag")),
            }
        }
        let mut reader = Reader::begin(saved, SAVED)?;
        let loaded = reader.word()?;
        let passed_ns = reader.double()?;
        let (load, match_at) = (reader.word()?, reader.word()?);
        let is_armed = flag(reader.word()?)?;
        let (raised, unmasked) = (flag(reader.word()?)?, flag(reader.word()?)?);
        reader.end()?;
        // What has passed in whole seconds is added to the count: this machine may not run for as long.
        let seconds = (passed_ns / NS_PER_SECOND) as u32;
        let now_ns = self.host.now_ns();
        let mut restored = State {
            loaded: loaded.wrapping_add(seconds),
            since_ns: now_ns.saturating_sub(passed_ns % NS_PER_SECOND),
            load,
            match_at,
            alarm_ns: None,
            raised,
            unmasked,
        };
        if is_armed {
            restored.arm(now_ns);
        }
        let mut state = self.state.lock();
        *state = restored;
        self.irq.set(state.line());
        drop(state);
        self.host.wake();
        Ok(())
    }
}

impl fmt::Debug for Pl031 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pl031").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestMachine;
    use proptest::prelude::*;

    struct Rtc {
        rtc: Pl031,
        machine: Arc<TestMachine>,
    }

    impl Rtc {
        fn new() -> Self {
            let machine = TestMachine::new();
            machine.pass(500);
            let rtc = Pl031::new(1_000_000, machine.clone(), machine.clone());
            Self { rtc, machine }
        }

        fn read(&self, offset: u64) -> u64 {
            self.rtc.read(offset, Width::Word)
        }

        fn write(&self, offset: u64, value: u64) {
            self.rtc.write(offset, Width::Word, value);
        }
    }

    #[test]
    fn it_counts_seconds() {
        let rtc = Rtc::new();
        assert_eq!(rtc.read(DR), 1_000_000);
        rtc.machine.pass(NS_PER_SECOND - 1);
        assert_eq!(rtc.read(DR), 1_000_000);
        rtc.machine.pass(1);
        assert_eq!(rtc.read(DR), 1_000_001);
        rtc.write(LR, 0xffff_ffff);
        assert_eq!((rtc.read(DR), rtc.read(LR)), (0xffff_ffff, 0xffff_ffff));
        rtc.machine.pass(2 * NS_PER_SECOND);
        assert_eq!(rtc.read(DR), 1);
        rtc.write(CR, 0);
        assert_eq!(rtc.read(CR), 1);
        let ids: Vec<u64> = (0xfe0..0x1000).step_by(4).map(|at| rtc.read(at)).collect();
        assert_eq!(ids, [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
    }

    #[test]
    fn the_alarm_comes_at_its_second() {
        let rtc = Rtc::new();
        rtc.write(MR, 1_000_003);
        assert_eq!((rtc.rtc.deadline_ns(), rtc.machine.wakes()), (None, 0));
        rtc.write(IMSC, 1);
        assert_eq!(rtc.rtc.deadline_ns(), Some(500 + 3 * NS_PER_SECOND));
        assert_eq!(rtc.machine.wakes(), 1);
        rtc.machine.pass(3 * NS_PER_SECOND - 1);
        rtc.rtc.attend();
        assert!(!rtc.machine.level());
        rtc.machine.pass(1);
        assert_eq!(rtc.rtc.deadline_ns(), Some(500 + 3 * NS_PER_SECOND));
        rtc.rtc.attend();
        assert!(rtc.machine.level());
        assert_eq!((rtc.read(RIS), rtc.read(MIS)), (1, 1));
        assert_eq!(rtc.rtc.deadline_ns(), None);
        rtc.write(IMSC, 0);
        assert_eq!((rtc.read(RIS), rtc.read(MIS)), (1, 0));
        assert!(!rtc.machine.level());
        rtc.write(ICR, 1);
        rtc.write(IMSC, 1);
        assert!(!rtc.machine.level());
    }

    #[test]
    fn an_alarm_for_now_comes_at_once_and_one_of_the_past_after_a_round() {
        let rtc = Rtc::new();
        rtc.write(IMSC, 1);
        rtc.write(MR, 1_000_000);
        assert!(rtc.machine.level());
        rtc.write(ICR, 1);
        assert!(!rtc.machine.level());
        rtc.write(MR, 999_999);
        assert!(!rtc.machine.level());
        let round = u64::from(u32::MAX) * NS_PER_SECOND;
        assert_eq!(rtc.rtc.deadline_ns(), Some(500 + round));
    }

    #[test]
    fn a_restored_clock_goes_on() {
        let rtc = Rtc::new();
        rtc.write(IMSC, 1);
        rtc.write(MR, 1_000_010);
        rtc.machine.pass(4 * NS_PER_SECOND + 600_000_000);
        let mut saved = Vec::new();
        rtc.rtc.save(&mut saved).unwrap();

        let other = Rtc::new();
        other.machine.pass(77 * NS_PER_SECOND);
        other.rtc.restore(&saved).unwrap();
        assert_eq!(other.read(DR), 1_000_004);
        other.machine.pass(400_000_000);
        assert_eq!(other.read(DR), 1_000_005);
        other.machine.pass(5 * NS_PER_SECOND - 1);
        other.rtc.attend();
        assert!(!other.machine.level());
        other.machine.pass(1);
        other.rtc.attend();
        assert!(other.machine.level());

        for length in 0..saved.len() {
            assert!(other.rtc.restore(&saved[..length]).is_err(), "{length}");
        }
        let last = saved.len() - 4;
        saved[last] = 2;
        assert_eq!(other.rtc.restore(&saved), Err(RestoreError::Field("flag")));
    }

    /// As when a fork holds CPU 0 up, which attends to the clock.
    #[test]
    fn an_alarm_that_came_unattended_is_saved_as_raised() {
        let rtc = Rtc::new();
        rtc.write(IMSC, 1);
        rtc.write(MR, 1_000_002);
        rtc.machine.pass(5 * NS_PER_SECOND);
        let mut saved = Vec::new();
        rtc.rtc.save(&mut saved).unwrap();
        let other = Rtc::new();
        other.rtc.restore(&saved).unwrap();
        assert!(other.machine.level());
        assert_eq!(other.rtc.deadline_ns(), None);
    }

    /// Found by fuzzing.
    #[test]
    fn a_restored_clock_is_saved_alike() {
        let rtc = Rtc::new();
        rtc.write(LR, 0xffff_ffff);
        rtc.machine.pass(137 * NS_PER_SECOND + 77);
        let (mut saved, mut again) = (Vec::new(), Vec::new());
        rtc.rtc.save(&mut saved).unwrap();
        rtc.rtc.restore(&saved).unwrap();
        rtc.rtc.save(&mut again).unwrap();
        assert_eq!(saved, again);
    }

    proptest! {
        #[test]
        fn any_accesses_leave_a_state_that_makes_sense(
            acts in prop::collection::vec((any::<bool>(), prop_oneof![4 => (0u64..10).prop_map(|at| 4 * at), 1 => any::<u64>()], 0usize..4, any::<u64>(), any::<u32>()), 0..100)
        ) {
            let rtc = Rtc::new();
            for (write, offset, width, value, ns) in acts {
                let width = Width::ALL[width];
                if write {
                    rtc.rtc.write(offset, width, value);
                } else {
                    let value = rtc.rtc.read(offset, width);
                    prop_assert_eq!(value, width.of(value));
                }
                rtc.machine.pass(ns.into());
                rtc.rtc.attend();
                prop_assert_eq!(rtc.read(MIS) == 1, rtc.machine.level());
                let mut saved = Vec::new();
                rtc.rtc.save(&mut saved).unwrap();
                let (count, deadline) = (rtc.read(DR), rtc.rtc.deadline_ns());
                rtc.rtc.restore(&saved).unwrap();
                prop_assert_eq!(count, rtc.read(DR));
                prop_assert_eq!(deadline, rtc.rtc.deadline_ns());
            }
        }

        #[test]
        fn any_state_is_refused_or_taken_without_a_panic(saved in prop::collection::vec(any::<u8>(), 36), length in 0usize..41) {
            let mut whole = SAVED.to_le_bytes().to_vec();
            whole.extend(saved);
            let rtc = Rtc::new();
            let _ = rtc.rtc.restore(&whole[..length.min(whole.len())]);
            rtc.read(DR);
        }
    }
}
