//! TLBs of several CPUs: they keep whatever a walk has found, leaves and links to tables, until an invalidation of
//! sufficient scope.
//!
//! The model checker doesn't see into them. So there is a word of its own for what they hold: invalidations write it,
//! accesses read it, and it tries both orders of two that meet.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering as Unmodelled};

use super::{Snapshot, locked};
use loom::sync::atomic::{AtomicU64, Ordering};
use stage2::sync::full_barrier;
use stage2::{Access, Bbm, Ipa, IpaRange, Layout, Leaf, Level, Pa, Regime, Tlb};

/// What a TLB may keep of a leaf: all that it spans, or that its contiguous group does.
#[derive(Clone, Debug)]
pub(super) struct Translation {
    pub(super) cpu: usize,
    pub(super) range: Range<Ipa>,
    pub(super) level: Level,
    /// The leaf at the start of the range.
    pub(super) pa: Pa,
    /// The leaf that was found.
    pub(super) leaf: Leaf,
}

/// What a TLB may keep of a link: where the next table is.
#[derive(Clone, Debug)]
struct Link {
    cpu: usize,
    range: Range<Ipa>,
    level: Level,
    table: Pa,
}

#[derive(Debug, Default)]
struct Held {
    translations: Vec<Translation>,
    links: Vec<Link>,
}

/// The TLBs.
#[derive(Debug)]
pub struct Tlbs {
    layout: Layout,
    held: Mutex<Held>,
    /// For the model checker: stands for `held`.
    contents: AtomicU64,
    /// Invalidations so far. Changes in one step with `contents`, which copies change as well.
    invalidations: AtomicUsize,
}

impl Tlbs {
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            held: Mutex::default(),
            contents: AtomicU64::new(0),
            invalidations: AtomicUsize::new(0),
        }
    }

    /// Begins a look at what is held, and a walk: which sees what was written before any invalidation that is complete.
    pub(super) fn look(&self) {
        // The first one only keeps the model checker from trying every older value, which nobody looks at.
        full_barrier();
        self.contents.load(Ordering::Relaxed);
        full_barrier();
    }

    /// Begins a copy of what accesses may be changing: the model checker tries both orders of it and each of them.
    pub(super) fn look_to_copy(&self) {
        full_barrier();
        self.contents.fetch_add(1, Ordering::Relaxed);
        full_barrier();
    }

    /// Invalidations so far: a walk that one of them has overtaken begins again, as if it had never been.
    pub(super) fn invalidations(&self) -> usize {
        self.invalidations.load(Unmodelled::Relaxed)
    }

    /// What `cpu` may translate `ipa` by: the oldest that it has.
    pub(super) fn find(&self, cpu: usize, ipa: Ipa) -> Option<Translation> {
        let held = locked(&self.held);
        let mut found = held.translations.iter();
        found
            .find(|held| held.cpu == cpu && held.range.contains(&ipa))
            .cloned()
    }

    /// The lowest table for `ipa` that `cpu` knows: its level and address.
    pub(super) fn find_table(&self, cpu: usize, ipa: Ipa) -> Option<(Level, Pa)> {
        let held = locked(&self.held);
        let links = held.links.iter();
        links
            .filter(|link| link.cpu == cpu && link.range.contains(&ipa))
            .max_by_key(|link| link.level)
            .and_then(|link| Some((link.level.below()?, link.table)))
    }

    /// Drops what `cpu` translates `ipa` by, as hardware does with what it finds outdated.
    pub(super) fn forget(&self, cpu: usize, ipa: Ipa) {
        let mut held = locked(&self.held);
        held.translations
            .retain(|held| held.cpu != cpu || !held.range.contains(&ipa));
    }

    pub(super) fn keep_link(&self, cpu: usize, level: Level, ipa: Ipa, table: Pa) {
        let span = self.layout.span(level);
        let first = ipa.align_down(span);
        locked(&self.held).links.push(Link {
            cpu,
            range: first..first.offset(span),
            level,
            table,
        });
    }

    /// Keeps a leaf that the tables hold for `ipa` at this moment.
    pub(super) fn keep(&self, cpu: usize, level: Level, ipa: Ipa, leaf: Leaf) {
        let span = self.layout.span(level);
        let group = self.layout.group(level).filter(|_| leaf.contiguous());
        let bytes = span * group.unwrap_or(1) as u64;
        let first = ipa.align_down(bytes);
        let new = Translation {
            cpu,
            range: first..first.offset(bytes),
            level,
            pa: leaf.pa().align_down(bytes),
            leaf,
        };
        let mut held = locked(&self.held);
        let may_overlap = self.layout.features().bbm > Bbm::Level0;
        for old in held.translations.iter().filter(|old| old.cpu == cpu) {
            if old.range.start < new.range.end && new.range.start < old.range.end {
                assert!(
                    old.range == new.range || may_overlap && group.is_none(),
                    "rule 2: a TLB has {old:?} beside {new:?}"
                );
                assert_eq!(
                    old.pa.get().wrapping_sub(old.range.start.get()),
                    new.pa.get().wrapping_sub(new.range.start.get()),
                    "rule 2: a TLB has two addresses for one"
                );
            }
        }
        let known =
            |old: &Translation| (old.cpu, &old.range, old.leaf) == (new.cpu, &new.range, new.leaf);
        if !held.translations.iter().any(known) {
            held.translations.push(new);
        }
    }

    /// Drops everywhere what is to go.
    fn invalidate(&self, translation: impl Fn(&Translation) -> bool, link: impl Fn(&Link) -> bool) {
        full_barrier();
        self.contents.fetch_add(1, Ordering::Relaxed);
        self.invalidations.fetch_add(1, Unmodelled::Relaxed);
        let mut held = locked(&self.held);
        held.translations.retain(|held| !translation(held));
        held.links.retain(|held| !link(held));
        drop(held);
        full_barrier();
    }

    /// Checks that no TLB holds a writable translation of a page in `range`.
    pub fn assert_not_writable(&self, range: &Range<Ipa>) {
        self.look();
        for held in &locked(&self.held).translations {
            assert!(
                !(overlap(&held.range, range) && held.leaf.writable()),
                "rule 3: a TLB has {held:?}"
            );
        }
    }

    /// Checks that no TLB holds anything of `range` that isn't in the tables: no leaf, no link.
    pub fn assert_none(&self, range: &Range<Ipa>) {
        self.look();
        let held = locked(&self.held);
        let left = held.translations.iter();
        let left: Vec<_> = left.filter(|held| overlap(&held.range, range)).collect();
        assert!(left.is_empty(), "rule 2: TLBs have {left:?}");
    }

    /// Checks, while nothing else runs, that the TLBs hold nothing that the tables forbid.
    pub(super) fn assert_consistent(&self, tables: &Snapshot) {
        let held = locked(&self.held);
        for held in &held.translations {
            let at = held.range.start;
            let Some((leaf, level)) = tables.leaves.get(&at) else {
                panic!("rule 2: a TLB has {held:?}, which isn't mapped");
            };
            let within = at.get() & (self.layout.span(*level) - 1);
            assert_eq!(
                leaf.pa().offset(within),
                held.pa,
                "rule 2: a TLB leads elsewhere"
            );
            assert!(
                *level == held.level && leaf.contiguous() == held.leaf.contiguous(),
                "rule 2: a TLB has {held:?} of what is {leaf:?} of {level:?} now"
            );
            for access in [Access::Write, Access::Execute, Access::ExecuteAtEl0] {
                assert!(
                    !access.allowed_by(held.leaf) || access.allowed_by(*leaf),
                    "rule 3: a TLB has {held:?} of what is {leaf:?} now"
                );
            }
        }
        for link in &held.links {
            let table = tables.links.get(&(link.level, link.range.start));
            assert_eq!(table, Some(&link.table), "rule 2: a TLB has {link:?}");
        }
    }

    pub(super) fn assert_empty(&self) {
        let held = locked(&self.held);
        assert!(
            held.translations.is_empty() && held.links.is_empty(),
            "rule 7: {held:?} outlives its VM"
        );
    }
}

