//! A run from its start to its end: set up, begun or continued, and stage after stage trained, saved and evaluated. What
//! is fixed about it is in run/state.rs, the steps of one stage are in stage/stage_loop.rs, its checkpoints in
//! checkpoint/checkpointer.rs.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::{
    Checkpointer, OptimizerValues, Position, after_stage, begin_stage, newest_valid, restore,
};
use super::evaluate::{evaluation_settings, measure_after};
use super::guard::Guard;
use super::memory_limit::{hold_to_limit, hold_validation_to_limit};
use super::observer::{Evaluated, Event, Observers, RunBegins};
use super::recipe::{Recipe, Stage};
use super::run::{
    InitialWeights, Run, RunFolder, RunInputs, RunRecorder, RunState, TrainOptions, changes,
    moved_stages, told_by_first,
};
use super::stage::StageLoop;
use super::step_program::compile_rank_step;
use super::validation::{ValidationHistory, ValidationPlan};
use super::worlds::eval_suite;
use keel_base::error::{Error, Result};
use keel_data::chat::ChatTokenizer;
use keel_data::image_view::ImageCache;
use keel_data::pairs::PairSource;
use keel_data::task::Task;
use keel_emoji::emoji_set::EmojiSet;
use keel_engine::executor::Executor;
use keel_engine::program::{MemoryReport, Program};
use keel_engine::tape::ParameterLayout;
use keel_eval::{Evaluation, Evaluator, Measurements, Metric};
use keel_model::declare;

/// The part of the memory for images that those of held-out samples get, as its divisor.
const HELD_OUT_CACHE: u64 = 4;

/// A run, ready to be run: what is fixed about it, what moves, and what saves it.
pub struct Trainer {
    run: Run,
    state: RunState,
    checkpoints: Checkpointer,
    /// The checkpoint that the run goes on from.
    start: Option<(Position, PathBuf)>,
    /// What was wrong with checkpoints that are newer than that one.
    passed_over: Vec<String>,
}

/// Where the first stage to be run is taken up.
struct Entry {
    stage: usize,
    step: u64,
    optimizer: Option<OptimizerValues>,
}

impl Trainer {
    /// Sets up a new run, or the continuation of one. A continued run goes by the recipe in its folder.
    ///
    /// # Errors
    /// Everything that can be wrong before the first step.
    pub fn new(
        recipe: Recipe,
        options: TrainOptions,
        pairs: Option<Arc<dyn PairSource>>,
    ) -> Result<Trainer> {
        Trainer::begun_with(recipe, options, pairs, None)
    }

    /// As [`Trainer::new`]; a run without a checkpoint begins with the weights `initial`, at their stage.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    ///
    /// # Panics
    /// When the weights are not those of the recipe's model.
    pub fn begun_with(
        recipe: Recipe,
        options: TrainOptions,
        pairs: Option<Arc<dyn PairSource>>,
        initial: Option<InitialWeights>,
    ) -> Result<Trainer> {
        check_pairs(&recipe, pairs.is_some())?;
        check_validation(&recipe, options.held_out.is_some())?;
        let tokenizer = recipe.chat_tokenizer(options.resume.as_deref())?;
        let layout = declare(&recipe.model, recipe.contrastive_loss)?;
        if let Some(initial) = &initial {
            let elements = initial.parameters.len();
            assert_eq!(elements, layout.elements(), "another model's weights");
        }
        let (seat, world) = (options.seat.clone(), options.seat.world());
        let share = recipe.of_rank(world.ranks)?;
        let mut executor = options.compute.open(layout.elements())?;
        if let Some(engine) = seat.engine() {
            executor.join(engine.clone())?;
        }
        let resumed = match &options.resume {
            Some(path) if world.is_first() => Some(RunFolder::resume(options.disk.clone(), path)?),
            _ => None,
        };
        // A run that stopped before its first checkpoint is begun again.
        let mut passed_over = Vec::new();
        let start = match &options.resume {
            Some(path) => told_by_first(&seat, || newest_valid(path, &mut passed_over))?,
            None => None,
        };
        let inputs = RunInputs::new(&options, pairs.as_deref())?;
        if let Some((position, _)) = start.as_ref().filter(|_| !options.accept_changes) {
            refuse_changes(position, &recipe, &inputs)?;
        }
        let begins_at = initial.as_ref().map_or(0, |initial| initial.stage);
        let first = start.as_ref().map_or(begins_at, |(at, _)| at.stage);
        let programs = plan_stages(&share, first, &layout, &tokenizer, &options)?;
        let validations = plan_validations(&share, &programs, &layout, &tokenizer, &options)?;
        // Only now: a run that is refused leaves no folder.
        let folder = Arc::new(open_folder(resumed, &options, &recipe.name)?);
        let mut observers = vec![options.observer.clone()];
        if world.is_first() {
            let recorder = RunRecorder::open(folder.clone(), options.clock.clone())?;
            observers.push(Arc::new(recorder));
        }
        let observers = Observers::new(world.rank, observers);
        let checkpoints = Checkpointer::new(options.clock.clone());
        // Places in the held-out samples are none in the others: each keeps its images apart.
        let kept_held_out = match options.held_out {
            Some(_) => options.image_cache / HELD_OUT_CACHE,
            None => 0,
        };
        let run = Run {
            kept: Arc::new(ImageCache::new(options.image_cache - kept_held_out)),
            kept_held_out: Arc::new(ImageCache::new(kept_held_out)),
            emoji: EmojiSet::embedded(),
            recipe,
            share,
            options,
            layout,
            executor,
            tokenizer,
            inputs,
            pairs,
            folder,
            programs,
            validations,
            initial,
            observers,
        };
        Ok(Trainer {
            run,
            state: RunState::default(),
            checkpoints,
            start,
            passed_over,
        })
    }

