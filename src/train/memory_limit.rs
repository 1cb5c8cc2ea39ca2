//! Holds a run to a limit on memory before its first step, and finds settings that would fit.

use std::sync::Arc;

use super::recipe::{Recipe, Stage};
use super::step_program::{compile_step, step_shape};
use crate::error::{Error, Result};
use crate::program::{MemoryReport, bytes};
use crate::tape::{Machine, ParameterLayout};

/// Settings that are offered.
const OFFERED: usize = 3;

/// What every try needs.
struct Tries<'a> {
    recipe: &'a Recipe,
    layout: &'a Arc<ParameterLayout>,
    machine: Machine,
    limit: u64,
}

impl Tries<'_> {
    /// The memory of a stage; nothing where it cannot be planned so.
    fn plan(&self, stage: &Stage, budget: Option<u64>) -> Option<MemoryReport> {
        let shape = step_shape(stage, None);
        let (recipe, layout) = (self.recipe, self.layout);
        let program = compile_step(recipe, stage, layout, &shape, self.machine, budget).ok()?;
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
    fn largest(&self, values: &[usize], of: impl Fn(usize) -> Stage) -> Option<usize> {
        let fitting = values.partition_point(|value| self.fits(&of(*value), None));
        Some(values[fitting.checked_sub(1)?])
    }

    /// Settings with which the stage fits, each planned and found to.
    fn offers(&self, stage: &Stage) -> Vec<String> {
        let name = &stage.name;
        let with_batch = |batch| Stage {
            batch,
            ..stage.clone()
        };
        let mut offers = Vec::new();
        if let Some(budget) = self.budget(stage)
            && self.fits(stage, Some(budget))
        {
            offers.push(format!("--memory-budget {budget}"));
        }
        let batches: Vec<usize> = (1..stage.batch).collect();
        if let Some(batch) = self.largest(&batches, with_batch) {
            offers.push(format!("--set stage.{name}.batch={batch}"));
        }
        // Room for a picture and a few words must stay.
        let fewest = self.recipe.model.image_tokens() + 16;
        let lengths: Vec<usize> = (fewest..stage.tokens).step_by(8).collect();
        let with_tokens = |tokens| Stage {
            tokens,
            ..stage.clone()
        };
        if let Some(tokens) = self.largest(&lengths, with_tokens) {
            offers.push(format!("--set stage.{name}.tokens={tokens}"));
        }
        for batch in [stage.batch / 2, stage.batch / 4, 1] {
            let smaller = with_batch(batch.max(1));
            if offers.len() >= OFFERED {
                break;
            }
            if let Some(budget) = self.budget(&smaller)
                && self.fits(&smaller, Some(budget))
            {
                let batch = smaller.batch;
                offers.push(format!(
                    "--memory-budget {budget} --set stage.{name}.batch={batch}"
                ));
            }
        }
        offers.truncate(OFFERED);
        offers
    }
}

/// Refuses a stage that takes more than `limit` bytes by `report`, naming settings that would fit.
///
/// # Errors
/// [`Error::Setting`] with what the stage takes and those settings.
pub(super) fn hold_to_limit(
    recipe: &Recipe,
    stage: &Stage,
    layout: &Arc<ParameterLayout>,
    machine: Machine,
    report: &MemoryReport,
    limit: u64,
) -> Result<()> {
    if report.total() <= limit {
        return Ok(());
    }
    let tries = Tries {
        recipe,
        layout,
        machine,
        limit,
    };
    let offers = tries.offers(stage);
    let offers = match offers.is_empty() {
        true => "no smaller batch, text or budget fits: what is fixed alone takes more, so train less of the model or a smaller one".to_owned(),
        false => format!("any of these fits: {}", offers.join("; ")),
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
