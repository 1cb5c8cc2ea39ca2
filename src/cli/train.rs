//! `keel train`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;

use super::launched;
use super::run_data::RunData;
use super::terminal::Terminal;
use super::values::{
    Validate, at_least_one, evaluation_images, named, seed, size, size_or_none, threshold,
    validate, whole,
};
use super::{
    ComputeArgs, DataArgs, Failure, RecipeArgs, WeightsArgs, announce, heading, print_line,
};
use keel_base::clock::{Clock, Stopwatch};
use keel_base::error::{Error, Result};
use keel_base::units::{bytes, duration};
use keel_data::pairs::PairSource;
use keel_engine::executor::SelectedDevice;
use keel_ranks::join::Joined;
use keel_ranks::launch::{Launcher, Place, RanksFrom};
use keel_ranks::{Seat, local};
use keel_report::{RunRecord, refinement_lines, stage_table, validation_table};
use keel_train::{
    Beginning, LocalDisk, PublishedWeights, Recipe, Signals, TrainOptions, Trainer, recipe_in,
};
use keel_weights::Folder;

/// Options of `keel train`.
#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Run an eighth of the steps: under two minutes for the default recipe.
    #[arg(long, help_heading = heading::RUN)]
    quick: bool,
    /// Train on N ranks, threads of this process that share its cores: data-parallel training, to try it out on one machine.
    #[arg(long, value_name = "N", value_parser = at_least_one, default_value = "1", conflicts_with = "fit",
        help_heading = heading::RUN)]
    ranks: u64,
    /// The launcher whose environment says how many ranks there are and which this process is; none for one rank [default: whichever
    /// started it].
    #[arg(long, value_name = "LAUNCHER", value_parser = named(&RanksFrom::CHOICES, RanksFrom::name), help_heading = heading::RANKS)]
    ranks_from: Option<RanksFrom>,
    /// How long another rank may be silent before the run ends, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = at_least_one, default_value = "15", help_heading = heading::RANKS)]
    patience: u64,
    /// Print the settings and the memory plan, train nothing.
    #[arg(long, help_heading = heading::RUN)]
    dry_run: bool,
    /// Random seed, in place of the recipe's.
    #[arg(long, value_name = "N", value_parser = seed, help_heading = heading::RUN)]
    seed: Option<u64>,
    /// Folder of the run, new or empty [default: the next free runs/NAME-N].
    #[arg(long, value_name = "DIR", help_heading = heading::RUN)]
    out: Option<PathBuf>,
    /// Continue the run in this folder from its newest checkpoint, with the recipe stored there; repeat the other options.
    #[arg(long, value_name = "RUN", help_heading = heading::RUN,
        conflicts_with_all = ["recipe", "out", "seed", "quick", "vision", "language", "teacher", "vision_adapter", "language_adapter"])]
    resume: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    /// Memory for a cache of decoded and resized images; 0 disables it. Not counted by --memory-limit.
    #[arg(long, value_name = "BYTES", value_parser = size_or_none, default_value = "256M", help_heading = heading::DATA)]
    image_cache: u64,
    /// Validate stages on held-out samples: a share of --data, split off by the samples' keys (2%), or data of their own. Before the
    /// first step of a stage, after its last one, and in between as its `validation` in the recipe says.
    #[arg(long, value_name = "SHARE|SPEC", value_parser = validate, help_heading = heading::DATA)]
    validate: Option<Validate>,
    #[command(flatten)]
    weights: WeightsArgs,
    /// Upper limit on the memory of a stage: parameters, gradients, optimizer state and activations, for example 2G. A stage
    /// that needs more is refused before the first step, with settings that fit.
    #[arg(long, value_name = "BYTES", value_parser = size, help_heading = heading::MEMORY)]
    memory_limit: Option<u64>,
    /// Fit stages into --memory-limit by gradient accumulation over the largest micro-batches that fit.
    #[arg(long, requires = "memory_limit", conflicts_with = "resume", help_heading = heading::MEMORY)]
    fit: bool,
    /// Upper limit on the activations of a step, for example 512M, met by recomputing some of them in the backward pass.
    #[arg(long, value_name = "BYTES", value_parser = size, help_heading = heading::MEMORY)]
    memory_budget: Option<u64>,
    /// Steps between checkpoints within a stage, written while training goes on; 0 writes none. Every stage ends with one.
    #[arg(long, value_name = "N", value_parser = whole, default_value = "500", help_heading = heading::SAFETY)]
    save_every: u64,
    /// Checkpoints to keep within a stage: the N newest, and the best recent one by loss. Those at the end of a stage are
    /// always kept.
    #[arg(long, value_name = "N", value_parser = at_least_one, default_value = "3", help_heading = heading::SAFETY)]
    keep: u64,
    /// Also keep every checkpoint at a multiple of N steps; 0 keeps no others.
    #[arg(long, value_name = "N", value_parser = whole, default_value = "0", help_heading = heading::SAFETY)]
    keep_every: u64,
    /// Robust z-score from which a loss counts as a spike; 0 disables spike detection. After five consecutive bad steps the run
    /// rolls back to the last good state and skips their batches.
    #[arg(long, value_name = "X", value_parser = threshold, default_value = "10", help_heading = heading::SAFETY)]
    spike_threshold: f64,
    /// Images per evaluation set after each stage, at most [default: 200, or 100 with --quick].
    #[arg(long, value_name = "N", value_parser = evaluation_images, help_heading = heading::EVALUATION)]
    evaluation_images: Option<u64>,
    /// Skip the evaluation after each stage.
    #[arg(long, conflicts_with = "evaluation_images", help_heading = heading::EVALUATION)]
    no_evaluation: bool,
    /// End each stage after at most N steps.
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = heading::EXPERT)]
    max_steps: Option<u64>,
    /// Train each stage on its first batch over and over: its loss must fall.
    #[arg(long, help_heading = heading::EXPERT)]
    overfit_one_batch: bool,
    /// With --resume: go on although the data, or the stages up to the one under way, are not those of the checkpoint.
    #[arg(long, requires = "resume", help_heading = heading::EXPERT)]
    accept_changes: bool,
    /// Compute every Nth step twice and compare bit by bit, to find faulty hardware; 0 disables the check.
    #[arg(long, value_name = "N", value_parser = whole, default_value = "0", help_heading = heading::EXPERT)]
    recheck_every: u64,
}

