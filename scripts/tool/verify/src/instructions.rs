//! The cost of the fast paths of the engine and of faults, in numbers that don't vary: instructions, and cache lines written.
//!
//! valgrind looks at two programs of `tests/bench`: one does a single operation (its instructions are counted), the other
//! serves write faults of two CPUs on different tables, so many that the epoch's upkeep comes (its stores are traced). A number above its limit, or a line that
//! both faults write, fails.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use emulator::error::ToolError;

/// The package that the programs are in.
pub const PACKAGE: &str = "engine-bench";

/// An operation and the limits of its cost.
struct Limit {
    /// Its name in the program, and of the function that is looked at.
    operation: &'static str,
    /// The name of one operation.
    unit: &'static str,
    /// Most instructions of a unit.
    most: u64,
}

const LIMITS: [Limit; 17] = [
    Limit {
        operation: "relax",
        unit: "an entry made writable, walk included",
        most: 60,
    },
    Limit {
        operation: "map_page",
        unit: "a page mapped into a table that is there",
        most: 150,
    },
    Limit {
        operation: "split_block",
        unit: "2 MiB split into pages",
        most: 2500,
    },
    Limit {
        operation: "harvest",
        unit: "a page of a range that is write-protected",
        most: 12,
    },
    Limit {
        operation: "find_dirty",
        unit: "a page looked at for what hardware has noted, one in eight being dirty",
        most: 8,
    },
    Limit {
        operation: "track",
        unit: "a page that hardware has noted as written and is to note again",
        most: 12,
    },
    Limit {
        operation: "epoch",
        unit: "a fault's stay in the epoch, its share of the upkeep among 4 CPUs included",
        most: 40,
    },
    Limit {
        operation: "fault_logged",
        unit: "a whole fault on a page that is logged",
        most: 150,
    },
    Limit {
        operation: "fault_backed",
        unit: "a whole fault that maps what is there",
        most: 520,
    },
    Limit {
        operation: "fault_first_touch",
        unit: "a whole fault on what nobody has touched",
        most: 860,
    },
    Limit {
        operation: "fault_zeros",
        unit: "a whole write fault where the frame of zeros is mapped",
        most: 2160,
    },
    Limit {
        operation: "fault_copy",
        unit: "a whole write fault on a shared page, its copy included",
        most: 3430,
    },
    Limit {
        operation: "fault_last",
        unit: "a whole write fault of the last that has a shared page",
        most: 2100,
    },
    Limit {
        operation: "scan_new",
        unit: "a page that a scan for equal ones looks at for the first time",
        most: 1300,
    },
    Limit {
        operation: "scan_unique",
        unit: "a page that a scan looks at, with no equal",
        most: 1480,
    },
    Limit {
        operation: "scan_merge",
        unit: "a page that a scan looks at, where every second is merged",
        most: 4800,
    },
    Limit {
        operation: "scan_shared",
        unit: "a page that a scan looks at, merged before",
        most: 450,
    },
];

/// One thing that was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The operation and its cost.
    pub text: String,
    /// Whether it is as it has to be.
    pub holds: bool,
}

/// Measures with the programs in `directory`, telling `each` of everything as it comes.
pub fn measure(directory: &Path, mut each: impl FnMut(Finding)) -> Result<(), ToolError> {
    for limit in &LIMITS {
        each(count(directory, limit)?);
    }
    for finding in lines_written(directory)? {
        each(finding);
    }
    Ok(())
}

fn unusable(what: &str) -> ToolError {
    ToolError::Io(format!("valgrind gave no {what}"))
}

fn valgrind(arguments: &[String], program: PathBuf) -> Command {
    let mut command = Command::new("valgrind");
    command.args(arguments).arg(program).stdin(Stdio::null());
    command
}

