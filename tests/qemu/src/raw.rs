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
        let mut raw = boot;
        raw.machine.kernel = None;
        let entry = self.write("entry", &entry_code(x0, IMAGE));
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
fn entry_code(x0: u64, image: u64) -> Vec<u8> {
    const BR_X4: u32 = 0xd61f_0080;
    let mut code = Vec::new();
    for (register, value) in [(0, x0), (1, 0), (2, 0), (3, 0), (4, image)] {
        code.extend(set_register(register, value));
    }
    code.push(BR_X4);
    code.into_iter().flat_map(u32::to_le_bytes).collect()
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
    fn a_register_is_set_in_four_instructions() {
        // movz x4, #0; movk x4, #0x4020, lsl #16; movk x4, #0, lsl #32; movk x4, #0, lsl #48
        assert_eq!(
            set_register(4, 0x4020_0000),
            [0xd280_0004, 0xf2a8_0404, 0xf2c0_0004, 0xf2e0_0004]
        );
    }
}
