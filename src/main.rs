//! The `keel` program: reads the command line, runs one subcommand, turns an error into one sentence.

use std::process::ExitCode;

/// The exit status of a program whose reader went away: 128 + SIGPIPE.
const READER_GONE: i32 = 141;

fn main() -> ExitCode {
    // `println!` panics when the reader of a pipe has gone, for example `keel plan | head`. That is no defect.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to std") {
            std::process::exit(READER_GONE);
        }
        report(panic);
    }));
    match keel::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}
