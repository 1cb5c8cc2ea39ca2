//! Finds the line of a setting in a recipe's text, so that an error says where.

use std::ops::Range;

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use keel_base::error::{Error, Result, with_near_miss};

/// Knows a recipe's text, where each setting stands in it, and what the command line changed.
pub struct KeyFinder<'a> {
    origin: &'a str,
    text: &'a str,
    root: DeTable<'a>,
    sets: &'a [String],
}

/// The key of a setting as `--set` takes it.
pub fn key_of(set: &str) -> &str {
    set.split('=').next().unwrap_or(set).trim()
}

/// The way to a setting from the top: keys of tables and places in lists.
pub type Path = Vec<String>;

impl<'a> KeyFinder<'a> {
    /// A finder for `text`, called `origin` in errors, under the `--set` settings `sets`.
    ///
    /// # Errors
    /// [`Error::Setting`] with the line when the text is not TOML.
    pub fn new(origin: &'a str, text: &'a str, sets: &'a [String]) -> Result<KeyFinder<'a>> {
        let root = DeTable::parse(text).map_err(|problem| {
            let place = match problem.span() {
                Some(span) => format!("{origin}, line {}", line_at(text, span)),
                None => origin.to_owned(),
            };
            let message = problem.message().lines().next().unwrap_or("something else");
            Error::setting(place, "valid TOML", message)
        })?;
        Ok(KeyFinder {
            origin,
            text,
            root: root.into_inner(),
            sets,
        })
    }

    /// What a table says, every key checked. The table is the text's, with the command line's settings in it.
    ///
    /// # Errors
    /// As [`KeyFinder::type_error`].
    pub fn typed<T: DeserializeOwned>(&self, table: Table) -> Result<T> {
        serde_path_to_error::deserialize(Value::Table(table)).map_err(|problem| {
            let path = problem.path().iter().filter_map(|part| match part {
                Segment::Map { key } => Some(key.clone()),
                Segment::Seq { index } => Some(index.to_string()),
                Segment::Enum { .. } | Segment::Unknown => None,
            });
            self.type_error(path.collect(), problem.inner().message())
        })
    }

    /// The text as a table.
    ///
    /// # Errors
    /// [`Error::Setting`] when the text is not TOML.
    pub fn table(&self) -> Result<Table> {
        self.text.parse().map_err(|problem: toml::de::Error| {
            Error::setting(self.origin, "valid TOML", problem.message())
        })
    }

    /// A key that does not belong there, is missing, or has a value of the wrong kind, in the words of the parser.
    pub fn type_error(&self, mut path: Path, message: &str) -> Error {
        let message = message.lines().next().unwrap_or(message);
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        if message.starts_with("unknown field") || message.starts_with("unknown variant") {
            let (unknown, known) = quoted.split_first().unwrap_or((&"", &[]));
            if message.starts_with("unknown field") && path.last().is_none_or(|k| k != unknown) {
                path.push((*unknown).to_owned());
            }
            let want = format!("one of {}", known.join(", "));
            return Error::setting(self.at(&path), want, with_near_miss(unknown, known));
        }
        if let (true, [missing, ..]) = (message.starts_with("missing field"), &quoted[..]) {
            path.push((*missing).to_owned());
            return Error::setting(self.at(&path), "a value", "none");
        }
        let (found, want) = message.split_once(", expected ").unwrap_or((message, ""));
        let want = match want {
            "usize" | "u64" | "u32" => "a whole number from 0 up",
            "f32" | "f64" => "a number",
            "" => "a value of the right kind",
            "a sequence" => "a list",
            "a map" => "a table",
            want if want.starts_with("struct") => "a table",
            want => want,
        };
        let found = ["invalid type: ", "invalid value: ", "invalid "]
            .iter()
            .find_map(|prefix| found.strip_prefix(prefix))
            .unwrap_or(found);
        Error::setting(self.at(&path), want, found.replace('`', ""))
    }

    /// Adds file and line to a setting error whose subject is the path of a setting, joined by dots.
    pub fn place(&self, problem: Error) -> Error {
        match problem {
            Error::Setting { what, want, found } => {
                let path: Path = what.split('.').map(str::to_owned).collect();
                Error::setting(self.at(&path), want, found)
            }
            other => other,
        }
    }

    /// File, line and name of a setting; or the `--set` that set it.
    fn at(&self, path: &[String]) -> String {
        let shown = self.shown(path);
        let set = self.sets.iter().rev().find(|set| {
            let keys: Vec<&str> = key_of(set).split('.').collect();
            keys.len() <= path.len()
                && keys.iter().zip(path).enumerate().all(|(depth, (key, at))| {
                    key == at || (depth == 1 && self.stage_name(path).is_some_and(|n| n == *key))
                })
        });
        // A table that only a setting from the command line goes through is wrong there, not in the file.
        let set = set.or_else(|| {
            let joined = path.join(".");
            let is_in_text = path
                .last()
                .is_none_or(|key| self.text.contains(key.as_str()));
            self.sets
                .iter()
                .rev()
                .find(|set| !is_in_text && set.starts_with(&joined))
        });
        match (set, self.line_of(path)) {
            (Some(set), _) => format!("--set {set}: {shown}"),
            (None, Some(line)) => format!("{}, line {line}: {shown}", self.origin),
            (None, None) => format!("{}: {shown}", self.origin),
        }
    }

    /// `stage warm-up: data.samples`, `model.vision.depth`.
    fn shown(&self, path: &[String]) -> String {
        match (path, self.stage_name(path)) {
            ([_, _, rest @ ..], Some(name)) if !rest.is_empty() => {
                format!("stage {name}: {}", rest.join("."))
            }
            (_, Some(name)) => format!("stage {name}"),
            _ => path.join("."),
        }
    }

    /// The name of the stage that a path leads into.
    fn stage_name(&self, path: &[String]) -> Option<&str> {
        let [first, index, ..] = path else {
            return None;
        };
        if first != "stage" {
            return None;
        }
        let (_, stages) = self.root.iter().find(|(key, _)| key.get_ref() == "stage")?;
        let DeValue::Array(stages) = stages.get_ref() else {
            return None;
        };
        let DeValue::Table(stage) = stages.get(index.parse::<usize>().ok()?)?.get_ref() else {
            return None;
        };
        let (_, name) = stage.iter().find(|(key, _)| key.get_ref() == "name")?;
        match name.get_ref() {
            DeValue::String(name) => Some(name),
            _ => None,
        }
    }

    /// The line, from 1, of the setting, or of the innermost table on the way to it that stands in the text.
    fn line_of(&self, path: &[String]) -> Option<usize> {
        let mut table = Some(&self.root);
        let mut list = None;
        let mut found = None;
        for key in path {
            let next = if let Some(here) = table {
                let Some((key, value)) = here.iter().find(|(name, _)| name.get_ref() == key) else {
                    break;
                };
                found = Some(key.span());
                value
            } else if let (Some(here), Ok(index)) = (list, key.parse::<usize>()) {
                let here: &toml::de::DeArray<'_> = here;
                let Some(value) = here.get(index) else {
                    break;
                };
                found = Some(value.span());
                value
            } else {
                break;
            };
            (table, list) = match next.get_ref() {
                DeValue::Table(inner) => (Some(inner), None),
                DeValue::Array(inner) => (None, Some(inner)),
                _ => (None, None),
            };
        }
        found.map(|span| line_at(self.text, span))
    }
}

fn line_at(text: &str, span: Range<usize>) -> usize {
    let before = &text.as_bytes()[..span.start.min(text.len())];
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// The text of the built-in `kind` of that name, or of the file at that path, and what errors call it. `setting` is where
/// the name was given, `action` what cannot be done when the file is unreadable.
///
/// # Errors
/// [`Error::Setting`] when it is neither; [`Error::Io`] when the file cannot be read.
pub fn named_text(
    built_in: &[(&str, &str)],
    name_or_path: &str,
    (kind, setting, action): (&str, &str, &'static str),
) -> Result<(String, String)> {
    if let Some((name, text)) = built_in.iter().find(|(name, _)| *name == name_or_path) {
        return Ok((format!("built-in {kind} {name}"), (*text).to_owned()));
    }
    let path = std::path::Path::new(name_or_path);
    if !path.exists() && path.extension().is_none() {
        let names: Vec<&str> = built_in.iter().map(|(name, _)| *name).collect();
        let want = format!("the path of a TOML file or one of {}", names.join(", "));
        let found = with_near_miss(name_or_path, &names);
        return Err(Error::setting(setting, want, found));
    }
    let text = std::fs::read_to_string(path).map_err(|problem| Error::io(path, action, problem))?;
    Ok((name_or_path.to_owned(), text))
}
