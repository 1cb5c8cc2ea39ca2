//! The command line. One file a subcommand; each turns arguments into calls of the floors below and prints.
#![deny(unsafe_code)]

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
mod terminal;
mod train;

use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand, ValueEnum};

use keel_base::error::{Error, Result};
use keel_data::chat::Layout;
use keel_data::pairs::{PairLimits, PairSource, Pairs};
use keel_engine::executor::{self, Choice};
use keel_engine::tensor::DType;
use keel_train::PublishedWeights;

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

/// Which published weights a model begins from.
#[derive(Clone, Debug, Args)]
struct WeightsArgs {
    /// A Hugging Face folder whose vision tower the run begins from: settings and weights. See keel inspect.
    #[arg(long, value_name = "DIR")]
    vision: Option<PathBuf>,
    /// Side of the pictures in pixels, where it is not the tower's own: its learned positions are scaled to the new grid.
    #[arg(long, value_name = "PIXELS", requires = "vision")]
    image_size: Option<usize>,
    /// A Hugging Face folder whose language model the run begins from, with its tokenizer.json.
    #[arg(long, value_name = "DIR")]
    language: Option<PathBuf>,
    /// The layout of the language model's chats, where its folder does not say: qwen2.5, qwen3, internvl2.5 or sailvl.
    #[arg(long, value_name = "LAYOUT", value_parser = parse_layout, requires = "language")]
    chat: Option<Layout>,
}

impl WeightsArgs {
    /// The weights, those of `plan` where the command line does not say.
    fn over(&self, plan: PublishedWeights) -> PublishedWeights {
        // A size belongs to its tower, a layout to its language model.
        let (vision, image_size) = match &self.vision {
            Some(vision) => (Some(vision.clone()), self.image_size),
            None => (plan.vision, plan.image_size),
        };
        let (language, chat) = match &self.language {
            Some(language) => (Some(language.clone()), self.chat),
            None => (plan.language, plan.chat),
        };
        PublishedWeights {
            vision,
            image_size,
            language,
            chat,
        }
    }
}

/// Which of the user's own pairs are trained on.
#[derive(Clone, Debug, Args)]
struct DataArgs {
    /// Your own pairs: an image folder with captions, WebDataset shards such as pairs-{000..009}.tar, a .json or .jsonl list of
    /// captions or conversations, an InternVL mixture, a .tsv or .csv table. SPEC=2 gives its pairs twice an epoch; may be
    /// given several times. They are the task `pairs` of a recipe's stages.
    #[arg(long = "data", value_name = "SPEC")]
    specs: Vec<String>,
}

/// Opens pairs and says how many there are; none where nothing is named.
///
/// # Errors
/// As [`Pairs::open_all`].
fn open_pairs(specs: &[String]) -> Result<Option<Arc<dyn PairSource>>> {
    if specs.is_empty() {
        return Ok(None);
    }
    let pairs = Pairs::open_all(specs, PairLimits::default())?;
    let left_out = match pairs.left_out() {
        Some(left_out) => format!("; left out {left_out}"),
        None => String::new(),
    };
    let named = specs.join(", ");
    print_line(format!("data: {} pairs of {named}{left_out}", pairs.len()))?;
    Ok(Some(Arc::new(pairs)))
}

fn parse_layout(text: &str) -> Result<Layout, String> {
    parse_named(&Layout::ALL, Layout::name, text)
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
