//! `keel caption`.

use std::path::PathBuf;

use clap::Args;

use super::{ComputeArgs, print_line, print_warnings};
use keel_base::error::Result;
use keel_data::records::MOST_PICTURES;
use keel_eval::Sampling;
use keel_train::EvalRun;

/// Options of `keel caption`.
#[derive(Debug, Args)]
pub(super) struct CaptionArgs {
    /// The run's folder, or one checkpoint of it.
    run: PathBuf,
    /// PNG, JPEG or WebP images; several where the model was trained on samples of several.
    #[arg(required = true, num_args = 1..=MOST_PICTURES)]
    images: Vec<PathBuf>,
    /// What to ask about them; without a question the model describes them. Of several each stands where the question has
    /// <image>, or all before it.
    #[arg(long, value_name = "TEXT", default_value = "")]
    question: String,
    /// Draws each token at this temperature instead of taking the likeliest.
    #[arg(long, value_name = "T", value_parser = temperature)]
    temperature: Option<f64>,
    /// With --temperature: draws among the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = probability, requires = "temperature")]
    top_p: f64,
    /// With --temperature: the seed of the draws.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "temperature")]
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
    print_line(answer)
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value <= 100.0 => Ok(value),
        _ => Err("must be a number above 0 and at most 100".into()),
    }
}

fn probability(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("must be a number above 0 and at most 1".into()),
    }
}
