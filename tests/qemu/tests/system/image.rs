//! What of the image no emulator shows, instruction by instruction: none that is used here has physical SErrors, or
//! speculates.

use std::collections::BTreeMap;
use std::fs;

use object::{Object, ObjectSection, ObjectSymbol};
use qemu_tests::raw::RawFiles;
use qemu_tests::{Boot, describe, images};

const DSB_SY: u32 = 0xd503_3f9f;
const MOV_X0_XZR: u32 = 0xaa1f_03e0;
const UNMASK_SERROR: u32 = 0xd503_44ff;
const ESB: u32 = 0xd503_221f;
const ISB: u32 = 0xd503_3fdf;
const RET: u32 = 0xd65f_03c0;
/// LDR x1, [x0].
const LOAD: u32 = 0xf940_0001;
/// AT S1E1R, but for its register; B, but for its offset.
const AT_S1E1R: u32 = 0xd508_7800;
const B: u32 = 0b00_0101;

/// The hypervisor's instructions and tables, by address.
struct Image {
    text: BTreeMap<u64, u32>,
    /// Where the hypervisor goes on after an exception of an instruction.
    recovery: BTreeMap<u64, u64>,
    symbols: BTreeMap<String, u64>,
}

impl Image {
    fn read() -> Self {
        let bytes = fs::read(&images().symbols).expect("the image was built");
        let file = object::File::parse(&*bytes).expect("the ELF file is sound");
        let words = |name| {
            let section = file.section_by_name(name).expect("there is such a section");
            let data = section.data().expect("the section is in the file");
            let words = data
                .chunks_exact(4)
                .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
            (section.address()..).step_by(4).zip(words)
        };
        let offsets: Vec<u64> = words(".recovery")
            .map(|(at, offset)| at.wrapping_add_signed(i64::from(offset.cast_signed())))
            .collect();
        let symbols = file
            .symbols()
            .filter_map(|symbol| Some((symbol.name().ok()?.to_owned(), symbol.address())));
        Self {
            text: words(".text").collect(),
            recovery: offsets.chunks(2).map(|pair| (pair[0], pair[1])).collect(),
            symbols: symbols.collect(),
        }
    }
}

/// The hypervisor with other instructions at these addresses, running this probe.
fn patched(instructions: &[(u64, u32)], cpu: &str, probe: &str) -> emulator::boot::Outcome {
    let mut image = fs::read(&images().hypervisor).expect("the image was built");
    for (at, instruction) in instructions {
        // It is linked at 0.
        let at = *at as usize;
        image[at..at + 4].copy_from_slice(&instruction.to_le_bytes());
    }
    let files = RawFiles::new();
    let kernel = files.write("patched.img", &image);
    Boot::probe(probe, 20).cpu(cpu).kernel(&kernel).run()
}

#[test]
fn a_guests_error_is_taken_when_the_guest_is_put() {
    let image = Image::read();
    let start = image.symbols["world_take_error"];
    let found = image.text.range(start..).map(|(_, word)| *word);
    let window = [DSB_SY, MOV_X0_XZR, UNMASK_SERROR, ESB, ISB, RET];
    assert_eq!(found.take(window.len()).collect::<Vec<_>>(), window);
    for taken_at in [3, 4, 5] {
        let goes_on = image.recovery.get(&(start + taken_at * 4));
        assert_eq!(goes_on, Some(&(start + 6 * 4)), "instruction {taken_at}");
    }
}

/// What the guest has done is told, but that an error came of it comes first. An abort stands in for the SError.
#[test]
fn an_error_that_is_found_when_the_guest_is_put_ends_its_vm_and_nothing_else() {
    let window = Image::read().symbols["world_take_error"];
    let outcome = patched(&[(window + 3 * 4, LOAD)], "max", "jump");
    let named = |error: &String| error.contains("system error came in the guest on vCPU 0");
    let is_clean = outcome.status == Some(1) && outcome.fatal.is_empty();
    assert!(
        is_clean && outcome.errors.iter().any(named),
        "{}",
        describe(&outcome)
    );
}

/// Exits that call firmware and exits that clear the history, on a CPU that needs neither: firmware knows no such call.
#[test]
fn whatever_exits_begin_with_the_guest_keeps_its_registers() {
    let image = Image::read();
    let usual = image.symbols["el2_vectors"];
    for other in ["calling", "clearing"] {
        let vectors = image.symbols[&format!("el2_vectors_{other}")];
        let branch = (B << 26) | ((vectors - usual) as u32 / 4);
        let branches = [8, 9, 10, 11, 12, 13, 14, 15].map(|vector| (usual + vector * 0x80, branch));
        let outcome = patched(&branches, "max", "hypercalls");
        assert_eq!(outcome.status, Some(0), "{other}: {}", describe(&outcome));
    }
}

#[test]
fn every_walk_of_a_guests_tables_may_end_in_an_exception() {
    let image = Image::read();
    let walks = image.text.iter();
    let walks: Vec<u64> = walks
        .filter(|(_, word)| **word & !0x1f == AT_S1E1R)
        .map(|(at, _)| *at)
        .collect();
    assert!(!walks.is_empty());
    for walk in walks {
        assert!(image.recovery.contains_key(&walk), "{walk:#x}");
    }
}

#[test]
fn exits_on_a_cpu_that_needs_nothing_begin_with_nothing() {
    let image = Image::read();
    let vectors = image.symbols["el2_vectors"];
    for vector in 8..16 {
        let first = image.text[&(vectors + vector * 0x80)];
        assert_eq!(first >> 26, B, "vector {vector}");
    }
}
