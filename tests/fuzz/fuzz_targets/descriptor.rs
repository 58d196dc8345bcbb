//! Any word in a table, at any level and in any format, has a meaning; and a descriptor that is written reads as what it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stage2::{Bbm, Descriptor, Format, Leaf, Level, Transition};

const FORMATS: [Format; 3] = [Format::Narrow, Format::Lpa2, Format::Lpa64K];
const BBM: [Bbm; 3] = [Bbm::Level0, Bbm::Level1, Bbm::Level2];

fuzz_target!(|input: (u64, u64, u8)| {
    let (word, other, choice) = input;
    let choice = usize::from(choice);
    let level = Level::ALL[choice % 4];
    let format = FORMATS[choice / 4 % 3];
    let bbm = BBM[choice / 12 % 3];
    let descriptor = Descriptor::decode(word, level, format);
    assert_eq!(
        Descriptor::decode(descriptor.encode(format), level, format),
        descriptor
    );
    let other = Descriptor::decode(other, level, format);
    // A change back is made as the change was.
    for maps_the_same in [false, true] {
        assert_eq!(
            Transition::of(descriptor, other, maps_the_same, bbm),
            Transition::of(other, descriptor, maps_the_same, bbm)
        );
    }
    if let Descriptor::Leaf(leaf) = descriptor {
        assert_eq!(descriptor.encode(format), word, "a leaf keeps every bit");
        check_leaf(leaf, level, format);
    }
});

/// A permission or flag that changes leaves all else as it is, and needs no break (rule 3).
fn check_leaf(leaf: Leaf, level: Level, format: Format) {
    let same_memory = |changed: Leaf| {
        let descriptor = Descriptor::Leaf(changed);
        assert_eq!(
            Descriptor::decode(descriptor.encode(format), level, format),
            descriptor
        );
        assert_eq!(changed.pa(), leaf.pa());
        assert_eq!(changed.memory(), leaf.memory());
        assert_eq!(changed.may_write(), leaf.may_write());
        assert_eq!(changed.execute(), leaf.execute());
        let way = Transition::of(Descriptor::Leaf(leaf), descriptor, true, Bbm::Level0);
        assert_eq!(way, Transition::InPlace);
        changed
    };
    assert!(same_memory(leaf.with_write()).writable());
    assert!(!same_memory(leaf.without_write()).writable());
    assert!(!same_memory(leaf.write_protected()).hardware_dirty());
    assert!(same_memory(leaf.with_accessed()).accessed());
    assert!(!same_memory(leaf.without_accessed()).accessed());
}