/// How much shorter a quick run is.
const QUICK: u64 = 8;

impl TrainArgs {
    /// An option that is given and means nothing to one of several processes.
    fn refused_of_launched(&self) -> Option<&'static str> {
        let options = [
            ("--ranks", self.ranks > 1),
            ("--fit", self.fit),
            ("--dry-run", self.dry_run),
        ];
        let given = options.into_iter().find(|(_, is_given)| *is_given);
        given.map(|(option, _)| option)
    }

    /// The settings of the run, which begin from the weights that were given, and the images of each evaluation set. Says
    /// what the weights change.
    fn recipe(&self) -> Result<(Recipe, usize)> {
        let weights = self.weights.over(PublishedWeights::default());
        let sets = &self.recipe.sets;
        let (mut recipe, begun) = match &self.resume {
            Some(_) if !weights.is_empty() => {
                let want = "none of them beside --resume: a run goes on from its own weights";
                return Err(Error::setting("--vision and --language", want, "both"));
            }
            Some(run) => (recipe_in(run, sets)?, Beginning::default()),
            None => Recipe::load_from(&self.recipe.recipe, sets, &weights)?,
        };
        if let Some(seed) = self.seed {
            recipe.seed = seed;
        }
        if self.quick {
            for stage in &mut recipe.stages {
                stage.steps = stage.steps.map(|steps| steps.div_ceil(QUICK));
                stage.epochs = stage.epochs.map(|epochs| epochs / QUICK as f64);
            }
        }
        self.tell_of_weights(&weights, &begun, &recipe)?;
        let by_default = if self.quick { 100 } else { 200 };
        let images = self.evaluation_images.unwrap_or(by_default);
        Ok((recipe, images as usize))
    }

    /// Says what it changes that the recipe begins from `weights`; nothing where there are none.
    fn tell_of_weights(
        &self,
        weights: &PublishedWeights,
        begun: &Beginning,
        recipe: &Recipe,
    ) -> Result<()> {
        if !begun.left_out.is_empty() {
            let stages = begun.left_out.join(", ");
            print_line(format!("left out: {stages}, replaced by the weights given"))?;
        }
        for note in &begun.notes {
            print_line(note)?;
        }
        let tiles = match &weights.vision {
            Some(folder) => Folder::open(folder)?.most_tiles(),
            None => 0,
        };
        if tiles > 0 && recipe.most_tiles() == 0 {
            print_line(format!(
                "the folder's model is shown images in up to {tiles} tiles; here they stay whole, unless a stage is given max_tiles: --set stage.NAME.max_tiles={tiles}"
            ))?;
        }
        Ok(())
    }

    /// The samples to train on and those to validate on.
    fn data(&self) -> Result<RunData> {
        RunData::open(
            &self.data.specs,
            self.data.max_bad_samples,
            self.validate.as_ref(),
        )
    }

    /// How the run is run; from here on the process's signals are the run's.
    fn options(&self, compute: SelectedDevice, evaluation_size: usize) -> Result<TrainOptions> {
        Ok(TrainOptions {
            compute,
            out: self.out.clone(),
            resume: self.resume.clone(),
            max_steps: self.max_steps,
            overfit_one_batch: self.overfit_one_batch,
            accept_changes: self.accept_changes,
            memory_budget: self.memory_budget,
            memory_limit: self.memory_limit,
            save_every: self.save_every,
            spike_threshold: self.spike_threshold,
            recheck_every: self.recheck_every,
            evaluation_size,
            evaluate: !self.no_evaluation,
            held_out: None,
            keep: self.keep,
            keep_every: self.keep_every,
            observer: Arc::new(Terminal::default()),
            image_cache: self.image_cache,
            clock: Clock::default(),
            disk: Arc::new(LocalDisk),
            signals: Signals::heed()?,
            seat: Seat::default(),
        })
    }
}

