//! The table of the house, `house.toml`.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;

/// What the rules are.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Each crate's folder, and the crates of the workspace that it may use.
    pub crates: BTreeMap<String, Crate>,
    /// Public types of hyp/ that share a name, each with the reason.
    pub same_names: BTreeMap<String, String>,
    /// Files that are longer than others may be, each with the reason.
    pub long_files: BTreeMap<String, String>,
    /// How often each file is unsafe, at most. No other file may be.
    pub unsafes: BTreeMap<String, usize>,
}

/// What the rules say of a crate.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crate {
    /// Its folder in the workspace.
    pub folder: String,
    /// The crates of the workspace that it may use.
    pub uses: Vec<String>,
    /// Its rooms (folders, and files at its root) from the ground up. A room may use those on lower floors. Without them, its
    /// rooms may use each other.
    #[serde(default)]
    pub floors: Vec<Vec<String>>,
    /// Files that use each other in a circle, each circle a list. None may grow.
    #[serde(default)]
    pub circles: Vec<Vec<String>>,
}

impl Table {
    /// The table.
    ///
    /// # Panics
    /// It can't be read.
    pub fn read() -> Self {
        let text = fs::read_to_string(crate::workspace().join("tests/house/house.toml"));
        toml::from_str(&text.expect("house.toml is there")).expect("house.toml is a table")
    }
}
