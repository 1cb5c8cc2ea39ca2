//! Holds a run to a limit on memory before its first step, and finds settings that would fit.

use std::sync::Arc;

use super::recipe::{Recipe, Stage};
use super::step_program::compile_step;
use keel_base::error::{Error, Result};
use keel_base::units::bytes;
use keel_data::chat::ChatTokenizer;
use keel_engine::program::MemoryReport;

use keel_engine::tape::{CompileTarget, ParameterLayout};
use keel_model::declare;

/// Settings that are offered.
const OFFERED: usize = 3;

/// What every try needs.
struct Tries<'a> {
    recipe: &'a Recipe,
    layout: &'a Arc<ParameterLayout>,
    compile_target: CompileTarget,
    limit: u64,
}

impl Tries<'_> {
    /// The memory of a stage; nothing where it cannot be planned so.
    fn plan(&self, stage: &Stage, budget: Option<u64>) -> Option<MemoryReport> {
        let (recipe, layout) = (self.recipe, self.layout);
        // Which id stands for an image token changes no size.
        let shape = recipe.batch_shape(stage, ChatTokenizer::embedded().image());
        let program =
            compile_step(recipe, stage, layout, &shape, self.compile_target, budget).ok()?;
        Some(MemoryReport::new(&program, layout))
    }

    fn fits(&self, stage: &Stage, budget: Option<u64>) -> bool {
        let report = self.plan(stage, budget);
        report.is_some_and(|report| report.total() <= self.limit)
    }

    /// What the limit leaves for activations beside what is fixed.
    fn budget(&self, stage: &Stage) -> Option<u64> {
        let report = self.plan(stage, None)?;
        let fixed = report.total() - report.arena;
        self.limit.checked_sub(fixed).filter(|left| *left > 0)
    }

    /// The largest of `values`, which rise, that fits.
    fn largest(
        &self,
        values: &[usize],
        budget: Option<u64>,
        of: impl Fn(usize) -> Stage,
    ) -> Option<usize> {
        let fitting = values.partition_point(|value| self.fits(&of(*value), budget));
        Some(values[fitting.checked_sub(1)?])
    }

    /// The largest micro-batch of the stage that fits; nothing where not even one sample does.
    fn largest_micro_batch(&self, stage: &Stage, budget: Option<u64>) -> Option<usize> {
        self.largest(&micro_batches(stage), budget, |micro_batch| {
            with_micro_batch(stage, micro_batch)
        })
    }

    /// Settings with which the stage fits, each planned and found to.
    fn offers(&self, stage: &Stage) -> Vec<String> {
        let name = &stage.name;
        let mut offers = Vec::new();
        if let Some(budget) = self.budget(stage)
            && self.fits(stage, Some(budget))
        {
            offers.push(format!("--memory-budget {budget}"));
        }
        if let Some(micro_batch) = self.largest_micro_batch(stage, None) {
            offers.push(format!("--set stage.{name}.micro_batch_size={micro_batch}"));
        }
        // Room for an image and a few words must stay.
        let fewest = self.recipe.model.image_tokens() + 16;
        let lengths: Vec<usize> = (fewest..stage.max_tokens).step_by(8).collect();
        let with_tokens = |max_tokens| Stage {
            max_tokens,
            ..stage.clone()
        };
        if let Some(tokens) = self.largest(&lengths, None, with_tokens) {
            offers.push(format!("--set stage.{name}.max_tokens={tokens}"));
        }
        let smaller = micro_batches(stage).into_iter().rev();
        for micro_batch in smaller.filter(|m| *m < stage.micro_batch()) {
            let smaller = with_micro_batch(stage, micro_batch);
            if offers.len() >= OFFERED {
                break;
            }
            if let Some(budget) = self.budget(&smaller)
                && self.fits(&smaller, Some(budget))
            {
                offers.push(format!(
                    "--memory-budget {budget} --set stage.{name}.micro_batch_size={micro_batch}"
                ));
            }
        }
        offers.truncate(OFFERED);
        offers
    }
}

