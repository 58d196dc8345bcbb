//! A claim: the exclusive right to change one page's backing. Claiming never waits for another CPU's claim.

use super::word::{Backing, CLAIMED, LISTED};
use super::{Object, region_of};
use crate::system::reverse_map::Sharer;
use core::mem;
use core::ops::Range;
use stage2::sync::{Ordering, relax};

/// A page that is the caller's to change. Ended, never forgotten.
#[must_use = "a claimed page blocks every fault on it until the claim is ended"]
#[derive(Debug)]
pub(crate) struct Claim<'o> {
    object: &'o Object,
    page: u64,
    word: u64,
}

impl<'o> Claim<'o> {
    /// Whose page.
    pub(crate) fn object(&self) -> &'o Object {
        self.object
    }

    /// Its number in the object.
    pub(crate) fn page(&self) -> u64 {
        self.page
    }

    /// What backs it.
    pub(crate) fn backing(&self) -> Backing {
        Backing::decode(self.word)
    }

    /// How the reverse map knows it.
    pub(crate) fn sharer(&self) -> Sharer {
        self.object.sharer(self.page)
    }

    /// Publishes what backs the page now. All entries that map it lead there, or nowhere.
    pub(crate) fn end(mut self, backing: Backing) {
        self.word = backing.encode();
    }

    /// Leaves the page as it was.
    pub(crate) fn cancel(self) {}

    /// Leaves the page as it was, and on no list.
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

/// Pages that lie side by side, the caller's to change.
#[must_use = "claimed pages block every fault on them"]
#[derive(Debug)]
pub(crate) struct Claims<'o> {
    object: &'o Object,
    pages: Range<u64>,
}

impl<'o> Claims<'o> {
    /// Takes over the claim of the page that comes next.
    fn add(&mut self, claim: Claim<'o>) {
        debug_assert_eq!(claim.page, self.pages.end);
        mem::forget(claim);
        self.pages.end += 1;
    }

    /// Their numbers.
    pub(crate) fn pages(&self) -> Range<u64> {
        self.pages.clone()
    }

    /// Says what backs one of them from now on.
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
    /// Takes a page, to change what backs it. `None` while another CPU has it.
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

    /// Takes all pages of a region that a block may map, if none of them is taken, and all are its own.
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

    /// Takes pages one after the other, waiting for whoever has one. The caller has none of this object's that come
    /// later.
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
