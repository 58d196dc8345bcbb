//! The modules of its own crate that a file names, in `use` or in a path.

use std::collections::BTreeSet;
use syn::UseTree;

/// What was found in one file.
pub(crate) struct Imports<'m> {
    module: &'m str,
    modules: &'m [&'m str],
    found: BTreeSet<String>,
}

impl<'m> Imports<'m> {
    /// Nothing yet, of the file of `module` among those of its crate.
    pub(crate) fn new(module: &'m str, modules: &'m [&'m str]) -> Self {
        Self {
            module,
            modules,
            found: BTreeSet::new(),
        }
    }

    /// All paths of a `use`.
    pub(crate) fn add_tree(&mut self, tree: &UseTree) {
        self.walk(tree, &mut Vec::new());
    }

    fn walk(&mut self, tree: &UseTree, before: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.walk(&path.tree, before);
                before.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.walk(tree, before)),
            UseTree::Name(name) => {
                before.push(name.ident.to_string());
                self.add(before);
                before.pop();
            }
            UseTree::Rename(name) => {
                before.push(name.ident.to_string());
                self.add(before);
                before.pop();
            }
            UseTree::Glob(_) => self.add(before),
        }
    }

    /// A path.
    pub(crate) fn add(&mut self, path: &[String]) {
        let own = || self.module.split("::").filter(|part| *part != "lib");
        let mut from: Vec<&str> = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => own().collect(),
            _ => return,
        };
        for part in path {
            match part.as_str() {
                "super" => {
                    from.pop();
                }
                "crate" | "self" => {}
                part => from.push(part),
            }
        }
        // The longest part of it that is a file: the rest are items.
        let module = (1..=from.len())
            .rev()
            .map(|length| from[..length].join("::"));
        let module = module
            .into_iter()
            .find(|module| self.modules.contains(&module.as_str()));
        self.found
            .extend(module.filter(|module| module != self.module));
    }

    pub(crate) fn found(self) -> Vec<String> {
        self.found.into_iter().collect()
    }
}
