//! When a stage is validated, who does it, and what follows: the best checkpoint, and an early end.

use crate::checkpoint::Checkpointer;
use crate::observer::{Event, Validated};
use crate::recipe::ValidationSettings;
use crate::run::{Run, RunState};
use crate::validation::{ValidationMeasures, Validator};
use keel_base::error::{Error, Result};
use keel_data::held_out::HeldOutSkips;
use keel_ranks::control::Phase;

/// The validation of one stage.
pub(super) struct StageValidation {
    settings: ValidationSettings,
    /// On the first rank, which validates for all.
    validator: Option<Validator>,
}

impl StageValidation {
    /// That of stage `index`; nothing where there is nothing to validate on or the stage is not validated.
    ///
    /// # Errors
    /// What is wrong with the held-out samples.
    pub fn load(run: &Run, index: usize) -> Result<Option<StageValidation>> {
        let stage = &run.share.stages[index];
        let (Some(held_out), Some(settings)) = (&run.options.held_out, stage.validated()) else {
            return Ok(None);
        };
        let plan = run.validations[index].clone();
        let validator = plan.map(|plan| {
            let (tokenizer, kept) = (run.tokenizer.clone(), run.kept_held_out.clone());
            Validator::new(plan, (&run.recipe, stage), &held_out.pairs, tokenizer, kept)
        });
        Ok(Some(StageValidation {
            settings,
            validator: validator.transpose()?,
        }))
    }

    /// Validates after `done` of `steps` steps of stage `index`, where that is due; returns whether the stage has been without a
    /// better validation for long enough. All ranks hear the same.
    ///
    /// # Errors
    /// [`Error::Setting`] when the held-out samples do not give the metric that the stage is judged by; whatever data, device,
    /// disk, observers and votes report.
    pub fn run_where_due(
        &self,
        (run, state): (&Run, &mut RunState),
        checkpoints: &mut Checkpointer,
        index: usize,
        [done, steps]: [u64; 2],
    ) -> Result<bool> {
        if !self.settings.is_due(done, steps) {
            return Ok(false);
        }
        run.options.seat.votes().note(Phase::Evaluate, Some(done));
        let under_way = run.options.clock.start();
        let measured = self.validator.as_ref().map(|of| of.measure(run.model()));
        let measured = measured.transpose()?;
        let value = self.judged(run, index, measured.as_ref().map(|(measures, _)| measures))?;
        // Before the first step there is nothing that the stage has made better or worse.
        let is_best = match (self.settings.best_by, value) {
            (Some(metric), Some(value)) if done > 0 => {
                Some(state.validations.take(metric, done, value))
            }
            _ => None,
        };
        let is_over = is_best.is_some() && state.validations.is_over(&self.settings);
        if let Some((measures, skips)) = &measured {
            if done == 0 {
                warn_of(run, index, skips)?;
            }
            run.tell(&Event::Validated(Validated {
                stage: &run.recipe.stages[index].name,
                step: done,
                steps,
                measures,
                is_best,
                ends_stage: is_over && done < steps,
                seconds: under_way.seconds(),
            }))?;
            if is_best == Some(true) {
                save_best(run, state, checkpoints, index, done)?;
            }
        }
        run.meet("a validation")?;
        Ok(is_over)
    }

    /// What the stage is judged by, as the first rank has measured it; nothing for a stage that is not judged.
    fn judged(
        &self,
        run: &Run,
        index: usize,
        measures: Option<&ValidationMeasures>,
    ) -> Result<Option<f64>> {
        let Some(metric) = self.settings.best_by else {
            return Ok(None);
        };
        let own = match measures {
            None => 0.0,
            Some(measures) => measures.get(metric).ok_or_else(|| {
                let measured = measures.values.iter().map(|(metric, _)| metric.name());
                let measured: Vec<&str> = measured.collect();
                let want = "a metric that these held-out samples give";
                Error::setting(
                    format!(
                        "stage {}: validation.best_by",
                        run.recipe.stages[index].name
                    ),
                    format!("{want}: {}", measured.join(", ")),
                    metric.name(),
                )
            })?,
        };
        if run.ranks() == 1 {
            return Ok(Some(own));
        }
        let votes = run.options.seat.votes();
        let heard = votes.gather("what a validation came to", &own.to_le_bytes())?;
        let first = heard[0].as_chunks().0[0];
        Ok(Some(f64::from_le_bytes(first)))
    }

    /// Tells how the stage ended: which of its validations was the best, and whether that ended it.
    ///
    /// # Errors
    /// Whatever an observer ends the run for.
    pub fn sum_up(
        &self,
        (run, state): (&Run, &RunState),
        index: usize,
        [done, steps]: [u64; 2],
    ) -> Result<()> {
        let (Some(metric), Some(best)) = (self.settings.best_by, state.validations.best) else {
            return Ok(());
        };
        let (name, metric) = (&run.recipe.stages[index].name, metric.name());
        if done < steps {
            run.note(&format!(
                "stage {name} ends after {done} of {steps} steps: {} validations without a better {metric}",
                state.validations.since
            ))?;
        }
        run.note(&format!(
            "stage {name}: best {metric} {:.4} after step {}",
            best.value, best.step
        ))
    }
}

/// Says once what held-out samples the stage cannot use.
fn warn_of(run: &Run, index: usize, skips: &HeldOutSkips) -> Result<()> {
    if skips.count == 0 {
        return Ok(());
    }
    run.warn(&format!(
        "stage {}: {} held-out samples cannot be used and are left out, the first: {}",
        run.recipe.stages[index].name, skips.count, skips.first
    ))
}

/// Saves the best checkpoint. One for which there is no room costs itself alone, as any other inside a stage.
fn save_best(
    run: &Run,
    state: &RunState,
    checkpoints: &mut Checkpointer,
    index: usize,
    step: u64,
) -> Result<()> {
    match checkpoints.save_best(run, state, index, step) {
        Ok(_) => Ok(()),
        Err(problem) => run.warn(&format!(
            "the best checkpoint, after step {step}, was not saved, and the run goes on: {problem}"
        )),
    }
}
