//! The engine's tables against this CPU's own table walker: for every layout of stage 2 that the CPU has.
//!
//! The walker is another implementation of the same manual: it decodes VTCR_EL2, VTTBR_EL2 and descriptors that the engine
//! has encoded. A tree is built and changed by every operation of the engine ([`Subject`]), and after each change the walker
//! translates addresses in and around it. Physical addresses needn't exist, as nothing is accessed. Execution permissions and
//! hardware's dirty state need accesses, which a guest of a few instructions makes ([`guest`]).

mod guest;
mod subject;
mod tree;

use core::fmt;

use platform::boot::cpus;
use platform::console;
use platform::cpu::features::CpuFeatures;
use stage2::{Features, Granule, Layout};
use subject::Subject;
use tree::Checks;

/// The smallest address space that the engine offers, in bits.
const LEAST_IPA_BITS: u32 = 32;

/// Compares all layouts, and ends in a panic at the first difference.
pub fn run() {
    let cpu = cpus::features();
    let mut all = Checks::default();
    let mut layouts = 0;
    for most in formats(cpu) {
        for ipa_bits in LEAST_IPA_BITS..=most.ipa_bits {
            let mut checks = Checks::default();
            for features in variants(Features { ipa_bits, ..most }) {
                let layout = Layout::new(features)
                    .unwrap_or_else(|error| panic!("selftest=stage2: {features:?}: {error}"));
                checks += Subject::check(cpu, layout);
            }
            let layout = Layout::new(Features { ipa_bits, ..most });
            if let Ok(layout) = layout {
                console::write_line(format_args!("stage2: {}: {checks}", Shape(&layout)));
            }
            layouts += 1;
            all += checks;
        }
        for features in variants(most) {
            all += guest::check(cpu, features);
        }
    }
    console::write_line(format_args!(
        "stage2: all {layouts} layouts of this CPU agree with its walker: {all}"
    ));
}

/// Every granule and address format that the CPU has, with all else that it has.
fn formats(cpu: &CpuFeatures) -> impl Iterator<Item = Features> {
    let granules = Granule::ALL.into_iter();
    granules
        .filter_map(|granule| cpu.stage2(granule))
        .flat_map(|most| {
            let narrow = Features {
                lpa2: false,
                ipa_bits: most.ipa_bits.min(48),
                ..most
            };
            // 64 KiB pages have one format for all sizes, which the CPU's address size selects.
            let wide = most.lpa2.then_some(most);
            match most.granule {
                Granule::Size64K => [Some(most), None],
                Granule::Size4K | Granule::Size16K => [Some(narrow), wide],
            }
        })
        .flatten()
}

/// `most` with and without each feature that tables depend on.
fn variants(most: Features) -> impl Iterator<Item = Features> {
    (0..32u32).filter_map(move |choice| {
        let chosen = |bit: u32| choice >> bit & 1 != 0;
        let features = Features {
            fwb: chosen(0),
            xnx: chosen(1),
            contiguous: chosen(2),
            hardware_access: chosen(3),
            hardware_dirty: chosen(4),
            ..most
        };
        let possible = features.fwb <= most.fwb
            && features.xnx <= most.xnx
            && features.hardware_access <= most.hardware_access
            && features.hardware_dirty <= most.hardware_dirty
            && features.hardware_dirty <= features.hardware_access;
        possible.then_some(features)
    })
}

/// A layout in a few words.
struct Shape<'l>(&'l Layout);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = self.0.features();
        let kib = self.0.page_size() >> 10;
        let format = self.0.format();
        write!(
            f,
            "{kib}K pages, {}-bit IPA, {format:?} format, {} root tables of level {}",
            features.ipa_bits,
            self.0.root_tables(),
            self.0.start() as u32
        )
    }
}
