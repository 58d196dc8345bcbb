//! The names of records: the policies of a column or of a line of a plot, and the workload that all records of a section share.
//! Pure functions of the records.

use std::collections::BTreeSet;

use records::options::MergeOptions;
use records::record::{PARVISOR, Record};
use records::words::Profile;

use emulator::size::Size;

/// The system that a record is of.
pub fn system(record: &Record) -> &str {
    if record.system.is_empty() {
        PARVISOR
    } else {
        &record.system
    }
}

/// Whether a record is Parvisor's own.
pub fn is_parvisor(record: &Record) -> bool {
    system(record) == PARVISOR
}

/// How many policies a record has.
const POLICIES: usize = 15;

/// The words for each policy of a record. A policy that an old record or another system lacks is empty.
fn policies(record: &Record) -> [String; POLICIES] {
    let said = |prefix: &str, word: &str| {
        if word.is_empty() {
            String::new()
        } else {
            format!("{prefix}{word}")
        }
    };
    [
        record.mode.clone(),
        said("split ", &record.split),
        record.tracking.clone(),
        said("logs ", &record.granularity),
        record.harvest.clone(),
        match record.harvesters {
            0 | 1 => String::new(),
            several => format!("{several} harvesters"),
        },
        said("enable ", &record.enable),
        said("clear ", &record.clear),
        said("restore ", &record.restore),
        if record.slots > 1 {
            format!("{} slots", record.slots)
        } else {
            String::new()
        },
        said("tracker ", &record.tracker),
        said("change ", &record.change),
        match (record.workload.as_str(), record.workers) {
            ("", _) => String::new(),
            (_, 1) => "1 worker".into(),
            (_, several) => format!("{several} workers"),
        },
        match record.overcommit {
            0 | 100 => String::new(),
            percent => format!("overcommit {percent} %"),
        },
        merging(record),
    ]
}

/// How equal pages were merged, if they were.
fn merging(record: &Record) -> String {
    let Record {
        merge_targets: targets,
        scanners,
        pages_to_scan,
        sleep_millisecs,
        max_page_sharing,
        ..
    } = record;
    if targets.is_empty() {
        return String::new();
    }
    let usual = MergeOptions::default();
    let mut text = format!("merging {targets}");
    if *scanners > 1 {
        text += &format!(" by {scanners} CPUs");
    }
    if (*pages_to_scan, *sleep_millisecs) != (usual.pages_to_scan, usual.sleep_millisecs) {
        text += &format!(", {pages_to_scan} pages and {sleep_millisecs} ms of sleep");
    }
    if *max_page_sharing != usual.max_page_sharing {
        text += &format!(", at most {max_page_sharing} share");
    }
    text
}

/// The words that identify the policies of a record among others.
pub fn key(record: &Record) -> (String, [String; POLICIES]) {
    (system(record).into(), policies(record))
}

/// The name of each record among all `records`: its system if there are several, its mode, and the policies in which records of
/// its system differ.
pub fn labels(records: &[&Record]) -> Vec<String> {
    let systems: BTreeSet<&str> = records.iter().map(|record| system(record)).collect();
    let label = |record: &&Record| {
        let own: Vec<[String; POLICIES]> = of_system(records, system(record));
        let mut words = Vec::new();
        if !is_parvisor(record) {
            words.push(system(record).replace("linux", "Linux"));
        } else if systems.len() > 1 {
            words.push(format!("Parvisor {}", record.mode));
        } else {
            words.push(record.mode.clone());
        }
        for (index, policy) in policies(record).into_iter().enumerate().skip(1) {
            let differs = own.iter().any(|other| other[index] != policy);
            if differs && !policy.is_empty() {
                words.push(policy);
            }
        }
        words.join(", ")
    };
    records.iter().map(label).collect()
}

/// The policies that all records of Parvisor have in common, for a heading.
pub fn common_policies(records: &[&Record]) -> String {
    let own = of_system(records, PARVISOR);
    let Some(first) = own.first() else {
        return String::new();
    };
    let is_common = |index: usize| own.iter().all(|other| other[index] == first[index]);
    let common = first.iter().enumerate();
    let common = common.filter(|(index, policy)| is_common(*index) && !policy.is_empty());
    let words: Vec<&str> = common.map(|(_, policy)| policy.as_str()).collect();
    words.join(", ")
}

fn of_system(records: &[&Record], wanted: &str) -> Vec<[String; POLICIES]> {
    let own = records.iter().filter(|record| system(record) == wanted);
    own.map(|record| policies(record)).collect()
}

