//! CPU models that can't run the hypervisor in any emulator. On some of them it would never print a line.

use super::usage;
use emulator::error::ToolError;

/// The emulator's CPUs of 32 bits, and how the names of whole families of them begin.
const MODELS: [&str; 5] = [
    "cortex-a7",
    "cortex-a8",
    "cortex-a9",
    "cortex-a15",
    "ti925t",
];
const FAMILIES: [&str; 5] = ["arm", "cortex-m", "cortex-r5", "pxa", "sa11"];

/// Checks that a CPU of this model, with the emulator's properties if any, may be able to.
///
/// # Errors
///
/// [`ToolError::Usage`] naming the model.
pub fn check(cpu: &str) -> Result<(), ToolError> {
    let model = cpu.split(',').next().unwrap_or(cpu);
    if model.is_empty() {
        return usage("--cpu: the name of the model is empty");
    }
    if MODELS.contains(&model) || FAMILIES.iter().any(|family| model.starts_with(family)) {
        return usage(format!(
            "--cpu {cpu}: a CPU of 32 bits; the hypervisor takes an arm64 CPU with EL2, like cortex-a53"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_of_32_bits_are_refused_by_name() {
        for cpu in [
            "cortex-a15",
            "cortex-a7,pmu=off",
            "cortex-m3",
            "cortex-r52",
            "arm1136-r2",
            "pxa270-c5",
            "sa1110",
        ] {
            let says = check(cpu).expect_err(cpu).to_string();
            assert!(
                says.starts_with(&format!("--cpu {cpu}: a CPU of 32 bits")),
                "{says}"
            );
        }
        for cpu in [
            "cortex-a53",
            "cortex-a710",
            "cortex-a76",
            "a64fx",
            "max,sve=off",
            "host",
        ] {
            assert_eq!(check(cpu), Ok(()));
        }
        assert!(check(",sve=off").is_err());
    }
}
