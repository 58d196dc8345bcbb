//! Nodes of the tree together with their parents, so that their registers can be translated to CPU addresses.
//!
//! Allocates nothing, and recurses at most [`MAX_DEPTH`] levels: deeper nodes are ignored.

use crate::range::PhysicalRange;
use core::ops::ControlFlow;
use dtoolkit::Node;
use dtoolkit::Property;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;

/// Levels of nodes that are looked at.
const MAX_DEPTH: usize = 8;

/// A node, and the buses between it and the root.
#[derive(Clone, Copy)]
pub struct Place<'t, 'p> {
    /// The node itself.
    pub node: FdtNode<'t>,
    parent: Option<&'p Place<'t, 'p>>,
}

impl<'t, 'p> Place<'t, 'p> {
    /// The root of a tree.
    pub fn root(tree: Fdt<'t>) -> Self {
        Self::of_root(tree.root())
    }

    /// As [`Self::root`], of the root's node.
    pub fn of_root(node: FdtNode<'t>) -> Self {
        Self { node, parent: None }
    }

    /// The root of this node's tree.
    pub fn tree_root(&self) -> FdtNode<'t> {
        self.parent.map_or(self.node, |parent| parent.tree_root())
    }

    /// The value of a property of one cell.
    pub fn word(&self, property: &str) -> Option<u32> {
        let property = self.node.property(property)?;
        property.value_as::<u32>().ok()
    }

    /// As [`Self::word`], of the nearest node from this one up that has the property.
    pub fn inherited(&self, property: &str) -> Option<u32> {
        match self.node.property(property) {
            Some(_) => self.word(property),
            None => self.parent?.inherited(property),
        }
    }

    /// The register range number `index`, as CPU addresses. `None` if there is no such range, it is malformed or empty, or
    /// some bus on the way doesn't pass it on.
    pub fn registers(&self, index: usize) -> Option<PhysicalRange> {
        let reg = self.node.reg().ok()??.nth(index)?;
        let mut range = PhysicalRange::sized(reg.address::<u64>().ok()?, reg.size::<u64>().ok()?)?;
        let mut bus = self.parent?;
        while let Some(above) = bus.parent {
            range = translate(&bus.node, range)?;
            bus = above;
        }
        Some(range)
    }

    /// Calls `visit` for this node and all below it, parents first, until it breaks.
    pub fn walk<B>(
        &self,
        visit: &mut dyn FnMut(&Place<'t, '_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        self.walk_to_depth(MAX_DEPTH, visit)
    }

    fn walk_to_depth<B>(
        &self,
        depth: usize,
        visit: &mut dyn FnMut(&Place<'t, '_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        visit(self)?;
        if depth == 0 {
            return ControlFlow::Continue(());
        }
        for node in self.node.children() {
            Place {
                node,
                parent: Some(self),
            }
            .walk_to_depth(depth - 1, visit)?;
        }
        ControlFlow::Continue(())
    }

    /// Calls `found` for the node at `path` ("/a/b@1/c") below this one.
    pub fn at_path<R>(
        &self,
        path: &str,
        found: &mut dyn FnMut(&Place<'t, '_>) -> Option<R>,
    ) -> Option<R> {
        self.at_components(path, MAX_DEPTH, found)
    }

    fn at_components<R>(
        &self,
        path: &str,
        depth: usize,
        found: &mut dyn FnMut(&Place<'t, '_>) -> Option<R>,
    ) -> Option<R> {
        let path = path.trim_start_matches('/');
        if path.is_empty() {
            return found(self);
        }
        let (name, rest) = path.split_once('/').unwrap_or((path, ""));
        let node = self.node.child(name)?;
        Place {
            node,
            parent: Some(self),
        }
        .at_components(rest, depth.checked_sub(1)?, found)
    }

    /// Whether the node is compatible with any of `names` and isn't switched off.
    pub fn is_enabled_and_compatible(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.node.is_compatible(name)) && is_enabled(&self.node)
    }
}

/// Whether a node's status says that it may be used. Trees in the field write "ok" too.
pub fn is_enabled(node: &FdtNode<'_>) -> bool {
    node.property("status")
        .is_none_or(|status| matches!(status.value(), b"okay\0" | b"ok\0" | b"okay" | b"ok"))
}

/// `range` on the bus below `bus`, as it appears on the bus above. Without `ranges` nothing is passed on; an empty one
/// passes on everything unchanged (Devicetree Specification 2.3.8).
fn translate(bus: &FdtNode<'_>, range: PhysicalRange) -> Option<PhysicalRange> {
    let property = bus.property("ranges")?;
    if property.value().is_empty() {
        return Some(range);
    }
    bus.ranges().ok()??.find_map(|window| {
        let child = PhysicalRange::sized(
            window.child_bus_address::<u64>().ok()?,
            window.length::<u64>().ok()?,
        )?;
        if !child.contains(range) {
            return None;
        }
        let above = window
            .parent_bus_address::<u64>()
            .ok()?
            .checked_add(range.start() - child.start())?;
        PhysicalRange::sized(above, range.size())
    })
}
