//! Finds the line of a key in a settings file, so that an error says where.

use std::ops::Range;

use crate::error::Error;

/// Knows a settings file by name and text.
pub struct KeyFinder<'a> {
    origin: &'a str,
    text: &'a str,
}

impl<'a> KeyFinder<'a> {
    /// A finder for `text`, called `origin` in errors.
    pub fn new(origin: &'a str, text: &'a str) -> KeyFinder<'a> {
        KeyFinder { origin, text }
    }

    /// A text that is not TOML.
    pub fn syntax_error(&self, message: &str, span: Option<Range<usize>>) -> Error {
        let line = span.map(|span| self.text[..span.start.min(self.text.len())].lines().count());
        let place = match line {
            Some(line) => format!("{}, line {}", self.origin, line.max(1)),
            None => self.origin.to_owned(),
        };
        Error::setting(
            place,
            "valid TOML",
            message.lines().next().unwrap_or("something else"),
        )
    }

    /// A key that does not belong there, is missing, or has a value of the wrong kind, in the words of the parser.
    pub fn type_error(&self, message: &str) -> Error {
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        let first = message.lines().next().unwrap_or(message);
        match (
            first.starts_with("unknown field") || first.starts_with("unknown variant"),
            &quoted[..],
        ) {
            (true, [unknown, known @ ..]) => {
                let near = near_miss(unknown, known);
                let found = match near {
                    Some(near) => format!("{unknown} (did you mean {near}?)"),
                    None => (*unknown).to_owned(),
                };
                Error::setting(
                    self.at(unknown),
                    format!("one of {}", known.join(", ")),
                    found,
                )
            }
            (_, [key, ..]) => Error::setting(self.at(key), "a value of the right kind", first),
            _ => Error::setting(self.origin, "a value of the right kind", first),
        }
    }

    /// Adds file and line to a setting error that names a key last.
    pub fn place(&self, problem: Error) -> Error {
        match problem {
            Error::Setting { what, want, found } => {
                let key = what.rsplit([' ', '.']).next().unwrap_or(&what).to_owned();
                let stage = what
                    .strip_prefix("stage ")
                    .and_then(|rest| rest.split(": ").next());
                let place = match self.line_of(&key, stage) {
                    Some(line) => format!("{}, line {line}: {what}", self.origin),
                    None => format!("{}: {what}", self.origin),
                };
                Error::Setting {
                    what: place,
                    want,
                    found,
                }
            }
            other => other,
        }
    }

    fn at(&self, key: &str) -> String {
        match self.line_of(key, None) {
            Some(line) => format!("{}, line {line}: {key}", self.origin),
            None => format!("{}: {key}", self.origin),
        }
    }

    /// The line, from 1, on which `key` is set (or whose value it is), after the stage of that name begins.
    fn line_of(&self, key: &str, stage: Option<&str>) -> Option<usize> {
        let lines: Vec<&str> = self.text.lines().collect();
        let start = match stage {
            None => 0,
            Some(stage) => lines.iter().position(|line| {
                line.trim_start().starts_with("name") && line.contains(&format!("\"{stage}\""))
            })?,
        };
        let is_key = |line: &&str| {
            line.trim_start()
                .strip_prefix(key)
                .is_some_and(|rest| rest.trim_start().starts_with('='))
        };
        let mentions = |line: &&str| {
            line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-')
                .any(|word| word == key)
        };
        let found = lines[start..].iter().position(is_key);
        let found = found.or_else(|| lines[start..].iter().position(mentions));
        found.map(|line| start + line + 1)
    }
}

/// The known name closest to `name`, if it is close.
pub fn near_miss<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), *candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
