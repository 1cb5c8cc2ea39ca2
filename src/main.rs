//! The `keel` program: reads the command line, runs one subcommand, turns an error into one sentence.

use std::process::ExitCode;

use keel::cli::EndsWithoutMemory;

#[global_allocator]
static ALLOCATOR: EndsWithoutMemory = EndsWithoutMemory;

fn main() -> ExitCode {
    keel::cli::end_in_sentences();
    match keel::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
