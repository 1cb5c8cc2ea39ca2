//! What a run can draw from and be evaluated on where its user brings nothing: the tasks and evaluation sets of the embedded
//! worlds, the emoji and the panels.

use std::sync::Arc;

use crate::recipe::Recipe;
use keel_data::eval_set::EvalSuite;
use keel_data::pairs::PairSource;
use keel_data::source::{SampleSettings, TaskSource};
use keel_data::task::Task;
use keel_emoji::emoji_set::EmojiSet;
use keel_emoji::tasks::{DENSE_CAPTIONS, FACTS, OCR, SHORT_CAPTIONS, VQA};
use keel_panels::tasks::{
    PANELS_DENSE, PANELS_FACTS, PANELS_QUESTIONS, PANELS_SHORT, PANELS_TASKS,
};

/// All tasks that a recipe can give a weight, in the order of their numbers: those of the emoji, the user's own samples, and
/// those of the panels.
pub const TASKS: [Task; 10] = [
    SHORT_CAPTIONS,
    DENSE_CAPTIONS,
    OCR,
    VQA,
    FACTS,
    Task::SAMPLES,
    PANELS_SHORT,
    PANELS_DENSE,
    PANELS_QUESTIONS,
    PANELS_FACTS,
];

/// The task of this name.
pub(crate) fn task_named(name: &str) -> Option<Task> {
    TASKS.into_iter().find(|task| task.name == name)
}

/// A source for each task that a recipe can name; the user's samples where there are `pairs`. What embedded sources choose for
/// the whole run is chosen by its `seed`.
pub fn task_sources(
    emoji: &Arc<EmojiSet>,
    pairs: Option<Arc<dyn PairSource>>,
    seed: u64,
    settings: &SampleSettings,
) -> Vec<Arc<dyn TaskSource>> {
    let mut sources = keel_emoji::sources::task_sources(emoji, pairs, seed, settings);
    sources.extend(keel_panels::sources::task_sources(seed, settings));
    sources
}

/// The sets that the models of `recipe` are evaluated on: those of the panels where it draws from no other embedded task, and
/// those of the emoji elsewhere.
pub(crate) fn eval_suite(recipe: &Recipe) -> EvalSuite {
    if is_of_panels(recipe) {
        keel_panels::eval_sets::eval_suite()
    } else {
        keel_emoji::eval_sets::eval_suite(&EmojiSet::embedded())
    }
}

/// Whether the panels are all that a recipe draws from beside the user's own samples.
pub(crate) fn is_of_panels(recipe: &Recipe) -> bool {
    let tasks = recipe.stages.iter().flat_map(|stage| stage.data.keys());
    let mut embedded = tasks.filter(|task| *task != Task::SAMPLES.name).peekable();
    let is_panels = |name: &String| PANELS_TASKS.iter().any(|task| task.name == name);
    embedded.peek().is_some() && embedded.all(is_panels)
}
