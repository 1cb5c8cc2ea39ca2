//! What a run tells, and who hears it.
//!
//! The library prints nothing. Whatever a run has to say is an [`Event`], and everyone who wants to know is an
//! [`Observer`]: the command line's terminal, the run's own log.txt, metrics.jsonl and event file, a tracker, a test. All
//! of them are fed by the same events, so no output can say what another does not know.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use super::ablation::Unit;
use super::recipe::{Recipe, Stage};
use super::run::{RunInputs, StepAverages};
use super::step_program::whole_step_flops;
use super::validation::ValidationMeasures;
use keel_base::error::{Error, Result};
use keel_base::units::{bytes, counted, flops};
use keel_engine::program::{MemoryReport, Program};
use keel_eval::{Evaluation, QualitativeSamples};

/// Hears what a run tells.
pub trait Observer: Debug + Send + Sync {
    /// Takes in one event; called in the order in which things happen.
    ///
    /// # Errors
    /// An error ends the run, so report one only where going on without the output would be worse: a log that cannot be
    /// written, not a terminal that nobody reads.
    fn observe(&self, event: &Event<'_>) -> Result<()>;
}

/// One thing that happened.
#[derive(Clone, Copy)]
pub enum Event<'a> {
    /// A process begins a run or goes on with one.
    RunBegins(RunBegins<'a>),
    /// A stage begins, or goes on after a resume.
    StageBegins(StageBegins<'a>),
    /// The steps of a stage begin, also after going back.
    StepsBegin(StepsBegin<'a>),
    /// So many steps of the stage under way are done. Comes after every step; costs nothing that nobody uses.
    StepDone(u64),
    /// Averages for machines: about every second, and wherever there is an [`Event::Progress`].
    Metrics(StepReport<'a>),
    /// Averages for people: about every five seconds, and after the first and the last step.
    Progress(StepReport<'a>),
    /// The steps of a stage end, whatever ended them.
    StepsEnd,
    /// A stage was validated on held-out samples.
    Validated(Validated<'a>),
    /// A stage was evaluated.
    Evaluated(Evaluated<'a>),
    /// A unit of an ablation is about to run, or has a result already.
    UnitBegins(UnitBegins<'a>),
    /// Something worth a line.
    Note(&'a str),
    /// Something wrong that the run goes on after. The only event that every rank reports.
    Warning(&'a str),
    /// The user asked the run to end, and it does with this error. Whoever started the run shows it.
    Interrupted(&'a Error),
}

/// What runs, and on what.
#[derive(Clone, Copy)]
pub struct RunBegins<'a> {
    /// Its settings.
    pub recipe: &'a Recipe,
    /// Its folder.
    pub folder: &'a Path,
    /// What computes.
    pub device: &'a str,
    /// What its bits depend on beside the settings.
    pub inputs: &'a RunInputs,
    /// Where it goes on; nothing for a new run.
    pub resumed_at: Option<&'a str>,
    /// The settings that changed since the checkpoint it goes on from, a sentence each.
    pub changes: &'a [String],
}

/// What a stage is going to do and to take.
#[derive(Clone, Copy)]
pub struct StageBegins<'a> {
    /// The stage's place in the recipe, from 1.
    pub number: usize,
    /// Its settings.
    pub stage: &'a Stage,
    /// All of its steps, those behind a resumed run included.
    pub steps: u64,
    /// Parameters that it trains.
    pub trained: usize,
    /// One micro-batch of it.
    pub program: &'a Program,
    /// The memory that it takes by its plan.
    pub memory: &'a MemoryReport,
    /// Bytes that a validation takes beside it; 0 where there is none.
    pub validation_bytes: u64,
}

/// The steps ahead.
#[derive(Clone, Copy)]
pub struct StepsBegin<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// Steps that are behind.
    pub done: u64,
    /// All steps of the stage.
    pub steps: u64,
    /// Bytes that the stage takes by its plan.
    pub memory: u64,
}

/// How the steps of late went.
#[derive(Clone, Copy)]
pub struct StepReport<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// Steps that are done.
    pub step: u64,
    /// All steps of the stage.
    pub steps: u64,
    /// Averages since the last report of this kind.
    pub averages: &'a StepAverages,
    /// Samples that the run has left out so far.
    pub skipped: u64,
}

/// How the stage under way does on held-out samples.
#[derive(Clone, Copy, Debug)]
pub struct Validated<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// Steps that are done.
    pub step: u64,
    /// All steps of the stage.
    pub steps: u64,
    /// What was measured.
    pub measures: &'a ValidationMeasures,
    /// Whether it is the best so far by the stage's `best_by`; nothing where the stage has none, and before its first step.
    pub is_best: Option<bool>,
    /// Whether the stage ends here, before its last step, since nothing becomes better.
    pub ends_stage: bool,
    /// Seconds it took.
    pub seconds: f64,
}

/// What a stage was worth.
#[derive(Clone, Copy)]
pub struct Evaluated<'a> {
    /// The stage's place in the recipe, from 1.
    pub number: usize,
    /// The numbers.
    pub evaluation: &'a Evaluation,
    /// What there is to look at.
    pub qualitative: &'a QualitativeSamples,
    /// Seconds it took.
    pub seconds: f64,
}

/// Where an ablation stands.
#[derive(Clone, Copy)]
pub struct UnitBegins<'a> {
    /// The unit's place in the order, from 1.
    pub number: usize,
    /// All units.
    pub count: usize,
    /// The unit.
    pub unit: &'a Unit,
    /// Whether its result is there already, so that nothing runs.
    pub is_done: bool,
}

impl Event<'_> {
    /// The event as people read it, a line or several; nothing where there is nothing to read.
    pub fn text(&self) -> Option<String> {
        match self {
            Event::RunBegins(begins) => begins.text(),
            Event::StageBegins(begins) => Some(begins.text()),
            Event::Progress(report) => {
                let (step, steps) = (report.step, report.steps);
                Some(report.averages.line(report.stage, step, steps))
            }
            Event::Validated(validated) => Some(validated.text()),
            Event::Evaluated(evaluated) => {
                let line = evaluated.evaluation.line(&evaluated.evaluation.stage);
                Some(format!("{line}  ({:.1} s)", evaluated.seconds))
            }
            Event::UnitBegins(begins) => Some(begins.text()),
            Event::Note(text) | Event::Warning(text) => Some((*text).to_owned()),
            Event::Interrupted(problem) => Some(problem.to_string()),
            Event::StepsBegin(_) | Event::StepDone(_) | Event::Metrics(_) | Event::StepsEnd => None,
        }
    }
}

impl Validated<'_> {
    /// All numbers by name, for trackers.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let values = self.measures.values.iter();
        let tag = |name: &str| format!("{}/validation/{name}", self.stage);
        values
            .map(|(metric, value)| (tag(metric.name()), *value))
            .collect()
    }

    fn text(&self) -> String {
        let left_out = match self.measures.left_out {
            0 => String::new(),
            some => format!(", {some} left out"),
        };
        let best = match self.is_best {
            Some(true) => "; the best so far",
            _ => "",
        };
        format!(
            "{} {}/{}  on {} held-out samples{left_out}: {}{best}  ({:.1} s)",
            self.stage,
            self.step,
            self.steps,
            self.measures.samples,
            self.measures.text(),
            self.seconds
        )
    }
}

impl RunBegins<'_> {
    fn text(&self) -> Option<String> {
        let place = self.resumed_at?;
        let mut text = format!("continuing {} from {place}", self.folder.display());
        for change in self.changes {
            text += &format!("\nchanged since that checkpoint: {change}");
        }
        Some(text)
    }
}

