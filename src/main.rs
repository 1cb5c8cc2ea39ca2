//! The `keel` program: reads the command line, runs one subcommand, turns an error into one sentence.

use std::process::ExitCode;

fn main() -> ExitCode {
    match keel::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}
