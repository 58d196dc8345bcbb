//! A mutant: a deliberate bug, as a small TOML file that says which text becomes which. The texts are exact, so that a
//! mutant whose code has changed is noticed and not applied somewhere else.
//!
//! ```toml
//! title = "a plain store where an exchange is needed"
//! # A rule of the tables' protocol; "V1" is one of the virtual GIC's.
//! rule = 1
//! file = "hyp/stage2/src/entry.rs"
//! # The suites that are tried first; the others follow.
//! suites = ["loom"]
//! # The tests that are tried before all others: those of the first suite that are in this file,
//! target = "interleavings"
//! # and whose names contain this. Either may be left out.
//! test = "faults::rule_1"
//!
//! [[change]]
//! find = "text that occurs once"
//! replace = "what it becomes"
//! # Where it isn't the file above.
//! file = "hyp/stage2/src/fault.rs"
//! ```

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::suites::{Selection, Suite};
use emulator::repository::Files;

/// Where the mutants lie in the repository.
pub const FOLDER: &str = "tests/model/mutants";

/// A rule of a protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(try_from = "RuleName")]
pub enum Rule {
    /// Of stage2.
    Tables(u8),
    /// Of vgic.
    Gic(u8),
}

/// A rule as a mutant names it.
#[derive(Deserialize)]
#[serde(untagged)]
enum RuleName {
    Number(u8),
    Name(String),
}

impl TryFrom<RuleName> for Rule {
    type Error = String;

    fn try_from(name: RuleName) -> Result<Self, String> {
        match name {
            RuleName::Number(number) => Ok(Self::Tables(number)),
            RuleName::Name(name) => {
                let number = name
                    .strip_prefix('V')
                    .and_then(|number| number.parse().ok());
                let unknown = || format!("{name} isn't the name of a rule");
                number.map(Self::Gic).ok_or_else(unknown)
            }
        }
    }
}

impl Rule {
    const fn exists(self) -> bool {
        match self {
            Self::Tables(number) => matches!(number, 1..=14),
            Self::Gic(number) => matches!(number, 1..=19),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tables(number) => f.pad(&number.to_string()),
            Self::Gic(number) => f.pad(&format!("V{number}")),
        }
    }
}

/// A deliberate bug.
#[derive(Debug)]
pub struct Mutant {
    /// Its name: its file's name without the extension.
    pub name: String,
    /// The bug in a few words.
    pub title: String,
    /// The rule of the protocol that it breaks.
    pub rule: Rule,
    /// The suites, in the order of the trials.
    pub suites: Vec<&'static Suite>,
    /// The tests that are tried before all others, in the first suite.
    pub first: Option<Selection>,
    changes: Vec<Change>,
}

/// A piece of text that becomes another one.
#[derive(Debug)]
struct Change {
    file: PathBuf,
    find: String,
    replace: String,
}

/// The error in a mutant's file, or the reason why it can't be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadMutant {
    /// The mutant's name.
    pub name: String,
    /// The error.
    pub fault: Fault,
}

/// See [`BadMutant`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its file can't be read.
    Unreadable(String),
    /// Its file does not have the form of a mutant.
    Malformed(String),
    /// There is no such rule.
    UnknownRule(Rule),
    /// There is no such suite.
    UnknownSuite(String),
    /// The change of this number changes nothing.
    NoChange(usize),
    /// No file is named for the change of this number.
    NoFile(usize),
    /// The tree has no such file.
    MissingFile(PathBuf),
    /// The text of the change of this number occurs so often in the file, instead of once.
    Stale {
        /// Counted from 1.
        change: usize,
        /// The file that it is for.
        file: PathBuf,
        /// How often its text occurs there.
        found: usize,
    },
}

impl fmt::Display for BadMutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the mutant {}: ", self.name)?;
        match &self.fault {
            Fault::Unreadable(error) => write!(f, "its file can't be read: {error}"),
            Fault::Malformed(error) => write!(f, "its file is malformed: {error}"),
            Fault::UnknownRule(rule) => write!(f, "there is no rule {rule}"),
            Fault::UnknownSuite(suite) => write!(f, "there is no suite {suite}"),
            Fault::NoChange(change) => write!(f, "change {change} changes nothing"),
            Fault::NoFile(change) => write!(f, "no file is named for change {change}"),
            Fault::MissingFile(file) => write!(f, "stale: there is no file {}", file.display()),
            Fault::Stale {
                change,
                file,
                found,
            } => write!(
                f,
                "stale: what change {change} looks for occurs {found} times in {}, not once",
                file.display()
            ),
        }
    }
}

/// The form of a mutant's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MutantFile {
    title: String,
    rule: Rule,
    file: Option<PathBuf>,
    #[serde(default)]
    suites: Vec<String>,
    target: Option<String>,
    test: Option<String>,
    change: Vec<ChangeInFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeInFile {
    file: Option<PathBuf>,
    find: String,
    replace: String,
}

