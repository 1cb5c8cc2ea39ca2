//! `keel eval`.

use std::path::PathBuf;

use clap::Args;

use super::ComputeArgs;
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
    /// Pictures of each set.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pictures: usize,
    /// Prints the numbers as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &EvalArgs) -> Result<()> {
    let threads = args.compute.threads()?;
    let run = LoadedRun::open(&args.run, threads)?;
    let evaluation = run.evaluate(args.pictures)?;
    if args.json {
        let text = serde_json::to_string_pretty(&evaluation);
        println!("{}", text.expect("an evaluation is plain data"));
        return Ok(());
    }
    args.compute.announce(threads);
    println!("checkpoint: {}\n", run.path().display());
    println!("{}", stage_table(&[evaluation]));
    Ok(())
}
