//! The kernel of an operating system as an arm64 Image (Linux, Documentation/arch/arm64/booting.rst), where its boot protocol
//! wants it in memory.
//!
//! All of the file is an allegation. Files that aren't an Image get an error that says what they are.

use crate::image::{GuestImage, ImageError};
use crate::size::Size;
use core::fmt;

/// Where RAM begins, an Image's base has to be a multiple of this; so has the tree's own region.
pub const KERNEL_ALIGNMENT: u64 = 2 << 20;
/// The offset of images from before 3.17, which don't tell their size.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// The text offset is below the alignment.
const IMAGE_SIZE: usize = 16;
/// The offset of the PE header for UEFI, 0 if there is none.
const PE_OFFSET: usize = 60;

/// Checks a kernel, and says where it goes and what memory it takes.
///
/// # Errors
/// It isn't an uncompressed arm64 Image, or not all of one.
pub fn check_kernel(file: &[u8]) -> Result<GuestImage<'_>, KernelError> {
    if let Some(kind) = FileKind::of(file) {
        return Err(KernelError::Foreign(kind));
    }
    let image = GuestImage::check(file, false).map_err(|error| match error {
        ImageError::TooShort { length } => KernelError::NoHeader { length },
        _ => KernelError::NotAnImage,
    })?;
    if let Some(announced) = sections_end(file)
        && announced > file.len() as u64
    {
        return Err(KernelError::Truncated {
            length: file.len(),
            announced,
        });
    }
    let is_old = file[IMAGE_SIZE..IMAGE_SIZE + 8] == [0; 8];
    let offset = match is_old {
        true => OLD_TEXT_OFFSET,
        false => image.offset,
    };
    if offset >= KERNEL_ALIGNMENT {
        return Err(KernelError::TextOffset(offset));
    }
    Ok(GuestImage { offset, ..image })
}

/// Where firmware finds a kernel that it may boot, from the start of RAM: U-Boot's `kernel_addr_r` for QEMU's virt machine.
pub const FIRMWARE_KERNEL: u64 = 0x40_0000;
/// Where it finds an initial ramdisk, likewise: U-Boot's `ramdisk_addr_r`.
pub const FIRMWARE_RAMDISK: u64 = 0x400_0000;
/// The flash memory of QEMU's virt machine, at address 0, which firmware starts in.
pub const FLASH_BYTES: u64 = 128 << 20;
/// The part of it that holds the firmware. Behind it are the firmware's settings.
pub const FIRMWARE_BYTES: u64 = FLASH_BYTES / 2;

/// Checks a file that is started in flash memory, like U-Boot. It has no header.
///
/// # Errors
/// It is too large, empty, or something else.
pub fn check_firmware(file: &[u8]) -> Result<(), FirmwareError> {
    let length = file.len() as u64;
    match FileKind::of(file) {
        _ if check_kernel(file).is_ok() => Err(FirmwareError::Kernel),
        Some(kind) => Err(FirmwareError::Foreign(kind)),
        None if length == 0 => Err(FirmwareError::Empty),
        None if length > FIRMWARE_BYTES => Err(FirmwareError::TooLarge { length }),
        None => Ok(()),
    }
}

/// The end of the last section in the file, by its PE header for UEFI. Nothing else tells how long the file has to be: the
/// header's size counts zeroed memory behind it. The end of that header's first part, if the file ends within it. `None`
/// without such a header.
fn sections_end(file: &[u8]) -> Option<u64> {
    const MAGIC: &[u8] = b"PE\0\0";
    const COFF_HEADER: usize = 24;
    const SECTION: usize = 40;
    let half = |at: usize| {
        let bytes = file.get(at..at.checked_add(2)?)?;
        Some(usize::from(u16::from_le_bytes([bytes[0], bytes[1]])))
    };
    let word = |at: usize| Some(half(at)? as u64 | (half(at.checked_add(2)?)? as u64) << 16);
    let header = word(PE_OFFSET)? as usize;
    let magic = file.get(header..).unwrap_or_default();
    if !file.starts_with(b"MZ") || !magic.starts_with(&MAGIC[..magic.len().min(MAGIC.len())]) {
        return None;
    }
    let (Some(sections), Some(optional)) = (half(header + 6), half(header + 20)) else {
        return Some((header + COFF_HEADER) as u64);
    };
    let first = header + COFF_HEADER + optional;
    let ends = (0..sections).map(|number| {
        let section = first + number * SECTION;
        match (word(section + 16), word(section + 20)) {
            (Some(size), Some(start)) => size + start,
            // The header itself is cut.
            _ => (section + SECTION) as u64,
        }
    });
    ends.max()
}

/// A kind of file that is given for a kernel, but isn't one that can be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// Compressed, with the program that undoes it.
    Compressed(&'static str),
    /// A kernel that decompresses itself under UEFI.
    Zboot,
    /// An ELF file.
    Elf,
    /// A kernel of 32-bit Arm.
    Arm32,
    /// A kernel of x86.
    X86,
    /// U-Boot's own format.
    UImage,
    /// A flattened device tree, or a FIT image, which is one.
    Tree,
    /// A cpio archive, which an initial ramdisk is.
    Cpio,
}

