//! Runs the stages of a recipe one after the other: plans, programs, evaluation, checkpoints. The steps of one stage
//! are in stage_loop.rs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::changes::changes;
use super::checkpoint::{self, Position};
use super::disk::{Disk, LocalDisk};
use super::evaluation::evaluation_settings;
use super::guard::Guard;
use super::memory_limit::hold_to_limit;
use super::recipe::{Recipe, Stage};
use super::run_folder::{RunFolder, TOKENIZER, newest_first};
use super::saver::Saver;
use super::signals::Signals;
use super::step_program::{compile_step, step_shape, whole_step_flops};
use keel_data::chat::ChatTokenizer;
use keel_data::library::Library;
use keel_data::pairs::PairSource;
use keel_data::photo::KeptPictures;
use keel_data::task::TaskKind;
use keel_base::error::{Error, Result};
use keel_eval::{Evaluation, Evaluator, Place};
use keel_engine::executor::{Choice, Executor};
use keel_model::{StepShape, declare, initialise_one};
use keel_engine::program::{MemoryReport, Program};
use keel_engine::tape::{Arena, ParameterLayout};

/// What the command line adds to a recipe.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// What computes.
    pub compute: Choice,
    /// Where the run goes; the next free folder under runs/ by default.
    pub out: Option<PathBuf>,
    /// A run to continue.
    pub resume: Option<PathBuf>,
    /// Steps after which each stage ends at the latest.
    pub max_steps: Option<u64>,
    /// Trains every step of a stage on its first batch, to see that the loss can fall.
    pub overfit_one_batch: bool,
    /// The most bytes of a step's arena.
    pub memory_budget: Option<u64>,
    /// The most bytes that a stage may take in all, by its plan; more is refused.
    pub memory_limit: Option<u64>,
    /// Steps between checkpoints within a stage; 0 for none.
    pub save_every: u64,
    /// Standard deviations above the median of late losses from which a loss is a spike; 0 calls none.
    pub spike_threshold: f64,
    /// Steps between two that are done twice to compare their bits; 0 for none.
    pub recheck_every: u64,
    /// Checkpoints kept within a stage, the newest; at least 1.
    pub keep: u64,
    /// Steps between checkpoints within a stage that are kept for good; 0 for none.
    pub keep_every: u64,
    /// Samples of each evaluation set.
    pub evaluation_size: usize,
    /// Whether stages are evaluated.
    pub evaluate: bool,
    /// Bytes of the pairs' pictures, decoded and scaled, that are kept for their next draw; 0 keeps none.
    pub keep_pictures: u64,
    /// What writes the run's folder.
    pub disk: Arc<dyn Disk>,
    /// What the user may signal meanwhile.
    pub signals: Signals,
}

impl TrainOptions {
    /// A new run in the next free folder, without limits, evaluation or checkpoints inside stages.
    pub fn new(compute: Choice) -> TrainOptions {
        TrainOptions {
            compute,
            out: None,
            resume: None,
            max_steps: None,
            overfit_one_batch: false,
            memory_budget: None,
            memory_limit: None,
            save_every: 0,
            spike_threshold: 10.0,
            recheck_every: 0,
            keep: 1,
            keep_every: 0,
            evaluation_size: 0,
            evaluate: false,
            keep_pictures: 0,
            disk: Arc::new(LocalDisk),
            signals: Signals::default(),
        }
    }
}

/// Where a run begins that is not begun from first values.
#[derive(Clone, Debug)]
pub struct Beginning {
    /// Index of the first stage that is run.
    pub stage: usize,
    /// All parameters in arena order.
    pub parameters: Vec<f32>,
}

