//! Bugs on purpose, to see that the checker reports them: the boot option `inject=BUG` of the debug build.

use core::sync::atomic::{AtomicU64, Ordering};

use records::words::Bug;
use spin::Once;
use stage2::{Barrier, Level, Tlbi};

static BUG: Once<Bug> = Once::new();

/// From now on there is this bug.
pub fn choose(bug: Bug) {
    BUG.call_once(|| bug);
}

fn has(bug: Bug) -> bool {
    BUG.get() == Some(&bug)
}

/// What is issued instead of `operation`.
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

/// Whether a barrier is executed.
pub fn keeps(barrier: Barrier) -> bool {
    !(barrier == Barrier::DsbIshst && has(Bug::NoPublish))
}

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const LOCKED: u64 = 0b10;

/// The block that is being replaced without a break, what its entry was to be locked with, and where. Entries are changed
/// one at a time, under the checker's lock.
static BLOCK: AtomicU64 = AtomicU64::new(0);
static LOCK: AtomicU64 = AtomicU64::new(0);
static PLACE: AtomicU64 = AtomicU64::new(0);

/// Changes an entry by `access`. Where blocks aren't broken, one that is being locked stays as it is until whoever locked it
/// makes it something else.
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
