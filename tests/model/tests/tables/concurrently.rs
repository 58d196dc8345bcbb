//! Random operations on several threads at once: on pages of their own in tables that they share, where each thread knows
//! exactly what it will find; and on the same pages, where the tables have to be well formed in the end.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::thread;

use model::strategies::{ACCESSES, attributes, backing, is_quick, operation, permissions};
use model::{
    Backing, Filter, Ground, Machine, OnWrite, Operation, Reference, Report, Span, Survey,
    assert_same_leaves, perform, small_grounds,
};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use stage2::{Access, Attributes, Level, Permissions};

/// Runs each list of operations on a thread and a CPU of its own, all of them at once, and collects what `work` says.
fn at_once<R: Send>(
    machine: &Machine,
    lists: &[Vec<Operation>],
    work: impl Fn(usize, &[Operation], &mut dyn FnMut(Operation) -> Report) -> R + Sync,
    ground: &Ground,
) -> Vec<R> {
    let start = Barrier::new(lists.len());
    let run = |cpu: usize| {
        start.wait();
        machine.on(cpu, |worker| {
            work(cpu, &lists[cpu], &mut |operation| {
                perform(&machine.stage2, worker, ground, operation)
            })
        })
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..lists.len())
            .map(|cpu| scope.spawn(move || run(cpu)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, R>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    })
}

/// What must hold of any tree that nobody is changing.
fn well_formed(machine: &Machine) -> Survey {
    let stage2 = &machine.stage2;
    let survey = machine.on(0, |worker| Survey::of(stage2, worker));
    survey.check(stage2.layout());
    machine.pass_epoch();
    assert_eq!(
        machine.frames.live(),
        survey.tables.len() + stage2.layout().root_tables(),
        "frames that no entry leads to"
    );
    survey
}

/// The pages of a ground, shared out in pieces as large as a contiguous group.
struct Shares {
    threads: u16,
    piece: u16,
    pieces: u16,
}

impl Shares {
    fn new(ground: &Ground, threads: usize) -> Self {
        let piece = ground.layout().group(Level::L3).unwrap_or(2);
        Self {
            threads: threads as u16,
            piece: piece as u16,
            pieces: (ground.pages() / piece) as u16,
        }
    }

    /// A page of `cpu`.
    fn page(&self, cpu: usize, place: u16) -> u16 {
        let pieces = self.pieces / self.threads;
        let mine = place / self.piece % pieces * self.threads + cpu as u16;
        mine * self.piece + place % self.piece
    }

    /// Some pages in a row of `cpu`.
    fn span(&self, cpu: usize, one: u16, other: u16) -> Span {
        let first = self.page(cpu, one);
        Span::Pages(first, first - first % self.piece + other % self.piece)
    }

    /// The operation on pages of `cpu`, and on pages only.
    fn own(&self, cpu: usize, operation: Operation) -> Operation {
        let page = |place| self.page(cpu, place);
        let within = |span| match span {
            Span::Pages(one, other) => self.span(cpu, one, other),
            Span::Tables(one, other) => self.span(cpu, one.into(), other.into()),
            Span::All => Span::All,
        };
        match operation {
            Operation::Fault {
                place,
                access,
                backing,
                attributes,
                ..
            } => Operation::Fault {
                place: page(place),
                access,
                backing,
                largest: Level::L3,
                attributes,
                on_write: OnWrite::Split(Level::L3),
            },
            Operation::Touch { place, write } => Operation::Touch {
                place: page(place),
                write,
            },
            Operation::Map {
                span,
                backing,
                attributes,
                ..
            } => Operation::Map {
                span: within(span),
                backing,
                largest: Level::L3,
                attributes,
            },
            Operation::Unmap { span } => Operation::Unmap { span: within(span) },
            Operation::UnmapLeaves { span, only } => Operation::UnmapLeaves {
                span: within(span),
                only,
            },
            Operation::Replace {
                span,
                only,
                backing,
                attributes,
            } => Operation::Replace {
                span: within(span),
                only,
                backing,
                attributes,
            },
            Operation::Protect { span, permissions } => Operation::Protect {
                span: within(span),
                permissions,
            },
            Operation::WriteProtect { span, only } => Operation::WriteProtect {
                span: within(span),
                only,
            },
            Operation::Age { span } => Operation::Age { span: within(span) },
            Operation::HarvestDirty { span } => Operation::HarvestDirty { span: within(span) },
            Operation::FindDirty { span } => Operation::FindDirty { span: within(span) },
            Operation::TrackWrites {
                span,
                largest,
                only,
            } => Operation::TrackWrites {
                span: within(span),
                largest,
                only,
            },
            Operation::Lookup { place } => Operation::Lookup { place: page(place) },
            other => other,
        }
    }
}

