//! `keel train`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;

use super::terminal::Terminal;
use super::{
    ComputeArgs, DataArgs, RecipeArgs, WeightsArgs, announce, at_least_one, open_pairs,
    parse_bytes, parse_room, print_line,
};
use keel_base::error::Result;
use keel_engine::program::bytes;
use keel_report::stage_table;
use keel_train::{LocalDisk, PublishedWeights, Recipe, Signals, TrainOptions, Trainer, recipe_of};
use keel_weights::Folder;

/// Options of `keel train`.
#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// The same flow with an eighth of the steps: under two minutes for the default recipe.
    #[arg(long)]
    quick: bool,
    /// Prints settings and memory, trains nothing.
    #[arg(long)]
    dry_run: bool,
    /// Ends each stage after this many steps at the latest.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_steps: Option<u64>,
    /// Trains each stage on its first batch over and over: the loss must fall.
    #[arg(long)]
    overfit_one_batch: bool,
    /// The seed of everything random, in place of the recipe's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: Option<u64>,
    /// The run's folder; the next free one under runs/ by default.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continues the run in this folder from its newest checkpoint, by the recipe in the folder; repeat the other options.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["recipe", "out", "seed", "quick", "vision", "language"])]
    resume: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    weights: WeightsArgs,
    /// Memory for your pairs' pictures, decoded and scaled to the tower, so that they need not be again when they come next; 0
    /// for none. Beside what --memory-limit counts.
    #[arg(long, value_name = "BYTES", value_parser = parse_room, default_value = "256M")]
    keep_pictures: u64,
    /// The most memory for a step's activations, for example 512M; met by computing some of them twice.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory_budget: Option<u64>,
    /// The most memory that a stage may take in all, parameters, gradients, moments and activations, for example 2G. More is
    /// refused before the first step, with settings that fit.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory_limit: Option<u64>,
    /// Divides the batches of stages that take more than --memory-limit into the largest micro-batches that fit; their
    /// gradients are gathered until the batch is whole.
    #[arg(long, requires = "memory_limit", conflicts_with = "resume")]
    fit: bool,
    /// Steps between checkpoints inside a stage, written while training goes on; 0 for none. One follows every stage.
    #[arg(long, value_name = "N", default_value_t = 500)]
    save_every: u64,
    /// Checkpoints that are kept inside a stage, the newest ones, and beside them the one at which the losses of late were
    /// lowest; those that follow a stage are all kept.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    keep: u64,
    /// Keeps a checkpoint at every multiple of so many steps inside a stage for good; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_every: u64,
    /// Standard deviations above the median of late losses from which a loss is a spike; after five bad steps in a row the run
    /// goes back and leaves their data out. 0 calls no spikes.
    #[arg(long, value_name = "X", default_value_t = 10.0, value_parser = parse_threshold)]
    spike_threshold: f64,
    /// Does every Nth step twice and compares the bits: finds a machine that computes wrongly now and then. 0 for none.
    #[arg(long, value_name = "N", default_value_t = 0)]
    recheck_every: u64,
    /// Pictures of each set that stages are evaluated on, at most: 200, or 100 with --quick.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    evaluation_pictures: Option<u64>,
    /// Leaves out the evaluation after each stage.
    #[arg(long, conflicts_with = "evaluation_pictures")]
    no_evaluation: bool,
}

fn parse_threshold(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number),
        _ => Err("wanted a number from 0 up".into()),
    }
}

/// How much shorter a quick run is.
const QUICK: u64 = 8;

pub(super) fn run(args: &TrainArgs) -> Result<()> {
    let start = Instant::now();
    let compute = args.compute.choose()?;
    let mut recipe = match &args.resume {
        Some(run) => {
            let path = recipe_of(run, "--resume")?;
            Recipe::load(&path.to_string_lossy(), &args.recipe.sets)?
        }
        None => Recipe::load(&args.recipe.recipe, &args.recipe.sets)?,
    };
    if let Some(seed) = args.seed {
        recipe.seed = seed;
    }
    let mut evaluation_size = 200;
    if args.quick {
        evaluation_size = 100;
        for stage in &mut recipe.stages {
            stage.steps = stage.steps.map(|steps| steps.div_ceil(QUICK));
            stage.epochs = stage.epochs.map(|epochs| epochs / QUICK as f64);
        }
    }
    if let Some(pictures) = args.evaluation_pictures {
        evaluation_size = pictures as usize;
    }
    let weights = args.weights.over(PublishedWeights::default());
    if !weights.is_empty() {
        weights.check_sets(&args.recipe.sets)?;
        let left_out = recipe.begin_from(&weights)?;
        if !left_out.is_empty() {
            let stages = left_out.join(", ");
            print_line(format!(
                "left out: {stages}, which stand in for the weights given"
            ))?;
        }
        let tiles = match &weights.vision {
            Some(folder) => Folder::open(folder)?.most_tiles(),
            None => 0,
        };
        if tiles > 0 && recipe.most_tiles() == 0 {
            print_line(format!(
                "the folder's model is shown pictures in up to {tiles} tiles; here they stay whole, unless a stage is given tiles: --set stage.NAME.tiles={tiles}"
            ))?;
        }
    }
    let pairs = open_pairs(&args.data.specs)?;
    if let (true, Some(limit)) = (args.fit, args.memory_limit) {
        for set in recipe.fit(compute.machine(), limit, args.memory_budget)? {
            print_line(format!("set to fit {}: {set}", bytes(limit)))?;
        }
    }
    announce(&compute)?;
    print_line(format!("recipe: {} (seed {})", recipe.name, recipe.seed))?;
    if args.dry_run {
        print_line(format!("\n{}", recipe.to_toml()))?;
        let plans = super::plan::Plans {
            recipe: &recipe,
            batch: None,
            machine: compute.machine(),
            memory_budget: args.memory_budget,
            memory_limit: args.memory_limit,
        };
        return plans.print(None, None);
    }
    let options = TrainOptions {
        compute,
        out: args.out.clone(),
        resume: args.resume.clone(),
        max_steps: args.max_steps,
        overfit_one_batch: args.overfit_one_batch,
        memory_budget: args.memory_budget,
        memory_limit: args.memory_limit,
        save_every: args.save_every,
        spike_threshold: args.spike_threshold,
        recheck_every: args.recheck_every,
        evaluation_size,
        evaluate: !args.no_evaluation,
        keep: args.keep,
        keep_every: args.keep_every,
        keep_pictures: args.keep_pictures,
        observer: Arc::new(Terminal::default()),
        disk: Arc::new(LocalDisk),
        signals: Signals::heed()?,
    };
    let mut trainer = Trainer::new(recipe, options, pairs)?;
    print_line(format!("run: {}", trainer.folder().display()))?;
    let outcome = trainer.run();
    // A run that ends early leaves its report too; what ended it is said first.
    let report = super::report::write_report(trainer.folder());
    let evaluations = outcome?;
    if !evaluations.is_empty() {
        let table = stage_table(&evaluations);
        trainer.note(&format!("\n{table}"))?;
    }
    let report = report?;
    let seconds = start.elapsed().as_secs();
    let folder = trainer.folder().display().to_string();
    trainer.note(&format!(
        "{} min {} s; everything is in {folder}; look at {}\nask about an image: keel caption {folder} IMAGE",
        seconds / 60,
        seconds % 60,
        report.display(),
    ))
}
