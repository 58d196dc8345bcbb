//! Bugs on purpose, to see that the monitor reports them: the boot option `inject=BUG` of the debug build.

use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;
use stage2::{Barrier, Level, Tlbi};

/// A bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bug {
    /// A TLB flush that does nothing.
    NoFlush,
    /// A block stays valid while it is replaced by a table.
    NoBreak,
    /// Invalidations reach only the CPU that issues them.
    Local,
    /// Tables are linked without the barrier that makes their contents visible to walkers.
    NoPublish,
}

static BUG: Once<Bug> = Once::new();

/// Takes the option out of the others.
///
/// # Errors
/// There is no such bug.
pub fn choose(bootargs: &str) -> Result<String, &'static str> {
    let is_ours = |word: &&str| word.starts_with("inject=");
    if let Some(word) = bootargs.split_ascii_whitespace().find(is_ours) {
        let bug = match word {
            "inject=no-flush" => Bug::NoFlush,
            "inject=no-break" => Bug::NoBreak,
            "inject=local" => Bug::Local,
            "inject=no-publish" => Bug::NoPublish,
            _ => return Err("inject= is one of no-flush, no-break, local, no-publish"),
        };
        BUG.call_once(|| bug);
    }
    let mut rest = String::new();
    rest.try_reserve_exact(bootargs.len() + 1)
        .map_err(|_| "there is no memory for a copy of bootargs")?;
    for word in bootargs.split_ascii_whitespace() {
        if !is_ours(&word) {
            rest.push_str(word);
            rest.push(' ');
        }
    }
    Ok(rest)
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
/// one at a time, under the monitor's lock.
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
