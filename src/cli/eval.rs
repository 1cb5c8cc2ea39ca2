//! `keel eval`.

use std::path::PathBuf;

use clap::Args;

use super::{ComputeArgs, announce, at_least_one, print_line};
use crate::error::Result;
use crate::report::stage_table;
use crate::train::LoadedRun;

/// Options of `keel eval`.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// The run's folder, or one checkpoint of it.
    run: PathBuf,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Pictures of each set, at most.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = at_least_one)]
    pictures: u64,
    /// Prints the numbers as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &EvalArgs) -> Result<()> {
    let compute = args.compute.choose()?;
    let run = LoadedRun::open(&args.run, &compute)?;
    let evaluation = run.evaluate(args.pictures as usize)?;
    if args.json {
        let text = serde_json::to_string_pretty(&evaluation);
        return print_line(text.expect("an evaluation is plain data"));
    }
    announce(&compute)?;
    print_line(format!("checkpoint: {}\n", run.path().display()))?;
    print_line(stage_table(&[evaluation]))
}