pub(super) fn run(args: &TrainArgs) -> Result<(), Failure> {
    let under_way = Clock::default().start();
    let place = launched::place(args.ranks_from)?;
    if place.ranks > 1 {
        return run_launched(args, &place, &under_way);
    }
    let ranks = args.ranks as usize;
    let compute = args.compute.choose_for(ranks)?;
    let (mut recipe, evaluation_size) = args.recipe()?;
    let RunData { pairs, held_out } = args.data()?;
    if let (true, Some(limit)) = (args.fit, args.memory_limit) {
        for set in recipe.fit(compute.compile_target(), limit, args.memory_budget)? {
            print_line(format!("set to fit {}: {set}", bytes(limit)))?;
        }
    }
    announce(&compute)?;
    print_line(format!("recipe: {} (seed {})", recipe.name, recipe.seed))?;
    if args.dry_run {
        print_line(format!("\n{}", recipe.to_toml()))?;
        let plans = super::plan::Plans {
            recipe: &recipe.of_rank(ranks)?,
            batch: None,
            compile_target: compute.compile_target(),
            memory_budget: args.memory_budget,
            memory_limit: args.memory_limit,
            validates: args.validate.is_some(),
        };
        return Ok(plans.print(None, None)?);
    }
    let options = TrainOptions {
        held_out,
        ..args.options(compute, evaluation_size)?
    };
    if ranks == 1 {
        return train(recipe, options, pairs, &under_way);
    }
    print_line(format!("ranks: {ranks}, threads of this process"))?;
    train_on_ranks(ranks, &recipe, &options, pairs, &under_way)
}

/// Trains as the rank that a launcher says this process is. Rank 0 prints.
fn run_launched(args: &TrainArgs, place: &Place, under_way: &Stopwatch) -> Result<(), Failure> {
    if let Some(option) = args.refused_of_launched() {
        let launcher = place.launcher.map_or("a launcher", Launcher::name);
        let found = format!("it where {launcher} started {} ranks", place.ranks);
        return Err(Error::setting(option, "no such option, or --ranks-from none", found).into());
    }
    let device = args.compute.choose()?.device();
    let silence = Duration::from_secs(args.patience);
    let joined = launched::take_seat(args.ranks_from, device, silence)?;
    let outcome = train_launched(args, &joined, under_way);
    launched::leave(&joined, outcome)
}

