//! Reads the sources of the workspace as far as the rules of the house ask: which modules a file imports, what it makes public,
//! where it is unsafe. Test code isn't looked at: it may reach wherever it likes.

mod imports;
pub mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod};

/// The folder of the workspace.
///
/// # Panics
/// It can't be found.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().find(|path| path.join("hyp").is_dir());
    root.expect("the workspace is above this crate").to_owned()
}

/// A file of a crate.
#[derive(Debug)]
pub struct Source {
    /// Where it is, from the workspace's folder.
    pub path: String,
    /// Its module within the crate, `lib` for the root: `frames::pool`.
    pub module: String,
    /// Its lines without those of its test module.
    pub lines: usize,
    /// The modules of its own crate that it names.
    pub imports: Vec<String>,
    /// The names of the public types that it declares.
    pub types: Vec<String>,
    /// How many `unsafe` blocks, functions, traits and implementations it has.
    pub unsafes: usize,
}

/// The sources of the crate in a folder, by module.
///
/// # Panics
/// A file can't be read, or isn't Rust.
pub fn sources(folder: &str) -> BTreeMap<String, Source> {
    let root = workspace().join(folder).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let modules: BTreeMap<String, PathBuf> = files
        .into_iter()
        .map(|file| (module_of(&root, &file), file))
        .filter(|(module, _)| !is_test_module(module))
        .collect();
    let names: Vec<&str> = modules.keys().map(String::as_str).collect();
    modules
        .iter()
        .map(|(module, file)| (module.clone(), read(module, file, &names)))
        .collect()
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

fn module_of(root: &Path, file: &Path) -> String {
    let relative = file.strip_prefix(root).unwrap_or(file).with_extension("");
    let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
    match parts.as_slice() {
        [folder @ .., face] if face == "mod" => folder.join("::"),
        parts => parts.join("::"),
    }
}

fn is_test_module(module: &str) -> bool {
    module
        .split("::")
        .any(|part| part == "tests" || part.ends_with("_tests"))
}

fn read(module: &str, file: &Path, modules: &[&str]) -> Source {
    let text =
        fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let parsed =
        syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut reader = Reader {
        imports: imports::Imports::new(module, modules),
        types: Vec::new(),
        unsafes: 0,
    };
    reader.visit_file(&parsed);
    let path = file.strip_prefix(workspace()).unwrap_or(file);
    let lines = text
        .lines()
        .take_while(|line| !line.starts_with("mod tests {"))
        .count();
    Source {
        path: path.to_string_lossy().into_owned(),
        module: module.to_owned(),
        lines,
        imports: reader.imports.found(),
        types: reader.types,
        unsafes: reader.unsafes,
    }
}

/// Whether an item is there in tests only.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Ok(list) = attribute.meta.require_list() else {
            return false;
        };
        let condition = list.tokens.to_string();
        list.path.is_ident("cfg")
            && (condition == "test"
                || condition.starts_with("all (test")
                || condition.starts_with("all(test"))
    })
}

struct Reader<'m> {
    imports: imports::Imports<'m>,
    types: Vec<String>,
    unsafes: usize,
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, public) = match item {
            Item::Struct(item) => (&item.attrs, Some((&item.vis, &item.ident))),
            Item::Enum(item) => (&item.attrs, Some((&item.vis, &item.ident))),
            Item::Trait(item) => {
                self.unsafes += usize::from(item.unsafety.is_some());
                (&item.attrs, Some((&item.vis, &item.ident)))
            }
            Item::Impl(item) => {
                self.unsafes += usize::from(item.unsafety.is_some());
                (&item.attrs, None)
            }
            Item::Fn(item) => (&item.attrs, None),
            Item::Use(item) => (&item.attrs, None),
            Item::Mod(item) => (&item.attrs, None),
            Item::Macro(item) => (&item.attrs, None),
            _ => return visit::visit_item(self, item),
        };
        if is_for_tests(attributes) {
            return;
        }
        if let Some((syn::Visibility::Public(_), name)) = public {
            self.types.push(name.to_string());
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if item.ident != "tests" {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.imports.add_tree(&item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path
            .segments
            .iter()
            .map(|part| part.ident.to_string())
            .collect();
        self.imports.add(&parts);
        visit::visit_path(self, path);
    }

    fn visit_expr_unsafe(&mut self, expression: &'ast syn::ExprUnsafe) {
        self.unsafes += 1;
        visit::visit_expr_unsafe(self, expression);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.unsafes += usize::from(signature.unsafety.is_some());
        visit::visit_signature(self, signature);
    }
}