    /// Computes on `executor`, which must be as the one that the options would have opened and hold no parameters yet.
    #[must_use]
    pub fn computing_on(mut self, executor: Box<dyn Executor>) -> Trainer {
        self.run.executor = executor;
        self
    }

    /// All parameters as they stand, in arena order.
    ///
    /// # Errors
    /// Whatever the executor reports.
    pub fn parameters(&self) -> Result<Vec<f32>> {
        self.run.parameters()
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        self.run.folder.path()
    }

    /// The model's parameters.
    pub fn layout(&self) -> &ParameterLayout {
        &self.run.layout
    }

    /// Tells the run's observers, its log among them, something worth a line.
    ///
    /// # Errors
    /// [`Error::Io`] when the log cannot be written.
    pub fn note(&self, line: &str) -> Result<()> {
        self.run.note(line)
    }

    /// Measures the parameters as they stand after the last stage, on sets of at most `images` images.
    ///
    /// # Errors
    /// Whatever recording, loading or the data report.
    pub fn measure(&self, metrics: &[Metric], images: usize) -> Result<Measurements> {
        let Some(stage) = self.run.recipe.stages.last() else {
            return Ok(Measurements::default());
        };
        let compute = &self.run.options.compute;
        measure_after(
            &self.run.recipe,
            stage,
            self.run.model(),
            compute,
            metrics,
            images,
        )
    }

    /// Runs every stage that is still to be run; returns the evaluations by stage.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the loss stays non-finite; whatever data, disk, device and observers report.
    pub fn run(&mut self) -> Result<Vec<Evaluation>> {
        for line in std::mem::take(&mut self.passed_over) {
            self.run.warn(&line)?;
        }
        let entry = match self.start.take() {
            None => self.begin()?,
            Some((position, path)) => self.go_on_from(&path, position)?,
        };
        let count = self.run.recipe.stages.len();
        let (mut step, mut optimizer) = (entry.step, entry.optimizer);
        let mut evaluations = Vec::new();
        for index in entry.stage..count {
            evaluations.extend(self.run_stage(index, step, optimizer.take())?);
            if index + 1 < count {
                let name = &self.run.recipe.stages[index].name;
                self.run
                    .stop_if_asked(&format!("the end of stage {name}"))?;
            }
            step = 0;
            self.state.guard = Guard::default();
        }
        if !self.run.is_first() {
            return Ok(evaluations);
        }
        let left_out = self.run.pairs.as_ref().and_then(|pairs| pairs.left_out());
        if let Some(left_out) = left_out {
            let line = format!("\nleft out of the data: {left_out}");
            self.run.warn(&line)?;
        }
        for note in self.run.pairs.iter().flat_map(|pairs| pairs.notes()) {
            self.run.warn(&format!("data: {note}"))?;
        }
        Ok(evaluations)
    }

    /// Begins a new run: its settings on the disk, its first parameters in the executor.
    fn begin(&self) -> Result<Entry> {
        if self.run.is_first() {
            self.run.write_settings()?;
        }
        let initial = self.run.initial.as_ref();
        let stage = initial.map_or(0, |initial| initial.stage);
        self.run.write_initial(stage)?;
        self.tell_begin(None, &[])?;
        Ok(Entry {
            stage,
            step: 0,
            optimizer: None,
        })
    }

