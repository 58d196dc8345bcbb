//! The command queue's registers that change together: CWRITER, CREADR, and who executes.

use crate::sync::{AtomicU64, Ordering};

/// The most commands of a queue: of 1 MiB, of 32 bytes each.
const INDEX_BITS: u32 = 15;
const INDEX: u64 = (1 << INDEX_BITS) - 1;
const READER_SHIFT: u32 = INDEX_BITS;

/// One value of the queue's word: the numbers of the next command to be written and read, and flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct State(pub(crate) u64);

impl State {
    /// A vCPU executes commands.
    pub(crate) const BUSY: u64 = 1 << 30;
    /// A command couldn't be read; none is executed until CWRITER.Retry is written.
    pub(crate) const STALLED: u64 = 1 << 31;
    /// GITS_CTLR.Enabled.
    pub(crate) const ENABLED: u64 = 1 << 32;
    /// All devices' events have to be discarded, as their table was replaced.
    pub(crate) const NO_DEVICES: u64 = 1 << 33;
    /// All collections have to be unmapped.
    pub(crate) const NO_COLLECTIONS: u64 = 1 << 34;
    pub(crate) const JOBS: u64 = Self::NO_DEVICES | Self::NO_COLLECTIONS;
    const PROGRESS_SHIFT: u32 = 40;

    pub(crate) const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    pub(crate) const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    pub(crate) const fn without(self, bits: u64) -> Self {
        Self(self.0 & !bits)
    }

    pub(crate) const fn writer(self) -> u64 {
        self.0 & INDEX
    }

    pub(crate) const fn with_writer(self, writer: u64) -> Self {
        Self(self.0 & !INDEX | writer & INDEX)
    }

    pub(crate) const fn reader(self) -> u64 {
        self.0 >> READER_SHIFT & INDEX
    }

    pub(crate) const fn with_reader(self, reader: u64) -> Self {
        Self(self.0 & !(INDEX << READER_SHIFT) | (reader & INDEX) << READER_SHIFT)
    }

    /// How many places of the table of events the command or job that is executed has seen.
    pub(crate) const fn progress(self) -> usize {
        (self.0 >> Self::PROGRESS_SHIFT) as usize
    }

    pub(crate) const fn with_progress(self, places: usize) -> Self {
        let low = self.0 & ((1 << Self::PROGRESS_SHIFT) - 1);
        Self(low | (places as u64) << Self::PROGRESS_SHIFT)
    }

    /// Whether a command or job has begun and isn't done, or a job waits.
    pub(crate) const fn is_amid(self) -> bool {
        self.has(Self::JOBS) || self.progress() != 0
    }

    /// Whether there is something to execute.
    pub(crate) const fn has_work(self) -> bool {
        self.is_amid()
            || self.has(Self::ENABLED) && !self.has(Self::STALLED) && self.reader() != self.writer()
    }

    /// GITS_CTLR.Quiescent: the guest may change where tables and queue are.
    pub(crate) const fn is_quiescent(self) -> bool {
        !self.has(Self::ENABLED | Self::BUSY) && !self.is_amid()
    }
}

/// The word.
#[derive(Debug)]
pub(crate) struct Queue(AtomicU64);

impl Queue {
    pub(crate) fn new(state: u64) -> Self {
        Self(AtomicU64::new(state))
    }

    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// As it is, for a VM that is paused.
    pub(crate) fn copied(&self) -> Self {
        Self(super::copy_of(&self.0))
    }

    pub(crate) fn state(&self) -> State {
        State(self.0.load(Ordering::Acquire))
    }

    /// Whether events are translated.
    pub(crate) fn is_enabled(&self) -> bool {
        self.state().has(State::ENABLED)
    }

    /// Changes the word by one exchange, unless `change` finds nothing to do. Returns the new value.
    pub(crate) fn change(&self, mut change: impl FnMut(State) -> Option<State>) -> Option<State> {
        let mut seen = self.0.load(Ordering::Acquire);
        loop {
            let new = change(State(seen))?;
            // What the one before has done with the tables is seen by the next, who acquires this.
            match self
                .0
                .compare_exchange(seen, new.0, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Some(new),
                Err(other) => seen = other,
            }
        }
    }

    /// Takes BUSY, if there is something to execute and nobody does. Returns the state then.
    pub(crate) fn begin(&self) -> Option<State> {
        self.begin_with(Some)
    }

    /// As [`begin`](Self::begin), by the exchange that changes the word.
    pub(crate) fn begin_with(
        &self,
        mut change: impl FnMut(State) -> Option<State>,
    ) -> Option<State> {
        let mut begins = false;
        let state = self.change(|old| {
            let new = change(old)?;
            begins = new.has_work() && !new.has(State::BUSY);
            let new = if begins { new.with(State::BUSY) } else { new };
            (new != old).then_some(new)
        });
        state.filter(|_| begins)
    }

    /// A part of the work is done: whoever has BUSY changes the word, and lets go of BUSY if there is nothing left. Whoever adds
    /// something later finds nobody busy.
    pub(crate) fn advance(&self, mut change: impl FnMut(State) -> State) -> State {
        let advanced = |state| {
            let new = change(state);
            let is_done = !new.has_work();
            Some(if is_done {
                new.without(State::BUSY)
            } else {
                new
            })
        };
        self.change(advanced).unwrap_or(State(0))
    }

    /// Lets go of BUSY, though there is something left.
    pub(crate) fn let_go(&self) {
        self.change(|state| Some(state.without(State::BUSY)));
    }
}
