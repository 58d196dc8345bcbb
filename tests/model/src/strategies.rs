//! Random operations, as strategies of plain values, so that they shrink.

use crate::{Backing, Filter, Ground, OnWrite, Operation, Span, Supply};
use proptest::prelude::*;
use proptest::sample::select;
use stage2::{Access, Attributes, Execute, Level, MemoryType, Permissions};

const EXECUTE: [Execute; 4] = [
    Execute::Everywhere,
    Execute::Nowhere,
    Execute::AtEl0,
    Execute::AtEl1,
];

/// All of them.
pub const ACCESSES: [Access; 4] = [
    Access::Read,
    Access::Write,
    Access::Execute,
    Access::ExecuteAtEl0,
];

/// Any, but mostly those that owners of memory use.
pub fn permissions() -> impl Strategy<Value = Permissions> {
    let any = (any::<[bool; 3]>(), select(&EXECUTE)).prop_map(|(bits, execute)| Permissions {
        write: bits[0],
        may_write: bits[1],
        hardware_dirty: bits[2],
        execute,
    });
    let usual = [
        Permissions::RAM,
        Permissions::LOGGED,
        Permissions::LOGGED_BY_HARDWARE,
        Permissions::READ_ONLY,
    ];
    prop_oneof![2 => select(usual.to_vec()), 1 => any]
}

/// Mostly of write-back memory.
pub fn attributes() -> impl Strategy<Value = Attributes> {
    let memory = prop_oneof![
        6 => Just(MemoryType::WriteBack),
        1 => Just(MemoryType::NonCacheable),
        1 => Just(MemoryType::DeviceNgnre),
        1 => Just(MemoryType::DeviceNgnrne),
    ];
    (memory, permissions()).prop_map(|(memory, permissions)| Attributes {
        memory,
        permissions,
    })
}

/// Long and short ranges.
pub fn span() -> impl Strategy<Value = Span> {
    prop_oneof![
        1 => Just(Span::All),
        3 => (any::<u8>(), 0..3u8).prop_map(|(first, more)| Span::Tables(first, more)),
        4 => any::<(u16, u16)>().prop_map(|(one, other)| Span::Pages(one, other)),
        4 => (any::<u16>(), 0..40u16).prop_map(|(one, more)| Span::Pages(one, one.saturating_add(more))),
    ]
}

/// Any.
pub fn level() -> impl Strategy<Value = Level> {
    select(&Level::ALL[..])
}

/// Mostly one piece of memory, so that it can be mapped by blocks.
pub fn backing() -> impl Strategy<Value = Backing> {
    prop_oneof![
        8 => Just(Backing::First),
        1 => Just(Backing::Second),
        1 => Just(Backing::Shifted),
    ]
}

/// Any operation, anywhere.
pub fn operation() -> impl Strategy<Value = Operation> {
    let fault = (
        any::<u16>(),
        select(&ACCESSES),
        backing(),
        level(),
        attributes(),
        select(&OnWrite::ALL),
    )
        .prop_map(
            |(place, access, backing, largest, attributes, on_write)| Operation::Fault {
                place,
                access,
                backing,
                largest,
                attributes,
                on_write,
            },
        );
    let map = (span(), backing(), level(), attributes()).prop_map(
        |(span, backing, largest, attributes)| Operation::Map {
            span,
            backing,
            largest,
            attributes,
        },
    );
    let filter = select(&[
        Filter::All,
        Filter::EvenPages,
        Filter::Pages,
        Filter::Nothing,
    ]);
    let blocks = prop_oneof![Just(u64::MAX), 0..4u64];
    let supply = prop_oneof![
        3 => Just(Supply::Unlimited),
        1 => (0..6usize).prop_map(Supply::Left),
        1 => (0..6usize).prop_map(Supply::Pool),
        1 => (0..6usize).prop_map(Supply::FailsAfter),
    ];
    prop_oneof![
        10 => fault,
        6 => any::<(u16, bool)>().prop_map(|(place, write)| Operation::Touch { place, write }),
        4 => map,
        2 => span().prop_map(|span| Operation::Unmap { span }),
        2 => (span(), filter.clone()).prop_map(|(span, only)| Operation::UnmapLeaves { span, only }),
        4 => (span(), filter.clone(), backing(), attributes()).prop_map(
            |(span, only, backing, attributes)| Operation::Replace {
                span,
                only,
                backing,
                attributes,
            },
        ),
        4 => (span(), permissions())
            .prop_map(|(span, permissions)| Operation::Protect { span, permissions }),
        3 => (span(), filter.clone()).prop_map(|(span, only)| Operation::WriteProtect { span, only }),
        3 => (span(), level(), filter)
            .prop_map(|(span, largest, only)| Operation::TrackWrites { span, largest, only }),
        2 => span().prop_map(|span| Operation::FindDirty { span }),
        2 => span().prop_map(|span| Operation::Age { span }),
        1 => span().prop_map(|span| Operation::TestAge { span }),
        4 => (span(), level(), blocks)
            .prop_map(|(span, to, blocks)| Operation::Split { span, to, blocks }),
        4 => (span(), level(), permissions())
            .prop_map(|(span, to, permissions)| Operation::Collapse { span, to, permissions }),
        3 => span().prop_map(|span| Operation::HarvestDirty { span }),
        1 => any::<u16>().prop_map(|place| Operation::Lookup { place }),
        1 => span().prop_map(|span| Operation::Walk { span }),
        1 => span().prop_map(|span| Operation::CleanCaches { span }),
        1 => span().prop_map(|span| Operation::Invalidate { span }),
        1 => supply.prop_map(Operation::Supply),
    ]
}

/// Whether a ground is for Miri too, which takes seconds for each look at a table of real size.
pub fn is_quick(ground: &Ground) -> bool {
    !cfg!(miri) || ground.pages() <= 16 && ground.layout().features().contiguous
}
