//! Every operation that takes frames for tables, with the n-th allocation failing, for every n until none fails. A failed
//! operation leaves the tables as valid as before, says how far it came, and leaks nothing; and once there are frames again,
//! the same call completes.

use model::{
    Backing, Ground, Machine, Mapped, OnWrite, Operation, Replay, Report, Served, Span, Supply,
    backing_of,
};
use stage2::{
    Access, Attributes, Bbm, Features, Granule, Ipa, Layout, Level, MapStopped, Mapping,
    Permissions,
};

const RAM: Attributes = Attributes::memory(Permissions::RAM);
const LOGGED: Attributes = Attributes::memory(Permissions::LOGGED);

/// A way to run out after `count` frames.
type Scarcity = fn(usize) -> Supply;

const SCARCITIES: [Scarcity; 3] = [Supply::Left, Supply::Pool, Supply::FailsAfter];

fn fault(place: u16, access: Access, largest: Level, on_write: OnWrite) -> Operation {
    Operation::Fault {
        place,
        access,
        backing: Backing::First,
        largest,
        attributes: RAM,
        on_write,
    }
}

fn map(span: Span, largest: Level, attributes: Attributes) -> Operation {
    Operation::Map {
        span,
        backing: Backing::First,
        largest,
        attributes,
    }
}

/// Real tables of every granule and address format, and small ones, whose blocks of level 1 have few pages.
fn each_ground(test: impl Fn(&Ground)) {
    if cfg!(miri) {
        // The rest takes it many minutes.
        return test(&Ground::small(Level::L1, Features::armv8_0(48, 48)));
    }
    for bbm in [Bbm::Level0, Bbm::Level1, Bbm::Level2] {
        let features = |granule, ipa_bits, pa_bits, lpa2| Features {
            granule,
            lpa2,
            bbm,
            contiguous: true,
            ..Features::armv8_0(ipa_bits, pa_bits)
        };
        let four = features(Granule::Size4K, 48, 48, false);
        if bbm != Bbm::Level1 {
            test(&Ground::small(Level::L1, four));
            test(&Ground::small(Level::L0, four));
        }
        test(&Ground::real(four));
        if bbm != Bbm::Level0 {
            continue;
        }
        test(&Ground::real(features(Granule::Size4K, 52, 52, true)));
        test(&Ground::real(features(Granule::Size16K, 40, 48, false)));
        test(&Ground::real(features(Granule::Size64K, 52, 52, false)));
    }
}

/// Whether it ended for want of a frame, and up to where it was done then.
fn failure(report: &Report) -> Option<Option<Ipa>> {
    match report {
        Report::Served(Served::OutOfFrames) => Some(None),
        Report::Mapped {
            done_to,
            stopped: Some(MapStopped::OutOfFrames),
            ..
        }
        | Report::Split {
            done_to,
            failed: true,
            ..
        } => Some(Some(*done_to)),
        _ => None,
    }
}

/// What the tables map at each place of the ground.
fn pages(replay: &Replay, ground: &Ground) -> Vec<(Ipa, Option<Mapped>)> {
    let found = |place| {
        let ipa = ground.page(place);
        let leaf = replay.machine().lookup(ipa);
        (ipa, leaf.map(|(leaf, level)| Mapped::new(level, leaf)))
    };
    (0..ground.pages() as u16).map(found).collect()
}

/// Runs `operation`, after `before`, with every number of frames that doesn't suffice. How many such numbers there are: the
/// frames that it takes. [`Replay`] compares reports and tables with the reference at each step.
fn with_too_few_frames(ground: &Ground, before: &[Operation], operation: Operation) -> usize {
    let begin = || {
        let mut replay = Replay::new(ground);
        for operation in before {
            replay.step(*operation);
        }
        replay
    };
    let mut replay = begin();
    replay.step(operation);
    let complete = pages(&replay, ground);
    replay.finish();
    let mut most = 0;
    for scarcity in SCARCITIES {
        for frames in 0.. {
            let mut replay = begin();
            let as_before = pages(&replay, ground);
            replay.step(Operation::Supply(scarcity(frames)));
            let report = replay.step(operation);
            replay.compare();
            let Some(done_to) = failure(&report) else {
                assert_eq!(pages(&replay, ground), complete);
                replay.finish();
                most = most.max(frames);
                break;
            };
            let now = pages(&replay, ground);
            for ((found, before), wanted) in now.iter().zip(&as_before).zip(&complete) {
                // A block that was replaced level by level is done only when its last piece is.
                let replaced = matches!(operation, Operation::Split { .. })
                    && found.1.map(|leaf| leaf.level) > before.1.map(|leaf| leaf.level);
                if done_to.is_some_and(|done_to| found.0 < done_to) {
                    assert_eq!(found, wanted, "below {done_to:?}, where it was done");
                } else if !replaced {
                    let alone = |page: &(Ipa, Option<Mapped>)| (page.0, page.1.map(Mapped::alone));
                    assert_eq!(alone(found), alone(before), "not done yet, so unchanged");
                }
            }
            replay.step(Operation::Supply(Supply::Unlimited));
            let again = replay.step(operation);
            assert_eq!(failure(&again), None, "the same call, with frames");
            assert_eq!(pages(&replay, ground), complete);
            replay.finish();
        }
    }
    most
}

#[test]
fn a_fault_on_nothing() {
    each_ground(|ground| {
        let read = fault(7, Access::Read, Level::L3, OnWrite::Whole);
        let levels = Level::L3 as usize - ground.layout().start() as usize;
        assert_eq!(with_too_few_frames(ground, &[], read), levels);
    });
}