impl Mutant {
    /// Reads a mutant's file. `known` are the suites, in their usual order.
    fn parse(name: &str, text: &str, known: &'static [Suite]) -> Result<Self, BadMutant> {
        let bad = |fault| BadMutant {
            name: name.into(),
            fault,
        };
        let malformed = |error: toml::de::Error| {
            let line = error.span().map_or(1, |span| {
                1 + text[..span.start.min(text.len())].matches('\n').count()
            });
            bad(Fault::Malformed(format!(
                "line {line}: {}",
                error.message()
            )))
        };
        let file: MutantFile = toml::from_str(text).map_err(malformed)?;
        if !file.rule.exists() {
            return Err(bad(Fault::UnknownRule(file.rule)));
        }
        let mut suites = Vec::new();
        for hint in file.suites {
            let suite = known.iter().find(|suite| suite.name == hint);
            suites.push(suite.ok_or_else(|| bad(Fault::UnknownSuite(hint)))?);
        }
        for suite in known {
            if !suites.iter().any(|hint| hint.name == suite.name) {
                suites.push(suite);
            }
        }
        let first = (file.target.is_some() || file.test.is_some()).then_some(Selection {
            target: file.target,
            test: file.test,
        });
        let mut changes = Vec::new();
        for (index, change) in file.change.into_iter().enumerate() {
            let number = index + 1;
            if change.find == change.replace || change.find.is_empty() {
                return Err(bad(Fault::NoChange(number)));
            }
            let file = change.file.or_else(|| file.file.clone());
            changes.push(Change {
                file: file.ok_or_else(|| bad(Fault::NoFile(number)))?,
                find: change.find,
                replace: change.replace,
            });
        }
        Ok(Self {
            name: name.into(),
            title: file.title,
            rule: file.rule,
            suites,
            first,
            changes,
        })
    }

    /// The files that it changes, as they are with the bug.
    ///
    /// # Errors
    ///
    /// If it is stale: the code that it replaces has changed.
    pub fn apply(&self, files: &Files) -> Result<Files, BadMutant> {
        let bad = |fault| BadMutant {
            name: self.name.clone(),
            fault,
        };
        let mut changed = Files::new();
        for (index, change) in self.changes.iter().enumerate() {
            let contents = changed.get(&change.file).or(files.get(&change.file));
            let contents = contents.ok_or_else(|| bad(Fault::MissingFile(change.file.clone())))?;
            let text = String::from_utf8_lossy(contents);
            let found = text.matches(&change.find).count();
            if found != 1 {
                return Err(bad(Fault::Stale {
                    change: index + 1,
                    file: change.file.clone(),
                    found,
                }));
            }
            let text = text.replace(&change.find, &change.replace);
            changed.insert(change.file.clone(), text.into_bytes());
        }
        Ok(changed)
    }
}

