//! Turns an ELF file into the flat binary that boot loaders and QEMU load: the contents of its sections at their
//! offsets from the first one, as `objcopy -O binary` makes it.

use std::fmt;

use object::elf::SHF_ALLOC;
use object::{Object, ObjectSection, SectionFlags};

/// The largest flat binary that is made; a gap between sections beyond it is a mistake in a linker script.
const LARGEST: u64 = 64 << 20;

/// Why no flat binary could be made.
#[derive(Debug)]
pub enum FlatError {
    /// The file isn't a readable ELF file.
    Unreadable(object::Error),
    /// It has nothing to load.
    Empty,
    /// Its sections lie further apart than any sane image.
    TooLarge(u64),
}

impl fmt::Display for FlatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "the ELF file can't be read: {error}"),
            Self::Empty => f.write_str("the ELF file has no sections to load"),
            Self::TooLarge(bytes) => write!(f, "the sections of the ELF file span {bytes} bytes"),
        }
    }
}

impl std::error::Error for FlatError {}

/// The flat binary of the ELF file in `elf`.
///
/// # Errors
///
/// [`FlatError`] if the file can't be read or has no sane contents.
pub fn flat_binary(elf: &[u8]) -> Result<Vec<u8>, FlatError> {
    let file = object::File::parse(elf).map_err(FlatError::Unreadable)?;
    let mut sections = Vec::new();
    for section in file
        .sections()
        .filter(|section| section.size() != 0 && has_loaded_contents(&section.flags()))
    {
        let data = section.data().map_err(FlatError::Unreadable)?;
        // Sections without contents (`.bss`) have no data here.
        if !data.is_empty() {
            sections.push((section.address(), data));
        }
    }
    let start = sections
        .iter()
        .map(|(address, _)| *address)
        .min()
        .ok_or(FlatError::Empty)?;
    let end = sections
        .iter()
        .map(|(address, data)| address.saturating_add(data.len() as u64))
        .max()
        .unwrap_or(start);
    let span = end - start;
    let length = usize::try_from(span)
        .ok()
        .filter(|_| span <= LARGEST)
        .ok_or(FlatError::TooLarge(span))?;
    let mut flat = vec![0; length];
    for (address, data) in sections {
        let offset = (address - start) as usize;
        flat[offset..offset + data.len()].copy_from_slice(data);
    }
    Ok(flat)
}

fn has_loaded_contents(flags: &SectionFlags) -> bool {
    matches!(flags, SectionFlags::Elf { sh_flags, .. } if sh_flags.contains(SHF_ALLOC))
}
