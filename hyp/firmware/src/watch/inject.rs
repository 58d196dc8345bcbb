//! Deliberate bugs, which the checker must report: the boot option `inject=BUG` of the debug build.

use core::sync::atomic::{AtomicU64, Ordering};

use records::words::Bug;
use spin::Once;
use stage2::{Barrier, Level, Tlbi};

static BUG: Once<Bug> = Once::new();

/// Makes this bug happen from now on.
pub fn choose(bug: Bug) {
    BUG.call_once(|| bug);
}

fn has(bug: Bug) -> bool {
    BUG.get() == Some(&bug)
}

/// The operation to issue instead of `operation`.
pub fn tlbi(operation: Tlbi) -> Option<Tlbi> {
    match operation {
        _ if has(Bug::NoFlush) => None,
        Tlbi::Ipas2e1is(operand) | Tlbi::Ipas2le1is(operand) if has(Bug::Local) => {
            Some(Tlbi::Ipas2le1(operand))
        }
        Tlbi::Vmalle1is if has(Bug::Local) => Some(Tlbi::Vmalle1),
        _ => Some(operation),
    }
}

/// Whether to execute a barrier.
pub fn keeps(barrier: Barrier) -> bool {
    !(barrier == Barrier::DsbIshst && has(Bug::NoPublish))
}

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const LOCKED: u64 = 0b10;

/// The block that is being replaced without a break, the word that was to lock its entry, and the entry's address. Entries are
/// changed one at a time, under the checker's lock.
static BLOCK: AtomicU64 = AtomicU64::new(0);
static LOCK: AtomicU64 = AtomicU64::new(0);
static PLACE: AtomicU64 = AtomicU64::new(0);

/// Changes an entry by `access`. With the bug [`Bug::NoBreak`], a block that is to be locked stays valid until its new entry is
/// written.
pub fn change(
    entry: &AtomicU64,
    level: Level,
    access: &mut dyn FnMut() -> Option<(u64, u64)>,
) -> Option<(u64, u64)> {
    if !has(Bug::NoBreak) || level == Level::L3 {
        return access();
    }
    let place = entry.as_ptr().addr() as u64;
    if PLACE.load(Ordering::Relaxed) == place {
        PLACE.store(0, Ordering::Relaxed);
        let block = BLOCK.load(Ordering::Relaxed);
        entry.store(LOCK.load(Ordering::Relaxed), Ordering::Relaxed);
        return access().map(|(_, new)| (block, new));
    }
    let changed = access();
    match changed {
        Some((old, new))
            if old & (VALID | TABLE_OR_PAGE) == VALID
                && new & (VALID | LOCKED) == LOCKED
                && PLACE.load(Ordering::Relaxed) == 0 =>
        {
            BLOCK.store(old, Ordering::Relaxed);
            LOCK.store(new, Ordering::Relaxed);
            PLACE.store(place, Ordering::Relaxed);
            entry.store(old, Ordering::Relaxed);
            None
        }
        _ => changed,
    }
}
