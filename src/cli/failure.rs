//! How the program ends when it does not end well: what it says, and with which exit code.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use keel_base::error::Error;
use keel_ranks::control::COPIES_DIFFER;

/// What `keel --help` says of exit codes.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed while running: a full disk, a device fault, a run that stopped itself, data that fail their check
  2    refused: an unknown option or setting, or files, weights or a device that cannot be used
  130  interrupted by Ctrl-C, after a checkpoint was saved (143 by SIGTERM, 129 by SIGHUP)
  141  whoever read the output closed the pipe
  75   another of several ranks ended, which the message names: start again with --resume
  76   several ranks came to different parameters: a machine that the message names does not compute reliably";

/// Something went wrong while running.
pub(super) const FAILED: u8 = 1;
/// The caller asked for what cannot be; clap's code, too.
const REFUSED: u8 = 2;
/// The reader of the output went away: 128 + SIGPIPE.
pub(super) const READER_GONE: u8 = 141;

/// Ranks hold different parameters.
const RANKS_DIFFER: u8 = COPIES_DIFFER as u8;

/// Why a command ends without having done what it was asked.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    /// For the error stream; nothing where nobody reads any more.
    text: Option<String>,
}

impl Failure {
    /// A command line that was not understood.
    pub(super) fn usage(text: String) -> Failure {
        Failure {
            code: REFUSED,
            text: Some(format!("error: {text}")),
        }
    }

    /// An error in the middle of a run. Files and devices that were named on the command line were there when it began: what
    /// they do since is no mistake of the caller's. A setting is, and so is a checkpoint to go on from that is of another
    /// model.
    pub(super) fn while_running(problem: Error) -> Failure {
        match problem {
            Error::Setting { .. } | Error::Content { .. } => problem.into(),
            problem => Failure::new(problem, FAILED),
        }
    }

    fn new(problem: Error, code: u8) -> Failure {
        match problem {
            // Whoever read the output has had enough.
            Error::Io { source, .. } if source.kind() == ErrorKind::BrokenPipe => Failure {
                code: READER_GONE,
                text: None,
            },
            // Not an error: it was asked for.
            Error::Interrupted { code, .. } => Failure {
                code,
                text: Some(problem.to_string()),
            },
            Error::CopiesDiffer { .. } => Failure {
                code: RANKS_DIFFER,
                text: Some(format!("error: {problem}")),
            },
            problem => Failure {
                code,
                text: Some(format!("error: {problem}")),
            },
        }
    }

    /// What went wrong, in a sentence.
    pub(super) fn text(&self) -> &str {
        self.text
            .as_deref()
            .unwrap_or("the reader of its output is gone")
    }

    /// The same, without the mark of an error.
    pub(super) fn sentence(&self) -> &str {
        let text = self.text();
        text.strip_prefix("error: ").unwrap_or(text)
    }

    /// The exit code.
    pub(super) fn code(&self) -> u8 {
        self.code
    }

    /// Whether all ranks end alike and at the same step: where a signal asked for it (codes are 128 and its number), and where
    /// they found their parameters to differ.
    pub(super) fn is_shared(&self) -> bool {
        self.code > 128 && self.code != READER_GONE || self.code == RANKS_DIFFER
    }

    /// Says what went wrong on the error stream; returns the exit code.
    pub fn report(&self) -> ExitCode {
        if let Some(text) = &self.text {
            // Where the terminal is gone, the code still says how it ended.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
        ExitCode::from(self.code)
    }
}

impl From<Error> for Failure {
    /// An error before anything ran.
    fn from(problem: Error) -> Failure {
        let code = if problem.is_mistake() {
            REFUSED
        } else {
            FAILED
        };
        Failure::new(problem, code)
    }
}
