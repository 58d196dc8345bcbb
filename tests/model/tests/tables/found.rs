//! Bugs that random sequences have found, each by the sequence that it shrank to.

use model::{Backing, Ground, Mapped, OnWrite, Operation, Replay, Report, Served, Span};
use stage2::{Access, Attributes, Bbm, Features, Granule, Level, Permissions};

fn map(largest: Level, permissions: Permissions) -> Operation {
    Operation::Map {
        span: Span::All,
        backing: Backing::First,
        largest,
        attributes: Attributes::memory(permissions),
    }
}

fn write(place: u16) -> Operation {
    Operation::Fault {
        place,
        access: Access::Write,
        backing: Backing::First,
        largest: Level::L3,
        attributes: Attributes::memory(Permissions::RAM),
        on_write: OnWrite::Split(Level::L3),
    }
}

fn compared(ground: &Ground, operations: &[Operation]) -> Report {
    let mut replay = Replay::new(ground);
    let mut report = Report::Nothing;
    for operation in operations {
        report = replay.step(*operation);
        replay.compare();
    }
    replay.finish();
    report
}

/// The mark of FEAT_BBM level 1 was read as a part of the block's address.
#[test]
#[cfg_attr(miri, ignore = "thousands of entries for each step")]
fn a_block_is_split_by_way_of_its_mark() {
    for granule in Granule::ALL {
        let ground = Ground::real(Features {
            granule,
            bbm: Bbm::Level1,
            ..Features::armv8_0(40, 48)
        });
        let split = Operation::Split {
            span: Span::All,
            to: Level::L3,
            blocks: u64::MAX,
        };
        let blocks = map(Level::L2, Permissions::LOGGED);
        let report = compared(&ground, &[blocks, split]);
        assert!(matches!(report, Report::Split { blocks: 3, .. }));
        let report = compared(&ground, &[blocks, write(3)]);
        assert_eq!(report, Report::Served(Served::Split));
    }
}

/// There was room for no more than 32 entries of a group.
#[test]
#[cfg_attr(miri, ignore = "thousands of entries for each step")]
fn a_group_of_128_pages_is_filled_and_taken_apart() {
    let ground = Ground::real(Features {
        granule: Granule::Size16K,
        contiguous: true,
        ..Features::armv8_0(40, 48)
    });
    let table = [
        write(0),
        Operation::Unmap {
            span: Span::Pages(0, 0),
        },
    ];
    let grouped = map(Level::L3, Permissions::LOGGED);
    let report = compared(
        &ground,
        &[table[0], table[1], grouped, Operation::Lookup { place: 1 }],
    );
    assert!(matches!(
        report,
        Report::Found(Some(Mapped {
            contiguous: true,
            ..
        }))
    ));
    let report = compared(&ground, &[table[0], table[1], grouped, write(1)]);
    assert_eq!(report, Report::Served(Served::Relaxed(Level::L3)));
}

/// A dirty table became a writable block, whatever its owner said.
#[test]
fn a_collapse_gives_no_right_that_its_owner_withholds() {
    let ground = Ground::small(
        Level::L2,
        Features {
            hardware_access: true,
            hardware_dirty: true,
            ..Features::armv8_0(32, 48)
        },
    );
    let withheld = Permissions {
        hardware_dirty: true,
        ..Permissions::READ_ONLY
    };
    compared(
        &ground,
        &[
            map(Level::L3, Permissions::LOGGED_BY_HARDWARE),
            Operation::Touch {
                place: 0,
                write: true,
            },
            Operation::Collapse {
                span: Span::All,
                to: Level::L2,
                permissions: withheld,
            },
        ],
    );
}