impl FileKind {
    fn of(file: &[u8]) -> Option<Self> {
        const BEGINNINGS: [(&[u8], FileKind); 13] = [
            (b"\x1f\x8b", FileKind::Compressed("gzip")),
            (b"\x28\xb5\x2f\xfd", FileKind::Compressed("zstd")),
            (b"\xfd7zXZ\0", FileKind::Compressed("xz")),
            (b"\x04\x22\x4d\x18", FileKind::Compressed("lz4")),
            (b"\x02\x21\x4c\x18", FileKind::Compressed("lz4")),
            (b"BZh", FileKind::Compressed("bzip2")),
            (b"\x5d\0\0", FileKind::Compressed("lzma")),
            (b"\x89LZO", FileKind::Compressed("lzop")),
            (b"\x7fELF", FileKind::Elf),
            (b"\x27\x05\x19\x56", FileKind::UImage),
            (b"\xd0\x0d\xfe\xed", FileKind::Tree),
            (b"070701", FileKind::Cpio),
            (b"070702", FileKind::Cpio),
        ];
        let has = |at: usize, magic: &[u8]| file.get(at..at + magic.len()) == Some(magic);
        if has(0, b"MZ\0\0zimg") {
            return Some(Self::Zboot);
        }
        if has(0x202, b"HdrS") {
            return Some(Self::X86);
        }
        if has(0x24, &0x016f_2818_u32.to_le_bytes()) {
            return Some(Self::Arm32);
        }
        let mut known = BEGINNINGS.into_iter();
        known
            .find(|(magic, _)| file.starts_with(magic))
            .map(|(_, kind)| kind)
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compressed(program) => {
                return write!(f, "compressed with {program}: decompress it first");
            }
            Self::Zboot => {
                "an EFI zboot file, which only UEFI can start: take the Image that it was made of"
            }
            Self::Elf => "an ELF file: take arch/arm64/boot/Image, not vmlinux",
            Self::Arm32 => "for 32-bit Arm, not for arm64",
            Self::X86 => "for x86, not for arm64",
            Self::UImage => "a uImage of U-Boot's: take the Image that it was made of",
            Self::Tree => "a device tree or a FIT image, not an arm64 Image",
            Self::Cpio => "a cpio archive, as an initial ramdisk is, not an arm64 Image",
        })
    }
}

/// Why a file can't be started as a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelError {
    /// It is shorter than a header.
    NoHeader {
        /// Its length in bytes.
        length: usize,
    },
    /// It is another kind of file.
    Foreign(FileKind),
    /// It has no magic number.
    NotAnImage,
    /// It is shorter than its sections.
    Truncated {
        /// Its length in bytes.
        length: usize,
        /// The length by its sections.
        announced: u64,
    },
    /// Its offset from a multiple of 2 MiB is larger than that.
    TextOffset(u64),
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader { length } => write!(
                f,
                "the guest's kernel is truncated: {length} bytes are no header"
            ),
            Self::Foreign(kind) => write!(f, "the guest's kernel is {kind}"),
            Self::NotAnImage => {
                f.write_str("the guest's kernel isn't an arm64 Image: the magic number is missing")
            }
            Self::Truncated { length, announced } => write!(
                f,
                "the guest's kernel is truncated: {length} bytes of {announced}"
            ),
            Self::TextOffset(offset) => write!(
                f,
                "the guest's kernel has an impossible text offset of {offset:#x}"
            ),
        }
    }
}

impl core::error::Error for KernelError {}

/// Why a file can't be started as firmware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FirmwareError {
    /// It has no bytes.
    Empty,
    /// It is a kernel.
    Kernel,
    /// It is another kind of file.
    Foreign(FileKind),
    /// It is larger than the flash memory for it.
    TooLarge {
        /// Its length in bytes.
        length: u64,
    },
}

impl fmt::Display for FirmwareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the guest's firmware is empty"),
            Self::Kernel => {
                f.write_str("the guest's firmware is an arm64 Image, which starts as a kernel")
            }
            Self::Foreign(FileKind::Elf) => f.write_str(
                "the guest's firmware is an ELF file: take the flat file, like u-boot.bin",
            ),
            Self::Foreign(kind) => write!(f, "the guest's firmware is {kind}"),
            Self::TooLarge { length } => write!(
                f,
                "the guest's firmware is too large: {length} bytes, of at most {}",
                Size(FIRMWARE_BYTES)
            ),
        }
    }
}

impl core::error::Error for FirmwareError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn image(length: usize, offset: u64, size: u64) -> Vec<u8> {
        let mut image = vec![0; length];
        image[8..16].copy_from_slice(&offset.to_le_bytes());
        image[16..24].copy_from_slice(&size.to_le_bytes());
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    /// With a PE header that announces one section up to `end`.
    fn with_section(mut image: Vec<u8>, end: u32) -> Vec<u8> {
        image[..2].copy_from_slice(b"MZ");
        image[60..64].copy_from_slice(&64u32.to_le_bytes());
        image[64..68].copy_from_slice(b"PE\0\0");
        image[70] = 1;
        image[84] = 16;
        let section = 64 + 24 + 16;
        image[section + 16..section + 20].copy_from_slice(&(end - 512).to_le_bytes());
        image[section + 20..section + 24].copy_from_slice(&512u32.to_le_bytes());
        image
    }

