//! The `keel` program: reads the command line, runs one subcommand, turns an error into one sentence.

use std::process::ExitCode;

fn main() -> ExitCode {
    keel::cli::leave_quietly_without_reader();
    match keel::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
