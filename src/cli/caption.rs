//! `keel caption`.

use std::path::PathBuf;

use clap::Args;

use super::values::{probability, temperature, whole};
use super::{ComputeArgs, heading, print_line, print_warnings};
use keel_base::error::Result;
use keel_data::records::MOST_IMAGES;
use keel_eval::Sampling;
use keel_train::EvalRun;

/// Options of `keel caption`.
#[derive(Debug, Args)]
pub(super) struct CaptionArgs {
    /// A run's folder (its newest checkpoint answers) or one checkpoint.
    run: PathBuf,
    /// PNG, JPEG or WebP images; several if the model was trained on samples with several.
    #[arg(required = true, num_args = 1..=MOST_IMAGES)]
    images: Vec<PathBuf>,
    /// The question; without one the model describes the image. Several images stand where the question says <image>, or all
    /// before it.
    #[arg(long, value_name = "TEXT", default_value = "", help_heading = heading::RUN)]
    question: String,
    /// Sample at this temperature instead of taking the likeliest token.
    #[arg(long, value_name = "T", value_parser = temperature, help_heading = heading::RUN)]
    temperature: Option<f64>,
    /// Nucleus sampling: sample among the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", default_value = "1", value_parser = probability, requires = "temperature",
        help_heading = heading::RUN)]
    top_p: f64,
    /// Random seed of the sampling.
    #[arg(long, value_name = "N", value_parser = whole, default_value = "0", requires = "temperature",
        help_heading = heading::RUN)]
    seed: u64,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(super) fn run(args: &CaptionArgs) -> Result<()> {
    let run = EvalRun::open(&args.run, &args.compute.choose()?)?;
    let sampling = match args.temperature {
        None => Sampling::Greedy,
        Some(temperature) => Sampling::Random {
            temperature,
            top_p: args.top_p,
            seed: args.seed,
        },
    };
    let answer = run.ask(&args.images, &args.question, sampling)?;
    print_warnings(&run.take_warnings());
    if answer.is_empty() {
        // A bare empty line looks like a program that did not run.
        let note = "the answer is empty: the model ended it with its first token";
        print_warnings(&[note.to_owned()]);
    }
    print_line(answer)
}
