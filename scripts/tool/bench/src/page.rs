//! One page with all results: tables, plots, and the command that measures them again. With the results themselves and the
//! plots beside it, it makes a folder that can be committed.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::label;
use super::metric::Metric;
use super::plots::{self, Captions, Plot};
use super::results::{Results, Run};
use super::section::Section;
use super::table;
use emulator::error::ToolError;

/// The name of the results in their folder.
pub const RESULTS: &str = "results.json";
/// The widest table that is printed with all its details, in columns; the page has room for any.
const WIDEST: usize = 150;
/// The name of the page.
pub const PAGE: &str = "README.md";

/// Writes results, plots and page into `folder`, which may exist. Plots go there as SVG and as PNG.
///
/// # Errors
///
/// One line that names the file that can't be written.
pub fn write(results: &Results, folder: &Path) -> Result<(), ToolError> {
    let save = |name: &str, contents: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, contents)
            .map_err(|error| ToolError::Io(format!("{}: {error}", path.display())))
    };
    results.write(&folder.join(RESULTS))?;
    let sections = Section::all(results);
    let mut drawn = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        let mut plots = plots::plots(section, &captions(results, section))?;
        for plot in &mut plots {
            if sections.len() > 1 {
                plot.name = format!("{}-{}", plot.name, index + 1);
            }
            save(&format!("{}.svg", plot.name), plot.svg.as_bytes())?;
            save(&format!("{}.png", plot.name), &plots::png(&plot.svg)?)?;
        }
        drawn.push(plots);
    }
    save(PAGE, markdown(results, &sections, &drawn).as_bytes())
}

/// The results as text: the tables of each section, then the failures.
pub fn text(results: &Results) -> String {
    let mut text = String::new();
    for section in Section::all(results) {
        let captions = captions(results, &section);
        let _ = writeln!(text, "{}\n{}\n", captions.workload, captions.made);
        for table in table::tables(&section, WIDEST) {
            let _ = writeln!(text, "{}\n\n{}\n", table.title, table.table);
        }
    }
    text.push_str(&verdict(results));
    text
}

/// The text above the plots of a section.
fn captions(results: &Results, section: &Section) -> Captions {
    let mut made = vec![section.machine.clone(), clock(results, section)];
    made.extend(results.host.as_ref().map(|host| {
        let plural = if host.cpus == 1 { "" } else { "s" };
        format!("QEMU {} on {} CPU{plural}", host.emulator, host.cpus)
    }));
    made.push(samples(section));
    let common = match section.common.as_str() {
        "" => String::new(),
        common => format!("; Parvisor: {common}"),
    };
    Captions {
        workload: format!("{}{common}", section.workload),
        made: made.join("; "),
    }
}

fn clock(results: &Results, section: &Section) -> String {
    match &results.clock {
        Some(clock) if clock.simulated => format!(
            "simulated parallel time, {} ns per cache-line move, {} ns per broadcast TLBI",
            clock.line_cost_ns, clock.tlbi_cost_ns
        ),
        _ if section.clock.is_empty() => "times as they were printed".into(),
        _ => format!("times measured with {}", section.clock),
    }
}

/// How many measurements a point stands for.
fn samples(section: &Section) -> String {
    let count = |metric: Metric| section.spreads(metric).map(|spread| spread.count).max();
    let typical = [
        Metric::LaterDirty,
        Metric::FirstDirty,
        Metric::Write,
        Metric::Check,
        Metric::DirtyPages,
    ];
    match typical.into_iter().find_map(count).unwrap_or(0) {
        0 | 1 => "one measurement each".into(),
        several => format!("median and extremes of up to {several} measurements"),
    }
}

/// The failures, or that there are none.
fn verdict(results: &Results) -> String {
    let own = results.runs.iter();
    let own = own.filter(|run| label::is_parvisor(&run.record));
    let (verified, wrong): (Vec<_>, Vec<_>) = own.partition(|run| run.record.verified);
    let mut text = String::new();
    if wrong.is_empty() && !verified.is_empty() {
        let _ = writeln!(
            text,
            "All {} runs of Parvisor are verified.",
            verified.len()
        );
    } else if !wrong.is_empty() {
        let _ = writeln!(
            text,
            "{} of {} runs of Parvisor are NOT verified.",
            wrong.len(),
            verified.len() + wrong.len()
        );
    }
    for failure in &results.failures {
        let _ = writeln!(text, "Failed: {failure}");
    }
    text
}

