//! What faults, maps and unmaps promise.

use stage2::{Access, Attributes, Ipa, IpaRange, Level, MapStopped, Permissions};

use super::{Reference, Slot, allows};
use crate::{Mapped, Report, Served};

impl Reference {
    pub(super) fn fault(
        &mut self,
        ipa: Ipa,
        access: Access,
        pa: u64,
        largest: Level,
        attributes: Attributes,
        split: bool,
    ) -> Served {
        let slot = self.slot(ipa);
        let Some(leaf) = slot.leaf else {
            if slot.level < largest {
                if !self.supply.take() {
                    return Served::OutOfFrames;
                }
                self.tables.insert((slot.level, slot.first));
                return self.fault(ipa, access, pa, largest, attributes, split);
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
        if split && slot.level != Level::L3 {
            let levels = Level::L3 as usize - slot.level as usize;
            if !self.take(levels) {
                return Served::OutOfFrames;
            }
            self.leaf(slot.first).attributes.permissions.hardware_dirty = false;
            while self.slot(ipa).level != Level::L3 {
                self.cut(self.slot(ipa).first);
            }
            let page = self.slot(ipa).first;
            self.leaf(page).accessed = true;
            self.leaf(page).attributes.permissions.write = true;
            return Served::Split;
        }
        self.leaf(slot.first).accessed = true;
        self.leaf(slot.first).attributes.permissions = writable;
        Served::Relaxed(slot.level)
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
        let removed = self.within(range);
        for (ipa, _) in &removed {
            self.dissolve(*ipa);
        }
        for (ipa, _) in &removed {
            self.leaves.remove(ipa);
        }
        let layout = self.layout;
        self.tables.retain(|(level, first)| {
            *first < range.start || first.offset(layout.span(*level)) > range.end
        });
        let alone = removed.into_iter().map(|(ipa, leaf)| (ipa, leaf.alone()));
        alone.collect()
    }
}
