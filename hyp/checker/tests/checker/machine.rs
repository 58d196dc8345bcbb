//! The machine that the checker watches, and the words of its tree: tables of four entries at levels 1 to 3, so that a page
//! is 4 KiB, a block of level 2 16 KiB, of level 1 64 KiB.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use checker::{
    Barrier, Bbm, Checker, CpuSet, Format, Geometry, Granule, Kind, Memory, Tlbi, Violation,
};

pub(crate) const ROOT: u64 = 0x10_0000;
pub(crate) const MIDDLE: u64 = 0x20_0000;
pub(crate) const PAGES: u64 = 0x30_0000;
pub(crate) const OTHER: u64 = 0x40_0000;
pub(crate) const VTTBR: u64 = 7 << 48 | ROOT;
/// 4 KiB pages, VMIDs of 16 bits.
pub(crate) const VTCR: u64 = 1 << 31 | 1 << 19;

pub(crate) const LOCKED: u64 = 0b10;
pub(crate) const WRITE: u64 = 1 << 7;
pub(crate) const ACCESSED: u64 = 1 << 10;
pub(crate) const NT: u64 = 1 << 16;
pub(crate) const DBM: u64 = 1 << 51;
pub(crate) const CONTIGUOUS: u64 = 1 << 52;

pub(crate) const fn page(pa: u64) -> u64 {
    pa | 0x7ff
}

pub(crate) const fn block(pa: u64) -> u64 {
    pa | 0x7fd
}

pub(crate) const fn table(pa: u64) -> u64 {
    pa | 3
}

#[derive(Clone, Default)]
pub(crate) struct Words(Rc<RefCell<BTreeMap<u64, u64>>>);

impl Memory for Words {
    fn load(&self, address: u64) -> u64 {
        self.0.borrow().get(&address).copied().unwrap_or(0)
    }
}

/// A machine that does as it is told, and keeps what the checker says.
pub(crate) struct Machine {
    pub(crate) words: Words,
    pub(crate) checker: Checker<Words>,
    pub(crate) found: Vec<Violation>,
}

pub(crate) fn geometry(bbm: Bbm) -> Geometry {
    Geometry {
        stride: 2,
        groups: [1, 1, 1, 2],
        ..Geometry::new(Granule::Size4K, Format::Narrow, 1, 1).with_bbm(bbm)
    }
}

impl Machine {
    /// The root leads to MIDDLE, that to PAGES for the first 16 KiB, and PAGES maps four pages. CPU 0 to 2 run it.
    pub(crate) fn new() -> Self {
        Self::with(Bbm::Level0)
    }

    pub(crate) fn with(bbm: Bbm) -> Self {
        let words = Words::default();
        words.build(ROOT, &[table(MIDDLE)]);
        words.build(MIDDLE, &[table(PAGES)]);
        words.build(
            PAGES,
            &[0, 1, 2, 3].map(|index| page(0x800_0000 + index * 0x1000)),
        );
        let mut machine = Self {
            checker: Checker::new(words.clone()),
            words,
            found: Vec::new(),
        };
        machine.checker.root_created(ROOT, geometry(bbm));
        for cpu in 0..3 {
            machine.load(cpu, VTTBR);
        }
        machine
    }

    /// A CPU goes over to a guest.
    pub(crate) fn load(&mut self, cpu: usize, vttbr: u64) -> &mut Self {
        self.checker.vtcr(cpu, VTCR);
        self.checker.vttbr(cpu, vttbr);
        self.found.extend(self.checker.enter(cpu));
        self
    }

    /// CPU 0 writes VTTBR_EL2 and VTCR_EL2.
    pub(crate) fn registers(&mut self, vttbr: u64, vtcr: u64) -> &mut Self {
        self.checker.vtcr(0, vtcr);
        self.checker.vttbr(0, vttbr);
        self
    }

    /// CPU 0 writes an entry.
    pub(crate) fn write(&mut self, entry: u64, word: u64) -> &mut Self {
        self.write_on(0, entry, word)
    }

    pub(crate) fn write_on(&mut self, cpu: usize, entry: u64, word: u64) -> &mut Self {
        let old = self.words.load(entry);
        let found = self.checker.change(cpu, entry, &mut || {
            self.words.0.borrow_mut().insert(entry, word);
            Some((old, word))
        });
        self.found.extend(found);
        self
    }

    pub(crate) fn tlbi(&mut self, operation: Tlbi) -> &mut Self {
        self.tlbi_on(0, operation)
    }

    pub(crate) fn tlbi_on(&mut self, cpu: usize, operation: Tlbi) -> &mut Self {
        self.checker.tlbi(cpu, operation);
        self
    }

    pub(crate) fn dsb(&mut self, barrier: Barrier) -> &mut Self {
        self.checker.barrier(0, barrier);
        self
    }

    pub(crate) fn dsb_on(&mut self, cpu: usize, barrier: Barrier) -> &mut Self {
        self.checker.barrier(cpu, barrier);
        self
    }

    /// DSB ISHST; `operations`; DSB ISH; VMALLE1IS; DSB ISH.
    pub(crate) fn flush(&mut self, operations: &[Tlbi]) -> &mut Self {
        self.dsb(Barrier::DsbIshst);
        for operation in operations {
            self.tlbi(*operation);
        }
        self.dsb(Barrier::DsbIsh)
            .tlbi(Tlbi::Vmalle1is)
            .dsb(Barrier::DsbIsh)
    }

    pub(crate) fn free(&mut self, frame: u64) -> &mut Self {
        self.found.extend(self.checker.table_freed(0, frame));
        self
    }

    pub(crate) fn is_silent(&mut self) -> &mut Self {
        let found: Vec<String> = self.found.iter().map(ToString::to_string).collect();
        assert!(found.is_empty(), "{found:#?}");
        self
    }

    /// The one thing that was found, which is no more.
    pub(crate) fn finds(&mut self) -> Violation {
        assert_eq!(self.found.len(), 1, "{:#?}", self.found);
        self.found.remove(0)
    }

    /// As what, and by whom, a value was held that should have been gone.
    pub(crate) fn finds_held(&mut self) -> (u64, Kind, CpuSet) {
        match self.finds() {
            Violation::NotInvalidated { held, .. } | Violation::Promise { held, .. } => {
                (held.value, held.kind, held.cpus)
            }
            other => panic!("{other}"),
        }
    }
}

impl Words {
    pub(crate) fn build(&self, frame: u64, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            self.0.borrow_mut().insert(frame + index as u64 * 8, *word);
        }
    }
}

pub(crate) const FIRST: u64 = page(0x800_0000);
pub(crate) const MOVED: u64 = page(0x900_0000);
