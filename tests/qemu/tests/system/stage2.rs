//! The engine's tables against the emulator's own table walker, and the features that guests' tables use on each CPU.

use qemu_tests::raw::{RawFiles, Register, TREE};
use qemu_tests::{Boot, SHORT, assert_verified, describe, emulates, tree};

/// What the comparison of all layouts says at its end.
#[derive(Debug, PartialEq, Eq)]
struct Compared {
    layouts: u64,
    variants: u64,
    fetches: u64,
    noted_writes: u64,
}

/// Compares on this CPU model. `None` where the emulator doesn't have it.
fn compare_on(cpu: &str) -> Option<Compared> {
    if !emulates(cpu) {
        eprintln!("this QEMU has no {cpu}");
        return None;
    }
    let boot = Boot::without_guest("selftest=stage2").cpu(cpu).cpus(1);
    let outcome = boot.limit(300).run_well();
    let summary = outcome.line_with("agree with its walker");
    let summary = summary.unwrap_or_else(|| panic!("{}", describe(&outcome)));
    let before = |words: &str| {
        let number = summary.split(words).next().and_then(|text| {
            let digits = text.rsplit(|letter: char| !letter.is_ascii_digit()).next();
            digits?.parse().ok()
        });
        number.unwrap_or_else(|| panic!("{words}: {summary}"))
    };
    let (translations, refusals) = (before(" translations"), before(" refusals"));
    let variants = before(" variants");
    assert!(
        translations > 50 * variants && refusals > 50 * variants,
        "{summary}"
    );
    let layouts = before(" layouts");
    let lines = outcome
        .lines
        .iter()
        .filter(|line| line.starts_with("stage2: ") && line.contains("-bit IPA"));
    assert_eq!(lines.count() as u64, layouts, "{}", describe(&outcome));
    Some(Compared {
        layouts,
        variants,
        fetches: before(" instruction fetches"),
        noted_writes: before(" writes noted"),
    })
}

/// 44-bit addresses, pages of 4 and 64 KiB; groups or none.
#[test]
fn every_layout_agrees_with_the_walker_of_a_cortex_a72() {
    if let Some(compared) = compare_on("cortex-a72") {
        let expected = Compared {
            layouts: 2 * 13,
            variants: 2 * 13 * 2,
            fetches: 2 * 2 * 8,
            noted_writes: 0,
        };
        assert_eq!(compared, expected);
    }
}

/// 48-bit addresses, all granules; groups, XNX, three ways to leave flags to hardware.
#[test]
fn every_layout_agrees_with_the_walker_of_a_neoverse_n1() {
    if let Some(compared) = compare_on("neoverse-n1") {
        let expected = Compared {
            layouts: 3 * 17,
            variants: 3 * 17 * 12,
            fetches: 3 * 12 * 8,
            noted_writes: 3 * 4 * 3,
        };
        assert_eq!(compared, expected);
    }
}

/// 52-bit addresses in three formats, and two narrow ones; FWB too.
#[test]
fn every_layout_agrees_with_the_walker_of_max() {
    if let Some(compared) = compare_on("max") {
        let layouts = 2 * 17 + 3 * 21;
        let expected = Compared {
            layouts,
            variants: layouts * 24,
            fetches: 5 * 24 * 8,
            noted_writes: 5 * 8 * 3,
        };
        assert_eq!(compared, expected);
    }
}

