//! What can go wrong between here and a store, in words, and whether trying again can help.

use std::fmt;
use std::io::{Error, ErrorKind};

/// Why an object cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// As an error of input and output.
    pub kind: ErrorKind,
    /// What came instead of what was wanted.
    pub problem: String,
    /// What the user can do.
    pub remedy: String,
    /// Whether the same request can succeed a moment later.
    pub is_passing: bool,
}

/// What an object gives.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// One that stays.
    pub(crate) fn lasting(
        kind: ErrorKind,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Failure {
        Failure {
            kind,
            problem: problem.into(),
            remedy: remedy.into(),
            is_passing: false,
        }
    }

    /// One that may pass.
    #[cfg(feature = "network")]
    pub(crate) fn passing(
        kind: ErrorKind,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Failure {
        Failure {
            is_passing: true,
            ..Failure::lasting(kind, problem, remedy)
        }
    }

    /// An address that is none.
    pub(crate) fn address(problem: impl Into<String>, remedy: impl Into<String>) -> Failure {
        Failure::lasting(ErrorKind::InvalidInput, problem, remedy)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}; {}", self.problem, self.remedy)
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        Error::new(failure.kind, failure)
    }
}
