//! `cargo tool`: the chores of this repository, runnable when the engine itself does not build.

mod bundle;
mod check;
mod emoji;
mod kernels;
mod nvcc;
mod palette;
mod ptx;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some("bundle") => bundle::run(&arguments[1..]),
        Some("check") => check::run(&arguments[1..]),
        Some("emoji") => emoji::run(&arguments[1..]),
        Some("kernels") => kernels::run(&arguments[1..]),
        Some("nvcc") => nvcc::run(&arguments[1..]),
        Some("ptx") => ptx::run(&arguments[1..]),
        Some("reference") => tools::reference::run(&arguments[1..]),
        _ => {
            eprintln!(
                "usage: cargo tool bundle [--profile NAME] | check | emoji | kernels [--write] | nvcc | ptx [--all | --record FILE | --counts [--write]] | reference [--write]"
            );
            std::process::exit(2);
        }
    };
    if let Err(problem) = outcome {
        eprintln!("cargo tool: {problem}");
        std::process::exit(1);
    }
}
