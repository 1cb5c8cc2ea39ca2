//! What a run consists of: what is fixed from its first step to its last, and the little that moves with the steps beside
//! parameters and the optimiser's state, which the executor and its sessions hold.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::folder::{RunFolder, TOKENIZER};
use super::inputs::RunInputs;
use super::options::{InitialWeights, TrainOptions};
use super::signals::Stop;
use crate::checkpoint::{Position, Sink, read_position};
use crate::evaluate::eval_context;
use crate::guard::Guard;
use crate::observer::{Event, Observer, Observers};
use crate::recipe::{Recipe, Stage};
use crate::stage_data::stage_mixture;
use crate::validation::{ValidationHistory, ValidationPlan};
use keel_base::error::{Error, Result};
use keel_base::random::scramble;
use keel_data::chat::ChatTokenizer;
use keel_data::image_view::ImageCache;
use keel_data::mixture::Mixture;
use keel_data::pairs::PairSource;
use keel_emoji::emoji_set::EmojiSet;
use keel_engine::executor::Executor;
use keel_engine::program::Program;
use keel_engine::tape::ParameterLayout;
use keel_eval::EvalContext;
use keel_model::initialise_one;
use keel_ranks::control::Phase;
use keel_ranks::{Seat, World};

/// What is fixed. Everything that trains, saves or evaluates borrows it, and none of them changes it.
pub(crate) struct Run {
    pub recipe: Recipe,
    pub options: TrainOptions,
    pub layout: Arc<ParameterLayout>,
    /// What computes; it holds the parameters.
    pub executor: Box<dyn Executor>,
    /// The embedded concepts.
    pub emoji: Arc<EmojiSet>,
    /// How the model speaks.
    pub tokenizer: Arc<ChatTokenizer>,
    /// What its bits depend on beside the recipe.
    pub inputs: RunInputs,
    /// The user's own samples.
    pub pairs: Option<Arc<dyn PairSource>>,
    /// Images that need not be decoded again.
    pub kept: Arc<ImageCache>,
    pub folder: Arc<RunFolder>,
    /// The recipe as this rank computes it, its share of every step.
    pub share: Recipe,
    /// The program of each stage that is still to be run.
    pub programs: Vec<Option<Arc<Program>>>,
    /// What the validation of each of these stages runs, on the rank that validates.
    pub validations: Vec<Option<ValidationPlan>>,
    /// Images of held-out samples that need not be decoded again.
    pub kept_held_out: Arc<ImageCache>,
    /// What the run begins with that does not begin with first values.
    pub initial: Option<InitialWeights>,
    /// Who hears what it tells.
    pub observers: Observers,
}

/// What the user asks a run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// To end.
    pub stop: Option<Stop>,
    /// For a checkpoint.
    pub save: bool,
}

/// See [`Run::told_by_first`].
pub(crate) fn told_by_first(
    seat: &Seat,
    find: impl FnOnce() -> Result<Option<(Position, PathBuf)>>,
) -> Result<Option<(Position, PathBuf)>> {
    let world = seat.world();
    if world.ranks == 1 {
        return find();
    }
    let found = if world.is_first() { find()? } else { None };
    let path = found.as_ref().map(|(_, path)| path.as_os_str().as_bytes());
    let heard = seat
        .votes()
        .gather("the newest checkpoint", path.unwrap_or_default())?;
    if found.is_some() || heard[0].is_empty() {
        return Ok(found);
    }
    let path = PathBuf::from(OsStr::from_bytes(&heard[0]));
    Ok(Some((read_position(&path)?, path)))
}

/// What moves with the steps.
#[derive(Debug, Default)]
pub(crate) struct RunState {
    /// Samples left out so far.
    pub skipped: u64,
    /// What is known of the losses of the stage under way.
    pub guard: Guard,
    /// What is known of its validations.
    pub validations: ValidationHistory,
}

impl Run {
    /// Tells everyone what happened.
    ///
    /// # Errors
    /// Whatever an observer ends the run for.
    pub fn tell(&self, event: &Event<'_>) -> Result<()> {
        let votes = self.options.seat.votes();
        match event {
            Event::StageBegins(_) => votes.note(Phase::Load, None),
            Event::StepsBegin(steps) => votes.note(Phase::Step, Some(steps.done)),
            Event::StepDone(step) => votes.note(Phase::Step, Some(*step)),
            // Its checkpoint and its evaluation follow.
            Event::StepsEnd => votes.note(Phase::Save, None),
            _ => {}
        }
        self.observers.observe(event)?;
        if matches!(event, Event::StepDone(_)) {
            let warnings = votes.take_warnings();
            return warnings
                .iter()
                .try_for_each(|line| self.observers.observe(&Event::Warning(line)));
        }
        Ok(())
    }

