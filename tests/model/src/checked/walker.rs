//! What a CPU's hardware does for a guest's access: TLB, walk, and the updates of entries that FEAT_HAFDBS makes.

use super::{Cpu, Tables};
use loom::sync::atomic::Ordering;
use stage2::{Access, Descriptor, Ipa, Leaf, Level, PAGE_SIZE, Pa};

/// How one walk ended.
enum Walked {
    /// A leaf that allows the access, and the page that it leads to.
    Allowed(Pa),
    /// A fault.
    Refused,
    /// An invalidation or another CPU's change came between; it begins anew.
    Overtaken,
}

impl Cpu<'_> {
    /// The guest accesses `ipa` once. Whether it could; if not, it faults.
    ///
    /// A write takes place in one step with the look at the TLB or table that allows it, as an invalidation completes only
    /// when the accesses have that it makes impossible.
    pub fn try_access(&self, ipa: Ipa, access: Access) -> bool {
        let (machine, page) = (self.machine, ipa.align_down(PAGE_SIZE));
        let by_hardware = machine.stage2.layout().features().hardware_dirty;
        let allowed = loop {
            machine.tlbs.look();
            match machine.tlbs.find(self.number, page) {
                Some(held) if access.allowed_by(held.leaf) => {
                    let offset = page.get() - held.range.start.get();
                    break Some(held.pa.offset(offset));
                }
                Some(held)
                    if access == Access::Write && by_hardware && held.leaf.hardware_dirty() =>
                {
                    machine.tlbs.forget(self.number, page);
                }
                Some(_) => break None,
                None => {}
            }
            match self.walk(page, access) {
                Walked::Allowed(frame) => break Some(frame),
                Walked::Refused => break None,
                Walked::Overtaken => {}
            }
        };
        if let (Some(frame), Access::Write) = (allowed, access) {
            machine.note_write(page, frame);
        }
        allowed.is_some()
    }

    /// The CPU walks for `ipa` although the guest doesn't access it, and keeps what it finds, as it may at any time.
    pub fn speculate(&self, ipa: Ipa) {
        self.machine.tlbs.look();
        self.walk(ipa.align_down(PAGE_SIZE), Access::Read);
    }

    fn walk(&self, page: Ipa, access: Access) -> Walked {
        let (machine, layout) = (self.machine, self.machine.stage2.layout());
        let began = machine.tlbs.invalidations();
        let (mut level, mut table) = match machine.tlbs.find_table(self.number, page) {
            Some(known) => known,
            None => (layout.start(), self.root()),
        };
        loop {
            let index = (page.get() >> layout.shift(level)) as usize % layout.table_entries();
            let word = &machine.tables.words(table)[index];
            // Acquire stands for the address dependency of a walk.
            let found = word.load(Ordering::Acquire);
            if machine.tlbs.invalidations() != began {
                return Walked::Overtaken;
            }
            assert!(
                !Tables::is_poison(found),
                "rule 7: a hardware walker is in a freed table"
            );
            match Descriptor::decode(found, level, layout.format()) {
                Descriptor::Invalid | Descriptor::Locked | Descriptor::Frozen => {
                    return Walked::Refused;
                }
                Descriptor::Table(next) => {
                    machine.tables.assert_published(next);
                    machine.tlbs.keep_link(self.number, level, page, next);
                    let Some(below) = level.below() else {
                        return Walked::Refused;
                    };
                    (level, table) = (below, next);
                }
                Descriptor::Leaf(leaf) => {
                    let updated = self.updated(leaf, access);
                    if updated != leaf {
                        let new = Descriptor::Leaf(updated).encode(layout.format());
                        let exchanged =
                            word.compare_exchange(found, new, Ordering::Relaxed, Ordering::Relaxed);
                        if exchanged.is_err() || machine.tlbs.invalidations() != began {
                            return Walked::Overtaken;
                        }
                    }
                    return self.translated(level, page, access, updated);
                }
            }
        }
    }

    /// What hardware makes of a leaf that is accessed.
    fn updated(&self, leaf: Leaf, access: Access) -> Leaf {
        let features = self.machine.stage2.layout().features();
        let leaf = if features.hardware_access {
            leaf.with_accessed()
        } else {
            leaf
        };
        let writes = access == Access::Write && features.hardware_dirty && leaf.hardware_dirty();
        if writes && leaf.accessed() {
            leaf.with_write()
        } else {
            leaf
        }
    }

    /// Keeps a leaf that was found, if it may be kept, and says whether it allows the access.
    fn translated(&self, level: Level, page: Ipa, access: Access, leaf: Leaf) -> Walked {
        if !leaf.accessed() {
            return Walked::Refused;
        }
        self.machine.tlbs.keep(self.number, level, page, leaf);
        if access.allowed_by(leaf) {
            let span = self.machine.stage2.layout().span(level);
            Walked::Allowed(leaf.pa().offset(page.offset_in(span)))
        } else {
            Walked::Refused
        }
    }

    fn root(&self) -> Pa {
        Pa::new(self.machine.stage2.vttbr().bits() & 0x0000_ffff_ffff_f000)
    }
}