#[test]
fn a_write_fault_that_splits_or_isolates() {
    each_ground(|ground| {
        for level in [Level::L1, Level::L2] {
            let level = ground.largest(level);
            let block = Operation::Map {
                span: Span::All,
                backing: Backing::First,
                largest: level,
                attributes: LOGGED,
            };
            for on_write in OnWrite::ALL {
                let write = fault(5, Access::Write, level, on_write);
                let levels = (on_write.largest_written() as usize).saturating_sub(level as usize);
                assert_eq!(with_too_few_frames(ground, &[block], write), levels);
            }
        }
    });
}

#[test]
#[cfg_attr(miri, ignore = "runs through hundreds of machines")]
fn a_map_by_pages_over_several_tables() {
    each_ground(|ground| {
        let last = ground.pages() as u16 - 1;
        let pages = map(Span::Pages(1, last - 1), Level::L3, RAM);
        assert!(with_too_few_frames(ground, &[], pages) >= 3);
    });
}

#[test]
#[cfg_attr(miri, ignore = "runs through hundreds of machines")]
fn a_map_by_the_largest_blocks_that_begins_and_ends_within_one() {
    each_ground(|ground| {
        let last = ground.pages() as u16 - 1;
        let mixed = map(Span::Pages(1, last - 1), Level::L0, RAM);
        assert!(with_too_few_frames(ground, &[], mixed) >= 2);
    });
}

#[test]
#[cfg_attr(miri, ignore = "runs through hundreds of machines")]
fn a_map_around_what_is_there_already() {
    each_ground(|ground| {
        let there = [
            fault(2, Access::Read, Level::L3, OnWrite::Whole),
            map(Span::Tables(1, 0), Level::L2, LOGGED),
        ];
        let around = map(Span::All, Level::L3, RAM);
        assert!(with_too_few_frames(ground, &there, around) >= 1);
    });
}

#[test]
#[cfg_attr(miri, ignore = "runs through hundreds of machines")]
fn a_split_of_several_blocks() {
    each_ground(|ground| {
        let blocks = map(Span::All, Level::L2, LOGGED);
        let split = Operation::Split {
            span: Span::All,
            to: Level::L3,
            blocks: u64::MAX,
        };
        assert!(with_too_few_frames(ground, &[blocks], split) >= 3);
    });
}

#[test]
#[cfg_attr(miri, ignore = "runs through hundreds of machines")]
fn a_split_of_blocks_of_level_1_at_once_or_level_by_level() {
    each_ground(|ground| {
        if !ground.is_small() {
            return;
        }
        let blocks = map(Span::All, Level::L1, LOGGED);
        for to in [Level::L2, Level::L3] {
            let split = Operation::Split {
                span: Span::Pages(0, 31),
                to,
                blocks: u64::MAX,
            };
            assert!(with_too_few_frames(ground, &[blocks], split) >= 2);
        }
    });
}

/// What is too much to look at page by page: 262,144 of them.
#[test]
#[cfg_attr(miri, ignore = "hundreds of thousands of entries")]
fn a_split_of_a_gigabyte_to_pages_takes_513_frames_or_goes_level_by_level() {
    const FRAMES: usize = 513;
    let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
    let start = Ipa::new(layout.span(Level::L1));
    let range = || start..start.offset(layout.span(Level::L1));
    for frames in 0..=FRAMES {
        let machine = Machine::new(layout);
        machine.on(0, |cpu| {
            let mapping = Mapping {
                pa: backing_of(start),
                attributes: LOGGED,
                largest: Level::L1,
            };
            let stage2 = &machine.stage2;
            stage2.map(cpu, range(), mapping, || true).unwrap();
            let before = machine.frames.live();
            machine.frames.set_supply(Supply::Left(frames));
            let split = stage2.split(cpu, range(), Level::L3, u64::MAX);
            let Err(failed) = split else {
                assert_eq!(
                    (frames, machine.frames.live() - before),
                    (FRAMES, FRAMES),
                    "frames that it took"
                );
                return;
            };
            // All that there were went into the tables that weren't enough, and came back.
            assert_eq!((failed.split.done_to, failed.split.blocks), (start, 0));
            assert_eq!(machine.frames.live(), before);
            assert_eq!(stage2.lookup(cpu, start).unwrap().1, Level::L1);
            if frames % 64 != 1 {
                return;
            }
            machine.frames.set_supply(Supply::Pool(frames));
            let failed = stage2
                .split(cpu, range(), Level::L3, u64::MAX)
                .expect_err("a frame too few");
            // One goes into the table of 2 MiB blocks.
            let done = (frames as u64 - 1) * layout.span(Level::L2);
            assert_eq!(failed.split.done_to, start.offset(done));
            assert_eq!(machine.frames.live() - before, frames);
            let level = |ipa| stage2.lookup(cpu, ipa).unwrap().1;
            assert_eq!(level(failed.split.done_to), Level::L2);
            assert!(done == 0 || level(start.offset(done - 1)) == Level::L3);
            machine.frames.set_supply(Supply::Unlimited);
            let rest = stage2.split(cpu, range(), Level::L3, u64::MAX).unwrap();
            assert_eq!(rest.done_to, range().end);
            assert_eq!(machine.frames.live() - before, FRAMES);
        });
        machine.destroy();
    }
}
