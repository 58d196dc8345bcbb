//! Where a kernel's device tree and initial ramdisk lie: behind the kernel, the tree in a region of 2 MiB of its own, as arm64's
//! boot protocol wants it; or where firmware for QEMU's virt machine looks for them, the tree at the start of RAM.

use core::fmt;
use records::image::GuestImage;
use records::kernel::{FIRMWARE_RAMDISK, KERNEL_ALIGNMENT};
use records::size::Size;
use stage2::{Ipa, IpaRange};

/// Where RAM begins.
const RAM: Ipa = Ipa::new(records::options::RAM);
/// The region of the tree, which is its largest size too.
const TREE: u64 = KERNEL_ALIGNMENT;
/// The largest page of a guest.
const RAMDISK_ALIGNMENT: u64 = 64 << 10;
/// The kernel maps its ramdisk together with itself, in a window of this size.
const WINDOW: u64 = 32 << 30;

/// Where things lie in a guest's RAM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    /// The start of the device tree.
    pub tree: Ipa,
    /// The initial ramdisk, if there is one.
    pub ramdisk: Option<IpaRange>,
}

impl Places {
    /// The places in `ram` bytes of RAM for a kernel, which starts itself or may be booted by firmware.
    ///
    /// # Errors
    /// Something doesn't fit.
    pub fn of(
        image: &GuestImage<'_>,
        firmware: Option<&[u8]>,
        ramdisk: Option<&[u8]>,
        ram: u64,
    ) -> Result<Self, PlaceError> {
        match firmware {
            None => Self::behind(image, ramdisk, ram),
            Some(_) => Self::for_firmware(image, ramdisk, ram),
        }
    }

    /// The places behind a kernel.
    fn behind(
        image: &GuestImage<'_>,
        ramdisk: Option<&[u8]>,
        ram: u64,
    ) -> Result<Self, PlaceError> {
        let tree = image
            .end()
            .and_then(|end| end.checked_next_multiple_of(TREE));
        let behind = tree.and_then(|tree| tree.checked_add(TREE));
        let (Some(tree), Some(behind)) = (tree, behind.filter(|behind| *behind <= ram)) else {
            return Err(PlaceError::Kernel {
                size: image.size,
                ram,
            });
        };
        let ramdisk = match ramdisk.map(|bytes| bytes.len() as u64) {
            None => None,
            Some(0) => return Err(PlaceError::EmptyRamdisk),
            Some(size) => {
                let end = behind.checked_add(size);
                let end = end.and_then(|end| end.checked_next_multiple_of(RAMDISK_ALIGNMENT));
                if end.is_none_or(|end| end > ram.min(WINDOW)) {
                    return Err(PlaceError::Ramdisk {
                        size,
                        free: ram - behind,
                        ram,
                    });
                }
                Some(RAM.offset(behind)..RAM.offset(behind + size))
            }
        };
        Ok(Self {
            tree: RAM.offset(tree),
            ramdisk,
        })
    }

    /// The places where firmware looks.
    fn for_firmware(
        image: &GuestImage<'_>,
        ramdisk: Option<&[u8]>,
        ram: u64,
    ) -> Result<Self, PlaceError> {
        let end = ramdisk.map_or(ram, |_| FIRMWARE_RAMDISK.min(ram));
        let size = image.size;
        if image.end().is_none_or(|kernel| kernel > end) {
            return Err(PlaceError::Payload { size, end });
        }
        let ramdisk = match ramdisk.map(|bytes| bytes.len() as u64) {
            None => None,
            Some(0) => return Err(PlaceError::EmptyRamdisk),
            Some(size) => {
                let free = ram.saturating_sub(FIRMWARE_RAMDISK);
                if size > free {
                    return Err(PlaceError::Ramdisk { size, free, ram });
                }
                let start = RAM.offset(FIRMWARE_RAMDISK);
                Some(start..start.offset(size))
            }
        };
        Ok(Self { tree: RAM, ramdisk })
    }

    /// Checks that a tree fits into its region.
    ///
    /// # Errors
    /// It doesn't.
    pub fn check_tree(&self, tree: &[u8]) -> Result<(), PlaceError> {
        let size = tree.len() as u64;
        match size <= TREE {
            true => Ok(()),
            false => Err(PlaceError::Tree { size }),
        }
    }
}

/// Something doesn't fit into a guest's RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlaceError {
    /// The kernel, with the device tree behind it.
    Kernel {
        /// The memory that the kernel uses.
        size: u64,
        /// The guest's RAM.
        ram: u64,
    },
    /// The kernel that firmware may boot.
    Payload {
        /// The memory that the kernel uses.
        size: u64,
        /// Where it has to end, from the start of RAM.
        end: u64,
    },
    /// The device tree.
    Tree {
        /// Its size.
        size: u64,
    },
    /// The initial ramdisk has no bytes.
    EmptyRamdisk,
    /// The initial ramdisk.
    Ramdisk {
        /// Its size.
        size: u64,
        /// The RAM behind the kernel and the tree.
        free: u64,
        /// The guest's RAM.
        ram: u64,
    },
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Kernel { size, ram } => write!(
                f,
                "the guest's kernel is too large for its {} of memory: it takes {size} bytes, and its device tree up to {}",
                Size(ram),
                Size(TREE)
            ),
            Self::Payload { size, end } => write!(
                f,
                "the guest's kernel is too large for its place beside firmware: it takes {size} bytes, and has to end within {}",
                Size(end)
            ),
            Self::Tree { size } => write!(
                f,
                "the guest's device tree is too large: {size} bytes, of at most {}; its arguments may be too long",
                Size(TREE)
            ),
            Self::EmptyRamdisk => f.write_str("the guest's initial ramdisk is empty"),
            Self::Ramdisk { size, free, ram } => write!(
                f,
                "the guest's initial ramdisk is too large for its {} of memory: it has {size} bytes, and the kernel leaves {free}",
                Size(ram)
            ),
        }
    }
}

