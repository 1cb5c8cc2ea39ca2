//! The `keel` program: reads the command line, runs one subcommand, turns an error into one sentence.

use std::io::ErrorKind;
use std::process::ExitCode;

use keel::error::Error;

fn main() -> ExitCode {
    match keel::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has had enough.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => {
            ExitCode::FAILURE
        }
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}