fn with_micro_batch(stage: &Stage, micro_batch: usize) -> Stage {
    Stage {
        micro_batch_size: Some(micro_batch),
        ..stage.clone()
    }
}

/// The micro-batches that a stage's batch can be divided into, rising.
fn micro_batches(stage: &Stage) -> Vec<usize> {
    let fits = |n: &usize| {
        stage.batch_size.is_multiple_of(*n) && n.is_multiple_of(stage.samples_per_sequence)
    };
    (1..=stage.batch_size).filter(fits).collect()
}

/// The largest micro-batch with which a stage takes at most `limit` bytes, its activations at most `budget`; nothing where
/// not even one sample fits.
pub fn largest_micro_batch(
    recipe: &Recipe,
    stage: &Stage,
    layout: &Arc<ParameterLayout>,
    compile_target: CompileTarget,
    limit: u64,
    budget: Option<u64>,
) -> Option<usize> {
    let tries = Tries {
        recipe,
        layout,
        compile_target,
        limit,
    };
    tries.largest_micro_batch(stage, budget)
}

impl Recipe {
    /// Divides the batches of stages that take more than `limit` bytes into the largest micro-batches that fit. Returns
    /// what was set, as `--set` takes it. A stage of which not one sample fits stays as it is.
    ///
    /// # Errors
    /// Whatever laying out the parameters reports.
    pub fn fit(
        &mut self,
        compile_target: CompileTarget,
        limit: u64,
        budget: Option<u64>,
    ) -> Result<Vec<String>> {
        let layout = declare(&self.model, self.contrastive_loss)?;
        let recipe = self.clone();
        let tries = Tries {
            recipe: &recipe,
            layout: &layout,
            compile_target,
            limit,
        };
        let mut sets = Vec::new();
        for stage in &mut self.stages {
            if tries.fits(stage, budget) {
                continue;
            }
            if let Some(micro_batch) = tries.largest_micro_batch(stage, budget) {
                stage.micro_batch_size = Some(micro_batch);
                sets.push(format!(
                    "stage.{}.micro_batch_size={micro_batch}",
                    stage.name
                ));
            }
        }
        Ok(sets)
    }
}

/// Refuses a stage that takes more than `limit` bytes while it is validated, which takes `validation` bytes beside `report`.
///
/// # Errors
/// [`Error::Setting`] with what both take.
pub(super) fn hold_validation_to_limit(
    stage: &Stage,
    report: &MemoryReport,
    validation: u64,
    limit: u64,
) -> Result<()> {
    let total = report.total() + validation;
    if total <= limit {
        return Ok(());
    }
    Err(Error::setting(
        format!("--memory-limit {}", bytes(limit)),
        format!(
            "{} for stage {} while it is validated ({} of its own and {} for the validation, which a smaller micro_batch_size makes smaller)",
            bytes(total),
            stage.name,
            bytes(report.total()),
            bytes(validation),
        ),
        "less",
    ))
}

/// Refuses a stage that takes more than `limit` bytes by `report`, naming settings that would fit.
///
/// # Errors
/// [`Error::Setting`] with what the stage takes and those settings.
pub(super) fn hold_to_limit(
    recipe: &Recipe,
    stage: &Stage,
    layout: &Arc<ParameterLayout>,
    compile_target: CompileTarget,
    report: &MemoryReport,
    limit: u64,
) -> Result<()> {
    if report.total() <= limit {
        return Ok(());
    }
    let tries = Tries {
        recipe,
        layout,
        compile_target,
        limit,
    };
    let offers = tries.offers(stage);
    let offers = if offers.is_empty() {
        "no smaller micro-batch, text or budget fits: what is fixed alone takes more, so train less of the model or a smaller one".to_owned()
    } else {
        format!("any of these fits: {}", offers.join("; "))
    };
    Err(Error::setting(
        format!("--memory-limit {}", bytes(limit)),
        format!(
            "{} for stage {} (parameters {}, gradients {}, moments {}, activations {}); {offers}",
            bytes(report.total()),
            stage.name,
            bytes(report.parameters),
            bytes(report.gradients),
            bytes(report.moments),
            bytes(report.arena),
        ),
        "less",
    ))
}
