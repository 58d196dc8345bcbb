//! The engine on a host: its tables in ordinary memory, no TLB to keep up to date, one thread.
//!
//! A guest's first 4 MiB are mapped by blocks whose writes are logged; the guest writes a byte; a harvest collects which
//! page that was; and the tables are given up.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::error::Error;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use stage2::{
    Access, Attributes, Counters, Entry, Epoch, Features, Ipa, Layout, Level, Mapping, NoTlb,
    OnBlock, Pa, Permissions, Request, Resolution, Stage2, TableFrame, TableMemory, Unlinked,
    Worker,
};

/// Frames for tables, made once and used once.
struct Tables {
    layout: Layout,
    entries: Vec<Entry>,
    used: AtomicUsize,
}

impl Tables {
    const BASE: u64 = 0x8000_0000;

    fn new(layout: Layout, frames: usize) -> Self {
        let entries = (0..frames * layout.table_entries())
            .map(|_| Entry::vacant())
            .collect();
        Self {
            layout,
            entries,
            used: AtomicUsize::new(0),
        }
    }
}

// SAFETY: each frame is given out once, empty, and its entries live as long as `self`.
unsafe impl TableMemory for Tables {
    fn allocate(&self) -> Option<TableFrame> {
        let frame = self.used.fetch_add(1, Ordering::Relaxed);
        let is_there = frame < self.entries.len() / self.layout.table_entries();
        let pa = Pa::new(Self::BASE + frame as u64 * self.layout.table_size());
        // SAFETY: nobody was given it before, and `entries` finds it.
        is_there.then(|| unsafe { TableFrame::new(pa, self.layout.table_size()) })
    }

    unsafe fn free(&self, _: TableFrame) {}

    fn entries(&self, pa: Pa) -> NonNull<Entry> {
        let frame = (pa.get() - Self::BASE) / self.layout.table_size();
        let first = frame as usize * self.layout.table_entries();
        NonNull::from(&self.entries[first..first + self.layout.table_entries()]).cast()
    }
}

/// Keeps what was unlinked to the end, when nobody can be looking at it.
#[derive(Default)]
struct UntilTheEnd(RefCell<Vec<TableFrame>>);

// SAFETY: nothing of it is used for anything as long as the tables last.
unsafe impl Epoch for UntilTheEnd {
    fn retire(&self, unlinked: Unlinked) {
        self.0.borrow_mut().push(unlinked.into_frame());
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let layout = Layout::new(Features::armv8_0(39, 40))?;
    let tables = Tables::new(layout, 8);
    let epoch = UntilTheEnd::default();
    let worker = Worker {
        memory: &tables,
        // There is no guest. On a machine, `Maintenance` does this by the architecture's instructions.
        tlb: &NoTlb,
        epoch: &epoch,
        counters: &Counters::default(),
    };
    let root = worker.memory.allocate().ok_or("no frame for the root")?;
    let stage2 = Stage2::new(root, layout);

    // Map: two blocks of 2 MiB, of which the first write faults.
    let ram = Ipa::new(0x4000_0000)..Ipa::new(0x4040_0000);
    let backing = Pa::new(0x10_0000_0000);
    let mapping = Mapping {
        pa: backing,
        attributes: Attributes::memory(Permissions::LOGGED),
        largest: Level::L1,
    };
    assert_eq!(
        stage2.map(&worker, ram.clone(), mapping, || true)?.leaves,
        2
    );

    // Fault: the guest writes to a page, which splits its block.
    let written = Ipa::new(0x4012_3000);
    let request = Request {
        ipa: written,
        va: None,
        access: Access::Write,
        pa: backing.offset(written.get() - ram.start.get()),
        largest: Level::L3,
        attributes: Attributes::memory(Permissions::RAM),
        largest_written: Level::L3,
        on_block: OnBlock::Split,
    };
    assert!(matches!(stage2.fault(&worker, &request), Resolution::Split));
    let mut log = BTreeSet::from([written]);
    let (leaf, level) = stage2.lookup(&worker, written).ok_or("unmapped")?;
    assert_eq!((level, leaf.writable()), (Level::L3, true));

    // Harvest: take the log, then have the next write to each of its pages fault again.
    let harvested = std::mem::take(&mut log);
    let wanted = |ipa, level| level == Level::L3 && harvested.contains(&ipa);
    stage2.write_protect(&worker, ram, wanted, |_, _| {})?;
    let (leaf, _) = stage2.lookup(&worker, written).ok_or("unmapped")?;
    assert!(!leaf.writable());

    // Destroy: in steps of 100 entries, between which others get the CPU.
    let mut teardown = stage2.destroy(&worker);
    let mut leaves = 0;
    while !teardown.step(&worker, 100, |_, _, _| leaves += 1) {}
    assert_eq!(leaves, 512 + 1);
    assert_eq!(epoch.0.borrow().len(), 3);
    Ok(())
}
