//! What faults, maps and unmaps promise.

use stage2::{Access, Attributes, Ipa, IpaRange, Level, MapStopped, Permissions};

use super::{Reference, Slot, allows, normal};
use crate::{Mapped, OnWrite, Report, Served};

impl Reference {
    pub(super) fn fault(
        &mut self,
        ipa: Ipa,
        access: Access,
        pa: u64,
        largest: Level,
        attributes: Attributes,
        on_write: OnWrite,
    ) -> Served {
        let slot = self.slot(ipa);
        let Some(leaf) = slot.leaf else {
            if slot.level < largest {
                if !self.supply.take() {
                    return Served::OutOfFrames;
                }
                self.tables.insert((slot.level, slot.first));
                return self.fault(ipa, access, pa, largest, attributes, on_write);
            }
            let pa = pa & !(self.layout.span(slot.level) - 1);
            self.put(slot.level, slot.first, pa, attributes);
            return Served::Mapped;
        };
        let permissions = leaf.attributes.permissions;
        if allows(permissions, access) {
            self.leaf(slot.first).accessed = true;
            return match leaf.accessed {
                true => Served::Spurious,
                false => Served::Accessed,
            };
        }
        if access != Access::Write || !permissions.may_write {
            return Served::NotPermitted;
        }
        self.dissolve(slot.first);
        let writable = Permissions {
            write: true,
            ..permissions
        };
        let to = on_write.largest_written();
        if slot.level < to {
            if !self.take(to as usize - slot.level as usize) {
                return Served::OutOfFrames;
            }
            self.leaf(slot.first).attributes.permissions.hardware_dirty = false;
            self.cut_around(ipa, to, attributes.permissions.hardware_dirty);
            if matches!(on_write, OnWrite::Isolate(_)) {
                let end = self.end(slot.level, slot.first);
                let written = self.slot(ipa).first;
                self.leaves
                    .retain(|first, _| !(slot.first..end).contains(first) || *first == written);
            }
            return Served::Split;
        }
        self.leaf(slot.first).accessed = true;
        self.leaf(slot.first).attributes.permissions = writable;
        Served::Relaxed(slot.level)
    }

    /// Cuts the leaf of `ipa` down to one of level `to`, which becomes writable, and has hardware track those beside that.
    fn cut_around(&mut self, ipa: Ipa, to: Level, tracked: bool) {
        let mut pieces = self.slot(ipa).first;
        while self.slot(ipa).level < to {
            pieces = self.slot(ipa).first;
            self.cut(pieces);
        }
        let above = Level::ALL[to as usize - 1];
        let features = *self.layout.features();
        for (first, _) in self.within(&(pieces..self.end(above, pieces))) {
            let permissions = &mut self.leaf(first).attributes.permissions;
            permissions.hardware_dirty = tracked;
            *permissions = normal(&features, *permissions);
        }
        let written = self.slot(ipa).first;
        self.leaf(written).accessed = true;
        self.leaf(written).attributes.permissions.write = true;
    }

    pub(super) fn map(
        &mut self,
        range: IpaRange,
        pa: u64,
        largest: Level,
        attributes: Attributes,
    ) -> Report {
        let pa_of = |ipa: Ipa| pa + (ipa.get() - range.start.get());
        let covers = |ipa: Ipa, bytes: u64| {
            ipa >= range.start
                && ipa.get() + bytes <= range.end.get()
                && pa_of(ipa).is_multiple_of(bytes)
        };
        let mut leaves = 0;
        let mut at = range.start;
        while at < range.end {
            let Slot { level, first, leaf } = self.slot(at);
            let end = self.end(level, first).min(range.end);
            if leaf.is_some() {
                at = end;
            } else if level >= largest && covers(first, self.layout.span(level)) {
                let group = self.group(level, first).filter(|members| {
                    let bytes = members.len() as u64 * self.layout.span(level);
                    members[0] == first
                        && covers(first, bytes)
                        && !attributes.permissions.hardware_dirty
                        && members.iter().all(|member| self.is_vacant(level, *member))
                });
                let contiguous = group.is_some();
                for member in group.unwrap_or(vec![first]) {
                    self.put(level, member, pa_of(member), attributes);
                    self.leaf(member).contiguous = contiguous;
                    leaves += 1;
                }
            } else if !self.supply.take() {
                return Report::Mapped {
                    done_to: at,
                    leaves,
                    stopped: Some(MapStopped::OutOfFrames),
                };
            } else {
                self.tables.insert((level, first));
            }
        }
        Report::Mapped {
            done_to: range.end,
            leaves,
            stopped: None,
        }
    }

    fn is_vacant(&self, level: Level, ipa: Ipa) -> bool {
        let slot = self.slot(ipa);
        slot.level == level && slot.leaf.is_none()
    }

    pub(super) fn unmap(&mut self, range: &IpaRange) -> Vec<(Ipa, Mapped)> {
        let removed = self.remove_leaves(range);
        let layout = self.layout;
        self.tables.retain(|(level, first)| {
            *first < range.start || first.offset(layout.span(*level)) > range.end
        });
        removed
    }

    pub(super) fn remove_leaves(&mut self, range: &IpaRange) -> Vec<(Ipa, Mapped)> {
        let removed = self.within(range);
        for (ipa, _) in &removed {
            self.dissolve(*ipa);
        }
        for (ipa, _) in &removed {
            self.leaves.remove(ipa);
        }
        let alone = removed.into_iter().map(|(ipa, leaf)| (ipa, leaf.alone()));
        alone.collect()
    }
}
