//! The bars: which machines are traced, what their exits are split into, and what each may cost. The table is `bars.toml`.

use std::collections::BTreeMap;

use serde::Deserialize;

use emulator::error::ToolError;

/// The table.
const TABLE: &str = include_str!("bars.toml");
/// The bar of all parts together.
pub const TOTAL: &str = "total";
/// The instructions that no part has.
pub const REST: &str = "other";

/// All of the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bars {
    /// The CPU models, which are the columns of every path's bars.
    pub cpus: Vec<String>,
    /// The machines.
    #[serde(rename = "boot")]
    pub boots: Vec<Boot>,
    /// The parts, in the order in which their rules are tried.
    #[serde(rename = "part")]
    pub parts: Vec<Part>,
    /// What is counted.
    #[serde(rename = "path")]
    pub paths: Vec<PathBars>,
}

/// A machine to trace.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// What paths know it by.
    pub name: String,
    /// What runs in it.
    pub guest: Guest,
    /// The hypervisor's options.
    pub options: String,
    /// CPUs, those that vCPUs have and one for the harness.
    pub cpus: u32,
    /// The trace starts when this CPU enters a guest for the first time.
    pub first_cpu: u32,
}

/// A guest.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Guest {
    /// The benchmark's.
    Benchmark,
    /// The one that misbehaves as this word says.
    Probe(String),
    /// The one that measures operations, as this word says.
    Micro(String),
}

/// A part and what belongs to it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Parts of the paths of its source files.
    #[serde(default)]
    pub files: Vec<String>,
    /// Its symbols; one that ends with `*` stands for all that begin so.
    #[serde(default)]
    pub symbols: Vec<String>,
}

/// A kind of exit from one of the machines, and its bars.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathBars {
    /// Its name.
    pub name: String,
    /// What happens.
    pub about: String,
    /// The machine, by name.
    pub boot: String,
    /// What the exit is for.
    pub exit: Kind,
    /// A part that only the wanted exits of this kind have.
    pub runs: Option<String>,
    /// The most instructions in all and of each part, on each CPU. A part that isn't here is bounded by the total alone.
    pub most: BTreeMap<String, Vec<u64>>,
}

/// What an exit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A write that stage 2 forbids.
    ForbiddenWrite,
    /// A write to what stage 2 doesn't map.
    UnmappedWrite,
    /// A read of what stage 2 doesn't map.
    UnmappedRead,
    /// A hypercall.
    Call,
    /// An interrupt of the machine.
    Interrupt,
}

impl Kind {
    /// Whether an exit with this ESR_EL2 is of the kind; one for an interrupt has none.
    pub fn is(self, syndrome: Option<u64>) -> bool {
        const CALL: u64 = 0x16;
        const DATA_ABORT: u64 = 0x24;
        const TRANSLATION: u64 = 0b0001;
        const PERMISSION: u64 = 0b0011;
        let Some(syndrome) = syndrome else {
            return self == Self::Interrupt;
        };
        let class = syndrome >> 26 & 0x3f;
        let writes = syndrome & 1 << 6 != 0;
        let on_table_walk = syndrome & 1 << 7 != 0;
        let abort = |status: u64, write: bool| {
            class == DATA_ABORT
                && syndrome >> 2 & 0xf == status
                && writes == write
                && !on_table_walk
        };
        match self {
            Self::ForbiddenWrite => abort(PERMISSION, true),
            Self::UnmappedWrite => abort(TRANSLATION, true),
            Self::UnmappedRead => abort(TRANSLATION, false),
            Self::Call => class == CALL,
            Self::Interrupt => false,
        }
    }
}

impl Bars {
    pub fn read() -> Result<Self, ToolError> {
        Self::parse(TABLE).map_err(|error| ToolError::Io(format!("bars.toml: {error}")))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let bars: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        for path in &bars.paths {
            if !bars.boots.iter().any(|boot| boot.name == path.boot) {
                return Err(format!("{}: there is no boot {:?}", path.name, path.boot));
            }
            let known = |name: &String| {
                [TOTAL, REST].contains(&name.as_str())
                    || bars.parts.iter().any(|part| part.name == *name)
            };
            let named = path.most.keys().chain(&path.runs);
            if let Some(name) = named.into_iter().find(|name| !known(name)) {
                return Err(format!("{}: there is no part {name:?}", path.name));
            }
            let mut columns = path.most.values().map(Vec::len);
            if !path.most.contains_key(TOTAL) || columns.any(|count| count != bars.cpus.len()) {
                let wanted = format!("a {TOTAL}, and {} bars a line", bars.cpus.len());
                return Err(format!("{}: expected {wanted}", path.name));
            }
        }
        Ok(bars)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound() {
        let bars = Bars::read().expect("it is");
        assert!(bars.paths.len() >= 4 && bars.cpus.len() == 2);
    }

    #[test]
    fn what_a_table_names_must_be_there() {
        let table = |path: &str| {
            let text = format!(
                "cpus = ['a', 'b']\n\
                 boot = [{{ name = 'x', guest = {{ probe = 'p' }}, options = '', cpus = 2, first_cpu = 1 }}]\n\
                 part = [{{ name = 'walk', files = ['walk.rs'] }}]\n\
                 [[path]]\nname = 'one'\nabout = ''\nexit = 'call'\n{path}"
            );
            Bars::parse(&text).map(|bars| bars.paths.len())
        };
        assert_eq!(
            table("boot = 'x'\nmost = { total = [1, 2], walk = [1, 1] }"),
            Ok(1)
        );
        for (path, words) in [
            ("boot = 'y'\nmost = { total = [1, 2] }", "no boot \"y\""),
            (
                "boot = 'x'\nmost = { total = [1, 2], climb = [1, 1] }",
                "no part \"climb\"",
            ),
            (
                "boot = 'x'\nruns = 'climb'\nmost = { total = [1, 2] }",
                "no part \"climb\"",
            ),
            ("boot = 'x'\nmost = { total = [1] }", "2 bars a line"),
            ("boot = 'x'\nmost = { walk = [1, 1] }", "a total"),
        ] {
            let error = table(path).expect_err(path);
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn exits_are_told_by_their_syndromes() {
        let kinds = |syndrome| {
            [
                Kind::ForbiddenWrite,
                Kind::UnmappedWrite,
                Kind::UnmappedRead,
                Kind::Call,
            ]
            .into_iter()
            .filter(|kind| kind.is(Some(syndrome)))
            .collect::<Vec<_>>()
        };
        assert_eq!(kinds(0x93c8_804f), [Kind::ForbiddenWrite]);
        assert_eq!(kinds(0x93c8_8047), [Kind::UnmappedWrite]);
        assert_eq!(kinds(0x93c2_8005), [Kind::UnmappedRead]);
        assert_eq!(kinds(0x5a00_0000), [Kind::Call]);
        // On a table walk; for instructions; a trapped register.
        for other in [0x9200_0087, 0x8200_0007, 0x6230_002f] {
            assert_eq!(kinds(other), []);
        }
    }
}
