//! Derives entries from a Debian machine's own package sources, so that the mirror, the keys and the options stay those
//! that its owner chose: for the backports suite, and for a private apt root. Pure functions on the text of the files;
//! `setup::apt` and `linux::packages` read and write them.
//!
//! Both forms of sources.list(5) are read: deb822 stanzas (`*.sources`) and one-line entries (`*.list`). What is
//! written is always deb822.

/// One file of package sources.
#[derive(Clone, Debug)]
pub struct SourcesFile {
    /// The file's form.
    pub form: Form,
    /// Its text.
    pub text: String,
}

/// The two forms of package sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Stanzas of `Field: value` lines.
    Deb822,
    /// `deb [options] uri suite component…` lines.
    OneLine,
}

/// The backports suite in the machine's sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backports {
    /// An enabled entry lists the suite already.
    Listed,
    /// The text of a deb822 file that adds it.
    Entry(String),
    /// No entry of the release itself was found to derive one from.
    NoModel,
}

/// Looks through `files` for the suite `<codename>-backports`, and derives an entry for it from the first entry that
/// lists `codename` itself.
pub fn backports(files: &[SourcesFile], codename: &str) -> Backports {
    let stanzas: Vec<Stanza> = files
        .iter()
        .flat_map(SourcesFile::stanzas)
        .filter(Stanza::is_usable)
        .collect();
    let suite = format!("{codename}-backports");
    if stanzas.iter().any(|stanza| stanza.lists("Suites", &suite)) {
        return Backports::Listed;
    }
    match stanzas
        .into_iter()
        .find(|stanza| stanza.lists("Suites", codename))
    {
        Some(stanza) => Backports::Entry(stanza.with_suites(&suite, |_| true)),
        None => Backports::NoModel,
    }
}

/// The sources of an apt root that serves any architecture: of `files`, what they say of the release `codename` itself,
/// its updates, its security updates and its backports (derived where they aren't listed). Nothing where no entry of the
/// release was found.
pub fn release(files: &[SourcesFile], codename: &str) -> Option<String> {
    let suites = ["", "-updates", "-security", "-backports"].map(|end| format!("{codename}{end}"));
    let any_architecture = |field: &str| !field.eq_ignore_ascii_case("Architectures");
    let mut entries = Vec::new();
    let mut add = |stanza: &Stanza| {
        let listed = suites.iter().filter(|suite| stanza.lists("Suites", suite));
        let listed: Vec<&str> = listed.map(String::as_str).collect();
        if !listed.is_empty() && stanza.lists("Components", "main") {
            entries.push(stanza.with_suites(&listed.join(" "), any_architecture));
        }
    };
    let stanzas: Vec<Stanza> = files.iter().flat_map(SourcesFile::stanzas).collect();
    stanzas
        .iter()
        .filter(|stanza| stanza.is_usable())
        .for_each(&mut add);
    match backports(files, codename) {
        Backports::Entry(text) => deb822_stanzas(&text).iter().for_each(&mut add),
        Backports::Listed => {}
        Backports::NoModel => return None,
    }
    Some(entries.join("\n"))
}

impl SourcesFile {
    /// The file's entries, each in the form of a deb822 stanza.
    fn stanzas(&self) -> Vec<Stanza> {
        match self.form {
            Form::Deb822 => deb822_stanzas(&self.text),
            Form::OneLine => self.text.lines().filter_map(one_line_stanza).collect(),
        }
    }
}

/// One entry: fields in their order. A value keeps its continuation lines as they were written.
#[derive(Clone, Debug, Default)]
struct Stanza {
    fields: Vec<(String, String)>,
}

impl Stanza {
    fn value(&self, name: &str) -> &str {
        let field = self
            .fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name));
        field.map_or("", |(_, value)| value)
    }

    fn lists(&self, name: &str, word: &str) -> bool {
        self.value(name)
            .split_whitespace()
            .any(|other| other == word)
    }

    /// Whether the entry is enabled, is one of binary packages and doesn't come from a disc.
    fn is_usable(&self) -> bool {
        let disabled = matches!(
            self.value("Enabled").trim().to_ascii_lowercase().as_str(),
            "no" | "false" | "0"
        );
        let uris = self.value("URIs");
        let from_disc = uris.split_whitespace().any(|uri| uri.starts_with("cdrom:"));
        !disabled && self.lists("Types", "deb") && !uris.trim().is_empty() && !from_disc
    }

    /// The text of this entry for other suites, with those of the other fields that `keep` wants.
    fn with_suites(&self, suites: &str, keep: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        for (name, value) in &self.fields {
            if name.eq_ignore_ascii_case("Suites") {
                text.push_str(&format!("Suites: {suites}\n"));
            } else if !name.eq_ignore_ascii_case("Enabled")
                && !name.to_ascii_lowercase().starts_with("x-")
                && keep(name)
            {
                text.push_str(&format!("{name}:{value}\n"));
            }
        }
        text
    }
}

