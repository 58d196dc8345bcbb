//! Which part of the hypervisor an instruction belongs to, by the debugging information of its image.
//!
//! An inlined function's instruction has a frame for each function that it was inlined into. Rules are tried from the innermost
//! frame outwards, so that a helper that no rule names (an atomic exchange, say) counts for its caller.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;

use addr2line::Context;
use addr2line::gimli::{Dwarf, EndianSlice, LittleEndian, SectionId};
use object::{File, Object, ObjectSection, ObjectSymbol, SectionKind};

use super::bars::{Part, REST};
use emulator::error::ToolError;
use emulator::qemu::LOAD_ADDRESS;

/// Instructions by the names of their parts.
pub type Counts = BTreeMap<String, u64>;

/// The parts of an image.
pub struct Parts<'p> {
    frames: Context<EndianSlice<'p, LittleEndian>>,
    /// The symbols of its text, by offset.
    symbols: BTreeMap<u64, String>,
    rules: &'p [Part],
    /// The parts that are known, as indices of rules, by address.
    known: RefCell<HashMap<u64, Option<usize>>>,
}

impl<'p> Parts<'p> {
    /// Those of this ELF file.
    pub fn of(elf: &'p [u8], rules: &'p [Part]) -> Result<Self, ToolError> {
        fn unreadable<E: Display>(error: E) -> ToolError {
            ToolError::Io(format!("the hypervisor's symbols can't be read: {error}"))
        }
        let file = File::parse(elf).map_err(unreadable)?;
        let section = |id: SectionId| {
            let section = file.section_by_name(id.name());
            let data = section.map_or(Ok(&[][..]), |section| section.data())?;
            Ok(EndianSlice::new(data, LittleEndian))
        };
        let dwarf = Dwarf::load(section).map_err(unreadable::<object::Error>)?;
        Ok(Self {
            frames: Context::from_dwarf(dwarf).map_err(unreadable)?,
            symbols: symbols(&file),
            rules,
            known: RefCell::default(),
        })
    }

    /// Where QEMU loads the symbol of this name.
    pub fn address(&self, name: &str) -> Result<u64, ToolError> {
        let found = self.symbols.iter().find(|(_, symbol)| *symbol == name);
        let missing = || ToolError::Io(format!("the hypervisor has no symbol {name}"));
        found
            .map(|(offset, _)| LOAD_ADDRESS + offset)
            .ok_or_else(missing)
    }

    /// How many of these instructions each part has; parts that have none aren't there.
    pub fn count(&self, instructions: &[u64]) -> Counts {
        let mut counts = Counts::new();
        for address in instructions {
            let mut known = self.known.borrow_mut();
            let part = known.entry(*address).or_insert_with(|| self.find(*address));
            let name = part.map_or(REST, |part| &self.rules[part].name);
            *counts.entry(name.into()).or_default() += 1;
        }
        counts
    }

    fn find(&self, address: u64) -> Option<usize> {
        let offset = address - LOAD_ADDRESS;
        let mut files = Vec::new();
        // Assembly has no debugging information, and symbols instead.
        if let Ok(mut frames) = self.frames.find_frames(offset).skip_all_loads() {
            while let Ok(Some(frame)) = frames.next() {
                let file = frame.location.and_then(|location| location.file);
                files.extend(file.map(String::from));
            }
        }
        let symbol = self.symbols.range(..=offset).next_back();
        part_of(self.rules, &files, symbol.map(|(_, name)| name.as_str()))
    }
}

/// The symbols of what is executed. Those that begin with `$` say only that instructions begin there.
fn symbols(file: &File<'_>) -> BTreeMap<u64, String> {
    let is_text = |symbol: &object::Symbol<'_, '_>| {
        let section = symbol.section_index();
        let section = section.and_then(|index| file.section_by_index(index).ok());
        section.is_some_and(|section| section.kind() == SectionKind::Text)
    };
    let named = file.symbols().filter(is_text).filter_map(|symbol| {
        let name = symbol.name().ok()?;
        (!name.starts_with('$')).then(|| (symbol.address(), name.to_string()))
    });
    named.collect()
}

/// The rule that an instruction falls under which lies in `files`, from the innermost frame outwards, and in `symbol`.
fn part_of(rules: &[Part], files: &[String], symbol: Option<&str>) -> Option<usize> {
    let by_symbol = |part: &Part| {
        let symbols = part.symbols.iter();
        symbol.is_some_and(|symbol| symbols.into_iter().any(|name| matches(name, symbol)))
    };
    let by_file = |file: &String| {
        let is_in = |part: &Part| part.files.iter().any(|name| file.contains(name));
        rules.iter().position(is_in)
    };
    rules
        .iter()
        .position(by_symbol)
        .or_else(|| files.iter().find_map(by_file))
}

/// Whether `symbol` is the one that is named, or begins as it does before its `*`.
fn matches(name: &str, symbol: &str) -> bool {
    match name.strip_suffix('*') {
        Some(start) => symbol.starts_with(start),
        None => symbol == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> [Part; 3] {
        let part = |name: &str, files: &[&str], symbols: &[&str]| Part {
            name: name.into(),
            files: files.iter().map(ToString::to_string).collect(),
            symbols: symbols.iter().map(ToString::to_string).collect(),
        };
        [
            part(
                "switch",
                &["/el2/world.rs"],
                &["guest_exit", "el2_vectors*"],
            ),
            part("walk", &["stage2/src/walk.rs"], &[]),
            part("fault", &["memory/src/fault"], &[]),
        ]
    }

    fn found(files: &[&str], symbol: &str) -> Option<usize> {
        let files: Vec<_> = files.iter().map(ToString::to_string).collect();
        part_of(&rules(), &files, Some(symbol))
    }

    #[test]
    fn the_innermost_frame_with_a_rule_counts() {
        let walk = [
            "/rustc/core/atomic.rs",
            "/r/hyp/stage2/src/walk.rs",
            "/r/hyp/memory/src/fault.rs",
        ];
        assert_eq!(found(&walk, "serve"), Some(1));
        assert_eq!(found(&walk[2..], "serve"), Some(2));
        assert_eq!(found(&walk[..1], "serve"), None);
    }

    #[test]
    fn assembly_counts_by_its_symbols() {
        assert_eq!(found(&[], "guest_exit"), Some(0));
        assert_eq!(found(&[], "guest_exit_irq"), None);
        assert_eq!(found(&["parvisor.cgu.0"], "el2_vectors_looping"), Some(0));
    }
}
