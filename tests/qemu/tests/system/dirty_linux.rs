//! A Linux guest whose memory is logged and copied while a load writes to it.

use records::record::{Phase, PhaseName, Record};
use tempfile::TempDir;

use crate::command::{complaints, script};
use crate::linux::is_unavailable;

#[test]
fn what_linux_writes_under_a_load_is_logged_and_its_copy_equals_its_memory() {
    let folder = TempDir::new().expect("room for a folder");
    let arguments = [
        "--linux",
        "--dirty-log",
        "--vcpus=2",
        "--bytes=128M",
        "--split=eager",
        "--iterations=2",
        "--interval=20",
        "--json=rounds.json",
    ];
    let output = script("scripts/run", &arguments, folder.path(), None);
    if is_unavailable(&output) {
        eprintln!("skipped: {}", complaints(&output));
        return;
    }
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{text}{}",
        complaints(&output)
    );
    // The guest's own check.
    assert!(text.contains("guest: load: 2 processes wrote "), "{text}");
    assert!(text.contains(", and all of it is there\n"), "{text}");
    assert!(
        text.contains("linux: 2 vCPUs, 128 MiB, 2 rounds after 20 ms each, backing 2M"),
        "{text}"
    );
    let json = std::fs::read(folder.path().join("rounds.json")).expect("it was written");
    let records: Vec<Record> = serde_json::from_slice(&json).expect("records");
    let [record] = &records[..] else {
        panic!("{} records", records.len());
    };
    assert_eq!((record.guest.as_str(), record.verified), ("linux", true));
    let named = |name: PhaseName| -> Vec<&Phase> {
        let phases = record.phases.iter();
        phases.filter(|phase| phase.name == name).collect()
    };
    // The writers' memory is 32 MiB, of which they write to thousands of pages within moments.
    let copies = named(PhaseName::Copy);
    assert_eq!(copies.len(), 3);
    for copy in copies {
        let count = |counter: &str| copy.counters.get(counter).copied().unwrap_or(0);
        assert!(count("pages_copied") >= 1000, "{copy:?}");
        assert!(count("pages_dirty") >= count("pages_copied"), "{copy:?}");
    }
    // It was split ahead: no write found a block.
    let enable = named(PhaseName::Enable);
    assert!(
        enable[0]
            .counters
            .get("split_blocks")
            .is_some_and(|count| *count >= 10),
        "{enable:?}"
    );
    assert_eq!(
        record.counters.get("faults_split"),
        None,
        "{:?}",
        record.counters
    );
    assert_eq!(
        named(PhaseName::Stop).len() + named(PhaseName::Compare).len(),
        2
    );
}
