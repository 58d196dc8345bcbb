//! One copy of a kernel for many VMs: they share the image's frames copy-on-write, page by page.

use crate::frames::Owner;
use crate::object::{Backing, Object, ObjectError};
use crate::system::cpu::{Caches, CpuMemory};
use alloc::sync::Arc;
use stage2::{Level, PAGE_SIZE, Tlb};

impl Object {
    /// A VM's own memory, as [`Self::preallocated`], with a copy of an image from byte `at` on. The image's frames are shared
    /// copy-on-write. Pieces that the image touches are made of pages.
    ///
    /// # Errors
    /// As for [`Self::preallocated`]; or the image doesn't lie within the memory, or doesn't begin at a page.
    pub fn with_image<T: Tlb + Caches>(
        cpu: &CpuMemory<T>,
        account: Owner,
        bytes: u64,
        piece: Level,
        image: &Self,
        at: u64,
    ) -> Result<Arc<Self>, ObjectError> {
        let object = Self::with_images(cpu, account, bytes, piece, &[(image, at)])?;
        object.preallocate(cpu)?;
        Ok(object)
    }

    /// A VM's own memory, as [`Self::anonymous`], with copies of images, each from a byte on. The images' frames are shared
    /// copy-on-write. Pieces that an image touches are made of pages.
    ///
    /// # Errors
    /// As for [`Self::anonymous`]; or an image doesn't lie within the memory, doesn't begin at a page, or overlaps another one.
    pub fn with_images<T: Tlb + Caches>(
        cpu: &CpuMemory<T>,
        account: Owner,
        bytes: u64,
        piece: Level,
        images: &[(&Self, u64)],
    ) -> Result<Arc<Self>, ObjectError> {
        let object = Self::anonymous(cpu, account, bytes, piece)?;
        for (index, (image, at)) in images.iter().enumerate() {
            if !at.is_multiple_of(PAGE_SIZE) {
                return Err(ObjectError::Unaligned { piece: PAGE_SIZE });
            }
            let end = at.checked_add(image.bytes()).filter(|end| *end <= bytes);
            let end = end.ok_or(ObjectError::ImageBeyondEnd)?;
            // Those before lie within the memory, so their ends are numbers.
            let overlaps =
                |(other, start): &(&Self, u64)| start + other.bytes() > *at && *start < end;
            if images[..index].iter().any(overlaps) {
                return Err(ObjectError::ImagesOverlap);
            }
            image.share_image(cpu, &object, at / PAGE_SIZE)?;
        }
        Ok(object)
    }

    /// How many pages of other objects currently share its frames. Takes a step for each of its pages.
    pub fn sharers(&self) -> u64 {
        let objects = self.system().objects();
        let sharers = |page| match self.look(page).backing() {
            Backing::Shared(pa) => objects.count(pa).saturating_sub(1),
            _ => 0,
        };
        (0..self.pages()).map(sharers).sum()
    }
}
