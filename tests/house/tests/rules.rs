//! The rules of the house. Each names what breaks it; `house.toml` has what is allowed.

use house::table::{Crate, Table};
use house::{Source, sources, workspace};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// The most files of a folder, faces of its folders not counted, and the most lines of a file.
const MOST_FILES: usize = 15;
const MOST_LINES: usize = 600;

fn none(breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn crates_use_what_the_table_allows_and_nothing_above_them() {
    let table = Table::read();
    let mut breaches = Vec::new();
    for (name, what) in &table.crates {
        let manifest = workspace().join(&what.folder).join("Cargo.toml");
        let manifest = fs::read_to_string(manifest).expect("a crate has a manifest");
        let manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
        for used in dependencies(&manifest) {
            if table.crates.contains_key(&used) && !what.uses.contains(&used) {
                breaches.push(format!("{name} uses {used}"));
            }
        }
    }
    none(breaches);
    none(
        circles(
            &table
                .crates
                .iter()
                .map(|(name, what)| (name.clone(), what.uses.clone()))
                .collect(),
        )
        .into_iter()
        .map(|circle| format!("crates in a circle: {circle:?}"))
        .collect(),
    );
}

/// What a crate is built with, on any target, but for its tests.
fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    let names = |table: Option<&toml::Value>| -> Vec<String> {
        let table = table.and_then(toml::Value::as_table);
        table.map_or_else(Vec::new, |table| table.keys().cloned().collect())
    };
    let mut all: BTreeSet<String> = names(manifest.get("dependencies")).into_iter().collect();
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        all.extend(
            targets
                .values()
                .flat_map(|target| names(target.get("dependencies"))),
        );
    }
    all
}

#[test]
fn every_crate_of_the_hypervisor_and_its_tools_is_in_the_table() {
    let table = Table::read();
    let mut breaches = Vec::new();
    for parent in ["hyp", "scripts/tool", "."] {
        let entries = fs::read_dir(workspace().join(parent)).expect("a folder");
        for entry in entries.flatten() {
            let folder = entry.path();
            let is_crate = folder.join("Cargo.toml").is_file();
            let name = folder
                .strip_prefix(workspace())
                .unwrap_or(&folder)
                .to_string_lossy()
                .into_owned();
            let name = name.trim_start_matches("./").to_owned();
            if is_crate && !table.crates.values().any(|what| what.folder == name) {
                breaches.push(format!("{name} isn't in house.toml"));
            }
        }
    }
    none(breaches);
}

#[test]
fn rooms_use_lower_floors_only() {
    let mut breaches = Vec::new();
    for what in Table::read()
        .crates
        .values()
        .filter(|what| !what.floors.is_empty())
    {
        let floor_of: BTreeMap<&str, usize> = what
            .floors
            .iter()
            .enumerate()
            .flat_map(|(floor, rooms)| rooms.iter().map(move |room| (room.as_str(), floor)))
            .collect();
        for source in sources(&what.folder).values() {
            let room = room_of(&source.module);
            if room == "lib" {
                continue;
            }
            let Some(floor) = floor_of.get(room) else {
                breaches.push(format!("{}: its room {room} has no floor", source.path));
                continue;
            };
            for import in &source.imports {
                let other = room_of(import);
                if other != room && floor_of.get(other).is_none_or(|other| other >= floor) {
                    breaches.push(format!(
                        "{} uses {import}, which isn't below it",
                        source.path
                    ));
                }
            }
        }
    }
    none(breaches);
}

fn room_of(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

#[test]
fn files_are_in_no_circle_but_for_a_folders_face_and_its_children() {
    let mut breaches = Vec::new();
    for (name, what) in &Table::read().crates {
        let graph: BTreeMap<String, Vec<String>> = sources(&what.folder)
            .into_values()
            .map(|source| {
                let Source {
                    module, imports, ..
                } = source;
                let imports = imports
                    .into_iter()
                    .filter(|import| !are_face_and_child(&module, import));
                let imports = imports.collect();
                (module, imports)
            })
            .collect();
        let found: BTreeSet<Vec<String>> = circles(&graph).into_iter().collect();
        let known: BTreeSet<Vec<String>> = what.circles.iter().cloned().collect();
        let unknown = found.difference(&known);
        breaches.extend(unknown.map(|circle| format!("{name}: a circle of {}", circle.join(", "))));
        let gone = known.difference(&found);
        breaches.extend(gone.map(|circle| {
            let files = circle.join(", ");
            format!("{name}: no circle of {files} any more: say so in house.toml")
        }));
    }
    none(breaches);
}

fn are_face_and_child(one: &str, other: &str) -> bool {
    let is_child = |face: &str, child: &str| {
        child
            .strip_prefix(face)
            .is_some_and(|rest| rest.starts_with("::"))
    };
    one == "lib" || other == "lib" || is_child(one, other) || is_child(other, one)
}

/// The sets of nodes that lead to each other.
fn circles(graph: &BTreeMap<String, Vec<String>>) -> Vec<Vec<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = graph
        .keys()
        .map(|from| {
            let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
            while let Some(at) = left.pop() {
                for next in graph.get(at).into_iter().flatten() {
                    if graph.contains_key(next) && seen.insert(next) {
                        left.push(next);
                    }
                }
            }
            (from, seen)
        })
        .collect();
    let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
    for (node, seen) in &reached {
        if seen.contains(node) {
            let others = seen.iter().filter(|other| reached[**other].contains(node));
            let circle: BTreeSet<String> = others.map(|other| (*other).clone()).collect();
            circles.insert(circle.into_iter().collect());
        }
    }
    circles
        .into_iter()
        .filter(|circle| circle.len() > 1)
        .collect()
}

