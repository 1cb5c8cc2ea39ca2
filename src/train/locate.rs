//! Finds the line of a setting in a recipe's text, so that an error says where.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result};

/// Knows a recipe's text, where each setting stands in it, and what the command line changed.
pub struct KeyFinder<'a> {
    origin: &'a str,
    text: &'a str,
    root: DeTable<'a>,
    sets: &'a [String],
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
            let keys = set.split('=').next().unwrap_or(set).trim();
            let keys: Vec<&str> = keys.split('.').collect();
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

    /// `stage warm-up: data.pairs`, `model.vision.depth`.
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

/// The known name closest to `name`, if it is close.
pub fn near_miss<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| {
            // One slip of the finger is a near miss however short the name.
            let is_slip = strsim::damerau_levenshtein(name, candidate) == 1;
            let likeness = strsim::jaro_winkler(name, candidate);
            (
                if is_slip { likeness.max(0.9) } else { likeness },
                *candidate,
            )
        })
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// `name`, and what may have been meant.
pub fn with_near_miss(name: &str, known: &[&str]) -> String {
    match near_miss(name, known) {
        Some(near) => format!("{name} (did you mean {near}?)"),
        None => name.to_owned(),
    }
}
