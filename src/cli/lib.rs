//! The command line. One file a subcommand; each turns arguments into calls of the floors below and prints.
#![deny(unsafe_code)]

mod ablate;
mod caption;
mod data;
mod doctor;
mod eval;
mod explain;
mod export;
mod failure;
mod features;
mod inspect;
mod kernels;
mod launched;
mod memory;
mod options;
mod plan;
mod profile;
mod report;
mod run_data;
mod serve;
mod shell;
mod terminal;
mod train;
mod values;

use std::fmt::Display;
use std::io::Write;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use failure::Failure;
use keel_base::error::{Error, Result};
use keel_train::Signals;
pub use memory::EndsWithoutMemory;
use options::{ComputeArgs, DataArgs, RecipeArgs, WeightsArgs, announce, heading};

/// Trains visual backbones for multimodal language models by gradual feature refinement.
#[derive(Debug, Parser)]
#[command(
    name = "keel",
    version,
    about,
    arg_required_else_help = true,
    after_help = failure::EXIT_CODES
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model by a recipe, stage by stage, with an evaluation after each.
    Train(Box<train::TrainArgs>),
    /// Show the memory and the compute of every stage without running it.
    Plan(plan::PlanArgs),
    /// Time one training step, op by op.
    Profile(profile::ProfileArgs),
    /// Evaluate a checkpoint: the stage table, single metrics, or a benchmark file.
    Eval(eval::EvalArgs),
    /// Write a run's report as one HTML page, or compare several runs.
    Report(report::ReportArgs),
    /// Compare training strategies at equal compute over several seeds.
    Ablate(ablate::AblateArgs),
    /// Describe an image, or answer a question about it.
    Caption(caption::CaptionArgs),
    /// Answer questions over HTTP, for clients of OpenAI's chat completions and on a page of its own.
    Serve(serve::ServeArgs),
    /// Look at training data: show samples, check your own data, write checksums of shards.
    Data(data::DataArgs),
    /// Export the vision tower, the language model or the whole model as a Hugging Face folder.
    Export(export::ExportArgs),
    /// Write what the vision tower of a Hugging Face folder makes of images, as an array of numpy's form.
    Features(features::FeaturesArgs),
    /// Show what a Hugging Face folder holds, and whether it can be trained.
    Inspect(inspect::InspectArgs),
    /// List the CUDA kernels, or show what one computes and costs.
    Kernels(kernels::KernelsArgs),
    /// Show what this machine and this build offer, and how to get what is missing.
    Doctor(doctor::DoctorArgs),
    /// Print the completion script of a shell.
    Completions(shell::CompletionsArgs),
    /// Write manual pages.
    Man(shell::ManArgs),
}

/// Prints a line.
///
/// # Errors
/// [`Error::Io`] when nobody reads or the disk behind it is full.
fn print_line(line: impl Display) -> Result<()> {
    writeln!(std::io::stdout(), "{line}")
        .map_err(|problem| Error::io("standard output", "write", problem))
}

/// Prints what a device had to say on standard error, apart from what was asked for.
fn print_warnings(warnings: &[String]) {
    for line in warnings {
        // Nobody reads it: no reason to withhold the results too.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// How libraries panic over a thread that the system refuses, or has no stack for.
const WANTED_THREAD: [&str; 3] = [
    "failed to spawn thread",
    "ThreadPoolBuildError",
    "alternative stack",
];

/// Turns what is no defect of the program into what it is, where libraries know only panics and signals. `println!` that finds
/// no reader, as in `keel plan | head`, ends it without a word. A thread that cannot be had ends it with a sentence, whichever
/// thread wanted it: others may wait for that one. A file that grows beyond a limit is an error of its write.
pub fn end_in_sentences() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to std") {
            std::process::exit(failure::READER_GONE.into());
        }
        let is_thread = |sign: &&str| message.contains(*sign);
        if WANTED_THREAD.iter().any(is_thread) {
            let _ = writeln!(
                std::io::stderr(),
                "error: threads: the system refused one more; end other programs, raise its limits (ulimit -u, ulimit -v), or choose fewer with --threads"
            );
            std::process::exit(failure::FAILED.into());
        }
        report(panic);
    }));
    Signals::heed_file_size_limits();
}

/// The command line's description. Every option that takes a value takes negative numbers too, so that `--seed -1` is refused
/// as a seed and not as an option called -1.
fn description() -> clap::Command {
    fn with_negative_numbers(command: clap::Command) -> clap::Command {
        command
            .mut_args(|arg| {
                if explain::takes_value(&arg) {
                    arg.allow_negative_numbers(true)
                } else {
                    arg
                }
            })
            .mut_subcommands(with_negative_numbers)
    }
    with_negative_numbers(Cli::command())
}

/// Reads the command line. Help and version are printed, and end the program.
fn parse(description: &clap::Command) -> Result<Cli, Failure> {
    let matches = description.clone().try_get_matches();
    let read = matches.and_then(|matches| Cli::from_arg_matches(&matches));
    read.map_err(|problem| {
        let args: Vec<String> = std::env::args_os()
            .skip(1)
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect();
        match explain::explain(&problem, description, &args) {
            Some(text) => Failure::usage(text),
            None => problem.exit(),
        }
    })
}

/// Reads the command line and runs it.
///
/// # Errors
/// Whatever the subcommand reports.
pub fn run() -> Result<(), Failure> {
    let description = description();
    match parse(&description)?.command {
        Command::Train(args) => train::run(&args)?,
        Command::Plan(args) => plan::run(&args)?,
        Command::Profile(args) => profile::run(&args)?,
        Command::Eval(args) => eval::run(&args)?,
        Command::Report(args) => report::run(&args)?,
        Command::Ablate(args) => ablate::run(&args)?,
        Command::Caption(args) => caption::run(&args)?,
        Command::Serve(args) => serve::run(&args)?,
        Command::Data(args) => data::run(&args)?,
        Command::Export(args) => export::run(&args)?,
        Command::Features(args) => features::run(&args)?,
        Command::Inspect(args) => inspect::run(&args)?,
        Command::Kernels(args) => kernels::run(&args)?,
        Command::Doctor(args) => doctor::run(&args)?,
        Command::Completions(args) => shell::completions(&args, description)?,
        Command::Man(args) => shell::man(&args, description)?,
    }
    Ok(())
}