    /// Tells something worth a line.
    ///
    /// # Errors
    /// As [`Run::tell`].
    pub fn note(&self, line: &str) -> Result<()> {
        self.tell(&Event::Note(line))
    }

    /// Tells something wrong that the run goes on after, and of several ranks which of them it is.
    ///
    /// # Errors
    /// As [`Run::tell`].
    pub fn warn(&self, line: &str) -> Result<()> {
        match self.options.seat.world() {
            World { ranks: 1, .. } => self.tell(&Event::Warning(line)),
            World { rank, .. } => self.tell(&Event::Warning(&format!("rank {rank}: {line}"))),
        }
    }

    /// How many ranks train the run.
    pub fn ranks(&self) -> usize {
        self.options.seat.world().ranks
    }

    /// Whether this rank writes the folder, evaluates and tells of the run.
    pub fn is_first(&self) -> bool {
        self.options.seat.world().is_first()
    }

    /// What the user asks for, of any rank: all ranks hear the same.
    ///
    /// # Errors
    /// Whatever the votes report.
    pub fn asked(&self) -> Result<Asked> {
        let signals = &self.options.signals;
        let own = Asked {
            stop: signals.stop(),
            save: signals.take_save(),
        };
        if self.ranks() == 1 {
            return Ok(own);
        }
        let places = Stop::ALL.iter().map(|stop| own.stop == Some(*stop));
        let place = places
            .clone()
            .position(|is_it| is_it)
            .map_or(0, |at| at + 1);
        let told = [place as u8, own.save.into()];
        let heard = self.options.seat.votes().gather("signals", &told)?;
        let stop = heard
            .iter()
            .map(|told| usize::from(told[0]))
            .max()
            .unwrap_or(0);
        Ok(Asked {
            stop: stop.checked_sub(1).map(|at| Stop::ALL[at]),
            save: heard.iter().any(|told| told[1] != 0),
        })
    }

    /// The checkpoint that the first rank finds, told to all.
    ///
    /// # Errors
    /// Whatever `find` reports on the first rank, reading on the others, and the votes.
    pub fn told_by_first(
        &self,
        find: impl FnOnce() -> Result<Option<(Position, PathBuf)>>,
    ) -> Result<Option<(Position, PathBuf)>> {
        told_by_first(&self.options.seat, find)
    }

    /// Waits until all ranks have come here, to what the first has done meanwhile.
    ///
    /// # Errors
    /// Whatever the votes report.
    pub fn meet(&self, what: &'static str) -> Result<()> {
        if self.ranks() > 1 {
            self.options.seat.votes().gather(what, &[])?;
        }
        Ok(())
    }

    /// Hands on what the device had to say since it was last asked.
    ///
    /// # Errors
    /// As [`Run::tell`].
    pub fn tell_device_warnings(&self) -> Result<()> {
        let warnings = self.executor.take_warnings();
        warnings.iter().try_for_each(|line| self.warn(line))
    }

    /// Ends the run where the user asked for it; everything up to `place` is saved.
    ///
    /// # Errors
    /// [`Error::Interrupted`] where the user did.
    pub fn stop_if_asked(&self, place: &str) -> Result<()> {
        let stop = match self.ranks() {
            1 => self.options.signals.stop(),
            _ => self.asked()?.stop,
        };
        let Some(signal) = stop else {
            return Ok(());
        };
        let problem = Error::Interrupted {
            signal: signal.name(),
            code: signal.exit_code(),
            place: place.to_owned(),
            run: self.folder.path().display().to_string(),
        };
        self.tell(&Event::Interrupted(&problem))?;
        Err(problem)
    }

