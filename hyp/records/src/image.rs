//! A guest's image as a boot loader left it: arm64 Image format (Linux, Documentation/arch/arm64/booting.rst).
//!
//! All of the header is an allegation, and is checked against the guest's memory.

use crate::size::Size;
use core::fmt;

/// Length of the header.
const HEADER: usize = 64;
/// "ARM\x64" at this offset.
const MAGIC: (usize, [u8; 4]) = (56, *b"ARM\x64");
const TEXT_OFFSET: usize = 8;
const IMAGE_SIZE: usize = 16;

/// An image that fits its guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestImage<'i> {
    /// The bytes to copy.
    pub bytes: &'i [u8],
    /// The address to copy it to and to start it at, from the start of RAM.
    pub offset: u64,
    /// The length of the memory that it uses from there on, at least that of `bytes`.
    pub size: u64,
}

impl<'i> GuestImage<'i> {
    /// Checks a module. With `whole`, the file must be as long as its header says, as images are that contain their zeroed
    /// data. Without, the rest is zeroed memory behind the file.
    pub fn check(module: &'i [u8], whole: bool) -> Result<Self, ImageError> {
        let length = module.len();
        if length < HEADER {
            return Err(ImageError::TooShort { length });
        }
        if module[MAGIC.0..MAGIC.0 + 4] != MAGIC.1 {
            return Err(ImageError::NotAnImage);
        }
        let (offset, announced) = (word(module, TEXT_OFFSET), word(module, IMAGE_SIZE));
        if whole && announced > length as u64 {
            return Err(ImageError::Truncated { length, announced });
        }
        Ok(Self {
            bytes: module,
            offset,
            size: announced.max(length as u64),
        })
    }

    /// The end of the memory that it uses, from the start of RAM; `None` beyond 64 bits.
    pub fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.size)
    }

    /// Checks that it fits into RAM of this size, together with `others` bytes behind it.
    pub fn check_fits(&self, ram: u64, others: u64) -> Result<(), ImageError> {
        match self.end().and_then(|end| end.checked_add(others)) {
            Some(end) if end <= ram => Ok(()),
            _ => Err(ImageError::TooLarge {
                size: self.size,
                offset: self.offset,
                ram: Size(ram),
            }),
        }
    }
}

fn word(module: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&module[at..at + 8]);
    u64::from_le_bytes(bytes)
}

/// Why a guest can't be started from a module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageError {
    /// There is no module.
    Missing,
    /// The file is shorter than a header.
    TooShort {
        /// Its length in bytes.
        length: usize,
    },
    /// It has no magic number.
    NotAnImage,
    /// The file is shorter than its header says.
    Truncated {
        /// Its length in bytes.
        length: usize,
        /// The length by its header.
        announced: u64,
    },
    /// It doesn't fit into the guest's memory.
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// Its address, from the start of RAM.
        offset: u64,
        /// The guest's memory.
        ram: Size,
    },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => {
                f.write_str("no guest: the device tree has no multiboot,module with multiboot,kernel under /chosen")
            }
            Self::TooShort { length } => write!(f, "the guest's image is truncated: {length} bytes are no header"),
            Self::NotAnImage => f.write_str("the guest's image isn't an arm64 Image: the magic number is missing"),
            Self::Truncated { length, announced } => {
                write!(f, "the guest's image is truncated: {length} bytes of {announced}")
            }
            Self::TooLarge { size, offset, ram } => {
                write!(f, "the guest's image ({size} bytes at offset {offset:#x}) doesn't fit into its {ram} of memory")
            }
        }
    }
}

impl core::error::Error for ImageError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn image(length: usize, offset: u64, announced: u64) -> Vec<u8> {
        let mut image = vec![0; length];
        image[TEXT_OFFSET..TEXT_OFFSET + 8].copy_from_slice(&offset.to_le_bytes());
        image[IMAGE_SIZE..IMAGE_SIZE + 8].copy_from_slice(&announced.to_le_bytes());
        image[MAGIC.0..MAGIC.0 + 4].copy_from_slice(&MAGIC.1);
        image
    }

    #[test]
    fn a_sound_image_is_placed() {
        let bytes = image(4096, 0x8_0000, 8192);
        let image = GuestImage::check(&bytes, false).unwrap();
        assert_eq!(
            (image.offset, image.size, image.end()),
            (0x8_0000, 8192, Some(0x8_2000))
        );
        assert_eq!(image.check_fits(1 << 20, 0), Ok(()));
        assert_eq!(image.check_fits(0x8_2000, 0), Ok(()));
        assert!(image.check_fits(0x8_2000, 1).is_err());
    }

    #[test]
    fn an_old_image_without_a_size_has_its_files() {
        let bytes = image(4096, 0, 0);
        assert_eq!(GuestImage::check(&bytes, true).unwrap().size, 4096);
    }

    #[test]
    fn broken_images_are_refused() {
        let whole = image(4096, 0, 4096);
        assert_eq!(
            GuestImage::check(&whole[..0], true),
            Err(ImageError::TooShort { length: 0 })
        );
        assert_eq!(
            GuestImage::check(&whole[..63], true),
            Err(ImageError::TooShort { length: 63 })
        );
        assert_eq!(
            GuestImage::check(&vec![0; 4096], true),
            Err(ImageError::NotAnImage)
        );
        let truncated = Err(ImageError::Truncated {
            length: 4095,
            announced: 4096,
        });
        assert_eq!(GuestImage::check(&whole[..4095], true), truncated);
        let bytes = image(4096, u64::MAX - 100, 0);
        let image = GuestImage::check(&bytes, true).unwrap();
        assert!(matches!(
            image.check_fits(u64::MAX, 0),
            Err(ImageError::TooLarge { .. })
        ));
    }

    proptest! {
        #[test]
        fn whatever_fits_lies_within_ram(offset: u64, announced: u64, ram: u64, others: u64, length in 64usize..200, whole: bool) {
            let bytes = image(length, offset, announced);
            if let Ok(image) = GuestImage::check(&bytes, whole)
                && image.check_fits(ram, others).is_ok()
            {
                let end = u128::from(image.offset) + u128::from(image.size) + u128::from(others);
                prop_assert!(end <= u128::from(ram) && image.bytes.len() as u64 <= image.size);
            }
        }

        #[test]
        fn any_bytes_are_checked_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), whole: bool) {
            let _ = GuestImage::check(&bytes, whole);
        }
    }
}