    /// Takes up a run where its checkpoint `path` left it.
    fn go_on_from(&mut self, path: &Path, position: Position) -> Result<Entry> {
        let optimizer = restore(&self.run, path, &position)?;
        let place = match self.run.recipe.stages.get(position.stage) {
            Some(stage) => format!("stage {}, step {}", stage.name, position.step),
            None => "the end: nothing is left to train".to_owned(),
        };
        let mut changes = changes(&position.recipe, &self.run.recipe.to_toml());
        let keeps_bits = self.run.recipe.reproducible_across_ranks;
        let differences = position.inputs.differences(&self.run.inputs, keeps_bits);
        changes.extend(differences.data);
        changes.extend(differences.arithmetic);
        self.tell_begin(Some(&place), &changes)?;
        (self.state.skipped, self.state.guard) = (position.skipped, position.guard);
        self.state.validations = position.validations;
        Ok(Entry {
            stage: position.stage,
            step: position.step,
            optimizer,
        })
    }

    fn tell_begin(&self, resumed_at: Option<&str>, changes: &[String]) -> Result<()> {
        let mut device = self.run.executor.describe();
        if self.run.ranks() > 1 {
            device = format!("{} ranks, each on {device}", self.run.ranks());
        }
        self.run.tell(&Event::RunBegins(RunBegins {
            recipe: &self.run.recipe,
            folder: self.run.folder.path(),
            device: &device,
            inputs: &self.run.inputs,
            resumed_at,
            changes,
        }))
    }

    /// Trains a stage from step `first` on, saves it and evaluates it.
    fn run_stage(
        &mut self,
        index: usize,
        first: u64,
        optimizer: Option<OptimizerValues>,
    ) -> Result<Option<Evaluation>> {
        let run = &self.run;
        let stage = &run.recipe.stages[index];
        if first == 0 {
            begin_stage(run, index)?;
        }
        let frozen = run.frozen_checksums(stage)?;
        let (state, checkpoints) = (&mut self.state, &mut self.checkpoints);
        // The session goes with the loop: its memory is free before the evaluation takes its own.
        let averages = {
            let steps = StageLoop::load(run, state, checkpoints, index, optimizer)?;
            steps.train(first)?
        };
        assert_eq!(
            frozen,
            run.frozen_checksums(stage)?,
            "a frozen parameter was changed"
        );
        self.state.guard = Guard::default();
        self.state.validations = ValidationHistory::default();
        let averages = averages.as_ref();
        self.checkpoints
            .save_stage(run, &self.state, index, averages)?;
        run.stop_if_asked(&format!(
            "the end of stage {} (not evaluated: keel eval {} does)",
            stage.name,
            after_stage(run, index).display()
        ))?;
        self.evaluate(index)
    }

    /// Evaluates the parameters as stage `index` left them; nothing after a stage that sees no images.
    fn evaluate(&self, index: usize) -> Result<Option<Evaluation>> {
        let (run, stage) = (&self.run, &self.run.recipe.stages[index]);
        if !run.options.evaluate || !run.is_first() {
            return Ok(None);
        }
        let Some(settings) = evaluation_settings(stage, run.options.evaluation_size) else {
            return Ok(None);
        };
        let under_way = run.options.clock.start();
        let suite = eval_suite(&run.recipe);
        let evaluator = Evaluator::new(run.model(), &suite);
        let (evaluation, qualitative) = evaluator.show(&stage.name, &settings)?;
        run.tell_device_warnings()?;
        run.tell(&Event::Evaluated(Evaluated {
            number: index + 1,
            evaluation: &evaluation,
            qualitative: &qualitative,
            seconds: under_way.seconds(),
        }))?;
        Ok(Some(evaluation))
    }
}

/// The folder of the run: `resumed`, a new one, or the one that the first rank tells of.
fn open_folder(
    resumed: Option<RunFolder>,
    options: &TrainOptions,
    name: &str,
) -> Result<RunFolder> {
    let (world, votes) = (options.seat.world(), options.seat.votes());
    let disk = options.disk.clone();
    let folder = match resumed {
        Some(folder) => Some(folder),
        None if world.is_first() => {
            let folder = RunFolder::create(disk.clone(), options.out.as_deref(), name)?;
            Some(folder)
        }
        None => None,
    };
    if world.ranks == 1 {
        return Ok(folder.expect("the first rank has it"));
    }
    let path = folder.as_ref().map(|folder| folder.path().as_os_str());
    let path = path.map_or(&[][..], OsStr::as_bytes);
    let told = votes.gather("the run's folder", path)?;
    Ok(folder.unwrap_or_else(|| {
        let path = PathBuf::from(OsStr::from_bytes(&told[0]));
        RunFolder::of_another_rank(disk, path)
    }))
}