/// Operations that a thread can do on pages of its own without changing anybody else's.
fn private() -> impl Strategy<Value = Operation> {
    let pages = || any::<(u16, u16)>().prop_map(|(one, other)| Span::Pages(one, other));
    let fault = (any::<u16>(), select(&ACCESSES), backing(), attributes()).prop_map(
        |(place, access, backing, attributes)| Operation::Fault {
            place,
            access,
            backing,
            largest: Level::L3,
            attributes,
            on_write: OnWrite::Split(Level::L3),
        },
    );
    let map =
        (pages(), backing(), attributes()).prop_map(|(span, backing, attributes)| Operation::Map {
            span,
            backing,
            largest: Level::L3,
            attributes,
        });
    prop_oneof![
        6 => fault,
        4 => any::<(u16, bool)>().prop_map(|(place, write)| Operation::Touch { place, write }),
        3 => map,
        2 => pages().prop_map(|span| Operation::Unmap { span }),
        2 => pages().prop_map(|span| Operation::UnmapLeaves {
            span,
            only: Filter::EvenPages,
        }),
        3 => (pages(), backing(), attributes()).prop_map(|(span, backing, attributes)| {
            Operation::Replace {
                span,
                only: Filter::All,
                backing,
                attributes,
            }
        }),
        3 => (pages(), permissions())
            .prop_map(|(span, permissions)| Operation::Protect { span, permissions }),
        2 => pages().prop_map(|span| Operation::Age { span }),
        2 => pages().prop_map(|span| Operation::HarvestDirty { span }),
        2 => pages().prop_map(|span| Operation::FindDirty { span }),
        2 => pages().prop_map(|span| Operation::TrackWrites {
            span,
            largest: Level::L3,
            only: Filter::All,
        }),
        1 => any::<u16>().prop_map(|place| Operation::Lookup { place }),
        // These look at everybody's pages, and change nothing there.
        1 => Just(SPLIT_ALL),
        1 => Just(Operation::Invalidate { span: Span::All }),
    ]
}

/// Read-only blocks where the backing allows it; a first write faults, and splits.
const LOGGED_BLOCKS: Operation = Operation::Map {
    span: Span::All,
    backing: Backing::First,
    largest: Level::L2,
    attributes: Attributes::memory(Permissions::LOGGED),
};

const SPLIT_ALL: Operation = Operation::Split {
    span: Span::All,
    to: Level::L3,
    blocks: u64::MAX,
};