    /// Writes what a new run needs to be continued: its recipe, and the tokeniser where that is not the embedded one.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write_settings(&self) -> Result<()> {
        let recipe = self.recipe.to_toml();
        self.folder.write("recipe.toml", recipe.as_bytes())?;
        match self.tokenizer.to_json() {
            Some(tokenizer) => self.folder.write(TOKENIZER, tokenizer.as_bytes()),
            None => Ok(()),
        }
    }

    /// The model as it stands.
    pub fn model(&self) -> EvalContext<'_> {
        eval_context(
            &self.recipe,
            &self.layout,
            self.executor.as_ref(),
            &self.tokenizer,
        )
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

    /// Whether the run begins with given weights at stage `index`.
    pub fn begins_given(&self, index: usize) -> bool {
        let initial = self.initial.as_ref();
        initial.is_some_and(|initial| initial.stage == index)
    }

    /// Writes the parameters that the run begins with, at stage `index`: those it was given, or first values.
    ///
    /// # Errors
    /// Whatever the weights' folders and the executor report.
    pub fn write_initial(&self, index: usize) -> Result<()> {
        match &self.initial {
            Some(initial) if initial.stage == index => {
                self.executor.write_parameters(0, &initial.parameters)
            }
            _ => self
                .recipe
                .write_first_values(&self.layout, self.executor.as_ref(), Vec::new()),
        }
    }

    /// Gives the parameters that the run began with to `sink`: the first values of its recipe.
    ///
    /// # Errors
    /// Whatever the weights' folders and `sink` report.
    pub fn give_initial(&self, sink: Sink<'_>) -> Result<()> {
        self.recipe
            .give_first_values(&self.layout, Vec::new(), sink)
    }

    /// Gives modules that stage `index` starts afresh new first values: the same ones whenever it begins, by the run's seed and
    /// the stage's name; and makes the teacher a copy of the tower where that is due.
    ///
    /// # Errors
    /// Whatever the executor reports.
    pub fn reinitialise(&self, index: usize) -> Result<()> {
        let stage = &self.recipe.stages[index];
        let is_fresh = |name: &str| stage.reinitialize.iter().any(|module| module == name);
        let seed = scramble(self.recipe.seed ^ scramble(stage.number()));
        let entries = self.layout.entries().iter();
        for entry in entries.filter(|entry| is_fresh(entry.spec.module())) {
            let mut values = vec![0.0; entry.spec.shape.numel()];
            initialise_one(&entry.spec, seed, &mut values);
            self.executor.write_parameters(entry.offset, &values)?;
        }
        self.recipe
            .copy_teacher(index, &self.layout, self.executor.as_ref())
    }

    /// The data of stage `index`.
    ///
    /// # Errors
    /// Whatever the mixture reports.
    pub fn mixture(&self, index: usize) -> Result<Mixture> {
        let pairs = self.pairs.as_ref();
        let mixture = stage_mixture(&self.share, &self.emoji, pairs, &self.tokenizer, index)?;
        Ok(mixture.keeping(self.kept.clone()))
    }

    /// The steps of a stage: as given, or its epochs over the task with the most items for its share.
    pub fn steps(&self, stage: &Stage, mixture: &Mixture) -> u64 {
        let steps = stage.steps.unwrap_or_else(|| {
            let total: f64 = stage.tasks().iter().map(|(_, weight)| weight).sum();
            let tasks = stage.tasks().into_iter();
            let longest = tasks
                .map(|(task, weight)| mixture.items(task) as f64 / (weight / total))
                .fold(0.0, f64::max);
            let samples = longest * stage.epochs.unwrap_or(1.0);
            (samples / stage.batch_size as f64).ceil().max(1.0) as u64
        });
        self.options.max_steps.map_or(steps, |most| steps.min(most))
    }

    /// Parameters that a stage trains.
    pub fn trained(&self, stage: &Stage) -> usize {
        let specs = self.layout.entries().iter().map(|entry| &entry.spec);
        let trained = specs.filter(|spec| stage.trains(&spec.name));
        trained.map(|spec| spec.shape.numel()).sum()
    }

    /// A hash of what a stage freezes of each module: those bytes must not change.
    ///
    /// # Errors
    /// Whatever the executor reports.
    pub fn frozen_checksums(&self, stage: &Stage) -> Result<Vec<(String, blake3::Hash)>> {
        let mut checksums = Vec::new();
        for module in self.layout.modules() {
            let mut hasher = blake3::Hasher::new();
            let entries = self.layout.entries().iter();
            let entries = entries.filter(|entry| entry.spec.module() == module);
            for entry in entries.filter(|entry| !stage.trains(&entry.spec.name)) {
                let mut values = vec![0.0f32; entry.spec.shape.numel()];
                self.executor.read_parameters(entry.offset, &mut values)?;
                hasher.update(bytemuck::cast_slice(&values));
            }
            checksums.push((module.to_owned(), hasher.finalize()));
        }
        Ok(checksums)
    }
}
