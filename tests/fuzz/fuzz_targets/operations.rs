//! Any sequence of operations leaves the tables as a plain map from page to what it should be says, and reports the same.
//!
//! The reference is the one of the random sequences in `tests/model`. A finding is replayed by `cargo +nightly fuzz run
//! operations` with its file, and belongs, made short by `cargo +nightly fuzz tmin`, into `tests/model/tests/found.rs`.
#![no_main]

use std::fmt;
use std::sync::LazyLock;

use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use model::{Backing, Filter, Ground, OnWrite, Operation, Replay, Span, Supply, small_grounds};
use stage2::{Access, Attributes, Execute, Level, MemoryType, Permissions};

/// Most operations of a sequence: what matters takes few.
const LONGEST: usize = 100;

/// Those with tables of four entries, which operations meet in all the time.
static GROUNDS: LazyLock<Vec<Ground>> = LazyLock::new(small_grounds);

struct Sequence {
    ground: &'static Ground,
    operations: Vec<Operation>,
}

impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.ground.layout().features())?;
        self.operations
            .iter()
            .try_for_each(|operation| writeln!(f, "{operation:?}"))
    }
}

impl<'a> Arbitrary<'a> for Sequence {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let ground = &GROUNDS[bytes.choose_index(GROUNDS.len())?];
        let mut operations = Vec::new();
        while !bytes.is_empty() && operations.len() < LONGEST {
            operations.push(operation(bytes)?);
        }
        Ok(Self { ground, operations })
    }
}

fn operation(bytes: &mut Unstructured<'_>) -> Result<Operation> {
    Ok(match bytes.int_in_range(0..=19)? {
        0 => Operation::Fault {
            place: place(bytes)?,
            access: *bytes.choose(&[
                Access::Read,
                Access::Write,
                Access::Execute,
                Access::ExecuteAtEl0,
            ])?,
            backing: *bytes.choose(&Backing::ALL)?,
            largest: level(bytes)?,
            attributes: attributes(bytes)?,
            on_write: *bytes.choose(&OnWrite::ALL)?,
        },
        1 => Operation::Touch {
            place: place(bytes)?,
            write: bytes.arbitrary()?,
        },
        2 => Operation::Map {
            span: span(bytes)?,
            backing: *bytes.choose(&Backing::ALL)?,
            largest: level(bytes)?,
            attributes: attributes(bytes)?,
        },
        3 => Operation::Unmap { span: span(bytes)? },
        4 => Operation::Protect {
            span: span(bytes)?,
            permissions: permissions(bytes)?,
        },
        5 => Operation::WriteProtect {
            span: span(bytes)?,
            only: filter(bytes)?,
        },
        6 => Operation::Age { span: span(bytes)? },
        7 => Operation::TestAge { span: span(bytes)? },
        8 => Operation::Split {
            span: span(bytes)?,
            to: level(bytes)?,
            blocks: bytes.arbitrary::<u8>()?.into(),
        },
        9 => Operation::Collapse {
            span: span(bytes)?,
            to: level(bytes)?,
            permissions: permissions(bytes)?,
        },
        10 => Operation::HarvestDirty { span: span(bytes)? },
        16 => Operation::FindDirty { span: span(bytes)? },
        17 => Operation::TrackWrites {
            span: span(bytes)?,
            largest: level(bytes)?,
            only: filter(bytes)?,
        },
        18 => Operation::Replace {
            span: span(bytes)?,
            only: filter(bytes)?,
            backing: *bytes.choose(&Backing::ALL)?,
            attributes: attributes(bytes)?,
        },
        19 => Operation::UnmapLeaves {
            span: span(bytes)?,
            only: filter(bytes)?,
        },
        11 => Operation::Lookup {
            place: place(bytes)?,
        },
        12 => Operation::Walk { span: span(bytes)? },
        13 => Operation::CleanCaches { span: span(bytes)? },
        14 => Operation::Invalidate { span: span(bytes)? },
        _ => Operation::Supply(supply(bytes)?),
    })
}

/// One byte: there are no more than 256 pages.
fn place(bytes: &mut Unstructured<'_>) -> Result<u16> {
    bytes.arbitrary::<u8>().map(u16::from)
}

fn level(bytes: &mut Unstructured<'_>) -> Result<Level> {
    bytes.choose(&Level::ALL).copied()
}

fn span(bytes: &mut Unstructured<'_>) -> Result<Span> {
    Ok(match bytes.int_in_range(0..=2)? {
        0 => Span::Pages(place(bytes)?, place(bytes)?),
        1 => Span::Tables(bytes.arbitrary()?, bytes.arbitrary()?),
        _ => Span::All,
    })
}

fn permissions(bytes: &mut Unstructured<'_>) -> Result<Permissions> {
    let bits = bytes.arbitrary::<u8>()?;
    Ok(Permissions {
        write: bits & 1 != 0,
        may_write: bits & 2 != 0,
        hardware_dirty: bits & 4 != 0,
        execute: [
            Execute::Everywhere,
            Execute::Nowhere,
            Execute::AtEl0,
            Execute::AtEl1,
        ][usize::from(bits >> 3 & 3)],
    })
}

fn attributes(bytes: &mut Unstructured<'_>) -> Result<Attributes> {
    Ok(Attributes {
        memory: *bytes.choose(&[
            MemoryType::WriteBack,
            MemoryType::NonCacheable,
            MemoryType::DeviceNgnre,
            MemoryType::DeviceNgnrne,
        ])?,
        permissions: permissions(bytes)?,
    })
}

fn filter(bytes: &mut Unstructured<'_>) -> Result<Filter> {
    bytes
        .choose(&[
            Filter::All,
            Filter::EvenPages,
            Filter::Pages,
            Filter::Nothing,
        ])
        .copied()
}

fn supply(bytes: &mut Unstructured<'_>) -> Result<Supply> {
    let count = bytes.int_in_range(0..=7)?;
    Ok(match bytes.int_in_range(0..=3)? {
        0 => Supply::Left(count),
        1 => Supply::Pool(count),
        2 => Supply::FailsAfter(count),
        _ => Supply::Unlimited,
    })
}

fuzz_target!(|sequence: Sequence| {
    let mut replay = Replay::new(sequence.ground);
    for operation in &sequence.operations {
        replay.step(*operation);
    }
    replay.finish();
});
