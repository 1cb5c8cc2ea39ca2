//! The command line. One file a subcommand; each turns arguments into calls of the floors below and prints.

mod ablate;
mod caption;
mod data;
mod doctor;
mod eval;
mod export;
mod inspect;
mod kernels;
mod plan;
mod profile;
mod report;
mod train;

use std::fmt::Display;
use std::io::Write;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::error::{Error, Result};
use crate::executor::{self, Choice};
use crate::tensor::DType;

/// Trains visual backbones for multimodal language models by gradual feature refinement.
#[derive(Debug, Parser)]
#[command(name = "keel", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the stages of a recipe and prints what each was worth.
    Train(train::TrainArgs),
    /// Prints the memory of every stage before anything runs.
    Plan(plan::PlanArgs),
    /// Times one step op by op.
    Profile(profile::ProfileArgs),
    /// Measures a run's newest checkpoint.
    Eval(eval::EvalArgs),
    /// Writes a run's report, or one of several runs side by side, as one HTML page.
    Report(report::ReportArgs),
    /// Compares ways of refining at equal compute, over several seeds.
    Ablate(ablate::AblateArgs),
    /// Answers about an image.
    Caption(caption::CaptionArgs),
    /// Shows the training data.
    Data(data::DataArgs),
    /// Writes a run's tower, language model or both as a Hugging Face folder.
    Export(export::ExportArgs),
    /// Says what a Hugging Face folder holds, and whether Keel can train it.
    Inspect(inspect::InspectArgs),
    /// Prints what is known of the CUDA kernels without running them.
    Kernels(kernels::KernelsArgs),
    /// Says what this machine and this build have, and what each missing thing would give.
    Doctor(doctor::DoctorArgs),
}

/// Which executor runs programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Device {
    /// The fastest there is.
    Auto,
    /// The processor.
    Cpu,
    /// The CUDA kernels on their emulator: slow, for proof.
    Simt,
    /// A GPU.
    Cuda,
}

/// How matrices among the parameters, and what is computed from them, are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Precision {
    /// Single precision.
    F32,
    /// bfloat16, with masters, moments, sums and losses in f32.
    Bf16,
}

impl From<Precision> for DType {
    fn from(precision: Precision) -> DType {
        match precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
        }
    }
}

/// Options of every command that computes.
#[derive(Clone, Debug, Args)]
struct ComputeArgs {
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    device: Device,
    /// Threads that compute; all cores by default.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// How numbers are stored: bf16 by default on a GPU and its emulator, f32 on the processor.
    #[arg(long, value_enum)]
    precision: Option<Precision>,
}

/// The most threads that may be asked for.
const MOST_THREADS: usize = 1024;

impl ComputeArgs {
    /// The number of threads.
    ///
    /// # Errors
    /// [`Error::Setting`] for 0 threads or absurdly many.
    fn threads(&self) -> Result<usize> {
        match self.threads {
            Some(threads) if !(1..=MOST_THREADS).contains(&threads) => Err(Error::setting(
                "--threads",
                format!("1 to {MOST_THREADS}"),
                threads,
            )),
            Some(threads) => Ok(threads),
            None => Ok(usable_cores()),
        }
    }

    /// What computes.
    ///
    /// # Errors
    /// As [`Choice::new`] and [`ComputeArgs::threads`].
    fn choose(&self) -> Result<Choice> {
        let device = match self.device {
            Device::Auto => executor::Device::Auto,
            Device::Cpu => executor::Device::Cpu,
            Device::Simt => executor::Device::Simt,
            Device::Cuda => executor::Device::Cuda,
        };
        Choice::new(device, self.threads()?, self.precision.map(DType::from))
    }
}

/// The cores that this process may use.
fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// A number with separators: 309,984,256.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Says in one line what will compute, and why.
///
/// # Errors
/// As [`print_line`].
fn announce(choice: &Choice) -> Result<()> {
    print_line(format!("device: {}", choice.describe()))
}

/// Which recipe, with which changes.
#[derive(Clone, Debug, Args)]
struct RecipeArgs {
    /// A built-in recipe (emoji, tiny, sailvit-large, sailvit-huge) or the path of a TOML file.
    #[arg(long, default_value = "emoji", value_name = "NAME|FILE")]
    recipe: String,
    /// Changes one setting, for example model.vision.depth=4 or stage.fine-grained.steps=100. Repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// Prints a line.
///
/// # Errors
/// [`Error::Io`] when nobody reads or the disk behind it is full.
fn print_line(line: impl Display) -> Result<()> {
    writeln!(std::io::stdout(), "{line}")
        .map_err(|problem| Error::io("standard output", "write", problem))
}

/// A whole number from 1 up.
fn at_least_one(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(number) => Ok(number),
        Err(_) => Err("not a whole number".into()),
    }
}

/// The one of `all` whose name is `text`, or a list of the names.
fn parse_named<T: Copy>(all: &[T], name: fn(T) -> &'static str, text: &str) -> Result<T, String> {
    let found = all.iter().find(|one| name(**one) == text);
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|one| name(*one)).collect();
        format!("wanted one of {}", names.join(", "))
    })
}

/// Bytes from a text such as `512M` or `80G` (powers of 1024).
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" | "kb" => 1024.0,
        "m" | "mib" | "mb" => 1024.0 * 1024.0,
        "g" | "gib" | "gb" => 1024.0 * 1024.0 * 1024.0,
        other => return Err(format!("unknown unit {other}: use K, M or G")),
    };
    let number: f64 = digits
        .trim()
        .parse()
        .map_err(|_| "not a number of bytes".to_owned())?;
    match number > 0.0 && number.is_finite() {
        true => Ok((number * unit) as u64),
        false => Err("must be above 0".to_owned()),
    }
}

/// As [`parse_bytes`], or 0.
fn parse_room(text: &str) -> Result<u64, String> {
    match text.trim() {
        "0" => Ok(0),
        text => parse_bytes(text),
    }
}

/// Reads the command line and runs it.
///
/// # Errors
/// Whatever the subcommand reports.
pub fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Train(args) => train::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Ablate(args) => ablate::run(&args),
        Command::Caption(args) => caption::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    }
}