/// Boot firmware that left software step, breakpoints and, where the CPU has it, streaming mode on: a guest that the boot CPU
/// runs doesn't notice.
#[test]
fn a_guest_has_nothing_that_boot_firmware_left_in_registers() {
    const OSLAR_EL1: Register = Register(2, 0, 1, 0, 4);
    const MDSCR_EL1: Register = Register(2, 0, 0, 2, 2);
    const CNTP_CTL_EL0: Register = Register(3, 3, 14, 2, 1);
    const CPTR_EL2: Register = Register(3, 4, 1, 1, 2);
    const SVCR: Register = Register(3, 3, 4, 2, 2);
    /// SS, KDE, MDE.
    const STEP: u64 = 1 | 1 << 13 | 1 << 15;
    /// Bits that are RES1 without SME's trap.
    const NO_SME_TRAP: u64 = 0x22ff;
    /// SM and ZA.
    const STREAMING: u64 = 0b11;
    let debug = [(OSLAR_EL1, 0), (MDSCR_EL1, STEP), (CNTP_CTL_EL0, 1)];
    let streaming = [(CPTR_EL2, NO_SME_TRAP), (SVCR, STREAMING)];
    for (cpu, registers) in [
        ("cortex-a72", debug.to_vec()),
        ("max", debug.into_iter().chain(streaming).collect()),
    ] {
        let files = RawFiles::new();
        let boot = Boot::without_guest("selftest=stage2").cpu(cpu).cpus(1);
        let tree = tree::of_machine(&boot).to_dtb();
        let boot = files.machine_after(boot, &registers, TREE, Some(&tree));
        let outcome = boot.limit(300).run_well();
        let agrees = outcome.line_with("agree with its walker");
        assert!(agrees.is_some(), "{cpu}: {}", describe(&outcome));
    }
}

#[test]
fn guests_use_what_the_cpu_has() {
    for (cpu, uses, without) in [
        ("cortex-a72", &[][..], &["FWB", "hardware", "BBM"][..]),
        (
            "neoverse-n1",
            &["XNX", "hardware access flag"],
            &["FWB", "BBM"],
        ),
        // It has FEAT_BBM too, but its maker doesn't promise that no conflict abort comes of it.
        ("neoverse-n2", &["FWB", "hardware access flag"], &["BBM"]),
        (
            "max",
            &["FWB", "hardware access flag", "BBM level 2"],
            &["LPA2"],
        ),
    ] {
        if !emulates(cpu) {
            eprintln!("this QEMU has no {cpu}");
            continue;
        }
        let outcome = Boot::benchmark(SHORT)
            .cpu(cpu)
            .append("log=info")
            .run_well();
        assert_verified(&outcome, &["parallel"]);
        let record = &outcome.records[0];
        let has = |word: &&&str| record.stage2.contains(**word);
        assert!(
            uses.iter().all(|word| has(&word)),
            "{cpu}: {}",
            record.stage2
        );
        assert!(
            !without.iter().any(|word| has(&word)),
            "{cpu}: {}",
            record.stage2
        );
        let logged = outcome.line_with(&record.stage2).is_some();
        assert!(logged, "{}", describe(&outcome));
    }
}

#[test]
fn guests_have_52_bit_addresses_where_the_cpu_has() {
    for bits in [48, 49, 52] {
        let boot = Boot::benchmark(&format!("ipa_bits={bits} mode=rwlock,parallel {SHORT}"));
        let outcome = boot.cpu("max").run_well();
        assert_verified(&outcome, &["rwlock", "parallel"]);
        assert_eq!(outcome.records[0].stage2.contains("LPA2"), bits > 48);
    }
    Boot::benchmark(&format!("ipa_bits=49 {SHORT}")).run_refused(&["49 bits", "32 to 48"]);
}

#[test]
fn how_many_tlb_instructions_a_flush_is_worth_is_measured() {
    for cpu in ["cortex-a72", "max"] {
        let outcome = Boot::benchmark(SHORT)
            .cpu(cpu)
            .append("log=info")
            .run_well();
        let line = outcome.line_with("TLB invalidation: ");
        let line = line.unwrap_or_else(|| panic!("{}", describe(&outcome)));
        let most = outcome.records[0].most_tlbi;
        assert!((4..=512).contains(&most), "{line}");
        assert!(
            line.ends_with(&format!("at most {most} instructions")),
            "{line}"
        );
        assert!(!line.contains("too coarse"), "{line}");
    }
}