    #[test]
    fn a_kernel_goes_where_its_header_says() {
        let new = image(4096, 0x10_0000, 1 << 20);
        let checked = check_kernel(&new).unwrap();
        assert_eq!((checked.offset, checked.size), (0x10_0000, 1 << 20));
        let old = image(4096, 0, 0);
        let checked = check_kernel(&old).unwrap();
        assert_eq!((checked.offset, checked.size), (0x8_0000, 4096));
        let wild = image(4096, KERNEL_ALIGNMENT, 1 << 20);
        assert_eq!(
            check_kernel(&wild),
            Err(KernelError::TextOffset(KERNEL_ALIGNMENT))
        );
    }

    #[test]
    fn a_truncated_kernel_is_known_by_its_sections() {
        let whole = with_section(image(4096, 0, 1 << 20), 4096);
        assert!(check_kernel(&whole).is_ok());
        let says = check_kernel(&whole[..4095]).unwrap_err().to_string();
        assert_eq!(says, "the guest's kernel is truncated: 4095 bytes of 4096");
        for length in 64..4096 {
            let cut = check_kernel(&whole[..length]).unwrap_err();
            let is_truncated = matches!(cut, KernelError::Truncated { length: of, announced } if of == length && announced > length as u64);
            assert!(is_truncated, "{cut}");
        }
        assert_eq!(
            check_kernel(&whole[..63]),
            Err(KernelError::NoHeader { length: 63 })
        );
    }

    #[test]
    fn other_files_are_named() {
        let mut zboot = vec![0; 64];
        zboot[..8].copy_from_slice(b"MZ\0\0zimg");
        let mut x86 = vec![0; 0x300];
        x86[0x202..0x206].copy_from_slice(b"HdrS");
        let mut arm = vec![0; 64];
        arm[0x24..0x28].copy_from_slice(&[0x18, 0x28, 0x6f, 0x01]);
        for (file, says) in [
            (&b"\x1f\x8b\x08"[..], "compressed with gzip: "),
            (b"\x28\xb5\x2f\xfd", "compressed with zstd: "),
            (b"\xfd7zXZ\0", "compressed with xz: "),
            (&zboot, "an EFI zboot file, "),
            (b"\x7fELF\x02", "an ELF file: "),
            (&x86, "for x86, "),
            (&arm, "for 32-bit Arm, "),
            (b"\x27\x05\x19\x56", "a uImage "),
            (b"\xd0\x0d\xfe\xed", "a device tree "),
        ] {
            let error = check_kernel(file).unwrap_err().to_string();
            let expected = ["the guest's kernel is ", says].concat();
            assert!(error.starts_with(&expected), "{error}");
        }
        let says = check_kernel(&[b'x'; 64]).unwrap_err().to_string();
        assert_eq!(
            says,
            "the guest's kernel isn't an arm64 Image: the magic number is missing"
        );
    }

    #[test]
    fn firmware_has_no_header_but_isnt_anything() {
        let mut firmware = vec![0x14; 4096];
        assert_eq!(check_firmware(&firmware), Ok(()));
        firmware.resize(FIRMWARE_BYTES as usize, 0);
        assert_eq!(check_firmware(&firmware), Ok(()));
        firmware.push(0);
        for (file, says) in [
            (
                &firmware[..],
                "the guest's firmware is too large: 67108865 bytes, of at most 64 MiB",
            ),
            (&[], "the guest's firmware is empty"),
            (
                b"\x7fELF\x02",
                "the guest's firmware is an ELF file: take the flat file, like u-boot.bin",
            ),
            (
                &image(4096, 0, 4096),
                "the guest's firmware is an arm64 Image, which starts as a kernel",
            ),
        ] {
            assert_eq!(check_firmware(file).unwrap_err().to_string(), says);
        }
        let says = check_firmware(b"\x1f\x8b\x08").unwrap_err().to_string();
        assert!(says.starts_with("the guest's firmware is compressed with gzip: "));
    }

    proptest! {
        #[test]
        fn any_file_is_checked_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), magic: bool, header in 0u32..280) {
            if magic && bytes.len() > 64 {
                bytes[..2].copy_from_slice(b"MZ");
                bytes[56..60].copy_from_slice(b"ARM\x64");
                bytes[60..64].copy_from_slice(&header.to_le_bytes());
                if let Some(pe) = bytes.get_mut(header as usize..header as usize + 4) {
                    pe.copy_from_slice(b"PE\0\0");
                }
            }
            if let Ok(image) = check_kernel(&bytes) {
                prop_assert!(image.offset < KERNEL_ALIGNMENT && image.size >= bytes.len() as u64);
            }
        }
    }
}
