//! Reports changes of entries, frames of tables, trees and promises to the break-before-make checker. Prints the violations that
//! it finds, and ends the machine with a failing status, as later measurements would be worthless.
//!
//! Every CPU calls at any time. Each call takes the checker's lock, so this is for debugging, not for measuring.

use alloc::vec::Vec;
use core::ptr::with_exposed_provenance;
use core::sync::atomic::{AtomicU64, Ordering};

use checker::{Checker, Memory, Promise, Violation};
use control::options::{EarlyOptions, OptionError};
use memory::watch::MemoryWatcher;
use platform::CpuId;
use platform::console;
use platform::power::psci;
use stage2::watch::Watcher;
use stage2::{Entry, IpaRange, Layout, Level, Pa, Vttbr};

use super::inject;

/// The exit status of a run in which a rule was broken.
const FAILED: u8 = 1;

/// The checker of all trees.
pub static CHECKER: Checker<Tables> = Checker::new(Tables);

static LIVE: Live = Live;

struct Live;

/// Reads tables at their physical addresses, where EL2 maps them.
#[derive(Debug)]
pub struct Tables;

impl Memory for Tables {
    fn load(&self, address: u64) -> u64 {
        // SAFETY: the checker reads entries of linked tables only, whose frames stay mapped for ever.
        let entry = unsafe { &*with_exposed_provenance::<AtomicU64>(address as usize) };
        entry.load(Ordering::Acquire)
    }
}

/// Watches all trees that are made from now on, with the bug of the options, if any.
///
/// # Errors
/// None: this build has every bug.
pub fn start(options: &EarlyOptions) -> Result<(), OptionError<'static>> {
    if let Some(bug) = options.inject {
        inject::choose(bug);
    }
    stage2::watch::install(&LIVE);
    memory::watch::install(&LIVE);
    log::info!("break-before-make checker: on");
    Ok(())
}

/// The calling CPU's number.
pub fn this_cpu() -> usize {
    CpuId::current().index()
}

/// Prints the violations, and ends the machine if there are any.
pub fn report(found: Vec<Violation>) {
    if found.is_empty() {
        return;
    }
    for violation in found {
        console::write_line(format_args!(
            "parvisor: error: break-before-make: {violation}"
        ));
    }
    psci::exit(FAILED)
}

impl Watcher for Live {
    fn pause(&self) {}

    fn change(&self, entry: &Entry, level: Level, access: &mut dyn FnMut() -> Option<(u64, u64)>) {
        // SAFETY: the deliberate bugs store only words that the entry has held, or was about to be given.
        let word = unsafe { entry.word() };
        let address = word.as_ptr().expose_provenance() as u64;
        let mut access = || inject::change(word, level, access);
        report(CHECKER.change(this_cpu(), address, &mut access));
    }

    fn root(&self, root: Pa, layout: &Layout, created: bool) {
        if created {
            CHECKER.root_created(root.get(), layout.into());
        } else {
            report(CHECKER.root_retired(root.get()));
        }
    }
}

impl MemoryWatcher for Live {
    fn allocated(&self, frame: Pa) {
        CHECKER.table_allocated(this_cpu(), frame.get());
    }

    fn freed(&self, frame: Pa) {
        report(CHECKER.table_freed(this_cpu(), frame.get()));
    }

    fn write_protects(&self, vttbr: Vttbr, ranges: &[IpaRange], work: &mut dyn FnMut()) {
        // EL2 maps no memory above 48 bits, so a root's address has no higher bits.
        const ROOT: u64 = (1 << 48) - 64;
        let since = CHECKER.now();
        work();
        for range in ranges {
            let range = range.start.get()..range.end.get();
            let root = vttbr.bits() & ROOT;
            report(CHECKER.promised(root, Promise::NoWrite, range, since));
        }
    }
}
