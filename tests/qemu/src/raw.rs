//! Starts the hypervisor without QEMU's own boot loader, to hand it what that never would: any tree or none, at any
//! exception level. Image, tree and a few instructions that jump to the image are put into memory as they are.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::{Boot, images};

/// Where the image is put: where QEMU's own boot loader has it, too.
pub const IMAGE: u64 = 0x4020_0000;
/// Where the tree is put.
pub const TREE: u64 = 0x4800_0000;
/// Where the first instructions are put; QEMU's own tree lies below, from the start of RAM.
const ENTRY: u64 = 0x4018_0000;

/// The files of a raw machine, which must live as long as it does.
#[derive(Debug)]
pub struct RawFiles {
    folder: TempDir,
}

impl RawFiles {
    /// A place for files.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn new() -> Self {
        Self {
            folder: TempDir::new().expect("room for files"),
        }
    }

    /// Turns `boot` into a machine that starts the image with x0 = `x0`, and with `tree` in memory at [`TREE`].
    ///
    /// # Panics
    ///
    /// If a file can't be written.
    pub fn machine(&self, boot: Boot, x0: u64, tree: Option<&[u8]>) -> Boot {
        self.machine_after(boot, &[], x0, tree)
    }

    /// As [`Self::machine`], with system registers that the first CPU sets before it jumps to the image.
    ///
    /// # Panics
    ///
    /// If a file can't be written.
    pub fn machine_after(
        &self,
        boot: Boot,
        registers: &[(Register, u64)],
        x0: u64,
        tree: Option<&[u8]>,
    ) -> Boot {
        let mut raw = boot;
        raw.machine.kernel = None;
        let mut code: Vec<u32> = registers
            .iter()
            .flat_map(|(register, value)| register.set(*value))
            .collect();
        code.extend(entry_code(x0, IMAGE));
        let code: Vec<u8> = code.into_iter().flat_map(u32::to_le_bytes).collect();
        let entry = self.write("entry", &code);
        raw = load(raw, &entry, ENTRY, true);
        raw = load(raw, &images().hypervisor, IMAGE, false);
        if let Some(tree) = tree {
            let file = self.write("tree", tree);
            raw = load(raw, &file, TREE, false);
        }
        raw
    }

    /// Writes a file; gives its path.
    ///
    /// # Panics
    ///
    /// If it can't be written.
    pub fn write(&self, name: &str, contents: &[u8]) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, contents).expect("room for a file");
        path
    }
}

impl Default for RawFiles {
    fn default() -> Self {
        Self::new()
    }
}

/// Puts a file into memory; the first CPU starts there if `is_entry`.
pub fn load(boot: Boot, file: &Path, address: u64, is_entry: bool) -> Boot {
    let cpu = if is_entry { ",cpu-num=0" } else { "" };
    let device = format!(
        "loader,file={},addr={address:#x},force-raw=on{cpu}",
        file.display()
    );
    boot.arguments(["-device".to_string(), device])
}

/// `x0 = …; x1 = x2 = x3 = 0; jump to image`.
fn entry_code(x0: u64, image: u64) -> Vec<u32> {
    const BR_X4: u32 = 0xd61f_0080;
    let mut code = Vec::new();
    for (register, value) in [(0, x0), (1, 0), (2, 0), (3, 0), (4, image)] {
        code.extend(set_register(register, value));
    }
    code.push(BR_X4);
    code
}

/// A system register by its encoding: op0, op1, CRn, CRm, op2.
#[derive(Clone, Copy, Debug)]
pub struct Register(pub u32, pub u32, pub u32, pub u32, pub u32);

impl Register {
    /// `msr register, x5; isb`, with a number in x5.
    fn set(self, value: u64) -> Vec<u32> {
        const MSR: u32 = 0xd500_0000;
        const ISB: u32 = 0xd503_3fdf;
        let Self(op0, op1, crn, crm, op2) = self;
        let fields = op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5;
        let mut code = set_register(5, value).to_vec();
        code.extend([MSR | fields | 5, ISB]);
        code
    }
}

/// `movz` and three `movk`: a register gets a 64-bit number.
fn set_register(register: u32, value: u64) -> [u32; 4] {
    const MOVZ: u32 = 0xd280_0000;
    const MOVK: u32 = 0xf280_0000;
    std::array::from_fn(|part| {
        let instruction = if part == 0 { MOVZ } else { MOVK };
        let bits = (value >> (16 * part)) as u32 & 0xffff;
        instruction | (part as u32) << 21 | bits << 5 | register
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_register_is_set_by_its_encoding() {
        // msr mdscr_el1, x5
        assert_eq!(Register(2, 0, 0, 2, 2).set(0)[4], 0xd510_0245);
    }

    #[test]
    fn a_register_is_set_in_four_instructions() {
        // movz x4, #0; movk x4, #0x4020, lsl #16; movk x4, #0, lsl #32; movk x4, #0, lsl #48
        assert_eq!(
            set_register(4, 0x4020_0000),
            [0xd280_0004, 0xf2a8_0404, 0xf2c0_0004, 0xf2e0_0004]
        );
    }
}