impl StageBegins<'_> {
    /// Floating-point operations of one step: every micro-batch, and one update.
    pub fn flops(&self) -> f64 {
        whole_step_flops(self.program, self.stage)
    }

    fn text(&self) -> String {
        format!(
            "\nstage {}: trains {} ({}), {} of {}, {} and {} of activations a step",
            self.stage.name,
            self.stage.trained_parts(),
            counted(self.trained as u64, "parameter"),
            counted(self.steps, "step"),
            counted(self.stage.batch_size as u64, "sample"),
            flops(self.flops()),
            bytes(self.program.arena_bytes() as u64),
        )
    }
}

impl UnitBegins<'_> {
    fn text(&self) -> String {
        let UnitBegins {
            number,
            count,
            unit,
            is_done,
        } = self;
        let unit = format!("{number}/{count}: {}, seed {}", unit.arm, unit.seed);
        if *is_done {
            format!("{unit}: already there")
        } else {
            format!("\n{unit}")
        }
    }
}

/// Hears everything and does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn observe(&self, _: &Event<'_>) -> Result<()> {
        Ok(())
    }
}

/// Several observers as one. It alone decides which rank speaks: of the processes that train one run together, all see
/// the same losses, so the first tells everything and the others their warnings.
#[derive(Clone, Debug)]
pub struct Observers {
    rank: usize,
    all: Vec<Arc<dyn Observer>>,
}

impl Observers {
    /// The observers `all` of the process with the given rank, 0 for the first or only one.
    pub fn new(rank: usize, all: Vec<Arc<dyn Observer>>) -> Observers {
        Observers { rank, all }
    }
}

impl Observer for Observers {
    /// Tells all, also where one of them fails; the first failure is returned.
    fn observe(&self, event: &Event<'_>) -> Result<()> {
        if self.rank > 0 && !matches!(event, Event::Warning(_)) {
            return Ok(());
        }
        let outcomes = self.all.iter().map(|observer| observer.observe(event));
        outcomes.fold(Ok(()), Result::and)
    }
}
