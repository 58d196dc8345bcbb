//! The unmutated tree: every suite has to pass on it, and the time that each takes tells how long a mutant may take.
//!
//! The result is kept beside the copy and used again while the sources are the same, so that trying one mutant after
//! another doesn't begin with all suites each time.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::mutant::FOLDER;
use super::suites::{SUITES, Suite, Verdict};
use super::tree::Tree;
use emulator::error::ToolError;
use emulator::repository::Files;

/// No suite may take longer without a mutant.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// A suite hangs with a mutant if it takes so many times as long as without, and [`MARGIN`] more.
const TIMES: u32 = 4;
const MARGIN: Duration = Duration::from_secs(60);

/// How long each suite takes without a mutant.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Stands for the sources that were tested, and the suites.
    sources: u64,
    seconds: BTreeMap<String, f64>,
}

impl Baseline {
    /// Runs every suite on the copy as it is, or takes the result of the last run on the same sources from `kept`.
    /// `progress` hears which suite comes next.
    ///
    /// # Errors
    ///
    /// If a suite fails.
    pub fn measure(
        tree: &Tree,
        build: &Path,
        kept: &Path,
        mut progress: impl FnMut(&str),
    ) -> Result<Self, ToolError> {
        let sources = digest(tree.files());
        let last = fs::read(kept).ok();
        let last = last.and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        if let Some(last) = last.filter(|last| last.sources == sources) {
            return Ok(last);
        }
        let mut seconds = BTreeMap::new();
        for suite in SUITES {
            progress(suite.name);
            let failed = |why: &dyn std::fmt::Display| {
                ToolError::Mutants(format!("without a mutant, the suite {} {why}", suite.name))
            };
            let verdict = suite.run(tree.folder(), build, None, LONGEST);
            match verdict.map_err(|error| failed(&format!("can't be run: {error}")))? {
                Verdict::Passed(time) => seconds.insert(suite.name.into(), time.as_secs_f64()),
                Verdict::Failed(by) => return Err(failed(&format!("fails: {by}"))),
                Verdict::NotBuilt(error) => return Err(failed(&format!("isn't built: {error}"))),
            };
        }
        let baseline = Self { sources, seconds };
        // If it can't be written, it is measured again next time.
        if let Ok(text) = serde_json::to_vec(&baseline) {
            let _ = fs::write(kept, text);
        }
        Ok(baseline)
    }

    /// How long `suite` may take with a mutant.
    pub fn limit(&self, suite: &Suite) -> Duration {
        let seconds = self.seconds.get(suite.name).copied().unwrap_or_default();
        let usual = Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST);
        usual.min(LONGEST) * TIMES + MARGIN
    }

    /// How long each suite takes, for people.
    pub fn describe(&self) -> String {
        let times = self.seconds.iter();
        let times: Vec<String> = times
            .map(|(suite, seconds)| format!("{suite} {seconds:.1} s"))
            .collect();
        times.join(", ")
    }
}

/// Stands for the sources that the suites' results depend on.
fn digest(files: &Files) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{SUITES:?}").hash(&mut hasher);
    for (path, contents) in files.iter().filter(|(path, _)| is_tested(path)) {
        (path, contents).hash(&mut hasher);
    }
    hasher.finish()
}

fn is_tested(path: &Path) -> bool {
    let is_document = path.extension().is_some_and(|extension| extension == "md");
    !is_document && !path.starts_with(FOLDER) && !path.starts_with("scripts")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn the_digest_follows_sources_and_nothing_else() {
        let digest = |contents: &[(&str, &str)]| {
            let file = |(path, text): &(&str, &str)| (PathBuf::from(path), (*text).into());
            super::digest(&contents.iter().map(file).collect())
        };
        let source = ("hyp/stage2/src/entry.rs", "a");
        let mutant = ("tests/model/mutants/a.toml", "a");
        assert_eq!(digest(&[source]), digest(&[source, mutant]));
        assert_eq!(digest(&[source]), digest(&[source, ("README.md", "a")]));
        assert_ne!(
            digest(&[source]),
            digest(&[("hyp/stage2/src/entry.rs", "b")])
        );
    }

    #[test]
    fn a_mutant_may_take_much_longer_than_the_unmutated_tree() {
        let seconds = BTreeMap::from([(SUITES[0].name.to_string(), 10.0)]);
        let baseline = Baseline {
            sources: 0,
            seconds,
        };
        assert_eq!(baseline.limit(&SUITES[0]), Duration::from_secs(100));
        assert_eq!(baseline.limit(&SUITES[1]), MARGIN);
        assert_eq!(baseline.describe(), format!("{} 10.0 s", SUITES[0].name));
    }
}