/// Counts the instructions of the function that is named as the operation.
fn count(directory: &Path, limit: &Limit) -> Result<Finding, ToolError> {
    let output = valgrind(
        &[
            "--tool=callgrind".into(),
            "--callgrind-out-file=/dev/null".into(),
            format!("--toggle-collect=*measured::{}", limit.operation),
        ],
        directory.join("instructions"),
    )
    .arg(limit.operation)
    .output()
    .map_err(|error| ToolError::Io(format!("valgrind can't be run: {error}")))?;
    let units: u64 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .map_err(|_| unusable("count of units"))?;
    let instructions = collected(&String::from_utf8_lossy(&output.stderr))
        .filter(|count| *count > 0 && units > 0)
        .ok_or_else(|| unusable("count of instructions"))?;
    Ok(judge(limit, instructions, units))
}

/// Reads callgrind's `==123== Collected : 456`.
fn collected(log: &str) -> Option<u64> {
    let line = log.lines().find(|line| line.contains("Collected"))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn judge(limit: &Limit, instructions: u64, units: u64) -> Finding {
    let tenths = instructions * 10 / units;
    let Limit {
        operation,
        unit,
        most,
    } = limit;
    Finding {
        text: format!(
            "{operation}: {}.{} instructions for {unit} (at most {most})",
            tenths / 10,
            tenths % 10
        ),
        holds: instructions <= most * units,
    }
}

/// Traces the stores of the two CPUs' faults.
fn lines_written(directory: &Path) -> Result<Vec<Finding>, ToolError> {
    let mut child = valgrind(
        &["--tool=lackey".into(), "--trace-mem=yes".into()],
        directory.join("cache_lines"),
    )
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .map_err(|error| ToolError::Io(format!("valgrind can't be run: {error}")))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(unusable("output"));
    };
    // The program prints little, and ends before the trace does.
    let trace = std::thread::spawn(move || {
        let accesses = BufReader::new(stderr).lines().map_while(Result::ok);
        accesses
            .filter_map(|line| Access::parse(&line))
            .collect::<Vec<_>>()
    });
    let places: Vec<Place> = BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| Place::parse(&line))
        .collect();
    let accesses = trace.join().map_err(|_| unusable("trace"))?;
    child
        .wait()
        .map_err(|error| ToolError::Io(format!("valgrind was lost: {error}")))?;
    Touched::of(&accesses, &places)
        .map(|touched| touched.findings(&places))
        .ok_or_else(|| unusable("trace of both faults"))
}

/// A data access, as lackey prints it: ` S 1ffe8,8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Access {
    writes: bool,
    address: u64,
}

impl Access {
    fn parse(line: &str) -> Option<Self> {
        let (kind, rest) = line.strip_prefix(' ')?.split_once(' ')?;
        let (address, _) = rest.split_once(',')?;
        Some(Self {
            writes: match kind {
                "S" | "M" => true,
                "L" => false,
                _ => return None,
            },
            address: u64::from_str_radix(address, 16).ok()?,
        })
    }
}

/// Something that the program knows the address of: `marker: 0x1000 8`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    name: String,
    start: u64,
    bytes: u64,
}

impl Place {
    fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.split_once(": 0x")?;
        let (start, bytes) = rest.split_once(' ')?;
        Some(Self {
            name: name.into(),
            start: u64::from_str_radix(start, 16).ok()?,
            bytes: bytes.parse().ok()?,
        })
    }
}

const LINE: u64 = 64;

/// The cache lines that each CPU's faults read and wrote, but for the stack's.
#[derive(Debug, Default)]
struct Touched {
    read: [BTreeSet<u64>; 2],
    written: [BTreeSet<u64>; 2],
}

