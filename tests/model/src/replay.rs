//! One machine and its reference, taken through the same operations.
//!
//! For one thread. A difference is a panic, so that whatever makes up the operations (a random strategy, a fuzzer) can
//! shrink them.

use stage2::Ipa;

use crate::{Ground, Machine, Mapped, Operation, Reference, Report, Survey, perform};

/// A machine and what it should be.
#[derive(Debug)]
pub struct Replay {
    ground: Ground,
    machine: Machine,
    reference: Reference,
}

impl Replay {
    /// With empty tables.
    pub fn new(ground: &Ground) -> Self {
        Self {
            ground: ground.clone(),
            machine: Machine::new(*ground.layout()),
            reference: Reference::new(ground),
        }
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Does `operation` to both and compares what they report. What the engine reported.
    pub fn step(&mut self, operation: Operation) -> Report {
        if let Operation::Supply(supply) = operation {
            self.machine.frames.set_supply(supply);
        }
        let stage2 = &self.machine.stage2;
        let found = self
            .machine
            .on(0, |worker| perform(stage2, worker, &self.ground, operation));
        let expected = self.reference.perform(operation);
        assert_eq!(found, expected, "reported, and expected, of {operation:?}");
        found
    }

    /// Compares all of the tables, and counts their frames.
    pub fn compare(&self) {
        let stage2 = &self.machine.stage2;
        let survey = self.machine.on(0, |worker| Survey::of(stage2, worker));
        assert_same_leaves(survey.leaves.iter(), self.reference.leaves().iter());
        assert_eq!(&survey.tables, self.reference.tables(), "tables");
        survey.check(stage2.layout());
        self.machine.pass_epoch();
        assert_eq!(
            self.machine.frames.live(),
            survey.tables.len() + stage2.layout().root_tables(),
            "frames that no entry leads to"
        );
    }

    /// Gives up the tables and checks that nothing is left of them.
    pub fn finish(self) {
        self.compare();
        self.machine.destroy();
    }
}

/// Names the first leaf that differs: there may be thousands.
pub fn assert_same_leaves<'l>(
    found: impl Iterator<Item = (&'l Ipa, &'l Mapped)>,
    expected: impl Iterator<Item = (&'l Ipa, &'l Mapped)>,
) {
    let mut found = found.fuse();
    let mut expected = expected.fuse();
    loop {
        match (found.next(), expected.next()) {
            (None, None) => return,
            (found, expected) => assert_eq!(found, expected, "in the tables, and expected"),
        }
    }
}
