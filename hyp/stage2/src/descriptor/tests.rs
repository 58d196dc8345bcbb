//! Checks the bits against the manual, and the table of changes that need no break.

use super::*;
use crate::features::ADDRESS;
use crate::features::Features;
use crate::layout::Layout;
use crate::{Granule, PAGE_SIZE};
use proptest::prelude::*;

const NARROW: Format = Format::Narrow;

fn plain() -> Layout {
    Layout::new(Features::armv8_0(40, 48)).unwrap()
}

fn page(permissions: Permissions) -> Leaf {
    plain().leaf(
        Level::L3,
        Pa::new(0x8000_0000),
        Attributes::memory(permissions),
    )
}

#[test]
fn the_mark_of_a_block_is_no_part_of_its_address() {
    let memory = Attributes::memory(Permissions::RAM);
    let block = plain().leaf(Level::L2, Pa::new(0x8020_0000), memory);
    let marked = block.with_no_translation();
    assert!(marked.no_translation() && !block.no_translation());
    assert_eq!(marked.pa(), block.pa());
    let change = (Descriptor::Leaf(block), Descriptor::Leaf(marked));
    // The rest of the engine waits for whoever has marked it; who ends the entry meanwhile has the block.
    let word = change.1.encode(NARROW);
    assert_eq!(
        Descriptor::decode(word, Level::L2, NARROW),
        Descriptor::Locked
    );
    assert_eq!(Descriptor::kept(word, Level::L2, NARROW), Some(block));
    assert_eq!(marked.without_no_translation(), block);
    let page = plain().leaf(Level::L3, Pa::new(0x8001_0000), memory);
    assert!(!page.no_translation() && page.pa() == Pa::new(0x8001_0000));
}

#[test]
fn a_locked_entry_says_what_its_holder_keeps() {
    let memory = Attributes::memory(Permissions::RAM);
    for level in [Level::L1, Level::L2, Level::L3] {
        let leaf = plain().leaf(level, Pa::new(0x8000_0000), memory);
        let locked = Descriptor::locked_keeping(leaf);
        assert_eq!(locked & VALID, 0);
        assert_eq!(
            Descriptor::decode(locked, level, NARROW),
            Descriptor::Locked
        );
        assert_eq!(Descriptor::kept(locked, level, NARROW), Some(leaf));
        for other in [Descriptor::Invalid, Descriptor::Locked, Descriptor::Frozen] {
            assert_eq!(Descriptor::kept(other.encode(NARROW), level, NARROW), None);
        }
        assert_eq!(Descriptor::kept(leaf.word, level, NARROW), None);
    }
}

#[test]
fn markers_are_invalid_to_hardware() {
    for marker in [Descriptor::Invalid, Descriptor::Locked, Descriptor::Frozen] {
        assert_eq!(marker.encode(NARROW) & VALID, 0);
        assert_eq!(
            Descriptor::decode(marker.encode(NARROW), Level::L2, NARROW),
            marker
        );
    }
}

#[test]
fn the_words_are_those_of_the_manual() {
    assert_eq!(page(Permissions::RAM).word, 0x0080_0000_8000_07ff);
    assert_eq!(page(Permissions::READ_ONLY).word, 0x0000_0000_8000_077f);
    let table = Descriptor::Table(Pa::new(0x4000_1000));
    assert_eq!(table.encode(NARROW), 0x4000_1003);
    let everything = Layout::new(Features {
        fwb: true,
        xnx: true,
        hardware_access: true,
        hardware_dirty: true,
        ..Features::armv8_0(48, 48)
    })
    .unwrap();
    let attributes = Attributes::memory(Permissions {
        execute: Execute::AtEl1,
        ..Permissions::LOGGED_BY_HARDWARE
    });
    let block = everything.leaf(Level::L1, Pa::new(0x4000_0000), attributes);
    assert_eq!(block.word, 0x00e8_0000_4000_0759);
    assert!(!block.dirty() && block.with_write().dirty());
}

#[test]
fn addresses_above_48_bits_go_where_the_format_has_them() {
    let wide = |granule, lpa2| {
        Layout::new(Features {
            granule,
            lpa2,
            ..Features::armv8_0(52, 52)
        })
        .unwrap()
    };
    let leaf = |layout: &Layout, pa| {
        layout.leaf(Level::L3, Pa::new(pa), Attributes::memory(Permissions::RAM))
    };
    let small = leaf(&wide(Granule::Size4K, true), 0x000e_dcba_9876_5000);
    assert_eq!(
        small.word & !ADDRESS,
        0x0082_0000_0000_07ff & !ADDRESS | 3 << 8
    );
    assert_eq!(small.pa(), Pa::new(0x000e_dcba_9876_5000));
    let large = leaf(&wide(Granule::Size64K, false), 0x000e_dcba_9876_0000);
    assert_eq!(large.word & 0xffff_ffff_f000, 0xdcba_9876_e000);
    assert_eq!(large.pa(), Pa::new(0x000e_dcba_9876_0000));
}

#[test]
fn marking_a_block_for_its_replacement_changes_nothing_that_it_maps() {
    let layout = plain();
    let at = |level, pa| layout.leaf(level, Pa::new(pa), Attributes::memory(Permissions::RAM));
    let block = at(Level::L2, 0x8020_0000);
    let marked = block.with_no_translation();
    assert_eq!(marked.word & NO_TRANSLATION, NO_TRANSLATION);
    assert_eq!(marked.pa(), block.pa());
    assert_eq!(
        marked.moved_to(Level::L3, marked.pa()),
        block.moved_to(Level::L3, block.pa())
    );
    let page = at(Level::L3, 0x8001_0000);
    assert_eq!(page.pa(), Pa::new(0x8001_0000));
}

#[test]
fn without_xnx_execution_at_one_level_only_is_refused_at_both() {
    let attributes = Attributes::memory(Permissions {
        execute: Execute::AtEl0,
        ..Permissions::RAM
    });
    let leaf = plain().leaf(Level::L3, Pa::new(PAGE_SIZE), attributes);
    assert_eq!(leaf.execute(), Execute::Nowhere);
}

fn format() -> impl Strategy<Value = Format> {
    prop_oneof![
        Just(Format::Narrow),
        Just(Format::Lpa2),
        Just(Format::Lpa64K)
    ]
}

proptest! {
    #![proptest_config(crate::tests::cases())]

    #[test]
    fn every_word_decodes_and_leaves_keep_their_meaning(
        word: u64,
        level in 0..4usize,
        format in format(),
    ) {
        let level = Level::ALL[level];
        match Descriptor::decode(word, level, format) {
            Descriptor::Leaf(leaf) => {
                prop_assert!(leaf.with_write().writable());
                prop_assert!(!leaf.without_write().writable());
                prop_assert!(!leaf.write_protected().dirty());
                prop_assert_eq!(leaf.with_write().pa(), leaf.pa());
                prop_assert_eq!(leaf.moved_to(level, leaf.pa()).attributes(), leaf.attributes());
                prop_assert_eq!(Descriptor::Leaf(leaf).encode(format), word);
            }
            Descriptor::Table(pa) => {
                prop_assert!(pa.is_aligned(PAGE_SIZE));
                let again = Descriptor::Table(pa).encode(format);
                prop_assert_eq!(
                    Descriptor::decode(again, level, format),
                    Descriptor::Table(pa)
                );
            }
            Descriptor::Invalid | Descriptor::Locked | Descriptor::Frozen => {}
        }
    }
}