#[test]
fn folders_and_files_are_small() {
    let table = Table::read();
    let mut large: BTreeMap<String, String> = BTreeMap::new();
    for what in table.crates.values() {
        let mut folders: BTreeMap<String, usize> = BTreeMap::new();
        let files = sources(&what.folder);
        for source in files.values() {
            let is_face = files
                .keys()
                .any(|other| other.starts_with(&format!("{}::", source.module)));
            let folder = source
                .path
                .rsplit_once('/')
                .map_or("", |(folder, _)| folder);
            *folders.entry(folder.to_owned()).or_default() +=
                usize::from(!is_face && source.module != "lib");
            if source.lines > MOST_LINES {
                large.insert(source.path.clone(), format!("{} lines", source.lines));
            }
        }
        let full = folders.into_iter().filter(|(_, files)| *files > MOST_FILES);
        large.extend(full.map(|(folder, files)| (folder, format!("{files} files"))));
    }
    let unknown = large
        .iter()
        .filter(|(path, _)| !table.long_files.contains_key(*path));
    let mut breaches: Vec<String> = unknown
        .map(|(path, size)| format!("{path} has {size}"))
        .collect();
    let small = table
        .long_files
        .keys()
        .filter(|path| !large.contains_key(*path));
    breaches.extend(small.map(|path| format!("{path} is small: take it out of house.toml")));
    none(breaches);
}

#[test]
fn a_public_types_name_means_one_thing_in_the_hypervisor() {
    let table = Table::read();
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for what in table
        .crates
        .values()
        .filter(|what| what.folder.starts_with("hyp/"))
    {
        for source in sources(&what.folder).into_values() {
            for name in source.types {
                places.entry(name).or_default().push(source.path.clone());
            }
        }
    }
    let twice = places.iter().filter(|(_, paths)| paths.len() > 1);
    let breaches = twice
        .clone()
        .filter(|(name, _)| !table.same_names.contains_key(*name));
    let mut breaches: Vec<String> = breaches
        .map(|(name, paths)| format!("{name}: {}", paths.join(", ")))
        .collect();
    let twice: BTreeSet<&String> = twice.map(|(name, _)| name).collect();
    let unique = table.same_names.keys().filter(|name| !twice.contains(name));
    breaches.extend(
        unique.map(|name| format!("{name} is one type's name only: take it out of house.toml")),
    );
    none(breaches);
}

#[test]
fn unsafe_is_where_the_table_has_it_and_its_number_only_falls() {
    let Table {
        crates, unsafes, ..
    } = Table::read();
    let mut breaches = Vec::new();
    for what in crates.values() {
        for source in sources(&what.folder).into_values() {
            let allowed = unsafes.get(&source.path).copied().unwrap_or(0);
            if source.unsafes != allowed {
                let path = &source.path;
                breaches.push(format!(
                    "{path:?} = {} # the table allows {allowed}",
                    source.unsafes
                ));
            }
        }
    }
    none(breaches);
}

/// The rules find what they are for.
#[test]
fn a_circle_is_found_and_a_face_is_no_part_of_one() {
    let graph = |arrows: &[(&str, &str)]| -> BTreeMap<String, Vec<String>> {
        let mut graph: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (from, to) in arrows {
            graph.entry((*from).into()).or_default().push((*to).into());
            graph.entry((*to).into()).or_default();
        }
        graph
    };
    assert!(circles(&graph(&[("a", "b"), ("b", "c"), ("a", "c")])).is_empty());
    assert_eq!(
        circles(&graph(&[("a", "b"), ("b", "c"), ("c", "b")])),
        [["b", "c"]]
    );
    assert!(
        are_face_and_child("frames", "frames::pool")
            && !are_face_and_child("frame", "frames::pool")
    );
    let known: &Crate = &Table::read().crates["memory"];
    let memory = sources(&known.folder);
    assert!(
        memory["fault"]
            .imports
            .iter()
            .any(|import| import == "object"),
        "{:?}",
        memory["fault"].imports
    );
    assert!(memory["epoch::published"].unsafes > 0);
}