fn overlap(a: &Range<Ipa>, b: &Range<Ipa>) -> bool {
    a.start < b.end && b.start < a.end
}

/// One CPU's TLB instructions.
#[derive(Clone, Copy, Debug)]
pub struct CpuTlb<'m> {
    tlbs: &'m Tlbs,
    tables: &'m super::Tables,
    cpu: usize,
}

impl<'m> CpuTlb<'m> {
    pub(super) fn new(tlbs: &'m Tlbs, tables: &'m super::Tables, cpu: usize) -> Self {
        Self { tlbs, tables, cpu }
    }
}

/// Whether an invalidation of the leaf at `ipa` with this hint reaches `held`.
fn reaches(held: &Translation, ipa: Ipa, hint: Option<Level>) -> bool {
    held.range.contains(&ipa) && hint.is_none_or(|level| level == held.level)
}

impl Tlb for CpuTlb<'_> {
    fn invalidate_leaf(&self, _: Regime, ipa: Ipa, level: Option<Level>) {
        self.tlbs
            .invalidate(|held| reaches(held, ipa, level), |_| false);
    }

    fn invalidate_range(&self, _: Regime, range: IpaRange, tables: bool) {
        self.tlbs.invalidate(
            |held| overlap(&held.range, &range),
            |link| tables && overlap(&link.range, &range),
        );
    }

    fn invalidate_vmid(&self, _: Regime) {
        self.tlbs.invalidate(|_| true, |_| true);
    }

    fn invalidate_all_vmids(&self) {
        self.tlbs.invalidate(|_| true, |_| true);
    }

    /// No other CPU notices, so the model checker needn't.
    fn invalidate_local(&self, _: Regime, ipa: Ipa, level: Option<Level>, _: Option<u64>) {
        let mut held = locked(&self.tlbs.held);
        held.translations
            .retain(|held| held.cpu != self.cpu || !reaches(held, ipa, level));
    }

    fn publish_tables(&self) {
        self.tables.publish(self.cpu);
    }
}
