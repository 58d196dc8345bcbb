//! A claim: the exclusive right to change one page's backing. Claiming never waits for another CPU's claim.

use super::word::{Backing, CLAIMED, LISTED};
use super::{Object, region_of};
use crate::system::reverse_map::Sharer;
use core::mem;
use core::ops::Range;
use stage2::sync::{Ordering, relax};

/// A claimed page: the caller alone may change its backing. A claim must be ended.
#[must_use = "a claimed page blocks every fault on it until the claim is ended"]
#[derive(Debug)]
pub(crate) struct Claim<'o> {
    object: &'o Object,
    page: u64,
    word: u64,
}

impl<'o> Claim<'o> {
    /// The page's object.
    pub(crate) fn object(&self) -> &'o Object {
        self.object
    }

    /// Its number in the object.
    pub(crate) fn page(&self) -> u64 {
        self.page
    }

    /// The page's backing.
    pub(crate) fn backing(&self) -> Backing {
        Backing::decode(self.word)
    }

    /// The page's identifier in the reverse map.
    pub(crate) fn sharer(&self) -> Sharer {
        self.object.sharer(self.page)
    }

    /// Publishes the page's new backing. All entries for the page already lead there, or nowhere.
    pub(crate) fn end(mut self, backing: Backing) {
        self.word = backing.encode();
    }

    /// Ends the claim with unchanged backing.
    pub(crate) fn cancel(self) {}

    /// Ends the claim with unchanged backing, and takes the page off its list.
    pub(crate) fn unlist(mut self) {
        self.word &= !LISTED;
    }
}

impl Drop for Claim<'_> {
    /// Release: pairs with the acquire of [`Object::look`] and [`Object::claim`].
    fn drop(&mut self) {
        let word = &self.object.page(self.page).word;
        word.store(self.word, Ordering::Release);
    }
}

/// Adjacent claimed pages.
#[must_use = "claimed pages block every fault on them"]
#[derive(Debug)]
pub(crate) struct Claims<'o> {
    object: &'o Object,
    pages: Range<u64>,
}

impl<'o> Claims<'o> {
    /// Adds the claim of the next page.
    fn add(&mut self, claim: Claim<'o>) {
        debug_assert_eq!(claim.page, self.pages.end);
        mem::forget(claim);
        self.pages.end += 1;
    }

    /// Their numbers.
    pub(crate) fn pages(&self) -> Range<u64> {
        self.pages.clone()
    }

    /// Sets the new backing of one of them.
    pub(crate) fn set(&self, page: u64, backing: Backing) {
        debug_assert!(self.pages.contains(&page));
        let word = &self.object.page(page).word;
        word.store(backing.encode() | CLAIMED, Ordering::Release);
    }
}

impl Drop for Claims<'_> {
    /// Release: as for a single page.
    fn drop(&mut self) {
        for page in self.pages.clone() {
            let word = &self.object.page(page).word;
            word.fetch_and(!CLAIMED, Ordering::Release);
        }
    }
}

impl Object {
    /// Claims a page, to change its backing. `None` while another CPU has claimed it.
    pub(crate) fn claim(&self, page: u64) -> Option<Claim<'_>> {
        let word = self.page(page).word.load(Ordering::Relaxed);
        if word & CLAIMED != 0 {
            return None;
        }
        // Acquire: pairs with the release of whoever had it last.
        let claimed = self.page(page).word.compare_exchange(
            word,
            word | CLAIMED,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        let object = self;
        claimed.ok().map(|_| Claim { object, page, word })
    }

    /// Claims all pages of a region of a block's size, if none of them is claimed and all are the object's own.
    pub(crate) fn claim_region(&self, page: u64) -> Option<Claims<'_>> {
        let pages = region_of(page);
        let mut claims = self.no_claims(pages.start);
        for page in pages {
            let claim = self.claim(page)?;
            if !matches!(claim.backing(), Backing::Owned(_)) {
                return None;
            }
            claims.add(claim);
        }
        Some(claims)
    }

    /// Claims pages one after the other, and waits for each that another CPU has. The caller holds no claim on later pages of
    /// this object.
    pub(crate) fn claim_all(&self, pages: Range<u64>) -> Claims<'_> {
        let mut claims = self.no_claims(pages.start);
        while claims.pages.end < pages.end {
            match self.claim(claims.pages.end) {
                Some(claim) => claims.add(claim),
                None => relax(),
            }
        }
        claims
    }

    fn no_claims(&self, first: u64) -> Claims<'_> {
        Claims {
            object: self,
            pages: first..first,
        }
    }
}
