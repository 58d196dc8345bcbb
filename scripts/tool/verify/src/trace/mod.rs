//! The instructions of one exit on the target, counted by a trace and compared with their bars.
//!
//! QEMU logs every instruction of the hypervisor (`-d exec`, one instruction per translation block) from a guest's first entry
//! on. An exit's path is what one CPU executes between the exception to EL2 and the return to EL1: nothing of it is hidden, as
//! callgrind on the host hides memcpy, atomics out of line and the target's alignment. The paths of one kind of exit are
//! compared as they are, and the commonest is counted, which is the same in every run.
//!
//! Each instruction belongs to a part: what the bars say, by source files and symbols, is in `bars.toml`.

mod bars;
mod debugger;
mod log;
mod machine;
mod parts;
mod report;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use self::bars::{Bars, PathBars};
use self::log::Exit;
use self::parts::Parts;
use self::report::Counted;
use emulator::error::ToolError;
use emulator::images::{self, Images};
use emulator::setup;
use records::words::Profile;

/// A line for the user, and whether it is as it has to be, where it judges.
pub struct Finding {
    /// What, and how much.
    pub text: String,
    /// Whether the bars hold; nothing for what only shows.
    pub holds: Option<bool>,
}

/// What the traces are made with.
struct Setup {
    emulator: PathBuf,
    images: Images,
    probe: PathBuf,
    micro: PathBuf,
    /// The address of the instruction that guests are entered by first.
    entry: u64,
}

/// Traces every machine of the bars, and tells `each` of the table of every path and of how it compares.
pub fn measure(mut each: impl FnMut(Finding)) -> Result<(), ToolError> {
    let bars = Bars::read()?;
    let images = images::build(Profile::Best)?;
    let elf = fs::read(&images.symbols).map_err(|error| unusable(&images.symbols, error))?;
    let parts = Parts::of(&elf, &bars.parts)?;
    let setup = Setup {
        emulator: setup::emulator()?,
        probe: images::build_probe()?,
        micro: images::build_micro()?,
        entry: parts.address("world_enter")?,
        images,
    };
    let mut exits = traces(&setup, &bars)?;
    for path in &bars.paths {
        let columns = bars.cpus.iter().map(|cpu| {
            let exits = exits.entry((path.boot.clone(), cpu.clone())).or_default();
            commonest(path, exits, &parts)
        });
        let columns: Vec<Counted> = columns.collect::<Result<_, _>>()?;
        let show = |text| Finding { text, holds: None };
        each(show(report::table(path, &bars, &columns)));
        for (index, counted) in columns.iter().enumerate() {
            each(report::judge(path, &bars.cpus[index], index, counted));
        }
    }
    Ok(())
}

/// The exits of each boot on each CPU.
type Traces = BTreeMap<(String, String), Vec<Exit>>;

/// Boots every machine, one thread for each CPU model.
fn traces(setup: &Setup, bars: &Bars) -> Result<Traces, ToolError> {
    let boots = |cpu: &String| {
        let boots = bars.boots.iter();
        let traced = boots.map(|boot| {
            let exits = machine::trace(setup, boot, cpu)?;
            Ok(((boot.name.clone(), cpu.clone()), exits))
        });
        traced.collect::<Result<Vec<_>, ToolError>>()
    };
    let traced: Vec<_> = thread::scope(|scope| {
        let threads = bars.cpus.iter().map(|cpu| scope.spawn(|| boots(cpu)));
        let threads: Vec<_> = threads.collect();
        let lost = || Err(ToolError::Io("a trace was lost".into()));
        let joined = threads.into_iter().map(|one| one.join());
        joined
            .map(|one| one.unwrap_or_else(|_| lost()))
            .collect::<Result<_, _>>()
    })?;
    Ok(traced.into_iter().flatten().collect())
}

/// Counts the commonest path of the exits that these bars are about.
fn commonest(path: &PathBars, exits: &[Exit], parts: &Parts) -> Result<Counted, ToolError> {
    let of_kind = exits.iter().filter(|exit| path.exit.is(exit.syndrome));
    let mut paths = BTreeMap::<&[u64], usize>::new();
    for exit in of_kind {
        *paths.entry(&exit.instructions).or_default() += 1;
    }
    if let Some(part) = &path.runs {
        paths.retain(|instructions, _| parts.count(instructions).contains_key(part.as_str()));
    }
    let all = paths.values().sum();
    let most = paths
        .iter()
        .max_by_key(|(instructions, count)| (**count, std::cmp::Reverse(instructions.len())));
    let (instructions, alike) =
        most.ok_or_else(|| ToolError::Io(format!("{}: the trace has no such exit", path.name)))?;
    Ok(Counted {
        parts: parts.count(instructions),
        alike: *alike,
        all,
    })
}

/// An error about a file.
fn unusable(path: &Path, error: impl std::fmt::Display) -> ToolError {
    ToolError::Io(format!("{}: {error}", path.display()))
}