/// A run: model, folder, executor.
pub struct Trainer {
    pub(super) recipe: Recipe,
    pub(super) options: TrainOptions,
    pub(super) layout: Arc<ParameterLayout>,
    pub(super) executor: Box<dyn Executor>,
    pub(super) library: Arc<Library>,
    pub(super) words: Arc<ChatTokenizer>,
    pub(super) pairs: Option<Arc<dyn PairSource>>,
    pub(super) kept: Arc<KeptPictures>,
    pub(super) folder: RunFolder,
    /// The program of each stage that is still to be run.
    pub(super) programs: Vec<Option<Arc<Program>>>,
    pub(super) skipped: u64,
    pub(super) guard: Guard,
    pub(super) saver: Saver,
    start: Option<(Position, PathBuf)>,
    /// What was wrong with checkpoints that are newer than the one the run goes on from.
    passed_over: Vec<String>,
    pub(super) beginning: Option<Beginning>,
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
        Trainer::beginning_at(recipe, options, pairs, None)
    }

    /// As [`Trainer::new`]; a run without a checkpoint begins as `beginning` says.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    ///
    /// # Panics
    /// When the parameters are not those of the recipe's model.
    pub fn beginning_at(
        recipe: Recipe,
        options: TrainOptions,
        pairs: Option<Arc<dyn PairSource>>,
        beginning: Option<Beginning>,
    ) -> Result<Trainer> {
        check_pairs(&recipe, pairs.is_some())?;
        let words = recipe.words(options.resume.as_deref())?;
        let layout = declare(&recipe.model, recipe.contrastive_form.into())?;
        let executor = options.compute.open(layout.elements())?;
        let folder = match &options.resume {
            Some(path) => Some(RunFolder::resume(options.disk.clone(), path)?),
            None => None,
        };
        // A run that stopped before its first checkpoint is begun again.
        let mut passed_over = Vec::new();
        let start = match &folder {
            Some(folder) => newest_whole(folder.path(), &mut passed_over)?,
            None => None,
        };
        let begins_at = beginning.as_ref().map_or(0, |beginning| beginning.stage);
        let first_stage = start
            .as_ref()
            .map_or(begins_at, |(position, _)| position.stage);
        // Every stage is planned before the first runs, so that one that does not fit is known before hours are spent.
        let compile = |(index, stage)| match index < first_stage {
            true => Ok(None),
            false => {
                compile_stage(&recipe, stage, &layout, &words, &options).map(|p| Some(Arc::new(p)))
            }
        };
        let programs = recipe
            .stages
            .iter()
            .enumerate()
            .map(compile)
            .collect::<Result<Vec<_>>>()?;
        if let Some(limit) = options.memory_limit {
            let machine = options.compute.machine();
            for (stage, program) in recipe.stages.iter().zip(&programs) {
                if let Some(program) = program {
                    let memory = MemoryReport::new(program, &layout);
                    hold_to_limit(&recipe, stage, &layout, machine, &memory, limit)?;
                }
            }
        }
        let folder = match folder {
            Some(folder) => folder,
            None => RunFolder::create(options.disk.clone(), options.out.as_deref(), &recipe.name)?,
        };
        let library = Library::embedded();
        Ok(Trainer {
            kept: Arc::new(KeptPictures::new(options.keep_pictures)),
            recipe,
            options,
            layout,
            executor,
            library,
            words,
            pairs,
            folder,
            programs,
            skipped: 0,
            guard: Guard::default(),
            saver: Saver::default(),
            start,
            passed_over,
            beginning,
        })
    }

    /// Computes on `executor`, which must be as the one that the options would have opened and hold no parameters yet.
    #[must_use]
    pub fn computing_on(mut self, executor: Box<dyn Executor>) -> Trainer {
        self.executor = executor;
        self
    }

    /// All parameters as they stand, in arena order.
    ///
    /// # Errors
    /// Whatever the executor reports.
    pub fn parameters(&self) -> Result<Vec<f32>> {
        let mut parameters = vec![0.0; self.layout.elements()];
        self.executor.read_parameters(0, &mut parameters)?;
        Ok(parameters)
    }

    /// The model as it stands.
    pub(super) fn place(&self) -> Place<'_> {
        self.recipe
            .place(&self.layout, self.executor.as_ref(), &self.words)
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The model's parameters.
    pub fn layout(&self) -> &ParameterLayout {
        &self.layout
    }

    /// Runs every stage that is still to be run; returns the evaluations by stage.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the loss stays non-finite; whatever data, disk and device report.
    pub fn run(&mut self) -> Result<Vec<Evaluation>> {
        for line in std::mem::take(&mut self.passed_over) {
            self.warn(&line)?;
        }
        let (mut first_stage, mut first_step) = (0, 0);
        let mut moments = None;
        match self.start.take() {
            None => {
                self.folder
                    .write("recipe.toml", self.recipe.to_toml().as_bytes())?;
                if let Some(tokenizer) = self.words.to_json() {
                    self.folder.write(TOKENIZER, tokenizer.as_bytes())?;
                }
                if let Some(beginning) = &self.beginning {
                    first_stage = beginning.stage;
                    let elements = beginning.parameters.len();
                    assert_eq!(elements, self.layout.elements(), "another model's");
                }
                self.begin_with(first_stage)?;
                self.record_start(None)?;
            }
            Some((position, path)) => {
                (first_stage, first_step) = (position.stage, position.step);
                self.skipped = position.skipped;
                self.guard = position.guard.clone();
                moments = self.restore(&path, &position)?;
                let place = match self.recipe.stages.get(first_stage) {
                    Some(stage) => format!("stage {}, step {first_step}", stage.name),
                    None => "the end: nothing is left to train".to_owned(),
                };
                self.say(&format!(
                    "continuing {} from {place}",
                    self.folder.path().display()
                ))?;
                for change in changes(&position.recipe, &self.recipe.to_toml()) {
                    self.say(&format!("changed since that checkpoint: {change}"))?;
                }
                self.record_start(Some(&place))?;
            }
        }
        let mut evaluations = Vec::new();
        for index in first_stage..self.recipe.stages.len() {
            let stage = self.recipe.stages[index].clone();
            let evaluation = self.run_stage(index, &stage, first_step, moments.take())?;
            evaluations.extend(evaluation);
            if index + 1 < self.recipe.stages.len() {
                self.stop_if_asked(&format!("the end of stage {}", stage.name))?;
            }
            first_step = 0;
            self.guard = Guard::default();
        }
        self.report_skips()?;
        Ok(evaluations)
    }

    /// Writes the parameters that the run begins with, at stage `index`: those it was given, or first values.
    pub(super) fn begin_with(&self, index: usize) -> Result<()> {
        match &self.beginning {
            Some(beginning) if beginning.stage == index => {
                self.executor.write_parameters(0, &beginning.parameters)
            }
            _ => self
                .recipe
                .write_first_values(&self.layout, self.executor.as_ref(), Vec::new()),
        }
    }

    pub(super) fn restore(
        &self,
        path: &Path,
        position: &Position,
    ) -> Result<Option<(Vec<f32>, Vec<f32>)>> {
        let entries = match self.programs.get(position.stage) {
            Some(Some(program)) if position.step > 0 => program.gradient_entries().to_vec(),
            _ => Vec::new(),
        };
        let sink = &mut |offset, values: &[f32]| self.executor.write_parameters(offset, values);
        Ok(checkpoint::load(path, &self.layout, &entries, sink)?.moments)
    }

    /// Prints a line and keeps it in the run's log.
    ///
    /// # Errors
    /// [`Error::Io`] when the log cannot be written.
    pub fn say(&mut self, line: &str) -> Result<()> {
        // A reader that has gone away must not end a run: the log has every line.
        let _ = writeln!(std::io::stdout(), "{line}");
        self.folder.log(line)
    }

    /// Says what was left out of the user's pairs.
    fn report_skips(&mut self) -> Result<()> {
        let left_out = self.pairs.as_ref().and_then(|pairs| pairs.left_out());
        match left_out {
            Some(left_out) => self.warn(&format!("\nleft out of the data: {left_out}")),
            None => Ok(()),
        }
    }

    fn run_stage(
        &mut self,
        index: usize,
        stage: &Stage,
        first_step: u64,
        moments: Option<(Vec<f32>, Vec<f32>)>,
    ) -> Result<Option<Evaluation>> {
        if first_step == 0 {
            self.refresh(index, stage)?;
        }
        let program = self.programs[index].clone();
        let program = program.expect("every stage to be run is planned");
        let frozen = self.frozen_checksums(stage)?;
        let mixture = Arc::new(self.mixture(index)?);
        let steps = self.steps(stage, &mixture);
        let trained = self.trained(stage);
        let label = format!("{}-{}", index + 1, stage.name);
        self.record_stage(&label, stage, steps, &program)?;
        let bytes = program.arena_bytes();
        self.say(&format!(
            "\nstage {}: trains {} ({trained} parameters), {steps} steps of {} samples, {:.1} GFLOP and {:.1} MiB of activations a step",
            stage.name,
            stage.trains.join(" + "),
            stage.batch,
            whole_step_flops(&program, stage) / 1e9,
            bytes as f64 / (1 << 20) as f64,
        ))?;
        let mut session = self.executor.load(program.clone())?;
        if let Some((first, second)) = moments {
            session.write_arena(Arena::FirstMoments, &first)?;
            session.write_arena(Arena::SecondMoments, &second)?;
        }
        let mut step = first_step;
        while let Some(last) = self.train(
            index,
            stage,
            [step, steps],
            mixture.clone(),
            session.as_mut(),
        )? {
            step = self.go_back(index, stage, last, session.as_mut())?;
        }
        self.finish_saving(index)?;
        drop(session);
        for (module, before) in &frozen {
            let after = self.checksum(module)?;
            assert_eq!(*before, after, "the frozen module {module} was changed");
        }
        self.guard = Guard::default();
        self.save(index + 1, 0, &label, None)?;
        self.stop_if_asked(&format!(
            "the end of stage {} (not evaluated: keel eval {} does)",
            stage.name,
            self.folder.checkpoint(&label).display()
        ))?;
        self.evaluate(index + 1, stage)
    }

    /// Parameters that a stage trains.
    pub(super) fn trained(&self, stage: &Stage) -> usize {
        self.layout.count(|module| stage.trains(module))
    }

    /// Ends the run where the user asked for it; everything up to `place` is saved.
    pub(super) fn stop_if_asked(&mut self, place: &str) -> Result<()> {
        let Some(signal) = self.options.signals.stop() else {
            return Ok(());
        };
        let problem = Error::Interrupted {
            signal: signal.name(),
            code: signal.exit_code(),
            place: place.to_owned(),
            run: self.folder.path().display().to_string(),
        };
        self.folder.log(&problem.to_string())?;
        Err(problem)
    }

    /// Gives modules that the stage starts afresh new first values.
    pub(super) fn refresh(&self, index: usize, stage: &Stage) -> Result<()> {
        for entry in self.layout.entries() {
            if stage
                .fresh
                .iter()
                .any(|module| module == entry.spec.module())
            {
                let mut values = vec![0.0; entry.spec.shape.numel()];
                let seed = self.recipe.seed.wrapping_add(1000 * (index as u64 + 1));
                initialise_one(&entry.spec, seed, &mut values);
                self.executor.write_parameters(entry.offset, &values)?;
            }
        }
        Ok(())
    }

    /// A hash of each module that the stage freezes: those bytes must not change.
    fn frozen_checksums(&self, stage: &Stage) -> Result<Vec<(String, blake3::Hash)>> {
        self.layout
            .modules()
            .into_iter()
            .filter(|module| !stage.trains(module))
            .map(|module| Ok((module.to_owned(), self.checksum(module)?)))
            .collect()
    }

    fn checksum(&self, module: &str) -> Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        for entry in self
            .layout
            .entries()
            .iter()
            .filter(|e| e.spec.module() == module)
        {
            let mut values = vec![0.0f32; entry.spec.shape.numel()];
            self.executor.read_parameters(entry.offset, &mut values)?;
            hasher.update(bytemuck::cast_slice(&values));
        }
        Ok(hasher.finalize())
    }

    fn evaluate(&mut self, number: usize, stage: &Stage) -> Result<Option<Evaluation>> {
        if !self.options.evaluate {
            return Ok(None);
        }
        let Some(settings) = evaluation_settings(stage, self.options.evaluation_size) else {
            return Ok(None);
        };
        let evaluator = Evaluator::new(self.place(), self.library.clone());
        let start = Instant::now();
        let (evaluation, exhibits) = evaluator.show(&stage.name, &settings)?;
        self.record_evaluation(number, &evaluation, &exhibits)?;
        let seconds = start.elapsed().as_secs_f64();
        self.say(&format!(
            "{}  ({seconds:.1} s)",
            evaluation.line(&stage.name)
        ))?;
        Ok(Some(evaluation))
    }
}

/// The newest checkpoint of a run that is whole; what is wrong with newer ones becomes a line each.
///
/// # Errors
/// What is wrong with the newest where no other is whole; [`Error::Io`] when the folder cannot be read.
fn newest_whole(run: &Path, passed_over: &mut Vec<String>) -> Result<Option<(Position, PathBuf)>> {
    let mut first = None;
    for path in newest_first(run)? {
        match checkpoint::check(&path) {
            Ok(position) => return Ok(Some((position, path))),
            Err(problem) => {
                passed_over.push(format!("passed over: {problem}"));
                first.get_or_insert(problem);
            }
        }
    }
    first.map_or(Ok(None), Err)
}

/// Refuses pairs that no stage uses, and stages that use pairs where there are none.
pub(super) fn check_pairs(recipe: &Recipe, given: bool) -> Result<()> {
    let name = TaskKind::Pairs.name();
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
    words: &ChatTokenizer,
    options: &TrainOptions,
) -> Result<Program> {
    let shape = StepShape {
        image_id: words.image(),
        ..step_shape(stage, None)
    };
    let machine = options.compute.machine();
    compile_step(
        recipe,
        stage,
        layout,
        &shape,
        machine,
        options.memory_budget,
    )
}
