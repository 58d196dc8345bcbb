//! What the tables should say, in plain collections: leaves by their first address, and which entries lead to a table.
//!
//! One operation at a time, nothing shared. It's told of geometry by [`Layout`] (sizes of leaves and groups) and knows no
//! descriptors, no walks and no exchanges. So it states what each operation promises, in the simplest way, and how many
//! frames it may take for that.

use std::collections::{BTreeMap, BTreeSet};

use stage2::{
    Access, Attributes, Execute, Features, Ipa, IpaRange, Layout, Level, MemoryType, Permissions,
};

use crate::{Filter, Ground, Mapped, Operation, Report, Supply};

mod mapping;
mod size;

/// The state of one tree.
#[derive(Clone, Debug)]
pub struct Reference {
    ground: Ground,
    layout: Layout,
    supply: Supply,
    leaves: BTreeMap<Ipa, Mapped>,
    /// Entries that lead to a table, by their level and first address.
    tables: BTreeSet<(Level, Ipa)>,
}

/// What holds an address.
#[derive(Clone, Copy, Debug)]
struct Slot {
    level: Level,
    first: Ipa,
    leaf: Option<Mapped>,
}

/// What `layout` makes of these permissions.
pub fn normal(features: &Features, permissions: Permissions) -> Permissions {
    let execute = match permissions.execute {
        Execute::AtEl0 | Execute::AtEl1 if !features.xnx => Execute::Nowhere,
        execute => execute,
    };
    let may_write = permissions.may_write || permissions.write;
    Permissions {
        execute,
        may_write,
        hardware_dirty: features.hardware_dirty && may_write && permissions.hardware_dirty,
        ..permissions
    }
}

fn allows(permissions: Permissions, access: Access) -> bool {
    match (access, permissions.execute) {
        (Access::Read, _) => true,
        (Access::Write, _) => permissions.write,
        (Access::Execute, Execute::Everywhere | Execute::AtEl1) => true,
        (Access::ExecuteAtEl0, Execute::Everywhere | Execute::AtEl0) => true,
        (Access::Execute | Access::ExecuteAtEl0, _) => false,
    }
}

/// Whether `new` has a right that `old` doesn't.
fn adds(old: Permissions, new: Permissions) -> bool {
    let gains = |access| allows(new, access) && !allows(old, access);
    gains(Access::Write)
        || gains(Access::Execute)
        || gains(Access::ExecuteAtEl0)
        || new.may_write && !old.may_write
        || new.hardware_dirty && !old.hardware_dirty
}

fn is_dirty(leaf: &Mapped) -> bool {
    let permissions = leaf.attributes.permissions;
    permissions.hardware_dirty && permissions.write
}

impl Reference {
    /// An empty tree.
    pub fn new(ground: &Ground) -> Self {
        Self {
            ground: ground.clone(),
            layout: *ground.layout(),
            supply: Supply::Unlimited,
            leaves: BTreeMap::new(),
            tables: BTreeSet::new(),
        }
    }

    /// The leaves, by their first address.
    pub fn leaves(&self) -> &BTreeMap<Ipa, Mapped> {
        &self.leaves
    }

    /// The entries that lead to a table, by level and first address.
    pub fn tables(&self) -> &BTreeSet<(Level, Ipa)> {
        &self.tables
    }

    /// Says which allocations succeed from now on.
    pub fn set_supply(&mut self, supply: Supply) {
        self.supply = supply;
    }