fn train_launched(args: &TrainArgs, joined: &Joined, under_way: &Stopwatch) -> Result<(), Failure> {
    let compute = args.compute.choose_with(launched::threads(joined))?;
    let compute = compute.for_rank(joined.place.local_rank)?;
    let (recipe, evaluation_size) = args.recipe()?;
    let RunData { pairs, held_out } = args.data()?;
    launched::check(
        joined,
        &recipe,
        &compute,
        pairs.as_deref(),
        held_out.as_ref(),
    )?;
    let is_first = joined.seat.world().is_first();
    if is_first {
        announce(&compute)?;
        print_line(launched::described(joined))?;
        print_line(format!("recipe: {} (seed {})", recipe.name, recipe.seed))?;
    }
    let options = TrainOptions {
        seat: joined.seat.clone(),
        held_out,
        ..args.options(compute, evaluation_size)?
    };
    if is_first {
        return train(recipe, options, pairs, under_way);
    }
    let mut trainer = Trainer::new(recipe, options, pairs)?;
    trainer.run().map(drop).map_err(Failure::while_running)
}

/// The stack of a rank's thread: that of a process's first thread.
const STACK: usize = 8 << 20;

/// Trains on threads as ranks. Where one of them fails, the others end too, and what it failed of is returned.
fn train_on_ranks(
    ranks: usize,
    recipe: &Recipe,
    options: &TrainOptions,
    pairs: Option<Arc<dyn PairSource>>,
    under_way: &Stopwatch,
) -> Result<(), Failure> {
    let first = Mutex::new(None);
    let failed = |seat: &Seat, failure: Failure| {
        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
        // Kept before the others hear of it, and end because of it.
        let failure = first.get_or_insert(failure);
        seat.votes().give_up(failure.text());
    };
    std::thread::scope(|scope| -> Result<(), Failure> {
        for seat in local::seats(ranks) {
            let (recipe, pairs, failed) = (recipe.clone(), pairs.clone(), &failed);
            let options = TrainOptions {
                seat: seat.clone(),
                ..options.clone()
            };
            let of_rank = move || {
                let outcome = if seat.world().is_first() {
                    train(recipe, options, pairs, under_way)
                } else {
                    let trained = Trainer::new(recipe, options, pairs);
                    trained
                        .map_err(Failure::from)
                        .and_then(|mut trainer| trainer.run().map_err(Failure::while_running))
                        .map(drop)
                };
                if let Err(failure) = outcome {
                    failed(&seat, failure);
                }
            };
            let thread = std::thread::Builder::new().stack_size(STACK);
            let begun = thread.spawn_scoped(scope, of_rank);
            begun.map_err(|problem| {
                Error::stopped("the thread of a rank", problem, "choose fewer --ranks")
            })?;
        }
        Ok(())
    })?;
    let first = first.into_inner().unwrap_or_else(PoisonError::into_inner);
    first.map_or(Ok(()), Err)
}

/// Trains, writes the report and says where everything is.
fn train(
    recipe: Recipe,
    options: TrainOptions,
    pairs: Option<Arc<dyn PairSource>>,
    under_way: &Stopwatch,
) -> Result<(), Failure> {
    let mut trainer = Trainer::new(recipe, options, pairs)?;
    print_line(format!("run: {}", trainer.folder().display()))?;
    let outcome = trainer.run();
    // A run that ends early leaves its report too; what ended it is said first.
    let report = super::report::write_report(trainer.folder());
    let evaluations = outcome.map_err(Failure::while_running)?;
    if !evaluations.is_empty() {
        let table = stage_table(&evaluations);
        trainer.note(&format!("\n{table}"))?;
    }
    let record = RunRecord::open(trainer.folder()).map_err(Failure::while_running)?;
    for line in refinement_lines(&record.recipe, &record.evaluations) {
        trainer.note(&format!("\n{line}"))?;
    }
    if let Some(table) = validation_table(&record) {
        trainer.note(&format!("\n{table}"))?;
    }
    let report = report.map_err(Failure::while_running)?;
    let seconds = under_way.elapsed().as_secs();
    let folder = trainer.folder().display().to_string();
    trainer.note(&format!(
        "{}; everything is in {folder}; look at {}\nask about an image: keel caption {folder} IMAGE",
        duration(seconds),
        report.display(),
    ))?;
    Ok(())
}
