//! The one error type. Every variant names the thing, what was expected and what was found; the text says what to do.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What went wrong, in one sentence a user can act on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An op was given a value of the wrong shape or type. Raised when the op is recorded.
    #[error("{op}: {tensor} must be {want}, but is {got}")]
    Shape {
        /// The op's name.
        op: &'static str,
        /// Which of its inputs.
        tensor: String,
        /// The rule.
        want: String,
        /// What was passed.
        got: String,
    },
    /// A setting is impossible or unknown. The near miss comes first, where there is one: it is what most readers need, and
    /// the list of all that would be accepted can be long.
    #[error("{}", setting_text(what, want, found))]
    Setting {
        /// The setting, with file and line where it has them.
        what: String,
        /// What would be accepted.
        want: String,
        /// What stands there, and what was probably meant.
        found: Found,
    },
    /// A file or folder could not be used.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb phrase ("read", "create the folder").
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file was read but its content is unusable.
    #[error("{what}: {problem}; {remedy}")]
    Content {
        /// The file, entry or sample.
        what: String,
        /// What is wrong with it.
        problem: String,
        /// What the user can do.
        remedy: String,
    },
    /// A run cannot go on: a non-finite loss, too many bad samples, not enough memory.
    #[error("{what}: {problem}; {remedy}")]
    Stopped {
        /// Where it happened (stage, step).
        what: String,
        /// What happened.
        problem: String,
        /// What the user can do.
        remedy: String,
    },
    /// Ranks of a run hold different parameters.
    #[error(
        "{place}: {found}, so one of these does not compute reliably, and nothing was saved of them; go on from the newest \
         checkpoint with --resume, without that machine"
    )]
    CopiesDiffer {
        /// Stage and step.
        place: String,
        /// Which ranks hold other parameters than which.
        found: String,
    },
    /// A signal ended a run after it saved.
    #[error("ended by {signal} at {place}, which is saved; keel train --resume {run} goes on")]
    Interrupted {
        /// TERM, INT or HUP.
        signal: &'static str,
        /// The exit code of the program.
        code: u8,
        /// Stage and step.
        place: String,
        /// The run's folder.
        run: String,
    },
    /// A device or executor is not available.
    #[error("device {device}: {problem}; {remedy}")]
    Device {
        /// The device asked for.
        device: String,
        /// Why it cannot be used.
        problem: String,
        /// What the user can do.
        remedy: String,
    },
    /// A kernel launch was refused, or a kernel did something it must not do.
    #[error("{report}")]
    Kernel {
        /// Kernel, place, what was wanted and what was found, and how it was launched.
        report: String,
    },
}

/// The result of everything fallible in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A shape error of `op` at `tensor`.
    pub fn shape(
        op: &'static str,
        tensor: impl Into<String>,
        want: impl ToString,
        got: impl ToString,
    ) -> Error {
        Error::Shape {
            op,
            tensor: tensor.into(),
            want: want.to_string(),
            got: got.to_string(),
        }
    }

    /// A setting error. `found` is anything that can be printed, or a name [`with_near_miss`].
    pub fn setting(what: impl ToString, want: impl ToString, found: impl Into<Found>) -> Error {
        Error::Setting {
            what: what.to_string(),
            want: want.to_string(),
            found: found.into(),
        }
    }

    /// Whether the caller can avoid it by asking for something else: a setting, a file that was named, weights or data that
    /// cannot be used, a device that is not there. A full disk, a failed kernel and a stopped run are not the caller's doing.
    ///
    /// This holds before anything runs. In the middle of a run, a file or a device that has gone is a failure as well; whoever
    /// started the run has to tell the two apart.
    pub fn is_mistake(&self) -> bool {
        match self {
            Error::Setting { .. }
            | Error::Shape { .. }
            | Error::Content { .. }
            | Error::Device { .. } => true,
            Error::Io { source, .. } => matches!(
                source.kind(),
                ErrorKind::NotFound
                    | ErrorKind::PermissionDenied
                    | ErrorKind::AlreadyExists
                    | ErrorKind::IsADirectory
                    | ErrorKind::NotADirectory
                    | ErrorKind::InvalidFilename
                    | ErrorKind::InvalidInput
                    | ErrorKind::ReadOnlyFilesystem
            ),
            Error::Stopped { .. }
            | Error::CopiesDiffer { .. }
            | Error::Interrupted { .. }
            | Error::Kernel { .. } => false,
        }
    }

    /// An input/output error at `path` while trying to `action`.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Error {
        Error::Io {
            path: path.as_ref().to_owned(),
            action,
            source,
        }
    }

    /// A refused or failed kernel launch.
    pub fn kernel(report: impl Into<String>) -> Error {
        Error::Kernel {
            report: report.into(),
        }
    }

    /// A content error.
    pub fn content(what: impl ToString, problem: impl ToString, remedy: impl ToString) -> Error {
        Error::Content {
            what: what.to_string(),
            problem: one_line(&problem.to_string()),
            remedy: remedy.to_string(),
        }
    }

    /// A run that cannot go on.
    pub fn stopped(what: impl ToString, problem: impl ToString, remedy: impl ToString) -> Error {
        Error::Stopped {
            what: what.to_string(),
            problem: problem.to_string(),
            remedy: remedy.to_string(),
        }
    }
}

/// What stands in the place of a setting. It has no `Display` of its own: where the near miss goes is for the whole sentence
/// to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    text: String,
    near: Option<String>,
}

impl<T: ToString> From<T> for Found {
    fn from(text: T) -> Found {
        Found {
            text: text.to_string(),
            near: None,
        }
    }
}

impl Found {
    /// `text`, where `near` was probably meant.
    pub fn near(text: impl ToString, near: Option<impl ToString>) -> Found {
        Found {
            text: text.to_string(),
            near: near.map(|near| near.to_string()),
        }
    }
}

/// Text and near miss on the first line and what would be accepted on the second; one line where nothing is near.
fn setting_text(what: &str, want: &str, found: &Found) -> String {
    let Found { text, near } = found;
    match near {
        Some(near) => format!("{what}: found {text} (did you mean {near}?)\n  expected {want}"),
        None => format!("{what}: expected {want}, found {text}"),
    }
}

/// The text on one line: what decoders say of a file may have line breaks.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
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
pub fn with_near_miss(name: &str, known: &[&str]) -> Found {
    Found::near(name, near_miss(name, known))
}

/// The known name most like `name`, however far; `None` among none.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.max_by(|a, b| strsim::jaro(name, a).total_cmp(&strsim::jaro(name, b)))
}