    /// What the operation reports, done to this state.
    pub fn perform(&mut self, operation: Operation) -> Report {
        let ground = self.ground.clone();
        match operation {
            Operation::Fault {
                place,
                access,
                backing,
                largest,
                attributes,
                on_write,
            } => {
                let ipa = ground.page(place);
                let pa = ground.frame(ipa, backing).get();
                let largest = ground.largest_backed(largest, backing);
                Report::Served(self.fault(ipa, access, pa, largest, attributes, on_write))
            }
            Operation::Touch { place, write } => {
                self.touch(ground.page(place), write);
                Report::Nothing
            }
            Operation::Map {
                span,
                backing,
                largest,
                attributes,
            } => {
                let range = ground.range(span);
                let pa = ground.frame(range.start, backing).get();
                self.map(range, pa, ground.largest(largest), attributes)
            }
            Operation::Unmap { span } => Report::Leaves(self.unmap(&ground.range(span))),
            Operation::UnmapLeaves { span, only } => {
                let pages = only.pages_of(ground.range(span), self.layout.page_size());
                Report::Leaves(pages.flat_map(|page| self.remove_leaves(&page)).collect())
            }
            Operation::Replace {
                span,
                only,
                backing,
                attributes,
            } => {
                let page_size = self.layout.page_size();
                let mut leaves = self.within(&ground.range(span));
                let found = leaves.len();
                leaves.retain(|(_, leaf)| leaf.level == Level::L3);
                let blocks = (found - leaves.len()) as u64;
                leaves.retain(|(ipa, _)| only.wants(ipa.get() / page_size, Level::L3));
                for (ipa, leaf) in &mut leaves {
                    self.dissolve(*ipa);
                    *leaf = leaf.alone();
                    let pa = ground.frame(*ipa, backing).get();
                    self.put(Level::L3, *ipa, pa, attributes);
                    self.leaf(*ipa).accessed = leaf.accessed;
                }
                Report::Replaced { leaves, blocks }
            }
            Operation::Protect { span, permissions } => {
                Report::Leaves(self.protect(&ground.range(span), permissions))
            }
            Operation::WriteProtect { span, only } => {
                let page_size = self.layout.page_size();
                let mut dirty = Vec::new();
                for (ipa, leaf) in self.within(&ground.range(span)) {
                    let permissions = leaf.attributes.permissions;
                    if !only.wants(ipa.get() / page_size, leaf.level)
                        || !(permissions.write || permissions.hardware_dirty)
                    {
                        continue;
                    }
                    if is_dirty(&leaf) {
                        dirty.push((ipa, leaf.level));
                    }
                    let protected = Permissions {
                        write: false,
                        hardware_dirty: false,
                        ..permissions
                    };
                    self.set_permissions(ipa, protected);
                }
                Report::Places(dirty)
            }
            Operation::HarvestDirty { span } => {
                let mut dirty = self.within(&ground.range(span));
                dirty.retain(|(_, leaf)| is_dirty(leaf));
                for (ipa, leaf) in &dirty {
                    let clean = Permissions {
                        write: false,
                        ..leaf.attributes.permissions
                    };
                    self.set_permissions(*ipa, clean);
                }
                Report::Places(places(&dirty))
            }
            Operation::FindDirty { span } => {
                let mut dirty = self.within(&ground.range(span));
                dirty.retain(|(_, leaf)| is_dirty(leaf));
                Report::Places(places(&dirty))
            }
            Operation::TrackWrites {
                span,
                largest,
                only,
            } => Report::Places(self.track_writes(&ground.range(span), largest, only)),
            Operation::Age { span } => {
                let mut accessed = self.within(&ground.range(span));
                accessed.retain(|(_, leaf)| leaf.accessed);
                for (ipa, _) in &accessed {
                    self.leaf(*ipa).accessed = false;
                }
                Report::Places(places(&accessed))
            }
            Operation::TestAge { span } => {
                let leaves = self.within(&ground.range(span));
                Report::Accessed(leaves.iter().any(|(_, leaf)| leaf.accessed))
            }
            Operation::Split { span, to, blocks } => self.split(&ground.range(span), to, blocks),
            Operation::Collapse {
                span,
                to,
                permissions,
            } => self.collapse(&ground.range(span), ground.largest(to), permissions),
            Operation::Lookup { place } => Report::Found(self.slot(ground.page(place)).leaf),
            Operation::Walk { span } => {
                let leaves = self.within(&ground.range(span));
                let alone = leaves.into_iter().map(|(ipa, leaf)| (ipa, leaf.alone()));
                Report::Leaves(alone.collect())
            }
            Operation::CleanCaches { span } => {
                Report::Cleaned(self.clean_caches(&ground.range(span)))
            }
            Operation::Invalidate { .. } => Report::Nothing,
            Operation::Supply(supply) => {
                self.supply = supply;
                Report::Nothing
            }
        }
    }

    fn end(&self, level: Level, first: Ipa) -> Ipa {
        first.offset(self.layout.span(level))
    }

    /// The entry that decides about `ipa`.
    fn slot(&self, ipa: Ipa) -> Slot {
        let mut level = self.layout.start();
        loop {
            let first = ipa.align_down(self.layout.span(level));
            match level.below() {
                Some(below) if self.tables.contains(&(level, first)) => level = below,
                _ => {
                    let leaf = self.leaves.get(&first).copied();
                    return Slot { level, first, leaf };
                }
            }
        }
    }

    fn leaf(&mut self, ipa: Ipa) -> &mut Mapped {
        self.leaves.get_mut(&ipa).expect("a leaf that was found")
    }