/// Refuses to go on from `position` with other data than it was reached with, or with stages that are not where they were:
/// neither a resume nor an uninterrupted run would be what it is taken for.
fn refuse_changes(position: &Position, recipe: &Recipe, inputs: &RunInputs) -> Result<()> {
    let mut found = position.inputs.differences(inputs, false).data;
    let begun = position.stage + usize::from(position.step > 0);
    found.extend(moved_stages(&position.recipe, &recipe.to_toml(), begun));
    if found.is_empty() {
        return Ok(());
    }
    Err(Error::setting(
        "--resume",
        "the data and stages of the checkpoint, or --accept-changes to go on with others",
        found.join("; "),
    ))
}

/// Plans every stage from `first` on before one of them runs, so that one that does not fit is known before hours are
/// spent; holds them to the limit on memory, where there is one.
fn plan_stages(
    recipe: &Recipe,
    first: usize,
    layout: &Arc<ParameterLayout>,
    tokenizer: &ChatTokenizer,
    options: &TrainOptions,
) -> Result<Vec<Option<Arc<Program>>>> {
    let compile = |(index, stage)| {
        if index < first {
            return Ok(None);
        }
        compile_stage(recipe, stage, layout, tokenizer, options)
            .map(|program| Some(Arc::new(program)))
    };
    let stages = recipe.stages.iter().enumerate();
    let programs = stages.map(compile).collect::<Result<Vec<_>>>()?;
    if let Some(limit) = options.memory_limit {
        let compile_target = options.compute.compile_target();
        for (stage, program) in recipe.stages.iter().zip(&programs) {
            if let Some(program) = program {
                let memory = MemoryReport::new(program, layout);
                hold_to_limit(recipe, stage, layout, compile_target, &memory, limit)?;
            }
        }
    }
    Ok(programs)
}

/// Plans the validation of every stage that is planned itself and validated, on the rank that validates; holds both together to
/// the limit on memory, where there is one.
fn plan_validations(
    recipe: &Recipe,
    programs: &[Option<Arc<Program>>],
    layout: &Arc<ParameterLayout>,
    tokenizer: &ChatTokenizer,
    options: &TrainOptions,
) -> Result<Vec<Option<ValidationPlan>>> {
    let held_out = options.held_out.as_ref();
    let held_out = held_out.filter(|_| options.seat.world().is_first());
    let target = options.compute.compile_target();
    let plan = |(stage, program): (&Stage, &Option<Arc<Program>>)| {
        let (Some(held_out), Some(program)) = (held_out, program) else {
            return Ok(None);
        };
        let Some(settings) = stage.validated() else {
            return Ok(None);
        };
        let samples = settings.samples.min(held_out.pairs.len());
        let image = tokenizer.image();
        let plan = ValidationPlan::new(recipe, stage, layout, image, target, samples)?;
        if let Some(limit) = options.memory_limit {
            let memory = MemoryReport::new(program, layout);
            hold_validation_to_limit(stage, &memory, plan.bytes(), limit)?;
        }
        Ok(Some(plan))
    };
    recipe.stages.iter().zip(programs).map(plan).collect()
}

/// Refuses settings of validation where there is nothing to validate on.
fn check_validation(recipe: &Recipe, given: bool) -> Result<()> {
    let mut stages = recipe.stages.iter();
    match stages.find(|stage| stage.validation.is_some()) {
        Some(stage) if !given => Err(Error::setting(
            format!("stage {}: validation", stage.name),
            "held-out samples, given with --validate",
            "none given",
        )),
        _ => Ok(()),
    }
}

/// Refuses pairs that no stage uses, and stages that use pairs where there are none.
pub(super) fn check_pairs(recipe: &Recipe, given: bool) -> Result<()> {
    let name = Task::SAMPLES.name;
    match (given, recipe.stage_of_pairs()) {
        (true, None) => Err(Error::setting(
            "--data",
            format!(
                "a recipe with a stage that draws from {name} (--set stage.{}.data.{name}=1 adds it)",
                recipe.stages[recipe.stages.len() - 1].name
            ),
            format!("none in the recipe {}", recipe.name),
        )),
        (false, Some(stage)) => Err(Error::setting(
            format!("stage {}: data.{name}", stage.name),
            "your own pairs, given with --data",
            "none given",
        )),
        _ => Ok(()),
    }
}

fn compile_stage(
    recipe: &Recipe,
    stage: &Stage,
    layout: &Arc<ParameterLayout>,
    tokenizer: &ChatTokenizer,
    options: &TrainOptions,
) -> Result<Program> {
    let shape = recipe.batch_shape(stage, tokenizer.image());
    let compile_target = options.compute.compile_target();
    compile_rank_step(
        recipe,
        stage,
        layout,
        &shape,
        compile_target,
        options.memory_budget,
        options.seat.world(),
    )
}
