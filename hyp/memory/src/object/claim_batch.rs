//! A batch of claimed pages of one object: one TLB invalidation per VM serves the whole batch.
//!
//! Faults on a claimed page retry until its claim ends, so a batch is small. The holder of a batch waits only for single locked
//! entries of tables, and never for another claim.

use crate::object::{Claim, Object};
use core::ops::Range;

/// Pages in a batch, at most.
pub(crate) const MOST: usize = if cfg!(loom) { 2 } else { 16 };

/// Pages of one object, claimed, in ascending order.
#[must_use = "claimed pages block every fault on them"]
#[derive(Debug)]
pub(crate) struct Batch<'o> {
    object: &'o Object,
    claims: [Option<Claim<'o>>; MOST],
    taken: usize,
}

impl<'o> Batch<'o> {
    /// An empty batch for this object.
    pub(crate) fn new(object: &'o Object) -> Self {
        Self {
            object,
            claims: [const { None }; MOST],
            taken: 0,
        }
    }

    /// The object of the pages.
    pub(crate) fn object(&self) -> &'o Object {
        self.object
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.taken
    }

    /// Whether it has as many as it can have.
    pub(crate) fn is_full(&self) -> bool {
        self.taken == MOST
    }

    /// Adds the claim of a later page of the object. If the batch is full, the claim is ended instead.
    pub(crate) fn add(&mut self, claim: Claim<'o>) {
        debug_assert!(self.claims().all(|earlier| earlier.page() < claim.page()));
        debug_assert!(!self.is_full(), "there is no room for it");
        if let Some(free) = self.claims.get_mut(self.taken) {
            *free = Some(claim);
            self.taken += 1;
        }
    }

    /// The claims.
    pub(crate) fn claims(&self) -> impl Iterator<Item = &Claim<'o>> + Clone {
        self.claims.iter().flatten()
    }

    /// The pages as ranges of neighbours: at most [`MOST`] ranges.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Range<u64>> + Clone {
        let mut pages = self.claims().map(Claim::page).peekable();
        core::iter::from_fn(move || {
            let first = pages.next()?;
            let mut end = first + 1;
            while pages.next_if_eq(&end).is_some() {
                end += 1;
            }
            Some(first..end)
        })
    }

    /// Returns the claims, one after the other.
    pub(crate) fn into_claims(self) -> impl Iterator<Item = Claim<'o>> {
        self.claims.into_iter().flatten()
    }
}
