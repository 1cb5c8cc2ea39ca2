//! The `keel` program: reads the command line, runs one subcommand, turns an error into one sentence.

use std::io::ErrorKind;
use std::process::ExitCode;

use keel::error::Error;

/// The exit status of a program whose reader went away: 128 + SIGPIPE.
const READER_GONE: u8 = 141;

fn main() -> ExitCode {
    // `println!` panics when the reader of a pipe has gone, for example `keel plan | head`. That is no defect.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to std") {
            std::process::exit(READER_GONE.into());
        }
        report(panic);
    }));
    match keel::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has had enough.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => {
            ExitCode::from(READER_GONE)
        }
        // Not an error: it was asked for.
        Err(ref problem @ Error::Interrupted { code, .. }) => {
            eprintln!("{problem}");
            ExitCode::from(code)
        }
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}