/// Each thread finds its own pages exactly as it left them, whatever happens to the rest of their tables.
fn each_on_its_own(ground: &Ground, lists: &[Vec<Operation>], begin_with_blocks: bool) {
    let machine = Machine::new(*ground.layout());
    let shares = Shares::new(ground, lists.len());
    let mut start = Reference::new(ground);
    let alone = |operation| machine.on(0, |cpu| perform(&machine.stage2, cpu, ground, operation));
    if begin_with_blocks {
        alone(LOGGED_BLOCKS);
        start.perform(LOGGED_BLOCKS);
        // As all of them look once each thread has written to its own.
        start.perform(SPLIT_ALL);
    }
    let work = |cpu: usize, list: &[Operation], perform: &mut dyn FnMut(Operation) -> Report| {
        let mut reference = start.clone();
        if begin_with_blocks {
            for place in 0..shares.pieces / shares.threads * shares.piece {
                let write = Operation::Fault {
                    place: shares.page(cpu, place),
                    access: Access::Write,
                    backing: Backing::First,
                    largest: Level::L3,
                    attributes: Attributes::memory(Permissions::RAM),
                    on_write: OnWrite::Split(Level::L3),
                };
                // Who is first splits the block, the others find it split.
                perform(write);
                reference.perform(write);
            }
        }
        for operation in list {
            let operation = shares.own(cpu, *operation);
            let (found, expected) = (perform(operation), reference.perform(operation));
            if !matches!(operation, Operation::Split { .. }) {
                assert_eq!(
                    found, expected,
                    "reported, and expected, of {operation:?} on CPU {cpu}"
                );
            }
        }
        reference
    };
    let references = at_once(&machine, lists, work, ground);
    // Some pages may be nobody's, and in blocks still.
    alone(SPLIT_ALL);
    let survey = well_formed(&machine);
    let mut expected: BTreeMap<_, _> = start.leaves().clone();
    for (cpu, reference) in references.iter().enumerate() {
        for place in 0..shares.pieces / shares.threads * shares.piece {
            let ipa = ground.page(shares.page(cpu, place));
            match reference.leaves().get(&ipa) {
                Some(leaf) => expected.insert(ipa, *leaf),
                None => expected.remove(&ipa),
            };
        }
    }
    assert_same_leaves(survey.leaves.iter(), expected.iter());
    machine.destroy();
}

/// Whatever threads do to the same pages, the tables stay well formed and map what backs the pages.
fn all_on_the_same(ground: &Ground, lists: &[Vec<Operation>]) {
    let machine = Machine::new(*ground.layout());
    let work = |_: usize, list: &[Operation], perform: &mut dyn FnMut(Operation) -> Report| {
        for operation in list {
            if !matches!(operation, Operation::Supply(_)) {
                perform(*operation);
            }
        }
    };
    at_once(&machine, lists, work, ground);
    for (ipa, leaf) in well_formed(&machine).leaves {
        let backing = Backing::ALL.map(|backing| ground.frame(ipa, backing).get());
        assert!(
            backing.contains(&leaf.pa),
            "{leaf:?} at {ipa} is none of its frames"
        );
    }
    machine.destroy();
}

/// Runs `cases` sets of lists on each ground for the usual 256 of PROPTEST_CASES.
fn check<S: Strategy<Value = Operation>>(
    cases: u32,
    length: usize,
    operation: fn() -> S,
    test: impl Fn(&Ground, &[Vec<Operation>], bool),
) {
    let usual = ProptestConfig::default();
    let (cases, length) = if cfg!(miri) {
        (1, 8)
    } else {
        ((usual.cases * cases).div_ceil(256), length)
    };
    for ground in small_grounds().iter().filter(|ground| is_quick(ground)) {
        let mut runner = TestRunner::new(ProptestConfig {
            cases,
            failure_persistence: None,
            max_shrink_iters: 4096,
            ..usual.clone()
        });
        let lists = prop::collection::vec(prop::collection::vec(operation(), 1..length), 2..=4);
        let result = runner.run(&(lists, any::<bool>()), |(lists, begin_with_blocks)| {
            test(ground, &lists, begin_with_blocks);
            Ok(())
        });
        if let Err(error) = result {
            panic!("{:?}: {error}", ground.layout().features());
        }
    }
}

#[test]
fn threads_on_pages_of_their_own_find_them_as_they_left_them() {
    check(48, 60, private, each_on_its_own);
}

#[test]
fn threads_on_the_same_pages_leave_the_tables_well_formed() {
    check(48, 60, operation, |ground, lists, _| {
        all_on_the_same(ground, lists)
    });
}