impl Touched {
    fn of(accesses: &[Access], places: &[Place]) -> Option<Self> {
        /// The stack's reach around an address in it.
        const STACK: u64 = 1 << 16;
        let place = |name: &str| places.iter().find(|place| place.name == name);
        let (marker, stack) = (place("marker")?.start, place("stack")?.start);
        let mut touched = Self::default();
        let mut marks = 0;
        for access in accesses {
            if access.address == marker {
                marks += usize::from(access.writes);
            } else if let 1 | 2 = marks
                && access.address.abs_diff(stack) > STACK
            {
                let lines = if access.writes {
                    &mut touched.written
                } else {
                    &mut touched.read
                };
                lines[marks - 1].insert(access.address / LINE);
            }
        }
        let complete = marks == 3 && touched.written.iter().all(|lines| !lines.is_empty());
        complete.then_some(touched)
    }

    fn findings(&self, places: &[Place]) -> Vec<Finding> {
        let [first, second] = &self.written;
        let name = |line: &u64| {
            let at = line * LINE;
            let inside = |place: &&Place| place.start < at + LINE && at < place.start + place.bytes;
            let known = places.iter().find(inside);
            known.map_or(format!("{at:#x}"), |place| place.name.clone())
        };
        let names = |lines: &mut dyn Iterator<Item = &u64>| {
            lines
                .map(name)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
                .join(", ")
        };
        let shared = names(&mut first.intersection(second));
        let disturbed = |reader: usize| self.read[reader].intersection(&self.written[1 - reader]);
        let invalidated = names(&mut disturbed(0).chain(disturbed(1)));
        vec![
            Finding {
                text: format!(
                    "cache lines that write faults write: {} and {} on two CPUs, both write: {}",
                    first.len(),
                    second.len(),
                    if shared.is_empty() { "none" } else { &shared }
                ),
                holds: shared.is_empty(),
            },
            Finding {
                text: format!(
                    "cache lines that they read and the other CPU's faults write: {}",
                    if invalidated.is_empty() {
                        "none"
                    } else {
                        &invalidated
                    }
                ),
                holds: invalidated.is_empty(),
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callgrinds_count_is_read() {
        assert_eq!(
            collected("==7== Events    : Ir\n==7== Collected : 111\n"),
            Some(111)
        );
        assert_eq!(collected("==7== Command: x"), None);
    }

    #[test]
    fn a_count_is_judged_by_unit() {
        let harvest = &LIMITS[3];
        let finding = judge(harvest, 46_864, 4096);
        assert!(
            finding.holds && finding.text.contains("11.4 instructions"),
            "{finding:?}"
        );
        assert!(!judge(harvest, 12 * 4096 + 1, 4096).holds);
    }

    fn trace(lines: &[&str]) -> Option<Vec<Finding>> {
        let places: Vec<_> = [
            "marker: 0x1000 8",
            "stack: 0x7fff0000 1",
            "counter: 0x5000 8",
        ]
        .iter()
        .filter_map(|line| Place::parse(line))
        .collect();
        let accesses: Vec<_> = lines
            .iter()
            .filter_map(|line| Access::parse(line))
            .collect();
        Touched::of(&accesses, &places).map(|touched| touched.findings(&places))
    }

    #[test]
    fn a_line_that_both_write_is_named() {
        let apart = [
            "I  400,3",
            " S 5000,8",
            " M 1000,8",
            " S 2000,8",
            " L 3000,8",
            " S 1000,8",
            " S 2040,8",
            " S 1000,8",
        ];
        assert!(trace(&apart).unwrap().iter().all(|finding| finding.holds));
        let shared = [
            " M 1000,8",
            " M 5000,4",
            " S 7ffe8,8",
            " S 1000,8",
            " S 5038,8",
            " S 1000,8",
        ];
        let findings = trace(&shared).unwrap();
        assert!(
            !findings[0].holds && findings[0].text.ends_with("both write: counter"),
            "{findings:?}"
        );
        let read = [
            " S 1000,8",
            " L 5000,8",
            " S 2000,8",
            " S 1000,8",
            " S 5010,8",
            " S 1000,8",
        ];
        assert!(!trace(&read).unwrap()[1].holds);
    }

    #[test]
    fn half_a_trace_is_none() {
        assert_eq!(trace(&[" S 1000,8", " S 2000,8"]), None);
    }
}