/// All mutants under `folder`, by rule and name, and the errors of those that can't be read.
pub fn load(folder: &Path, known: &'static [Suite]) -> (Vec<Mutant>, Vec<BadMutant>) {
    let (mut mutants, mut bad) = (Vec::new(), Vec::new());
    let unreadable = |name: &str, error: &dyn fmt::Display| BadMutant {
        name: name.into(),
        fault: Fault::Unreadable(error.to_string()),
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            bad.push(unreadable(&folder.display().to_string(), &error));
            return (mutants, bad);
        }
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let (Some(name), Some("toml")) = (
            path.file_stem().and_then(|name| name.to_str()),
            path.extension().and_then(|extension| extension.to_str()),
        ) else {
            continue;
        };
        let read = fs::read_to_string(&path).map_err(|error| unreadable(name, &error));
        match read.and_then(|text| Mutant::parse(name, &text, known)) {
            Ok(mutant) => mutants.push(mutant),
            Err(error) => bad.push(error),
        }
    }
    mutants.sort_by(|a, b| (a.rule, &a.name).cmp(&(b.rule, &b.name)));
    bad.sort_by(|a, b| a.name.cmp(&b.name));
    (mutants, bad)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::mutants::suites::SUITES;
    use emulator::repository::{repository, snapshot};

    const HEAD: &str = "title = 'a bug'\nrule = 2\nfile = 'a.rs'\n";

    /// A mutant whose file consists of a usual head and `rest`.
    pub fn mutant(name: &str, rest: &str) -> Result<Mutant, BadMutant> {
        Mutant::parse(name, &format!("{HEAD}{rest}"), SUITES)
    }

    fn fault<T: fmt::Debug>(result: Result<T, BadMutant>) -> Fault {
        let error = result.expect_err("it is bad");
        assert!(error.to_string().starts_with("the mutant bad: "), "{error}");
        error.fault
    }

    fn files(contents: &[(&str, &str)]) -> Files {
        let file = |(path, text): &(&str, &str)| (PathBuf::from(path), text.as_bytes().to_vec());
        contents.iter().map(file).collect()
    }

    #[test]
    fn a_mutant_changes_what_it_names_and_nothing_else() {
        let mutant = mutant(
            "good",
            "[[change]]\nfind = '''\nold(a,\n  b)'''\nreplace = 'new'\n\
             [[change]]\nfile = 'b.rs'\nfind = 'x'\nreplace = ''\n\
             [[change]]\nfind = 'new'\nreplace = 'newest'\n",
        )
        .expect("it is well-formed");
        let before = files(&[("a.rs", "1 old(a,\n  b) 2"), ("b.rs", "axb"), ("c.rs", "")]);
        let after = mutant.apply(&before).expect("it isn't stale");
        assert_eq!(after, files(&[("a.rs", "1 newest 2"), ("b.rs", "ab")]));
    }

    #[test]
    fn the_suites_that_it_names_come_first() {
        let change = "[[change]]\nfind = 'a'\nreplace = 'b'\n";
        let names = |mutant: Mutant| {
            let names = mutant.suites.iter().map(|suite| suite.name);
            names.collect::<Vec<_>>()
        };
        let usual = names(mutant("m", change).expect("well-formed"));
        let last = *usual.last().expect("there are suites");
        let hinted = mutant("m", &format!("suites = ['{last}']\n{change}"));
        let hinted = names(hinted.expect("well-formed"));
        assert_eq!(hinted[0], last);
        assert_eq!(hinted[1..], usual[..usual.len() - 1]);
    }

    #[test]
    fn the_tests_that_it_names_come_before_all_others() {
        let change = "[[change]]\nfind = 'a'\nreplace = 'b'\n";
        let first = |hint: &str| {
            let mutant = mutant("m", &format!("{hint}{change}"));
            mutant.expect("well-formed").first
        };
        let (target, test) = (Some("interleavings".into()), Some("rule_1".into()));
        let both = "target = 'interleavings'\ntest = 'rule_1'\n";
        assert_eq!(first(both), Some(Selection { target, test }));
        let test = Some("rule_1".into());
        let target = None;
        assert_eq!(first("test = 'rule_1'\n"), Some(Selection { target, test }));
        assert_eq!(first(""), None);
    }

    #[test]
    fn a_stale_mutant_is_not_applied() {
        let mutant = mutant("bad", "[[change]]\nfind = 'a'\nreplace = 'b'\n").expect("well-formed");
        let stale = |found| Fault::Stale {
            change: 1,
            file: "a.rs".into(),
            found,
        };
        assert_eq!(fault(mutant.apply(&files(&[("a.rs", "xy")]))), stale(0));
        assert_eq!(fault(mutant.apply(&files(&[("a.rs", "aya")]))), stale(2));
        assert_eq!(
            fault(mutant.apply(&files(&[]))),
            Fault::MissingFile("a.rs".into())
        );
    }

    #[test]
    fn malformed_files_are_refused() {
        let refused = |text: &str| fault(Mutant::parse("bad", text, SUITES));
        assert!(matches!(refused("title = 3"), Fault::Malformed(_)));
        let unknown = refused(&format!("{HEAD}change = []\nspeed = 3\n"));
        assert!(matches!(unknown, Fault::Malformed(text) if text.starts_with("line 5: ")));
        let change = "[[change]]\nfind = 'a'\nreplace = 'a'\n";
        assert_eq!(fault(mutant("bad", change)), Fault::NoChange(1));
        let no_file = "title = ''\nrule = 1\n[[change]]\nfind = 'a'\nreplace = 'b'\n";
        assert_eq!(refused(no_file), Fault::NoFile(1));
        assert_eq!(
            refused("title = ''\nrule = 15\nchange = []"),
            Fault::UnknownRule(Rule::Tables(15))
        );
        assert_eq!(
            refused("title = ''\nrule = 'V20'\nchange = []"),
            Fault::UnknownRule(Rule::Gic(20))
        );
        assert_eq!(
            fault(mutant("bad", "suites = ['guess']\nchange = []")),
            Fault::UnknownSuite("guess".into())
        );
    }

    #[test]
    fn every_mutant_of_the_repository_can_be_applied() {
        let (mutants, bad) = load(&repository().join(FOLDER), SUITES);
        assert_eq!(bad, [], "{}", bad[0]);
        assert!(!mutants.is_empty());
        let files = snapshot(repository()).expect("git lists the files");
        let stale: Vec<String> = mutants
            .iter()
            .filter_map(|mutant| mutant.apply(&files).err())
            .map(|error| error.to_string())
            .collect();
        assert!(stale.is_empty(), "{}", stale.join("\n"));
    }
}
