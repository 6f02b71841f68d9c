//! The configuration file: TOML, read with a line for every value.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{API, DAEMON, Key, LATER, MOUNT, names};
use super::load::{Draft, Section};
use super::problem::{Origin, Problem, Wrong};
use super::value::{Kind, Toml};
use super::{Api, Daemon, Mount, steps};

/// More than anybody writes; a log or a device that was named by mistake is not read to its end.
const LARGEST: u64 = 1 << 20;
/// Where the parser has lost its way, the rest of its complaints helps nobody.
const MOST_OF_SYNTAX: usize = 20;
const MOST_OF_ADVICE: usize = 100;
const SEE_EXAMPLE: &str = "remove it; `lighthouse-fs config example` shows the keys there are";

/// Reads the text of a regular file of sensible size.
///
/// # Errors
/// Why it is not one.
pub(super) fn read(path: &Path) -> Result<String, Problem> {
    let problem = |line, message: String, remedy: &str| Problem {
        origin: Origin::File { file: path.into(), line },
        key: None,
        wrong: Wrong::new(message, remedy),
    };
    let unreadable = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => {
                "name a file that exists; `lighthouse-fs config example` prints one to begin with"
            }
            io::ErrorKind::PermissionDenied => "let this user read it, and enter the folders above it",
            _ => "name a file that this user can read",
        };
        problem(None, format!("cannot be read: {error}"), remedy)
    };
    // Without waiting: a FIFO has nobody at its other end, perhaps for ever.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(problem(None, "is no regular file".into(), "name a file of text"));
    }
    let mut bytes = Vec::new();
    // Measured by what comes: files in /proc have no size, and others grow.
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST {
        return Err(problem(
            None,
            "has more than 1 MiB".into(),
            "name a configuration file: a few lines for each mount",
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        problem(Some(line), "is not UTF-8".into(), "save the file in UTF-8")
    })
}

/// Lays what the text says over a draft. Of a text that is no TOML nothing else is told: the rest would be guessed.
pub(super) fn lay_over(draft: &mut Draft, path: &Path, text: &str) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut reader = Reader {
        path,
        folder: std::path::absolute(folder).unwrap_or_else(|_| folder.into()),
        line_ends: text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(offset, _)| offset).collect(),
        problems: &mut draft.problems,
    };
    for error in errors.iter().take(MOST_OF_SYNTAX) {
        let remedy = "see https://toml.io, or begin with `lighthouse-fs config example`";
        reader.complain(error.span().unwrap_or_default().start, None, Wrong::new(error.message(), remedy));
    }
    if errors.is_empty() {
        reader.document(table.get_ref(), &mut draft.daemon, &mut draft.api, &mut draft.mounts);
    }
}

type Entry<'a, 'i> = (&'a Spanned<std::borrow::Cow<'i, str>>, &'a Spanned<DeValue<'i>>);