/// Whether this is a run of a workload that changes backing memory.
pub fn is_of_backing(record: &Record) -> bool {
    !record.workload.is_empty()
}

/// The workload, without the number of vCPUs and the policies.
pub fn workload(record: &Record) -> String {
    if is_of_backing(record) {
        return format!(
            "workload {}, {} per vCPU, backing {}",
            record.workload,
            Size(record.bytes_per_vcpu),
            record.backing
        );
    }
    if !record.guest.is_empty() {
        return format!(
            "guest {} with {}, backing {}, rounds after {} ms each",
            record.guest,
            Size(record.bytes_per_vcpu),
            record.backing,
            record.interval
        );
    }
    let order = if record.random { ", random order" } else { "" };
    format!(
        "{} per vCPU, backing {}, {} % writes{order}",
        Size(record.bytes_per_vcpu),
        record.backing,
        record.write_percent
    )
}

/// The machine that did it.
pub fn machine(record: &Record) -> String {
    let gic = match record.gic {
        0 => String::new(),
        version => format!(", GICv{version}"),
    };
    let cpu = if record.cpu.is_empty() {
        "unknown CPU"
    } else {
        &record.cpu
    };
    // Measured builds usually have the best profile.
    let profile = if record.profile == Profile::Quick.name() {
        ", a quick build"
    } else {
        ""
    };
    format!("{cpu}{gic}{profile}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(mode: &str, split: &str) -> Record {
        Record {
            mode: mode.into(),
            split: split.into(),
            enable: "all_set".into(),
            ..Record::default()
        }
    }

    fn linux() -> Record {
        Record {
            system: "linux 6.12.117".into(),
            mode: "kvm".into(),
            ..Record::default()
        }
    }

    #[test]
    fn a_label_names_what_differs_and_no_more() {
        let (mutex, parallel) = (record("mutex", "fault"), record("parallel", "fault"));
        assert_eq!(labels(&[&mutex, &parallel]), ["mutex", "parallel"]);
        let eager = record("parallel", "eager");
        assert_eq!(
            labels(&[&parallel, &eager]),
            ["parallel, split fault", "parallel, split eager"]
        );
        assert_eq!(
            common_policies(&[&parallel, &eager]),
            "parallel, enable all_set"
        );
    }

    #[test]
    fn what_a_workload_compares_is_named_and_merging_too() {
        let run = |workers, overcommit| Record {
            workload: "reclaim".into(),
            tracker: "ranges".into(),
            workers,
            overcommit,
            ..record("parallel", "")
        };
        assert_eq!(
            labels(&[&run(0, 100), &run(1, 150)]),
            [
                "parallel, 0 workers",
                "parallel, 1 worker, overcommit 150 %"
            ]
        );
        let merging = Record {
            merge_targets: "test".into(),
            pages_to_scan: 500,
            sleep_millisecs: 20,
            max_page_sharing: 256,
            ..record("parallel", "fault")
        };
        assert_eq!(
            labels(&[&record("parallel", "fault"), &merging]),
            [
                "parallel",
                "parallel, merging test, 500 pages and 20 ms of sleep"
            ]
        );
        let by_three = Record {
            scanners: 3,
            ..merging.clone()
        };
        assert_eq!(
            labels(&[&merging, &by_three])[1],
            "parallel, merging test by 3 CPUs, 500 pages and 20 ms of sleep"
        );
        assert_eq!(
            workload(&run(0, 100)),
            "workload reclaim, 0 bytes per vCPU, backing "
        );
    }

    #[test]
    fn systems_are_named_where_there_are_several() {
        let (parallel, eager, linux) = (
            record("parallel", "fault"),
            record("parallel", "eager"),
            linux(),
        );
        assert_eq!(
            labels(&[&parallel, &linux]),
            ["Parvisor parallel", "Linux 6.12.117"]
        );
        assert_eq!(
            labels(&[&parallel, &eager, &linux])[1..],
            ["Parvisor parallel, split eager", "Linux 6.12.117"]
        );
        assert_eq!(labels(&[&linux]), ["Linux 6.12.117"]);
    }

    #[test]
    fn a_quick_build_is_another_machine() {
        let of = |profile: &str| {
            machine(&Record {
                profile: profile.into(),
                ..record("parallel", "fault")
            })
        };
        assert!(of("quick").ends_with(", a quick build"));
        assert_eq!(of("best"), of(""));
    }
}