/// Cuts deb822 text into stanzas; comment lines are dropped.
fn deb822_stanzas(text: &str) -> Vec<Stanza> {
    let mut stanzas = Vec::new();
    let mut current = Stanza::default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.trim().is_empty() {
            stanzas.push(std::mem::take(&mut current));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = current.fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            current
                .fields
                .push((name.trim().to_string(), value.trim_end().to_string()));
        }
    }
    stanzas.push(current);
    stanzas
}

/// Reads `deb [options] uri suite component…`; `None` for comments, source packages and other lines.
fn one_line_stanza(line: &str) -> Option<Stanza> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t', '[']) {
        return None;
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let components = words.collect::<Vec<_>>().join(" ");
    let mut stanza = Stanza::default();
    let mut add =
        |name: &str, value: &str| stanza.fields.push((name.to_string(), format!(" {value}")));
    add("Types", "deb");
    add("URIs", uri);
    add("Suites", suite);
    add("Components", &components);
    for option in options.split_whitespace() {
        let (name, value) = option.split_once('=')?;
        add(deb822_name(name), &value.replace(',', " "));
    }
    Some(stanza)
}

/// The deb822 field of a one-line option; those not named here are called the same in both forms.
fn deb822_name(option: &str) -> &str {
    match option {
        "arch" => "Architectures",
        "lang" => "Languages",
        "target" => "Targets",
        "signed-by" => "Signed-By",
        "trusted" => "Trusted",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb
# A comment.
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
";

    fn deb822(text: &str) -> SourcesFile {
        SourcesFile {
            form: Form::Deb822,
            text: text.to_string(),
        }
    }

    fn one_line(text: &str) -> SourcesFile {
        SourcesFile {
            form: Form::OneLine,
            text: text.to_string(),
        }
    }

    fn entry(files: &[SourcesFile]) -> String {
        match backports(files, "bookworm") {
            Backports::Entry(text) => text,
            other => panic!("no entry: {other:?}"),
        }
    }

    #[test]
    fn a_deb822_entry_keeps_everything_but_the_suite() {
        let expected = "\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";
        assert_eq!(entry(&[deb822(DEB822)]), expected);
    }

    #[test]
    fn a_key_written_into_the_stanza_is_kept_line_by_line() {
        let text = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n\
                    Signed-By:\n -----BEGIN-----\n .\n abc\n -----END-----\n";
        assert!(
            entry(&[deb822(text)])
                .ends_with("Signed-By:\n -----BEGIN-----\n .\n abc\n -----END-----\n")
        );
    }

    #[test]
    fn a_one_line_entry_becomes_a_stanza_with_its_options() {
        let text = "# deb http://other.example/debian bookworm main\n\
                    deb-src http://mirror.example/debian bookworm main\n\
                    deb [arch=amd64,arm64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib # x\n";
        let expected = "\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm-backports
Components: main contrib
Architectures: amd64 arm64
Signed-By: /k.gpg
";
        assert_eq!(entry(&[one_line(text)]), expected);
    }

    #[test]
    fn a_suite_that_is_listed_is_not_added_again() {
        let listed = one_line("deb http://mirror.example/debian bookworm-backports main\n");
        assert_eq!(
            backports(&[deb822(DEB822), listed], "bookworm"),
            Backports::Listed
        );
        let disabled =
            deb822("Enabled: no\nTypes: deb\nURIs: http://a.example\nSuites: bookworm-backports\n");
        assert!(matches!(
            backports(&[disabled, deb822(DEB822)], "bookworm"),
            Backports::Entry(_)
        ));
    }

    #[test]
    fn a_private_root_has_the_release_alone_and_for_any_architecture() {
        let foreign = one_line(
            "deb [arch=amd64] https://tools.example/linux bookworm stable\n\
             deb https://tools.example/linux tools-bookworm main\n\
             deb [arch=amd64 signed-by=/k.gpg] http://other.example/debian bookworm main contrib\n",
        );
        let expected = "\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://other.example/debian
Suites: bookworm
Components: main contrib
Signed-By: /k.gpg

Types: deb
URIs: http://mirror.example/debian
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";
        let files = [deb822(DEB822), foreign];
        assert_eq!(release(&files, "bookworm").as_deref(), Some(expected));
        assert_eq!(release(&files, "trixie"), None);
    }

    #[test]
    fn a_private_root_takes_the_backports_that_the_machine_lists() {
        let listed = one_line("deb http://fast.example/debian bookworm-backports main\n");
        let text = release(&[deb822(DEB822), listed], "bookworm").expect("the release is listed");
        assert_eq!(text.matches("bookworm-backports").count(), 1, "{text}");
        assert!(text.contains("fast.example"), "{text}");
    }

    #[test]
    fn without_an_entry_of_the_release_there_is_no_model() {
        let disc = one_line("deb cdrom:[Debian]/ bookworm main\n");
        let other =
            deb822("Types: deb\nURIs: http://a.example\nSuites: trixie\nComponents: main\n");
        assert_eq!(backports(&[], "bookworm"), Backports::NoModel);
        assert_eq!(backports(&[disc, other], "bookworm"), Backports::NoModel);
        assert_eq!(
            backports(&[deb822("nonsense\n\n: \n continued\n")], "bookworm"),
            Backports::NoModel
        );
    }
}