    /// The leaves that touch `range`.
    fn within(&self, range: &IpaRange) -> Vec<(Ipa, Mapped)> {
        if range.is_empty() {
            return Vec::new();
        }
        let slot = self.slot(range.start);
        let before = slot.leaf.filter(|_| slot.first < range.start);
        let inside = self.leaves.range(range.clone());
        before
            .map(|leaf| (slot.first, leaf))
            .into_iter()
            .chain(inside.map(|(ipa, leaf)| (*ipa, *leaf)))
            .collect()
    }

    fn group(&self, level: Level, ipa: Ipa) -> Option<Vec<Ipa>> {
        let span = self.layout.span(level);
        let size = self.layout.group(level)? as u64;
        let first = ipa.align_down(size * span);
        Some((0..size).map(|index| first.offset(index * span)).collect())
    }

    /// Takes apart the group that the leaf at `ipa` is in.
    fn dissolve(&mut self, ipa: Ipa) {
        let leaf = *self.leaf(ipa);
        if leaf.contiguous {
            for member in self.group(leaf.level, ipa).expect("a layout with groups") {
                self.leaf(member).contiguous = false;
            }
        }
    }

    fn set_permissions(&mut self, ipa: Ipa, permissions: Permissions) {
        if self.leaf(ipa).attributes.permissions != permissions {
            self.dissolve(ipa);
            self.leaf(ipa).attributes.permissions = permissions;
        }
    }

    fn put(&mut self, level: Level, ipa: Ipa, pa: u64, attributes: Attributes) {
        let permissions = normal(self.layout.features(), attributes.permissions);
        let leaf = Mapped {
            level,
            pa,
            attributes: Attributes {
                permissions,
                ..attributes
            },
            accessed: true,
            contiguous: false,
        };
        self.leaves.insert(ipa, leaf);
    }

    /// Takes `count` frames, or none.
    fn take(&mut self, count: usize) -> bool {
        for taken in 0..count {
            if !self.supply.take() {
                (0..taken).for_each(|_| self.supply.give_back());
                return false;
            }
        }
        true
    }

    fn touch(&mut self, page: Ipa, write: bool) {
        let features = *self.layout.features();
        let slot = self.slot(page);
        if !features.hardware_access || slot.leaf.is_none() {
            return;
        }
        let leaf = self.leaf(slot.first);
        leaf.accessed = true;
        let permissions = &mut leaf.attributes.permissions;
        permissions.write |= write && permissions.hardware_dirty;
    }

    fn protect(&mut self, range: &IpaRange, permissions: Permissions) -> Vec<(Ipa, Mapped)> {
        let new = normal(self.layout.features(), permissions);
        let mut changed = Vec::new();
        for (ipa, leaf) in self.within(range) {
            let old = leaf.attributes.permissions;
            let is_whole = range.start <= ipa && self.end(leaf.level, ipa) <= range.end;
            if old != new && (is_whole || !adds(old, new)) {
                self.set_permissions(ipa, new);
                changed.push((ipa, leaf.alone()));
            }
        }
        changed
    }

    /// The blocks whose writes were forgotten.
    fn track_writes(
        &mut self,
        range: &IpaRange,
        largest: Level,
        only: Filter,
    ) -> Vec<(Ipa, Level)> {
        let page_size = self.layout.page_size();
        let features = *self.layout.features();
        let mut forgotten = Vec::new();
        for (ipa, leaf) in self.within(range) {
            let permissions = leaf.attributes.permissions;
            if !permissions.may_write || !only.wants(ipa.get() / page_size, leaf.level) {
                continue;
            }
            if is_dirty(&leaf) && leaf.level != Level::L3 {
                forgotten.push((ipa, leaf.level));
            }
            let tracked = Permissions {
                write: false,
                hardware_dirty: leaf.level >= largest,
                ..permissions
            };
            self.set_permissions(ipa, normal(&features, tracked));
        }
        forgotten
    }

    fn clean_caches(&self, range: &IpaRange) -> Vec<(u64, u64)> {
        if self.layout.features().fwb {
            return Vec::new();
        }
        let mut pieces = self.within(range);
        pieces.retain(|(_, leaf)| leaf.attributes.memory == MemoryType::WriteBack);
        let piece = |(ipa, leaf): (Ipa, Mapped)| {
            let start = ipa.max(range.start);
            let end = self.end(leaf.level, ipa).min(range.end);
            (leaf.pa + (start.get() - ipa.get()), end.get() - start.get())
        };
        pieces.into_iter().map(piece).collect()
    }
}

fn places(leaves: &[(Ipa, Mapped)]) -> Vec<(Ipa, Level)> {
    let place = |(ipa, leaf): &(Ipa, Mapped)| (*ipa, leaf.level);
    leaves.iter().map(place).collect()
}