struct Reader<'a> {
    path: &'a Path,
    /// Its own, absolute.
    folder: PathBuf,
    line_ends: Vec<usize>,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn origin(&self, offset: usize) -> Origin {
        let line = 1 + self.line_ends.partition_point(|end| *end < offset);
        Origin::File { file: self.path.into(), line: Some(line) }
    }

    fn complain(&mut self, offset: usize, key: Option<&str>, wrong: Wrong) {
        let key = key.map(|key| key.escape_debug().to_string());
        self.problems.push(Problem { origin: self.origin(offset), key, wrong });
    }

    fn document(
        &mut self,
        document: &DeTable<'_>,
        daemon: &mut Section<Daemon>,
        api: &mut Section<Api>,
        mounts: &mut Vec<Section<Mount>>,
    ) {
        for (name, value) in document {
            let offset = name.span().start;
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("daemon", DeValue::Table(table)) => self.table("daemon", "", table, DAEMON, daemon),
                ("api", DeValue::Table(table)) => self.table("api", "", table, API, api),
                (table @ ("daemon" | "api"), _) => {
                    let remedy = format!("write [{table}] above its keys");
                    self.complain(offset, Some(table), Wrong::new("is no table", remedy));
                }
                ("mount", DeValue::Array(array)) => {
                    for element in array {
                        mounts.push(self.mount(element));
                    }
                }
                ("mount", _) => {
                    let remedy = "write [[mount]], with two brackets, above the keys of each mount";
                    self.complain(offset, Some("mount"), Wrong::new("is no list of tables", remedy));
                }
                (other, _) => self.unknown(offset, other),
            }
        }
    }

    fn mount(&mut self, element: &Spanned<DeValue<'_>>) -> Section<Mount> {
        let offset = element.span().start;
        let mut mount = Section::mount(self.origin(offset));
        match element.get_ref() {
            DeValue::Table(table) => self.table("mount", "", table, MOUNT, &mut mount),
            _ => {
                let remedy = "write [[mount]] above the keys of each mount";
                self.complain(offset, Some("mount"), Wrong::new("has an element that is no table", remedy));
            }
        }
        mount
    }

    /// `table` is one of ours, `subtable` is empty or ends with a point.
    fn table<T>(
        &mut self,
        table: &str,
        subtable: &str,
        entries: &DeTable<'_>,
        keys: &'static [Key<T>],
        section: &mut Section<T>,
    ) {
        for entry in entries {
            let name = format!("{subtable}{}", entry.0.get_ref());
            let full = format!("{table}.{name}");
            let below = format!("{name}.");
            if entry.0.get_ref().contains('.') {
                // In quotes: one key with a point in it, not a key of a table.
                self.unknown(entry.0.span().start, &full);
            } else if let Some(key) = keys.iter().find(|key| key.name == name) {
                self.value(&full, entry, key, section);
            } else if !keys.iter().any(|key| key.name.starts_with(&below)) {
                self.unknown(entry.0.span().start, &full);
            } else if let DeValue::Table(entries) = entry.1.get_ref() {
                self.table(table, &below, entries, keys, section);
            } else {
                let remedy = format!("write [{full}] above its keys");
                self.complain(entry.0.span().start, Some(&full), Wrong::new("is no table", remedy));
            }
        }
    }

    fn value<T>(&mut self, full: &str, entry: Entry<'_, '_>, key: &'static Key<T>, section: &mut Section<T>) {
        let offset = entry.0.span().start;
        section.heard(key.name, self.origin(offset));
        if let Kind::Steps(at) = &key.kind {
            *at(&mut section.value) = steps::read(entry.1, |offset, wrong| self.complain(offset, Some(full), wrong));
            return;
        }
        let expected = key.kind.toml();
        let text = match (expected, entry.1.get_ref()) {
            (Toml::String, DeValue::String(text)) => text.to_string(),
            (Toml::Boolean, DeValue::Boolean(is)) => is.to_string(),
            // Other radixes are right in TOML, and a number all the same.
            (Toml::Integer, DeValue::Integer(number)) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.to_string(), |n| n.to_string()),
            (Toml::Number, DeValue::Float(number)) => number.to_string(),
            (Toml::Number, DeValue::Integer(number)) => number.to_string(),
            (Toml::Array, DeValue::Array(array)) if array.iter().all(|one| one.get_ref().is_str()) => {
                array.iter().filter_map(|one| one.get_ref().as_str()).collect::<Vec<_>>().join(",")
            }
            (_, other) => {
                let remedy = match expected {
                    Toml::String => format!("write it in quotes: {}", key.kind.expected()),
                    Toml::Boolean => "write true or false, without quotes".into(),
                    Toml::Array => format!("write them in brackets, each in quotes: {}", key.kind.expected()),
                    Toml::Number => format!("write a number, without quotes: {}", key.kind.expected()),
                    Toml::Integer => format!("write a whole number, without quotes: {}", key.kind.expected()),
                };
                let what = format!("has the wrong type: {}", other.type_str());
                return self.complain(offset, Some(full), Wrong::new(what, remedy));
            }
        };
        if let Err(wrong) = key.kind.set(&mut section.value, &text, &self.folder) {
            self.complain(offset, Some(full), wrong);
        }
    }

    fn unknown(&mut self, offset: usize, full: &str) {
        let wrong = if LATER.contains(&full) {
            Wrong::new("this key is not supported by this version", "remove it")
        } else {
            // Looking for the nearest takes a while, and nobody reads the hundredth.
            let remedy = if self.problems.len() < MOST_OF_ADVICE { suggestion(full) } else { SEE_EXAMPLE.into() };
            Wrong::new("unknown key", remedy)
        };
        self.complain(offset, Some(full), wrong);
    }
}

/// What was perhaps meant.
fn suggestion(full: &str) -> String {
    let (table, name) = full.rsplit_once('.').unwrap_or(("", full));
    let in_table = |known: &str| known.rsplit_once('.').is_some_and(|(of, _)| of == table);
    let last = |known: &str| known.rsplit_once('.').map_or(known, |(_, name)| name).to_owned();
    let sections = [
        "daemon",
        "api",
        "mount",
        "mount.io",
        "mount.cache",
        "mount.deadlines",
        "mount.rollout",
        "mount.rollout.fleet",
    ]
    .map(str::to_owned);
    let all: Vec<_> = names().chain(sections).collect();
    let as_written = |known: &String| if in_table(known) || !known.contains('.') { last(known) } else { known.clone() };
    // The right name at the wrong place; else the nearest one, of the same table if there are two.
    let misplaced = all.iter().find(|known| last(known) == name && !in_table(known));
    let meant = misplaced.or_else(|| nearest(name, all.iter().filter(|known| in_table(known)), |known| last(known)));
    let meant = meant.or_else(|| nearest(name, all.iter(), |known| last(known)));
    match meant {
        Some(known) if misplaced.is_some() => match known.rsplit_once('.') {
            Some(("mount", _)) => format!("{name} belongs directly below [[mount]]"),
            Some((table, _)) => format!("{name} belongs in [{table}]"),
            None => format!("{name} is a table of its own"),
        },
        Some(known) => format!("did you mean {}?", as_written(known)),
        None => SEE_EXAMPLE.into(),
    }
}

/// The one that a slip of the pen would turn into `name`.
pub(super) fn nearest<'a, K: ?Sized + 'a>(
    name: &str,
    known: impl Iterator<Item = &'a K>,
    text: impl Fn(&K) -> String,
) -> Option<&'a K> {
    // Comparing takes the product of the lengths, and no key is that long.
    if name.len() > 64 {
        return None;
    }
    let distance = |known: &K| strsim::damerau_levenshtein(name, &text(known));
    let (far, nearest) = known.map(|known| (distance(known), known)).min_by_key(|(far, _)| *far)?;
    (far <= 1 + name.len() / 4).then_some(nearest)
}
