//! The report on the kernels as a program: `cargo run --example kernel-report -- --help`. An example, because examples are
//! built with the tests and never into the product.

use std::process::ExitCode;

fn main() -> ExitCode {
    match keel_kernel_report::command::run(std::env::args_os(), &mut std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}
