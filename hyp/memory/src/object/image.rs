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
        let object = Self::anonymous(cpu, account, bytes, piece)?;
        if !at.is_multiple_of(PAGE_SIZE) {
            return Err(ObjectError::Unaligned { piece: PAGE_SIZE });
        }
        let end = at.checked_add(image.bytes());
        if end.is_none_or(|end| end > bytes) {
            return Err(ObjectError::ImageBeyondEnd);
        }
        image.share_image(cpu, &object, at / PAGE_SIZE)?;
        object.preallocate(cpu)?;
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
