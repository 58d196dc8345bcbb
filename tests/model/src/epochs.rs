//! Epochs that pass: a retired frame is freed once everybody has left who was inside when it was retired.

use crate::locked;
use stage2::{Epoch, TableFrame, Unlinked};
use std::collections::BTreeMap;
use std::sync::Mutex;

#[derive(Debug, Default)]
struct State {
    clock: u64,
    /// When everybody who is inside came in.
    inside: BTreeMap<u64, u64>,
    waiting: Vec<(u64, TableFrame)>,
}

/// The epochs of one machine.
#[derive(Debug, Default)]
pub(crate) struct Epochs(Mutex<State>);

impl Epochs {
    /// Comes in. Returns what to leave with.
    pub(crate) fn enter(&self) -> u64 {
        let mut state = locked(&self.0);
        state.clock += 1;
        let now = state.clock;
        state.inside.insert(now, now);
        now
    }

    /// Leaves. Returns the frames that nobody can be looking at any more.
    pub(crate) fn leave(&self, guest: u64) -> Vec<TableFrame> {
        let state = &mut *locked(&self.0);
        state.inside.remove(&guest);
        let oldest = state.inside.values().next().copied().unwrap_or(u64::MAX);
        (state.waiting)
            .extract_if(.., |(retired, _)| *retired < oldest)
            .map(|(_, frame)| frame)
            .collect()
    }

    /// Frames that wait.
    pub(crate) fn pending(&self) -> usize {
        locked(&self.0).waiting.len()
    }
}

// SAFETY: `leave` frees what was retired once all who were inside then have left, whose operations have ended.
unsafe impl Epoch for Epochs {
    fn retire(&self, unlinked: Unlinked) {
        let mut state = locked(&self.0);
        state.clock += 1;
        let now = state.clock;
        state.waiting.push((now, unlinked.into_frame()));
    }
}