fn markdown(results: &Results, sections: &[Section], plots: &[Vec<Plot>]) -> String {
    let mut page = format!("# {}, measured\n\n", title(results));
    if !results.command.is_empty() {
        let _ = writeln!(page, "    {}\n", quoted(&results.command));
    }
    if !results.version.is_empty() {
        let _ = writeln!(
            page,
            "measures this again; measured with Parvisor {}{}.",
            results.version,
            profiles(results)
        );
    }
    let _ = writeln!(
        page,
        "`scripts/bench --parse {RESULTS} --out .` in this folder renders tables and plots again.\n\n{}",
        verdict(results)
    );
    for (section, plots) in sections.iter().zip(plots) {
        let captions = captions(results, section);
        let _ = writeln!(page, "## {}\n\n{}.\n", captions.workload, captions.made);
        for plot in plots {
            let _ = writeln!(page, "![{}]({}.svg)\n", plot.title, plot.name);
        }
        for table in table::tables(section, usize::MAX) {
            let _ = writeln!(page, "### {}\n\n{}\n", table.title, table.table);
        }
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

/// The build profile of Parvisor, if it is known.
fn profiles(results: &Results) -> String {
    let known = results.runs.iter().map(|run| run.record.profile.as_str());
    let known: BTreeSet<&str> = known.filter(|profile| !profile.is_empty()).collect();
    match known.is_empty() {
        true => String::new(),
        false => {
            let known: Vec<&str> = known.into_iter().collect();
            format!(", profile {}", known.join(", "))
        }
    }
}

/// The subject of the page.
fn title(results: &Results) -> &'static str {
    let of_backing = |run: &Run| label::is_of_backing(&run.record);
    if results.runs.is_empty() || !results.runs.iter().any(of_backing) {
        "Dirty logging"
    } else if results.runs.iter().all(of_backing) {
        "Changes of what backs memory"
    } else {
        "Dirty logging, and changes of what backs memory"
    }
}

/// A command as a shell takes it.
pub fn quoted(command: &[String]) -> String {
    let is_plain = |word: &&String| {
        let harmless = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+%@".contains(c);
        !word.is_empty() && word.chars().all(harmless)
    };
    let words = command.iter().map(|word| {
        if is_plain(&word) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use records::record::{Phase, PhaseName, Record};

    use super::super::results::{Clock, Host};
    use super::super::section::tests::{record, results};
    use super::*;

    #[test]
    fn the_folder_can_be_rendered_again_from_its_results() {
        let mut measured = results([
            record("mutex", 1, 1_000_000),
            record("mutex", 2, 2_100_000),
            record("parallel", 1, 1_000_000),
            record("parallel", 2, 1_010_000),
        ]);
        measured.host = Some(Host {
            cpus: 2,
            emulator: "10.0.2".into(),
        });
        measured.clock = Some(Clock {
            simulated: true,
            line_cost_ns: 100,
            tlbi_cost_ns: 0,
            quantum: 0,
        });
        let [first, second] = [(); 2].map(|()| tempfile::TempDir::new().expect("room"));
        write(&measured, first.path()).expect("the folder is ours");
        let text = fs::read_to_string(first.path().join(RESULTS)).expect("it was written");
        let read = Results::parse(Path::new(RESULTS), &text).expect("they are sound");
        write(&read, second.path()).expect("the folder is ours");
        let mut names = Vec::new();
        for entry in fs::read_dir(first.path()).expect("ours") {
            let name = entry.expect("ours").file_name();
            let [one, other] = [&first, &second].map(|folder| fs::read(folder.path().join(&name)));
            assert_eq!(one.expect("ours"), other.expect("ours"), "{name:?}");
            names.push(name.to_string_lossy().into_owned());
        }
        for name in [
            PAGE,
            RESULTS,
            "dirty-later.svg",
            "dirty-later.png",
            "phases.svg",
            "exits.png",
        ] {
            assert!(names.iter().any(|other| other == name), "{name}: {names:?}");
        }
        let page = fs::read_to_string(first.path().join(PAGE)).expect("it was written");
        for words in [
            "    scripts/bench\n",
            "100 ns per cache-line move",
            "QEMU 10.0.2 on 2 CPUs",
            "![Later dirty iterations against vCPUs](dirty-later.svg)",
            "| 2     |",
            "All 4 runs of Parvisor are verified.",
        ] {
            assert!(page.contains(words), "{words}: {page}");
        }
    }

    #[test]
    fn a_workload_has_a_page_of_its_own() {
        let run = |vcpus, change: &str, exits| Record {
            workload: "cow".into(),
            tracker: "ranges".into(),
            change: change.into(),
            phases: vec![Phase {
                name: PhaseName::Write,
                iteration: 2,
                ns: 2048 * 3_000,
                counters: [("exits_permission_fault".to_string(), 2048 * vcpus * exits)].into(),
            }],
            ..record("parallel", vcpus, 0)
        };
        let runs = [1, 4].into_iter();
        let runs = runs.flat_map(|vcpus| [run(vcpus, "direct", 1), run(vcpus, "unmap", 2)]);
        let folder = tempfile::TempDir::new().expect("room");
        write(&results(runs), folder.path()).expect("the folder is ours");
        let page = fs::read_to_string(folder.path().join(PAGE)).expect("it was written");
        for words in [
            "# Changes of what backs memory, measured",
            "## workload cow, 8 MiB per vCPU, backing 2M; Parvisor: parallel",
            "![Write, per page and vCPU against vCPUs](write.svg)",
            "![Time per page](pages.svg)",
            "![Exits per page](exits.svg)",
            "### Write, per page and vCPU, µs: median",
            "| vCPUs | parallel, change direct | parallel, change unmap |",
        ] {
            assert!(page.contains(words), "{words}: {page}");
        }
        assert!(
            !page.contains("phases.svg") && !page.contains("Later dirty"),
            "{page}"
        );
    }

    #[test]
    fn what_failed_is_named() {
        let mut wrong = record("mutex", 1, 1_000_000);
        wrong.verified = false;
        let mut measured = results([wrong, record("parallel", 1, 1_000_000)]);
        measured.failures.push("mutex, 9 vCPUs: it died".into());
        let text = text(&measured);
        assert!(
            text.contains("1 of 2 runs of Parvisor are NOT verified."),
            "{text}"
        );
        assert!(text.contains("Failed: mutex, 9 vCPUs: it died"), "{text}");
    }

    #[test]
    fn commands_can_be_pasted_into_a_shell() {
        let command = ["scripts/bench", "--vcpus=1,2", "--append", "a b", "it's"];
        assert_eq!(
            quoted(&command.map(String::from)),
            r"scripts/bench --vcpus=1,2 --append 'a b' 'it'\''s'"
        );
    }
}
