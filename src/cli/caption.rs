//! `keel caption`.

use std::path::PathBuf;

use clap::Args;

use super::{ComputeArgs, print_line};
use crate::error::Result;
use crate::train::LoadedRun;

/// Options of `keel caption`.
#[derive(Debug, Args)]
pub(super) struct CaptionArgs {
    /// The run's folder, or one checkpoint of it.
    run: PathBuf,
    /// A PNG, JPEG or WebP image.
    image: PathBuf,
    /// What to ask about it; without a question the model describes it.
    #[arg(long, value_name = "TEXT", default_value = "")]
    question: String,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(super) fn run(args: &CaptionArgs) -> Result<()> {
    let run = LoadedRun::open(&args.run, &args.compute.choose()?)?;
    print_line(run.ask(&args.image, &args.question)?)
}