impl core::error::Error for PlaceError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use records::kernel::FIRMWARE_KERNEL;

    const MIB: u64 = 1 << 20;

    fn image(offset: u64, size: u64) -> GuestImage<'static> {
        GuestImage {
            bytes: &[],
            offset,
            size,
        }
    }

    #[test]
    fn all_lies_behind_the_kernel() {
        let ramdisk = [0; 70_000];
        let places = Places::behind(&image(0, 35 * MIB + 5), Some(&ramdisk), 128 * MIB).unwrap();
        assert_eq!(places.tree, RAM.offset(36 * MIB));
        let start = RAM.offset(38 * MIB);
        assert_eq!(places.ramdisk, Some(start..start.offset(70_000)));
        assert_eq!(
            Places::behind(&image(0, 36 * MIB), None, 38 * MIB)
                .unwrap()
                .tree,
            RAM.offset(36 * MIB)
        );
        assert_eq!(places.check_tree(&[0; 2 << 20]), Ok(()));
    }

    #[test]
    fn what_doesnt_fit_is_named() {
        let says = |offset, size, ramdisk: Option<&[u8]>, ram| {
            let error = Places::behind(&image(offset, size), ramdisk, ram).unwrap_err();
            alloc::format!("{error}")
        };
        assert_eq!(
            says(0, 36 * MIB, None, 37 * MIB),
            "the guest's kernel is too large for its 37 MiB of memory: it takes 37748736 bytes, and its device tree up to 2 MiB"
        );
        assert!(says(0, u64::MAX, None, 37 * MIB).starts_with("the guest's kernel"));
        assert!(says(MIB, 36 * MIB, None, 38 * MIB).starts_with("the guest's kernel"));
        assert_eq!(
            says(0, 36 * MIB, Some(&[0; 0x1_0001]), 38 * MIB + 0x1_0000),
            "the guest's initial ramdisk is too large for its 38976 KiB of memory: it has 65537 bytes, and the kernel leaves 65536"
        );
        assert_eq!(
            says(0, MIB, Some(&[]), 38 * MIB),
            "the guest's initial ramdisk is empty"
        );
        let places = Places::behind(&image(0, MIB), None, 38 * MIB).unwrap();
        let tree = alloc::vec![0; (2 << 20) + 1];
        let error = places.check_tree(&tree).unwrap_err();
        assert!(alloc::format!("{error}").starts_with("the guest's device tree is too large"));
    }

    #[test]
    fn firmware_finds_the_tree_at_the_start_and_the_others_at_places_of_their_own() {
        let image = |size| image(FIRMWARE_KERNEL, size);
        let places =
            |size, ramdisk: Option<&[u8]>, ram| Places::for_firmware(&image(size), ramdisk, ram);
        let found = places(36 * MIB, Some(&[0; 70_000]), 128 * MIB).unwrap();
        let start = RAM.offset(64 * MIB);
        assert_eq!(found.tree, RAM);
        assert_eq!(found.ramdisk, Some(start..start.offset(70_000)));
        assert!(places(0, None, 4 * MIB).is_ok());
        assert!(places(60 * MIB, None, 64 * MIB).is_ok());
        let refused = |size, ramdisk: Option<&[u8]>, ram| {
            alloc::format!("{}", places(size, ramdisk, ram).unwrap_err())
        };
        let large = "the guest's kernel is too large for its place beside firmware: it takes 62914561 bytes, and has to end within 64 MiB";
        assert_eq!(refused(60 * MIB + 1, Some(&[0]), 128 * MIB), large);
        assert_eq!(refused(60 * MIB + 1, None, 64 * MIB), large);
        assert!(refused(u64::MAX, None, 64 * MIB).starts_with("the guest's kernel"));
        assert_eq!(
            refused(0, Some(&[0; 2]), 64 * MIB + 1),
            "the guest's initial ramdisk is too large for its 67108865 bytes of memory: it has 2 bytes, and the kernel leaves 1"
        );
        assert!(refused(0, Some(&[]), 128 * MIB).ends_with("is empty"));
    }

    proptest! {
        #[test]
        fn whatever_fits_lies_apart_and_within_ram(offset in 0..2 * MIB, size: u64, small in 0..64 * MIB, is_small: bool, length in 1usize..200_000, ram in 0..128 * MIB) {
            let size = if is_small { small } else { size };
            let ramdisk = alloc::vec![0; length];
            if let Ok(places) = Places::behind(&image(offset, size), Some(&ramdisk), ram) {
                let range = places.ramdisk.unwrap();
                let tree = places.tree.get();
                prop_assert!(RAM.get() + offset + size <= tree);
                prop_assert!(tree.is_multiple_of(2 * MIB));
                prop_assert!(tree + 2 * MIB <= range.start.get());
                prop_assert!(range.end.get() <= RAM.get() + ram);
                prop_assert_eq!(range.end.get() - range.start.get(), length as u64);
            }
        }
    }
}
